"""What models say of a label: of a class, and of a number."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, PyTree
from scipy.special import log_softmax


class Classes(NamedTuple):
    """What a classifier with `number` classes says of a label."""

    number: int

    def fit(self, outputs: Float[np.ndarray, "r c"], y: np.ndarray) -> Float[np.ndarray, " r"]:
        """Log-probability of the label."""
        return log_softmax(outputs, axis=1)[np.arange(len(y)), y]

    def agrees(self, outputs: Float[np.ndarray, "r c"], y: np.ndarray) -> Bool[np.ndarray, " r"]:
        """Whether the label is the predicted one."""
        return outputs.argmax(1) == y

    def judge(self, outputs: Float[np.ndarray, "r c"], y: np.ndarray) -> tuple[np.ndarray, float]:
        """Losses of the rows at the temperature that is best for all of them, and accuracy.

        How sure a model is must not decide: training on wrong labels makes it unsure of right
        predictions too.
        """
        scaled = (-self.fit(np.exp(t) * outputs, y) for t in np.linspace(-2, 2, 33))
        return min(scaled, key=np.mean), float(np.mean(self.agrees(outputs, y)))

    def deviance(self, losses: Float[np.ndarray, " rows"]) -> float:
        """The negative log-likelihood of all rows."""
        return float(losses.sum())


class Numbers(NamedTuple):
    """What a regression says of a target."""

    number: int = 1

    def fit(self, outputs: Float[np.ndarray, "r c"], y: np.ndarray) -> Float[np.ndarray, " r"]:
        """The negative squared residual."""
        return -((outputs[:, 0] - y) ** 2)

    def agrees(self, outputs: Float[np.ndarray, "r c"], y: np.ndarray) -> Bool[np.ndarray, " r"]:
        """Whether the residual is within three robust standard deviations."""
        residual = np.abs(outputs[:, 0] - y)
        return residual <= 3 * 1.4826 * np.median(residual)

    def judge(self, outputs: Float[np.ndarray, "r c"], y: np.ndarray) -> tuple[np.ndarray, float]:
        """Squared residuals, and R2."""
        losses = -self.fit(outputs, y)
        return losses, float(1 - losses.mean() / (y.var() or 1.0))

    def deviance(self, losses: Float[np.ndarray, " rows"]) -> float:
        """The negative log-likelihood of all rows, with the normal variance that is best for them."""
        return float(0.5 * len(losses) * np.log(losses.mean()))


class RowScorer(NamedTuple):
    """The models of two rankings (see `Folds`), which say of new rows what they say of training rows.

    Attributes:
        kind: what kind of label.
        models: of the rows that agree with the trusted rows (c; where the trusted rows are distributed
            otherwise, of all rows, a), and of the best half (d).
        fits: of the training rows' labels under them, sorted.
        sums: c + d (a + d) of the training rows, sorted.
        spread: in a regression, the residual beyond which a target is disputed.
    """

    kind: Classes | Numbers
    models: tuple[PyTree, PyTree]
    fits: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
    sums: Float[np.ndarray, " n"]
    spread: float

    def predict(self, x: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, "rows outputs"]:
        """Outputs of the last models, averaged."""
        return mean_outputs(self.models[1], x)

    def __call__(
        self, x: Float[np.ndarray, "rows features"], y: np.ndarray
    ) -> tuple[Float[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
        """(label quality: the share of training rows with a lower sum, whether undisputed)."""
        total = np.zeros(len(y))
        for models, fits in zip(self.models, self.fits, strict=True):
            rank = np.searchsorted(fits, self.kind.fit(mean_outputs(models, x), y))
            total += 2 * rank / max(len(fits) - 1, 1) - 1
        quality = np.searchsorted(self.sums, total, side="right") / len(self.sums)
        return quality, self.undisputed(self.predict(x), y)

    def undisputed(
        self, outputs: Float[np.ndarray, "rows outputs"], y: np.ndarray
    ) -> Bool[np.ndarray, " rows"]:
        """Whether the label is the predicted one; of a target, whether it is within the spread."""
        if isinstance(self.kind, Classes):
            return self.kind.agrees(outputs, y)
        return np.abs(outputs[:, 0] - y) <= self.spread


def mean_outputs(
    w: PyTree, x: Float[np.ndarray, "rows features"]
) -> Float[np.ndarray, "rows outputs"]:
    """The outputs of several models, averaged."""
    return np.mean([x @ a.T + b for a, b in zip(w["weight"], w["bias"], strict=True)], axis=0)


def dispute_spread(
    kind: Classes | Numbers, outputs: Float[np.ndarray, "n outputs"], y: np.ndarray
) -> float:
    """Three robust standard deviations of the residuals; of classes, nothing."""
    if isinstance(kind, Classes):
        return 0.0
    return float(3 * 1.4826 * np.median(np.abs(outputs[:, 0] - y)))
