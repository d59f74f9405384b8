"""What models say of a label: of a class, and of a number."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

TEMPERATURES = np.linspace(-2, 2, 33)  # logarithms of the scales that are tried


class Classes(NamedTuple):
    """What a classifier with `number` classes says of a label. Outputs are log-probabilities."""

    number: int

    def judge(
        self, outputs: Float[np.ndarray, "r c"], y: np.ndarray, weight: np.ndarray | None = None
    ) -> tuple[np.ndarray, float]:
        """Losses of the rows at the temperature that is best for all of them, and accuracy.

        How sure a model is must not decide: training on wrong labels makes it unsure of right
        predictions too.
        """
        rows = np.arange(len(y))

        @functools.cache
        def losses(k: int) -> np.ndarray:
            scale = np.exp(TEMPERATURES[k])
            return logsumexp(scale * outputs, axis=1) - scale * outputs[rows, y]

        def mean(k: int) -> float:
            return float(np.average(losses(k), weights=weight))

        low, high = 0, len(TEMPERATURES) - 1  # the mean is convex in the scale: by halves
        while low < high:
            k = (low + high) // 2
            low, high = (low, k) if mean(k) <= mean(k + 1) else (k + 1, high)
        return losses(low), float(np.average(self.agrees(outputs, y), weights=weight))

    def agrees(
        self, outputs: Float[np.ndarray, "r c"], y: np.ndarray, weight: np.ndarray | None = None
    ) -> Bool[np.ndarray, " r"]:
        """Whether the label is the predicted one."""
        return outputs.argmax(1) == y

    def average(self, outputs: Float[np.ndarray, "models r c"]) -> Float[np.ndarray, "r c"]:
        """Log-probabilities of the mean of the models' probabilities."""
        return np.log(np.mean(np.exp(outputs), axis=0))


class Numbers(NamedTuple):
    """What a regression says of a target. Outputs are predictions, one column."""

    number: int = 1

    def judge(
        self, outputs: Float[np.ndarray, "r c"], y: np.ndarray, weight: np.ndarray | None = None
    ) -> tuple[np.ndarray, float]:
        """Squared residuals, and R2."""
        losses = (outputs[:, 0] - y) ** 2
        spread = np.average((y - np.average(y, weights=weight)) ** 2, weights=weight)
        return losses, float(1 - np.average(losses, weights=weight) / (spread or 1.0))

    def agrees(
        self, outputs: Float[np.ndarray, "r c"], y: np.ndarray, weight: np.ndarray | None = None
    ) -> Bool[np.ndarray, " r"]:
        """Whether the residual is within three robust standard deviations."""
        return within_three_sigma(np.abs(outputs[:, 0] - y), weight)

    def average(self, outputs: Float[np.ndarray, "models r c"]) -> Float[np.ndarray, "r c"]:
        """The mean of the models' predictions."""
        return np.mean(outputs, axis=0)


def within_three_sigma(
    residuals: Float[np.ndarray, " r"], weight: np.ndarray | None = None
) -> Bool[np.ndarray, " r"]:
    """Whether absolute residuals are at most 3 standard deviations, estimated from their median.

    The standard deviation is 1.4826 times the median, which gross errors in less than half of the
    rows do not widen.
    """
    weight = np.ones(len(residuals)) if weight is None else weight
    median = np.quantile(residuals, 0.5, weights=weight, method="inverted_cdf")
    return residuals <= 3 * 1.4826 * median
