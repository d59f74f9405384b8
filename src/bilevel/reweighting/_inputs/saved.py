"""Saved models: read without unpickling, and refused if they hold what no model of ours does."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.pipeline import Pipeline

from ..._storage import DamagedFileError
from .archives import check_archive
from .checks import InputError, named
from .columns import table_pipeline
from .trees import check_trees


@functools.cache
def model_types() -> list[str]:
    """What a `model.skops` holds beside the types that skops trusts of its own accord.

    The names are those of the installed skrub, whose modules are private: they are read off a small
    model that has every kind of column.
    """
    import skops.io

    days = pd.date_range("2000-01-01", periods=60)
    table = pd.DataFrame({"date": days, "text": days.strftime("%A %d %B").astype(object)})
    pipeline = table_pipeline(table).fit(table)
    return skops.io.get_untrusted_types(data=skops.io.dumps(pipeline))


def load_model(path: str | os.PathLike, types: Sequence[str] = ()) -> Pipeline:
    """The pipeline in a `model.skops`, see `load_trusted`.

    Its `predict` takes a table with the columns and types of the training table.

    Raises:
        InputError: no such file, no skops file, or one that holds other types (named).
    """
    model = load_trusted(path, types)
    if not isinstance(model, Pipeline):
        raise InputError(f"the model file {path} holds a {type(model).__name__}, not a pipeline.")
    return model


def load_trusted(path: str | os.PathLike, types: Sequence[str] = ()) -> Any:
    """What a skops file holds; nothing is unpickled, and no type but our own and `types` is made.

    Raises:
        InputError: no such file, no skops file, one that holds other types (named), one that unpacks
            to more than its size, or a model that would read files that its rows name.
    """
    import skops.io

    path = Path(path)
    if not path.exists():
        raise InputError(f"the model file {path} does not exist; check the path.")
    own = [*model_types(), *types]
    try:
        check_archive(path)
        foreign = sorted(set(skops.io.get_untrusted_types(file=path)) - set(own))
    except Exception as error:  # of many kinds: the bytes may say anything
        raise _unreadable(path, error) from error
    if foreign:
        raise InputError(
            f"the model file {path} holds types that no model of `bilevel weigh` has: "
            f"{named(foreign)}. It is not opened; what such types do on loading is not known."
        )
    try:
        model = skops.io.load(path, trusted=own)
        reader = _reader_of_files(model)
        check_trees(_parts(model))
    except Exception as error:
        raise _unreadable(path, error) from error
    if reader is not None:
        raise InputError(
            f"the model file {path} holds a {reader} that reads the files that rows name, which no "
            "model of `bilevel weigh` does. It is not used."
        )
    return model


def _unreadable(path: Path, error: Exception) -> InputError:
    what = str(error) if isinstance(error, DamagedFileError) else f"{type(error).__name__}: {error}"
    return InputError(
        f"the model file {path} is not a skops file, or is damaged ({what[:200]}). Bring back a copy, "
        "or weigh again."
    )


def _parts(model: Any) -> Iterator[Any]:
    """All objects that a model is made of, each once."""
    seen, left = set(), [model]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None))):
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, Mapping):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            left += value
        elif isinstance(value, np.ndarray):
            left += value.ravel().tolist() if value.dtype == object else []
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            left += vars(value).values()


def _reader_of_files(model: Any) -> str | None:
    """The name of an encoder of texts that takes them for names of files; None if there is none."""
    for value in _parts(model):
        if isinstance(value, (CountVectorizer, HashingVectorizer)) and value.input != "content":
            return type(value).__name__
    return None
