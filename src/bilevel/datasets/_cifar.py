"""CIFAR-10, read from either form in which its publisher distributes it.

    binary version   data_batch_1.bin ... data_batch_5.bin, test_batch.bin
                     10000 records of 1 + 3072 bytes: label, then the pixels
    python version   data_batch_1 ... data_batch_5, test_batch
                     a pickled dict: b"data" uint8 (10000, 3072), b"labels" 10000 integers

The 3072 pixels of an image are its red, green and blue plane, each 32 rows of 32.
"""

import io
import itertools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ._fetch import ensure
from ._mnist import LabelledImages
from ._sources import CIFAR10

_RECORDS = 10000  # a file
_PIXELS = 3 * 32 * 32
_CLASSES = 10
_BATCH_LABELS = {f"data_batch_{i}": b"training batch %d of 5" % i for i in range(1, 6)} | {
    "test_batch": b"testing batch 1 of 1"
}
_SOURCES = CIFAR10.sources


def cifar10(
    split: Literal["train", "test"],
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> LabelledImages:
    """Colour photographs: 50000 training and 10000 test images of 32 x 32 pixels, ten classes.

    The classes are 0 airplane, 1 automobile, 2 bird, 3 cat, 4 deer, 5 dog, 6 frog, 7 horse,
    8 ship, 9 truck. The files are those of the binary version (`data_batch_1.bin`, ...) or of
    the python version (`data_batch_1`, ...), unpacked, with their original names. They are looked
    for in `folder`, then in the sub-folders `cifar-10`, `cifar-10-batches-bin` and
    `cifar-10-batches-py` of the folder that the environment variable `BILEVEL_DATA` names, then
    where `fetch` puts them. The first place that holds all files of the split in one version is
    read. Nothing is downloaded without `download=True`.

    Loading a pickle can run code. Here no code runs: the names of NumPy's array constructors and of
    `_codecs.encode` only record what the file passes to them, and every other name is refused.

    The checks are structural: sizes, shapes, dtypes, labels, the name of the batch where the file
    has one (python version), and that no two batches are the same. Checksums are *not*
    required, so files of your own in the same layout are read too. Two `.bin` files with exchanged
    names, and damaged pixels, are not noticed. To be sure that you have the published data, compare
    the md5 sums of the archives or of the unpacked python version:

        data_batch_1  c99cafc152244af753f735de768cd75f
        data_batch_2  d4bba439e000b95fd0a9bffe97cbabec
        data_batch_3  54ebc095f3ab1f0389bbae665268c751
        data_batch_4  634d18415352ddfa80567beed471001a
        data_batch_5  482c414d41f54cd18b22e5b47cb7c3ce
        test_batch    40351d587109b95175f43aff81a1287e

    Args:
        split: "train" or "test".
        folder: the folder that holds the files; None means the other places only.
        download: let `fetch` download what is missing.

    Returns:
        `LabelledImages(images, labels)`: uint8 (n, 32, 32, 3), that is row, column and red, green,
        blue, in 0..255, and uint8 (n,) in 0..9, in the published order.

    Raises:
        FileNotFoundError: no place holds all files; the message says where to get them.
        OSError: `fetch` could not download them.
        ValueError: `split` is unknown, or a file is truncated, has a label above 9, is another
            file, or is a pickle that names anything but an array.

    Source: Krizhevsky (2009), "Learning multiple layers of features from tiny images", technical
    report, University of Toronto [krizhevsky2009][]; layout:
    https://www.cs.toronto.edu/~kriz/cifar.html.

    Example (skipped where the data is absent):
        >>> images, labels = cifar10("test")  # doctest: +SKIP
        >>> images.shape, labels[:5]  # doctest: +SKIP
        ((10000, 32, 32, 3), array([3, 8, 8, 0, 6], dtype=uint8))
    """
    paths = CIFAR10.locate(split, ensure(CIFAR10, split, folder, download))
    pixels, labels = zip(*map(_read_batch, paths), strict=True)
    for (a, first), (b, second) in itertools.combinations(zip(paths, pixels, strict=True), 2):
        if np.array_equal(first, second):
            raise ValueError(
                f"{b}: holds the same images as {a.name}, so one of the two is a copy under the "
                f"wrong name. The files can be had from {_SOURCES}."
            )
    planes = np.concatenate(pixels).reshape(-1, 3, 32, 32)
    return LabelledImages(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels=np.concatenate(labels)
    )


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 (10000, 3072), and labels, uint8 (10000,), of one file."""
    return _read_binary(path) if path.suffix == ".bin" else _read_pickle(path)


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content, record = path.read_bytes(), 1 + _PIXELS
    count, rest = divmod(len(content), record)
    if (count, rest) != (_RECORDS, 0):
        problem = "truncated" if count < _RECORDS else "too long"
        raise ValueError(
            f"{path}: {problem}, or not a CIFAR-10 batch. Expected {_RECORDS} records of {record} "
            f"bytes, that is {_RECORDS * record}; found {len(content)} bytes, that is {count} "
            f"records and {rest} bytes over. The files can be had from {_SOURCES}."
        )
    records = np.frombuffer(content, np.uint8).reshape(_RECORDS, record)
    labels = records[:, 0]
    _check_labels(labels.tolist(), path)
    return records[:, 1:], labels


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    file = io.BytesIO(path.read_bytes())
    try:
        batch = _Unpickler(file, encoding="bytes").load()
    except _RefusedGlobal as error:
        raise ValueError(
            f"{path}: refused. The pickle asks for {error}, which no CIFAR-10 batch needs; loading "
            "it without this check could run code. Nothing of it was called. Do not trust the "
            f"file; the published ones can be had from {_SOURCES}."
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way: so the pickle module says
        raise ValueError(
            f"{path}: truncated, damaged or not a pickle of the python version "
            f"({type(error).__name__}: {error}). The files can be had from {_SOURCES}."
        ) from error
    if trailing := len(file.read()):
        raise ValueError(f"{path}: {trailing} trailing bytes after the end of the pickle.")
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        found = sorted(map(repr, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(
            f"{path}: not a CIFAR-10 batch. Expected a dict with the keys b'data' and b'labels', "
            f"found {found}. Is it another data set's file, or batches.meta?"
        )

    name = batch.get(b"batch_label", _BATCH_LABELS[path.name])
    if name != _BATCH_LABELS[path.name]:
        raise ValueError(
            f"{path}: this is another batch under the wrong name. Its b'batch_label' is {name!r}, "
            f"expected {_BATCH_LABELS[path.name]!r}. Give the files their original names."
        )
    labels = batch[b"labels"]
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError(
            f"{path}: b'labels' must be a list of integers, found {_describe(labels)}."
        )
    if len(labels) != _RECORDS:
        raise ValueError(f"{path}: expected {_RECORDS} labels, found {len(labels)}.")
    _check_labels(labels, path)
    return _pixels(batch[b"data"], path), np.array(labels, np.uint8)


def _check_labels(labels: list[int], path: Path) -> None:
    row = next((i for i, label in enumerate(labels) if not 0 <= label < _CLASSES), None)
    if row is not None:
        raise ValueError(
            f"{path}: record {row} has the label {labels[row]}; the labels of CIFAR-10 are 0 to "
            f"{_CLASSES - 1}. The file is damaged or another data set's (CIFAR-100?); it can be "
            f"had from {_SOURCES}."
        )


class _RefusedGlobal(pickle.UnpicklingError):
    """The text is the global's name."""


class _Unpickler(pickle.Unpickler):
    """Loads containers, numbers, text, bytes, and records of NumPy arrays. Calls nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _GLOBALS[module_name, global_name]
        except KeyError:
            raise _RefusedGlobal(f"{module_name}.{global_name}") from None


class _Record:
    """What a pickle passes to a constructor (`args`) and then to `__setstate__` (`state`)."""

    args: tuple[Any, ...] = ()  # the defaults are for a pickle that skips __init__
    state: Any = None

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Record):
    """Of `_reconstruct(...)`; the state is (1, shape, dtype, is Fortran-ordered, bytes)."""


class _Buffer(_Record):
    """Of `_frombuffer(bytes, dtype, shape, order)`: arrays in pickles of protocol 5."""


class _DType(_Record):
    """Of `dtype(name, ...)`."""


class _Latin1(_Record):
    """`encode(text, "latin1")`: bytes in pickles that Python 3 writes in protocol 2 or below."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"text encoded as {encoding!r}, expected 'latin1'")
        return text.encode("latin1")


_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Latin1,
}


def _pixels(data: Any, path: Path) -> np.ndarray:
    """The array uint8 (10000, 3072) that the record describes."""
    expected = (_RECORDS, _PIXELS)
    match data:
        case _Array(state=(1, shape, _DType(args=(dtype, *_)), fortran, bytes(content))):
            order = "F" if fortran else "C"
        case _Buffer(
            args=(bytes() | bytearray() as content, _DType(args=(dtype, *_)), shape, order)
        ):
            pass
        case _:
            raise ValueError(f"{path}: b'data' must be a NumPy array, found {_describe(data)}.")
    name = dtype.decode("latin1") if isinstance(dtype, bytes) else dtype
    if name != "u1" or shape != expected:
        raise ValueError(
            f"{path}: b'data' must be uint8 ('u1') of shape {expected}, found {name!r} of shape "
            f"{shape}."
        )
    if len(content) != _RECORDS * _PIXELS or order not in ("C", "F"):
        raise ValueError(
            f"{path}: b'data' announces shape {shape}, that is {_RECORDS * _PIXELS} bytes in order "
            f"'C' or 'F'; found {len(content)} in order {order!r}."
        )
    return np.frombuffer(content, np.uint8).reshape(expected, order=order)


def _describe(value: Any) -> str:
    return "an array" if isinstance(value, _Array | _Buffer) else f"a {type(value).__name__}"
