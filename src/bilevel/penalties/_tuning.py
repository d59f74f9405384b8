"""Choosing penalties by hypergradients: folds, the outer problem and what the estimators share."""

import abc
import numbers
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, check_cv
from sklearn.utils.validation import (
    _check_sample_weight,  # pyright: ignore[reportPrivateUsage]
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

# A penalty is sought between these multiples of a feature's own sum of squares (or of the largest
# useful l1 penalty): below, it does nothing; above, the feature is gone.
LEAST, MOST = 1e-7, 1e5
GRID = 13  # shared penalties that the search starts from
PATIENCE = 3  # of them in a row that are no better, after which weaker ones are not tried
ACTIVE = (0.1,)  # parts of its sum of squares that are a feature's penalty in the other starts

Phi = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Part(NamedTuple):
    """The training rows and the held-out rows of one fold, with their weights.

    Attributes:
        X, y, weight: the training rows, centred if there is an intercept (y only if it is numeric).
        X_held, y_held, weight_held: the held-out rows, from which the same means are subtracted.
            The weights of the held-out rows of all folds add up to 1.
        kept, held: the row numbers of both.
        X_mean, y_mean: the means that were subtracted; zero without an intercept, and for classes.
    """

    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    X_held: np.ndarray
    y_held: np.ndarray
    weight_held: np.ndarray
    kept: np.ndarray
    held: np.ndarray
    X_mean: np.ndarray
    y_mean: np.ndarray
    centred: bool

    def without(self, other: "Part") -> "Part":
        """The same without the rows that another part judges by."""
        learn, judge = (~np.isin(rows, other.held) for rows in (self.kept, self.held))
        return _make_part(
            self.X[learn] + self.X_mean,
            self.y[learn] + self.y_mean,
            self.weight[learn],
            self.X_held[judge] + self.X_mean,
            self.y_held[judge] + self.y_mean,
            self.weight_held[judge],
            self.kept[learn],
            self.held[judge],
            self.centred,
        )


class Tuned(NamedTuple):
    """The best outer variable found.

    Attributes:
        u: the logarithms of the penalties.
        value: `Phi(u)`.
        residual: the largest entry of the hypergradient, where it does not point out of the bounds.
        values: the values of Phi after each step of the outer solver.
        message: the reason why the outer solver stopped.
        converged: whether the outer solver reports convergence.
    """

    u: np.ndarray
    value: float
    residual: float
    values: list[float]
    message: str
    converged: bool


def tune(
    phi: Phi,
    starts: Iterable[np.ndarray],
    lower: Any,
    upper: Any,
    max_iter: int,
    tol: float,
    unit: float = 1.0,
    patience: int | None = None,
) -> Tuned:
    """`min_u Phi(u)` in a box, by L-BFGS-B from the best of the starts.

    If `patience` starts in a row are not better than the best one, the remaining starts are
    skipped.

    In general Phi has several local minima and is nearly flat for very large and small penalties;
    the starts keep the search away from there. The function returns the best point that was
    evaluated. `tol` and the outer solver see `Phi / unit`.
    """
    best, best_value, best_grad = None, np.inf, None

    def look(u: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, best_value, best_grad
        value, grad = phi(u)
        if value < best_value:
            best, best_value, best_grad = np.array(u), value, grad
        return value / unit, grad / unit

    misses = 0
    for start in starts:
        before = best_value
        look(np.clip(start, lower, upper))
        misses = 0 if best_value < before else misses + 1
        if misses == patience:
            break
    if best is None:
        raise FloatingPointError(
            "the cross-validated loss is not finite at any penalty; look for extreme values in X and "
            "y, and scale the features."
        )
    values = [best_value]
    found = minimize(
        look,
        best,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(*np.broadcast_arrays(lower, upper, best)[:2], strict=True)),
        callback=lambda u: values.append(best_value),
        options={"maxiter": max_iter, "gtol": tol, "ftol": 1e-3 * tol},
    )
    inward = best - np.clip(best - best_grad, lower, upper)
    residual = float(np.max(np.abs(inward), initial=0.0))
    return Tuned(best, float(best_value), residual, values, str(found.message), bool(found.success))


class AbstractTunedLinear(BaseEstimator, abc.ABC):
    """A linear model that chooses its penalties: everything that the estimators share."""

    cv: Any
    fit_intercept: bool
    max_iter: int
    tol: float
    tuned_: Tuned
    coef_: np.ndarray
    intercept_: Any

    @abc.abstractmethod
    def _fit(self, whole: Part, folds: list[Part]) -> None:
        """Choose the penalties on the folds, and fit with them on everything."""

    @abc.abstractmethod
    def _targets(self, y: np.ndarray) -> np.ndarray:
        """The targets as numbers."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Choose the penalties by cross-validation, then fit on all rows.

        Args:
            X: `(rows, features)`.
            y: `(rows,)`.
            sample_weight: `(rows,)`, >= 0, the weights of the rows in the training loss and in the
                held-out loss. A weight of 2 means that the row counts twice, in the same fold.
            groups: `(rows,)`, what each row belongs to (a patient, a device), for a `cv` that asks
                for it. An integer `cv` then makes folds of whole groups.

        Raises:
            ValueError: an argument is out of its range, a fold has no rows, or `cv` asks for groups
                that are not given.
        """
        regression = is_regressor(self)
        X, y = validate_data(
            self, X, y, dtype=np.float64, y_numeric=regression, ensure_min_samples=2
        )
        self._check_settings()
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        splits = self._splits(X, y, groups)
        targets = self._targets(y)
        everything = np.arange(len(targets))
        total = sum(weight[held].sum() for _, held in splits)
        if not total > 0:
            raise ValueError(
                "`sample_weight` is zero for all rows that judge; give some rows a positive weight."
            )
        folds = [
            make_part(X, targets, weight, kept, held, self.fit_intercept, total)
            for kept, held in splits
        ]
        whole = make_part(
            X, targets, weight, everything, everything, self.fit_intercept, weight.sum()
        )
        self._fit(whole, folds)
        if not self.tuned_.converged:
            warnings.warn(
                f"the penalties did not converge in max_iter={self.max_iter} steps of the outer "
                f"solver ({self.tuned_.message}); the best that were met are used. Raise max_iter.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.cv_loss_ = self.tuned_.value
        self.hypergradient_norm_ = self.tuned_.residual
        self.n_iter_ = len(self.tuned_.values)
        return self

    def _splits(self, X: np.ndarray, y: np.ndarray, groups: Any) -> list[Any]:
        """The row numbers of each fold: of those that learn, and of those that judge."""
        regression = is_regressor(self)
        cv: Any = self.cv
        if groups is not None:
            check_consistent_length(y, groups)
            if isinstance(cv, numbers.Integral):
                cv = GroupKFold(int(cv)) if regression else StratifiedGroupKFold(int(cv))
        splitter: Any = check_cv(cv, y, classifier=not regression)
        try:
            return list(splitter.split(X, y, groups))
        except ValueError as error:
            if groups is None and "groups" in str(error):
                raise ValueError(
                    f"`cv={splitter}` makes folds of whole groups and was given none: pass `groups=` "
                    "to fit, one entry per row, or give the folds themselves, "
                    "cv=list(splitter.split(X, y, groups))."
                ) from error
            raise

    def _check_settings(self) -> None:
        if not isinstance(self.max_iter, numbers.Integral) or self.max_iter < 1:
            raise ValueError(f"`max_iter` must be an integer >= 1, got {self.max_iter!r}.")
        if not self.tol > 0:
            raise ValueError(f"`tol` must be > 0, got {self.tol!r}.")

    def _decide(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_.T + self.intercept_


class PenaltyMap(NamedTuple):
    """Which penalty each feature has, and the box and starts for their logarithms.

    Attributes:
        codes: `(features,)`, the number of each feature's penalty.
        number: the number of penalties.
        scale: `(features,)`, the weighted sum of squares of each feature.
    """

    codes: np.ndarray
    number: int
    scale: np.ndarray

    @property
    def log_scale(self) -> np.ndarray:
        """The mean logarithm of the scales of each penalty's features."""
        counts = np.bincount(self.codes, minlength=self.number)
        return np.bincount(self.codes, np.log(self.scale), self.number) / counts

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the log-penalties."""
        return self.log_scale + np.log(LEAST), self.log_scale + np.log(MOST)

    def hypergradient(self, u: np.ndarray, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """`-(d2_uw f)^T v` for `f = ... + 1/2 sum_j exp(u_(code of j)) ||w_j||^2`: `-exp(u) w v`."""
        products = (w * v).reshape(len(self.codes), -1).sum(axis=1)
        return -np.exp(u) * np.bincount(self.codes, products, self.number)


def penalty_map(penalties: Any, whole: Part) -> PenaltyMap:
    """From `"feature"`, `"shared"`, or one group number per feature.

    Raises:
        ValueError: another word, or an array of another shape or kind.
    """
    features = whole.X.shape[1]
    if isinstance(penalties, str) and penalties == "feature":
        codes = np.arange(features)
    elif isinstance(penalties, str) and penalties == "shared":
        codes = np.zeros(features, int)
    else:
        groups = np.asarray(penalties)
        if groups.shape != (features,) or groups.dtype.kind not in "iuUSO":
            raise ValueError(
                "`penalties` must be 'auto', 'feature' (one penalty per feature), 'shared' (one for "
                f"all), or one group label for each of the {features} features, got {penalties!r}."
            )
        codes = np.unique(groups, return_inverse=True)[1]
    centred = whole.X - np.average(whole.X, axis=0, weights=whole.weight)
    squares = whole.weight @ centred**2
    largest = squares.max(initial=0.0)
    scale = np.maximum(squares, 1e-12 * largest) if largest > 0 else np.ones(features)
    return PenaltyMap(codes, int(codes.max()) + 1, scale)


class InnerProblem(Protocol):
    """The inner problem of one fold, for a map of penalties."""

    def value_and_hypergradient(
        self, u: np.ndarray, penalties: PenaltyMap
    ) -> tuple[float, np.ndarray]:
        """The loss on the held-out rows, and its derivative in the log-penalties."""
        ...


class AbstractPenalised(AbstractTunedLinear):
    """What ridge and logistic regression share: penalties of features, shared or separate."""

    penalties: Any
    alpha_: Any
    nested_loss_: Any

    @abc.abstractmethod
    def _problem(self, part: Part) -> "InnerProblem":
        """The inner problem of one fold."""

    @abc.abstractmethod
    def _finish(self, whole: Part, u: np.ndarray) -> None:
        """Fit on all rows, for one log-penalty per feature."""

    def _unit(self, whole: Part) -> float:
        """What the outer objective is measured in."""
        del whole
        return 1.0

    def _fit(self, whole: Part, folds: list[Part]) -> None:
        kind, self.nested_loss_ = self.penalties, None
        if isinstance(kind, str) and kind == "auto":
            self.nested_loss_ = self._nested(folds)
            kind = min(self.nested_loss_, key=self.nested_loss_.get)  # "shared" in a tie
        chosen = penalty_map(kind, whole)
        shared, best = self._search(chosen, whole, folds)
        self.shared_alpha_, self.shared_cv_loss_ = float(np.exp(shared.u[0])), shared.value
        self.tuned_ = best
        alpha = np.exp(best.u)
        self.alpha_ = alpha[chosen.codes] if chosen.number > 1 else float(alpha[0])
        self._finish(whole, best.u[chosen.codes])

    def _search(self, chosen: PenaltyMap, whole: Part, folds: list[Part]) -> tuple[Tuned, Tuned]:
        """The best shared penalty, and the best of the penalties asked for."""
        problems = [self._problem(fold) for fold in folds]

        def search(
            penalties: PenaltyMap,
            starts: list[np.ndarray],
            unit: float,
            patience: int | None = None,
        ) -> Tuned:
            def phi(u: np.ndarray) -> tuple[float, np.ndarray]:
                pairs = [each.value_and_hypergradient(u, penalties) for each in problems]
                values, grads = zip(*pairs, strict=True)
                return sum(values), np.sum(grads, axis=0)

            bounds = penalties.bounds()
            return tune(phi, starts, *bounds, self.max_iter, self.tol, unit, patience)

        one = penalty_map("shared", whole)
        # From the strongest penalty down: weak ones take the inner solver longest.
        down = [one.log_scale + np.log(part) for part in np.geomspace(1e2, 1e-6, GRID)]
        shared = search(one, down, self._unit(whole), PATIENCE)
        if chosen.number == 1:
            return shared, shared
        # Where penalties are tiny Phi is flat, and a descent would not leave: one starts elsewhere.
        starts = [
            np.full(chosen.number, shared.u[0]),
            *(chosen.log_scale + np.log(part) for part in ACTIVE),
        ]
        unit = max(shared.value, 1e-12 * self._unit(whole))
        runs = [search(chosen, [start], unit) for start in starts]
        return shared, min(runs, key=lambda run: run.value)

    def _nested(self, folds: list[Part]) -> dict[str, float]:
        """The loss on each fold of models whose penalties were chosen on the others."""
        if len(folds) < 3:
            raise ValueError(
                "penalties='auto' judges on each fold what the others chose, which needs at least 3 "
                f"folds, got {len(folds)}; raise `cv`, or choose 'shared' or 'feature'."
            )
        loss = {"shared": 0.0, "feature": 0.0}
        for fold in folds:
            inner = [other.without(fold) for other in folds if other is not fold]
            chosen = penalty_map("feature", fold)
            problem = self._problem(fold)
            shared, best = self._search(chosen, fold, inner)
            for name, found in (("shared", shared), ("feature", best)):
                u = np.broadcast_to(found.u, chosen.number)
                loss[name] += problem.value_and_hypergradient(u, chosen)[0]
        return loss


def make_part(
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    kept: np.ndarray,
    held: np.ndarray,
    centre: bool,
    total: float,
) -> Part:
    """Split; `total` is the sum of the weights of all rows that judge, of all folds."""
    return _make_part(
        X[kept], y[kept], weight[kept], X[held], y[held], weight[held] / total, kept, held, centre
    )


def _make_part(
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    X_held: np.ndarray,
    y_held: np.ndarray,
    weight_held: np.ndarray,
    kept: np.ndarray,
    held: np.ndarray,
    centre: bool,
) -> Part:
    if not weight.sum() > 0:
        raise ValueError(
            "`sample_weight` is zero for all rows that one fold learns from; use fewer folds or give "
            "more rows a positive weight."
        )
    X_mean, y_mean = np.zeros(X.shape[1]), np.zeros((), y.dtype)
    if centre:
        X_mean = np.average(X, axis=0, weights=weight)
        if y.dtype.kind == "f":
            y_mean = np.average(y, weights=weight)
    return Part(
        X - X_mean,
        y - y_mean,
        weight,
        X_held - X_mean,
        y_held - y_mean,
        weight_held,
        kept,
        held,
        X_mean,
        np.asarray(y_mean),
        centre,
    )
