import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from bilevel.datasets import _svhn, svhn

ROWS = {"train": 30, "test": 12, "extra": 50}
UINT8, DOUBLE = 9, 6  # MATLAB's array classes


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(_svhn, "_ROWS", ROWS)
    monkeypatch.delenv("BILEVEL_DATA", raising=False)


def make(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and the digits; some are 0."""
    rng = np.random.default_rng(ROWS[split])
    return rng.integers(0, 256, (ROWS[split], 32, 32, 3), np.uint8), np.arange(ROWS[split]) % 10


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(name: str, shape: tuple[int, ...], array_class: int, content: bytes) -> bytes:
    """A compressed variable of a MATLAB 5 file; the first axis is the fastest."""
    body = element(6, struct.pack("<II", array_class, 0))
    body += element(5, struct.pack(f"<{len(shape)}i", *shape))
    body += element(1, name.encode()) + element(2, content)  # miUINT8, whatever the class
    packed = zlib.compress(element(14, body))
    return struct.pack("<II", 15, len(packed)) + packed


def header() -> bytes:
    text = b"MATLAB 5.0 MAT-file, Platform: GLNXA64, Created on: Mon Dec  5 21:09:26 2011"
    return text.ljust(116) + bytes(8) + struct.pack("<H", 0x0100) + b"IM"


def mat(images: np.ndarray, digits: np.ndarray, label_class: int = UINT8) -> bytes:
    """X (32, 32, 3, n), and y (n, 1) with 10 for the digit 0. Without SciPy's writer."""
    pixels = bytes(images.transpose(0, 3, 2, 1).tobytes())  # row fastest, image slowest
    classes = bytes(10 if d == 0 else int(d) for d in digits)
    return (
        header()
        + matrix("X", (32, 32, 3, len(images)), UINT8, pixels)
        + matrix("y", (len(digits), 1), label_class, classes)
    )


def write(folder: Path, split: str, **arguments) -> Path:
    path = folder / f"{split}_32x32.mat"
    path.write_bytes(mat(*make(split), **arguments))
    return path


@pytest.mark.parametrize("label_class", [UINT8, DOUBLE])
@pytest.mark.parametrize("split", ROWS)
def test_files_in_the_published_layout_come_back(tmp_path, split, label_class):
    write(tmp_path, split, label_class=label_class)
    found, (images, digits) = svhn(split, folder=tmp_path), make(split)
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, digits)
    assert found.images.dtype == found.labels.dtype == np.uint8
    assert found.images.flags.c_contiguous


def test_the_hand_written_file_is_what_scipy_loads(tmp_path):
    path, (images, digits) = write(tmp_path, "train"), make("train")
    content = scipy.io.loadmat(path)
    assert content["X"].shape == (32, 32, 3, 30)
    np.testing.assert_array_equal(content["X"][4, 5, 2], images[:, 4, 5, 2])
    np.testing.assert_array_equal(content["y"][:, 0], np.where(digits == 0, 10, digits))


def test_the_published_sizes(monkeypatch):
    monkeypatch.undo()
    assert _svhn._ROWS == {"train": 73257, "test": 26032, "extra": 531131}


def test_a_missing_file_says_what_where_and_whence(tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        svhn("test")
    for part in ("test_32x32.mat", str(tmp_path / "svhn"), "download=True", "ufldl.stanford.edu"):
        assert part in str(error.value)
    (tmp_path / "svhn").mkdir()
    write(tmp_path / "svhn", "test")
    assert len(svhn("test").labels) == 12


def test_exchanged_files_are_named(tmp_path):
    write(tmp_path, "test").replace(tmp_path / "train_32x32.mat")
    with pytest.raises(
        ValueError,
        match=r"train_32x32\.mat: expected the 30 images of the split 'train', found 12: this is "
        r"test_32x32\.mat under the wrong name",
    ):
        svhn("train", folder=tmp_path)


def save(**variables):
    def write(path: Path) -> None:
        scipy.io.savemat(path, variables)

    return write


def content(change):
    def write(path: Path) -> None:
        path.write_bytes(change(mat(*make("train"))))

    return write


X, Y = np.zeros((32, 32, 3, 30), np.uint8), np.ones((30, 1), np.uint8)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (content(lambda b: b[: len(b) // 2]), r"truncated"),
        (content(lambda b: b[:128]), r"truncated, .* Expected the arrays X and y, found neither"),
        (content(lambda b: b[:300] + bytes(500) + b[800:]), r"truncated or damaged \(error"),
        (content(lambda b: b""), r"not a MATLAB 5 file. It starts with b'', expected b'MATLAB 5"),
        (content(lambda b: gzip.compress(b)), r"not a MATLAB 5 file.*compressed"),
        (
            content(lambda b: b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + b[520:]),
            r"version 7\.3, which is HDF5.*'-v7'",
        ),
        (content(lambda b: b"\x89HDF\r\n\x1a\n" + b), r"version 7\.3, which is HDF5"),
        (save(X=X, labels=Y), r"another MATLAB file. Expected the arrays X and y, found X\."),
        (save(X=X.astype(np.float64), y=Y), r"X must be uint8 .*\(32, 32, 3, 30\), found float64"),
        (save(X=X, y=Y[:7]), r"y must have a row an image, shape \(30, 1\), found \(7, 1\)"),
        (save(X=X[..., :7], y=Y[:7]), r"expected the 30 images of the split 'train', found 7\."),
        (save(X=X, y=Y * 0), r"image 0 has the class 0; expected 1 to 10"),
        (save(X=X, y=np.r_[Y[:29], [[11]]]), r"image 29 has the class 11; expected 1 to 10"),
    ],
)
def test_other_files_are_named_with_what_is_wrong(tmp_path, write, message):
    write(tmp_path / "train_32x32.mat")
    with pytest.raises(ValueError, match=rf"train_32x32\.mat: .*{message}"):
        svhn("train", folder=tmp_path)
