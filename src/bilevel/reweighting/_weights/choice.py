"""The choice among candidates, and what is to be said of it."""

import functools
from collections.abc import Collection

import numpy as np
import pandas as pd

from .._inputs.prepare import Prepared
from .baselines import SIMPLEST
from .candidates import SOFT, Search, judge_candidates
from .diagnostics import check_choice
from .folds import FOLDS
from .joining import FEW_WRONG, standard_error
from .opinions import Opinions
from .result import CrossValidatedWeights, Learned
from .row_weights import effective_rows, entropy_of_rows
from .scorer import RowScorer

CLEAR = 0.5  # standard errors by which one candidate must beat another that is preferred to it
SURE = 2.0  # those that must tell against the rows that are kept where many labels are wrong
ASTRAY = 2.0  # those by which a fit may be worse on rows that it has seen than was judged


def candidate_table(judged: dict[str, tuple[np.ndarray, float]]) -> pd.DataFrame:
    """The table of candidates: loss, score, and the difference of the loss to the simplest one's.

    The standard error is of the paired difference.
    """
    simplest = judged[SIMPLEST][0]
    return pd.DataFrame(
        {
            name: {
                "loss": losses.mean(),
                "score": score,
                "difference": (losses - simplest).mean(),
                "standard_error": standard_error(losses - simplest),
            }
            for name, (losses, score) in judged.items()
        }
    ).T


def best_candidate(
    judged: dict[str, tuple[np.ndarray, float]],
    preferred: str = SOFT,
    left_out: Collection[str] = (),
    *,
    many_wrong: bool = False,
) -> str:
    """The candidate with the least loss, unless a preferred one is as good.

    As good: the paired difference is at most half of its standard error. "All rows + trusted" is
    preferred to all others, then `preferred`. With `many_wrong` it is the other way round, and
    `preferred` is as good up to two standard errors. "Uniform" is judged and not chosen: it forgets
    the trusted rows, which can only be luck where it is better. Nor are those that are `left_out`.
    """
    able = [name for name in judged if name != "uniform" and name not in left_out]
    best = min(able, key=lambda name: judged[name][0].mean())
    bars = {preferred: CLEAR, SIMPLEST: CLEAR}
    if many_wrong:
        bars = {SIMPLEST: CLEAR, preferred: SURE}
    for liked in [name for name in bars if name in able]:
        gap = judged[liked][0] - judged[best][0]
        if not gap.mean() > bars[liked] * standard_error(gap):
            best = liked
    return best


def must_leave_out(found: Search) -> bool:
    """Whether more than a tenth of the labels are wrong for sure, and the judge fits wrong labels.

    For sure: the 95 % interval lies above a tenth. A penalised linear model averages over wrong
    labels, and where the losses do not tell, all rows are the better choice for it.
    """
    sure = found.noise is not None and found.noise.rate.low > FEW_WRONG
    return sure and found.judge is not found.linear


def fit_all(found: Search, name: str) -> dict[str, float | bool]:
    """The judge fitted on all rows of a candidate, and whether that fit has gone astray.

    A fit should do at least as well on trusted rows that it has seen as models of a part of the rows
    did on trusted rows that they had not seen. Boosted trees need not: steps of unbounded size in
    classes of few rows can end far from what the models of the folds were.

    Returns:
        `loss` and `score` on the trusted rows that judge, all of which the fit has seen; and `astray`:
        whether the loss is above the held-out one by more than two standard errors of the difference.
    """
    candidate, judge = found.candidates[name], found.judge
    fitted = judge.fit(candidate.weights[FOLDS], np.full(judge.folds.m, candidate.trusted))
    losses, score = judge.folds.judge(judge.on_trusted(fitted, np.arange(judge.folds.m)))
    gap = losses - found.judged[name][0]
    astray = bool(gap.mean() > ASTRAY * standard_error(gap))
    return {"loss": float(losses.mean()), "score": score, "astray": astray}


def choose(found: Search) -> CrossValidatedWeights:
    """The weights of the candidate to use: the best whose fit does what was judged.

    A linear model's fit has one solution, and cannot go astray; nor need it be fitted.
    """
    folds, many_wrong = found.folds, must_leave_out(found)
    best = functools.partial(best_candidate, found.judged, found.preferred, many_wrong=many_wrong)
    winner = best()
    fits: dict[str, dict[str, float | bool]] = {}
    if found.judge is not found.linear:
        able = len(found.judged) - ("uniform" in found.judged)
        fits[winner] = fit_all(found, winner)
        while len(fits) < able and fits[winner]["astray"]:
            winner = best(fits)
            fits[winner] = fit_all(found, winner)
        if fits[winner]["astray"]:  # as all are
            winner = next(iter(fits))
    weights, trusted = found.candidates[winner].weights[FOLDS], found.candidates[winner].trusted
    scale = float(np.average(weights, weights=folds.weight)) or 1.0
    return CrossValidatedWeights(
        weights=weights / scale,
        trusted_weight=trusted / scale,
        scale=scale,
        winner=winner,
        candidates=candidate_table(found.judged),
        fits=pd.DataFrame.from_dict(fits, orient="index", columns=["loss", "score", "astray"]),
        members=found.member_table,
        label_quality=found.quality,
        keep=found.keep,
        wrong=found.wrong,
        noise=found.noise,
        shifted=found.shifted,
    )


def explain(found: Search, chosen: CrossValidatedWeights, tables: Prepared) -> Learned:
    """The chosen weights, the weighting model that they give, and the questions asked of them."""
    weights = chosen.weights
    model = found.linear
    candidate = found.candidates[chosen.winner]
    fitted = model.fit(candidate.weights[FOLDS], np.full(found.folds.m, candidate.trusted))
    counts = found.folds.weight
    size = effective_rows(weights, counts) if weights.any() else 0.0
    group_weights = None
    if tables.groups is not None:
        names, codes = np.unique(tables.groups, return_inverse=True)
        some = counts if np.bincount(codes, counts).all() else np.ones(len(weights))
        group_weights = pd.Series(
            np.bincount(codes, some * weights) / np.bincount(codes, some), names
        )
    return Learned(
        weights=weights,
        trusted_weight=chosen.trusted_weight,
        scale=chosen.scale,
        label_quality=chosen.label_quality,
        keep=chosen.keep,
        wrong=chosen.wrong,
        noise=chosen.noise if found.noise is None else found.noise.named(tables.classes),
        winner=chosen.winner,
        candidates=chosen.candidates,
        effective_sample_size=size,
        entropy=entropy_of_rows(weights, counts) if weights.any() else 0.0,
        checks=check_choice(
            chosen.winner,
            chosen.candidates,
            chosen.fits,
            size,
            len(weights),
            tables.num_outputs,
            many_wrong=must_leave_out(found),
        ),
        scores=_score_weighting_model(found, chosen.winner),
        parameters=RowScorer.linear_parameters(fitted, found.folds.kind),
        history=found.history,
        stats={"num_steps": len(found.history)},
        group_weights=group_weights,
        scorer=found.scorer,
        opinions=Opinions.of(found.members, found.quality, found.folds.y, tables.encoding.decode),
    )


def _score_weighting_model(found: Search, winner: str) -> pd.DataFrame:
    """The linear model on uniform weights and on the chosen ones: held-out loss and score."""
    model = found.linear
    table: dict[str, dict[str, float]] = {}
    for line, name in {"uniform": "uniform", "chosen": winner}.items():
        candidate = found.candidates[name]
        judged = model is found.judge
        losses, score = found.judged[name] if judged else judge_candidates(model, [candidate])[0]
        table[line] = {"trusted_loss": float(losses.mean()), "trusted_score": score}
    return pd.DataFrame.from_dict(table, orient="index")
