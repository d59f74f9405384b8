"""Label models that see what a linear one cannot: forests, boosted trees, kernel features."""

import warnings
from typing import Any

import numpy as np
from jaxtyping import UInt8
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import euclidean_distances
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler
from sklearn.utils import gen_batches

from .folds import FOLDS, HALVES, Folds
from .label_models import MANY_CLASSES, PART, LabelModel, tolerance
from .labels import Classes

TREES, FEWER_TREES = 60, 50  # of the forest; and beside trees of the user's
FOREST_ROWS = 5000  # that a tree is grown on
LEAF = 1.5  # rows that a leaf must exceed
FEWEST, BINS = 200, 64  # training rows that boosted trees learn from; bins of their columns
ROUNDS, LEAVES = 40, 8  # of boosting; of a tree
MOST_COLUMNS, MOST_NUMBERS = 500, 5_000_000  # for all classes; a fit then takes a second
MOST_KEPT = 10  # outputs of boosted trees that judge new rows too; a file then has 16 MB
LANDMARKS, SAMPLE = 150, 500  # of the kernel features; rows whose distances say how wide it is
NARROW, INVERSE_PENALTY = 0.6, 3.0  # times the inverse of the median squared distance; `C`


def forest_label_models(
    folds: Folds, X: np.ndarray, X_trusted: np.ndarray, *, beside_trees: bool
) -> tuple[LabelModel, LabelModel] | None:
    """Trees that differ, for all rows and for the trusted ones; None for many classes.

    They see what a linear model cannot, on rows of any kind and without settings to tune. Half of them
    look for the best split of some columns, as in a random forest, half take the best of random ones
    (extremely randomised trees): each half is better on some tables, and the mean on more. A leaf
    holds two rows, which are counted by their weight. A tree is grown on all rows, or on 5000 drawn
    anew. `beside_trees`: whether the user's own kind of model are trees. Then they are fewer, and
    shared.
    """
    if not isinstance(folds.kind, Classes) or folds.kind.number > MANY_CLASSES:
        return None
    share = FOREST_ROWS / len(folds.sub)
    learn = 1 - 1 / (FOLDS if beside_trees else HALVES)  # of the rows, in each fit

    def forest(weight: float, **options: Any) -> VotingClassifier:
        leaf = min(LEAF / (learn * max(weight, 1.0)), 0.5)
        number = (FEWER_TREES if beside_trees else TREES) // 2
        # With n_jobs=None, within `joblib.parallel_config` the opinions of trees would be added up in
        # the order in which threads finish.
        how = {"bootstrap": False, "random_state": 0, "n_jobs": 1, **options}
        best = RandomForestClassifier(number, min_weight_fraction_leaf=leaf, **how)
        random = ExtraTreesClassifier(number, min_weight_fraction_leaf=leaf, **how)
        return VotingClassifier([("best", best), ("random", random)], voting="soft", n_jobs=1)

    drawn = {"bootstrap": True, "max_samples": share} if share < 1 else {}
    grown = forest(folds.weight.sum() * min(share, 1.0), **drawn)
    trees = forest(folds.weight_trusted.sum())
    rows = X, X_trusted, folds.y, folds.y_trusted, folds, np.arange(folds.kind.number)
    of_all, of_trusted = (
        LabelModel("forest", e, *rows, expensive=beside_trees) for e in (grown, trees)
    )
    return of_all, of_trusted


def boosted_label_model(folds: Folds, X: np.ndarray, X_trusted: np.ndarray) -> LabelModel | None:
    """Gradient-boosted trees, for all rows; None for many classes, for few rows, and for wide tables.

    A leaf holds 20 rows: the trusted rows alone teach them nothing. They get the ranks of the numbers
    among at most 63 quantiles, in which they would look for splits anyway; of numbers, scikit-learn
    looks for quantiles in each fit, which with weights takes longer than the fit.
    """
    kind = folds.kind
    classifies = isinstance(kind, Classes)
    if len(folds.sub) < FEWEST or (classifies and kind.number > MANY_CLASSES):
        return None
    outputs = kind.number if classifies and kind.number > 2 else 1
    if not boosted_trees_fit(len(folds.sub), X.shape[1], outputs):
        return None
    options: Any = {"max_iter": ROUNDS, "max_leaf_nodes": LEAVES, "early_stopping": False}
    trees: Any = (
        HistGradientBoostingClassifier(**options, random_state=0)
        if classifies
        else HistGradientBoostingRegressor(**options, random_state=0)
    )
    how: Any = {"encode": "ordinal", "quantile_method": "inverted_cdf", "subsample": None}
    ranks = KBinsDiscretizer(BINS, **how)
    with warnings.catch_warnings():  # of columns with fewer values than bins
        warnings.simplefilter("ignore", UserWarning)
        ranks.fit(X[folds.sub])
    rows = _ranked(ranks, X), _ranked(ranks, X_trusted)
    y = folds.y, folds.y_trusted
    classes = np.arange(kind.number) if classifies else None
    kept = ranks if outputs <= MOST_KEPT else None
    return LabelModel("boosted trees", trees, *rows, *y, folds, classes, ranks=kept)


def boosted_trees_fit(rows: int, columns: int, outputs: int) -> bool:
    """Whether a table is small enough for boosted trees; `outputs`: 1 of two classes."""
    return columns <= MOST_COLUMNS and rows * columns * outputs <= MOST_NUMBERS


def _ranked(ranks: KBinsDiscretizer, X: np.ndarray) -> UInt8[np.ndarray, "rows features"]:
    """A byte per number, by parts: all rows are judged, of which only some are fitted on."""
    found = np.empty(X.shape, np.uint8)
    for rows in gen_batches(len(X), PART):
        found[rows] = np.asarray(ranks.transform(X[rows]))
    return found


def kernel_label_model(folds: Folds, X: np.ndarray, X_trusted: np.ndarray) -> LabelModel | None:
    """Softmax on features of a Gaussian kernel, for all rows and for the trusted ones alone.

        k(x, x') = exp(-0.6 |x - x'|^2 / median)

    of standardised numbers, on 150 landmark rows (Nystrom's approximation). The features are the same
    in every fit: they come from the distinct rows, without a look at labels. None for many classes, in
    a regression, and where rows do not differ, or by no more than rounding beside one far away.
    """
    if not isinstance(folds.kind, Classes) or folds.kind.number > MANY_CLASSES:
        return None
    counted = folds.sub[folds.weight[folds.sub] > 0], folds.weight_trusted > 0
    rows = np.unique(np.concatenate([X[counted[0]], X_trusted[counted[1]]]), axis=0)
    if len(rows) < 2:
        return None
    scaler = StandardScaler().fit(rows)
    sample = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
    squares = euclidean_distances(scaler.transform(rows[sample]), squared=True)
    median = np.median(squares[np.triu_indices(len(sample), 1)])
    if not median > 0:  # beside a row that is far away, the others are one point
        return None
    # With n_jobs=None, within `joblib.parallel_config` the products would be made in other parts.
    some = min(LANDMARKS, len(rows))
    landmarks = Nystroem(gamma=NARROW / median, n_components=some, random_state=0, n_jobs=1)
    features = make_pipeline(scaler, landmarks).fit(rows)
    number = folds.kind.number
    softmax = LogisticRegression(C=INVERSE_PENALTY, tol=tolerance(folds.y, number))
    estimator = make_pipeline(FrozenEstimator(features), softmax)
    y = folds.y, folds.y_trusted
    return LabelModel("kernel", estimator, X, X_trusted, *y, folds, np.arange(number))
