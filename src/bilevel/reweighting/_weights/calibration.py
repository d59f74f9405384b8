"""How sure the pool may be that a label is wrong, by what the trusted rows say."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy.optimize import minimize
from scipy.special import betaln, expit, logsumexp

DRAWS = 400  # from the posterior
SLOPE_SPREAD = 0.5  # the prior's standard deviation of the slope, around 1
LOWEST, WIDTH = -16.0, 0.1  # of the bins of the log-odds, where a histogram is enough
CENTRES = LOWEST + WIDTH * (np.arange(300) + 0.5)
RATES = (np.arange(80) + 0.5) / 80  # square roots of the noise rates on the grid
LIKE_ALL = 20.0  # rows' worth of belief that a class or group has the rate of all rows
MANY_PARTS = 200  # classes or groups that are drawn at a time
MAX_FLIPS = 20  # simulated wrong labels per trusted row
NEGLIGIBLE = 1e-7  # the probability of a point of the grid that is left out
SIDES = np.linspace(-3.5, 3.5, 15)  # of the grid, in standard deviations


class Evidence(NamedTuple):
    """What is known of the log-odds with which the pool calls labels wrong.

    Attributes:
        training, weight: of the training rows, and how much each counts.
        right, right_weight: of trusted rows, with a label that is right.
        wrong, wrong_weight: with a label that is wrong: simulated (those of one trusted row weigh as
            much as it does), or seen.
        right_label, wrong_label: these labels.
        pairs: how many rows `right` and `wrong` are, if they are a sample of the labels as they were
            given; 0 if the wrong ones are simulated.
        checked, checked_wrong, checked_weight: where they are simulated, the log-odds of the labels
            that some trusted rows had before they were verified, and whether these were wrong.
    """

    training: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    right: Float[np.ndarray, " a"]
    right_weight: Float[np.ndarray, " a"]
    wrong: Float[np.ndarray, " b"]
    wrong_weight: Float[np.ndarray, " b"]
    right_label: Int[np.ndarray, " a"]
    wrong_label: Int[np.ndarray, " b"]
    pairs: int
    checked: Float[np.ndarray, " c"] = np.zeros(0)
    checked_wrong: Bool[np.ndarray, " c"] = np.zeros(0, bool)
    checked_weight: Float[np.ndarray, " c"] = np.zeros(0)


def log_odds(
    p: Float[np.ndarray, "rows classes"],
    noise: Float[np.ndarray, "classes classes"],
    y: Int[np.ndarray, " rows"],
) -> Float[np.ndarray, " rows"]:
    """Of a wrong label: `log sum_{c != y} p(c | x) T[c, y] - log p(y | x) T[y, y]`."""
    joint = p * noise[:, y].T
    rows = np.arange(len(y))
    right = joint[rows, y].copy()
    joint[rows, y] = 0.0
    tiny = np.finfo(float).tiny
    return np.log(np.maximum(joint.sum(axis=1), tiny)) - np.log(np.maximum(right, tiny))


def simulated(
    p: Float[np.ndarray, "m classes"],
    noise: Float[np.ndarray, "classes classes"],
    believed: Float[np.ndarray, "classes classes"],
    y: Int[np.ndarray, " m"],
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Wrong labels that T would have given to trusted rows: log-odds by `believed`, weights, labels.

    Of each row the most likely wrong labels, at most 20; their weights sum to 1.
    """
    wrong = noise[y]  # a copy
    wrong[np.arange(len(y)), y] = 0.0
    some = np.argsort(-wrong, axis=1, kind="stable")[:, : min(MAX_FLIPS, wrong.shape[1] - 1)]
    weight = np.take_along_axis(wrong, some, axis=1)
    weight /= weight.sum(axis=1, keepdims=True)
    odds = [log_odds(p, believed, some[:, k]) for k in range(some.shape[1])]
    return np.stack(odds, axis=1).ravel(), weight.ravel(), some.ravel()


class Draw(NamedTuple):
    """The rate, and log-likelihood ratios of wrong against right at `CENTRES`."""

    rate: float
    ratio: Float[np.ndarray, " bins"]


class Calibration(NamedTuple):
    """The posterior of intercept and slope, and what it makes of the training rows.

        P(wrong | s) = sigmoid(intercept + slope s + log rate / (1 - rate))

    with `s` the log-odds of the pool. Intercept and slope are those of a logistic regression of wrong
    against right labels on the trusted rows, where the two are equally frequent in sum. The wrong
    ones are simulated: what the noise matrix would have made of the labels. A trusted row is judged
    by models that have not seen it, so their own errors on clean labels are in the sample. Then the
    rate of the training rows is that of a mixture of the two, with the likelihood

        sum_i log(1 - rate + rate exp(intercept + slope s_i))

    as Saerens, Latinne and Decaestecker (2002), "Adjusting the outputs of a classifier to new a priori
    probabilities: a simple procedure" [saerens2002][], found shares of classes by calibrated
    probabilities (Alexandari, Kundaje and Shrikumar (2020), "Maximum likelihood with bias-corrected
    calibration is hard-to-beat at label shift adaptation" [alexandari2020][]). If it is known what
    the labels were before they were verified, these pairs are the sample, as frequent as they come,
    and there is no rate to find: `P(wrong | s) = sigmoid(intercept + slope s)`.

    The posterior is exact on a grid: the prior of the intercept is Jeffreys' (the square root of the
    information), that of the slope normal around 1, that of the square root of the rate uniform.

    Attributes:
        intercepts, slopes, probabilities: the grid; probabilities sum to 1.
        evidence: what it was made from.
    """

    intercepts: Float[np.ndarray, " grid"]
    slopes: Float[np.ndarray, " grid"]
    probabilities: Float[np.ndarray, " grid"]
    evidence: Evidence

    @classmethod
    def fit(cls, evidence: Evidence) -> "Calibration":
        """From the trusted rows."""
        right = histogram(evidence.right, evidence.right_weight)
        wrong = histogram(evidence.wrong, evidence.wrong_weight)
        count = right + wrong

        def value(intercept: np.ndarray, slope: np.ndarray) -> Float[np.ndarray, " grid"]:
            score = intercept[:, None] + slope[:, None] * CENTRES
            p = expit(score)
            information = np.maximum((p * (1 - p)) @ count, 1e-300)
            fit = np.logaddexp(0, score) @ right + np.logaddexp(0, -score) @ wrong
            return np.log(information) / 2 - ((slope - 1) / SLOPE_SPREAD) ** 2 / 2 - fit

        def loss(x: np.ndarray) -> float:
            return -float(value(x[:1], np.exp(x[1:]))[0])

        share = (wrong.sum() + 0.5) / (count.sum() + 1.0)
        start = np.array([logit(share), 0.0])
        simplex = start + np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.5]])
        options = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-6}
        best = minimize(loss, start, method="Nelder-Mead", options=options).x
        root = _spread(loss, best)
        points = best + np.stack(np.meshgrid(SIDES, SIDES), axis=-1).reshape(-1, 2) @ root.T
        intercepts, slopes = points[:, 0], np.exp(points[:, 1])
        log_p = value(intercepts, slopes) + points[:, 1]  # the slope's grid is one of its logarithm
        return cls(intercepts, slopes, np.exp(log_p - logsumexp(log_p)), evidence)

    def draws(self, seed: int) -> list[Draw]:
        """`DRAWS` of them."""
        rng = np.random.default_rng(seed)
        count = histogram(self.evidence.training, self.evidence.weight)
        if self.evidence.pairs:
            drawn = []
            for i in rng.choice(len(self.probabilities), DRAWS, p=self.probabilities):
                score = self.intercepts[i] + self.slopes[i] * CENTRES
                rate = float(np.clip(expit(score) @ count / count.sum(), 1e-9, 1 - 1e-9))
                drawn.append(Draw(rate, score - logit(rate)))
            return drawn
        some = np.flatnonzero(self.probabilities > NEGLIGIBLE)
        ratio = self.intercepts[some, None] + self.slopes[some, None] * CENTRES
        log_p = _mixtures(ratio, count) + np.log(self.probabilities[some, None])
        log_p += self._of_checked(ratio)
        p = np.exp(log_p - log_p.max()).ravel()
        chosen = rng.choice(len(p), DRAWS, p=p / p.sum())
        grid, roots = chosen // len(RATES), RATES[chosen % len(RATES)]
        rates = (roots + rng.uniform(-0.5, 0.5, DRAWS) / len(RATES)) ** 2  # anywhere in the cell
        return [Draw(float(rate), ratio[g]) for g, rate in zip(grid, rates, strict=True)]

    def _of_checked(self, ratio: Float[np.ndarray, "grid bins"]) -> Float[np.ndarray, "grid rates"]:
        """The log-likelihood of the verified pairs, for each of `RATES`."""
        known = self.evidence
        bad, each = known.checked_wrong, known.checked_weight
        right = histogram(known.checked[~bad], each[~bad])
        wrong = histogram(known.checked[bad], each[bad])
        at = np.flatnonzero(right + wrong)
        score = ratio[:, None, at] + logit(RATES**2)[:, None]
        return -(np.logaddexp(0, score) @ right[at] + np.logaddexp(0, -score) @ wrong[at])


def _mixtures(
    ratio: Float[np.ndarray, "grid bins"], count: Float[np.ndarray, " bins"]
) -> Float[np.ndarray, "grid rates"]:
    """Of each point of the grid, the log-probability of each of `RATES` given the training rows."""
    at = np.flatnonzero(count)
    slopes, rates = np.expm1(np.clip(ratio[:, at], -40, 40)), RATES**2
    log_p = np.stack([np.log1p(rate * slopes) @ count[at] for rate in rates], axis=1)
    return log_p - np.asarray(logsumexp(log_p, axis=1))[:, None]


def draw_rates(
    ratio: Float[np.ndarray, "parts bins"],
    count: Num[np.ndarray, "parts bins"],
    rng: np.random.Generator,
    near: Float[np.ndarray, " parts"] | None = None,
) -> Float[np.ndarray, " parts"]:
    """A rate of each part from its posterior; `near`: what the rates are believed to be."""
    roots = RATES if near is None else RATES[::2]
    rates = roots**2
    slopes = np.expm1(np.clip(ratio, -40, 40))
    log_p = np.empty((len(rates), len(count)))
    for one in np.array_split(np.arange(len(count)), 1 + len(count) // MANY_PARTS):
        terms = np.log1p(rates[:, None, None] * slopes[one])
        log_p[:, one] = np.einsum("rpb,pb->rp", terms, count[one])
    if near is not None:
        a, b = LIKE_ALL * near + 0.5, LIKE_ALL * (1 - near) + 0.5
        beta = (a - 1) * np.log(rates)[:, None] + (b - 1) * np.log1p(-rates)[:, None] - betaln(a, b)
        log_p += beta + np.log(roots)[:, None]  # the grid is one of the square roots
    return rates[choose_one(log_p, rng)]


def choose_one(
    log_p: Float[np.ndarray, "values parts"], rng: np.random.Generator
) -> Int[np.ndarray, " parts"]:
    """For each part one of the values."""
    cumulative = np.cumsum(np.exp(log_p - log_p.max(axis=0)), axis=0)
    return (cumulative < rng.random(log_p.shape[1]) * cumulative[-1]).sum(axis=0)


def _spread(loss: Callable[[np.ndarray], float], best: np.ndarray) -> Float[np.ndarray, "2 2"]:
    """A root of the inverse of the second derivatives, at most a standard deviation of 4."""
    h = 1e-2
    steps = h * np.eye(2)
    second = [
        [
            (loss(best + a + b) - loss(best + a - b) - loss(best - a + b) + loss(best - a - b))
            / (4 * h**2)
            for b in steps
        ]
        for a in steps
    ]
    values, vectors = np.linalg.eigh(np.array(second))
    return vectors / np.sqrt(np.maximum(values, 1 / 16))


def logit(p: Float[np.ndarray, "..."] | float) -> Any:
    return np.log(p) - np.log1p(-p)


def bins_of(s: Float[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    place = np.floor((s - LOWEST) / WIDTH)
    return np.clip(place, 0, len(CENTRES) - 1).astype(int)


def histogram(
    s: Float[np.ndarray, " rows"], weight: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " bins"]:
    return np.bincount(bins_of(s), weight, len(CENTRES)).astype(float)
