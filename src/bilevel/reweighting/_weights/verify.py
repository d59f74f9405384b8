"""Which rows to verify next, so that the share of wrong labels is known better."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, logsumexp

from .calibration import Draw, Evidence, bins_of, histogram, logit

HALF = 0.5  # of the interval's width: how far verified rows are to narrow it
MOST, LEAST = 500, 5  # rows that are asked for
TRUTHS = 64  # draws that are taken for the truth in turn


@dataclasses.dataclass(frozen=True)
class Verify:
    """The rows whose verification narrows the interval of the noise rate the most.

    Attributes:
        rows: their positions among the training rows, the most telling first.
        width: of the interval now.
        expected_width: of the interval for the rows that are left, once these are verified.
    """

    rows: Int[np.ndarray, " k"]
    width: float
    expected_width: float

    def __str__(self) -> str:
        return (
            f"Verify {len(self.rows)} rows to narrow the 95 % interval of the noise rate from "
            f"{100 * self.width:.1f} to about {100 * self.expected_width:.1f} percentage points."
        )


def rows_to_verify(
    draws: Sequence[Draw], evidence: Evidence, width: float, seed: int
) -> Verify | None:
    """The fewest rows that are expected to halve the interval, or 500 if these do not.

    Let `eta_b` be the log-odds that a label is wrong in bin b of the pool's log-odds, with mean and
    covariance C over the draws, `p_b` the mean of `sigmoid(eta_b)`, `h_b = p_b (1 - p_b)`, and `n_b`
    the rows there that are not yet chosen. The number of wrong labels has about the variance

        V = g' C g + sum_b n_b h_b,      g_b = N_b h_b,   N_b all rows of bin b

    A verified row of bin b is a Bernoulli trial with information `h_b` on `eta_b`, so it changes V by

        C <- C - C_b C_b' / (C_bb + 1 / h_b),   n_b <- n_b - 1

    and the next row is of the bin where V falls most (a Bayesian c-optimal design, as in Chaloner and
    Verdinelli (1995), "Bayesian experimental design: a review" [chaloner1995][]); within a bin, any.
    What the interval will be is then found without the approximation: draws take turns at being the
    truth, labels of the chosen rows are drawn from it, and all draws are weighted by their likelihood.

    None if no row is left, or nothing is uncertain.
    """
    eta = np.stack([draw.ratio + logit(draw.rate) for draw in draws])
    p = expit(eta)
    h = (p * (1 - p)).mean(axis=0)
    weight = evidence.weight
    total = histogram(evidence.training, weight)
    place = bins_of(evidence.training)
    most = min(MOST, int((weight > 0).sum()) // 2)
    if most < LEAST or width <= 0:
        return None
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(np.flatnonzero(weight > 0))
    order = order[np.argsort(place[order], kind="stable")]
    bins, first = np.unique(place[order], return_index=True)
    waiting = dict(zip(bins.tolist(), np.split(order, first[1:]), strict=True))
    left = np.bincount(place[weight > 0], minlength=len(total)).astype(float)
    each = np.divide(total, left, out=np.zeros_like(total), where=left > 0)  # weight of a row
    covariance = np.cov(eta, rowvar=False)
    g = total * h
    chosen: list[int] = []
    count = np.zeros(len(total))
    before = float(_spread(p, total, np.zeros((1, len(draws))))[0])
    expected, target = width, LEAST
    while len(chosen) < most:
        slope = covariance @ g
        gain = slope**2 / (np.diag(covariance) + 1 / np.maximum(h, 1e-12)) + each**2 * h
        b = int(np.argmax(np.where(left > 0, gain, -1.0)))
        column = covariance[:, b]
        covariance = covariance - np.outer(column, column) / (column[b] + 1 / max(h[b], 1e-12))
        left[b] -= 1
        chosen.append(int(waiting[b][int(left[b])]))
        count[b] += 1
        if len(chosen) == target or len(chosen) == most:
            expected = width * _after(p, total - each * count, count, rng) / max(before, 1e-12)
            if expected <= HALF * width:
                break
            target = max(target + 5, int(1.15 * target))
    return Verify(np.array(chosen), width, float(expected))


def _spread(
    p: Float[np.ndarray, "draws bins"],
    rows: Float[np.ndarray, " bins"],
    log_weight: Float[np.ndarray, "truths draws"],
) -> Float[np.ndarray, " truths"]:
    """The standard deviation of the share of wrong labels among these rows, draws being weighted."""
    weight = np.exp(log_weight - logsumexp(log_weight, axis=1, keepdims=True))
    share, within = p @ rows, (p * (1 - p)) @ rows
    centre = share.mean()
    away = share - centre  # so that the squares do not cancel
    mean = weight @ away
    variance = weight @ (away**2 + within) - mean**2
    return np.sqrt(np.maximum(variance, 0.0)) / max(rows.sum(), 1e-12)


def _after(
    p: Float[np.ndarray, "draws bins"],
    rows: Float[np.ndarray, " bins"],
    count: Float[np.ndarray, " bins"],
    rng: np.random.Generator,
) -> float:
    """The expected spread among the other rows, once `count` rows of each bin are verified."""
    some = np.flatnonzero(count)
    inside = np.clip(p[:, some], 1e-12, 1 - 1e-12)
    number = count[some].astype(int)
    truths = rng.choice(len(p), TRUTHS, replace=len(p) < TRUTHS)
    wrong = rng.binomial(number, inside[truths])
    log_weight = wrong @ np.log(inside).T + (number - wrong) @ np.log1p(-inside).T
    return float(_spread(p, rows, log_weight).mean())
