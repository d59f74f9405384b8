"""The candidates: weights that are judged on the trusted rows that each has not seen."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from .._inputs.compact import takes_gaps
from .._inputs.prepare import Prepared
from .._inputs.probabilities import Probabilities
from .._inputs.row_facts import RowFacts
from .annotators import AnnotatedPool, Annotations
from .baselines import SIMPLEST
from .folds import FOLDS, JUDGES, Folds, make_folds
from .joining import join, offers_of, spoken_for
from .label_models import (
    LabelModel,
    Member,
    cross_fitted,
    from_outside,
    is_the_linear_model,
    judging_fits,
    linear_label_model,
    on_held_out,
    own_label_model,
    said_on_held_out,
    second_round,
    trusted_only,
)
from .labels import Classes
from .metric import Metric, Scoring
from .noise import Noise
from .pool import fit_pool
from .row_weights import effective_rows, entropy_of_rows
from .scorer import RowScorer
from .shares import at_effective_size, density_ratio, mean_by_group
from .suspects import Pool, Suspects, judge_labels, noise_of

SOFT = "weights"  # the probability that a label is right
HARD = "clean rows"  # without the rows that are flagged


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
        """See `preferred_weights`."""
        return preferred_weights(self.judge, self.linear)

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
    fold on all training rows, and on the trusted rows alone; forests, kernel models and boosted trees,
    where they help the pool (`join`); the pool; the candidates, which are
    judged on each fold of the trusted rows by models that have not seen it. Second round: models of
    the rows weighted by the first pool's probabilities join the pool, whose probabilities are the
    weights in the end.

    The fits of the user's own kind of model are shared: its models of all training rows judge uniform
    weights, those of the trusted rows judge these alone and give the filter its rows, and those that
    judge the clean rows are its second round; the probabilities are no candidate then
    (`preferred_weights`).
    That makes 12 fits on two thirds of the training rows (and three for each more candidate), and 4 on
    trusted rows alone. Equal weights are judged once.

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

    def pool_of(members: list[Member], k: int = FOLDS) -> Pool:
        return _pool(folds, members, verified, annotations, k)

    def suspected_by(pool: Pool, members: list[Member], k: int = FOLDS) -> Suspects:
        return judge_labels(folds, pool, members, verified, precision, seed, k)

    # The first round.
    members = [fit(kind) for kind in kinds for fit in (cross_fitted, trusted_only)]
    of_all, of_trusted = members[-2:]  # the judge's
    members = spoken_for(folds, members)
    members += [] if probabilities is None else [from_outside(probabilities)]
    flexible: list[LabelModel] = []
    if annotations is None:
        trees = judge is not linear and takes_gaps(estimator)
        offers = offers_of(folds, features, features_trusted, trees=trees)
        members, flexible = join(folds, members, offers)
    pools = [pool_of(members, k) for k in range(JUDGES)]
    right = np.stack(
        [pool.right([member.train[k] for member in members], y) for k, pool in enumerate(pools)]
    )
    clean = np.stack([suspected_by(pool, members, k).keep for k, pool in enumerate(pools)])
    rounds = [_round(folds, pools[FOLDS], members, right[FOLDS])]

    # The candidates, and what judges them.
    agrees = np.stack([folds.kind.agrees(said, y, folds.weight) for said in of_trusted.train])
    ratio = density_ratio(folds, features, features_trusted)
    candidates = _candidates(folds, right, clean, agrees | folds.unjudged, ratio, groups)
    preferred = preferred_weights(judge, linear)
    if preferred != SOFT:
        del candidates[SOFT]
    seconds = [candidates[preferred].weights if kind is judge else right for kind in kinds]
    weighing = [
        judging_fits(kind, weights, 1.0) if kind is judge or folds.forward else []
        for kind, weights in zip(kinds, seconds, strict=True)
    ]
    held_out = {
        "trusted only": of_trusted.trusted[FOLDS],
        preferred: on_held_out(judge, weighing[-1]),
    }
    if judge.shares:
        held_out["uniform"] = on_held_out(judge, of_all.models)
    judged = _judge_all(judge, candidates, held_out)

    # The second round.
    members += [
        second_round(kind, weights, fits)
        for kind, weights, fits in zip(kinds, seconds, weighing, strict=True)
    ]
    for kind in flexible:
        judging = judging_fits(kind, right, 1.0) if folds.forward else []
        members.append(second_round(kind, right, judging).with_small_models())
    pool = pool_of(members)
    of_last = [member.train[FOLDS] for member in members]
    last, quality = pool.right(of_last, y), pool.quality(of_last, y)
    rounds.append(_round(folds, pool, members, last))
    suspected = suspected_by(pool, members)
    final = {SOFT: last, HARD: suspected.keep.astype(float)} if judge is linear else {}
    final |= {} if groups is None else {"groups": mean_by_group(last, groups, folds.weight)}
    if ratio is not None:
        final["weights by density ratio"] = at_effective_size(ratio[FOLDS:] * last, folds.weight)[0]
    for name, weights in final.items():
        kept = candidates[name].weights
        candidates[name] = Candidate(np.concatenate([kept[:FOLDS], weights[None]]), 1.0)

    # New rows are judged by the models that are kept; they come with one label, of no annotator. Where
    # that makes another pool, it is calibrated by what it says itself.
    lasting = [member for member in members if member.models or member.kind is None]
    scored: Any = _pool(folds, lasting, verified, None, FOLDS)
    if len(lasting) == len(members) and annotations is None:
        doubt = suspected.doubt(quality)
    else:
        own = suspected_by(scored, lasting)
        doubt = own.doubt(scored.quality([member.train[FOLDS] for member in lasting], y))
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
        noise_of(folds, suspected, groups, seed),
        RowScorer.of(lasting, scored, folds.kind, doubt),
        candidates,
        judged,
        history.assign(step=np.arange(1, len(history) + 1)),
        ratio is not None,
    )


def preferred_weights(judge: LabelModel, linear: LabelModel) -> str:
    """The weights that are used where no others are clearly better.

    A penalised linear model averages over wrong labels that keep some weight; a flexible model of the
    user's fits them all the same, so such rows are left out. The probabilities would cost it the
    most expensive fits, and are no candidate. The rows left out are those of the first round, as they
    were judged: the second round is of models that have not learned from them.
    """
    return SOFT if judge is linear else HARD


def _candidates(
    folds: Folds,
    right: Float[np.ndarray, "choices n"],
    clean: Bool[np.ndarray, "choices n"],
    agrees: Bool[np.ndarray, "choices n"],
    ratio: Float[np.ndarray, "choices n"] | None,
    groups: np.ndarray | None,
) -> dict[str, Candidate]:
    """The baselines, and the weights of the first round.

    Args:
        folds: of the rows.
        right: the probability that each label is right, under the pool of each choice.
        clean: whether the row is not flagged, likewise.
        agrees: whether a model of the trusted rows agrees with the label, or knows nothing of it.
        ratio: of the densities, if the trusted rows are distributed otherwise.
        groups: of the training rows.
    """
    ones = np.ones((JUDGES, folds.n))
    found = {
        "uniform": Candidate(ones, 0.0),
        SIMPLEST: Candidate(ones, 1.0),
        "trusted only": Candidate(0 * ones, 1.0),
        "filter": Candidate(agrees.astype(float), 1.0),
        SOFT: Candidate(right, 1.0),
        HARD: Candidate(clean.astype(float), 1.0),
    }
    if groups is not None:
        shares = np.stack([mean_by_group(r, groups, folds.weight) for r in right])
        found["groups"] = Candidate(shares, 1.0)
    if ratio is not None:
        found["density ratio"] = Candidate(at_effective_size(ratio, folds.weight), 1.0)
        product = at_effective_size(ratio * right, folds.weight)
        found["weights by density ratio"] = Candidate(product, 1.0)
    return found


def _judge_all(
    judge: LabelModel, candidates: dict[str, Candidate], held_out: dict[str, np.ndarray]
) -> dict[str, tuple[Float[np.ndarray, " m"], float]]:
    """Losses and score of each candidate.

    `held_out`: outputs on the trusted rows that are there already; equal candidates have the same.
    """
    judged = {name: judge.folds.judge(outputs) for name, outputs in held_out.items()}
    alike, fresh = {}, []
    for name, candidate in candidates.items():
        same = [k for k in (*judged, *fresh) if k == name or candidate.same_as(candidates[k])]
        fresh += [] if same else [name]
        alike[name] = [*same, name][0]
    found = judge_candidates(judge, [candidates[name] for name in fresh])
    judged.update(zip(fresh, found, strict=True))
    return {name: judged[alike[name]] for name in candidates}


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
    known = folds.before[k]
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


def judge_candidates(
    model: LabelModel, candidates: list[Candidate]
) -> list[tuple[Float[np.ndarray, " m"], float]]:
    """Losses and score of the trusted rows, each by a model fitted without its fold."""
    return [model.folds.judge(outputs) for outputs in said_on_held_out(model, candidates)]
