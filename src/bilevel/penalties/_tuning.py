"""What the estimators that choose their penalties share."""

import abc
import numbers
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
from scipy.sparse import csr_array, issparse
from sklearn.base import BaseEstimator, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, check_cv
from sklearn.utils import Tags
from sklearn.utils.validation import (
    _check_sample_weight,  # pyright: ignore[reportPrivateUsage]
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from ._parts import Part, Source, make_part
from ._search import Tuned, best_of, tune

# A penalty is sought between these multiples of a feature's own sum of squares (or of the largest
# useful l1 penalty): below, it does nothing; above, the feature is gone.
LEAST, MOST = 1e-7, 1e5
GRID = 9  # shared penalties that the search starts from
# Errors of a slope that the search may see, as parts of the loss and of the last slope; and how often
# a slope is computed more accurately at the same point.
ROUGH, SLACK, PASSES = 1e-3, 0.1, 4
ACTIVE = (0.1,)  # parts of its sum of squares that are a feature's penalty in the other starts


class AbstractTunedLinear(BaseEstimator, abc.ABC):
    """A linear model that chooses its penalties: everything that the estimators share."""

    cv: Any
    fit_intercept: bool
    max_iter: int
    tol: float
    tuned_: Tuned
    coef_: np.ndarray
    intercept_: Any

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @abc.abstractmethod
    def _fit(self, whole: Part, folds: list[Part]) -> None:
        """Choose the penalties on the folds, and fit with them on everything."""

    @abc.abstractmethod
    def _targets(self, y: np.ndarray) -> np.ndarray:
        """The targets as numbers."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Choose the penalties by cross-validation, then fit on all rows.

        Args:
            X: `(rows, features)`, an array or a SciPy sparse matrix, which is never made dense.
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
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=np.float64,
            y_numeric=regression,
            ensure_min_samples=2,
        )
        X = csr_array(X) if issparse(X) else X
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
        unit = float(2.0 ** np.round(np.log2(weight.mean())))
        weight, total = weight / unit, total / unit
        source = Source(X, targets, weight, self.fit_intercept, unit)
        folds = [make_part(source, kept, held, total) for kept, held in splits]
        whole = make_part(source, everything, everything, weight.sum())
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
        rows = np.arange(len(y))  # splits may be given as masks, or count rows from the end
        try:
            return [(rows[kept], rows[held]) for kept, held in splitter.split(X, y, groups)]
        except (ValueError, TypeError) as error:
            # scikit-learn 1.7 stumbles over the missing groups of `StratifiedGroupKFold`.
            if groups is None and ("groups" in str(error) or isinstance(error, TypeError)):
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
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
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
    features = len(whole.X_mean)
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
    squares = whole.X.squares(whole.weight)
    largest = squares.max(initial=0.0)
    scale = np.maximum(squares, 1e-12 * largest) if largest > 0 else np.ones(features)
    return PenaltyMap(codes, int(codes.max()) + 1, scale)


class InnerProblem(Protocol):
    """The inner problem of one fold, for a map of penalties.

    `exact` says that hypergradients have no error but rounding, whatever accuracy is asked for.
    """

    exact: ClassVar[bool]

    def value(self, u: np.ndarray, penalties: PenaltyMap) -> float:
        """The loss on the held-out rows, roughly: good enough to choose a start."""
        ...

    def value_and_hypergradient(
        self, u: np.ndarray, penalties: PenaltyMap, accuracy: float = 0.0
    ) -> tuple[float, np.ndarray]:
        """The loss on the held-out rows, and its derivative in the log-penalties.

        The error of the derivative should be well below `accuracy`.
        """
        ...


class AbstractPenalised(AbstractTunedLinear):
    """What ridge and logistic regression share: penalties of features, shared or separate."""

    penalties: Any
    alpha_: Any
    nested_loss_: Any

    @abc.abstractmethod
    def _problems(self, parts: list[Part]) -> "Sequence[InnerProblem]":
        """The inner problems of some folds."""

    @abc.abstractmethod
    def _finish(self, whole: Part, u: np.ndarray, problems: "Sequence[Any]") -> None:
        """Fit on all rows, for one log-penalty per feature; `problems` are those of the folds."""

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
        problems = self._problems(folds)
        shared, best = self._search(chosen, whole, problems)
        unit = whole.source.unit
        self.shared_alpha_, self.shared_cv_loss_ = unit * float(np.exp(shared.u[0])), shared.value
        self.tuned_ = best._replace(u=best.u + np.log(unit))
        alpha = unit * np.exp(best.u)
        self.alpha_ = alpha[chosen.codes] if chosen.number > 1 else float(alpha[0])
        self._finish(whole, best.u[chosen.codes], problems)

    def _search(
        self, chosen: PenaltyMap, whole: Part, problems: "Sequence[InnerProblem]"
    ) -> tuple[Tuned, Tuned]:
        """The best shared penalty, and the best of the penalties asked for."""

        def search(
            penalties: PenaltyMap, start: np.ndarray, unit: float, curvature: float | None = None
        ) -> Tuned:
            accuracy = ROUGH * unit

            def phi(u: np.ndarray) -> tuple[float, np.ndarray]:
                # An error of a part of the last slope does no harm, unless this one is far smaller.
                nonlocal accuracy
                value, grad = np.nan, u
                for _ in range(1 if all(each.exact for each in problems) else PASSES):
                    pairs = [
                        each.value_and_hypergradient(u, penalties, accuracy) for each in problems
                    ]
                    values, grads = zip(*pairs, strict=True)
                    value, grad = sum(values), np.sum(grads, axis=0)
                    needed = max(self.tol * unit, SLACK * float(np.max(np.abs(grad))))
                    enough, accuracy = not accuracy > needed, needed
                    if enough:
                        break
                return value, grad

            box = penalties.bounds()
            return tune(phi, start, *box, self.max_iter, self.tol, unit, curvature)

        one = penalty_map("shared", whole)
        # From the strongest penalty down: weak ones take the inner solver longest.
        down = [one.log_scale + np.log(part) for part in np.geomspace(1e2, 1e-6, GRID)]
        start = best_of(lambda u: sum(each.value(u, one) for each in problems), down)
        shared = search(one, start.u, self._unit(whole), start.curvature)
        if chosen.number == 1:
            return shared, shared
        # Where penalties are tiny Phi is flat, and a descent would not leave: one starts elsewhere.
        starts = [
            np.full(chosen.number, shared.u[0]),
            *(chosen.log_scale + np.log(part) for part in ACTIVE),
        ]
        unit = max(shared.value, 1e-12 * self._unit(whole))
        runs = [search(chosen, start, unit) for start in starts]
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
            (problem,) = self._problems([fold])
            shared, best = self._search(chosen, fold, self._problems(inner))
            for name, found in (("shared", shared), ("feature", best)):
                u = np.broadcast_to(found.u, chosen.number)
                loss[name] += problem.value_and_hypergradient(u, chosen)[0]
        return loss
