"""Street View House Numbers, cropped digits: two variables in a MATLAB file."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ._fetch import ensure
from ._mnist import LabelledImages
from ._sources import SVHN

_ROWS = {"train": 73257, "test": 26032, "extra": 531131}
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_HEADER = b"MATLAB 5.0 MAT-file"


def svhn(
    split: Literal["train", "test", "extra"],
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> LabelledImages:
    """House numbers photographed from the street, one digit per image: 32 x 32 pixels, ten classes.

    73257 training digits, 26032 test digits and 531131 extra ones, which are easier. The files are
    those of the publisher's "Format 2", `train_32x32.mat`, `test_32x32.mat` and `extra_32x32.mat`.
    They are looked for in `folder`, then in the sub-folder `svhn` of the folder that the
    environment variable `BILEVEL_DATA` names, then where `fetch` puts them. Nothing is downloaded
    without `download=True`. Class 10 of the files, the digit 0, becomes 0 here.

    The checks are structural: types, sizes, classes, and the number of images, by which exchanged
    files are found. For checksums use `fetch("svhn", split=...)`.

    Args:
        split: "train", "test" or "extra" (1.3 GB, 1.6 GB in memory).
        folder: the folder that holds the file; None means the other two places only.
        download: let `fetch` download what is missing or damaged.

    Returns:
        `LabelledImages(images, labels)`: uint8 (n, 32, 32, 3), that is row, column and red, green,
        blue, in 0..255, and uint8 (n,) in 0..9, in the published order.

    Raises:
        FileNotFoundError: the file is in none of the places; the message says where to get it.
        OSError: `fetch` could not download it.
        ValueError: `split` is unknown, or the file is truncated, damaged, another one, or of
            MATLAB's version 7.3, which is HDF5.

    Source: Netzer, Wang, Coates, Bissacco, Wu and Ng (2011), "Reading digits in natural images with
    unsupervised feature learning" [netzer2011][]; layout: http://ufldl.stanford.edu/housenumbers/.

    Example (skipped where the data is absent):
        >>> svhn("test").images.shape  # doctest: +SKIP
        (26032, 32, 32, 3)
    """
    (path,) = SVHN.locate(split, ensure(SVHN, split, folder, download))
    pixels, classes = _variables(path)
    again = f"The file can be had from {SVHN.sources}."
    n = _ROWS[split]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise ValueError(
            f"{path}: X must be uint8 of shape (32, 32, 3, {n}), found {pixels.dtype} of shape "
            f"{pixels.shape}. {again}"
        )
    if classes.shape != (pixels.shape[3], 1):
        raise ValueError(
            f"{path}: y must have a row an image, shape ({pixels.shape[3]}, 1), found "
            f"{classes.shape}. {again}"
        )
    if len(classes) != n:
        other = next((name for name, rows in _ROWS.items() if rows == len(classes)), None)
        raise ValueError(
            f"{path}: expected the {n} images of the split {split!r}, found {len(classes)}"
            + (f": this is {other}_32x32.mat under the wrong name. " if other else ". ")
            + again
        )
    if not np.isin(classes, np.arange(1, 11)).all():
        row = int(np.argmin(np.isin(classes, np.arange(1, 11))))
        raise ValueError(
            f"{path}: image {row} has the class {classes[row, 0]}; expected 1 to 10, where 10 is "
            f"the digit 0. {again}"
        )
    return LabelledImages(
        images=np.ascontiguousarray(np.moveaxis(pixels, 3, 0)),
        labels=(classes[:, 0] % 10).astype(np.uint8),
    )


def _variables(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The arrays X and y of a MATLAB 5 file."""
    from scipy.io import loadmat

    with path.open("rb") as file:
        head = file.read(520)
    if _HDF5_MAGIC in (head[:8], head[512:]):
        raise ValueError(
            f"{path}: a MATLAB file of version 7.3, which is HDF5. The published one is of version "
            f"5: have it from {SVHN.sources}, or save it again in MATLAB with the flag '-v7'."
        )
    if not head.startswith(_HEADER):
        raise ValueError(
            f"{path}: not a MATLAB 5 file. It starts with {head[:19]!r}, expected {_HEADER!r}. Is "
            f"it compressed, or a saved web page? It can be had from {SVHN.sources}."
        )
    content: dict[str, Any]
    try:
        content = loadmat(path, variable_names=("X", "y"))
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"{path}: truncated or damaged ({type(error).__name__}: {error}); {path.stat().st_size} "
            f"bytes. It can be had from {SVHN.sources}."
        ) from error
    found = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    if not {"X", "y"} <= found.keys():
        raise ValueError(
            f"{path}: truncated, or another MATLAB file. Expected the arrays X and y, found "
            f"{', '.join(sorted(found)) or 'neither'}. It can be had from {SVHN.sources}."
        )
    return found["X"], found["y"]
