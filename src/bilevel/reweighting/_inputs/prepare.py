"""From what the user passes to checked numbers: the part that every method shares."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

from .checks import (
    InputError,
    as_features,
    as_targets,
    check_labels,
    check_overlap,
    check_same_columns,
    find_classes,
    named,
    row_ids,
)
from .columns import is_messy, tidy, vectorise
from .containers import as_rows, densify, feature_rows

MIN_MAX = object()


class Encoding(NamedTuple):
    """How features and labels become numbers.

    Attributes:
        pipeline: fitted by `vectorise` on a table that has more than numbers, or None.
        scaler: a fitted transformer, or None.
        classes: the labels that the codes 0, 1, ... stand for; None in a regression.
        centre, spread: of a regression's targets.
    """

    pipeline: Pipeline | None
    scaler: Any
    classes: np.ndarray | None
    centre: float = 0.0
    spread: float = 1.0

    def features(self, X: Any, name: str) -> np.ndarray:
        """Scaled, in the floating type of JAX."""
        values = as_features(densify(self.encode(X, name), name), name)
        scaled = values if self.scaler is None else self.scaler.transform(values)
        return np.asarray(scaled, jax.dtypes.canonicalize_dtype(float))

    def encode(self, X: Any, name: str) -> Any:
        """Rows of any kind as an array, a sparse matrix, or a data frame of numbers."""
        X = feature_rows(X, name)
        if self.pipeline is None:
            return X
        X = X if isinstance(X, pd.DataFrame) else pd.DataFrame(X)
        return pd.DataFrame(self.pipeline.transform(tidy(X, like=self.pipeline)), X.index)

    def labels(self, y: Any, name: str) -> np.ndarray:
        """Class codes, or standardised targets.

        Raises:
            InputError: a label that is none of the classes.
        """
        values = np.asarray(y)
        if self.classes is None:
            targets = (as_targets(values, name) - self.centre) / self.spread
            return targets.astype(jax.dtypes.canonicalize_dtype(float))
        unknown = np.setdiff1d(values, self.classes)
        if len(unknown):
            raise InputError(
                f"`{name}` has labels that the training rows lack: {named(list(unknown))}. No model "
                "can predict them; remove these rows or mend the labels."
            )
        return np.searchsorted(self.classes, values).astype(np.int32)

    def decode(self, outputs: np.ndarray) -> np.ndarray:
        """Labels or targets from a model's outputs."""
        if self.classes is None:
            return self.centre + self.spread * outputs[:, 0]
        return self.classes[outputs.argmax(1)]


class Prepared(NamedTuple):
    """The rows as they were given, and as numbers.

    Attributes:
        given: the training rows as they came, whatever they are.
        X, y, X_trusted, y_trusted: arrays, data frames or sparse matrices for the final estimator.
        holdout: `(X, y)` likewise, or None.
        rows, trusted, held: pairs of scaled features and class codes (integers), or targets, these
            standardised by the trusted rows' mean and standard deviation.
        encoding: how they were made.
    """

    given: Any
    X: Any
    y: Any
    X_trusted: Any
    y_trusted: Any
    holdout: tuple[Any, Any] | None
    rows: tuple[np.ndarray, np.ndarray]
    trusted: tuple[np.ndarray, np.ndarray]
    held: tuple[np.ndarray, np.ndarray] | None
    encoding: Encoding

    @property
    def classes(self) -> np.ndarray | None:
        """The labels that the codes stand for; None in a regression."""
        return self.encoding.classes

    @property
    def num_outputs(self) -> int:
        """The number of classes, or 1."""
        return 1 if self.classes is None else len(self.classes)


def prepare(
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    task: str,
    scaler: Any,
    holdout: tuple[Any, Any] | None,
    overlap: str,
    raw: bool = False,
    judge_all: bool = False,
) -> Prepared:
    """Check everything that can be checked without computing, scale the features, code the labels.

    Rows of every kind that `as_internal` knows. Tables with text, dates or gaps become numbers by
    `vectorise`; with `raw` the final estimator gets the tables themselves. With `judge_all` every
    class must have a trusted row.

    Raises:
        InputError: with the rows or columns at fault.
        ValueError: an unknown `task` or `overlap`.
    """
    if overlap not in ("error", "keep"):
        raise ValueError(f"`overlap` must be 'error' or 'keep', got {overlap!r}.")
    tables, labels = {}, {}
    pairs = {"": (X, y), "_trusted": (X_trusted, y_trusted)}
    pairs |= {} if holdout is None else {"_holdout": holdout}
    for part, (rows, values) in pairs.items():
        tables[part], labels[part] = as_rows(rows, values, f"X{part}", f"y{part}")
    regression = is_regression(task, labels[""])
    for part in list(tables)[1:]:
        check_same_columns(tables[""], tables[part], "X", f"X{part}")
    codes = {part: check_labels(labels[part], tables[part], f"y{part}") for part in tables}

    pipeline = None
    if any(isinstance(table, pd.DataFrame) and is_messy(table) for table in tables.values()):
        named_tables = {f"X{part}": pd.DataFrame(table) for part, table in tables.items()}
        pipeline, tidied, _ = vectorise(named_tables)
        tables = {part: tidied[f"X{part}"] for part in tables}
        scaler = None if scaler is MIN_MAX else scaler
    encoding = Encoding(pipeline, None, None)
    numbers = {
        part: as_features(densify(encoding.encode(table, f"X{part}"), f"X{part}"), f"X{part}")
        for part, table in tables.items()
    }
    if overlap == "error":
        names = {"": "training", "_trusted": "trusted", "_holdout": "hold-out"}
        for one, other in (("", "_trusted"), ("_holdout", "_trusted"), ("_holdout", "")):
            if one in tables:
                ids = row_ids(tables[one])
                check_overlap(numbers[one], numbers[other], names[one], names[other], ids)

    if scaler is MIN_MAX:
        scaler = MinMaxScaler()
    if scaler is not None:
        fresh: Any = clone(scaler)
        scaler = fresh.fit(numbers[""])
    if regression:
        target = as_targets(codes["_trusted"], "y_trusted")
        encoding = Encoding(
            pipeline, scaler, None, float(target.mean()), float(target.std()) or 1.0
        )
    else:
        encoding = Encoding(
            pipeline, scaler, find_classes(codes[""], codes["_trusted"], judge_all=judge_all)
        )

    floating = jax.dtypes.canonicalize_dtype(float)
    scaled = {
        part: (
            np.asarray(a if scaler is None else scaler.transform(a), floating),
            encoding.labels(codes[part], f"y{part}"),
        )
        for part, a in numbers.items()
    }
    if pipeline is not None and not raw:
        tables = {part: pd.DataFrame(numbers[part], table.index) for part, table in tables.items()}
    return Prepared(
        X,
        tables[""],
        labels[""],
        tables["_trusted"],
        labels["_trusted"],
        None if holdout is None else (tables["_holdout"], labels["_holdout"]),
        scaled[""],
        scaled["_trusted"],
        scaled.get("_holdout"),
        encoding,
    )


def is_regression(task: str, y: Any) -> bool:
    """Whether the labels are numbers to predict; see `task` of `learn_weights`."""
    if task not in ("auto", "classification", "regression"):
        raise ValueError(f"`task` must be 'auto', 'classification' or 'regression', got {task!r}.")
    if task != "auto":
        return task == "regression"
    values = np.asarray(y)
    if not np.issubdtype(values.dtype, np.number):
        return False
    values = values[np.isfinite(values)]
    return bool(np.any(values != np.floor(values))) or len(np.unique(values)) > max(
        50, len(values) / 10
    )
