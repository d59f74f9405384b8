"""Weights of rows that had no part in learning them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn.base import is_classifier

from .baselines import agreeing_rows
from .candidates import HARD, SOFT
from .coded_labels import fit_weighted, predictions
from .result import Seen, WeightsResult
from .scorer import Judged
from .shares import DensityRatio


class LabelledRows(NamedTuple):
    """Rows of one table.

    Attributes:
        given: as `learn_weights` takes them.
        own: as the final estimator takes them.
        y: their labels.
        groups: of the rows, or None.
    """

    given: Any
    own: Any
    y: np.ndarray
    groups: np.ndarray | None = None


class NewRowWeights:
    """What rows weigh that were not there when the weights were learned, by the rule that won.

        weight(x, y) = c u(x, y)

    with u the probability that the label is right (`weights`), 1 or 0 (`clean rows`, `filter`), the
    mean of the row's group, the ratio of densities, or 1 for all; and c such that the weights have
    mean 1 on the rows that they were learned from.

    Args:
        result: of `learn_weights`.
        estimator: the final estimator, which the filter fits on the trusted rows.
        train, trusted: the rows that the weights were learned from.
    """

    def __init__(
        self, result: WeightsResult, estimator: Any, train: LabelledRows, trusted: LabelledRows
    ):
        self._result = result
        self._rule = _rule(result, estimator, train, trusted)
        if result.winner in (SOFT, HARD):  # of the training rows by models that have not seen them
            self._scale = 1 / result.scale
        else:
            _, u = self._judge(train)
            self._scale = 1 / (float(np.average(u, weights=result.counts[0])) or 1.0)

    def __call__(self, rows: LabelledRows) -> tuple[Judged, Float[np.ndarray, " rows"]]:
        """What is said of the labels, and the weights."""
        judged, u = self._judge(rows)
        return judged, self._scale * u

    def _judge(self, rows: LabelledRows) -> tuple[Judged, Float[np.ndarray, " rows"]]:
        seen = self._result.see(rows.given, rows.y)
        judged = seen.scorer.judge(seen.outputs, seen.y)
        return judged, np.asarray(self._rule(seen, judged, rows), np.float64)


Rule = Callable[[Seen, Judged, LabelledRows], np.ndarray]


def _rule(
    result: WeightsResult, estimator: Any, train: LabelledRows, trusted: LabelledRows
) -> Rule:
    """What won, as a function of rows; it can be pickled."""
    winner, (counts, counts_trusted) = result.winner, result.counts
    if winner in _RULES:
        return _RULES[winner]
    if winner == "filter":
        model = fit_weighted(estimator, trusted.own, trusted.y, counts_trusted)
        if is_classifier(model):
            return partial(_agreeing, model)
        known = agreeing_rows(model, train.own, train.y, counts)  # the threshold is theirs
        largest = np.max(_residuals(model, train)[known], initial=0.0)
        return partial(_close, model, float(largest))
    if winner == "groups":
        assert result.group_weights is not None
        return partial(_of_group, result.group_weights)
    if winner in ("density ratio", "weights by density ratio"):
        x, x_trusted = (result.see(rows.given, rows.y).x for rows in (train, trusted))
        ratio = DensityRatio.fit(x, x_trusted, counts, counts_trusted)
        return partial(_dense if winner == "density ratio" else _right_and_dense, ratio)
    return _one


def _zero(seen: Seen, judged: Judged, rows: LabelledRows) -> np.ndarray:
    return np.zeros(len(seen.y))


def _one(seen: Seen, judged: Judged, rows: LabelledRows) -> np.ndarray:
    return np.ones(len(seen.y))


def _right(seen: Seen, judged: Judged, rows: LabelledRows) -> np.ndarray:
    return judged.right


def _kept(seen: Seen, judged: Judged, rows: LabelledRows) -> np.ndarray:
    return judged.keep


_RULES: dict[str, Rule] = {"trusted only": _zero, SOFT: _right, HARD: _kept}


def _agreeing(model: Any, seen: Seen, judged: Judged, rows: LabelledRows) -> np.ndarray:
    return agreeing_rows(model, rows.own, rows.y)


def _close(
    model: Any, largest: float, seen: Seen, judged: Judged, rows: LabelledRows
) -> np.ndarray:
    return _residuals(model, rows) <= largest


def _of_group(means: pd.Series, seen: Seen, judged: Judged, rows: LabelledRows) -> np.ndarray:
    return np.asarray(means.reindex(_names(rows)).fillna(1.0))


def _dense(ratio: DensityRatio, seen: Seen, judged: Judged, rows: LabelledRows) -> np.ndarray:
    return ratio(seen.x)


def _right_and_dense(
    ratio: DensityRatio, seen: Seen, judged: Judged, rows: LabelledRows
) -> np.ndarray:
    return judged.right * ratio(seen.x)


def _residuals(model: Any, rows: LabelledRows) -> Float[np.ndarray, " rows"]:
    return np.abs(np.asarray(rows.y) - predictions(model, rows.own))


def _names(rows: LabelledRows) -> np.ndarray:
    """The groups as `learn_weights` names them: objects by their text."""
    groups = np.asarray(rows.groups)
    return groups.astype(str) if groups.dtype == object else groups
