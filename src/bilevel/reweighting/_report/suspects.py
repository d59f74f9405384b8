"""What the report says of each suspect row: what else it could be, of what kind, what it is like.

A row is suspect if it is flagged (`keep` is false), if its label is wrong with a probability of 1/3 or
more, or if it is among the 200 of lowest label quality.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

from .._audit.duplicates import as_frame, encode
from .._audit.view import as_matrix
from .._weights.coded_labels import fit_weighted, predictions, take_rows
from .._weights.fits import independent
from . import refits
from .refits import Fit, Rows

NUM_WORST, NUM_FOLDS = 200, 5
SURE, DOUBT = 2 / 3, 1 / 3  # probabilities that a label is wrong
CELLS = 20_000_000  # of the rows whose distances are looked at
TYPICAL = 0.9  # of the trusted rows of a class, that are as near to another one as a typical row
USUAL = 0.99  # of the trusted rows, that are as near to another one as a row that is not odd
KINDS = {
    "wrong label": "its label is at least twice as likely wrong as right",
    "ambiguous": "its label is about as likely right as wrong: from half to twice as likely",
    "odd row": "its label is at least twice as likely right as wrong, but the row is farther from "
    "every trusted row than 99% of these are from their nearest one",
    "label fits": "its label is at least twice as likely right as wrong",
}


class Suspects(NamedTuple):
    """The suspect rows, in the order of their label quality.

    Attributes:
        rows: their places among the training rows.
        suggested: the label that a model says that has not seen the row.
        probability: what it gives that label; NaN where it gives none.
        kind: of each, one of `KINDS`, by the calibrated probability `wrong` that its label is wrong;
            None in a regression and for free weights.
        nearest: of each row, the place of the nearest trusted row of the given, and of the suggested
            class; -1 where there is none.
        distance: how far these are, in units of the usual distance between two trusted rows.
        typical: whether the row is as near to one of the class as nine tenths of the trusted rows of
            the class are to their nearest one; False in a regression.
    """

    rows: Int[np.ndarray, " k"]
    suggested: np.ndarray
    probability: Float[np.ndarray, " k"]
    kind: np.ndarray | None
    nearest: Int[np.ndarray, "k 2"]
    distance: Float[np.ndarray, "k 2"]
    typical: Bool[np.ndarray, "k 2"]


def judge_suspects(rows: Rows, seed: int) -> Suspects:
    """Deal the suspect rows into five folds, and predict each by the others.

    Each fold is predicted by the final estimator, fitted on all other training rows with their weights
    (of more than 20000, on a random 20000) and on the trusted rows.
    """
    n = len(rows.y)
    order = np.argsort(rows.quality, kind="stable")
    wrong = None if rows.result.wrong is None else np.asarray(rows.result.wrong)
    marked = ~np.asarray(rows.result.keep)
    if wrong is not None and not rows.regression:
        marked |= wrong >= DOUBT
    listed = np.union1d(order[:NUM_WORST], np.flatnonzero(marked))
    suspect = order[np.isin(order, listed)][: max(refits.MAX_ROWS, NUM_WORST)]
    rng = np.random.default_rng(seed)
    num_folds = min(NUM_FOLDS, len(suspect))
    classes = rows.classes
    suggested = np.empty(len(suspect), dtype=object)
    width = 1 if classes is None else len(classes)
    p = np.full((len(suspect), width), np.nan)
    folds = [np.arange(fold, len(suspect), num_folds) for fold in range(num_folds)]

    def without(fold: np.ndarray) -> tuple[Any, ...]:
        others = np.setdiff1d(np.arange(n), suspect[fold])
        if len(others) > refits.MAX_ROWS:
            others = np.sort(rng.choice(others, refits.MAX_ROWS, replace=False))
        return rows.final(others), take_rows(rows.X, suspect[fold]), classes

    for fold, said in zip(folds, independent(_predict, map(without, folds)), strict=True):
        suggested[fold], p[fold] = said
    nearest, distance, odd, typical = _likenesses(rows, suspect, suggested)
    kind = None
    if classes is not None and wrong is not None:
        w = wrong[suspect]
        kind = np.where(odd, "odd row", "label fits").astype(object)
        kind[w >= DOUBT] = "ambiguous"
        kind[w >= SURE] = "wrong label"
    sure = np.full(len(suspect), np.nan) if classes is None else p.max(axis=1)
    return Suspects(suspect, suggested, sure, kind, nearest, distance, typical)


def _predict(fit: Fit, X: Any, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | float]:
    """(what a fit predicts, probabilities of all classes, or NaN if it gives none)."""
    model = fit_weighted(*fit)
    predicted = predictions(model, X)
    if classes is None or not hasattr(model, "predict_proba"):
        return predicted, np.nan
    p = np.zeros((len(predicted), len(classes)))
    p[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(X)
    return predicted, p


def _likenesses(
    rows: Rows, suspect: np.ndarray, suggested: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " k"], Bool[np.ndarray, "k 2"]]:
    """(nearest trusted rows of the given and of the suggested class, distances, odd, typical rows)."""
    k, m = len(suspect), len(rows.y_trusted)
    nearest, distance = np.full((k, 2), -1), np.full((k, 2), np.nan)
    typical = np.zeros((k, 2), bool)
    fit = CELLS // max(int(np.shape(rows.X)[1]), 1) - m  # rows, the worst first
    if fit < k:
        fit = max(fit, 0)
        found = _likenesses(rows, suspect[:fit], suggested[:fit]) if fit else None
        odd = np.zeros(k, bool)
        if found is not None:
            nearest[:fit], distance[:fit], odd[:fit], typical[:fit] = found
        return nearest, distance, odd, typical
    frames = [as_frame(take_rows(rows.X, suspect)), as_frame(rows.X_trusted)]
    frames[0].columns = frames[1].columns
    a, b = as_matrix(encode(*frames), np.random.default_rng(0))
    if m < 2 or a.shape[1] == 0:
        return nearest, distance, np.zeros(k, bool), typical
    among = cdist(b, b)
    np.fill_diagonal(among, np.inf)
    own = among.min(axis=1)
    usual = float(np.median(own)) or 1.0
    odd = np.zeros(k, bool)
    labels = rows.y_trusted
    near = {} if rows.regression else _own_distances(among, labels)
    for start in range(0, k, 1000):
        part = slice(start, start + 1000)
        far = cdist(a[part], b)
        odd[part] = far.min(axis=1) > np.quantile(own, USUAL)
        if rows.regression:
            nearest[part, 0], distance[part, 0] = far.argmin(axis=1), far.min(axis=1) / usual
            continue
        for side, wanted in enumerate((rows.y[suspect][part], suggested[part])):
            masked = np.where(labels[None] == np.asarray(wanted)[:, None], far, np.inf)
            best = masked.argmin(axis=1)
            found = np.isfinite(masked[np.arange(len(best)), best])
            nearest[part, side] = np.where(found, best, -1)
            least = masked[np.arange(len(best)), best]
            distance[part, side] = np.where(found, least / usual, np.nan)
            typical[part, side] = least <= [near.get(label, -1.0) for label in wanted]
    return nearest, distance, odd, typical


def _own_distances(among: Float[np.ndarray, "m m"], labels: np.ndarray) -> dict[object, float]:
    """By class of three trusted rows or more: how near nine tenths of them are to another one."""
    near = {}
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        if len(inside) >= 3:
            own = among[np.ix_(inside, inside)].min(axis=1)
            near[label] = float(np.quantile(own, TYPICAL))
    return near
