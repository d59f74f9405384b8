"""What `learn_weights` returns."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ..._summary import preformatted
from .._inputs.checks import InputError, check_aligned, check_labels
from .._inputs.containers import as_rows
from .._inputs.prepare import Encoding
from .._inputs.probabilities import check_new_probabilities
from .diagnostics import Check
from .metric import Metric
from .noise import Noise
from .opinions import Opinions
from .scorer import RowScorer


class CrossValidatedWeights(NamedTuple):
    """What `cross_validated_weights` returns.

    Attributes:
        weights: one per training row, mean 1; all zero if the trusted rows alone are best.
        trusted_weight: what a trusted row weighs beside them.
        scale: fit the final model with `scale * weights` and `scale * trusted_weight`: then the
            training rows count as their effective sample size, which a penalised model notices.
        winner: the candidate that was chosen.
        candidates: a table with one line per candidate: `loss` and `score` (accuracy or R2) on the
            trusted rows, each judged by models that have not seen it, and the `difference` of the
            loss to "all rows + trusted" with its `standard_error`, paired over the rows.
        fits: of an estimator of the user's, fitted on all rows of the winner, and of what would have
            won before it: `loss` and `score` on the trusted rows, which the fit has seen, and whether
            it went `astray`: it lost more on them than models that had not seen them. Empty for linear
            models.
        members: the label models of the pool, and the pool itself: `loss` and `score` on trusted rows
            that each has not seen, and `coefficient` in the pool.
        label_quality: in [0, 1], one per training row; the lowest are most likely to be wrong. It is
            there whichever candidate won.
        keep: False for the rows to look at, see `WeightsResult.keep`.
        wrong: the probability that each label is wrong, calibrated on the trusted rows.
        noise: how many labels are wrong, with intervals; None in a regression.
        shifted: whether the trusted rows are distributed otherwise than the training rows.
    """

    weights: Float[np.ndarray, " rows"]
    trusted_weight: float
    scale: float
    winner: str
    candidates: pd.DataFrame
    fits: pd.DataFrame
    members: pd.DataFrame
    label_quality: Float[np.ndarray, " rows"]
    keep: Bool[np.ndarray, " rows"]
    wrong: Float[np.ndarray, " rows"]
    noise: Noise | None
    shifted: bool

    def __str__(self) -> str:
        row = self.candidates.loc[self.winner]
        return (
            f"{self.winner}: held-out loss {row['loss']:.4g}, {row['difference']:+.4g} (standard "
            f"error {row['standard_error']:.2g}) against all rows + trusted"
        )


class Learned(NamedTuple):
    """Weights of any method, with all that is known of them before the hold-out is looked at.

    See `WeightsResult` for the attributes; here `weights` and `label_quality` are arrays.
    """

    weights: Float[np.ndarray, " rows"]
    trusted_weight: float
    scale: float
    label_quality: Float[np.ndarray, " rows"]
    keep: Bool[np.ndarray, " rows"]
    wrong: Float[np.ndarray, " rows"] | None
    noise: Noise | None
    winner: str
    candidates: pd.DataFrame | None
    effective_sample_size: float
    entropy: float
    checks: list[Check]
    scores: pd.DataFrame
    parameters: Any
    history: pd.DataFrame
    stats: dict[str, Any]
    group_weights: pd.Series | None
    scorer: RowScorer | None
    opinions: Opinions | None


class Seen(NamedTuple):
    """New rows through the eyes of the label models.

    Attributes:
        scorer: what judges them.
        x, y: the rows as scaled numbers, and their labels as codes or standardised targets.
        outputs: of each label model.
    """

    scorer: RowScorer
    x: Float[np.ndarray, "rows features"]
    y: np.ndarray
    outputs: list[Float[np.ndarray, "rows outputs"]]


@dataclasses.dataclass(frozen=True)
class WeightsResult:
    """What `learn_weights` returns; print it for a summary.

    Attributes:
        weights: one per training row, in order, mean 1: a row of weight 0 is ignored, a row of weight
            1 counts as an average one. They are of the kind of the rows, such as a pandas series
            with their index. All are zero if the trusted rows alone are best.
        trusted_weight: what a trusted row weighs beside them.
        keep: False for the rows to look at. They are the list with the greatest expected F1: all
            rows with `wrong` above a threshold, which is 1/2 (more likely wrong than right) where
            wrong labels stand out, and lower where few can be found with certainty. With
            `precision`, as many rows as leave the expected precision at least so large. Of free
            weights: the rows that are worth less than half a trusted row.
        wrong: the probability that each label is wrong, calibrated on the trusted rows; None for free
            weights.
        noise: how many labels are wrong (in all, per class, per group), and the precision and the
            recall of the flagged list, with 95 % intervals; None for free weights and in a
            regression.
        effective_sample_size: `(sum w)^2 / sum w^2`.
        entropy: of the normalised weights, in nats.
        history: a table with one line per round of the pool, or per recorded outer step of free
            weights: outer value, effective sample size and entropy of the weights so far; of steps
            also the three residuals and oracle calls.
        scores: the weighting model itself, a table with one line per model; columns: loss and score
            (accuracy or R2) on the trusted rows. With `method="auto"` on `uniform` weights and on
            those `chosen`, judged out of fold. Of free weights `uniform` (trained on uniform
            weights), `warm` (its parameters as the bilevel run left them), `retrained` (from scratch
            on the weights the run found) and `capped` (from scratch on the weights returned, see
            `row_weights`: the one to believe); with a hold-out, also there.
        baselines: `compare_baselines`' table, `None` without a hold-out.
        checks: the questions asked of this result and their answers.
        parameters: the weighting model trained from scratch on the weights returned.
        stats: the number of rounds or steps; of free weights also oracle calls.
        winner: what the weights are: `"weights"`, `"groups"`, ... or one of the baselines.
        candidates: with `method="auto"`, one line per candidate that was judged on held-out folds of
            the trusted rows: `loss` and `score` there, and the `difference` of the loss to "all rows +
            trusted" with its `standard_error`, paired over the rows.
        label_quality: in [0, 1], one per training row: the lowest are most likely to be wrong. It is
            there whichever candidate won.
        scale: fit a final model with `scale * weights` and `scale * trusted_weight`, see
            `sample_weight`.
        group_weights: the mean weight of each group, where `groups` were given.
        scorer: what judges the labels of new rows, see `score_rows`; None for free weights.
        opinions: what each label model says of the 200 rows of lowest label quality, none of which it
            has learned from; None for free weights.
        encoding: how features and labels became numbers.
        counts: how much each training and each trusted row counts: the `sample_weight` and
            `sample_weight_trusted` that were given, or ones. `weights` do not contain them; the mean
            of `weights` is 1 where each row counts so much.
        metric: the user's `scoring`, by which it was chosen and judged; None for the loss.
    """

    weights: Any
    trusted_weight: float
    keep: np.ndarray
    wrong: np.ndarray | None
    noise: Noise | None
    effective_sample_size: float
    entropy: float
    history: pd.DataFrame
    scores: pd.DataFrame
    baselines: pd.DataFrame | None
    checks: list[Check]
    parameters: Any
    stats: dict[str, Any]
    winner: str
    candidates: pd.DataFrame | None
    label_quality: Any
    scale: float
    group_weights: pd.Series | None
    scorer: RowScorer | None
    opinions: Opinions | None
    encoding: Encoding
    counts: tuple[np.ndarray, np.ndarray]
    metric: Metric | None

    def score_rows(self, X: Any, y: Any, *, pred_probs: Any = None) -> pd.DataFrame:
        """What the models that weighed the training rows say of labelled rows never seen.

        Args:
            X, y: the rows and their labels.
            pred_probs: what your own model says of these rows, if `pred_probs` had a part in the
                weights.

        Returns:
            A table with one line per row, with the index of X if it is a data frame: `label_quality`
            (in [0, 1]; the lowest are most likely to be wrong), `predicted_label`, `keep` (False for
            the rows to look at) and `wrong` (the probability that the label is wrong), by the
            thresholds and the calibration of the training rows.

        Raises:
            InputError: rows that cannot be used, or labels that no training row has.
            ValueError: the weights are free ones, which say nothing of other rows.
        """
        seen = self.see(X, y, pred_probs)
        self.encoding.warn_of_strange(as_rows(X, y)[0], "X")
        judged = seen.scorer.judge(seen.outputs, seen.y)
        columns = {
            "label_quality": judged.quality,
            "predicted_label": self.encoding.decode(judged.said),
            "keep": judged.keep,
            "wrong": judged.wrong,
        }
        return pd.DataFrame(columns, X.index if isinstance(X, pd.DataFrame) else None)

    def see(self, X: Any, y: Any, pred_probs: Any = None) -> "Seen":
        """New rows through the eyes of the label models; the arguments are those of `score_rows`."""
        if self.scorer is None:
            raise ValueError(
                "nothing here can judge new rows: free weights say nothing of them. Learn the weights "
                "with method='auto'."
            )
        X, y = as_rows(X, y)
        y, given = check_labels(y, X, "y"), None
        if self.scorer.asks_for_probabilities:
            check_aligned(X, pred_probs, "pred_probs")
            given = check_new_probabilities(pred_probs, self.encoding.classes, len(y))
        elif pred_probs is not None:
            raise InputError(
                "`pred_probs` had no part in these weights; leave it out, or learn with it."
            )
        x, labels = self.encoding.features(X, "X"), self.encoding.labels(y, "y")
        rows = X if self.scorer.takes_tables else self.encoding.encode(X, "X")
        return Seen(self.scorer, x, labels, self.scorer.outputs(x, rows, given))

    def sample_weight(self, num_trusted: int) -> Float[np.ndarray, " rows"]:
        """For the final fit: of the training rows, then of the trusted rows.

        The training rows count as their effective sample size beside the trusted rows, and against
        a penalty of the model; each row as its own `sample_weight`, if it was given one.

        Raises:
            ValueError: another number of trusted rows than the weights were learned with.
        """
        train, trusted = self.counts
        if num_trusted != len(trusted):
            raise ValueError(
                f"`num_trusted` must be the number of trusted rows, {len(trusted)}, got {num_trusted}."
            )
        weights = np.concatenate([train * np.asarray(self.weights), self.trusted_weight * trusted])
        return self.scale * weights

    @property
    def believable(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def advice(self) -> str:
        """What to do, and how many labels are wrong, in a few sentences."""
        text = _ADVICE.get(self.winner, "Use these weights: held-out trusted rows gain from them.")
        if self.winner == "all rows + trusted" and not self.keep.all():
            text += " Rows to look at are named all the same."
        if self.noise is None:
            return text
        shift = self.candidates is not None and "density ratio" in self.candidates.index
        return f"{text} {self.noise} {_SHIFT}" if shift else f"{text} {self.noise}"

    def _repr_html_(self) -> str:
        """The same in a notebook."""
        return preformatted(str(self))

    def __repr__(self) -> str:
        """A summary in a few lines."""
        n = len(self.weights)
        lines = [self.advice] if self.candidates is not None else []
        lines += [
            f"weights for {n} rows: {int(self.keep.sum())} to keep, {int((~self.keep).sum())} to "
            f"look at; effective sample size {self.effective_sample_size:.0f}; a trusted row "
            f"weighs {self.trusted_weight:.2f}"
        ]
        if self.baselines is not None:
            lines.append(self.baselines.round(4).to_string())
        lines += [
            f"[{'ok' if check.passed else 'NO'}] {check.name}: {check.detail}"
            for check in self.checks
        ]
        return "\n".join(lines)


_SHIFT = (
    "The trusted rows are distributed otherwise than the training rows, so these intervals may be too "
    "narrow."
)
_ADVICE = {
    "uniform": "Use the training rows as they are, without weights: nothing did clearly better.",
    "all rows + trusted": "Use all rows, training and trusted, without weights: nothing did clearly "
    "better.",
    "trusted only": "Use the trusted rows alone: no choice of training rows did better.",
    "filter": "Use the trusted rows, and the training rows whose label their model agrees with.",
}
