"""Statistics of weights: over how many rows they are spread."""

import numpy as np
from jaxtyping import Float


def effective_sample_size(weights: Float[np.ndarray, " rows"]) -> float:
    """Kish's effective sample size `(sum_i w_i)^2 / sum_i w_i^2`, between 1 and the row count.

    A mean of this many equally weighted rows has the same variance as the weighted mean. The scale
    of the weights does not matter.

    Source: Kish (1965), "Survey Sampling" [kish1965][].

    >>> import numpy as np
    >>> effective_sample_size(np.array([1.0, 1.0, 0.0, 0.0]))
    2.0
    """
    weights = np.asarray(weights, dtype=np.float64)
    return float(weights.sum() ** 2 / np.sum(weights**2))


def entropy(weights: Float[np.ndarray, " rows"]) -> float:
    """Shannon's entropy `-sum_i p_i log p_i` of the normalised weights, in nats.

    It is `log n` for uniform weights on n rows, and 0 if one row has all the weight.

    >>> import numpy as np
    >>> round(entropy(np.ones(4)), 4)
    1.3863
    """
    p = np.asarray(weights, dtype=np.float64)
    p = p[p > 0] / p.sum()
    return float(-np.sum(p * np.log(p)))
