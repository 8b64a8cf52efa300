"""Makes the pictures of docs/report.md from reports of searches: a part of a page each, as headless Chromium shows it.

    crh-tune search digit_pairs && crh-tune report digit-pairs-001
    crh-tune search photos --data photos/ && crh-tune report photos-001
    cd crh_runs/reports
    python ../../docs/make_images.py digit-pairs-001/report.html photos-001/report.html

The first page gives the pictures of the search, the second one that of the gallery.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1240, 2400
MOST_BYTES, MOST_IN_FULL_COLOUR = 200_000, 150_000
PARTS = {
    "report_top.png": ("leaderboard",),
    "report_mattered.png": ("mattered",),
    "report_search.png": ("search",),
    "report_retrieval.png": ("retrieval",),
    "report_fails.png": ("fails",),
    "report_codes.png": ("codes",),
}
GALLERY = {"report_gallery.jpg": ("gallery",)}
FEW_ROWS = ".row:nth-of-type(n+5):nth-of-type(-n+8), .row:nth-of-type(n+13) { display: none }"


def main(pages: list[str]) -> int:
    """Make the pictures; 2 where Chromium or a page is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("make_images.py: no chromium on PATH: the pictures stay as they are", file=sys.stderr)
        return 2
    if len(pages) != 2 or not all(Path(page).is_file() for page in pages):
        print("make_images.py: give two reports, one of digit pairs and one of photos", file=sys.stderr)
        return 2
    IMAGES.mkdir(exist_ok=True)
    for page, parts in zip(pages, (PARTS, GALLERY), strict=True):
        for name, shown in parts.items():
            size = picture(browser, Path(page), shown, IMAGES / name, name == "report_top.png")
            print(f"{name}  {size / 1000:.0f} kB")
    return 0


def picture(browser: str, page: Path, shown: tuple[str, ...], to: Path, top: bool) -> int:
    """Write a picture of some sections of a page, with its head or without; its size in bytes."""
    hidden = "".join(f":not(#{name})" for name in shown)
    head = "nav" if top else "h1, .state, .summary, .why, nav"
    style = f"<style>section{hidden}, {head} {{ display: none }} h2 {{ border: 0; margin-top: 0 }} {FEW_ROWS}</style>"
    with tempfile.TemporaryDirectory() as folder:
        copy, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        copy.write_text(page.read_text(encoding="utf-8").replace("</head>", f"{style}</head>", 1), encoding="utf-8")
        subprocess.run(
            [
                browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={folder}/profile", "--virtual-time-budget=8000", f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={shot}", copy.as_uri(),
            ],
            check=True, capture_output=True, timeout=300,
        )  # fmt: skip
        with Image.open(shot) as image:
            return write_small(trimmed(image.convert("RGB")), to)


def trimmed(image: Image.Image) -> Image.Image:
    """The picture without the empty page below what it shows."""
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox() or (0, 0, *image.size)
    return image.crop((0, 0, image.width, min(image.height, box[3] + 16)))


def write_small(image: Image.Image, to: Path) -> int:
    """Write a JPEG or a PNG, of few colours where it is large, smaller until it takes 200 kB at most; its bytes."""
    while True:
        if to.suffix == ".jpg":
            image.save(to, quality=80, optimize=True)
        else:
            image.save(to, optimize=True)
            if to.stat().st_size > MOST_IN_FULL_COLOUR:
                image.quantize(256, dither=Image.Dither.NONE).save(to, optimize=True)
        if to.stat().st_size <= MOST_BYTES:
            return to.stat().st_size
        image = image.resize((image.width * 9 // 10, image.height * 9 // 10), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
