"""Labels that the other rows contradict: what can be said of them without trusted rows, and with."""

import warnings
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import expit, log_softmax
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .._weights.noise import most_f1
from .finding import Finding, counted, listed
from .view import View, as_matrix

CAP = 10_000  # rows that are judged
TREES, FOLDS = 200, 5
FEWEST = 50  # rows; and of a class:
FEW = 5
LEAST = 0.2  # the probability of a listed row to be wrong
MOST, USUAL = 0.5, 0.025  # the noise rate: at most, and the most probable one beforehand
SHARP = 3.0  # the deviation of the prior of the coefficients
STARTS = (0.5, 0.1)  # of the coefficients
FLOOR = 1e-2  # of the probabilities that members give, shared by all classes


class Doubt(NamedTuple):
    """What the other rows say of labels.

    Attributes:
        wrong: of each row, the probability that its label is wrong.
        suggested: the most probable class, as a code.
        rate: the estimated share of wrong labels.
    """

    wrong: Float[np.ndarray, " rows"]
    suggested: Int[np.ndarray, " rows"]
    rate: float


class Judged(NamedTuple):
    """The training rows whose labels were judged.

    Attributes:
        rows: their places.
        doubt: what the other rows say of their labels.
        given: of each, the label as a code.
        names: what the codes stand for.
    """

    rows: Int[np.ndarray, " rows"]
    doubt: Doubt
    given: Int[np.ndarray, " rows"]
    names: np.ndarray


def contradicted_labels(view: View, left_out: Collection[Any]) -> list[Finding]:
    """Training labels that the other rows contradict, the trusted ones among them.

    See `doubt_labels`. `left_out`: columns that give the label away, name the rows or number them.
    """
    judged = judge_labels(view, left_out)
    if judged is None:
        return []
    title, table = "labels that the other rows contradict", view.tables["train"]
    known, found = judged.rows, judged.doubt
    order = np.argsort(-found.wrong, kind="stable")
    order = order[: number_listed(found.wrong[order])]
    drawn = "" if len(known) == len(table.ids) else f" (of {len(known)} rows that were judged)"
    said = f"about {found.rate:.1%} of the labels seem to be wrong{drawn}"
    if not len(order):
        return [Finding("ok", title, f"none; {said}.")]
    ids, first = tuple(table.ids[known[order]]), int(order[0])
    given, other = (judged.names[code] for code in (judged.given[first], found.suggested[first]))
    detail = (
        f"{counted(ids, 'row')}, the most certain first: {listed(ids)}; {said}. The first is labelled "
        f"{listed([given])}, and rows like it {listed([other])}. Models of the other rows say so, "
        "which can be wrong where rows are rare. Verify these rows; "
    )
    detail += (
        "`bilevel weigh` says how sure this is."
        if "trusted" in view.tables
        else "with 50 to 200 verified ones `bilevel weigh` tells more."
    )
    return [Finding("warning", title, detail, ids)]


def judge_labels(view: View, left_out: Collection[Any]) -> Judged | None:
    """See `doubt_labels`; None for numbers, fewer than 50 rows or 2 classes, and without columns.

    At most 10000 training rows are taken, of classes of 5 rows or more, and the trusted rows of these
    classes.
    """
    if view.regression:
        return None
    table, labels = view.tables["train"], view.labels["train"].reset_index(drop=True)
    count: Any = labels.value_counts()
    often = count.index[count >= FEW]
    known = np.flatnonzero(labels.isin(often))
    known = np.sort(view.rng.permutation(known)[:CAP])
    tables, given = [table.take(known)], [labels.iloc[known]]
    if "trusted" in view.tables:
        true = view.labels["trusted"].reset_index(drop=True)
        verified = np.flatnonzero(true.isin(labels.iloc[known]))
        tables.append(view.tables["trusted"].take(verified))
        given.append(true.iloc[verified])
    codes, names = pd.factorize(pd.concat(given).to_numpy(dtype=object))
    if len(known) < FEWEST or len(names) < 2:
        return None
    kept = [j for j, name in enumerate(table.number_names) if name not in left_out]
    texts = [j for j, name in enumerate(table.text_names) if name not in left_out]
    tables = [
        some._replace(
            numbers=some.numbers[:, kept],
            codes=some.codes[:, texts],
            number_names=[some.number_names[j] for j in kept],
            text_names=[some.text_names[j] for j in texts],
        )
        for some in tables
    ]
    x = np.vstack(as_matrix(tables, view.rng))
    if x.shape[1] == 0:
        return None
    numbers = np.vstack([some.numbers for some in tables])
    cells = np.vstack([some.codes for some in tables])
    plain = np.hstack([np.clip(np.nan_to_num(numbers, nan=-1e30), -1e30, 1e30), cells])
    n = len(known)
    right = np.arange(len(codes)) >= n
    found = doubt_labels(x, plain, codes, int(view.rng.integers(2**31)), right)
    found = Doubt(found.wrong[:n], found.suggested[:n], found.rate)
    return Judged(known, found, codes[:n], np.asarray(names, dtype=object))


def doubt_labels(
    x: Float[np.ndarray, "rows columns"],
    plain: Float[np.ndarray, "rows cells"],
    y: Int[np.ndarray, " rows"],
    seed: int,
    right: Bool[np.ndarray, " rows"] | None = None,
) -> Doubt:
    """How probable it is that each label is wrong, by models that have not seen it.

    Three members give log-probabilities `l_j` of each row without its label: a random forest and
    extremely randomised trees on bootstrap samples, by the trees that have not drawn the row, and
    logistic regressions, in 5 folds. Their pool, and the share r of wrong labels, maximise the
    likelihood of the given labels, where a wrong one is any other class with equal probability:

        p = softmax(sum_j c_j l_j),    P(y_i) = (1 - r) p_i(y_i) + r (1 - p_i(y_i)) / (K - 1)

    over `c_j > 0` (half-normal prior of deviation 3) and r below 1/2 (prior proportional to
    `r exp(-r / 0.025)`). The priors decide where the labels do not: without the one of r, models that
    have softened to a share of wrong labels would explain them with r = 0, and where the columns
    say nothing, any r would do. A label is then wrong with the probability

        r (1 - p_i(y_i)) / (K - 1) / P(y_i)

    Of trusted rows r is 0, and they teach the models as all others do. Errors that are concentrated on
    rows that are hard to tell apart are counted too low.

    Args:
        x: columns for a linear model, scaled.
        plain: columns for trees.
        y: the labels as codes 0 to K - 1, each of them 5 times or more.
        seed: of the trees and folds.
        right: the rows whose label is known to be right; by default none.

    Source: the noise model is that of Natarajan, Dhillon, Ravikumar and Tewari (2013), "Learning with
    noisy labels" [natarajan2013][], with one rate for all classes; the pool is ours.

    Cost: 400 trees and 5 linear models.
    """
    classes = int(y.max()) + 1
    outputs = [np.log((1 - FLOOR) * p + FLOOR / classes) for p in _members(x, plain, y, seed)]
    logs = np.stack(outputs)
    own = logs[:, np.arange(len(y)), y]
    doubted = np.ones(len(y)) if right is None else 1.0 - right

    def parts(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        c, rate = np.exp(theta[:-1]), MOST * float(expit(theta[-1]))
        p = np.exp(log_softmax(np.tensordot(c, logs, 1), axis=1))
        return c, p, rate

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        c, p, rate = parts(theta)
        q = p[np.arange(len(y)), y]
        other = (1 - q) / (classes - 1)
        each = rate * doubted
        given = (1 - each) * q + each * other
        value = -np.log(given).sum() + (c**2).sum() / (2 * SHARP**2) + rate / USUAL - np.log(rate)
        slope_q = (1 - each) - each / (classes - 1)
        slope_c = ((slope_q * q / given) * (own - (p * logs).sum(axis=2))).sum(axis=1)
        of_rate = (doubted * (other - q) / given).sum() - 1 / USUAL + 1 / rate
        slope_rate = of_rate * rate * (1 - rate / MOST)
        return float(value), np.r_[(c / SHARP**2 - slope_c) * c, -slope_rate]

    bounds = [(-6, 3)] * len(logs) + [(-12, 12)]
    usual = np.log(0.05 / (MOST - 0.05))
    # Where the columns say little, a second maximum explains members that are too sure of themselves
    # by labels of which half are wrong.
    ends: list[Any] = [
        minimize(
            loss,
            np.r_[np.full(len(logs), log_c), usual],
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
        )
        for log_c in np.log(STARTS)
    ]
    found = min(ends, key=lambda end: end.fun)
    _, p, rate = parts(found.x)
    q = p[np.arange(len(y)), y]
    other = rate * doubted * (1 - q) / (classes - 1)
    return Doubt(other / (other + (1 - rate * doubted) * q), p.argmax(axis=1), rate)


def _members(
    x: Float[np.ndarray, "rows columns"],
    plain: Float[np.ndarray, "rows cells"],
    y: Int[np.ndarray, " rows"],
    seed: int,
) -> list[Float[np.ndarray, "rows classes"]]:
    """Probabilities of the classes of each row, by models that have not seen its label."""
    classes = int(y.max()) + 1
    outputs = []
    for kind in (RandomForestClassifier, ExtraTreesClassifier):
        forest: Any = kind(TREES, bootstrap=True, oob_score=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a row may be in every sample
            forest.fit(plain.astype(np.float32), y)
        p = forest.oob_decision_function_
        outputs.append(np.where(np.isfinite(p).all(axis=1, keepdims=True), p, 1 / classes))
    fold = np.random.default_rng(seed).permutation(len(y)) % FOLDS
    p = np.zeros((len(y), classes))
    for k in range(FOLDS):
        train = fold != k
        linear: Any = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, max_iter=200, tol=1e-3)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            linear.fit(x[train], y[train])
        p[np.ix_(~train, linear.classes_)] = linear.predict_proba(x[~train])
    return [*outputs, p]


def number_listed(wrong: Float[np.ndarray, " rows"]) -> int:
    """How many rows to list, of those in falling order: the greatest expected F1, none below 0.2."""
    return min(most_f1(wrong, np.ones(len(wrong))), int((wrong >= LEAST).sum()))
