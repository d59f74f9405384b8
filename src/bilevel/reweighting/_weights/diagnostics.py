"""Questions asked of weights, whose answers say whether to believe them."""

from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from .baselines import BASELINES, SIMPLEST

if TYPE_CHECKING:
    from ..._analysis.retrain import RetrainCheck
else:  # free weights alone need JAX
    RetrainCheck = Any


DOES_AS_JUDGED = "the fit does what was judged"


class Check(NamedTuple):
    """One question asked of a result, whether it passed, and the numbers in words."""

    name: str
    passed: bool
    detail: str


def check_choice(
    winner: str,
    candidates: pd.DataFrame,
    fits: pd.DataFrame,
    effective_rows: float,
    n: int,
    num_outputs: int,
    *,
    many_wrong: bool,
) -> list[Check]:
    """The questions asked of weights that were chosen on held-out trusted rows.

    Args:
        winner: the candidate that was chosen.
        candidates: how the candidates did.
        fits: how the estimator does that was fitted on all rows, see `CrossValidatedWeights`.
        effective_rows: the effective sample size of the weights; 0 if all are zero.
        n: the number of training rows.
        num_outputs: the number of classes, or 1.
        many_wrong: whether many labels are wrong for sure.
    """
    checks = [_choice(candidates, winner, many_wrong)]
    if len(fits) > 1:  # the first went astray
        checks.append(_fits(fits, candidates, winner))
    least = min(max(10 * num_outputs, 0.02 * n), n / 2)
    if effective_rows:
        detail = (
            f"effective sample size {effective_rows:.0f} of {n} rows (asked for: {least:.0f} or "
            "more)"
        )
        checks.append(Check("the weights did not collapse", bool(effective_rows >= least), detail))
    return checks


def _choice(table: pd.DataFrame, winner: str, many_wrong: bool) -> Check:
    """What was chosen, against the best of the others that a user could have without weights."""
    name = "the choice on held-out trusted rows"
    rivals = [b for b in BASELINES if b in table.index and b != winner]
    best = str(table.loc[rivals, "loss"].idxmin())
    numbers = (
        f"held-out loss {table.loc[winner, 'loss']:.4g}, score {table.loc[winner, 'score']:.4f}; "
        f"the best other baseline ({best}) has {table.loc[best, 'loss']:.4g} and "
        f"{table.loc[best, 'score']:.4f}"
    )
    if winner == SIMPLEST:
        return Check(name, True, f"no weights are clearly better than {SIMPLEST}: {numbers}")
    if many_wrong and table.loc[winner, "loss"] >= table.loc[best, "loss"]:
        why = "as many labels are wrong for sure and nothing else is better for sure"
        return Check(name, True, f"{winner}, {why}: {numbers}")
    return Check(name, True, f"{winner}: {numbers}")


def _fits(fits: pd.DataFrame, candidates: pd.DataFrame, winner: str) -> Check:
    """Whether the fit on all rows of the winner does what was judged, where others' did not."""
    said = [
        f"fitted on {name}, the estimator has a loss of {fits.loc[name, 'loss']:.4g} (score "
        f"{fits.loc[name, 'score']:.4f}) on the trusted rows that it has seen, where models that had "
        f"not seen them had {candidates.loc[name, 'loss']:.4g} ({candidates.loc[name, 'score']:.4f})"
        for name in fits.index
        if fits.at[name, "astray"]
    ]
    passed = not fits.loc[winner, "astray"]
    so = (
        f"so {winner} is used in its place"
        if passed
        else "so this estimator cannot be relied on here: give it a smaller learning rate or a "
        "penalty, or take another one"
    )
    return Check(DOES_AS_JUDGED, passed, f"{'; '.join(said)}; {so}")


def check_free_weights(
    scores: pd.DataFrame,
    retrained: RetrainCheck,
    raw_ess: float,
    n: int,
    num_outputs: int,
    all_trained: bool,
) -> list[Check]:
    """The questions whose answers decide whether to believe the weights.

    Args:
        scores: the table of `WeightsResult.scores`.
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
    return [
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
