"""What the report says of each suspect row: what else it could be, of what kind, what it is like.

A row is suspect if it is flagged (`keep` is false), or among the 200 of lowest label quality.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist
from sklearn.isotonic import IsotonicRegression

from .._audit.duplicates import as_frame, encode
from .._audit.view import as_matrix
from .._weights.baselines import take_rows
from . import refits
from .refits import Rows

NUM_WORST, NUM_FOLDS = 200, 5
PLAUSIBLE = 0.2  # the least share of trusted rows that are of a class
CELLS = 20_000_000  # of the rows whose distances are looked at
USUAL = 0.99  # of the trusted rows, that are as near to another one as a row that is not odd
KINDS = {
    "wrong label": "another class is plausible, and the given one is not",
    "ambiguous": "the given class is plausible, and so is another",
    "odd row": "it is farther from every trusted row than 99% of these are from their nearest one",
    "label fits": "no class but the given one is plausible: the row is rare, or was listed in vain",
}


class Suspects(NamedTuple):
    """The suspect rows, in the order of their label quality.

    Attributes:
        rows: their places among the training rows.
        suggested: the label that a model says that has not seen the row.
        probability: what it gives that label; NaN where it gives none.
        kind: of each, one of `KINDS`; None in a regression or without probabilities.
        nearest: of each row, the place of the nearest trusted row of the given, and of the suggested
            class; -1 where there is none.
        distance: how far these are, in units of the usual distance between two trusted rows.
    """

    rows: Int[np.ndarray, " k"]
    suggested: np.ndarray
    probability: Float[np.ndarray, " k"]
    kind: np.ndarray | None
    nearest: Int[np.ndarray, "k 2"]
    distance: Float[np.ndarray, "k 2"]


def judge_suspects(rows: Rows, seed: int) -> Suspects:
    """Deal the suspect and the trusted rows into five folds, and predict each by the others.

    Each fold is predicted by the final estimator, fitted on all other training rows with their weights
    (of more than 20000, on a random 20000) and on the trusted rows of the other folds. Which
    share of the trusted rows that got a probability p for some class are of that class is the isotonic
    regression of being of the class on p, over all trusted rows and classes. A class is plausible for
    a row if that share is 0.2 or more at the row's p; the kinds are in `KINDS`.
    """
    n, m = len(rows.y), len(rows.y_trusted)
    order = np.argsort(rows.quality, kind="stable")
    listed = np.union1d(order[:NUM_WORST], np.flatnonzero(~np.asarray(rows.result.keep)))
    suspect = order[np.isin(order, listed)][: max(refits.MAX_ROWS, NUM_WORST)]
    rng = np.random.default_rng(seed)
    num_folds = min(NUM_FOLDS, len(suspect))
    classes = None if rows.regression else np.unique(np.concatenate([rows.y, rows.y_trusted]))
    suggested = np.empty(len(suspect), dtype=object)
    width = 1 if classes is None else len(classes)
    p, p_trusted = np.full((len(suspect), width), np.nan), np.full((m, width), np.nan)
    place = rng.permutation(m) % num_folds
    for fold in range(num_folds):
        mine = np.arange(fold, len(suspect), num_folds)
        others = np.setdiff1d(np.arange(n), suspect[mine])
        if len(others) > refits.MAX_ROWS:
            others = np.sort(rng.choice(others, refits.MAX_ROWS, replace=False))
        rest = np.flatnonzero(place != fold)
        model = rows.final_model(others, rest if len(rest) and len(rest) < m else None)
        part = take_rows(rows.X, suspect[mine])
        suggested[mine] = np.asarray(model.predict(part))
        if classes is not None and hasattr(model, "predict_proba"):
            known = np.searchsorted(classes, model.classes_)
            p[mine] = 0.0
            p[mine[:, None], known] = model.predict_proba(part)
            out = np.flatnonzero(place == fold)
            if len(out):
                p_trusted[out] = 0.0
                trusted = take_rows(rows.X_trusted, out)
                p_trusted[out[:, None], known] = model.predict_proba(trusted)
    nearest, distance, odd = _likenesses(rows, suspect, suggested)
    kind = None
    if classes is not None and not np.isnan(p).any() and not np.isnan(p_trusted).any():
        truth = rows.y_trusted[:, None] == classes[None]
        share = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        share.fit(p_trusted.ravel(), truth.ravel().astype(float))
        among = np.asarray(share.predict(p.ravel())).reshape(p.shape)
        kind = _kinds(among, np.searchsorted(classes, rows.y[suspect]), odd)
    sure = np.full(len(suspect), np.nan) if classes is None else p.max(axis=1)
    return Suspects(suspect, suggested, sure, kind, nearest, distance)


def _kinds(
    share: Float[np.ndarray, "k classes"], given: Int[np.ndarray, " k"], odd: Bool[np.ndarray, " k"]
) -> np.ndarray:
    plausible = share >= PLAUSIBLE
    fits = plausible[np.arange(len(share)), given]
    another = plausible.sum(axis=1) > fits
    kind = np.full(len(share), "label fits", dtype=object)
    kind[another & fits] = "ambiguous"
    kind[~fits] = "wrong label"
    kind[odd] = "odd row"
    return kind


def _likenesses(
    rows: Rows, suspect: np.ndarray, suggested: np.ndarray
) -> tuple[Int[np.ndarray, "k 2"], Float[np.ndarray, "k 2"], Bool[np.ndarray, " k"]]:
    """(nearest trusted rows of the given and of the suggested class, their distances, odd rows)."""
    k, m = len(suspect), len(rows.y_trusted)
    nearest, distance = np.full((k, 2), -1), np.full((k, 2), np.nan)
    fit = CELLS // max(int(np.shape(rows.X)[1]), 1) - m  # rows, the worst first
    if fit < k:
        fit = max(fit, 0)
        found = _likenesses(rows, suspect[:fit], suggested[:fit]) if fit else None
        odd = np.zeros(k, bool)
        if found is not None:
            nearest[:fit], distance[:fit], odd[:fit] = found
        return nearest, distance, odd
    frames = [as_frame(take_rows(rows.X, suspect)), as_frame(rows.X_trusted)]
    frames[0].columns = frames[1].columns
    a, b = as_matrix(encode(*frames), np.random.default_rng(0))
    if m < 2 or a.shape[1] == 0:
        return nearest, distance, np.zeros(k, bool)
    among = cdist(b, b)
    np.fill_diagonal(among, np.inf)
    own = among.min(axis=1)
    usual = float(np.median(own)) or 1.0
    odd = np.zeros(k, bool)
    labels = rows.y_trusted
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
            distance[part, side] = np.where(
                found, masked[np.arange(len(best)), best] / usual, np.nan
            )
    return nearest, distance, odd
