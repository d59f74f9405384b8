"""scikit-learn estimators that learn the weights, then fit any estimator with them."""

import abc
import numbers
import warnings
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    RegressorMixin,
    clone,
)
from sklearn.utils import check_random_state, column_or_1d, get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from ._audit.duplicates import shared_rows
from ._inputs.alike import alike
from ._inputs.checks import (
    check_estimator_fits,
    check_labels,
    densify,
)
from ._inputs.containers import as_pairs, as_rows, feature_rows, like
from ._inputs.estimators import takes_tables
from ._inputs.row_facts import RowColumns, check_sample_weight
from ._inputs.split import everywhere, split, split_beside
from ._learn import learn_weights, warn_about_overlap
from ._report.evidence import gather_evidence
from ._report.page import Report
from ._report.refits import Rows
from ._shown import as_html, as_text
from ._weights.baselines import (
    BASELINES,
    compare_baselines,
    default_estimator,
    stack_rows,
)
from ._weights.coded_labels import fit_weighted, predictions
from ._weights.result import WeightsResult


def _final_has(name: str) -> Any:
    def check(self: Any) -> bool:
        final = getattr(self, "estimator_", None) or self.estimator
        return final is None or hasattr(final, name)

    return check


class _AbstractReweighted(MetaEstimatorMixin, BaseEstimator, abc.ABC):
    """What the classifier and the regressor share: everything except their name, kind and default."""

    def __init__(
        self,
        estimator: Any = None,
        *,
        model: Any = "linear",
        method: Any = "auto",
        num_steps: int | None = None,
        l2: float = 1e-2,
        scoring: Any = None,
        precision: float | None = None,
        overlap: Any = None,
        drop_zero: bool = True,
        random_state: Any = 0,
    ):
        self.estimator = estimator
        self.model = model
        self.method = method
        self.num_steps = num_steps
        self.l2 = l2
        self.scoring = scoring
        self.precision = precision
        self.overlap = overlap
        self.drop_zero = drop_zero
        self.random_state = random_state

    @abc.abstractmethod
    def _task(self) -> str:
        """Classification or regression."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        final = get_tags(self._final()).input_tags
        tags.input_tags.sparse = self.estimator is None or final.sparse
        tags.input_tags.allow_nan = final.allow_nan
        return tags

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        """The parameters, and after `fit` the verdict, the weights and the checks."""
        return as_text(self, N_CHAR_MAX)

    def _html_repr(self) -> str:  # which scikit-learn asks for in notebooks
        return as_html(self)

    def _check_features(self, X: Any, *, reset: bool) -> None:
        validate_data(self, X, reset=reset, skip_check_array=True)

    def _final(self) -> Any:
        regression = self._task() == "regression"
        return default_estimator(regression) if self.estimator is None else self.estimator

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        is_trusted: Any = None,
        X_trusted: Any = None,
        y_trusted: Any = None,
        groups: Any = None,
        pred_probs: Any = None,
        pred_probs_trusted: Any = None,
        given_labels_trusted: Any = None,
        sample_weight: Any = None,
        sample_weight_trusted: Any = None,
        entities: Any = None,
        entities_trusted: Any = None,
        times: Any = None,
        times_trusted: Any = None,
    ) -> Self:
        """Learn the weights, then fit the final estimator with them.

        Args:
            X, y: the rows. With `is_trusted`, trusted rows are among them; otherwise they are all
                training rows.
            is_trusted: a boolean mask over the rows of `X`. It is split with the rows by
                cross-validation, once it is requested: `set_fit_request(is_trusted=True)`.
            X_trusted, y_trusted: the trusted rows, where they are not part of `X`.
            groups: what each row of `X` belongs to; one weight per group is then learned too.
            pred_probs, pred_probs_trusted: out-of-fold probabilities, see `learn_weights`. With
                `is_trusted`, `pred_probs` has one row per row of `X`, trusted rows included.
            given_labels_trusted: the labels that the trusted rows had before they were verified.
            sample_weight, entities, times: one entry per row of `X`: how much it counts, in every fit
                and every judgement; the person, device or document that it is of; when it was made.
                See `learn_weights`. Cross-validation splits them with the rows, once they are
                requested, such as by `set_fit_request(is_trusted=True, sample_weight=True)`.
            sample_weight_trusted, entities_trusted, times_trusted: of the trusted rows, where they are
                not part of `X`.

        Without any trusted rows there is nothing to learn weights from: every row gets weight 1, and a
        `UserWarning` says so.

        Raises:
            ValueError: trusted rows are given in both ways at once; the estimator takes no
                sample_weight; the data cannot be used (the message names rows and columns).
        """
        estimator = self._final()
        check_estimator_fits(estimator, self._task() == "regression")
        X, given = self._rows_for_final(X), X
        self._encoding = None
        if is_trusted is None and X_trusted is None and y_trusted is None:
            self._check_features(X, reset=True)
            return self._fit_without_trust(estimator, X, y, sample_weight)
        pairs = {"": (X, y)}
        if X_trusted is not None and y_trusted is not None:
            pairs["_trusted"] = X_trusted, y_trusted
        pairs = as_pairs(pairs)
        X, y = pairs[""]
        X_trusted, y_trusted = pairs.get("_trusted", (X_trusted, y_trusted))
        X, X_trusted = self._rows_for_final(X), self._rows_for_final(X_trusted)
        self._check_features(X, reset=True)
        train, trusted, mask = split(X, y, is_trusted, X_trusted, y_trusted)
        columns = RowColumns(
            sample_weight,
            sample_weight_trusted,
            entities,
            entities_trusted,
            times,
            times_trusted,
        )
        beside = split_beside(X, mask, groups, pred_probs, pred_probs_trusted, columns)
        beside["given_labels_trusted"] = given_labels_trusted
        if self.overlap is not None:
            warn_about_overlap(stacklevel=3)
        result = learn_weights(
            *train,
            *trusted,
            task=self._task(),  # pyright: ignore[reportArgumentType]
            model=self.model,
            method=self.method,
            precision=self.precision,
            num_steps=self.num_steps,
            l2=self.l2,
            **beside,
            scoring=self.scoring,
            estimator=self.estimator,
            seed=_seed(self.random_state),
        )
        self._tables = {"train": train[0], "trusted": trusted[0]}
        if takes_tables(self.estimator):  # which has its own way with tables
            tables = alike(self._tables)
            train, trusted = (tables["train"], train[1]), (tables["trusted"], trusted[1])
        else:
            self._encoding = result.encoding
            train, trusted = ((result.encoding.encode(X, "X"), y) for X, y in (train, trusted))
        self.estimator_ = fit_weighted(
            estimator,
            stack_rows(train[0], trusted[0]),
            stack_rows(train[1], trusted[1]),
            result.sample_weight(len(trusted[1])),
            drop_zero=self.drop_zero,
        )
        self._train, self._trusted, self._beside = train, trusted, beside
        return self._set_learned(result, mask, given)

    def _set_learned(self, result: WeightsResult, mask: np.ndarray, given: Any) -> Self:
        """Keep what was learned, with one entry per row of X: trusted rows have the trusted weight."""
        weights = everywhere(result.trusted_weight, result.weights, mask)
        self.weights_ = like(weights, given, "weight")
        quality = everywhere(1.0, result.label_quality, mask)
        self.label_quality_ = like(quality, given, "label_quality")
        self.keep_mask_ = everywhere(True, result.keep, mask)
        self.noise_ = result.noise
        self.trusted_weight_ = result.trusted_weight
        self.group_weights_ = result.group_weights
        self.n_effective_ = result.effective_sample_size
        self.candidates_ = result.candidates
        self.baselines_ = None
        if result.candidates is not None:
            self.baselines_ = result.candidates.loc[list(BASELINES)]
        self.winner_ = result.winner
        self.history_ = result.history
        self.result_ = result
        return self._finish()

    def _fit_without_trust(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> Self:
        warnings.warn(
            f"{type(self).__name__} was given no trusted rows, so every row gets weight 1. Pass "
            "`is_trusted=` or `X_trusted=` and `y_trusted=` to fit; in a pipeline or a search, "
            "request it with `set_fit_request(is_trusted=True)`.",
            UserWarning,
            stacklevel=3,
        )
        y = column_or_1d(y, warn=True)
        weights = check_sample_weight(sample_weight, len(y), "sample_weight")
        self.estimator_ = fit_weighted(estimator, X, y, weights, drop_zero=self.drop_zero)
        n = len(self.estimator_.predict(X))
        self.weights_ = like(np.ones(n), X, "weight")
        self.label_quality_ = None
        self.keep_mask_ = np.ones(n, bool)
        self.noise_ = None
        self.trusted_weight_, self.n_effective_ = 1.0, float(n)
        self.candidates_ = self.baselines_ = self.group_weights_ = None
        self.history_ = self.result_ = None
        self.winner_ = "uniform"
        return self._finish()

    def _finish(self) -> Self:
        if self._task() == "classification":
            self.classes_ = self.estimator_.classes_
        return self

    def _rows_for_final(self, X: Any) -> Any:
        """Rows as they are; dense for the default estimator, which takes no sparse ones."""
        return densify(X, "X") if self.estimator is None else X

    def predict(self, X: Any) -> np.ndarray:
        """The final estimator's predictions."""
        X = self._checked(X)
        return predictions(self.estimator_, X)

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        X = self._rows_for_final(X)
        if self._encoding is None:
            one_dimensional = isinstance(X, np.ndarray) and X.ndim == 1
            if not one_dimensional:  # the final estimator has a message about that
                self._check_features(X, reset=False)
            return X
        X = feature_rows(X, "X")
        self._check_features(X, reset=False)
        return self._encoding.encode(X, "X")

    def _learned(self) -> WeightsResult:
        check_is_fitted(self)
        if self.result_ is None:
            raise ValueError(
                "this estimator was fitted without trusted rows, so it cannot judge "
                "labels; fit it with `is_trusted=` or `X_trusted=`."
            )
        return self.result_

    def _rows(self) -> Rows:
        """What was learned from, and the final estimator, for reports and displays."""
        result = self._learned()
        return Rows(
            clone(self.estimator_),
            self._train[0],
            np.asarray(self._train[1]),
            self._trusted[0],
            np.asarray(self._trusted[1]),
            result,
        )

    def _holdout(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        X, y = as_rows(X, y, "X_holdout", "y_holdout")
        rows, labels = self._checked(X), check_labels(y, X, "y_holdout")
        self._learned().encoding.warn_of_strange(X, "X_holdout")
        return rows, labels

    def score_rows(self, X: Any, y: Any, *, pred_probs: Any = None) -> pd.DataFrame:
        """What the fitted models say of labelled rows that they have never seen.

        With `pred_probs` in `fit`, give your model's probabilities of these rows too.

        Returns:
            The table of `WeightsResult.score_rows`.
        """
        return self._learned().score_rows(X, y, pred_probs=pred_probs)

    def report(
        self,
        X_holdout: Any = None,
        y_holdout: Any = None,
        *,
        images: Any = None,
        control: bool = False,
    ) -> Report:
        """The evidence whether to believe the weights, as a page: `.save("report.html")`.

        Args:
            X_holdout, y_holdout: rows never used in `fit`; without them the verdict rests on held-out
                folds of the trusted rows.
            images: pictures of the untrusted rows, in order, shown beside the worst of them.
            control: learn once more from shuffled trusted labels, to see what overfitting alone gives.

        Cost: 31 fits of the final estimator, with a hold-out 38; with `control` another search.
        """
        rows = self._rows()
        holdout, tables = None, self._tables
        if X_holdout is not None:
            X_holdout, y_holdout = as_rows(X_holdout, y_holdout, "X_holdout", "y_holdout")
            holdout = self._holdout(X_holdout, y_holdout)
            tables = tables | {"holdout": X_holdout}

        def learn(y_trusted: np.ndarray) -> WeightsResult:
            clone_: Any = clone(self)
            X, y = self._train
            trusted = {"X_trusted": self._trusted[0], "y_trusted": y_trusted}
            return clone_.fit(X, y, **trusted, **self._beside).result_

        return Report(
            gather_evidence(
                rows.estimator,
                rows.X,
                rows.y,
                rows.X_trusted,
                rows.y_trusted,
                rows.result,
                holdout=holdout,
                groups=self._beside["groups"],
                images=images,
                shared=shared_rows(tables),
                control=learn if control else None,
                seed=_seed(self.random_state),
            )
        )

    def compare_baselines(self, X_holdout: Any, y_holdout: Any) -> pd.DataFrame:
        """The table of baselines on rows never used in `fit`, see `bilevel.compare_baselines`."""
        result = self._learned()
        return compare_baselines(
            clone(self.estimator_),
            *self._train,
            *self._trusted,
            result.scale * np.asarray(result.weights),
            result.scale * result.trusted_weight,
            *self._holdout(X_holdout, y_holdout),
            sample_weight=result.counts[0],
            sample_weight_trusted=result.counts[1],
            scoring=result.metric,
        )


def _seed(random_state: Any) -> int:
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


class ReweightedClassifier(ClassifierMixin, _AbstractReweighted):
    """Any classifier, fitted on rows that are weighted by what they are worth for the trusted rows.

    Args:
        estimator: a scikit-learn classifier that accepts `sample_weight`, or a pipeline ending in
            one; logistic regression on scaled features by default. It is cloned.
        model, method, num_steps, l2, scoring, precision, overlap: how the weights are learned, see
            `bilevel.learn_weights`, which is given `estimator` too.
        drop_zero: leave rows of weight zero out of the final fit, or pass them on with their zeros.
        random_state: an integer seed, a `RandomState`, or `None` for a random one.

    Attributes:
        weights_: one per row of X, mean 1 over the untrusted rows, with the index of X; a
            `sample_weight` for any estimator, to be multiplied by your own if you have one.
        label_quality_: in [0, 1], one per row of X; the lowest are most likely to be wrong.
        keep_mask_: False for the rows to look at, see `WeightsResult.keep`.
        noise_: how many labels are wrong, with intervals, see `WeightsResult.noise`.
        winner_: what was chosen: weights, or one of the baselines.
        candidates_: the table of what it was chosen from, judged on held-out trusted rows; None for
            free weights.
        baselines_: the rows of that table for the four baselines, which need no weights.
        group_weights_: the mean weight of each group, if there are groups.
        trusted_weight_: what a trusted row weighs beside them.
        n_effective_: the effective sample size of the untrusted rows' weights.
        estimator_: the fitted final estimator. `classes_`, `n_features_in_` as usual.
        history_: the run.
        result_: the whole `WeightsResult` with its checks; its `sample_weight` is what the final
            estimator was fitted with.

    The fitted object keeps the rows it was given, for `compare_baselines`.

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> trusted = np.arange(150) % 3 == 0
    >>> clf = ReweightedClassifier().fit(X, y, is_trusted=trusted)
    >>> round(float(clf.weights_[~trusted].mean()), 6), clf.predict(X[:2]).tolist()
    (1.0, [0, 0])
    """

    def _task(self):
        return "classification"

    @available_if(_final_has("predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """The final estimator's class probabilities, in the order of `classes_`."""
        X = self._checked(X)
        return self.estimator_.predict_proba(X)

    @available_if(_final_has("decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """The final estimator's decision function."""
        X = self._checked(X)
        return self.estimator_.decision_function(X)


class ReweightedRegressor(RegressorMixin, _AbstractReweighted):
    """Any regressor, fitted on rows that are weighted by what they are worth for the trusted rows.

    Arguments and attributes are those of `ReweightedClassifier`; the weighting model is least
    squares, the default final estimator ridge regression on scaled features.
    """

    def _task(self):
        return "regression"
