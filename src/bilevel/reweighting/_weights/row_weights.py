"""What becomes of a point of the simplex: one sample weight per row."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..._analysis.weight_statistics import effective_sample_size


class RowWeights(NamedTuple):
    """Weights of mean 1 for the training rows, and the weight of a trusted row beside them."""

    weights: Float[np.ndarray, " rows"]
    trusted_weight: float

    @property
    def keep(self) -> Bool[np.ndarray, " rows"]:
        """The rows worth at least half a trusted row."""
        return self.weights >= 0.5 * self.trusted_weight


def row_weights(u: Float[np.ndarray, " rows"]) -> RowWeights:
    """From a point of the simplex to sample weights: no row counts more than a trusted one.

        cap = n / (2 ESS(p)),   p = u normalised to mean 1
        w_i = c min(p_i, cap),  c such that the mean is 1;   a trusted row weighs c cap

    The weights that a bilevel run finds have a long upper tail: rows that happen to pull the way the
    trusted loss wants. With some hundred trusted rows that tail is where the overfitting is, and a
    training row has no claim to be worth more than a row that is known to be right. The cap is half
    of what each row would weigh if `ESS(p)` rows shared all the weight equally; uniform weights, and
    weights that are zero or equal, come out as they went in.

    >>> import numpy as np
    >>> row_weights(np.array([0.5, 0.5, 0.0, 0.0]))
    RowWeights(weights=array([2., 2., 0., 0.]), trusted_weight=2.0)
    """
    p = np.asarray(u, dtype=np.float64)
    p = p * (len(p) / p.sum())
    cap = 0.5 * len(p) / effective_sample_size(p)
    capped = np.minimum(p, cap)
    scale = len(p) / capped.sum()
    return RowWeights(scale * capped, float(scale * cap))


def effective_rows(weights: np.ndarray, counts: np.ndarray) -> float:
    """The effective sample size of weights whose rows each occur `counts` times."""
    return float((counts @ weights) ** 2 / (counts @ weights**2))


def entropy_of_rows(weights: np.ndarray, counts: np.ndarray) -> float:
    """The entropy of normalised weights whose rows each occur `counts` times, in nats."""
    rows = (weights > 0) & (counts > 0)
    p, counts = weights[rows] / (counts @ weights), counts[rows]
    return float(-counts @ (p * np.log(p)))
