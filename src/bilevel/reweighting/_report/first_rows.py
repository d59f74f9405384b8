"""Of the first k rows of the list, how many labels are wrong, with a band."""

from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from .._inputs.checks import check_aligned, check_labels
from .._inputs.csv import read_like
from .refits import Rows

POINTS = 40


def is_wrong(truth: Any, rows: Rows) -> np.ndarray | None:
    """Which training labels are wrong, by the true label of each row; None if it is not known.

    Raises:
        InputError: not one true label per row, or labels of another kind than those of the rows.
    """
    if truth is None:
        return None
    check_aligned(rows.X, truth, "truth")
    told = check_labels(truth, rows.y, "truth")
    return np.asarray(read_like(told, np.unique(rows.y), "truth") != rows.y)


def first_rows(rows: Rows, observed: np.ndarray | None = None) -> list[dict[str, Any]] | None:
    """The expected share of wrong labels among the k rows of lowest label quality, for several k.

    With p_i the calibrated probability that label i is wrong, the share among the first k is
    `sum p_i / k`. The band holds two errors: that of the k labels, given p (a normal interval of
    95 %), and that of p, as the 95 % interval of the precision of the flagged list says it: all
    log-odds are shifted so that the flagged rows have the lower, or the upper, precision. None
    without p. `observed`: which labels are wrong, where that is known.
    """
    result = rows.result
    if result.wrong is None or result.noise is None or result.noise.precision is None:
        return None
    flagged = ~np.asarray(result.keep)
    wrong = np.clip(np.asarray(result.wrong, np.float64), 1e-6, 1 - 1e-6)
    order = np.argsort(rows.quality, kind="stable")
    last = min(len(order), max(20, 2 * int(flagged.sum())))
    at = np.unique(np.geomspace(1, last, POINTS).round().astype(int))
    precision = result.noise.precision
    cumulative = {}
    for name, target in (("low", precision.low), ("high", precision.high)):
        shift = _shift(logit(wrong[flagged]), float(np.clip(target, 1e-4, 1 - 1e-4)))
        moved = expit(logit(wrong[order]) + shift)
        error = 1.96 * np.sqrt(np.cumsum(moved * (1 - moved)))[at - 1]
        cumulative[name] = np.cumsum(moved)[at - 1] + (-error if name == "low" else error)
    middle = np.cumsum(wrong[order])[at - 1]
    seen = None if observed is None else np.cumsum(observed[order])[at - 1]
    return [
        {
            "rows": int(k),
            "wrong": float(middle[j] / k),
            "low": float(np.clip(cumulative["low"][j] / k, 0, middle[j] / k)),
            "high": float(np.clip(cumulative["high"][j] / k, middle[j] / k, 1)),
            "observed": None if seen is None else float(seen[j] / k),
        }
        for j, k in enumerate(at)
    ]


def _shift(log_odds: np.ndarray, target: float) -> float:
    """By how much log-odds move so that their mean probability is the target."""
    found: Any = brentq(lambda d: float(expit(log_odds + d).mean()) - target, -30, 30)
    return float(found)
