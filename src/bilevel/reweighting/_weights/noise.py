"""How many labels are wrong, and which rows to look at: estimates with 95 % intervals."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num
from scipy.special import expit

from .calibration import (
    CENTRES,
    DRAWS,
    MANY_PARTS,
    Calibration,
    Draw,
    Evidence,
    bins_of,
    choose_one,
    draw_rates,
    histogram,
    logit,
)
from .verify import Verify, rows_to_verify

CLASS_SHIFT, GROUP_SHIFT = 1.0, 0.3  # standard deviations of their log-likelihood ratios
SHIFTS = np.linspace(-2.25, 2.25, 7)  # of the grid, in standard deviations
LEAST_EXPECTED = 0.5  # wrong labels; where fewer are expected, no row is flagged
# The least ratio of the share of wrong labels that are listed to that of right ones. By judgement,
# when two tables had shown the need: where models cannot tell, most rows would be called suspect.
TELLS = 1.25


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A share, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (_percent(x) for x in (self.value, self.low, self.high))
        return f"{value} (95 % interval {low} to {high})"


@dataclasses.dataclass(frozen=True)
class Noise:
    """How many of the training labels are wrong, and how good the list of flagged rows is.

    Attributes:
        rate: the share of training rows whose label is wrong.
        flagged: how many rows are flagged, that is, have `keep == False`.
        precision: the share of the flagged rows whose label is wrong; None if no row is flagged.
        recall: the share of the rows with a wrong label that are flagged.
        by_class, by_group: a table with one line per given label (per group, where groups were given):
            `rows`, `flagged`, the noise rate `value` with `low` and `high`, and the `precision` of the
            flagged rows with `precision_low` and `precision_high` (NaN where no row is flagged).
        verified_pairs: how many trusted rows told the label that they had before they were verified;
            0 if the estimate rests on the models' disagreement with the labels alone.
        verify: which rows to verify so that the noise rate is known better; None if there are none.
    """

    rate: Estimate
    flagged: int
    precision: Estimate | None
    recall: Estimate
    by_class: pd.DataFrame
    by_group: pd.DataFrame | None
    verified_pairs: int
    verify: Verify | None = None

    def to_dict(self, ids: Sequence[Any] | None = None) -> dict[str, Any]:
        """As plain data: of the tables, a list of lines with the `name` of the class or group.

        What is NaN in the tables is None here.
        `ids`: what the training rows are called; by default, their positions.
        """
        found = dataclasses.asdict(self)
        if self.verify is not None:
            rows = self.verify.rows.tolist()
            named = rows if ids is None else [ids[i] for i in rows]
            found["verify"] |= {"rows": named, "sentence": str(self.verify)}
        for key in ("by_class", "by_group"):
            if found[key] is not None:
                plain = found[key].astype(object).where(found[key].notna(), None)
                lines = zip(found[key].index, plain.to_dict("records"), strict=True)
                found[key] = [{"name": str(name), **line} for name, line in lines]
        return found | {"sentence": str(self)}

    def named(self, classes: np.ndarray | None) -> "Noise":
        """The same with the labels that the class codes stand for."""
        if classes is None:
            return self
        codes = np.asarray(self.by_class.index)
        table = self.by_class.set_axis(np.asarray(classes)[codes], axis=0)
        return dataclasses.replace(self, by_class=table)

    def __str__(self) -> str:
        text = f"About {self.rate} of the labels are wrong. "
        if self.precision is None:
            few = self.rate.value * float(np.sum(self.by_class["rows"].to_numpy())) < LEAST_EXPECTED
            why = "" if few else ": the models cannot tell which labels are wrong"
            return f"{text}No row is flagged{why}."
        text += (
            f"{self.flagged} {'row is' if self.flagged == 1 else 'rows are'} flagged: about "
            f"{self.precision} of them are wrong, which is {self.recall} of all wrong labels."
        )
        return text


def how_many(
    evidence: Evidence,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    precision: float | None = None,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"], Noise]:
    """(the probability that each training label is wrong, the rows that are flagged, the estimates).

    Args:
        evidence: the log-odds of the training rows and of the trusted ones.
        labels, groups: by which the training rows are counted.
        precision: what `flag` is asked for.
        seed: of the draws from the posterior.
    """
    wrong, flagged, draws = suspects(evidence, precision=precision, seed=seed)
    return wrong, flagged, describe(draws, evidence, flagged, labels, groups, seed)


def suspects(
    evidence: Evidence, *, precision: float | None = None, seed: int = 0
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"], list[Draw]]:
    """(the probability that each training label is wrong, the rows that are flagged, the draws).

    The probability is the mean over the draws. The list with the greatest expected F1 is made of the
    median, so that a few draws in which most labels are wrong do not fill it. It is empty where it
    would be hardly better than rows at random.
    """
    draws = Calibration.fit(evidence).draws(seed)
    drawn = np.array([expit(draw.ratio + logit(draw.rate)) for draw in draws])
    wrong = np.interp(evidence.training, CENTRES, drawn.mean(axis=0))
    typical = np.interp(evidence.training, CENTRES, np.median(drawn, axis=0))
    flagged = flag(typical if precision is None else wrong, precision, evidence.weight)
    if precision is None and not _tells(drawn, evidence, flagged):
        flagged[:] = False
    return wrong, flagged, draws


def _tells(
    drawn: Float[np.ndarray, "draws bins"], evidence: Evidence, flagged: Bool[np.ndarray, " n"]
) -> bool:
    """Whether a list holds more of the wrong labels than of the right ones, by its likelihood ratio.

        E[hits / wrong labels] > 1.25 E[false alarms / right labels]

    over the draws.
    """
    s, weight = evidence.training, evidence.weight
    rows, listed = histogram(s, weight), histogram(s, weight * flagged)
    found = (drawn @ listed) / (drawn @ rows)
    alarms = ((1 - drawn) @ listed) / ((1 - drawn) @ rows)
    return bool(np.mean(found) > TELLS * np.mean(alarms))


def flag(
    wrong: Float[np.ndarray, " n"],
    precision: float | None = None,
    weight: Float[np.ndarray, " n"] | None = None,
) -> Bool[np.ndarray, " n"]:
    """The rows to look at, given the probability that each label is wrong.

    With `precision`, as many rows as leave the mean of their probabilities at least so large.
    Without, as many as maximise the expected F1, `2 sum_{flagged} p / (flagged + sum p)`: those with
    a probability above half of the greatest F1, which is at most 1/2 (Lipton, Elkan and Naryanaswamy
    (2014), "Optimal thresholding of classifiers to maximize F1 measure" [lipton2014][]). No row is
    flagged if not even half a wrong label is expected. A row counts as its `weight`.
    """
    order = np.argsort(-wrong, kind="stable")
    weight = np.ones(len(wrong)) if weight is None else weight
    expected = wrong @ weight
    sums, counts = np.cumsum((weight * wrong)[order]), np.cumsum(weight[order])
    if precision is not None:
        enough = np.flatnonzero(sums >= precision * counts)
        number = int(enough[-1]) + 1 if len(enough) else 0
    elif expected < LEAST_EXPECTED:
        number = 0
    else:
        number = most_f1(wrong[order], weight[order])
    flagged = np.zeros(len(wrong), bool)
    flagged[order[:number]] = True
    return flagged


def most_f1(wrong: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> int:
    """How many rows, of those in falling order of probability, have the greatest expected F1."""
    sums = np.cumsum(weight * wrong)
    return int(np.argmax(sums / (np.cumsum(weight) + sums[-1]))) + 1


def describe(
    draws: Sequence[Draw],
    evidence: Evidence,
    flagged: Bool[np.ndarray, " n"],
    labels: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
) -> Noise:
    """The estimates and their intervals, from draws of which labels are wrong.

    Given intercept and slope, each class and each group has a rate of its own, which is believed to
    be near that of all rows.

    Cost: one pass over the training rows; the draws are made of histograms of the log-odds.
    """
    rng = np.random.default_rng([seed, 1])
    s, weight = evidence.training, evidence.weight
    lists = _counts(s, flagged.astype(int), 2, weight)
    listed, total = weight[flagged].sum(), weight.sum()
    parts = [_Part.classes(evidence, labels, flagged)]
    parts += [] if groups is None else [_Part.groups(evidence, groups, flagged)]
    rates, hits, found = np.zeros(DRAWS), np.zeros(DRAWS), np.zeros(DRAWS)
    for d, draw in enumerate(draws):
        missed, hit = _binomial(rng, lists, expit(draw.ratio + logit(draw.rate))).sum(axis=1)
        rates[d], hits[d] = (missed + hit) / total, hit / (listed or 1.0)
        found[d] = hit / (missed + hit) if missed + hit else rng.random()
    tables = [part.table(draws, evidence.pairs, rng) for part in parts]
    rate = _estimate(rates)
    return Noise(
        rate=rate,
        flagged=int(flagged.sum()),
        precision=_estimate(hits) if listed else None,
        recall=_estimate(found),
        by_class=tables[0],
        by_group=None if groups is None else tables[1],
        verified_pairs=evidence.pairs or len(evidence.checked),
        verify=rows_to_verify(draws, evidence, rate.high - rate.low, seed),
    )


class _Part(NamedTuple):
    """The training rows by class, or by group, as histograms of their log-odds.

    Each part has a rate of its own, near that of all rows, and a shift of its own of the
    log-likelihood ratio: the models err more on some classes than on others.

    Attributes:
        names, codes: of the parts, and the part of each row.
        flagged: of each row.
        rows, listed: of the training rows, and of those that are flagged.
        right, wrong: of the trusted rows, as in `Evidence`; zero where their part is not known.
        spread: the prior's standard deviation of the shift.
    """

    names: np.ndarray
    codes: Int[np.ndarray, " n"]
    flagged: Bool[np.ndarray, " n"]
    rows: Num[np.ndarray, "parts bins"]
    listed: Num[np.ndarray, "parts bins"]
    right: Num[np.ndarray, "parts bins"]
    wrong: Num[np.ndarray, "parts bins"]
    spread: float

    @classmethod
    def classes(
        cls, evidence: Evidence, labels: Int[np.ndarray, " n"], flagged: Bool[np.ndarray, " n"]
    ) -> "_Part":
        names, codes = np.unique(labels, return_inverse=True)
        number = len(names)

        def of(s: np.ndarray, label: np.ndarray, weight: np.ndarray) -> np.ndarray:
            known = np.isin(label, names)
            code = np.searchsorted(names, label[known])
            return _coarse(_counts(s[known], code, number, weight[known]))

        right = of(evidence.right, evidence.right_label, evidence.right_weight)
        wrong = of(evidence.wrong, evidence.wrong_label, evidence.wrong_weight)
        counts = cls._of_training(evidence, codes, number, flagged)
        return cls(names, codes, flagged, *counts, right, wrong, CLASS_SHIFT)

    @classmethod
    def groups(
        cls, evidence: Evidence, groups: np.ndarray, flagged: Bool[np.ndarray, " n"]
    ) -> "_Part":
        names, codes = np.unique(groups, return_inverse=True)
        rows, listed = cls._of_training(evidence, codes, len(names), flagged)
        none = 0.0 * rows
        return cls(names, codes, flagged, rows, listed, none, none, GROUP_SHIFT)

    @staticmethod
    def _of_training(
        evidence: Evidence, codes: np.ndarray, number: int, flagged: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Histograms of all training rows, and of the flagged ones."""
        s, weight = evidence.training, evidence.weight
        return (
            _coarse(_counts(s, codes, number, weight)),
            _coarse(_counts(s, codes, number, weight * flagged)),
        )

    def table(self, draws: Sequence[Draw], pairs: int, rng: np.random.Generator) -> pd.DataFrame:
        """One line per part: rows, flagged rows, noise rate and precision with their intervals."""
        number = len(self.names)
        draws = draws[:: max(2, min(10, number // MANY_PARTS))]  # of many parts fewer
        hits, all_wrong = np.stack([self._draw(draw, pairs, rng) for draw in draws], axis=1)
        columns: dict[str, np.ndarray] = {
            "rows": np.bincount(self.codes, minlength=number),
            "flagged": np.bincount(self.codes[self.flagged], minlength=number),
        }
        names = ("value", "low", "high"), ("precision", "precision_low", "precision_high")
        for keys, wrong, rows in zip(
            names, (all_wrong, hits), (self.rows, self.listed), strict=True
        ):
            total = rows.sum(axis=1)
            share = np.divide(wrong, total, out=np.full(wrong.shape, np.nan), where=total > 0)
            columns |= dict(zip(keys, _mean_and_interval(share), strict=True))
        return pd.DataFrame(columns, self.names)

    def _draw(
        self, draw: Draw, pairs: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "2 parts"]:
        """How many labels are wrong in each part, among the flagged rows and among all."""
        at_bins = draw.ratio[1::3]
        score = at_bins + (logit(draw.rate) if pairs else 0.0) + self.spread * SHIFTS[:, None]
        log_p = -(np.logaddexp(0, score) @ self.right.T + np.logaddexp(0, -score) @ self.wrong.T)
        score = score[choose_one(log_p - SHIFTS[:, None] ** 2 / 2, rng)]
        if pairs:  # the sample is like the training rows: the rate is near what it predicts
            near = np.sum(self.rows * expit(score), axis=1) / np.maximum(
                self.rows.sum(axis=1), 1e-9
            )
            near = np.clip(near, 1e-9, 1 - 1e-9)
            offset = logit(near)
        else:  # a sample in which the part has this share of wrong labels
            offset = np.log((self.wrong.sum(axis=1) + 0.5) / (self.right.sum(axis=1) + 0.5))
            near = expit(logit(draw.rate) + offset)
        ratio = score - offset[:, None]
        rate = draw_rates(ratio, self.rows, rng, near)
        p = expit(ratio + logit(rate)[:, None])
        hits = _binomial(rng, self.listed, p).sum(axis=1)
        return np.stack([hits, hits + _binomial(rng, self.rows - self.listed, p).sum(axis=1)])


def _counts(
    s: Float[np.ndarray, " rows"],
    codes: Int[np.ndarray, " rows"],
    parts: int,
    weight: Float[np.ndarray, " rows"],
) -> Float[np.ndarray, "parts bins"]:
    """A histogram per part."""
    bins = len(CENTRES)
    place = codes * bins + bins_of(s)
    return np.bincount(place, weight, parts * bins).reshape(parts, bins).astype(float)


def _coarse(fine: Num[np.ndarray, "parts bins"]) -> np.ndarray:
    """Each three bins are one."""
    return fine.reshape(len(fine), -1, 3).sum(axis=2)


def _binomial(rng: np.random.Generator, count: np.ndarray, p: np.ndarray) -> np.ndarray:
    """How many of `count` rows are drawn; counts that are no integers are scaled afterwards."""
    whole = np.rint(count)
    scale = np.divide(count, whole, out=np.ones(count.shape), where=whole > 0)
    return scale * rng.binomial(whole.astype(int), p)


def _estimate(draws: Float[np.ndarray, " draws"]) -> Estimate:
    return Estimate(*(float(x) for x in _mean_and_interval(draws)))


def _mean_and_interval(draws: Float[np.ndarray, "draws ..."]) -> tuple[Any, Any, Any]:
    """(mean, low, high), numbers or arrays: the interval has the mean, which may lie beyond 95 %."""
    mean, (low, high) = draws.mean(axis=0), np.quantile(draws, [0.025, 0.975], axis=0)
    return mean, np.minimum(low, mean), np.maximum(high, mean)


def _percent(x: float) -> str:
    return f"{100 * x:.1f} %" if x < 0.1 else f"{100 * x:.0f} %"
