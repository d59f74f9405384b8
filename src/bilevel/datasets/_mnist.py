"""MNIST and Fashion-MNIST, read from the files their publishers distribute."""

import hashlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ._fetch import ensure
from ._idx import parse_idx, read_decompressed
from ._sources import FASHION_MNIST, MNIST, Published, find_name


class LabelledImages(NamedTuple):
    """Images and their labels, row by row.

    `images` is uint8, (n, 28, 28) for MNIST and Fashion-MNIST (0 = background, 255 = full ink) and
    (n, 32, 32, 3) for CIFAR-10 and SVHN; `labels` is uint8 of shape (n,), values 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


_FILE_PREFIX = {"train": "train", "test": "t10k"}


def mnist(
    split: Literal["train", "test"],
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> LabelledImages:
    """Handwritten digits: 60000 training and 10000 test images of 28 x 28 pixels, ten classes.

    The files carry their original names (`train-images-idx3-ubyte`, ...), gzip-compressed with
    the suffix `.gz` or plain. They are looked for in `folder`, then in the sub-folder `mnist` of
    the folder that the environment variable `BILEVEL_DATA` names, then where `fetch` puts them.
    Nothing is downloaded without `download=True`.

    Args:
        split: "train" or "test".
        folder: the folder that holds the files; None means the other two places only.
        download: let `fetch` download what is missing or damaged.

    Returns:
        `LabelledImages(images, labels)`: uint8 (n, 28, 28) in 0..255 and uint8 (n,) in 0..9, in
        the published order.

    Raises:
        FileNotFoundError: a file is in none of the places; the message says where to get it.
        OSError: `fetch` could not download it.
        ValueError: `split` is unknown, or a file is not the published one (sha256).

    Source: LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document
    recognition" [lecun1998][].

    Example (skipped where the data is absent):
        >>> images, labels = mnist("test")  # doctest: +SKIP
        >>> images.shape, labels[:5]  # doctest: +SKIP
        ((10000, 28, 28), array([7, 2, 1, 0, 4], dtype=uint8))
    """
    return _read(MNIST, split, folder, download)


def fashion_mnist(
    split: Literal["train", "test"],
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> LabelledImages:
    """Articles of clothing: a harder problem with the sizes, file names and format of MNIST.

    The reader is that of `mnist`, with the sub-folder `fashion-mnist` of `BILEVEL_DATA`. The
    classes are 0 T-shirt, 1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8
    bag, 9 ankle boot. Arguments, result and errors are those of `mnist`.

    Source: Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST: A novel image dataset for benchmarking
    machine learning algorithms" [xiao2017][].

    Example (skipped where the data is absent):
        >>> images, labels = fashion_mnist("test")  # doctest: +SKIP
        >>> images.shape, labels[:5]  # doctest: +SKIP
        ((10000, 28, 28), array([9, 2, 1, 1, 6], dtype=uint8))
    """
    return _read(FASHION_MNIST, split, folder, download)


def _read(
    dataset: Published, split: str, folder: str | os.PathLike[str] | None, download: bool
) -> LabelledImages:
    if split not in _FILE_PREFIX:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    places = dataset.places(ensure(dataset, split, folder, download))
    prefix = _FILE_PREFIX[split]
    return LabelledImages(
        images=_read_verified(dataset, f"{prefix}-images-idx3-ubyte", places),
        labels=_read_verified(dataset, f"{prefix}-labels-idx1-ubyte", places),
    )


def _read_verified(dataset: Published, name: str, places: list[Path]) -> np.ndarray:
    path = _find(dataset, name, places)
    content = read_decompressed(path)
    found, expected = hashlib.sha256(content).hexdigest(), dataset.checks[name]["sha256"]
    if found != expected:
        raise ValueError(
            f"{path}: this is not the published {dataset.name} file {name}. Its decompressed "
            f"content has sha256 {found}, expected {expected}. It is damaged or another data "
            f"set's file: fetch it again from {dataset.sources}. To read a file of your own, use "
            "`read_idx`."
        )
    return parse_idx(content, path)


def _find(dataset: Published, name: str, places: list[Path]) -> Path:
    for place in places:
        if (path := find_name(place, name)) is not None:
            return path
    looked = " and ".join(str(place) for place in places)
    variable = "" if os.environ.get("BILEVEL_DATA") else " (BILEVEL_DATA is not set)"
    raise FileNotFoundError(
        f"{dataset.name}: found neither {name} nor {name}.gz; looked in {looked}{variable}. Pass "
        f"download=True to have it fetched. Or put {', '.join(dataset.checks)} (plain or "
        f"compressed) into one folder and pass it as `folder`, or name the folder "
        f"`{dataset.name}` and set BILEVEL_DATA to its parent. The files can be had from "
        f"{dataset.sources}."
    )
