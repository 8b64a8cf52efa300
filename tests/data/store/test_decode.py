"""Image files of every kind people have, decoded and compared with their pixels; and files that are no images."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps

from crh_tune.data.store.decode import STRETCHED, BadImage, decode, deep_span, open_image

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth patches of colour, which JPEG keeps well."""
    small = Image.fromarray(noise(6, 6, seed=seed)).resize((width, height), Image.Resampling.BICUBIC)
    return small.filter(ImageFilter.GaussianBlur(1))


def refused(content: bytes) -> str:
    """The reason for which a file is refused, which is one line."""
    with pytest.raises(BadImage) as caught:
        decode(content, 8)
    reason = str(caught.value)
    assert reason
    assert reason.splitlines() == [reason]
    return reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_an_image_of_the_wanted_size_keeps_every_pixel(kind):
    pixels = noise(24, 24)
    found = decode(encoded(Image.fromarray(pixels), kind), 24)
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), size=st.integers(8, 40), seed=st.integers(0, 99))
def test_the_whole_image_is_stretched_bilinearly(height, width, size, seed):
    image = Image.fromarray(noise(height, width, seed=seed))
    expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    assert np.array_equal(decode(encoded(image, "PNG"), size), expected)


def test_constant_halves_stay_where_they_are():
    pixels = np.zeros((30, 90, 3), dtype=np.uint8)
    pixels[:, 45:] = (200, 100, 50)
    found = decode(encoded(Image.fromarray(pixels), "PNG"), 10)
    assert found[:, :4].tolist() == np.zeros((10, 4, 3), dtype=int).tolist()
    assert found[:, 6:].tolist() == np.full((10, 4, 3), (200, 100, 50)).tolist()


def test_much_larger_images_are_shrunk_as_an_exact_filter_would():
    image = photo(700, 500)
    exact = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(encoded(image, "PNG"), 16) - exact).max() <= 2


@pytest.mark.parametrize("size", [7, 8, 32, 64, 100, 150])
def test_a_jpeg_that_is_decoded_smaller_than_it_is_looks_the_same(size):
    content = encoded(photo(300, 260), "JPEG", quality=95)
    with Image.open(io.BytesIO(content)) as whole:
        exact = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
    difference = np.abs(decode(content, size) - exact)
    assert difference.max() <= 6
    assert difference.mean() <= 1


def test_a_jpeg_that_is_not_shrunk_by_half_is_decoded_whole():
    content = encoded(photo(60, 50), "JPEG", quality=95)
    with Image.open(io.BytesIO(content)) as whole:
        exact = np.asarray(whole.resize((48, 48), Image.Resampling.BILINEAR))
    assert np.array_equal(decode(content, 48), exact)


def test_without_a_size_an_image_keeps_its_own():
    assert open_image(encoded(photo(300, 260), "JPEG")).size == (260, 300)


ORIENTED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_the_orientation_of_exif_is_applied_once(orientation, kind):
    pixels, exif = noise(6, 9), Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(pixels), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = ORIENTED[orientation](pixels)
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))), expected)
    assert np.array_equal(np.asarray(open_image(content)), expected)
    upright = encoded(Image.fromarray(expected), "PNG")
    assert np.abs(decode(content, 8).astype(int) - decode(upright, 8)).max() <= 1


@pytest.mark.parametrize("orientation", ORIENTED)
def test_a_jpeg_is_turned_after_it_was_decoded_smaller(orientation):
    image, exif = photo(160, 240), Image.Exif()
    exif[0x0112] = orientation
    expected = Image.fromarray(np.ascontiguousarray(ORIENTED[orientation](np.asarray(image)))).resize((20, 20))
    found = decode(encoded(image, "JPEG", exif=exif, quality=95), 20)
    assert np.abs(found - np.asarray(expected).astype(int)).mean() < 4


@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0garbage", b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x05\x01\x12\0\x03"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_no_broken_image(exif):
    assert decode(encoded(photo(20, 30), "JPEG", exif=exif), 20).shape == (20, 20, 3)


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("L", "TIFF"), ("L", "PPM")])
def test_grey_becomes_three_equal_channels(mode, kind):
    grey = np.repeat(np.arange(0, 256, 16, dtype=np.uint8), 16).reshape(16, 16)
    found = decode(
        encoded(Image.fromarray(grey).convert(mode), kind, **({"quality": 100} if kind == "JPEG" else {})), 16
    )
    assert np.abs(found - grey[..., None].astype(int)).max() <= (2 if kind == "JPEG" else 0)
    assert np.array_equal(found[..., 0], found[..., 1])
    assert np.array_equal(found[..., 0], found[..., 2])


def test_black_and_white_becomes_0_and_255():
    bits = noise(16, 16, 1) > 127
    assert np.array_equal(
        decode(encoded(Image.fromarray(bits), "PNG"), 16), np.repeat(bits[..., None] * 255, 3, axis=2)
    )


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
@pytest.mark.parametrize("transparency", [{}, {"transparency": 3}])
def test_a_palette_becomes_its_colours(kind, transparency):
    palette = noise(256, 3, 1)
    image = Image.fromarray(LEVELS, "L").convert("P")
    image.putpalette(palette.tobytes())
    found = decode(encoded(image, kind, **(transparency if kind != "BMP" else {})), 16)
    assert np.array_equal(found, palette[LEVELS])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_dropped(kind):
    pixels = noise(16, 16, 4)
    pixels[..., 3] = np.maximum(pixels[..., 3], 1)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), kind, **options), 16), pixels[..., :3])


def test_a_cmyk_jpeg_becomes_rgb():
    colours = photo(64, 64)
    content = encoded(colours.convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "CMYK"
    for size in (64, 16):
        exact = np.asarray(colours.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(decode(content, size) - exact).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_become_the_upper_8(kind):
    pixels = LEVELS.astype(np.uint16) * 257
    found = decode(encoded(Image.fromarray(pixels), kind), 16)
    assert np.abs(found - LEVELS[..., None].astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_many_frames_the_first_is_taken(kind):
    frames = [Image.new("RGB", (12, 12), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    assert decode(content, 8).tolist() == np.full((8, 8, 3), (255, 0, 0)).tolist()


def test_an_image_of_the_wanted_size_is_not_resampled():
    image = photo(8, 8)
    assert STRETCHED.apply(image, 8) is image


def test_an_empty_file_and_text_are_no_images():
    assert refused(b"") == "not an image"
    assert refused(b"This is a note.\nNot a photo.\n") == "not an image"


@settings(max_examples=60, deadline=None)
@given(part=st.floats(0, 0.9))
def test_a_truncated_jpeg_is_refused(part):
    content = encoded(photo(64, 80), "JPEG", quality=90)
    refused(content[: int(part * len(content))])


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_half_a_file_is_refused(kind):
    content = encoded(Image.fromarray(noise(64, 64)), kind)
    for part in (1, 4, 5, 7):
        refused(content[: part * len(content) // 10])


def test_the_reason_of_a_truncated_jpeg_says_so():
    content = encoded(photo(64, 80), "JPEG")
    assert refused(content[: len(content) // 2]).startswith("image file is truncated")


@settings(max_examples=400, deadline=None)
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(content):
    refused(content)


WHOLE = {kind: encoded(Image.fromarray(noise(24, 20)), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")}


@settings(max_examples=400, deadline=None)
@pytest.mark.filterwarnings("ignore")
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)), min_size=1),
    header=st.booleans(),
)
def test_a_damaged_image_is_decoded_or_refused_and_nothing_else(kind, changes, header):
    content = bytearray(WHOLE[kind])
    for part, new in changes:
        start = int(part * (64 if header else len(content)))
        content[start : start + len(new)] = new
    try:
        found = decode(bytes(content), 8)
    except BadImage:
        refused(bytes(content))
    else:
        assert (found.shape, found.dtype) == ((8, 8, 3), np.uint8)


def test_an_image_of_too_many_pixels_is_refused_in_a_process_of_its_own():
    code = (
        "import io, warnings; from PIL import Image; before = Image.MAX_IMAGE_PIXELS\n"
        "from crh_tune.data.store.decode import BadImage, decode\n"
        "file = io.BytesIO(); Image.new('1', (20000, 10000)).save(file, 'PNG')\n"
        "try: decode(file.getvalue(), 8)\n"
        "except BadImage as error: print(error)\n"
        "filtered = any(Image.DecompressionBombWarning in each for each in warnings.filters)\n"
        "print(before == Image.MAX_IMAGE_PIXELS, filtered)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    said = "20000 x 10000 pixels are 200 million, dataset.max_megapixels allows 89.4785"
    assert done.stdout.splitlines() == [said, "True False"]  # and what is Pillow's own is as it was
    assert done.stderr == ""


def test_an_image_beyond_pillows_limit_is_read_where_the_option_allows_it():
    content = encoded(Image.new("L", (10000, 9000), 128), "JPEG")
    assert (decode(content, 8, megapixels=90) == 128).all()
    with pytest.raises(BadImage, match=r"^10000 x 9000 pixels are 90 million, dataset.max_megapixels allows 89.9$"):
        decode(content, 8, megapixels=89.9)


def test_as_many_pixels_as_the_option_says_are_taken_and_none_more():
    deep = encoded(Image.fromarray(noise(8, 10, 1).astype(np.uint16) * 16), "PNG")
    assert deep_span(deep, 80e-6) is not None
    assert decode(deep, 8, megapixels=80e-6).shape == (8, 8, 3)
    assert deep_span(deep, 79e-6) is None
    with pytest.raises(BadImage, match=r"dataset.max_megapixels allows 7.9e-05$"):
        decode(deep, 8, megapixels=79e-6)


DEEP = {
    "PNG": lambda values: Image.fromarray(values.astype(np.uint16)),
    "TIFF": lambda values: Image.fromarray(values.astype(np.uint16)),
    "TIFF int32": lambda values: Image.fromarray(values.astype(np.int32)),
    "TIFF float": lambda values: Image.fromarray((values / 4095).astype(np.float32)),
    "PPM": lambda values: Image.fromarray(values.astype(np.int32), "I"),
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_grey_images_of_more_than_8_bits_are_scaled_by_a_span(kind):
    values = np.random.default_rng(0).integers(100, 3000, (16, 16))
    content, unit = encoded(DEEP[kind](values), kind.split()[0]), 4095 if "float" in kind else 1
    assert deep_span(content) == pytest.approx((values.min() / unit, values.max() / unit))
    found = decode(content, 16, span=(0, 4095 / unit))
    assert np.abs(found - np.repeat(values[..., None] / 4095 * 255, 3, axis=2)).max() <= 0.5 + 1e-3
    low, high = values.min(), values.max()
    assert np.abs(decode(content, 16)[..., 0] - (values - low) / (high - low) * 255).max() <= 0.5 + 1e-3
    cut = decode(content, 16, span=(1000 / unit, 2000 / unit))[..., 0]
    assert (cut[values <= 1000] == 0).all()
    assert (cut[values >= 2000] == 255).all()


def test_a_large_grey_image_of_16_bits_takes_little_more_memory_than_its_pixels_and_is_scaled_to_the_same_values():
    values = np.random.default_rng(0).integers(100, 3000, (2000, 1900)).astype(np.uint16)
    content = encoded(Image.fromarray(values), "TIFF")
    tracemalloc.start()
    try:
        found = open_image(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * values.nbytes  # NumPy's part; as float64 all values alone are 4 times as much
    expected = np.rint((values.astype(np.float64) - 100) * (255 / 2899)).astype(np.uint8)
    assert np.array_equal(np.asarray(found), np.repeat(expected[..., None], 3, axis=2))


def test_values_that_are_no_numbers_do_not_count():
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    values[0, :3] = np.nan, np.inf, -np.inf
    content = encoded(Image.fromarray(values), "TIFF")
    assert deep_span(content) == (values[0, 3], 1)
    assert decode(content, 16)[0, :3, 0].tolist() == [0, 255, 0]


def png_of_16_bits(values: np.ndarray) -> bytes:
    """H x W x 2 (grey and alpha), 3 (RGB) or 4 (RGBA), which Pillow cannot write; each row less the one above it."""
    height, width, channels = values.shape
    rows = values.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    data = zlib.compress(np.insert(filtered, 0, 2, axis=1).tobytes())
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    ends = (struct.pack(">I", zlib.crc32(name + each)) for name, each in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(each)) + name + each + end for (name, each), end in zip(chunks, ends, strict=True)
    )


def ppm_of_16_bits(values: np.ndarray, top: int = 65535) -> bytes:
    height, width, _ = values.shape
    return f"P6\n{width} {height}\n{top}\n".encode() + values.astype(">u2").tobytes()


def tiff_of_16_bits(
    values: np.ndarray, order: str = "<", photometric: int = 2, planar: int = 1, deflate: bool = False, alpha: int = 2
) -> bytes:
    """H x W x 3 or 4, which Pillow cannot write: in either order of bytes, with the channels apart (``planar`` 2)."""
    height, width, channels = values.shape
    planes = values.astype(f"{order}u2").transpose(2, 0, 1) if planar == 2 else values.astype(f"{order}u2")[None]
    strips = [zlib.compress(each.tobytes()) if deflate else each.tobytes() for each in planes]
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [8 if deflate else 1], 262: [photometric]}
    tags |= {273: starts[:-1], 277: [channels], 278: [height], 279: [len(each) for each in strips], 284: [planar]}
    tags |= {338: [alpha]} if channels == 4 and photometric == 2 else {}
    entries, more = b"", b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        value = packed if len(numbers) == 1 else struct.pack(f"{order}I", starts[-1] + 6 + 12 * len(tags) + len(more))
        more += packed if len(numbers) > 1 else b""
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + value
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, starts[-1])
    return head + b"".join(strips) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + more


DEEP_COLOUR = {
    "PNG of RGB": lambda values: png_of_16_bits(values[..., :3]),
    "PNG of RGBA": png_of_16_bits,
    "TIFF of RGB": lambda values: tiff_of_16_bits(values[..., :3]),
    "TIFF of RGB, big-endian": lambda values: tiff_of_16_bits(values[..., :3], ">"),
    "TIFF of RGBA, deflated": lambda values: tiff_of_16_bits(values, deflate=True),
    "PPM": lambda values: ppm_of_16_bits(values[..., :3]),
    "PPM, of which the header has a range": lambda values: ppm_of_16_bits(values[..., :3], 40000),
    "TIFF of RGB and something, deflated, big-endian": lambda values: tiff_of_16_bits(values, ">", 2, 1, True, 0),
}


@pytest.mark.parametrize("top", [4096, 65536])
@pytest.mark.parametrize("kind", DEEP_COLOUR)
def test_colour_of_16_bits_is_scaled_by_a_span(kind, top):
    values = np.random.default_rng(0).integers(0, top, (16, 18, 4))
    content, colour = DEEP_COLOUR[kind](values), values[..., :3]
    low, high = colour.min(), colour.max()
    assert deep_span(content) == (low, high)
    assert np.array_equal(np.asarray(open_image(content)), np.rint((colour - low) * (255 / (high - low))))
    assert np.array_equal(np.asarray(open_image(content, span=(0, top - 1))), np.rint(colour * (255 / (top - 1))))


def test_grey_of_16_bits_with_alpha_is_scaled_by_its_own_values():
    values = np.random.default_rng(0).integers(0, 4096, (16, 16, 2))
    content, grey = png_of_16_bits(values), values[..., :1]
    assert deep_span(content) == (grey.min(), grey.max())
    expected = np.rint(np.repeat(grey, 3, axis=2) * (255 / 4095))
    assert np.array_equal(np.asarray(open_image(content, span=(0, 4095))), expected)


@pytest.mark.parametrize(
    ("layout", "mode"),
    [
        ({"photometric": 5}, "CMYK"), ({"photometric": 5, "deflate": True, "order": ">"}, "CMYK"),
        ({"alpha": 1}, "RGBA"), ({"planar": 2}, "RGBA"), ({"planar": 2, "deflate": True}, "RGBA"),
    ],
)  # fmt: skip
def test_colour_of_16_bits_of_which_the_lower_bytes_cannot_be_had_is_refused(layout, mode):
    content = tiff_of_16_bits(np.random.default_rng(0).integers(0, 4096, (9, 8, 4)), **layout)
    how = "convert it to 8 bits a channel, or to grey"
    assert refused(content) == f"more than 8 bits a channel in a layout that is not read ({mode}): {how}"
    assert deep_span(content) is None


def test_colour_of_16_bits_that_is_written_out_is_refused():
    content = b"P3\n2 1\n65535\n1 2 3 4095 0 65535\n"
    assert refused(content).startswith("more than 8 bits a channel in a layout that is not read (RGB): convert it")
    assert decode(b"P3\n2 1\n255\n1 2 3 4 0 255\n", 8)[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_images_of_8_bits_have_no_span(kind):
    for mode in ("L", "RGB"):
        assert deep_span(encoded(photo(9, 9).convert(mode), kind)) is None
    assert deep_span(b"no image") is None
