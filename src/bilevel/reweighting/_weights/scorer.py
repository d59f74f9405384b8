"""What the pool says of labelled rows that it has never seen."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit, log_softmax, logit
from sklearn.pipeline import make_pipeline

from .._inputs.estimators import takes_tables
from .label_models import LEAST, LabelModel, Member, outputs
from .labels import Classes, Numbers
from .pool import ClassPool, NumberPool

IMPOSSIBLE = -1e9  # the score of a class that a model has not seen
NEARLY_0 = 1e-12
KNOTS = 256  # of the curve from log-odds to probabilities


class Doubt(NamedTuple):
    """What the training rows taught about the log-odds of wrong labels, by their quality.

    Attributes:
        log_odds, wrong: the calibrated probability that a label is wrong, along increasing log-odds.
        flagged: the log-odds from which a row is on the list of rows to look at.
    """

    log_odds: Float[np.ndarray, " knots"]
    wrong: Float[np.ndarray, " knots"]
    flagged: float

    @classmethod
    def of(
        cls,
        log_odds: Float[np.ndarray, " rows"],
        wrong: Float[np.ndarray, " rows"],
        keep: Bool[np.ndarray, " rows"],
    ) -> "Doubt":
        """From the training rows that were judged.

        As many of them lie at or above `flagged` as are on the list; where none is, it is 0: more
        likely wrong than right, as the pool sees it.
        """
        number = int(np.sum(~keep))
        flagged = float(np.sort(log_odds)[-number]) if number else 0.0
        log_odds, first = np.unique(log_odds, return_index=True)
        some = np.unique(np.linspace(0, len(first) - 1, KNOTS).round().astype(int))
        return cls(log_odds[some], np.maximum.accumulate(wrong[first][some]), flagged)

    def __call__(self, log_odds: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """The probability that a label is wrong; beyond all training rows at least the pool's own."""
        known = np.interp(log_odds, self.log_odds, self.wrong)
        return np.where(log_odds > self.log_odds[-1], np.maximum(known, expit(log_odds)), known)


def log_odds_of_wrong(quality: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """`log((1 - quality) / quality)`, finite."""
    return logit(np.clip(1 - quality, NEARLY_0, 1 - NEARLY_0))


class Judged(NamedTuple):
    """What is said of labelled rows.

    Attributes:
        quality: what rows are ranked by, see `WeightsResult.label_quality`.
        right: the probability of the pool that each label is right.
        wrong: the probability that it is wrong, calibrated on the trusted rows.
        keep: False for the rows to look at.
        said: log-probabilities of the true label, or predictions.
    """

    quality: Float[np.ndarray, " rows"]
    right: Float[np.ndarray, " rows"]
    wrong: Float[np.ndarray, " rows"]
    keep: Bool[np.ndarray, " rows"]
    said: Float[np.ndarray, "rows outputs"]


class LinearOutputs(NamedTuple):
    """A linear model of scaled numbers, as arrays.

    Attributes:
        weight: one row per output; `bias`: one number per output.
    """

    weight: Float[np.ndarray, "outputs features"]
    bias: Float[np.ndarray, " outputs"]


class OwnModel(NamedTuple):
    """A fitted model of the user's kind, which takes rows as its estimator does; or boosted trees.

    Attributes:
        fitted: the estimator.
        classes, centre, spread: of its label model, see `LabelModel`.
        of_numbers: whether it takes scaled numbers, as linear models do.
    """

    fitted: Any
    classes: np.ndarray | None
    centre: float
    spread: float
    of_numbers: bool = False

    @classmethod
    def of(cls, model: Any, kind: LabelModel) -> "OwnModel":
        """One of the models of a member of this kind."""
        ranked = kind.ranks is not None
        fitted = make_pipeline(kind.ranks, model) if ranked else model
        return cls(fitted, kind.classes, kind.centre, kind.spread, ranked)

    def outputs(self, rows: Any) -> Float[np.ndarray, "rows outputs"]:
        """Log-probabilities, or predictions in standardised units."""
        return outputs(self.fitted, rows, self.classes, self.centre, self.spread)


class RowScorer(NamedTuple):
    """The fitted label models and their pool: they judge rows that were not there when it was made.

    Attributes:
        kind: what kind of label.
        members: the models of each member, whose outputs are averaged. None where the member is what
            a model of the user's says.
        pool: how the members are put together, and the noise of the labels.
        doubt: from what the pool says to which labels are wrong.
    """

    kind: Classes | Numbers
    members: Sequence[Sequence[LinearOutputs | OwnModel] | None]
    pool: ClassPool | NumberPool
    doubt: Doubt

    @classmethod
    def of(
        cls,
        members: list[Member],
        pool: ClassPool | NumberPool,
        kind: Classes | Numbers,
        doubt: Doubt,
    ) -> "RowScorer":
        """From the members of a search."""
        return cls(
            kind,
            [
                [
                    cls.linear_parameters(model, kind)
                    if member.kind.name == "linear"
                    else OwnModel.of(model, member.kind)
                    for model in member.models
                ]
                if member.kind is not None
                else None
                for member in members
            ],
            pool,
            doubt,
        )

    @staticmethod
    def linear_parameters(model: Any, kind: Classes | Numbers) -> LinearOutputs:
        """Of a fitted `LogisticRegression` (one row per class), `Ridge`, or constant classifier."""
        if isinstance(kind, Numbers):
            return LinearOutputs(np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_))
        width = model.n_features_in_
        weight = np.zeros((kind.number, width))
        bias = np.full(kind.number, IMPOSSIBLE)
        known = np.asarray(model.classes_)
        if not hasattr(model, "coef_"):
            bias[known] = 0.0
        elif len(known) == 2:  # one row, of the second class against the first
            weight[known[1]], bias[known[1]] = model.coef_[0], model.intercept_[0]
            bias[known[0]] = 0.0
        else:
            weight[known], bias[known] = model.coef_, model.intercept_
        return LinearOutputs(weight, bias)

    def outputs(
        self, x: Float[np.ndarray, "rows features"], rows: Any = None, given: Any = None
    ) -> list[Float[np.ndarray, "rows outputs"]]:
        """Of each member, averaged over its models.

        Args:
            x: the rows as scaled numbers.
            rows: the rows as the user's own kind of model takes them.
            given: log-probabilities of the user's model, if one `asks_for_probabilities`.
        """
        return [
            given
            if member is None
            else self.kind.average(np.stack([self._of_model(model, x, rows) for model in member]))
            for member in self.members
        ]

    def _of_model(self, model: LinearOutputs | OwnModel, x: np.ndarray, rows: Any) -> np.ndarray:
        if isinstance(model, OwnModel):
            return model.outputs(x if model.of_numbers else rows)
        outputs = x @ model.weight.T + model.bias
        if isinstance(self.kind, Numbers):
            return outputs
        return log_softmax(np.maximum(log_softmax(outputs, axis=1), np.log(LEAST)), axis=1)

    def judge(self, outputs: list[Float[np.ndarray, "rows outputs"]], y: np.ndarray) -> Judged:
        """What the pool says of the labels `y`, calibrated as on the training rows."""
        quality = self.pool.quality(outputs, y)
        log_odds = log_odds_of_wrong(quality)
        wrong = self.doubt(log_odds)
        keep = log_odds < self.doubt.flagged
        said = self.pool.outputs(outputs)
        return Judged(quality, self.pool.right(outputs, y), wrong, keep, said)

    @property
    def takes_tables(self) -> bool:
        """Whether a member is a pipeline, which takes the rows as the user has them."""
        return any(
            isinstance(model, OwnModel) and not model.of_numbers and takes_tables(model.fitted)
            for member in self.members
            for model in member or ()
        )

    @property
    def asks_for_probabilities(self) -> bool:
        """Whether a member is what a model of the user's says."""
        return any(member is None for member in self.members)
