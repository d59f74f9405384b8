import gzip
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest

from bilevel.datasets import read_idx

# Element type code, struct letter, NumPy name, values at the ends of the range.
ELEMENT_TYPES = [
    (0x08, "B", "uint8", [0, 1, 2, 128, 254, 255]),
    (0x09, "b", "int8", [-128, -1, 0, 1, 2, 127]),
    (0x0B, "h", "int16", [-32768, -2, 0, 1, 258, 32767]),
    (0x0C, "i", "int32", [-(2**31), -2, 0, 1, 16909060, 2**31 - 1]),
    (0x0D, "f", "float32", [-1.5, 0.0, 0.25, 3.0, 2.0**-126, 2.0**100]),
    (0x0E, "d", "float64", [-1.5, 0.0, 0.1, 1 / 3, 2.0**-1022, 1e300]),
]


def idx_bytes(code: int, letter: str, shape: tuple[int, ...], values: list) -> bytes:
    """An IDX file, written without NumPy and without the code under test."""
    header = bytes([0, 0, code, len(shape)]) + b"".join(struct.pack(">I", size) for size in shape)
    return header + b"".join(struct.pack(">" + letter, value) for value in values)


TWO_BY_THREE = idx_bytes(0x08, "B", (2, 3), [1, 2, 3, 4, 5, 6])


def write(folder: Path, content: bytes, name: str = "array") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_the_header_is_the_published_one():
    # The first 16 bytes of MNIST's train-images-idx3-ubyte: 60000 images of 28 x 28.
    assert idx_bytes(0x08, "B", (60000, 28, 28), []).hex() == "000008030000ea600000001c0000001c"


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize(("code", "letter", "name", "values"), ELEMENT_TYPES)
def test_every_element_type_round_trips(tmp_path, code, letter, name, values, compress):
    array = read_idx(write(tmp_path, compress(idx_bytes(code, letter, (2, 3), values))))
    assert array.dtype == np.dtype(name)
    assert array.dtype.isnative
    assert array.tolist() == [values[:3], values[3:]]
    array[0, 0] = 7  # a copy of its own, writable
    assert array[0, 0] == 7


@pytest.mark.parametrize(
    "shape", [(), (6,), (1, 6), (3, 1, 2), (2, 1, 1, 3), (1,) * 63 + (6,), (0, 28)]
)
def test_any_rank(tmp_path, shape):
    values = list(range(int(np.prod(shape))))
    array = read_idx(write(tmp_path, idx_bytes(0x0C, "i", shape, values)))
    assert array.shape == shape
    assert array.ravel().tolist() == values


def test_compression_is_recognised_by_content_and_not_by_name(tmp_path):
    plain = write(tmp_path, TWO_BY_THREE, "plain.gz")
    packed = write(tmp_path, gzip.compress(TWO_BY_THREE), "packed")
    assert read_idx(plain).tolist() == read_idx(str(packed)).tolist() == [[1, 2, 3], [4, 5, 6]]


DAMAGED = {
    "empty": (b"", r"not an IDX file. It starts with the bytes ''; expected '00 00'"),
    "a web page": (b"<!DOCTYPE html>", r"starts with the bytes '3c 21 44 4f'.*saved web page"),
    "unknown type": (bytes([0, 0, 0x0A, 1]), r"bytes '00 00 0a 01'.*\(08, 09, 0b, 0c, 0d, 0e\)"),
    "too many axes": (bytes([0, 0, 8, 65]), r"the header claims 65 axes.*at most 64"),
    "half a header": (TWO_BY_THREE[:10], r"truncated. .* 2 axes takes 12 bytes, found 10"),
    "a byte short": (
        TWO_BY_THREE[:-1],
        r"truncated. .* \(2, 3\) of uint8, that is 6 bytes of data; found 5. Fetch the file again",
    ),
    "a byte long": (
        TWO_BY_THREE + b"\0",
        r"trailing bytes. .* \(2, 3\) of uint8, that is 6 bytes of data; found 7",
    ),
    "gzip cut short": (
        gzip.compress(TWO_BY_THREE)[:-9],
        r"starts like a gzip file but cannot be decompressed .* fetch it again",
    ),
    "gzip with a wrong checksum": (
        gzip.compress(TWO_BY_THREE)[:-8] + bytes(8),
        r"cannot be decompressed \(CRC check failed",
    ),
    "xz cut short": (
        lzma.compress(TWO_BY_THREE)[:-9],
        r"starts like an xz file but cannot be decompressed .* fetch it again",
    ),
    "gzip with trailing bytes": (gzip.compress(TWO_BY_THREE) + b"more", r"cannot be decompressed"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_and_explained(tmp_path, case):
    content, message = DAMAGED[case]
    path = write(tmp_path, content, "damaged-idx")
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        read_idx(tmp_path / "no-such-file")
