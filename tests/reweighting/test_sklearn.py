"""scikit-learn's own checks, and the tools that split, search, clone and pickle estimators."""

import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from test_estimators import together

from bilevel import ReweightedClassifier, ReweightedRegressor
from digits import TRAIN, TRUSTED, digits

PAIRS: list[Any] = [
    pair
    for estimator in (ReweightedClassifier(), ReweightedRegressor())
    for pair in estimator_checks_generator(estimator)
]
NAMES = [f"{type(e).__name__}: {getattr(check, 'func', check).__name__}" for e, check in PAIRS]


@pytest.mark.parametrize("check", PAIRS, ids=NAMES)
@pytest.mark.filterwarnings("ignore:.*was given no trusted rows")
def test_scikit_learns_checks(check):
    estimator, run = check
    run(estimator)


def test_without_trusted_rows_it_is_the_estimator_and_says_so():
    data = digits()
    with pytest.warns(UserWarning, match=r"no trusted rows, so every row gets weight 1.*request"):
        clf = ReweightedClassifier().fit(data.X, data.y)
    plain = make_pipeline(
        MinMaxScaler(), StandardScaler(with_std=False), LogisticRegression(max_iter=1000)
    ).fit(data.X, data.y)
    np.testing.assert_array_equal(clf.predict(data.X_holdout), plain.predict(data.X_holdout))
    np.testing.assert_array_equal(clf.weights_, np.ones(len(data.y)))
    with pytest.raises(ValueError, match="fitted without trusted rows"):
        clf.score_rows(*data.holdout)


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


FEW: dict[str, Any] = {"method": "near-exact", "num_steps": 2}  # what is tested here is the mask


def test_cross_validate_splits_the_mask(routing):
    parts = [together(seed) for seed in (0, 1)]  # two folds of the usual shape: one compilation
    X, y, mask = (np.concatenate(part) for part in zip(*parts, strict=True))
    fold = np.repeat([0, 1], len(y) // 2)
    order = np.random.default_rng(0).permutation(len(y))
    X, y, mask, fold = X[order], y[order], mask[order], fold[order]
    clf = ReweightedClassifier(**FEW).set_fit_request(is_trusted=True)
    given: Any = {"params": {"is_trusted": mask}, "cv": PredefinedSplit(fold)}
    scores = cross_validate(clf, X, y, return_estimator=True, **given)
    for k, fit in enumerate(scores["estimator"]):
        trusted = mask[fold != k]  # each fit has seen the trusted rows of the other fold
        np.testing.assert_array_equal(fit.weights_[trusted], np.full(TRUSTED, fit.trusted_weight_))
        np.testing.assert_array_equal(fit.weights_[~trusted], fit.result_.weights)
        assert len(fit.result_.weights) == TRAIN


def test_grid_search_and_pipelines(routing):
    X, y, mask = together()
    clf = ReweightedClassifier(LogisticRegression(max_iter=500), **FEW)
    pipeline = make_pipeline(StandardScaler(), clf.set_fit_request(is_trusted=True))
    grid = {"reweightedclassifier__estimator__C": [1e-3, 1.0]}
    rows = np.arange(len(y))  # to fit on all of them, scored on a half, is one compilation
    folds = [(rows, half) for half in np.array_split(rows, 2)]
    search: Any = GridSearchCV(pipeline, grid, cv=folds).fit(X, y, is_trusted=mask)
    assert search.best_estimator_[-1].weights_.shape == y.shape
    assert search.cv_results_["mean_test_score"].max() > 0.4  # of the noisy labels
    assert search.score(*digits().holdout) > 0.7


@pytest.mark.slow
def test_weight_two_is_two_rows_and_weight_zero_is_no_row():
    """`drop_zero` leaves out what has no weight: not even a scaler sees it."""
    data = digits()
    clf: Any = ReweightedClassifier(**FEW).fit(
        data.X, data.y, X_trusted=data.X_trusted, y_trusted=data.y_trusted
    )
    from bilevel.reweighting._weights.baselines import fit_weighted

    final: Any = make_pipeline(MinMaxScaler(), LogisticRegression(tol=1e-10, max_iter=10_000))
    weights = np.r_[np.full(150, 2.0), np.zeros(100), np.ones(150)]
    X = data.X.copy()
    X[200] = 1e6  # an outlier of weight zero would spoil the scaling
    repeats = weights.astype(int)
    ours = fit_weighted(final, X, data.y, weights)
    theirs = final.fit(np.repeat(X, repeats, axis=0), np.repeat(data.y, repeats))
    np.testing.assert_allclose(ours[-1].coef_, theirs[-1].coef_, atol=1e-4)
    seen = fit_weighted(final, X, data.y, weights, drop_zero=False)
    assert np.abs(seen[-1].coef_ - theirs[-1].coef_).max() > 0.1
    with pytest.raises(ValueError, match="all weights are zero: there is nothing to fit"):
        fit_weighted(final, X, data.y, np.zeros(400))
    with pytest.raises(ValueError, match="must be finite and not negative"):
        fit_weighted(final, X, data.y, -weights)
    assert clf.get_params()["drop_zero"] is True


def test_a_forest_on_rows_and_a_pickle():
    X, y, mask = together()
    forest = RandomForestClassifier(20, random_state=0)
    clf: Any = ReweightedClassifier(forest, **FEW).fit(X, y, is_trusted=mask)
    copy = pickle.loads(pickle.dumps(clf))
    held = digits().X_holdout
    np.testing.assert_array_equal(copy.predict_proba(held), clf.predict_proba(held))
    np.testing.assert_array_equal(copy.weights_, clf.weights_)


def test_wrong_columns_are_refused_at_prediction():
    X, y, mask = together()
    columns = [f"p{i}" for i in range(64)]
    clf = ReweightedClassifier(**FEW).fit(pd.DataFrame(X, columns=columns), y, is_trusted=mask)
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(pd.DataFrame(X[:, :5], columns=columns[:5]))
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(pd.DataFrame(X, columns=columns[::-1]))


def test_sparse_rows_with_an_estimator_that_takes_them():
    X, y, mask = together()
    final = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=1000))
    clf: Any = ReweightedClassifier(final, **FEW)
    copy: Any = sklearn.clone(clf)
    dense = copy.fit(X, y, is_trusted=mask)
    sparse = clf.fit(scipy.sparse.csr_array(X), y, is_trusted=mask)
    np.testing.assert_allclose(sparse.weights_, dense.weights_, rtol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sparse.score(scipy.sparse.csr_array(X), y) > 0.6
