"""QMNIST: MNIST rebuilt from its sources, with the 50000 test digits that were lost."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ._fetch import ensure
from ._idx import read_idx
from ._sources import QMNIST

_ROWS = {"train": 60000, "test": 60000, "nist": 402953}  # of the files
_FIRST = {"train": [5, 0, 4, 1, 9], "test": [7, 2, 1, 0, 4]}  # as MNIST's: tells one from the other
_PART = {"test10k": slice(10000), "test50k": slice(10000, None)}
_COLUMNS = 8


class QMNISTImages(NamedTuple):
    """Images uint8 (n, 28, 28), labels uint8 (n,) in 0..9, and details int32 (n, 8).

    The columns of `details`: 0 class, 1 NIST HSF series (0, 1 or 4), 2 NIST writer, 3 index of the
    digit among the writer's, 4 NIST class code, 5 global NIST index, 6 the digit that this one
    duplicates (0 for none), 7 unused.
    """

    images: np.ndarray
    labels: np.ndarray
    details: np.ndarray


def qmnist(
    split: Literal["train", "test", "test10k", "test50k", "nist"],
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> QMNISTImages:
    """Handwritten digits with their writers: the rows of MNIST, and 50000 more test digits.

    "train" has MNIST's 60000 training digits, row by row; the first 10000 of the 60000 of "test"
    are MNIST's test digits ("test10k"), the others are new ("test50k"); "nist" has all 402953
    digits of NIST Special Database 19. The pixels are a reconstruction, close to those of MNIST.

    The files carry their original names (`qmnist-train-images-idx3-ubyte.gz`,
    `qmnist-train-labels-idx2-int.gz`, `qmnist-test-...`, `xnist-images-idx3-ubyte.xz`, ...),
    compressed or plain. They are looked for in `folder`, then in the sub-folder `qmnist` of the
    folder that the environment variable `BILEVEL_DATA` names, then where `fetch` puts them.
    Nothing is downloaded without `download=True`.

    The checks are structural: sizes, types, classes, and the first five labels, by which exchanged
    training and test files are found. For checksums use `fetch("qmnist", sha256=...)`.

    Args:
        split: "train", "test", "test10k", "test50k" or "nist".
        folder: the folder that holds the files; None means the other two places only.
        download: let `fetch` download what is missing.

    Returns:
        `QMNISTImages(images, labels, details)`, in the published order.

    Raises:
        FileNotFoundError: no place holds both files; the message says where to get them.
        OSError: `fetch` could not download them.
        ValueError: `split` is unknown, or a file is truncated, damaged, or another one.

    Source: Yadav and Bottou (2019), "Cold case: The lost MNIST digits" [yadav2019][]; layout:
    https://github.com/facebookresearch/qmnist.

    Example (skipped where the data is absent):
        >>> qmnist("test50k").details.shape  # doctest: +SKIP
        (50000, 8)
    """
    images_path, labels_path = QMNIST.locate(split, ensure(QMNIST, split, folder, download))
    file = "test" if split in _PART else split
    images = _read(images_path, np.uint8, (_ROWS[file], 28, 28))
    details = _read(labels_path, np.int32, (_ROWS[file], _COLUMNS))
    row = np.argmax((details[:, 0] < 0) | (details[:, 0] > 9))
    if not 0 <= details[row, 0] <= 9:
        raise ValueError(
            f"{labels_path}: row {row} has the class {details[row, 0]}; expected 0 to 9. The file "
            f"is damaged; it can be had from {QMNIST.sources}."
        )
    first = details[:5, 0].tolist()
    if file in _FIRST and first != _FIRST[file]:
        other = next((name for name, labels in _FIRST.items() if labels == first), None)
        raise ValueError(
            f"{labels_path}: the first labels are {first}; expected {_FIRST[file]}, as in MNIST. "
            + (f"These are the labels of {other!r}: " if other else "The rows are in other order: ")
            + f"give the files their original names, or have them from {QMNIST.sources}."
        )
    part = _PART.get(split, slice(None))
    images, details = images[part], details[part]
    return QMNISTImages(images=images, labels=details[:, 0].astype(np.uint8), details=details)


def _read(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    array = read_idx(path)
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{path}: expected {np.dtype(dtype).name} of shape {shape}, found {array.dtype.name} of "
            f"shape {array.shape}. Is it another data set's file, or are the images and the labels "
            f"exchanged? The files can be had from {QMNIST.sources}."
        )
    return array
