"""Which training rows to verify next, and why."""

import reprlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import MinMaxScaler

from .._inputs.checks import (
    InputError,
    as_features,
    as_targets,
    check_aligned,
    check_labels,
    check_same_columns,
    row_ids,
)
from .._inputs.prepare import is_regression
from .._inputs.probabilities import as_probabilities
from .duplicates import find_duplicates, find_shared_rows

FEW = 5  # trusted rows of a class
MOST = 5000  # training rows that a model is fitted to, besides the trusted ones
SURE = 0.8


def suggest(
    label_quality: Any,
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    probabilities: Any = None,
    budget: int = 100,
    task: str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """The training rows whose verification is expected to change a linear model most.

    With p the class probabilities of a row under a model that has not seen its label, and q the
    probability that its label y is right, training that weighs rows by q amounts to the soft label
    v; verifying the row puts its true label c in v's place, and of c we believe pi:

        v  = q e_y + (1 - q) p
        pi = q e_y + (1 - q) p', with p' = p without the class y, normalised
        s  = E_{c ~ pi} |e_c - v|^2 |h|^2 = (1 + |v|^2 - 2 <pi, v>) |h|^2,    h = (x - mean, 1)

    with x scaled to [0, 1]. s is the expected squared change of the gradient of the logistic loss:
    expected gradient length [settles2008][] for
    rows that have a label already. It is large where the label is in doubt and the model too. The
    rows of lowest label quality are not these: they are surely wrong, and weighted down already.

    Rows are picked by farthest-first traversal ([gonzalez1985][], [sener2018][]) of the points `z =
    h s^(1/2) / |h|` from the origin: the first has the largest s, each next one the largest
    distance to the origin and all before. So every beginning of the table is a good choice, without
    copies. Before them come rows of classes with fewer than 5 trusted rows: those with the largest
    probability of the class under a model of all rows, and half the budget at most.

    For regression, with the residual r under a model that has not seen the row's target, and the
    spread t of the residuals of right targets,

        s = [q (1 - q)^2 r^2 + (1 - q) (t^2 + q^2 r^2)] |h|^2

    Source: Settles, Craven and Ray (2008), "Multiple-instance active learning", for the expected
    gradient length; Gonzalez (1985), "Clustering to minimize the maximum intercluster distance",
    and Sener and Savarese (2018), "Active learning for convolutional neural networks: A core-set
    approach", for the traversal; the score of rows that have a label already is ours.

    Args:
        label_quality: one number per row, larger for labels more likely to be right; or a result
            with the attribute `label_quality`; or `None`. It is turned into q by isotonic regression
            on an estimate of q from p, for which labels are wrong at a constant rate (fitted by
            EM), uniformly over the other classes. Without it, that estimate is q.
        X, y: training rows as a finite matrix of numbers (encoded), and their given labels.
        X_trusted, y_trusted: the rows verified so far; there may be none.
        probabilities: p, `(rows, classes)`, the classes sorted, or by the names of the columns; by
            default from logistic regressions on the trusted rows and those that agree with them,
            cross-fitted in halves. For regression predictions `(rows,)`, by default of ridge
            regressions, likewise.
        budget: number of rows to suggest.
        task: "classification", "regression", or "auto", which looks at `y`.
        seed: of the halves and of the rows that models are fitted to.

    Returns:
        One line per row, the most urgent first: `id`; `score`, its s in units of the largest;
        `reason`, a sentence; `given_label`; `suggested_label`, the model's. Rows that are already
        among the trusted ones are left out, and of equal rows only one is suggested.

    Raises:
        InputError: matrices or labels that cannot be used, or do not fit together.
        ValueError: a budget below 1.

    Cost: up to six linear models of at most 5000 rows and the trusted ones, and
    `budget * rows * features` multiplications.

    >>> import numpy as np
    >>> X = np.linspace(0, 1, 100)[:, None]; y = (X[:, 0] > 0.5).astype(int)
    >>> y[40] = 1  # wrong
    >>> trusted = X[::9] + 0.001, y[::9]
    >>> suggest(None, X, y, *trusted, budget=1)[["id", "given_label", "suggested_label"]]
       id  given_label  suggested_label
    0  40            1                0
    """
    if budget < 1:
        raise ValueError(f"`budget` must be at least 1, got {budget}.")
    by_series = isinstance(y, pd.Series) and not isinstance(X, pd.DataFrame)
    ids = np.asarray(y.index) if by_series else row_ids(X)
    regression = is_regression(task, y)
    y = check_labels(y, X, "y")
    y_trusted = check_labels(y_trusted, X_trusted, "y_trusted")
    check_same_columns(X, X_trusted, "X", "X_trusted")
    x = as_features(X, "X")
    x_trusted = as_features(X_trusted, "X_trusted") if len(y_trusted) else x[:0]
    quality = getattr(label_quality, "label_quality", label_quality)
    rows = pd.DataFrame(index=ids) if by_series else X
    check_aligned(rows, quality, "label_quality")
    check_aligned(rows, probabilities, "probabilities")
    quality = None if quality is None else np.asarray(quality, np.float64)
    if quality is not None and (quality.shape != y.shape or not np.isfinite(quality).all()):
        raise InputError(
            f"`label_quality` must have one finite number per row of `X`: got shape "
            f"{quality.shape} for {len(y)} rows."
        )
    rng = np.random.default_rng(seed)
    scaler = MinMaxScaler().fit(np.concatenate([x, x_trusted]))
    x = scaler.transform(x)
    x_trusted = scaler.transform(x_trusted) if len(x_trusted) else x_trusted

    believe = _believe_targets if regression else _believe_classes
    belief = believe(x, y, x_trusted, y_trusted, probabilities, quality, rng)
    h = np.column_stack([x - x.mean(axis=0), np.ones(len(x))])
    score = belief.change * (h**2).sum(axis=1)
    candidates = _candidates(x, x_trusted, score)
    first = belief.uncovered(candidates, budget // 2)
    rest = np.setdiff1d(candidates, list(first))
    z = np.sqrt(belief.change[rest])[:, None] * h[rest]
    chosen = np.array([*first, *rest[_farthest_first(z, budget - len(first))]], int)
    far = np.where(_far_from_trusted(x, x_trusted), "; far from every trusted row", "")
    return pd.DataFrame(
        {
            "id": ids[chosen],
            "score": score[chosen] / max(score.max(), np.finfo(float).tiny),
            "reason": [(first.get(i) or belief.reason(i)) + str(far[i]) for i in chosen.tolist()],
            "given_label": y[chosen],
            "suggested_label": belief.suggested[chosen],
        }
    )


class _Belief(NamedTuple):
    """What is believed of each row's true label.

    Attributes:
        change: `E |e_c - v|^2`, or its counterpart for regression.
        suggested: the model's label.
        reason: a sentence on a row.
        uncovered: of some rows those of classes with few trusted rows, at most so many, and why.
    """

    change: Float[np.ndarray, " rows"]
    suggested: np.ndarray
    reason: Callable[[int], str]
    uncovered: Callable[[np.ndarray, int], dict[int, str]]


# --- classification


def _believe_classes(
    x: np.ndarray,
    y: np.ndarray,
    x_trusted: np.ndarray,
    y_trusted: np.ndarray,
    probabilities: Any,
    quality: np.ndarray | None,
    rng: np.random.Generator,
) -> _Belief:
    try:
        classes = np.unique(np.concatenate([y, y_trusted]) if len(y_trusted) else y)
    except TypeError as error:
        raise InputError("the labels mix text and numbers; convert them all to text.") from error
    i, k = np.arange(len(y)), len(classes)
    if k < 2:
        raise InputError(
            f"there is only one class, {_short(classes[0])}; there is nothing to verify."
        )
    y, y_trusted = np.searchsorted(classes, y), np.searchsorted(classes, y_trusted)
    if probabilities is None:
        p = _cross_fitted(x, y, x_trusted, y_trusted, k, rng)
    else:
        p = as_probabilities(probabilities, classes, len(y), "probabilities")
    p = np.clip(p, 1e-9, 1)
    p = p / p.sum(axis=1, keepdims=True)
    q = _calibrated(quality, _two_kinds(p[i, y], (1 - p[i, y]) / (k - 1)))

    others = p.copy()
    others[i, y] = 0
    pi = others * ((1 - q) / others.sum(axis=1))[:, None]
    pi[i, y] = q
    v = (1 - q)[:, None] * p
    v[i, y] += q
    change = 1 + (v**2).sum(axis=1) - 2 * (pi * v).sum(axis=1)
    best = p.argmax(axis=1)
    trusted = np.bincount(y_trusted, minlength=k)

    def reason(row: int) -> str:
        first, second = np.argsort(p[row])[:-3:-1]
        given, says, other = (_short(classes[c]) for c in (y[row], first, second))
        if first != y[row]:
            verb = "says" if p[row, first] >= SURE else "leans to"
            return f"given {given}, the trusted model {verb} {says} ({p[row, first]:.2f})"
        text = f"given {given}, the trusted model agrees ({p[row, first]:.2f})"
        return text + f", with {other} next ({p[row, second]:.2f})" * int(p[row, first] < SURE)

    def uncovered(rows: np.ndarray, budget: int) -> dict[int, str]:
        """By turns the most typical row of each class that lacks trusted rows."""
        found: dict[int, str] = {}
        few = np.flatnonzero(trusted < FEW)
        if not (len(few) and budget):
            return found
        some = rng.permutation(len(y))[:MOST]
        typical = _fit_predict(x[some], y[some], x[rows], k)
        lacking = sorted((turn, c) for c in few for turn in range(trusted[c], FEW))
        for _, c in lacking:
            if len(found) < min(budget, len(rows)):
                best = int(typical[:, c].argmax())
                typical[best] = -1
                found[int(rows[best])] = (
                    f"probably {_short(classes[c])}, a class with {trusted[c] or 'no'} trusted "
                    f"row{'s' * int(trusted[c] != 1)}"
                )
        return found

    return _Belief(change, classes[best], reason, uncovered)


def _fit_predict(
    x: np.ndarray, y: np.ndarray, x_new: np.ndarray, k: int
) -> Float[np.ndarray, "rows classes"]:
    """Probabilities of all classes, 0 for those that do not occur in y."""
    p = np.zeros((len(x_new), k))
    if len(np.unique(y)) == 1:
        p[:, y[0]] = 1
    else:
        model = LogisticRegression(max_iter=200, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        p[:, model.classes_] = model.predict_proba(x_new)
    return p


def _halves(
    n: int, usable: np.ndarray, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each half of n rows: (at most 5000 usable rows of the other half, the half)."""
    half = rng.permutation(n) % 2
    return [
        (rng.permutation(np.flatnonzero(usable & (half != h)))[:MOST], np.flatnonzero(half == h))
        for h in (0, 1)
    ]


def _cross_fitted(
    x: np.ndarray,
    y: np.ndarray,
    x_trusted: np.ndarray,
    y_trusted: np.ndarray,
    k: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "rows classes"]:
    """Probabilities by models of the trusted rows and those of the other half that agree with them."""
    agree = np.ones(len(y), bool)
    if len(np.unique(y_trusted)) > 1:
        agree = _fit_predict(x_trusted, y_trusted, x, k).argmax(axis=1) == y
    p = np.empty((len(y), k))
    for train, test in _halves(len(y), agree, rng):
        rows, labels = np.r_[x_trusted, x[train]], np.r_[y_trusted, y[train]]
        p[test] = _fit_predict(rows, labels, x[test], k) if len(labels) else 1 / k
    return p


def _two_kinds(right: np.ndarray, wrong: np.ndarray) -> Float[np.ndarray, " rows"]:
    """The posterior of the first of two kinds, from likelihoods; its share is fitted by EM."""
    share, q = 0.7, right
    for _ in range(100):
        q = share * right / np.maximum(share * right + (1 - share) * wrong, 1e-300)
        share = np.clip(q.mean(), 0.05, 0.999)
    return q


def _calibrated(quality: np.ndarray | None, q: np.ndarray) -> Float[np.ndarray, " rows"]:
    """The increasing function of the quality that is nearest to q."""
    if quality is None:
        return q
    return IsotonicRegression(out_of_bounds="clip").fit(quality, q).predict(quality)


# --- regression


def _believe_targets(
    x: np.ndarray,
    y: np.ndarray,
    x_trusted: np.ndarray,
    y_trusted: np.ndarray,
    predictions: Any,
    quality: np.ndarray | None,
    rng: np.random.Generator,
) -> _Belief:
    y, y_trusted = as_targets(y, "y"), as_targets(y_trusted, "y_trusted")
    if len(y_trusted) >= 10:
        spread = _spread(y_trusted - cross_val_predict(Ridge(), x_trusted, y_trusted, cv=5))
        near = np.abs(y - Ridge().fit(x_trusted, y_trusted).predict(x)) <= 2 * spread
    else:
        spread, near = None, np.ones(len(y), bool)
    if predictions is None:
        predicted = np.empty(len(y))
        for train, test in _halves(len(y), near, rng):
            rows, targets = np.r_[x_trusted, x[train]], np.r_[y_trusted, y[train]]
            predicted[test] = Ridge().fit(rows, targets).predict(x[test])
    else:
        predicted = np.asarray(predictions, np.float64)
        if predicted.shape != y.shape or not np.isfinite(predicted).all():
            raise InputError(
                f"`probabilities` must hold {len(y)} finite predictions for a regression, got shape "
                f"{predicted.shape}."
            )
    residual = y - predicted
    spread = max(_spread(residual) if spread is None else spread, 1e-12)
    wide = max(float(np.std(y)), 2 * spread)
    q = _calibrated(
        quality, _two_kinds(norm.pdf(residual, scale=spread), norm.pdf(residual, scale=wide))
    )
    r2 = residual**2
    change = q * (1 - q) ** 2 * r2 + (1 - q) * (spread**2 + q**2 * r2)

    def reason(row: int) -> str:
        return (
            f"given {y[row]:.4g}, the trusted model says {predicted[row]:.4g}: "
            f"{abs(residual[row]) / spread:.1f} times its usual error apart"
        )

    return _Belief(change, predicted, reason, lambda rows, budget: {})


def _spread(residual: np.ndarray) -> float:
    """The standard deviation of normal residuals, by their median."""
    return float(1.4826 * np.median(np.abs(residual)))


# --- the choice


def _candidates(x: np.ndarray, x_trusted: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Rows that are not trusted already; of equal ones that with the largest score."""
    known = find_shared_rows(x, x_trusted, near=False)["id"]
    again = find_duplicates(x)
    again["score"] = score[again["id"]]
    best = again.sort_values(["score", "id"], ascending=[False, True]).drop_duplicates("group")[
        "id"
    ]
    return np.setdiff1d(np.arange(len(x)), [*known, *np.setdiff1d(again["id"], best)])


def _farthest_first(z: Float[np.ndarray, "rows features"], budget: int) -> np.ndarray:
    """Each row the farthest from the origin and those chosen before it."""
    z = z.astype(np.float32)
    norm2 = (z**2).sum(axis=1)
    distance = norm2.copy()
    chosen = []
    for _ in range(min(budget, len(z))):
        i = int(distance.argmax())
        chosen.append(i)
        distance = np.minimum(distance, norm2 + norm2[i] - 2 * (z @ z[i]))
        distance[chosen] = -np.inf
    return np.array(chosen, int)


def _far_from_trusted(x: np.ndarray, x_trusted: np.ndarray) -> np.ndarray:
    """Rows farther from all trusted rows than 95 % of the rows are."""
    if not len(x_trusted):
        return np.zeros(len(x), bool)
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(x_trusted)
    distance = np.asarray(search.kneighbors(x)[0])[:, 0]
    return distance > np.quantile(distance, 0.95)


def _short(label: Any) -> str:
    label = label.item() if isinstance(label, np.generic) else label
    return _SHORT.repr(label)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 40
