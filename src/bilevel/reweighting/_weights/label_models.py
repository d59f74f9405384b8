"""Label models: estimators fitted on parts of the rows, and what they say of the other rows."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils import gen_batches

from .._inputs.prepare import Prepared
from .._inputs.probabilities import Probabilities
from .baselines import fit_weighted, stack_rows, take_rows
from .coded_labels import predictions
from .fits import independent
from .folds import FOLDS, FREE, HALVES, JUDGES, Folds
from .labels import Classes

TOLERANCE = 1e-3  # of the linear label model's gradient
MANY_CLASSES = 30  # above which it is fitted on centred columns, and no flexible models join it
LEAST_TOLERANCE = 0.03  # of this, where a class is rare
PART = 50_000  # rows that a model is asked about at a time
LEAST = 1e-5  # the least probability that a label model gives


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
        expensive: whether fits are. Then they leave out a third of the rows, and a fit serves all that
            it can (`shares`); others leave out a sixth.
        ranks: what has made `X` of scaled numbers, and is to do so with new rows. Models that need it
            are small, and kept.
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
    expensive: bool = False
    ranks: Any = None

    @property
    def shares(self) -> bool:
        """Whether a fit serves all that it can. With times it cannot.

        Those that judge weights leave out a third of the training rows and are the second round too,
        and those of the trusted rows serve several choices.
        """
        return self.expensive and not self.folds.forward

    @property
    def left_out(self) -> tuple[int, np.ndarray, np.ndarray]:
        """(number of fits, which of them leaves out each training row, and each trusted row)."""
        folds = self.folds
        if self.expensive:
            return FOLDS, folds.part, folds.part_trusted
        return HALVES, folds.half, folds.half_trusted

    @functools.cached_property
    def _rows(self) -> tuple[Any, Any, Any]:
        """The rows of both tables, their labels, and what was taken from the columns.

        Columns whose mean is not zero make a softmax, whose intercept has no penalty, slow to fit;
        without their means it has the same solution. Of few classes it is fitted soon all the same.
        """
        folds, means = self.folds, None
        sub = folds.sub
        X = stack_rows(take_rows(self.X, sub), self.X_trusted)
        if isinstance(self.estimator, LogisticRegression) and folds.kind.number > MANY_CLASSES:
            weight = np.concatenate([folds.weight[sub], folds.weight_trusted])
            means = np.average(X, axis=0, weights=weight).astype(X.dtype)
            X -= means
        return X, stack_rows(take_rows(self.y, sub), self.y_trusted), means

    def fit(self, weights: Float[np.ndarray, " n"], trusted: Float[np.ndarray, " m"]) -> Any:
        """The estimator fitted with these weights of the training and of the trusted rows."""
        return _fit(*self.task(weights, trusted))

    def fits(self, weights: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        """`fit` for each pair of weights."""
        return independent(_fit, (self.task(*pair) for pair in weights))

    def task(self, weights: np.ndarray, trusted: np.ndarray) -> tuple[Any, ...]:
        """A fit that is still to be made, anywhere: the rows that it needs, and no others."""
        X, y, means = self._rows
        folds = self.folds
        inflate = folds.weight.sum() / folds.weight[folds.sub].sum()
        weights = inflate * (folds.weight * weights)[folds.sub]
        weights = np.concatenate([weights, folds.weight_trusted * trusted])
        estimator = self.estimator
        if self.classes is not None and len(np.unique(np.asarray(y)[weights > 0])) == 1:
            estimator, means = DummyClassifier(), None  # many classifiers refuse a single class
        return estimator, X, y, weights, means

    def outputs(self, model: Any, X: Any) -> Float[np.ndarray, "rows outputs"]:
        """Log-probabilities in the order of `classes`, or predictions in standardised units."""
        return outputs(model, X, self.classes, self.centre, self.spread)

    def on_train(self, model: Any, rows: np.ndarray) -> Float[np.ndarray, "rows outputs"]:
        """Outputs for training rows at these positions."""
        return self.outputs(model, take_rows(self.X, rows))

    def on_trusted(self, model: Any, rows: np.ndarray) -> Float[np.ndarray, "rows outputs"]:
        """Outputs for trusted rows at these positions."""
        return self.outputs(model, take_rows(self.X_trusted, rows))


def _fit(estimator: Any, X: Any, y: Any, weights: np.ndarray, means: np.ndarray | None) -> Any:
    """A clone of the estimator, fitted on rows from which `means` were taken."""
    with warnings.catch_warnings():  # an opinion needs no last digit
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        fitted = fit_weighted(estimator, X, y, weights)
        if means is not None:  # it is asked of rows as they are
            fitted.intercept_ = fitted.intercept_ - fitted.coef_ @ means
        return fitted


def outputs(
    model: Any, X: Any, classes: np.ndarray | None, centre: float, spread: float
) -> Float[np.ndarray, "rows outputs"]:
    """Of a fitted estimator: log-probabilities in the order of `classes`, or scaled predictions.

    Many rows are asked by parts, so that what an estimator makes of them need not fit in memory.
    """
    if len_rows(X) > PART:
        parts = [take_rows(X, rows) for rows in gen_batches(len_rows(X), PART)]
        return np.concatenate([outputs(model, part, classes, centre, spread) for part in parts])
    if classes is None:
        return ((predictions(model, X) - centre) / spread)[:, None]
    shape = len_rows(X), len(classes)
    if hasattr(model, "predict_proba"):
        known = model.predict_proba(X)
        p = np.full(shape, LEAST, known.dtype)
        p[:, np.searchsorted(classes, model.classes_)] = known
    else:
        p = np.full(shape, LEAST)
        p[np.arange(len(p)), np.searchsorted(classes, predictions(model, X))] = 0.9
    return log_softmax(np.log(np.maximum(p, LEAST)), axis=1)


class WhenAsked(Sequence[Any]):
    """Values by position, each made when it is first asked for, and kept."""

    def __init__(self, make: Callable[[int], Any], number: int):
        self._make = make
        self._made: list[Any] = [None] * number

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, k: Any) -> Any:
        if self._made[k] is None:
            self._made[k] = self._make(k)
        return self._made[k]


@dataclasses.dataclass(frozen=True)
class Member:
    """One member of the pool: fitted models, and what they say of rows that they have not seen.

    Attributes:
        name: what tables call it.
        kind: the kind of model; None for probabilities that came from outside.
        train: outputs for the training rows, one array per choice of trusted rows (see `Folds`).
        trusted: outputs for the chosen trusted rows, likewise; other rows' are not to be used.
        models: at most three of the fitted models, whose mean judges new rows. More would say nearly
            the same, and make files larger.
        alone: whether the models are of the trusted rows alone, and know no other classes.
    """

    name: str
    kind: LabelModel | None
    train: WhenAsked | Sequence[Float[np.ndarray, "n outputs"]]
    trusted: WhenAsked | Sequence[Float[np.ndarray, "m outputs"]]
    models: WhenAsked | Sequence[Any]
    alone: bool = False

    def with_small_models(self) -> "Member":
        """The same with all outputs, and without models that are large, which judge no new rows."""
        if self.kind is not None and self.kind.ranks is not None:
            return self
        return dataclasses.replace(self, train=[*self.train], trusted=[*self.trusted], models=[])


def from_outside(probabilities: Probabilities) -> Member:
    """Out-of-fold probabilities that the user gave."""
    train, trusted = probabilities
    return Member("given probabilities", None, [train] * JUDGES, [trusted] * JUDGES, [])


def cross_fitted(model: LabelModel) -> Member:
    """A model of all training rows: out of fold on them, and without any trusted row.

    A trusted row is judged by one of the models, as a training row is, and not by their mean: else
    the trusted rows would make the model seem better than it is on the training rows.

    Cost: `HALVES` fits (`FOLDS` if they are expensive), which serve every choice of trusted rows; with
    times, as many per choice.
    """
    folds, none = model.folds, np.zeros(model.folds.m)
    number, part, part_trusted = model.left_out

    @functools.cache
    def models(horizon: int) -> list[Any]:
        has = folds.before[horizon]
        return model.fits(((has & (part != p)).astype(float), none) for p in range(number))

    @functools.cache
    def train(horizon: int) -> Float[np.ndarray, "n outputs"]:
        return _scatter(model, models(horizon), part, model.on_train)

    trusted = np.zeros((folds.m, folds.kind.number))
    for horizon in sorted({folds.horizon(k) for k in folds.parts}):
        here = folds.fold == horizon if folds.forward else np.ones(folds.m, bool)
        asked = np.where(here, part_trusted, -1)
        trusted += _scatter(model, models(horizon), asked, model.on_trusted)
    return Member(
        f"{model.name}, all rows",
        model,
        WhenAsked(lambda k: train(folds.horizon(k)), JUDGES),
        [trusted] * JUDGES,
        models(FOLDS)[:FOLDS],
    )


def trusted_only(model: LabelModel) -> Member:
    """A model of the trusted rows alone: out of fold on them. It is fitted when outputs are asked for.

    If fits are shared, the models that leave out one fold speak of it in every choice. Those for
    choice k have then learned from fold k what they say of the others, as they do for choice `FOLDS`.
    What they say of the fold itself, and of the training rows, is what it was; and they are of as many
    rows as those that judge the training rows.

    Cost: `FOLDS` fits on the trusted rows for what all of them together say of each other (choice
    `FOLDS`), and `1 + FOLDS` for everything if fits are shared, else `FOLDS (FOLDS - 1) / 2` more;
    more with times.
    """
    folds, none = model.folds, np.zeros(model.folds.n)
    fitted: dict[bytes, Any] = {}

    def without(choices_and_parts: Iterable[tuple[int, int]]) -> list[Any]:
        masks = [folds.others[k] & (folds.part_trusted != p) for k, p in choices_and_parts]
        new = {mask.tobytes(): mask for mask in masks if mask.tobytes() not in fitted}
        models = model.fits((none, mask.astype(float)) for mask in new.values())
        fitted.update(zip(new, models, strict=True))
        return [fitted[mask.tobytes()] for mask in masks]

    asked = np.where(folds.meets, folds.part, FREE)

    def on_train(k: int) -> Float[np.ndarray, "n outputs"]:
        outputs = np.zeros((folds.n, folds.kind.number))
        parts = np.unique(asked).tolist()
        for p, fit in zip(parts, without((k, p) for p in parts), strict=True):
            rows = np.flatnonzero(asked == p)
            outputs[rows] = model.on_train(fit, rows)
        return outputs

    def on_trusted(k: int) -> Float[np.ndarray, "m outputs"]:
        outputs = np.zeros((folds.m, folds.kind.number))
        choice = FOLDS if model.shares else k
        models = without((j, FREE) if folds.forward else (choice, j) for j in folds.parts)
        for j, fit in zip(folds.parts, models, strict=True):
            rows = np.flatnonzero(folds.fold == j)
            outputs[rows] = model.on_trusted(fit, rows)
        return outputs

    of_rows = WhenAsked(on_train, JUDGES), WhenAsked(on_trusted, JUDGES)
    last = WhenAsked(lambda _: without([(FOLDS, FREE)])[0], 1)
    return Member(f"{model.name}, trusted rows", model, *of_rows, last, alone=True)


def judging_fits(
    model: LabelModel, weights: Float[np.ndarray, "choices n"], trusted: float
) -> list[Any]:
    """Models of the training rows with weights, and of the trusted rows with theirs.

    Fit k leaves out fold k of the trusted rows and what belongs to it, and its weights do not know the
    fold either: what it says of the fold judges the weights. If fits are shared, it leaves out part k
    of the training rows too; with times, all rows that are not earlier than the fold.

    Cost: `FOLDS` fits.
    """
    return model.fits(_judging(model, weights, trusted, k) for k in range(FOLDS))


def _judging(
    model: LabelModel, weights: Float[np.ndarray, "choices n"], trusted: float, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of both tables in judging fit k."""
    folds = model.folds
    kept = folds.part != k if model.shares else folds.beside[k]
    return weights[k] * kept, trusted * folds.others[k]


def said_on_held_out(
    model: LabelModel, candidates: Sequence[tuple[Float[np.ndarray, "choices n"], float]]
) -> list[Float[np.ndarray, "m outputs"]]:
    """For each pair of weights, what `on_held_out` says of its `judging_fits`, which are not kept."""
    folds = model.folds
    held_out = [np.flatnonzero(folds.fold == k) for k in range(FOLDS)]
    how = model.classes, model.centre, model.spread

    def task(pair: tuple[np.ndarray, float], k: int) -> tuple[Any, ...]:
        fit = model.task(*_judging(model, *pair, k))
        return fit, take_rows(model.X_trusted, held_out[k]), *how

    said = independent(_say, (task(pair, k) for pair in candidates for k in range(FOLDS)))
    found = [np.zeros((folds.m, folds.kind.number)) for _ in candidates]
    for i, part in enumerate(said):
        found[i // FOLDS][held_out[i % FOLDS]] = part
    return found


def _say(fit: tuple[Any, ...], X: Any, *how: Any) -> Float[np.ndarray, "rows outputs"]:
    """The outputs of a model that is not kept."""
    return outputs(_fit(*fit), X, *how)


def on_held_out(model: LabelModel, models: Sequence[Any]) -> Float[np.ndarray, "m outputs"]:
    """Of each trusted row that judges, the output of the model that has not seen its fold."""
    return _scatter(model, models, model.folds.fold, model.on_trusted)


def second_round(
    model: LabelModel, weights: Float[np.ndarray, "choices n"], judging: list[Any]
) -> Member:
    """A model of all rows with weights, and of the trusted rows: out of fold on both.

    If fits are shared, the `judging_fits` of the weights are these models. Otherwise the weights for
    the training rows come from all trusted rows; with times, those for a fold come from earlier rows.
    All trusted rows had a part in the weights, so the member serves the choice of all of them only.

    Cost: none if fits are shared; else `HALVES` fits (`FOLDS` if they are expensive), and with times
    one per span that does not judge.
    """
    folds, models = model.folds, judging
    number, part, part_trusted = model.left_out
    if not model.shares:
        models = model.fits(
            (weights[FOLDS] * (part != p), (part_trusted != p).astype(float)) for p in range(number)
        )
    if folds.forward:
        trusted = on_held_out(model, judging)
    else:
        trusted = _scatter(model, models, part_trusted, model.on_trusted)
    for k in (k for k in folds.parts if k < 0):
        rows = np.flatnonzero(folds.fold == k)
        fit = model.fit(weights[0] * folds.beside[k], folds.others[k].astype(float))
        trusted[rows] = model.on_trusted(fit, rows)
    train = [_scatter(model, models, part, model.on_train)] * JUDGES
    return Member(f"{model.name}, weighted rows", model, train, [trusted] * JUDGES, models[:FOLDS])


def _scatter(
    model: LabelModel,
    models: Sequence[Any],
    part: Int[np.ndarray, " rows"],
    on: Callable[[Any, np.ndarray], Float[np.ndarray, "some outputs"]],
) -> Float[np.ndarray, "rows outputs"]:
    """Of each row of a table, the output of the model that has not seen its part; else zero.

    `on`: `on_train` or `on_trusted` of the label model.
    """
    outputs = np.zeros((len(part), model.folds.kind.number))
    for p, fit in enumerate(models):
        rows = np.flatnonzero(part == p)
        if len(rows):
            outputs[rows] = on(fit, rows)
    return outputs


def linear_label_model(folds: Folds, X: np.ndarray, X_trusted: np.ndarray) -> LabelModel:
    """Softmax or least squares with scikit-learn's default penalty, on scaled numbers."""
    if isinstance(folds.kind, Classes):
        number = folds.kind.number
        estimator, classes = LogisticRegression(tol=tolerance(folds.y, number)), np.arange(number)
    else:
        estimator, classes = Ridge(), None
    return LabelModel("linear", estimator, X, X_trusted, folds.y, folds.y_trusted, folds, classes)


def tolerance(y: Int[np.ndarray, " n"], classes: int) -> float:
    """Of the gradient of the mean loss, to which a rare class adds little: the less, the rarer.

    Of many classes each is rare, too: with one tolerance for all numbers of classes, the solver stops
    where it begins.
    """
    counts = np.bincount(y)
    rarest = counts[counts > 0].min() / len(y)
    return TOLERANCE * float(np.clip(min(5 * classes, 50) * rarest, LEAST_TOLERANCE, 1))


def own_label_model(folds: Folds, tables: Prepared, estimator: Any) -> LabelModel:
    """The user's own kind of model, on the rows as it takes them.

    A classifier gets the labels themselves, as in the final fit: its `class_weight` may name them, and
    so may the scoring of a search. One that takes codes only, such as XGBoost's, gets codes.
    """
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
        expensive=True,
    )


def is_the_linear_model(estimator: Any) -> bool:
    """Whether it is the penalised linear model itself; its solver does not matter."""
    if type(estimator) not in (LogisticRegression, Ridge):
        return False
    free = {"max_iter", "tol", "solver", "random_state", "n_jobs", "verbose", "warm_start"}
    usual = type(estimator)().get_params()
    return all(usual[k] == v for k, v in estimator.get_params().items() if k not in free)


def len_rows(X: Any) -> int:
    """The number of rows of an array, a data frame or a sparse matrix."""
    return X.shape[0]
