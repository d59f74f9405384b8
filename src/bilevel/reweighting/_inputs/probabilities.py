"""Class probabilities from any framework, checked against the rows that they are for."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from .checks import InputError, named

SUM_TOLERANCE = 1e-3
LEAST = 1e-6  # below this, probabilities are taken for this


class Probabilities(NamedTuple):
    """Log-probabilities of the classes, in their order, for the training and the trusted rows."""

    train: Float[np.ndarray, "n classes"]
    trusted: Float[np.ndarray, "m classes"]


def check_probabilities(
    train: Any, trusted: Any, classes: np.ndarray | None, n: int, m: int
) -> Probabilities | None:
    """Both tables of probabilities as log-probabilities; None if neither is given.

    Raises:
        InputError: one is missing, the task is a regression, or a shape, an entry, a sum or the order
            of the classes is wrong.
    """
    if train is None and trusted is None:
        return None
    if train is None or trusted is None:
        missing = "pred_probs" if train is None else "pred_probs_trusted"
        raise InputError(
            f"`{missing}` is missing: give the probabilities of both the training and the trusted "
            "rows, or of neither. The model must not have been trained on the rows it judges."
        )
    if classes is None:
        raise InputError("`pred_probs` are class probabilities, and this task is a regression.")
    return Probabilities(
        _check(train, classes, n, "pred_probs"), _check(trusted, classes, m, "pred_probs_trusted")
    )


def _check(values: Any, classes: np.ndarray, rows: int, name: str) -> Float[np.ndarray, "r c"]:
    if isinstance(values, pd.DataFrame):
        given = [str(column) for column in values.columns]
        wanted = [str(c) for c in classes]
        if sorted(given) == sorted(wanted):
            values = values.iloc[:, [given.index(c) for c in wanted]]
        elif not isinstance(values.columns, pd.RangeIndex):
            raise InputError(
                f"`{name}` has the columns {named(given)}; expected one for each class: "
                f"{named(wanted)}."
            )
    p = np.asarray(values, float)
    if p.shape != (rows, len(classes)):
        raise InputError(
            f"`{name}` must have one row per row and one column per class, in the order "
            f"{named(list(classes))}: expected shape {(rows, len(classes))}, got {p.shape}."
        )
    wrong = ~np.isfinite(p).all(axis=1) | (p < 0).any(axis=1)
    if wrong.any():
        raise InputError(
            f"`{name}` must hold finite probabilities >= 0; the rows {named(np.flatnonzero(wrong))} "
            "do not. (Pass softmax outputs, not logits.)"
        )
    off = np.abs(p.sum(axis=1) - 1) > SUM_TOLERANCE
    if off.any():
        raise InputError(
            f"each row of `{name}` must sum to 1; the rows {named(np.flatnonzero(off))} do not. "
            "(Pass softmax outputs, not logits; divide by the sums if classes were left out.)"
        )
    logs = np.log(np.maximum(p, LEAST))
    return logs - np.log(np.exp(logs).sum(axis=1, keepdims=True))
