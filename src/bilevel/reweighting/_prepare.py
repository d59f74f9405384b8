"""From what the user passes to checked numbers: the part that every method shares."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import scipy.sparse
from sklearn.base import clone
from sklearn.preprocessing import MinMaxScaler

from ._data import (
    InputError,
    as_features,
    as_targets,
    check_labels,
    check_overlap,
    check_same_columns,
    find_classes,
    named,
)

MIN_MAX = object()


class Encoding(NamedTuple):
    """How features and labels become numbers.

    Attributes:
        scaler: a fitted transformer, or None.
        classes: the labels that the codes 0, 1, ... stand for; None in a regression.
        centre, spread: of a regression's targets.
    """

    scaler: Any
    classes: np.ndarray | None
    centre: float = 0.0
    spread: float = 1.0

    def features(self, X: Any, name: str) -> np.ndarray:
        """Scaled, in the floating type of JAX."""
        values = as_features(X, name)
        scaled = values if self.scaler is None else self.scaler.transform(values)
        return np.asarray(scaled, jax.dtypes.canonicalize_dtype(float))

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
        X, y, X_trusted, y_trusted: as given; data frames stay data frames.
        holdout: `(X, y)` as given, or None.
        rows, trusted, held: pairs of scaled features and class codes (integers), or targets, these
            standardised by the trusted rows' mean and standard deviation.
        encoding: how they were made.
    """

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
) -> Prepared:
    """Check everything that can be checked without computing, scale the features, code the labels.

    Raises:
        InputError: with the rows or columns at fault.
        ValueError: an unknown `task` or `overlap`.
    """
    X, y, X_trusted, y_trusted = as_given(X, y, X_trusted, y_trusted)
    regression = is_regression(task, y)
    check_same_columns(X, X_trusted, "X", "X_trusted")
    for rows, name in ((X, "X"), (X_trusted, "X_trusted")):
        as_features(rows, name)
    labels = check_labels(y, X, "y")
    trusted_labels = check_labels(y_trusted, X_trusted, "y_trusted")
    if overlap == "error":
        check_overlap(X, X_trusted, "training", "trusted")
    elif overlap != "keep":
        raise ValueError(f"`overlap` must be 'error' or 'keep', got {overlap!r}.")
    if holdout is not None:
        holdout = _check_holdout(holdout, X, X_trusted, labels, regression, overlap)

    if scaler is MIN_MAX:
        scaler = MinMaxScaler()
    if scaler is not None:
        fresh: Any = clone(scaler)
        scaler = fresh.fit(as_features(X, "X"))
    if regression:
        target = as_targets(trusted_labels, "y_trusted")
        encoding = Encoding(scaler, None, float(target.mean()), float(target.std()) or 1.0)
    else:
        encoding = Encoding(scaler, find_classes(labels, trusted_labels))

    def encode(X: Any, y: Any, suffix: str) -> tuple[np.ndarray, np.ndarray]:
        return encoding.features(X, f"X{suffix}"), encoding.labels(y, f"y{suffix}")

    return Prepared(
        X,
        y,
        X_trusted,
        y_trusted,
        holdout,
        encode(X, labels, ""),
        encode(X_trusted, trusted_labels, "_trusted"),
        None if holdout is None else encode(*holdout, "_holdout"),
        encoding,
    )


def as_given(*arrays: Any) -> list[Any]:
    """Data frames and series keep their index; everything else becomes an array once."""
    kept = (pd.DataFrame, pd.Series)
    return [a if isinstance(a, kept) or scipy.sparse.issparse(a) else np.asarray(a) for a in arrays]


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


def _check_holdout(
    holdout: tuple[Any, Any],
    X: Any,
    X_trusted: Any,
    labels: np.ndarray,
    regression: bool,
    overlap: str,
) -> tuple[Any, Any]:
    X_holdout, y_holdout = as_given(*holdout)
    check_same_columns(X, X_holdout, "X", "holdout")
    values = check_labels(y_holdout, X_holdout, "holdout y")
    unknown = [] if regression else np.setdiff1d(values, labels)
    if len(unknown):
        raise InputError(
            f"the hold-out has labels that the training rows lack: {named(list(unknown))}. No model "
            "can predict them; remove these rows or mend the labels."
        )
    if overlap == "error":
        check_overlap(X_holdout, X_trusted, "hold-out", "trusted")
        check_overlap(X_holdout, X, "hold-out", "training")
    return X_holdout, y_holdout
