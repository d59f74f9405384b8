"""Weights of rows that had no part in learning them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .baselines import agreeing_rows, fit_weighted
from .candidates import HARD, SOFT
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
    mean of the row's group, the ratio of densities, or 1 for all; and c such that u has mean 1 on the
    rows that the weights were learned from.

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
    """What won, as a function of rows."""
    winner, (counts, counts_trusted) = result.winner, result.counts
    if winner == "trusted only":
        return lambda seen, judged, rows: np.zeros(len(seen.y))
    if winner == SOFT:
        return lambda seen, judged, rows: judged.right
    if winner == HARD:
        return lambda seen, judged, rows: judged.keep
    if winner == "filter":
        model = fit_weighted(estimator, trusted.own, trusted.y, counts_trusted)
        return lambda seen, judged, rows: agreeing_rows(model, rows.own, rows.y)
    if winner == "groups":
        means = result.group_weights
        assert means is not None
        return lambda seen, judged, rows: means.reindex(rows.groups).fillna(1.0).to_numpy()
    if winner in ("density ratio", "weights by density ratio"):
        x, x_trusted = (result.see(rows.given, rows.y).x for rows in (train, trusted))
        ratio = DensityRatio.fit(x, x_trusted, counts, counts_trusted)
        if winner == "density ratio":
            return lambda seen, judged, rows: ratio(seen.x)
        return lambda seen, judged, rows: judged.right * ratio(seen.x)
    return lambda seen, judged, rows: np.ones(len(seen.y))
