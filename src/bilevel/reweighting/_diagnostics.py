"""Numbers that say whether weights can be believed."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


def effective_sample_size(weights: Float[np.ndarray, " rows"]) -> float:
    """Kish's effective sample size `(sum_i w_i)^2 / sum_i w_i^2`, between 1 and the row count.

    As many equally weighted rows would give a weighted mean the same variance. Any scale of the
    weights gives the same number.

    >>> import numpy as np
    >>> effective_sample_size(np.array([1.0, 1.0, 0.0, 0.0]))
    2.0
    """
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / np.sum(weights**2))


def entropy(weights: Float[np.ndarray, " rows"]) -> float:
    """Shannon's entropy `-sum_i p_i log p_i` of the normalised weights, in nats.

    `log n` for uniform weights on n rows, 0 for a single row.

    >>> import numpy as np
    >>> round(entropy(np.ones(4)), 4)
    1.3863
    """
    p = np.asarray(weights, dtype=np.float64)
    p = p[p > 0] / p.sum()
    return float(-np.sum(p * np.log(p)))


def keep_rows(weights: Float[np.ndarray, " rows"]) -> tuple[np.ndarray, float]:
    """Which rows to keep, and the threshold on the weights that decides it.

    The threshold is half the weight that each surviving row would have if `effective_sample_size`
    rows shared all of it, `n / (2 ESS)` for weights of mean 1: uniform weights keep every row,
    and weights that are zero or equal keep exactly those that are not zero.
    """
    weights = np.asarray(weights, dtype=np.float64)
    threshold = 0.5 * weights.sum() / effective_sample_size(weights)
    return weights >= threshold, float(threshold)


class Check(NamedTuple):
    """One question asked of a result, whether it passed, and the numbers in words."""

    name: str
    passed: bool
    detail: str
