"""Weights that are not of single labels: of groups, and of where trusted rows lie."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from .folds import FOLDS, JUDGES, Folds

STEEPEST = 4.0  # log density ratios are clipped here


def mean_by_group(
    right: Float[np.ndarray, " n"], groups: np.ndarray, counts: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The share of right labels in each row's group, with one row's worth of the overall share."""
    _, codes = np.unique(groups, return_inverse=True)
    mean = np.average(right, weights=counts)
    share = (np.bincount(codes, counts * right) + mean) / (np.bincount(codes, counts) + 1)
    return share[codes]


def at_effective_size(
    weights: Float[np.ndarray, "choices n"], counts: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "choices n"]:
    """Scaled to sum to the effective sample size, for each choice; a row counts as `counts`."""
    return weights * ((weights @ counts) / (weights**2 @ counts))[:, None]


class DensityRatio(NamedTuple):
    """The density of the trusted over that of the training rows, as a function of scaled numbers.

    Attributes:
        classifier: fitted to tell one from the other, where both sides weigh the same.
    """

    classifier: LogisticRegression

    @classmethod
    def fit(
        cls, X: np.ndarray, X_trusted: np.ndarray, weight: np.ndarray, weight_trusted: np.ndarray
    ) -> "DensityRatio":
        """From the rows of both tables, each of which counts as its weight."""
        domain = np.repeat([0, 1], [len(X), len(X_trusted)])
        share = weight_trusted.sum() / weight.sum()
        classifier = LogisticRegression(tol=1e-2)
        both = np.concatenate([X, X_trusted])
        weights = np.concatenate([share * weight, weight_trusted])
        return cls(classifier.fit(both, domain, sample_weight=weights))

    def logarithm(self, X: np.ndarray) -> Float[np.ndarray, " rows"]:
        """Of the ratio, not clipped."""
        return self.classifier.decision_function(X)

    def __call__(self, X: np.ndarray) -> Float[np.ndarray, " rows"]:
        """The ratio, between exp(-4) and exp(4)."""
        return np.exp(np.clip(self.logarithm(X), -STEEPEST, STEEPEST))


def density_ratio(
    folds: Folds, X: np.ndarray, X_trusted: np.ndarray
) -> Float[np.ndarray, "choices n"] | None:
    """The density of the trusted over that of the training rows, if they differ.

    From a logistic classifier that tells one from the other, out of fold. They differ if it ranks
    trusted rows of the fold that it has not seen above training rows, by three standard errors (of
    the area under the curve of a coin).
    """
    ratios, areas = np.zeros((JUDGES, folds.n)), []
    sub, meets = folds.sub, folds.meets_trusted
    for k in range(JUDGES):
        mine = folds.weight * folds.beside[k]
        theirs = folds.weight_trusted * folds.others[k]
        held_out = np.zeros(folds.m)
        for p in range(FOLDS):
            left_out = meets & (folds.part_trusted == p)
            kept = (mine * (folds.part != p))[sub], theirs * ~left_out
            fitted = DensityRatio.fit(X[sub], X_trusted, *kept)
            rows = np.flatnonzero(folds.part == p)
            if len(rows):
                ratios[k, rows] = fitted.logarithm(X[rows])
            held_out += fitted.logarithm(X_trusted) / FOLDS
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
