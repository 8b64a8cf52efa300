"""Arrays in one ``.npz`` file that are mapped into memory where they lie, in place of being read.

NumPy reads such a file as any other: its members are neither compressed nor, which is all that is special, begun
elsewhere than at a multiple of 64 bytes.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from crh_tune.ground import check_archive, write_whole

Array = npt.NDArray[Any]
CHECKED = 64 * 2**20
"""Members of up to so many bytes are compared with their checksum when the file is opened; larger ones are not read."""
_ALIGNED = 64
_LOCAL, _FOR_64_BITS, _PADDING, _PADS = 30, 20, 4, 0xD935
"""Bytes of a member's own header, of its sizes as zip64 keeps them, and of the header of what fills up to the data."""


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays into a file that is whole or as it was.

    Raises ValueError for arrays of objects, OSError where it cannot be written.
    """

    def write(aside: Path) -> None:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                assert archive.fp is not None
                info = zipfile.ZipInfo(f"{name}.npy")
                start = archive.fp.tell() + _LOCAL + len(info.filename.encode()) + _PADDING + _FOR_64_BITS
                info.extra = struct.pack("<HH", _PADS, -start % _ALIGNED) + bytes(-start % _ALIGNED)
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)

    write_whole(path, write)


def open_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a file of ``write_arrays``, mapped into memory; those of any other ``.npz`` file, read.

    Mapped arrays can be written to, which changes neither the file nor what others see. Raises ValueError for what is
    damaged, holds objects or is no such file, and whatever zipfile and NumPy raise on it.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED or _start(file, info) % _ALIGNED for info in members):
            check_archive(path)
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        for info in members:
            if info.file_size <= CHECKED:
                with archive.open(info) as member:
                    while member.read(2**20):
                        pass  # at the end it raises where the checksum is wrong
        return {info.filename.removesuffix(".npy"): _mapped(file, info) for info in members}


def _start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where a member's content begins."""
    file.seek(info.header_offset)
    name, extra = struct.unpack("<26xHH", file.read(_LOCAL))
    return info.header_offset + _LOCAL + int(name) + int(extra)


def _mapped(file: IO[bytes], info: zipfile.ZipInfo) -> Array:
    start = _start(file, info)
    file.seek(start)
    header = io.BytesIO(file.read(min(info.file_size, 2**14)))
    version = np.lib.format.read_magic(header)
    if version != (1, 0):
        raise ValueError(f"{info.filename} is of NumPy's format {version}, not (1, 0)")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(header)
    count = int(np.prod(shape, dtype=object))
    if dtype.hasobject or by_columns or count < 0 or header.tell() + count * dtype.itemsize != info.file_size:
        raise ValueError(f"{info.filename} has {info.file_size} bytes, and not {dtype} of shape {shape} by rows")
    if not count * dtype.itemsize:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "c", start + header.tell(), shape).view(np.ndarray)
