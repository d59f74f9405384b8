"""The candidates: weights that are judged on the trusted rows that each has not seen."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from .._inputs.compact import takes_gaps
from .._inputs.prepare import Prepared
from .._inputs.probabilities import Probabilities
from .._inputs.row_facts import RowFacts
from .annotators import AnnotatedPool, Annotations
from .baselines import SIMPLEST
from .calibration import Draw, Evidence
from .diagnostics import check_choice
from .folds import FOLDS, JUDGES, Folds, make_folds
from .label_models import (
    FEWER_TREES,
    TREES,
    LabelModel,
    Member,
    cross_fitted,
    forest_label_models,
    forget,
    from_outside,
    is_the_linear_model,
    judging_fits,
    linear_label_model,
    on_held_out,
    own_label_model,
    second_round,
    trusted_only,
)
from .labels import Classes
from .metric import Metric, Scoring
from .noise import Noise, describe, flag, suspects
from .pool import ClassPool, NumberPool, fit_pool
from .result import CrossValidatedWeights, Learned
from .row_weights import effective_rows, entropy_of_rows
from .scorer import RowScorer

CLEAR = 0.5  # standard errors by which one candidate must beat another that is preferred to it
PLAIN = 4.0  # standard errors by which forests must lower the pool's loss to join it
SOFT, HARD = (
    "weights",
    "clean rows",
)  # by the probability that a label is right; without the flagged
STEEPEST = 4.0  # log density ratios are clipped here
Pool = ClassPool | NumberPool | AnnotatedPool


class Candidate(NamedTuple):
    """Weights of all training rows, for each choice of trusted rows; and of a trusted row."""

    weights: Float[np.ndarray, "choices n"]
    trusted: float

    def same_as(self, other: "Candidate") -> bool:
        """Whether the fits that judge it would be equal."""
        return self.trusted == other.trusted and np.array_equal(
            self.weights[:FOLDS], other.weights[:FOLDS]
        )


@dataclasses.dataclass(frozen=True)
class Search:
    """The label models, the pool that they make, and the candidates with their judgements.

    Attributes:
        folds: labels and folds.
        linear: the linear label model, which takes scaled numbers.
        judge: the kind of model that judges the candidates: the user's own, or `linear`.
        members, pool: of the last round.
        right: the probability that each training row's label is right, under the pool.
        quality: what training rows are ranked by.
        wrong: the probability that each training row's label is wrong, calibrated on trusted rows.
        keep: False for the rows to look at.
        noise: how many labels are wrong; None in a regression, and with annotators.
        scorer: what judges new rows.
        candidates, judged: the weights, and (held-out losses of the trusted rows, score) of each.
        history: a table with a line per round.
        shifted: whether the trusted rows are distributed otherwise than the training rows.
    """

    folds: Folds
    linear: LabelModel
    judge: LabelModel
    members: list[Member]
    pool: Pool
    right: Float[np.ndarray, " n"]
    quality: Float[np.ndarray, " n"]
    wrong: Float[np.ndarray, " n"]
    keep: Bool[np.ndarray, " n"]
    noise: Noise | None
    scorer: RowScorer | None
    candidates: dict[str, Candidate]
    judged: dict[str, tuple[Float[np.ndarray, " m"], float]]
    history: pd.DataFrame
    shifted: bool

    @property
    def preferred(self) -> str:
        """The weights that are used where no others are clearly better.

        A penalised linear model averages over wrong labels that keep some weight; a flexible model of
        the user's fits them all the same, so such rows are left out.
        """
        return SOFT if self.judge is self.linear else HARD

    @property
    def member_table(self) -> pd.DataFrame:
        """Held-out loss and score of the members of the pool and of the pool; the coefficients."""
        outputs = [member.trusted[FOLDS] for member in self.members]
        named = {member.name: o for member, o in zip(self.members, outputs, strict=True)}
        named["pool"] = self.pool.outputs(outputs)
        table = {name: _judge(self.folds, o) for name, o in named.items()}
        coefficients = [*self.pool.coefficients, np.nan]
        frame = pd.DataFrame.from_dict(table, orient="index", columns=["loss", "score"])
        return frame.assign(coefficient=coefficients)


def search(
    features: np.ndarray,
    y: np.ndarray,
    features_trusted: np.ndarray,
    y_trusted: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    tables: Prepared | None = None,
    estimator: Any = None,
    probabilities: Probabilities | None = None,
    verified: Int[np.ndarray, " m"] | None = None,
    annotations: Annotations | None = None,
    metric: Metric | None = None,
    precision: float | None = None,
    seed: int = 0,
) -> Search:
    """Fit the label models, pool them, make candidates of what they say, and judge these.

    First round: each label model (the linear one, and the user's own kind if there is one) out of
    fold on all training rows, and on the trusted rows alone; the pool; the candidates, which are
    judged on each fold of the trusted rows by models that have not seen it. Second round: models of
    the rows weighted by the first pool's probabilities join the pool, whose probabilities are the
    weights in the end.

    The fits of the user's own kind of model are shared: its models of all training rows judge uniform
    weights, those of the trusted rows judge these alone and give the filter its rows, and those that
    judge the weights are the second round. That makes 15 fits on two thirds of the training rows (and
    three for each more candidate), and 7 on trusted rows alone. Equal weights are judged once.

    `probabilities` of the user's are one more member. `verified` are the labels that the trusted rows
    had before they were verified: pairs from which the noise matrix is estimated too. With
    `annotations`, `y` are consensus labels, and the annotators take the place of the noise matrix.
    `precision` is what the list of flagged rows is asked for, see `flag`.
    """
    if tables is None:
        facts, scoring = (RowFacts.plain(features), RowFacts.plain(features_trusted)), None
    else:
        facts = tables.train.facts, tables.trusted.facts
        scoring = None if metric is None else Scoring.of(metric, tables.trusted, tables.encoding)
    folds = make_folds(y, y_trusted, seed, facts, scoring)
    linear = judge = linear_label_model(folds, features, features_trusted)
    kinds = [linear]
    if estimator is not None and tables is not None and not is_the_linear_model(estimator):
        judge = own_label_model(folds, tables, estimator)
        kinds.append(judge)

    members = [fit(kind) for kind in kinds for fit in (cross_fitted, trusted_only)]
    of_all, of_trusted = members[-2:]  # the judge's
    members += [] if probabilities is None else [from_outside(probabilities)]
    trees = judge is not linear and takes_gaps(estimator)
    number = FEWER_TREES if trees else TREES
    forests = forest_label_models(folds, features, features_trusted, number)
    if forests is not None and annotations is None:
        more = [forget(cross_fitted(forests[0])), forget(trusted_only(forests[1]))]
        members += more if trees or _are_worth_it(folds, members, more, verified) else []
    pools = [_pool(folds, members, verified, annotations, k) for k in range(JUDGES)]
    right = np.stack([_right(folds, pools[k], members, k) for k in range(JUDGES)])
    clean = np.stack(
        [
            _suspects(folds, pools[k], members, verified, precision, seed, k).keep
            for k in range(JUDGES)
        ]
    )
    rounds = [_round(folds, pools[FOLDS], members, right[FOLDS])]

    agrees = np.stack(
        [
            folds.kind.agrees(of_trusted.train[k], y, folds.weight) | folds.unjudged
            for k in range(JUDGES)
        ]
    )
    ones = np.ones((JUDGES, folds.n))
    candidates = {
        "uniform": Candidate(ones, 0.0),
        SIMPLEST: Candidate(ones, 1.0),
        "trusted only": Candidate(0 * ones, 1.0),
        "filter": Candidate(agrees.astype(float), 1.0),
        SOFT: Candidate(right, 1.0),
        HARD: Candidate(clean.astype(float), 1.0),
    }
    if groups is not None:
        shares = np.stack([_by_group(r, groups, folds.weight) for r in right])
        candidates["groups"] = Candidate(shares, 1.0)
    ratio = _density_ratio(folds, features, features_trusted)
    if ratio is not None:
        candidates["density ratio"] = Candidate(_effective(ratio, folds.weight), 1.0)
        product = _effective(ratio * right, folds.weight)
        candidates["weights by density ratio"] = Candidate(product, 1.0)
    weighing = [
        judging_fits(kind, right, 1.0) if kind is judge or folds.forward else [] for kind in kinds
    ]
    held_out = {
        "trusted only": of_trusted.trusted[FOLDS],
        SOFT: on_held_out(judge, weighing[-1]),
    }
    if judge.shares:
        held_out["uniform"] = on_held_out(judge, of_all.models)
    judged: dict[str, tuple[np.ndarray, float]] = {}
    for name, candidate in candidates.items():
        same = [k for k in judged if candidate.same_as(candidates[k])]
        if same:
            judged[name] = judged[same[0]]
        elif name in held_out:
            judged[name] = folds.judge(held_out[name])
        else:
            judged[name] = _judge_candidate(judge, candidate)

    members += [second_round(kind, right, fits) for kind, fits in zip(kinds, weighing, strict=True)]
    pool = _pool(folds, members, verified, annotations, FOLDS)
    last = _right(folds, pool, members, FOLDS)
    rounds.append(_round(folds, pool, members, last))
    suspected = _suspects(folds, pool, members, verified, precision, seed, FOLDS)
    final = {SOFT: last, HARD: suspected.keep.astype(float)}
    final |= {} if groups is None else {"groups": _by_group(last, groups, folds.weight)}
    if ratio is not None:
        final["weights by density ratio"] = _effective(ratio[FOLDS:] * last, folds.weight)[0]
    for name, weights in final.items():
        kept = candidates[name].weights
        candidates[name] = Candidate(np.concatenate([kept[:FOLDS], weights[None]]), 1.0)
    quality = pool.quality(_for_ranking(folds, members), y)
    noise = _noise(folds, suspected, groups, seed)
    # New rows are judged by the models that are kept; they come with one label, of no annotator.
    lasting = [member for member in members if member.models or member.kind is None]
    scored: Any = _pool(folds, lasting, verified, None, FOLDS)
    history = pd.DataFrame(rounds)
    return Search(
        folds,
        linear,
        judge,
        members,
        pool,
        last,
        quality,
        suspected.wrong,
        suspected.keep,
        noise,
        RowScorer.of(lasting, scored, folds.kind),
        candidates,
        judged,
        history.assign(step=np.arange(1, len(history) + 1)),
        ratio is not None,
    )


def _pool(
    folds: Folds,
    members: list[Member],
    verified: np.ndarray | None,
    annotations: Annotations | None,
    k: int,
) -> Pool:
    """The pool of the members that have not seen fold k of the trusted rows."""
    rows = np.flatnonzero(folds.known(k))
    trusted = [member.trusted[k][rows] for member in members]
    train = [member.train[k] for member in members]
    if annotations is not None and isinstance(folds.kind, Classes):
        every = [member.trusted[k] for member in members]
        labels = folds.y_trusted, train, folds.y
        return AnnotatedPool.fit(folds.kind, every, *labels, annotations, folds.known(k))
    known = ~folds.unjudged & folds.before[k]
    return fit_pool(
        folds.kind,
        trusted,
        folds.y_trusted[rows],
        [outputs[known] for outputs in train],
        folds.y[known],
        None if verified is None else verified[rows],
        weight_trusted=folds.weight_trusted[rows],
        weight=folds.weight[known],
    )


def _for_ranking(folds: Folds, members: list[Member]) -> list[Float[np.ndarray, "n outputs"]]:
    """What each member says of the training rows.

    Of a row whose class no trusted row has, models of the trusted rows alone know nothing. There the
    model of all rows of the same kind, which comes before them, speaks in their place.
    """
    train = [member.train[FOLDS] for member in members]
    strange = np.flatnonzero(folds.unjudged)
    if len(strange):
        for i in (i for i, member in enumerate(members) if member.alone):
            train[i] = train[i].copy()
            train[i][strange] = train[i - 1][strange]
    return train


def _are_worth_it(
    folds: Folds, members: list[Member], more: list[Member], verified: np.ndarray | None
) -> bool:
    """Whether the pool's loss on the trusted rows falls plainly if these members join it.

    A pool that follows few trusted rows gives every member some weight. Where linear models suffice,
    trees lower its loss a little and learn more of the noise: real label errors are then ranked
    worse. Where they do not suffice, nobody doubts it.
    """

    def losses(pooled: list[Member]) -> np.ndarray:
        pool = _pool(folds, pooled, verified, None, FOLDS)
        return folds.judge(pool.outputs([member.trusted[FOLDS] for member in pooled]))[0]

    gain = losses(members) - losses([*members, *more])
    return bool(gain.mean() > PLAIN * _standard_error(gain))


def _right(folds: Folds, pool: Pool, members: list[Member], k: int) -> Float[np.ndarray, " n"]:
    """The probability that each label is right; of rows that no model can judge, the mean."""
    right = pool.right([member.train[k] for member in members], folds.y)
    if folds.unjudged.any():
        judged = ~folds.unjudged & (folds.weight > 0)
        mean = np.average(right[judged], weights=folds.weight[judged]) if judged.any() else 1.0
        right[folds.unjudged] = mean
    return right


class Suspects(NamedTuple):
    """What a pool makes of the training labels, calibrated on the trusted rows of choice k.

    Attributes:
        wrong: the probability that each label is wrong; of rows that no model can judge, the mean.
        keep: False for the rows to look at.
        known: positions of the rows that are judged.
        evidence, draws: from which it came; None where there is no noise matrix.
    """

    wrong: Float[np.ndarray, " n"]
    keep: Bool[np.ndarray, " n"]
    known: Int[np.ndarray, " judged"]
    evidence: Evidence | None = None
    draws: list[Draw] | None = None


def _suspects(
    folds: Folds,
    pool: Pool,
    members: list[Member],
    verified: np.ndarray | None,
    precision: float | None,
    seed: int,
    k: int,
) -> Suspects:
    """Which labels are likely to be wrong; rows that no model can judge are not counted."""
    judged = ~folds.unjudged & folds.before[k]
    known, rows = np.flatnonzero(judged), np.flatnonzero(folds.known(k))
    y, weight = folds.y[known], folds.weight[known]
    wrong, keep = np.zeros(folds.n), np.ones(folds.n, bool)
    if not weight.any():
        return Suspects(wrong, keep, known)
    train = [member.train[k][known] for member in members]
    evidence, draws = None, None
    if not isinstance(pool, ClassPool):
        found = 1 - pool.right([member.train[k] for member in members], folds.y)[known]
        flagged = found > 0.5 if precision is None else flag(found, precision, weight)
    else:
        evidence = pool.evidence(
            [member.trusted[k][rows] for member in members],
            folds.y_trusted[rows],
            train,
            y,
            None if verified is None else verified[rows],
            weight_trusted=folds.weight_trusted[rows],
            weight=weight,
        )
        found, flagged, draws = suspects(evidence, precision=precision, seed=seed)
    wrong[:] = np.average(found, weights=weight)
    wrong[known], keep[known] = found, ~flagged
    return Suspects(wrong, keep, known, evidence, draws)


def _noise(folds: Folds, found: Suspects, groups: np.ndarray | None, seed: int) -> Noise | None:
    """How many labels are wrong, of the rows that are judged."""
    if found.evidence is None or found.draws is None:
        return None
    inside = None if groups is None else groups[found.known]
    flagged, labels = ~found.keep[found.known], folds.y[found.known]
    noise = describe(found.draws, found.evidence, flagged, labels, inside, seed)
    if noise.verify is None:
        return noise
    among_all = dataclasses.replace(noise.verify, rows=found.known[noise.verify.rows])
    return dataclasses.replace(noise, verify=among_all)


def _round(folds: Folds, pool: Pool, members: list[Member], right: np.ndarray) -> dict[str, float]:
    """What a round has come to."""
    outputs = pool.outputs([member.trusted[FOLDS] for member in members])
    return {
        "outer_value": _judge(folds, outputs)[0],
        "wrong": float(1 - np.average(right, weights=folds.weight)),
        "effective_sample_size": effective_rows(right, folds.weight),
        "entropy": entropy_of_rows(right, folds.weight),
    }


def _judge(folds: Folds, outputs: np.ndarray) -> tuple[float, float]:
    losses, score = folds.judge(outputs)
    return float(losses.mean()), score


def _judge_candidate(
    model: LabelModel, candidate: Candidate
) -> tuple[Float[np.ndarray, " m"], float]:
    """Losses and score of the trusted rows, each by a model fitted without its fold."""
    models = judging_fits(model, candidate.weights, candidate.trusted)
    return model.folds.judge(on_held_out(model, models))


def _by_group(
    right: Float[np.ndarray, " n"], groups: np.ndarray, counts: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The share of right labels in each row's group, with one row's worth of the overall share."""
    _, codes = np.unique(groups, return_inverse=True)
    mean = np.average(right, weights=counts)
    share = (np.bincount(codes, counts * right) + mean) / (np.bincount(codes, counts) + 1)
    return share[codes]


def _effective(
    weights: Float[np.ndarray, "choices n"], counts: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "choices n"]:
    """Scaled to sum to the effective sample size, for each choice; a row counts as `counts`."""
    return weights * ((weights @ counts) / (weights**2 @ counts))[:, None]


def _density_ratio(
    folds: Folds, X: np.ndarray, X_trusted: np.ndarray
) -> Float[np.ndarray, "choices n"] | None:
    """The density of the trusted over that of the training rows, if they differ.

    From a logistic classifier that tells one from the other, out of fold. They differ if it ranks
    trusted rows of the fold that it has not seen above training rows, by three standard errors (of
    the area under the curve of a coin).
    """
    ratios, areas = np.zeros((JUDGES, folds.n)), []
    sub, meets = folds.sub, folds.meets_trusted
    domain = np.repeat([0, 1], [len(sub), folds.m])
    both = np.concatenate([X[sub], X_trusted])
    for k in range(JUDGES):
        mine = folds.weight * folds.beside[k]
        theirs = folds.weight_trusted * folds.others[k]
        share = theirs.sum() / mine[sub].sum()  # both sides weigh the same
        held_out = np.zeros(folds.m)
        for p in range(FOLDS):
            left_out = meets & (folds.part_trusted == p)
            weights = np.concatenate([share * (mine * (folds.part != p))[sub], theirs * ~left_out])
            fitted = LogisticRegression(tol=1e-2).fit(both, domain, sample_weight=weights)
            rows = np.flatnonzero(folds.part == p)
            if len(rows):
                ratios[k, rows] = fitted.decision_function(X[rows])
            held_out += fitted.decision_function(X_trusted) / FOLDS
        if k < FOLDS:
            here = folds.fold == k
            labels = np.repeat([0, 1], [folds.n, np.sum(here)])
            counts = np.concatenate([mine, folds.weight_trusted[here]])
            ranks = np.concatenate([ratios[k], held_out[here]])
            areas.append(roc_auc_score(labels, ranks, sample_weight=counts))
    n, m = folds.units
    error = np.sqrt((n + m + 1) / (12 * n * m))
    differ = np.mean(areas) > 0.5 + 3 * error
    return np.exp(np.clip(ratios, -STEEPEST, STEEPEST)) if differ else None


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
                "standard_error": _standard_error(losses - simplest),
            }
            for name, (losses, score) in judged.items()
        }
    ).T


def best_candidate(judged: dict[str, tuple[np.ndarray, float]], preferred: str = SOFT) -> str:
    """The candidate with the least loss, unless a preferred one is as good.

    As good: the paired difference is at most half of its standard error. "All rows + trusted" is
    preferred to all others, then `preferred`. "Uniform" is judged and not chosen: it forgets the
    trusted rows, which can only be luck where it is better.
    """
    able = [name for name in judged if name != "uniform"]
    best = min(able, key=lambda name: judged[name][0].mean())

    def clear(name: str, rival: str) -> bool:
        gap = judged[rival][0] - judged[name][0]
        return bool(gap.mean() > CLEAR * _standard_error(gap))

    if best != preferred and not clear(best, preferred):
        best = preferred
    return best if clear(best, SIMPLEST) else SIMPLEST


def _standard_error(difference: Float[np.ndarray, " m"]) -> float:
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))


def choose(found: Search) -> CrossValidatedWeights:
    """The weights of the candidate to use."""
    winner, folds = best_candidate(found.judged, found.preferred), found.folds
    weights, trusted = found.candidates[winner].weights[FOLDS], found.candidates[winner].trusted
    scale = float(np.average(weights, weights=folds.weight)) or 1.0
    return CrossValidatedWeights(
        weights=weights / scale,
        trusted_weight=trusted / scale,
        scale=scale,
        winner=winner,
        candidates=candidate_table(found.judged),
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
            chosen.winner, chosen.candidates, size, len(weights), tables.num_outputs
        ),
        scores=_score_weighting_model(found, chosen.winner),
        parameters=RowScorer.linear_parameters(fitted, found.folds.kind),
        history=found.history,
        stats={"num_steps": len(found.history)},
        group_weights=group_weights,
        scorer=found.scorer,
    )


def _score_weighting_model(found: Search, winner: str) -> pd.DataFrame:
    """The linear model on uniform weights and on the chosen ones: held-out loss and score."""
    model = found.linear
    table: dict[str, dict[str, float]] = {}
    for line, name in {"uniform": "uniform", "chosen": winner}.items():
        candidate = found.candidates[name]
        judged = model is found.judge
        losses, score = found.judged[name] if judged else _judge_candidate(model, candidate)
        table[line] = {"trusted_loss": float(losses.mean()), "trusted_score": score}
    return pd.DataFrame.from_dict(table, orient="index")
