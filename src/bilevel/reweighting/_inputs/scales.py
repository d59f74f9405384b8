"""Whether two tables measure their columns in the same units."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from .checks import named

SAMPLE = 2000  # rows of a table that are looked at
RATIO = 3.0  # of two spreads, above which they are another scale


def warn_of_other_scales(
    X: Float[np.ndarray, "rows columns"],
    other: Float[np.ndarray, "others columns"],
    name: str,
    columns: Sequence[Any] | None,
) -> None:
    """Say so if most columns of `other` lie elsewhere than those of `X`, or are spread otherwise.

    Elsewhere: the medians differ by more than the interquartile ranges; otherwise: these differ by a
    factor above 3. Columns whose quartiles are equal tell nothing.

    A pipeline is the usual reason: its steps transform the rows to fit on, and nothing beside them.

    Args:
        X, other: the rows.
        name: of the argument that holds `other`.
        columns: the names of the columns, if the rows have any.
    """
    low, median, high = _quartiles(X)
    other_low, other_median, other_high = _quartiles(other)
    spread, other_spread = high - low, other_high - other_low
    least, most = np.minimum(spread, other_spread), np.maximum(spread, other_spread)
    judged = least > 0
    differs = judged & ((abs(median - other_median) > most) | (most > RATIO * least))
    if not differs.sum() > judged.sum() / 2:
        return
    names: Any = columns if columns is not None and len(columns) == len(low) else range(len(low))
    at_fault = [names[k] for k in np.flatnonzero(differs)]
    k = int(np.flatnonzero(differs)[0])
    warnings.warn(
        f"`{name}` has other units than `X` in {len(at_fault)} of {len(low)} columns "
        f"({named(at_fault)}): half of the values of {named(at_fault[:1])} lie between {low[k]:.3g} "
        f"and {high[k]:.3g} in `X`, and between {other_low[k]:.3g} and {other_high[k]:.3g} here. The "
        "steps of a scikit-learn pipeline transform `X` alone: put them into the estimator, as in "
        "`ReweightedClassifier(make_pipeline(StandardScaler(), model))`, or mark the trusted rows "
        "within `X` by `is_trusted`. If these rows are meant to lie elsewhere, go on.",
        UserWarning,
        stacklevel=4,
    )


def _quartiles(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, median, high = np.quantile(X[:: -(-len(X) // SAMPLE)], [0.25, 0.5, 0.75], axis=0)
    return low, median, high
