import gzip
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest

from bilevel.datasets import QMNISTImages, _qmnist, _sources, qmnist

N = 12000  # rows a file in place of 60000, so that test50k is not empty
FIRST = {"train": [5, 0, 4, 1, 9], "test": [7, 2, 1, 0, 4], "nist": [0, 0, 0, 0, 0]}
PREFIX = {"train": "qmnist-train", "test": "qmnist-test", "nist": "xnist"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(_qmnist, "_ROWS", dict.fromkeys(PREFIX, N))
    monkeypatch.delenv("BILEVEL_DATA", raising=False)


def make(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, and the eight columns within the published ranges."""
    rng = np.random.default_rng(len(file))
    images = np.zeros((N, 28, 28), np.uint8)
    images[:, 13:15] = rng.integers(0, 256, (N, 2, 28))  # little to compress
    classes = rng.integers(0, 10, N)
    classes[:5] = FIRST[file]
    columns = [
        classes,
        rng.choice([0, 1, 4], N),
        rng.choice([0, 610, 2100, 2599], N),
        rng.integers(0, 150, N),
        classes + 30,
        rng.permutation(281770)[:N],
        np.zeros(N, np.int64),
        np.zeros(N, np.int64),
    ]
    return images, np.stack(columns, axis=1)


def write(folder: Path, file: str, pack=gzip.compress, suffix: str = ".gz") -> tuple[Path, Path]:
    """The published layout, magic numbers 0x0803 and 0x0c02, big-endian, without NumPy's writer."""
    images, details = make(file)
    paths = (
        folder / f"{PREFIX[file]}-images-idx3-ubyte{suffix}",
        folder / f"{PREFIX[file]}-labels-idx2-int{suffix}",
    )
    paths[0].write_bytes(pack(struct.pack(">IIII", 0x0803, N, 28, 28) + images.tobytes()))
    numbers = struct.pack(f">{8 * N}i", *details.ravel().tolist())
    paths[1].write_bytes(pack(struct.pack(">III", 0x0C02, N, 8) + numbers))
    return paths


PACKINGS = [(bytes, ""), (gzip.compress, ".gz"), (lambda b: lzma.compress(b, preset=0), ".xz")]


@pytest.mark.parametrize(("pack", "suffix"), PACKINGS, ids=["plain", "gz", "xz"])
@pytest.mark.parametrize("file", PREFIX)
def test_files_in_the_published_layout_come_back(tmp_path, file, pack, suffix):
    write(tmp_path, file, pack, suffix)
    images, details = make(file)
    found = qmnist(file, folder=tmp_path)
    assert isinstance(found, QMNISTImages)
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.details, details)
    np.testing.assert_array_equal(found.labels, details[:, 0])
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.uint8)
    assert found.details.dtype == np.int32
    assert found.details[:, 5].max() > 65536  # needs all of its 32 bits


def test_the_two_parts_of_the_test_file(tmp_path):
    write(tmp_path, "test")
    images, details = make("test")
    first, second = (qmnist(split, folder=tmp_path) for split in ("test10k", "test50k"))
    np.testing.assert_array_equal(first.images, images[:10000])
    np.testing.assert_array_equal(second.images, images[10000:])
    np.testing.assert_array_equal(second.details, details[10000:])
    assert (len(first.labels), len(second.labels)) == (10000, N - 10000)


def test_the_published_sizes(monkeypatch):
    monkeypatch.undo()
    assert _qmnist._ROWS == {"train": 60000, "test": 60000, "nist": 402953}


def test_found_in_the_environments_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    (tmp_path / "qmnist").mkdir()
    write(tmp_path / "qmnist", "train")
    assert qmnist("train").labels[:5].tolist() == FIRST["train"]
    with pytest.raises(FileNotFoundError) as error:
        qmnist("nist")
    for part in (
        "xnist-images-idx3-ubyte, xnist-labels-idx2-int (plain or compressed)",
        str(tmp_path / "qmnist"),
        "download=True",
        "https://github.com/facebookresearch/qmnist",
    ):
        assert part in str(error.value)


def test_exchanged_images_and_labels_are_named(tmp_path):
    images, labels = write(tmp_path, "train")
    content = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    labels.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"images-idx3-ubyte\.gz: expected uint8 of shape \(12000, 28, 28\), found int32 of "
        r"shape \(12000, 8\)\. .* exchanged\?",
    ):
        qmnist("train", folder=tmp_path)


def test_exchanged_training_and_test_files_are_named(tmp_path):
    for train, test in zip(write(tmp_path, "train"), write(tmp_path, "test"), strict=True):
        test.replace(train)
    with pytest.raises(
        ValueError,
        match=r"qmnist-train-labels.*first labels are \[7, 2, 1, 0, 4\]; expected \[5, 0, 4, 1, 9\]"
        r".*These are the labels of 'test'",
    ):
        qmnist("train", folder=tmp_path)


def test_rows_in_another_order_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(FIRST, "train", [9, 9, 9, 9, 9])
    write(tmp_path, "train")
    with pytest.raises(ValueError, match="The rows are in other order"):
        qmnist("train", folder=tmp_path)


def test_a_class_outside_its_range_is_named(tmp_path):
    _, labels = write(tmp_path, "train", bytes, "")
    content = bytearray(labels.read_bytes())
    content[12 + 32 * 17 : 16 + 32 * 17] = struct.pack(">i", -1)
    labels.write_bytes(content)
    with pytest.raises(ValueError, match=r"labels-idx2-int: row 17 has the class -1; .* 0 to 9"):
        qmnist("train", folder=tmp_path)


@pytest.mark.parametrize(
    ("pack", "suffix", "cut", "message"),
    [
        (bytes, "", 1, r"truncated\. The header announces shape \(12000, 8\) of int32"),
        (
            gzip.compress,
            ".gz",
            9,
            r"starts like a gzip file but cannot be decompressed .*incomplete",
        ),
        (
            PACKINGS[2][0],
            ".xz",
            9,
            r"starts like an xz file but cannot be decompressed .*incomplete",
        ),
    ],
)
def test_truncated_files_are_named(tmp_path, pack, suffix, cut, message):
    _, labels = write(tmp_path, "train", pack, suffix)
    labels.write_bytes(labels.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=rf"labels-idx2-int.*: {message}"):
        qmnist("train", folder=tmp_path)


def test_the_wrong_number_of_rows_is_named(tmp_path, monkeypatch):
    write(tmp_path, "train")
    monkeypatch.setattr(_qmnist, "_ROWS", {"train": 60000})
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(60000, 28, 28\), found uint8"):
        qmnist("train", folder=tmp_path)


def test_an_unknown_split_is_refused(tmp_path):
    # TypeError: under the tests' run-time checking of annotations, which comes first.
    with pytest.raises((ValueError, TypeError), match="split"):
        qmnist("val", folder=tmp_path)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"split must be one of train, test, test10k, .*; got 'v'"):
        _sources.QMNIST.locate("v", tmp_path)
