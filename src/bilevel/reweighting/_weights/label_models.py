"""Label models: estimators fitted on parts of the rows, and what they say of the other rows."""

import contextlib
import dataclasses
import functools
import warnings
from typing import Any

import numpy as np
import threadpoolctl
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from .._inputs.checks import InputError
from .._inputs.prepare import Prepared
from .._inputs.probabilities import Probabilities
from .baselines import fit_weighted, stack_rows, take_rows
from .labels import Classes, Numbers

FOLDS, PARTS = (
    3,
    3,
)  # of the trusted rows, which judge; of the training rows, for out-of-fold outputs
MAX_ROWS = 20_000  # training rows that models are fitted on; all rows get outputs
SMALL = 2_000_000  # entries of a table up to which one thread is faster than several
TOLERANCE = 1e-3  # of the linear label model's gradient
LEAST = 1e-5  # the least probability that a label model gives


class Folds:
    """The labels of both tables as numbers, and their folds.

    A choice of trusted rows is one of `FOLDS + 1`: `others[k]` are those outside of fold k, and
    `others[FOLDS]` are all of them. Classes, or ranges of the target, have their share in each fold.

    Attributes:
        y, y_trusted: class codes (integers), or targets (floating).
        kind: `Classes` or `Numbers`.
        fold: of each trusted row; `part`: of each training row.
        sub: the training rows that models are fitted on.
        unjudged: the training rows whose class no trusted row has.
    """

    def __init__(self, y: np.ndarray, y_trusted: np.ndarray, number: int, seed: int):
        rng = np.random.default_rng(seed)
        self.y, self.y_trusted = y, y_trusted
        self.n, self.m = len(y), len(y_trusted)
        classes = y.dtype.kind in "iu"
        self.kind: Classes | Numbers = Classes(number) if classes else Numbers()
        self.fold, self.part = _deal(y_trusted, FOLDS, rng), _deal(y, PARTS, rng)
        self.others: Bool[np.ndarray, "choices m"] = np.stack(
            [self.fold != k for k in range(FOLDS)] + [np.ones(self.m, bool)]
        )
        self.sub: Int[np.ndarray, " s"] = np.sort(rng.permutation(self.n)[:MAX_ROWS])
        self.unjudged = ~np.isin(y, y_trusted) if classes else np.zeros(self.n, bool)


def _deal(y: np.ndarray, parts: int, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
    """Like cards, in the order of y and at random within equal labels."""
    part = np.empty(len(y), int)
    part[np.lexsort((rng.random(len(y)), y))] = np.arange(len(y)) % parts
    return part


@dataclasses.dataclass(frozen=True)
class LabelModel:
    """A kind of model that judges labels: an estimator, and the rows as it takes them.

    Attributes:
        name: what tables call it.
        estimator: any scikit-learn estimator that takes `sample_weight`.
        X, X_trusted: the rows.
        y, y_trusted: labels or targets as the estimator takes them.
        folds: labels as numbers, and the folds.
        classes: the labels that the codes stand for, sorted; None in a regression.
        centre, spread: predictions are `centre + spread * output`.
    """

    name: str
    estimator: Any
    X: Any
    X_trusted: Any
    y: Any
    y_trusted: Any
    folds: Folds
    classes: np.ndarray | None
    centre: float = 0.0
    spread: float = 1.0

    @functools.cached_property
    def _rows(self) -> tuple[Any, Any]:
        sub = self.folds.sub
        return (
            stack_rows(take_rows(self.X, sub), self.X_trusted),
            stack_rows(take_rows(self.y, sub), self.y_trusted),
        )

    def fit(self, weights: Float[np.ndarray, " n"], trusted: Float[np.ndarray, " m"]) -> Any:
        """The estimator fitted with these weights of the training and of the trusted rows."""
        X, y = self._rows
        inflate = self.folds.n / len(self.folds.sub)
        weights = np.concatenate([inflate * weights[self.folds.sub], trusted])
        estimator = self.estimator
        if self.classes is not None and len(np.unique(np.asarray(y)[weights > 0])) == 1:
            estimator = DummyClassifier()  # many classifiers refuse a single class
        with warnings.catch_warnings():  # an opinion needs no last digit
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            return fit_weighted(estimator, X, y, weights)

    def outputs(self, model: Any, X: Any) -> Float[np.ndarray, "rows outputs"]:
        """Log-probabilities in the order of `classes`, or predictions in standardised units."""
        if self.classes is None:
            return ((np.asarray(model.predict(X)) - self.centre) / self.spread)[:, None]
        shape = len_rows(X), len(self.classes)
        if hasattr(model, "predict_proba"):
            known = model.predict_proba(X)
            p = np.full(shape, LEAST, known.dtype)
            p[:, np.searchsorted(self.classes, model.classes_)] = known
        else:
            p = np.full(shape, LEAST)
            p[np.arange(len(p)), np.searchsorted(self.classes, model.predict(X))] = 0.9
        return log_softmax(np.log(np.maximum(p, LEAST)), axis=1)

    def on_train(self, model: Any, rows: np.ndarray) -> Float[np.ndarray, "rows outputs"]:
        """Outputs for training rows at these positions."""
        return self.outputs(model, take_rows(self.X, rows))

    def on_trusted(self, model: Any, rows: np.ndarray) -> Float[np.ndarray, "rows outputs"]:
        """Outputs for trusted rows at these positions."""
        return self.outputs(model, take_rows(self.X_trusted, rows))


@dataclasses.dataclass(frozen=True)
class Member:
    """One member of the pool: fitted models, and what they say of rows that they have not seen.

    Attributes:
        name: what tables call it.
        kind: the kind of model; None for probabilities that came from outside.
        train: outputs for the training rows, one array per choice of trusted rows (see `Folds`).
        trusted: outputs for the chosen trusted rows, likewise; other rows' are not to be used.
        models: fitted on all trusted rows; their mean judges new rows.
    """

    name: str
    kind: LabelModel | None
    train: list[Float[np.ndarray, "n outputs"]]
    trusted: list[Float[np.ndarray, "m outputs"]]
    models: list[Any]


def from_outside(probabilities: Probabilities) -> Member:
    """Out-of-fold probabilities that the user gave."""
    choices = FOLDS + 1
    train, trusted = probabilities
    return Member("given probabilities", None, [train] * choices, [trusted] * choices, [])


def cross_fitted(model: LabelModel) -> Member:
    """A model of all training rows: out of fold on them, and without any trusted row.

    Cost: `PARTS` fits, which serve every choice of trusted rows.
    """
    folds, none = model.folds, np.zeros(model.folds.m)
    models = [model.fit((folds.part != p).astype(float), none) for p in range(PARTS)]
    train = _scatter(model, models)
    every = np.arange(folds.m)
    trusted = folds.kind.average(np.stack([model.on_trusted(fit, every) for fit in models]))
    choices = FOLDS + 1
    return Member(f"{model.name}, all rows", model, [train] * choices, [trusted] * choices, models)


def trusted_only(model: LabelModel) -> Member:
    """A model of the trusted rows alone: out of fold on them.

    Cost: `1 + FOLDS + FOLDS (FOLDS - 1) / 2` fits on the trusted rows.
    """
    folds, none = model.folds, np.zeros(model.folds.n)

    @functools.cache
    def without(*left_out: int) -> Any:
        return model.fit(none, (~np.isin(folds.fold, left_out)).astype(float))

    every = np.arange(folds.n)
    train = [model.on_train(without(k), every) for k in range(FOLDS)]
    train.append(model.on_train(without(), every))
    trusted = []
    for k in range(FOLDS + 1):
        outputs = np.zeros((folds.m, train[0].shape[1]))
        for j in range(FOLDS):
            rows = np.flatnonzero(folds.fold == j)
            outputs[rows] = model.on_trusted(without(*sorted({j, k} - {FOLDS})), rows)
        trusted.append(outputs)
    return Member(f"{model.name}, trusted rows", model, train, trusted, [without()])


def second_round(model: LabelModel, weights: Float[np.ndarray, " n"]) -> Member:
    """A model of all rows with weights, and of the trusted rows: out of fold on both.

    The weights come from all trusted rows, so it serves the choice of all of them only.

    Cost: `PARTS` fits.
    """
    folds = model.folds
    models = [
        model.fit(weights * (folds.part != p), (folds.fold != p).astype(float))
        for p in range(PARTS)
    ]
    trusted = np.zeros((folds.m, folds.kind.number))
    for p, fit in enumerate(models):
        rows = np.flatnonzero(folds.fold == p)
        trusted[rows] = model.on_trusted(fit, rows)
    train = [_scatter(model, models)] * (FOLDS + 1)
    return Member(f"{model.name}, weighted rows", model, train, [trusted] * (FOLDS + 1), models)


def _scatter(model: LabelModel, models: list[Any]) -> Float[np.ndarray, "n outputs"]:
    """Of each training row, the output of the model that has not seen its part."""
    folds = model.folds
    outputs = np.zeros((folds.n, folds.kind.number))
    for p, fit in enumerate(models):
        rows = np.flatnonzero(folds.part == p)
        outputs[rows] = model.on_train(fit, rows)
    return outputs


def linear_label_model(folds: Folds, X: np.ndarray, X_trusted: np.ndarray) -> LabelModel:
    """Softmax or least squares with scikit-learn's default penalty, on scaled numbers."""
    if isinstance(folds.kind, Classes):
        estimator, classes = LogisticRegression(tol=TOLERANCE), np.arange(folds.kind.number)
    else:
        estimator, classes = Ridge(), None
    return LabelModel("linear", estimator, X, X_trusted, folds.y, folds.y_trusted, folds, classes)


def own_label_model(folds: Folds, tables: Prepared, estimator: Any) -> LabelModel:
    """The user's own kind of model, on the rows as it takes them."""
    return LabelModel(
        type(estimator).__name__,
        estimator,
        tables.train.X,
        tables.trusted.X,
        tables.train.y,
        tables.trusted.y,
        folds,
        tables.classes,
        tables.encoding.centre,
        tables.encoding.spread,
    )


def is_the_linear_model(estimator: Any) -> bool:
    """Whether it is the penalised linear model itself; its solver does not matter."""
    if type(estimator) not in (LogisticRegression, Ridge):
        return False
    free = {"max_iter", "tol", "solver", "random_state", "n_jobs", "verbose", "warm_start"}
    usual = type(estimator)().get_params()
    return all(usual[k] == v for k, v in estimator.get_params().items() if k not in free)


def make_folds(y: np.ndarray, y_trusted: np.ndarray, seed: int) -> Folds:
    """The folds, from class codes or targets.

    Raises:
        InputError: codes that are no codes.
    """
    kinds = y.dtype.kind + y_trusted.dtype.kind
    classes = set(kinds) <= set("iu") and min(y.min(), y_trusted.min()) >= 0
    if kinds != "ff" and not classes:
        raise InputError(
            "`y` and `y_trusted` must both be class codes 0, 1, ... or both floating targets, got "
            f"{y.dtype} and {y_trusted.dtype} from {min(y.min(), y_trusted.min())}; "
            "`sklearn.preprocessing.LabelEncoder` makes codes."
        )
    number = int(max(y.max(), y_trusted.max())) + 1 if classes else 1
    return Folds(y, y_trusted, number, seed)


def few_threads(size: int) -> contextlib.AbstractContextManager[Any]:
    """One thread for the matrix products of a small problem: more only wait for each other."""
    if size > SMALL:
        return contextlib.nullcontext()
    return threadpoolctl.threadpool_limits(1, user_api="blas")


def len_rows(X: Any) -> int:
    """The number of rows of an array, a data frame or a sparse matrix."""
    return X.shape[0]
