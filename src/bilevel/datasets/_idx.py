"""The IDX file format: one array, as MNIST and its relatives are published.

    byte 0-1   zero
    byte 2     element type (see `_ELEMENT_TYPES`)
    byte 3     rank r
    then       r sizes, 4-byte unsigned integers
    then       the elements, last axis fastest

All numbers are big-endian.
"""

import gzip
import lzma
import math
import os
import zlib
from pathlib import Path

import numpy as np

_ELEMENT_TYPES = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\0"
_MAX_RANK = 64  # of a NumPy array; the format itself goes to 255


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, compressed (gzip, xz) or plain.

    Compression is recognised by the file's first bytes, not by its name. The file is read
    into memory as a whole and must hold exactly one array, without missing or additional bytes.

    Args:
        path: the file.

    Returns:
        A new, writable array in the machine's byte order, of the file's shape and element type:
        uint8, int8, int16, int32, float32 or float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not IDX, is cut short or damaged, or goes on after the last element.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", section "The IDX
    file format", http://yann.lecun.com/exdb/mnist/.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "two-by-three")
        ...     header = bytes([0, 0, 0x08, 2]) + bytes([0, 0, 0, 2]) + bytes([0, 0, 0, 3])
        ...     _ = path.write_bytes(header + bytes([1, 2, 3, 4, 5, 6]))
        ...     read_idx(path)
        array([[1, 2, 3],
               [4, 5, 6]], dtype=uint8)
    """
    path = Path(path)
    return parse_idx(read_decompressed(path), path)


def read_decompressed(path: Path) -> bytes:
    """The file's bytes, decompressed if they start as gzip or xz do."""
    content = path.read_bytes()
    if not content.startswith((GZIP_MAGIC, XZ_MAGIC)):
        return content
    kind, module = ("a gzip", gzip) if content.startswith(GZIP_MAGIC) else ("an xz", lzma)
    try:
        return module.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"{path}: starts like {kind} file but cannot be decompressed ({error}) from its "
            f"{len(content)} bytes. The file is damaged or incomplete: fetch it again."
        ) from error


def parse_idx(content: bytes, path: Path) -> np.ndarray:
    """The array in decompressed IDX bytes; `path` is only for the error messages."""
    magic = content[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _ELEMENT_TYPES:
        types = ", ".join(f"{code:02x}" for code in _ELEMENT_TYPES)
        raise ValueError(
            f"{path}: not an IDX file. It starts with the bytes '{magic.hex(' ')}'; expected "
            f"'00 00', an element type ({types}) and a rank. Is it another format, a saved web "
            "page, or compressed with something other than gzip or xz?"
        )
    dtype, rank = _ELEMENT_TYPES[magic[2]], magic[3]
    if rank > _MAX_RANK:
        raise ValueError(
            f"{path}: the header claims {rank} axes; a NumPy array has at most {_MAX_RANK}. "
            "The file is most likely damaged: fetch it again."
        )

    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(
            f"{path}: truncated. An IDX header of {rank} axes takes {start} bytes, found "
            f"{len(content)}. Fetch the file again."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=rank, offset=4))

    found, expected = len(content) - start, math.prod(shape) * dtype.itemsize
    if found != expected:
        problem = "truncated" if found < expected else "trailing bytes"
        raise ValueError(
            f"{path}: {problem}. The header announces shape {shape} of {dtype.name}, that is "
            f"{expected} bytes of data; found {found}. Fetch the file again, or, if you wrote "
            "it yourself, correct the sizes in its header."
        )
    return (
        np.frombuffer(content, dtype, offset=start).astype(dtype.newbyteorder("=")).reshape(shape)
    )
