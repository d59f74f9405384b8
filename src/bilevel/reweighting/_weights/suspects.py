"""Which labels a pool suspects, calibrated on the trusted rows."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from .annotators import AnnotatedPool
from .calibration import Draw, Evidence
from .folds import FOLDS, Folds
from .label_models import Member
from .noise import Noise, describe, flag, suspects
from .pool import ClassPool, NumberPool
from .scorer import Doubt, log_odds_of_wrong

Pool = ClassPool | NumberPool | AnnotatedPool
NO_FOLD = FOLDS  # in place of a part: the pool of all trusted rows judges


class Suspects(NamedTuple):
    """What a pool makes of the training labels, calibrated on the trusted rows of choice k.

    Attributes:
        wrong: the probability that each label is wrong; of rows that the choice has not, the mean.
        keep: False for the rows to look at.
        known: positions of the rows that are judged.
        evidence, draws: from which it came; None where there is no noise matrix.
    """

    wrong: Float[np.ndarray, " n"]
    keep: Bool[np.ndarray, " n"]
    known: Int[np.ndarray, " judged"]
    evidence: Evidence | None = None
    draws: list[Draw] | None = None

    def doubt(self, quality: Float[np.ndarray, " n"]) -> Doubt:
        """How the log-odds of the pool become these probabilities; `quality` is the pool's."""
        rows = self.known
        return Doubt.of(log_odds_of_wrong(quality[rows]), self.wrong[rows], self.keep[rows])


def judge_labels(
    folds: Folds,
    pool: Pool,
    members: list[Member],
    verified: np.ndarray | None,
    precision: float | None,
    seed: int,
    k: int,
) -> Suspects:
    """Which labels are likely to be wrong, among the rows of choice k."""
    known, rows = np.flatnonzero(folds.before[k]), np.flatnonzero(folds.known(k))
    y, weight = folds.y[known], folds.weight[known]
    wrong, keep = np.zeros(folds.n), np.ones(folds.n, bool)
    if not weight.any():
        return Suspects(wrong, keep, known)
    evidence, draws = None, None
    if not isinstance(pool, ClassPool):
        found = 1 - pool.right([member.train[k] for member in members], folds.y)[known]
        flagged = found > 0.5 if precision is None else flag(found, precision, weight)
    else:
        evidence = pool.evidence(
            [member.trusted[k][rows] for member in members],
            folds.y_trusted[rows],
            [member.train[k][known] for member in members],
            y,
            None if verified is None else verified[rows],
            fold=folds.fold[rows],
            part=np.full(len(known), NO_FOLD) if folds.forward else folds.part[known],
            weight_trusted=folds.weight_trusted[rows],
            weight=weight,
        )
        found, flagged, draws = suspects(evidence, precision=precision, seed=seed)
    wrong[:] = np.average(found, weights=weight)
    wrong[known], keep[known] = found, ~flagged
    return Suspects(wrong, keep, known, evidence, draws)


def noise_of(folds: Folds, found: Suspects, groups: np.ndarray | None, seed: int) -> Noise | None:
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
