"""Data of every kind as numpy, pandas or scipy.sparse; results of the kind that came in."""

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse

from .checks import InputError, as_vector, check_aligned, named
from .columns import _kind, as_matrix
from .files import check_unique, read_tables, suggest
from .scalars import settled

Internal = np.ndarray | pd.DataFrame | pd.Series | scipy.sparse.csr_array | scipy.sparse.csr_matrix


def as_internal(a: Any, name: str) -> Internal:
    """`a` as an array, a pandas object or a CSR matrix, with one entry or row per data row.

    pandas passes through. polars, pyarrow and whatever else narwhals reads becomes pandas, as does
    a Hugging Face dataset (class labels by name). Torch tensors, JAX arrays and lists become numpy;
    any sparse matrix CSR. The path of a `.npy` file becomes a read-only memory map; that of a table
    (see `read_table`) a data frame. Nothing is unpickled.

    Raises:
        InputError: of another kind, lists of unequal length, or a file that cannot be read.
    """
    if isinstance(a, (pd.DataFrame, pd.Series)):
        return a
    if scipy.sparse.issparse(a):
        if a.ndim != 2:
            raise InputError(f"`{name}` is a sparse array of shape {a.shape}; give a matrix.")
        return a.tocsr()
    if _is_a(a, "torch", "Tensor"):
        return _from_torch(a, name)
    if _is_dataset(a):
        return _from_dataset(a, name)
    if isinstance(a, np.ma.MaskedArray):
        return _from_masked(a)
    if not isinstance(a, (str, os.PathLike)):
        table = _from_arrow_or_narwhals(a, name)
        return _from_rest(a, name) if table is None else table
    return _from_path(Path(a), name)


def feature_rows(X: Any, name: str) -> Any:
    """`X` as a matrix, data frame or CSR matrix.

    Images, `(rows, height, width)` or `(rows, height, width, channels)`, become rows of pixels;
    `image_shape` tells their shape.

    Raises:
        InputError: as `as_internal`; repeated names of columns; or not two-dimensional and no images.
    """
    values = as_internal(X, name)
    if isinstance(values, pd.DataFrame):
        check_unique(values, f"`{name}`")
    if isinstance(values, pd.DataFrame) or scipy.sparse.issparse(values):
        return values
    if values.ndim in (3, 4):
        return values.reshape(len(values), -1)
    if values.ndim == 1:
        raise InputError(
            f"`{name}` has one dimension, shape {values.shape}: rows of features are wanted. Make a "
            "single numeric feature a column by `.reshape(-1, 1)`, a list of texts or a series a "
            "table by `pd.DataFrame({'text': ...})`."
        )
    if values.ndim != 2:
        raise InputError(
            f"`{name}` has {values.ndim} dimensions, shape {values.shape}: give (rows, features), or "
            "images as (rows, height, width) or (rows, height, width, channels)."
        )
    return values


def as_rows(X: Any, y: Any, name: str = "X", y_name: str = "y") -> tuple[Any, Any]:
    """(features, labels): `feature_rows` of `X` and `as_internal` of `y`.

    `y` may also name the column of the table `X` that holds the labels, which is then taken out.

    Raises:
        InputError: as `feature_rows`; no such column; or a dataset that still holds the labels.
    """
    if not _is_name(y):
        features, labels = feature_rows(X, name), settled(as_internal(y, y_name))
        if _is_dataset(X):
            _check_without_labels(X, features, np.asarray(labels), y_name)
        check_aligned(features, labels, y_name)
        return features, labels
    if _is_dataset(X):
        return split_dataset(X, y, name)
    table = _read_files({name: X}, y)[name] if _is_table_file(X) else as_internal(X, name)
    if not isinstance(table, pd.DataFrame):
        raise InputError(
            f"`{y_name}` is {y!r}, the name of a column, but `{name}` is no table that could "
            "have one; give the labels themselves."
        )
    features, labels = _take_out(table, y, name)
    return features, settled(labels)


def as_pairs(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """`as_rows` of several tables, by what the names of their arguments end in: "", "_trusted", ...

    Files whose labels are a column are read together: labels are read alike in all CSV files.
    """
    pairs = dict(pairs)
    files: dict[str, list[str]] = {}
    for ending, (X, y) in pairs.items():
        if _is_name(y) and _is_table_file(X):
            files.setdefault(y, []).append(ending)
    for label, endings in files.items():
        frames = _read_files({f"X{ending}": pairs[ending][0] for ending in endings}, label)
        pairs |= {ending: (frames[f"X{ending}"], label) for ending in endings}
    return {ending: as_rows(X, y, f"X{ending}", f"y{ending}") for ending, (X, y) in pairs.items()}


def split_dataset(dataset: Any, label: str, name: str = "X") -> tuple[Any, pd.Series]:
    """(features, labels) of a Hugging Face dataset whose labels are the column `label`.

    Features are a data frame; or, where the only other column holds images, arrays or vectors, a
    matrix with a row each. Class labels are given by name, unknown ones (-1) as missing.

    Raises:
        InputError: no such column, or no other; images or arrays of different shapes.
    """
    features, labels = _take_out(_from_dataset(dataset, name), label, name)
    if len(features.columns) == 1 and _kind(features.iloc[:, 0]) == "vector":
        return as_matrix(features.iloc[:, 0], f"`{name}`"), labels
    return features, labels


def image_shape(X: Any) -> tuple[int, ...] | None:
    """The shape of one image among those that `feature_rows` makes rows of pixels, or `None`.

    `(height, width)`, `(height, width, channels)` or whatever order the array has.
    """
    if _is_dataset(X):
        columns = [c for c, feature in X.features.items() if _is_array(feature)]
        return np.shape(_arrays(X[:1], columns[0])[0]) if len(columns) == 1 and len(X) else None
    if isinstance(X, (str, os.PathLike)) and Path(X).suffix.lower() == ".npy":
        X = _from_path(Path(X), "X")
    shape = tuple(getattr(X, "shape", ()))
    return shape[1:] if len(shape) in (3, 4) else None


def like(values: Any, original: Any, name: str) -> Any:
    """A vector with one value per row of `original`, of the same kind as `original`.

    A pandas series with the index of a data frame or series; a polars series or a pyarrow (chunked)
    array; a torch tensor on the same device or a JAX array, if the values are numbers; else numpy.
    """
    values = np.asarray(values)
    if isinstance(original, (pd.DataFrame, pd.Series)):
        return pd.Series(values, index=original.index, name=name)
    if isinstance(original, (pa.Array, pa.RecordBatch)):
        return pa.array(values)
    if values.dtype.kind in "fiub":
        if _is_a(original, "torch", "Tensor"):
            return sys.modules["torch"].as_tensor(values, device=original.device)
        if _is_a(original, "jax", "Array"):
            return sys.modules["jax"].numpy.asarray(values)
    frame = nw.from_native(original, pass_through=True, allow_series=True)
    if isinstance(frame, nw.LazyFrame):
        frame = frame.head(0).collect()  # a lazy frame's rows come as polars or pyarrow
    if isinstance(frame, (nw.DataFrame, nw.Series)):
        return nw.new_series(name, values, backend=frame.implementation).to_native()
    return values


def _is_a(a: Any, module: str, kind: str) -> bool:
    # Whoever has such an object has imported its library; we do not.
    cls = getattr(sys.modules.get(module), kind, None)
    return isinstance(cls, type) and isinstance(a, cls)


def _is_dataset(a: Any) -> bool:
    return _is_a(a, "datasets", "Dataset")


def _is_name(y: Any) -> bool:
    """Whether it names a column, and is neither labels nor the path of some."""
    return isinstance(y, str) and Path(y).suffix.lower() != ".npy"


def _is_table_file(X: Any) -> bool:
    return isinstance(X, (str, os.PathLike)) and Path(X).suffix.lower() != ".npy"


def _read_files(paths: Mapping[str, Any], label: str | None) -> dict[str, pd.DataFrame]:
    tables = read_tables({f"`{name}`": Path(path) for name, path in paths.items()}, label=label)
    for note in (note for table in tables.values() for note in table.notes):
        warnings.warn(note, UserWarning, stacklevel=5)
    return {name: tables[f"`{name}`"].frame for name in paths}


def _from_path(path: Path, name: str) -> np.ndarray | pd.DataFrame:
    if path.suffix.lower() != ".npy":
        return _read_files({name: path}, None)[name]
    if not path.is_file():  # a pipe would be waited for
        raise InputError(f"the `{name}` file {path} does not exist; check the path.")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # of many kinds: the header may say anything
        raise InputError(
            f"the `{name}` file {path} cannot be mapped as an array of numbers: {error} Save it by "
            "`np.save` from an array of a numeric dtype; pickled objects are not read."
        ) from error


def _from_masked(a: np.ma.MaskedArray) -> np.ndarray:
    """What is masked is missing: NaN among numbers, None among others."""
    if not np.ma.getmaskarray(a).any():
        return a.data
    if a.dtype.kind in "biuf":
        return np.ma.filled(a.astype(np.float64), np.nan)
    values = a.data.astype(object)
    values[np.ma.getmaskarray(a)] = None
    return values


def _from_torch(tensor: Any, name: str) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # which numpy does not have
        tensor = tensor.float()
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"`{name}` is a torch tensor that cannot be made a numpy array: {error}"
        ) from error


def _from_arrow_or_narwhals(a: Any, name: str) -> pd.DataFrame | pd.Series | None:
    if isinstance(a, pa.Array):
        a = pa.chunked_array([a])
    try:
        frame = nw.from_native(a, pass_through=True, allow_series=True)
    except nw.exceptions.DuplicateError as error:
        said = " ".join(str(error).split())
        raise InputError(f"`{name}` has repeated column names. {said}") from error
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect()
    if isinstance(frame, (nw.DataFrame, nw.Series)):
        return frame.to_pandas()
    if hasattr(a, "__arrow_c_stream__"):
        return pa.table(a).to_pandas()
    return None


def _from_rest(a: Any, name: str) -> np.ndarray:
    """Lists, JAX arrays and whatever else numpy can read."""
    try:
        values = as_vector(a)
    except ValueError as error:
        lengths = np.array([len(row) if hasattr(row, "__len__") else 0 for row in a])
        odd = np.flatnonzero(lengths != lengths[0])
        raise InputError(
            f"`{name}` is a list whose rows differ in length: rows {named(odd)} differ from the "
            f"first, which has {lengths[0]}."
            if len(odd)
            else f"`{name}` cannot be read as an array: {error}"
        ) from error
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"`{name}` is a {type(a).__name__}, which numpy cannot read: {error} Convert it to a "
            "numpy array in main memory."
        ) from error
    if values.ndim == 0:
        raise InputError(
            f"`{name}` is {_what(a)}, which has no rows. Give an array, a data frame (pandas, "
            "polars, pyarrow), a sparse matrix, a tensor, a Hugging Face dataset, or the path of a "
            ".npy, CSV or Parquet file."
        )
    return values


def _what(a: Any) -> str:
    if _is_a(a, "datasets", "DatasetDict"):
        return f"a dictionary of the datasets {named(list(a))} (give one of them)"
    if _is_a(a, "datasets", "IterableDataset"):
        return "a streamed dataset (load it with `streaming=False`)"
    return f"a {type(a).__name__}"


def _is_array(feature: Any) -> bool:
    kinds = ("Image", "Array2D", "Array3D", "Array4D", "Array5D")
    return any(_is_a(feature, "datasets", kind) for kind in kinds)


def _arrays(batch: dict[str, Any], column: str) -> list[np.ndarray]:
    return [np.asarray(value) for value in batch[column]]


def _from_dataset(dataset: Any, name: str) -> pd.DataFrame:
    """Class labels by name; images and arrays as vectors of their pixels."""
    arrays = [c for c, feature in dataset.features.items() if _is_array(feature)]
    columns: dict[str, Any] = dict(dataset.remove_columns(arrays).to_pandas())
    for c, feature in dataset.features.items():
        if _is_a(feature, "datasets", "ClassLabel"):
            columns[c] = columns[c].map(dict(enumerate(feature.names)))
        if c in arrays:
            values = _arrays(dataset.select_columns([c]).with_format(None)[:], c)
            shapes = sorted({v.shape for v in values})
            if len(shapes) > 1:
                raise InputError(
                    f"the images or arrays in the column {c!r} of `{name}` differ in shape "
                    f"({named(shapes)}): bring them to one shape, such as `image.convert('RGB')"
                    ".resize((32, 32))`."
                )
            columns[c] = pd.Series([v.ravel() for v in values], dtype=object)
    return pd.DataFrame({c: columns[c] for c in dataset.column_names})


def _check_without_labels(dataset: Any, table: Any, labels: np.ndarray, y_name: str) -> None:
    """Refuse a dataset that still has a column equal to the labels."""
    for column, feature in dataset.features.items():
        names = getattr(feature, "names", None)
        given = pd.Series(labels)
        if names is not None and pd.api.types.is_integer_dtype(given):
            given = given.map(dict(enumerate(names)))
        if table[column].astype(object).equals(given.astype(object)):
            raise InputError(
                f"the dataset holds the labels, as its column {column!r}, and they would be learned "
                f"from. Say `{y_name}={column!r}`, which takes them out."
            )


def _take_out(table: pd.DataFrame, label: str, name: str) -> tuple[pd.DataFrame, pd.Series]:
    if label not in table.columns:
        raise InputError(f"`{name}` has no column {label!r}; {suggest(label, table.columns)}.")
    features = table.drop(columns=label)
    if features.shape[1] == 0:
        raise InputError(f"`{name}` has no column besides the label {label!r}.")
    return features, pd.Series(table[label])
