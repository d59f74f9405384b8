"""scikit-learn estimators that learn the weights, then fit any estimator with them."""

import abc
import numbers
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from ._baselines import check_estimator_fits, compare_baselines, fit_weighted, stack_rows
from ._data import InputError, check_aligned
from ._weights import default_estimator, learn_weights


def _final_has(name: str) -> Any:
    def check(self: Any) -> bool:
        final = getattr(self, "estimator_", None) or self.estimator
        return final is None or hasattr(final, name)

    return check


class _AbstractReweighted(BaseEstimator, abc.ABC):
    """What the classifier and the regressor share: all but their name, kind and default."""

    def __init__(
        self,
        estimator: Any = None,
        *,
        model: Any = "linear",
        method: Any = "near-exact",
        num_steps: int | None = None,
        l2: float = 1e-2,
        overlap: str = "error",
        random_state: Any = 0,
    ):
        self.estimator = estimator
        self.model = model
        self.method = method
        self.num_steps = num_steps
        self.l2 = l2
        self.overlap = overlap
        self.random_state = random_state

    @abc.abstractmethod
    def _task(self) -> str:
        """Classification or regression."""

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        is_trusted: Any = None,
        X_trusted: Any = None,
        y_trusted: Any = None,
    ) -> Self:
        """Learn the weights, then fit the final estimator with them.

        Args:
            X, y: the rows. With `is_trusted`, trusted rows are among them; otherwise they are all
                training rows.
            is_trusted: a boolean mask over the rows of `X`.
            X_trusted, y_trusted: the trusted rows, where they are not part of `X`.

        Raises:
            ValueError: no trusted rows are given, or both ways at once; the estimator takes no
                sample_weight; the data cannot be used (the message names rows and columns).
        """
        task = self._task()
        estimator = self.estimator
        if estimator is None:
            estimator = default_estimator(task == "regression")
        check_estimator_fits(estimator, task == "regression")
        rows, trusted, mask = _split(X, y, is_trusted, X_trusted, y_trusted)
        result = learn_weights(
            *rows,
            *trusted,
            task=task,  # pyright: ignore[reportArgumentType]
            model=self.model,
            method=self.method,
            num_steps=self.num_steps,
            l2=self.l2,
            overlap=self.overlap,  # pyright: ignore[reportArgumentType]
            seed=_seed(self.random_state),
        )
        weights = np.asarray(result.weights)
        trusted_weights = np.full(len(trusted[1]), result.trusted_weight)
        self.estimator_ = fit_weighted(
            estimator,
            stack_rows(rows[0], trusted[0]),
            stack_rows(rows[1], trusted[1]),
            np.concatenate([weights, trusted_weights]),
        )
        # One weight a row of X: where X holds trusted rows, theirs is the trusted weight.
        everywhere, keep = np.empty(len(mask)), np.ones(len(mask), bool)
        everywhere[mask], everywhere[~mask] = result.trusted_weight, weights
        keep[~mask] = result.keep
        self.weights_ = (
            pd.Series(everywhere, X.index) if isinstance(X, pd.DataFrame) else everywhere
        )
        self.keep_mask_ = keep
        self.trusted_weight_ = result.trusted_weight
        self.n_effective_ = result.effective_sample_size
        self.history_ = result.history
        self.result_ = result
        self.n_features_in_ = np.shape(X)[1]
        if isinstance(X, pd.DataFrame):
            self.feature_names_in_ = np.asarray(X.columns, dtype=object)
        if task == "classification":
            self.classes_ = self.estimator_.classes_
        self._rows, self._trusted = rows, trusted
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The final estimator's predictions."""
        check_is_fitted(self)
        return self.estimator_.predict(X)

    def compare_baselines(self, X_holdout: Any, y_holdout: Any) -> pd.DataFrame:
        """The table of baselines on rows never used in `fit`, see `bilevel.compare_baselines`."""
        check_is_fitted(self)
        return compare_baselines(
            clone(self.estimator_),
            *self._rows,
            *self._trusted,
            np.asarray(self.result_.weights),
            self.trusted_weight_,
            X_holdout,
            y_holdout,
        )


def _seed(random_state: Any) -> int:
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _split(
    X: Any, y: Any, is_trusted: Any, X_trusted: Any, y_trusted: Any
) -> tuple[tuple[Any, Any], tuple[Any, Any], np.ndarray]:
    """(training rows, trusted rows, mask of the trusted rows over X)."""
    separate = X_trusted is not None or y_trusted is not None
    if separate and (X_trusted is None or y_trusted is None):
        raise ValueError("pass both `X_trusted` and `y_trusted`, or neither.")
    if separate == (is_trusted is not None):
        raise ValueError(
            "say which rows are trusted in one way: `is_trusted=` (a boolean mask over X), or "
            f"`X_trusted=` and `y_trusted=`; got {'both' if separate else 'neither'}."
        )
    if separate:
        return (X, y), (X_trusted, y_trusted), np.zeros(len(X), bool)
    check_aligned(X, is_trusted, "is_trusted")
    mask = np.asarray(is_trusted)
    if mask.dtype != bool or mask.shape != (len(X),):
        raise ValueError(
            f"`is_trusted` must be a boolean mask with one entry per row of X ({len(X)}), got "
            f"{mask.dtype} of shape {mask.shape}."
        )
    if mask.all() or not mask.any():
        raise InputError(
            f"`is_trusted` marks {'all' if mask.all() else 'no'} rows; some rows must be trusted "
            "and some must be in need of a weight."
        )

    def take(a: Any, where: np.ndarray) -> Any:
        return a.loc[where] if isinstance(a, (pd.DataFrame, pd.Series)) else np.asarray(a)[where]

    return (take(X, ~mask), take(y, ~mask)), (take(X, mask), take(y, mask)), mask


class ReweightedClassifier(ClassifierMixin, _AbstractReweighted):
    """Any classifier, fitted on rows weighted by what trusted rows say they are worth.

    Args:
        estimator: a scikit-learn classifier that accepts `sample_weight`, or a pipeline ending in
            one; logistic regression on scaled features by default. It is cloned.
        model, method, num_steps, l2, overlap: how the weights are learned, see
            `bilevel.learn_weights`. The weights are learned with `model`, not with `estimator`.
        random_state: an integer seed, a `RandomState`, or `None` for a random one.

    Attributes:
        weights_: one a row of X, mean 1 over the untrusted rows, with the index of X; a
            `sample_weight` for any estimator.
        keep_mask_: False for the rows to look at.
        trusted_weight_: the weight of each trusted row in the final fit.
        n_effective_: the effective sample size of the untrusted rows' weights.
        estimator_: the fitted final estimator. `classes_`, `n_features_in_` as usual.
        history_, result_: the run, and the whole `WeightsResult` with its checks.

    The fitted object keeps the rows it was given, for `compare_baselines`.

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> trusted = np.arange(150) % 3 == 0
    >>> clf = ReweightedClassifier(overlap="keep").fit(X, y, is_trusted=trusted)
    >>> round(float(clf.weights_[~trusted].mean()), 6), clf.predict(X[:2]).tolist()
    (1.0, [0, 0])
    """

    def _task(self):
        return "classification"

    @available_if(_final_has("predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """The final estimator's class probabilities, in the order of `classes_`."""
        check_is_fitted(self)
        return self.estimator_.predict_proba(X)

    @available_if(_final_has("decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """The final estimator's decision function."""
        check_is_fitted(self)
        return self.estimator_.decision_function(X)


class ReweightedRegressor(RegressorMixin, _AbstractReweighted):
    """Any regressor, fitted on rows weighted by what trusted rows say they are worth.

    Arguments and attributes are those of `ReweightedClassifier`; the weighting model is least
    squares, the default final estimator ridge regression on scaled features.
    """

    def _task(self):
        return "regression"
