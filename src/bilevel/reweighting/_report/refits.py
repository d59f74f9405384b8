"""What the report learns by fitting the final estimator again on parts of the rows."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import is_classifier
from sklearn.metrics import accuracy_score, r2_score

from .._inputs.checks import InputError
from .._weights.baselines import BASELINES, compare_baselines, stack_rows
from .._weights.coded_labels import fit_weighted, predictions, take_rows
from .._weights.fits import independent
from .._weights.metric import Metric, Said
from .._weights.result import WeightsResult

MAX_ROWS, NUM_RANDOM = 20_000, 3
REMOVED = (0, 5, 10, 20, 30, 40, 50)


Fit = tuple[Any, Any, np.ndarray, np.ndarray]  # what `fit_weighted` takes


class Score(NamedTuple):
    """The user's metric, accuracy or R2.

    Attributes:
        metric: the user's.
        classes: all there are, sorted; None in a regression.
    """

    metric: Metric | None
    classes: np.ndarray | None

    def __call__(self, model: Any, X: Any, y: np.ndarray) -> float:
        """NaN where it is undefined."""
        metric, classes = self
        if len(y) < (2 if classes is None else 1):
            return np.nan
        if metric is None:
            return float(
                (r2_score if classes is None else accuracy_score)(y, predictions(model, X))
            )
        if classes is not None and len(np.unique(y)) < 2:
            return np.nan  # rankings of one class
        said = Said.of_model(model, X, classes, metric.coded)
        if classes is not None and metric.coded:
            y = np.searchsorted(classes, y)
        try:
            return metric(said, X, y, np.ones(len(y)))
        except InputError:
            return np.nan

    def of_fit(self, fit: Fit | None, X: Any, y: np.ndarray) -> float:
        """Of a model that is not kept; NaN if it cannot be fitted."""
        return np.nan if fit is None else self(fit_weighted(*fit), X, y)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The tables, and the estimator fitted on parts of them."""

    estimator: Any
    X: Any
    y: np.ndarray
    X_trusted: Any
    y_trusted: np.ndarray
    result: WeightsResult

    @property
    def regression(self) -> bool:
        return not is_classifier(self.estimator)

    @property
    def metric(self) -> str:
        if self.result.metric is not None:
            return self.result.metric.name
        return "R2" if self.regression else "accuracy"

    @property
    def weights(self) -> np.ndarray:
        return np.asarray(self.result.weights, dtype=np.float64)

    @property
    def quality(self) -> np.ndarray:
        return np.asarray(self.result.label_quality, dtype=np.float64)

    @functools.cached_property
    def classes(self) -> np.ndarray | None:
        """The labels of both tables, sorted; None in a regression."""
        return None if self.regression else np.union1d(self.y, self.y_trusted)

    @property
    def score(self) -> Score:
        """Of a model, on rows and their labels."""
        return Score(self.result.metric, self.classes)

    def alone(self, index: np.ndarray, weights: np.ndarray) -> Fit | None:
        """A fit of these training rows without the trusted ones; `None` if it cannot be."""
        weights = weights * self.result.counts[0][index]
        weighed = np.unique(self.y[index][weights > 0])
        if len(weighed) < (1 if self.regression else 2):
            return None
        return self.estimator, take_rows(self.X, index), self.y[index], weights

    @functools.cached_property
    def both_alone(self) -> tuple[Any, Any]:
        """Models of all training rows without the trusted ones: of equal weights, and of the learned.

        Where these are zero, as the trusted rows alone won, both are of equal weights.
        """
        learned = float(self.result.scale) * self.weights
        both = (np.ones(len(self.y)), learned)
        fits = (self.alone(np.arange(len(self.y)), weights) for weights in both)
        models = independent(fit_weighted, (fit for fit in fits if fit is not None))
        return models[0], models[-1]

    def beside(
        self,
        index: np.ndarray,
        weights: np.ndarray,
        trusted_weight: float,
        trusted: np.ndarray | None = None,
    ) -> Fit:
        """A fit of these training rows and these trusted ones, or all of them."""
        X, y, counts = self.X_trusted, self.y_trusted, self.result.counts[1]
        if trusted is not None:
            X, y, counts = take_rows(X, trusted), y[trusted], counts[trusted]
        return (
            self.estimator,
            stack_rows(take_rows(self.X, index), X),
            stack_rows(self.y[index], y),
            np.concatenate([weights * self.result.counts[0][index], trusted_weight * counts]),
        )

    def equal(self) -> Fit:
        """A fit of all training and trusted rows, equal weights."""
        everything = np.arange(len(self.y))
        return self.beside(everything, np.ones(len(self.y)), 1.0)

    def final(self, index: np.ndarray | None = None, trusted: np.ndarray | None = None) -> Fit:
        """A fit of (these) training and (these) trusted rows, weighted as the result says."""
        index = np.arange(len(self.y)) if index is None else index
        scale = float(self.result.scale)
        trusted_weight = scale * float(self.result.trusted_weight)
        return self.beside(index, scale * self.weights[index], trusted_weight, trusted)

    def compare_baselines(self, X_holdout: Any, y_holdout: np.ndarray) -> pd.DataFrame:
        """The reweighted fit beside the baselines, on rows that took no part in learning."""
        scale = float(self.result.scale)
        return compare_baselines(
            self.estimator,
            self.X,
            self.y,
            self.X_trusted,
            self.y_trusted,
            scale * self.weights,
            scale * float(self.result.trusted_weight),
            X_holdout,
            y_holdout,
            sample_weight=self.result.counts[0],
            sample_weight_trusted=self.result.counts[1],
            scoring=self.result.metric,
        )


def overfitting(
    rows: Rows,
    holdout: tuple[Any, np.ndarray] | None,
    control: Callable[[np.ndarray], Any] | None,
    seed: int,
) -> dict[str, Any]:
    """How much of the drop of the trusted loss is overfitting to the trusted labels.

    The final estimator is fitted on the training rows alone, with equal weights and with those
    learned: the drop is `D = loss(equal) - loss(weights)` on the trusted rows, and `D_h` on the
    hold-out, to whose labels nothing was fitted:

        share = (D - D_h) / D, between 0 and 1

    The control learns weights against shuffled trusted labels, and the drop is `D_s`. A model that
    is less confident does better on *any* shuffle, which is not overfitting. The mean `E_s` of the
    drop over all shuffles has a closed form, so `D_s - E_s` is what was fitted to labels from which
    there is nothing to learn. True labels leave less noise to fit, so `at_most = (D_s - E_s) / D` is a
    worst case; it is useful where it is small.
    """
    y = rows.y_trusted
    equal, ours = rows.both_alone
    name = _loss_name(rows, equal)

    def change(X: Any, y: np.ndarray) -> tuple[dict[str, float], float]:
        before, after = (_losses(rows, model, X, y) for model in (equal, ours))
        drop, error = _mean(before - after)
        return {"equal": float(before.mean()), "weights": float(after.mean()), "drop": drop}, error

    trusted, error = change(rows.X_trusted, y)
    drop = trusted["drop"]
    found: dict[str, Any] = {"loss": name, "trusted": trusted, "holdout": None, "share": None}
    sentence = f"From equal weights to these the {name} on the trusted rows went {_moved(drop)}"
    if holdout is not None:
        found["holdout"], error_there = change(*holdout)
        gap, gap_error = drop - found["holdout"]["drop"], float(np.hypot(error, error_there))
        found |= {"gap": gap, "gap_error": gap_error}
        sentence += f", on the hold-out {_moved(found['holdout']['drop'])}"
        if drop > 0:
            found["share"] = float(np.clip(gap / drop, 0, 1))
            sentence += (
                f": overfitting is about {found['share']:.0%} of the drop (the gap is {gap:.3f}, "
                f"standard error {gap_error:.3f})"
            )
    sentence += "."
    found["control"] = None if control is None else _control(rows, control, seed)
    if found["control"] is not None:
        fitted, fitted_error = found["control"]["overfit"], found["control"]["standard_error"]
        found["control"]["at_most"] = max(fitted / drop, 0.0) if drop > 0 else None
        winner = found["control"]["winner"]
        sentence += " Against shuffled trusted labels, which hold nothing to learn, "
        if winner in BASELINES and fitted <= 2 * fitted_error:
            sentence += f'no weights were found better than "{winner}": none follow noise.'
        else:
            sentence += (
                f'what was chosen ("{winner}") fits {fitted:.3f} (standard error '
                f"{fitted_error:.3f}) of {name} to those very labels"
            )
            sentence += f", {max(fitted / drop, 0):.0%} of the drop" if drop > 0 else ""
            sentence += ": a worst case, since true labels leave less to fit."
    return found | {"sentence": sentence}


def _moved(drop: float) -> str:
    return f"{'down' if drop >= 0 else 'up'} by {abs(drop):.3f}"


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def _control(
    rows: Rows,
    control: Callable[[np.ndarray], WeightsResult],
    seed: int,
) -> dict[str, Any]:
    shuffled = np.random.default_rng(seed).permutation(rows.y_trusted)
    again = control(shuffled)
    fit = rows.alone(np.arange(len(rows.y)), float(again.scale) * np.asarray(again.weights))
    equal, _ = rows.both_alone
    models = equal, equal if fit is None else fit_weighted(*fit)
    losses = [_losses(rows, model, rows.X_trusted, shuffled) for model in models]
    usual = [_expected_losses(rows, model) for model in models]
    overfit, error = _mean((losses[0] - usual[0]) - (losses[1] - usual[1]))
    return {
        "equal": losses[0].mean(),
        "weights": losses[1].mean(),
        "drop": (losses[0] - losses[1]).mean(),
        "overfit": overfit,
        "standard_error": error,
        "winner": again.winner,
    }


def _loss_name(rows: Rows, model: Any) -> str:
    if rows.regression:
        return "squared error"
    return "log loss" if hasattr(model, "predict_proba") else "error rate"


def _loss_matrix(model: Any, X: Any, classes: np.ndarray) -> np.ndarray:
    """The loss of each row if its label were each of the classes."""
    if not hasattr(model, "predict_proba"):
        return (predictions(model, X)[:, None] != classes[None]).astype(float)
    given = np.asarray(model.predict_proba(X))
    p = np.zeros((len(given), len(classes)))
    known = np.isin(model.classes_, classes)
    p[:, np.searchsorted(classes, model.classes_[known])] = given[:, known]
    return -np.log(np.clip(p, 1e-6, 1))


def _losses(rows: Rows, model: Any, X: Any, y: np.ndarray) -> np.ndarray:
    """The loss of each row: log loss, error, or squared error over the trusted rows' variance."""
    if rows.regression:
        return (predictions(model, X) - y) ** 2 / (np.var(rows.y_trusted) or 1.0)
    classes = np.unique(y)
    return _loss_matrix(model, X, classes)[np.arange(len(y)), np.searchsorted(classes, y)]


def _expected_losses(rows: Rows, model: Any) -> np.ndarray:
    """The mean of `_losses` of the trusted rows over all shuffles of their labels."""
    y = rows.y_trusted
    if rows.regression:
        spread = np.var(y)
        residual = predictions(model, rows.X_trusted) - np.mean(y)
        return (residual**2 + spread) / (spread or 1.0)
    classes, counts = np.unique(y, return_counts=True)
    return _loss_matrix(model, rows.X_trusted, classes) @ (counts / len(y))


def removal(rows: Rows, holdout: tuple[Any, np.ndarray] | None, seed: int) -> dict[str, Any]:
    """The score without the k% of rows of lowest label quality, and without as many at random."""
    rng = np.random.default_rng(seed)
    n = len(rows.y)
    index = np.sort(rng.choice(n, MAX_ROWS, replace=False)) if n > MAX_ROWS else np.arange(n)
    by_quality = index[np.argsort(rows.quality[index], kind="stable")]
    at_random = [rng.permutation(index) for _ in range(NUM_RANDOM)]
    judge = (rows.X_trusted, rows.y_trusted) if holdout is None else holdout

    def without(order: np.ndarray, percent: int) -> tuple[Any, ...]:
        kept = np.sort(order[round(len(order) * percent / 100) :])
        return rows.score, rows.alone(kept, np.ones(len(kept))), *judge

    # Nothing removed, of all rows: that model is there.
    removed = REMOVED[1:] if len(index) == n else REMOVED
    orders = {percent: [by_quality, *at_random] if percent else [by_quality] for percent in removed}
    asked = [(percent, order) for percent, some in orders.items() for order in some]
    found = independent(Score.of_fit, (without(order, percent) for percent, order in asked))
    scores = {percent: [] for percent in removed}
    for (percent, _), score in zip(asked, found, strict=True):
        scores[percent].append(score)
    if len(index) == n:
        scores[0] = [rows.score(rows.both_alone[0], *judge)]

    table = []
    for percent in REMOVED:
        lowest, *others = scores[percent]
        others = others or [lowest]
        table.append(
            {
                "percent": percent,
                "rows": len(index) - round(len(index) * percent / 100),
                "lowest": lowest,
                "random": np.mean(others),
                "random_low": np.min(others),
                "random_high": np.max(others),
            }
        )
    judged = (
        "hold-out"
        if holdout is not None
        else "trusted rows, which also chose the order: optimistic"
    )
    return {"table": table, "judged_on": judged, "draws": NUM_RANDOM, "train_rows": len(index)}
