"""What `learn_weights` returns, and the questions asked of it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Float, PyTree

from ..._analysis.retrain import RetrainCheck
from ..._problem import BilevelProblem
from .._inputs.containers import as_rows
from .._inputs.prepare import Encoding
from .diagnostics import Check
from .labels import RowScorer


@dataclasses.dataclass(frozen=True)
class WeightsResult:
    """What `learn_weights` returns; print it for a summary.

    Attributes:
        weights: one a training row, in order, mean 1: 0 is ignored, 1 an average row; in the kind that
            the rows came in, such as a pandas series with their index. All zero if the trusted rows
            alone are best.
        trusted_weight: what a trusted row weighs beside them.
        keep: False for the rows to look at: those whose label a model that has not seen them disputes
            (of free weights: that are worth less than half a trusted row).
        effective_sample_size: `(sum w)^2 / sum w^2`.
        entropy: of the normalised weights, in nats.
        history: a table with a line a recorded outer step: outer value, the three residuals, oracle
            calls, effective sample size and entropy of the weights so far.
        scores: the weighting model itself, a table with a line a model: `uniform` (trained on
            uniform weights), `warm` (its parameters as the bilevel run left them), `retrained` (from
            scratch on the weights the run found) and `capped` (from scratch on the weights returned,
            see `row_weights`: the one to believe); columns: loss and score (accuracy or R2) on the
            trusted rows and, with a hold-out, there.
        baselines: `compare_baselines`' table, `None` without a hold-out.
        checks: the questions asked of this result and their answers.
        parameters: the weighting model trained from scratch on the weights returned.
        stats: numbers of steps and oracle calls.
        winner: what the weights are: `"weights"`, `"groups"`, ... or one of the baselines.
        candidates: with `method="auto"`, a line a candidate that was judged on held-out folds of the
            trusted rows: `loss` and `score` there, and the `difference` of the loss to "all rows +
            trusted" with its `standard_error`, paired over the rows.
        label_quality: in [0, 1], one a training row: the lowest are most likely to be wrong. It is
            there whichever candidate won.
        scale: fit a final model with `scale * weights` and `scale * trusted_weight`, see
            `sample_weight`.
        group_weights: the mean weight of each group, where `groups` were given.
        scorer: what judges the labels of new rows, see `score_rows`; None for free weights.
        encoding: how features and labels became numbers.
    """

    weights: Any
    trusted_weight: float
    keep: np.ndarray
    effective_sample_size: float
    entropy: float
    history: pd.DataFrame
    scores: pd.DataFrame
    baselines: pd.DataFrame | None
    checks: list[Check]
    parameters: PyTree
    stats: dict[str, Any]
    winner: str
    candidates: pd.DataFrame | None
    label_quality: Any
    scale: float
    group_weights: pd.Series | None
    scorer: RowScorer | None
    encoding: Encoding

    def score_rows(self, X: Any, y: Any) -> pd.DataFrame:
        """What the models that weighed the training rows say of labelled rows never seen.

        Returns:
            A table with a line a row, with the index of X if it is a data frame: `label_quality` (in
            [0, 1]: the share of training rows whose label fits less well), `predicted_label`, and
            `keep`: whether the label is not disputed.

        Raises:
            InputError: rows that cannot be used, or labels that no training row has.
            ValueError: the weights are free ones, which say nothing of other rows.
        """
        if self.scorer is None:
            raise ValueError(
                "free weights say nothing of new rows; learn the weights with method='auto'."
            )
        X, y = as_rows(X, y)
        x, labels = self.encoding.features(X, "X"), self.encoding.labels(y, "y")
        quality, undisputed = self.scorer(x, labels)
        columns = {
            "label_quality": quality,
            "predicted_label": self.encoding.decode(self.scorer.predict(x)),
            "keep": undisputed,
        }
        return pd.DataFrame(columns, X.index if isinstance(X, pd.DataFrame) else None)

    def sample_weight(self, num_trusted: int) -> Float[np.ndarray, " rows"]:
        """For the final fit: of the training rows, then of the trusted rows.

        The training rows count as their effective sample size beside the trusted rows, and against
        a penalty of the model.
        """
        trusted = np.full(num_trusted, self.trusted_weight)
        return self.scale * np.concatenate([np.asarray(self.weights), trusted])

    @property
    def believable(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        return _ADVICE.get(self.winner, "Use these weights: held-out trusted rows gain from them.")

    def __str__(self) -> str:
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


_ADVICE = {
    "uniform": "Use the training rows as they are, without weights: nothing did clearly better.",
    "all rows + trusted": "Use all rows, training and trusted, without weights: nothing did clearly "
    "better. Rows to look at are named all the same.",
    "trusted only": "Use the trusted rows alone: no choice of training rows did better.",
    "filter": "Use the trusted rows, and the training rows whose label their model agrees with.",
}


def score_models(
    problem: BilevelProblem, models: dict[str, PyTree], predict: Any, loss: Any, holdout: Any
) -> pd.DataFrame:
    """Losses, and scores (accuracy or R2), of the weighting model under several parameters."""
    table: dict[str, dict[str, float]] = {name: {} for name in models}
    for name, w in models.items():
        for part, rows in [("trusted", problem.outer_data), ("holdout", holdout)]:
            if rows is not None:
                measured = _evaluate(predict, loss, w, *rows)
                table[name] |= {f"{part}_{key}": float(x) for key, x in measured.items()}
    return pd.DataFrame.from_dict(table, orient="index")


@eqx.filter_jit
def _evaluate(
    predict: Any, loss: Any, w: PyTree, x: jax.Array, y: jax.Array
) -> dict[str, jax.Array]:
    outputs = predict(w, x)
    if jnp.issubdtype(y.dtype, jnp.integer):
        score = jnp.mean(jnp.argmax(outputs, axis=1).astype(y.dtype) == y)
    else:
        score = 1 - jnp.mean((outputs[:, 0] - y) ** 2) / jnp.var(y)
    return {"loss": jnp.mean(loss(outputs, y)), "score": score}


def ask(
    scores: pd.DataFrame,
    baselines: pd.DataFrame | None,
    retrained: RetrainCheck,
    raw_ess: float,
    n: int,
    num_outputs: int,
    all_trained: bool,
) -> list[Check]:
    """The questions whose answers decide whether to believe the weights.

    Args:
        scores: the table of `WeightsResult.scores`.
        baselines: the table of `compare_baselines`, if there is a hold-out.
        retrained: the run's `retrain_check`, measured from uniform weights.
        raw_ess: the effective sample size before `row_weights` caps, which could hide a collapse.
        n: the number of training rows.
        num_outputs: the number of classes, or 1.
        all_trained: whether every retrained model reached its tolerance.
    """
    uniform, capped = scores["trusted_loss"].loc[["uniform", "capped"]]
    again = retrained.retrained.mean()
    least = min(max(10 * num_outputs, 0.02 * n), n / 2)
    unfinished = "" if all_trained else " (retraining stopped before its tolerance was met)"
    checks = [
        Check(
            "the trusted loss fell",
            bool(capped < 0.999 * uniform),
            f"{uniform:.4g} trained on uniform weights, {capped:.4g} on the weights",
        ),
        Check(
            "the weights did not collapse",
            bool(raw_ess >= least),
            f"effective sample size {raw_ess:.0f} of {n} rows before capping (asked for: "
            f"{least:.0f} or more)",
        ),
        Check(
            "retraining keeps the gain",
            all_trained and bool(retrained.verdict == "holds" or again <= retrained.warm + 1e-3),
            f"trusted loss {retrained.warm:.4g} as the run left the model, {again:.4g} retrained from "
            f"scratch on the same weights{unfinished}",
        ),
    ]
    if baselines is not None:
        checks.append(holdout_check(baselines, "weights", judged=False))
    return checks


def holdout_check(baselines: pd.DataFrame, winner: str, judged: bool) -> Check:
    """Whether the weights are as good on the hold-out as the best baseline.

    Args:
        baselines: the table of `compare_baselines`.
        winner: what the weights are.
        judged: whether they were chosen on held-out trusted rows; then a baseline must be better by
            more than two standard errors to fail the check. Free weights must gain something.
    """
    others = baselines.drop(index="reweighted")
    best = str(others["score"].idxmax())
    gain, error = (float(x) for x in others.loc[best, ["difference", "standard_error"]])
    paid = f"weighting {verdict(gain, error)}"
    if winner in others.index:
        paid = f"weighting was left out ({winner} was chosen)"
    detail = (
        f"{paid}: {baselines.loc['reweighted', 'score']:.4f} against "
        f"{others.loc[best, 'score']:.4f} of the best baseline ({best}): {gain:+.4f} (standard "
        f"error {error:.4f})"
    )
    if judged:
        return Check("the choice holds on the hold-out", gain >= -2 * error, detail)
    return Check("weighting pays on the hold-out", gain > 0, detail)


def verdict(gain: float, error: float) -> str:
    """Paid: a gain of more than two standard errors; may have paid: a smaller one; else not."""
    if gain <= 0:
        return "did not pay"
    return "paid" if gain > 2 * error else "may have paid"
