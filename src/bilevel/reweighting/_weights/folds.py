"""Folds: from which rows models learn, and which rows they judge."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt64

from .._inputs.checks import InputError
from .._inputs.row_facts import RowFacts, mix
from .labels import Classes, Numbers
from .metric import Scoring

FOLDS = 3  # parts of both tables: the rows of each are judged by models of the others
HALVES = 2 * FOLDS  # of the parts: models that are not expensive leave out half a part
JUDGES = FOLDS + 1
MAX_ROWS = 20_000  # training rows that models are fitted on; all rows get outputs
FREE = FOLDS  # in place of a part: none is left out
EARLY = 2  # with times: spans of time before the first fold, which only teach
COMMON, COMMON_ROWS = 0.02, 20.0  # of more rows than this, equal features are coarse, not repeated


class Folds:
    """The labels of both tables as numbers, and which rows may judge which.

    Rows that belong together (`RowFacts.block`: those of one entity, or else those with equal
    features) are in one part, in both tables, and no model judges a row that has learned from one
    that belongs to it. Features that more than 2 % of the rows share, and more than 20, do not say
    where a row comes from; such rows are dealt one by one. The deal depends on hashes of what rows
    hold, not on their order or number: a row of weight 2 and two equal rows get the same folds.

    A choice of trusted rows is one of `JUDGES`: choice k < FOLDS leaves out fold k, which judges what
    was made without it; choice FOLDS has all rows. With times, the folds are the last spans of
    `EARLY + FOLDS` spans of time, and choice k has only rows of either table that are earlier than
    fold k.

    Attributes:
        scoring: the user's metric on the trusted rows, in place of the loss that judges.
        y, y_trusted: class codes (integers), or targets (floating).
        kind: `Classes` or `Numbers`.
        weight, weight_trusted: how much each row counts.
        half, half_trusted: of each row of the two tables, 0 to HALVES - 1.
        part, part_trusted: of each row, 0 to FOLDS - 1; half h is of part h modulo FOLDS.
        fold: of each trusted row, the part; or the span of time, from -EARLY to FOLDS - 1.
        meets: whether a training row belongs to a trusted one; `meets_trusted` the other way round.
        before: per choice, the training rows that it has.
        beside: per choice, those of them that belong to no row of fold k.
        others: per choice, the trusted rows that it has and that belong to no row of fold k.
        sub: the training rows that models are fitted on.
        unjudged: the training rows whose class no trusted row has: only models of all rows know them.
        units: how many training, and how many judging trusted rows there are, where those that belong
            together are one.
    """

    def __init__(
        self,
        y: np.ndarray,
        y_trusted: np.ndarray,
        number: int,
        facts: RowFacts,
        trusted: RowFacts,
        seed: int,
        scoring: Scoring | None = None,
    ):
        self.scoring = scoring
        self.y, self.y_trusted = y, y_trusted
        self.n, self.m = len(y), len(y_trusted)
        classes = y.dtype.kind in "iu"
        self.kind: Classes | Numbers = Classes(number) if classes else Numbers()
        self.weight, self.weight_trusted = facts.weight, trusted.weight
        self.forward = facts.time is not None and trusted.time is not None

        block, block_trusted = _blocks(facts, trusted)
        self.meets = np.isin(block, block_trusted)
        self.meets_trusted = np.isin(block_trusted, block)
        self._unit = np.unique(block, return_inverse=True)[1]
        self._unit_trusted = np.unique(block_trusted, return_inverse=True)[1]
        self.half_trusted = _deal(block_trusted, y_trusted, self.weight_trusted, seed)
        self.half = np.empty(self.n, int)
        alone = ~self.meets
        self.half[alone] = _deal(block[alone], y[alone], self.weight[alone], seed)
        names, first = np.unique(block_trusted, return_index=True)
        together = np.searchsorted(names, block[self.meets])
        self.half[self.meets] = self.half_trusted[first][together]
        self.part, self.part_trusted = self.half % FOLDS, self.half_trusted % FOLDS

        ones, ones_trusted = np.ones(self.n, bool), np.ones(self.m, bool)
        self.fold, span = self.part_trusted, self.part
        if facts.time is not None and trusted.time is not None:
            self.fold, span = _spans(facts.time, trusted.time, self.weight_trusted)
        self.before: dict[int, Bool[np.ndarray, " n"]] = {FOLDS: ones}
        self.beside: dict[int, Bool[np.ndarray, " n"]] = {FOLDS: ones}
        self.others: dict[int, Bool[np.ndarray, " m"]] = {FOLDS: ones_trusted}
        for k in self.parts:
            mine = block_trusted[self.fold == k]
            self.before[k] = span < k if self.forward else ones
            self.beside[k] = self.before[k] & ~np.isin(block, mine)
            others = self.fold < k if self.forward else self.fold != k
            self.others[k] = others & ~np.isin(block_trusted, mine)
        self._check()
        self.units = (
            len(np.unique(self._unit[self.weight > 0])),
            len(np.unique(self._unit_trusted[self.judging])),
        )

        present = np.flatnonzero(self.weight)
        draw = np.random.default_rng(seed).permutation(present)
        self.sub: Int[np.ndarray, " s"] = np.sort(draw[:MAX_ROWS])
        self.unjudged = np.zeros(self.n, bool)
        if classes:
            self.unjudged = ~np.isin(y, y_trusted[self.weight_trusted > 0])

    @property
    def parts(self) -> range:
        """The folds whose trusted rows are judged out of fold; those below 0 judge no candidate."""
        return range(1 - EARLY if self.forward else 0, FOLDS)

    @property
    def judging(self) -> Bool[np.ndarray, " m"]:
        """The trusted rows that judge candidates."""
        return (self.fold >= 0) & (self.weight_trusted > 0)

    def known(self, k: int) -> Bool[np.ndarray, " m"]:
        """The trusted rows of choice k that have out-of-fold outputs."""
        return self.others[k] & (self.fold >= self.parts.start)

    def horizon(self, k: int) -> int:
        """The choice that tells which training rows their models may have, where k is asked for."""
        return k if self.forward else FOLDS

    def judge(self, outputs: np.ndarray) -> tuple[Float[np.ndarray, " units"], float]:
        """(losses of the trusted rows that judge, one per set of rows that belong together; score).

        The plain mean of these losses is the weighted mean of the rows' losses, and they are as good
        as independent. With equal weights and no two rows that belong together, they are the losses
        of the rows. With a metric of the user's, they are those of `Metric.judge`.
        """
        rows = np.flatnonzero(self.judging)
        weight = self.weight_trusted[rows]
        if self.scoring is not None:
            return self.scoring.judge(outputs[rows], rows, weight, self._unit_trusted[rows])
        losses, score = self.kind.judge(outputs[rows], self.y_trusted[rows], weight)
        return _by_unit(losses, weight, self._unit_trusted[rows]), score

    def of_units(
        self, losses: Float[np.ndarray, " s"], rows: Int[np.ndarray, " s"]
    ) -> Float[np.ndarray, " units"]:
        """Losses of these training rows, one per set of rows that belong together, as in `judge`."""
        return _by_unit(losses, self.weight[rows], self._unit[rows])

    def _check(self) -> None:
        """Refuse folds that hold nothing, or that nothing may judge."""
        for k in self.parts:
            here = (self.fold == k) & (self.weight_trusted > 0)
            there = self.others[k] & (self.weight_trusted > 0)
            train = self.beside[k] & (self.weight > 0)
            if here.any() and there.any() and train.any():
                continue
            if self.forward:
                what = "training" if here.any() and there.any() else "trusted"
                raise InputError(
                    f"with `times`, trusted rows are judged by earlier rows of other entities, and "
                    f"there are no such {what} rows for one of the {len(self.parts)} spans of time: "
                    "give rows of more times, or leave `times` out."
                )
            entities = len(np.unique(self._unit_trusted))
            raise InputError(
                f"the rows cannot be put into {FOLDS} folds so that rows that belong together stay "
                f"together: the trusted rows belong to {entities} entities, the "
                "training rows to no others, or nearly so. Give rows of more entities, or leave "
                "`entities` out."
            )


def make_folds(
    y: np.ndarray,
    y_trusted: np.ndarray,
    seed: int,
    facts: tuple[RowFacts, RowFacts] | None = None,
    scoring: Scoring | None = None,
) -> Folds:
    """The folds, from class codes or targets, and what is known of the rows of both tables.

    Without `facts`, no two rows belong together.

    Raises:
        InputError: codes that are no codes; or no folds are possible.
    """
    kinds = y.dtype.kind + y_trusted.dtype.kind
    classes = set(kinds) <= set("iu") and min(y.min(), y_trusted.min()) >= 0
    if kinds != "ff" and not classes:
        raise InputError(
            "`y` and `y_trusted` must both be class codes 0, 1, ... or both floating targets, got "
            f"{y.dtype} and {y_trusted.dtype} from {min(y.min(), y_trusted.min())}; "
            "`sklearn.preprocessing.LabelEncoder` makes codes."
        )
    number = int(max(y.max(), y_trusted.max())) + 1 if classes else 1
    if facts is None:
        facts = RowFacts.distinct(len(y)), RowFacts.distinct(len(y_trusted), len(y))
    return Folds(y, y_trusted, number, *facts, seed, scoring)


Blocks = UInt64[np.ndarray, " rows"]


def _by_unit(
    losses: Float[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"],
    unit: Int[np.ndarray, " rows"],
) -> Float[np.ndarray, " units"]:
    """One loss per set of rows that belong together; their plain mean is the weighted mean of all."""
    units, code = np.unique(unit, return_inverse=True)
    return np.bincount(code, weight * losses) * (len(units) / weight.sum())


def _blocks(facts: RowFacts, trusted: RowFacts) -> tuple[np.ndarray, np.ndarray]:
    """Which rows belong together; rows whose features are common belong to themselves."""
    if facts.by_entity:
        return facts.block, trusted.block
    both = np.concatenate([facts.block, trusted.block])
    weight = np.concatenate([facts.weight, trusted.weight])
    names, code = np.unique(both, return_inverse=True)
    if len(names) < len(both):
        total = np.bincount(code, weight)
        common = total > max(COMMON_ROWS, COMMON * weight.sum())
        if len(np.unique(trusted.block[trusted.weight > 0])) < 2 * FOLDS:
            common[:] = True
        rows = np.flatnonzero(common[code])
        nth = pd.Series(code[rows]).groupby(code[rows]).cumcount().to_numpy()
        both[rows] = mix(both[rows] ^ mix(nth.astype(np.uint64), 1))
    return both[: len(facts)], both[len(facts) :]


def _deal(block: Blocks, y: np.ndarray, weight: np.ndarray, seed: int) -> Int[np.ndarray, " rows"]:
    """The half of each row: blocks dealt like cards, by class or in the order of their targets.

    Blocks of unequal weight go, the heaviest of a class first, to the half with the least weight of
    this class (of all, in a regression). Blocks without weight follow their hash.
    """
    names, first, code = np.unique(block, return_index=True, return_inverse=True)
    size, key = np.bincount(code, weight, len(names)), mix(names, seed)
    classes = y.dtype.kind in "iu"
    if classes:
        y = _by_rows(code, key, y, weight)
    label = y[first]
    if len(names) < len(y):
        label = _main_label(code, y, weight) if classes else np.bincount(code, weight * y)
        label = label if classes else label / np.maximum(size, 1e-300)
    half = (key % np.uint64(HALVES)).astype(int)
    order = np.lexsort((key, -size if classes else key, label))
    order = order[size[order] > 0]
    if len(order) and np.ptp(size[order]) == 0:
        half[order] = np.arange(len(order)) % HALVES
        return half[code]
    total, last = [0.0] * HALVES, None
    of_class = total
    for i, now, s in zip(order, label[order].tolist(), size[order].tolist(), strict=True):
        if classes and now != last:
            last, of_class = now, [0.0] * HALVES
        h = min(range(HALVES), key=lambda h: (of_class[h], total[h]))
        half[i] = h
        total[h] += s
        if classes:
            of_class[h] += s
    return half[code]


def _by_rows(
    code: Int[np.ndarray, " rows"],
    key: UInt64[np.ndarray, " blocks"],
    y: Int[np.ndarray, " rows"],
    weight: Float[np.ndarray, " rows"],
) -> Int[np.ndarray, " rows"]:
    """The classes, numbered in the order of the sums of their blocks' keys: whatever their names."""
    here = weight > 0
    blocks, classes = np.unique(np.stack([code[here], y[here]]), axis=1)
    total = np.zeros(y.max(initial=-1) + 1, np.uint64)
    np.add.at(total, classes, key[blocks])
    return np.argsort(np.argsort(total))[y]


def _main_label(code: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Int[np.ndarray, " blocks"]:
    """Of each block, the class with the most weight; of equals the first."""
    pairs, inverse = np.unique(np.stack([code, y]), axis=1, return_inverse=True)
    order = np.lexsort((pairs[1], -np.bincount(inverse.ravel(), weight), pairs[0]))
    _, first = np.unique(pairs[0][order], return_index=True)
    return pairs[1][order][first]


def _spans(
    time: np.ndarray, time_trusted: np.ndarray, weight: np.ndarray
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
    """The span of time of the trusted and of the training rows, from -EARLY to FOLDS - 1.

    Spans hold about equal weight of trusted rows, and equal times are in one span.

    Raises:
        InputError: the trusted rows have fewer times than there are spans.
    """
    number = EARLY + FOLDS
    times, code = np.unique(time_trusted, return_inverse=True)
    if len(times) < number:
        raise InputError(
            f"`times` needs trusted rows of at least {number} times, got {len(times)}: they are "
            f"judged on {FOLDS} spans of time by earlier rows."
        )
    size = np.bincount(code, weight)
    span = np.floor(number * (np.cumsum(size) - size / 2) / size.sum()).astype(int)
    if len(np.unique(span)) < number:
        span = np.arange(len(times)) * number // len(times)
    starts = times[np.searchsorted(span, np.arange(1, number))]
    return span[code] - EARLY, np.searchsorted(starts, time, side="right") - EARLY
