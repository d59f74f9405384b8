"""Estimators made of other estimators: the weights must reach every predictor inside."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import (
    TransformedTargetRegressor,
    make_column_selector,
    make_column_transformer,
)
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    HistGradientBoostingClassifier,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from bilevel import ReweightedClassifier
from bilevel.reweighting import _estimator
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._inputs.estimators import fit_with_weights
from bilevel.reweighting._inputs.prepare import prepare
from bilevel.reweighting._learn import learn_weights
from bilevel.reweighting._weights.coded_labels import CodedLabels, fit_weighted, predictions
from bilevel.reweighting._weights.folds import make_folds
from bilevel.reweighting._weights.label_models import own_label_model

pytestmark = pytest.mark.filterwarnings("error")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(160, 3))
Y = (X[:, 0] + 0.5 * RNG.normal(size=160) > 0).astype(int)
TREE = DecisionTreeClassifier(max_depth=2, random_state=0)


def pipe(model=None):
    return make_pipeline(StandardScaler(), LogisticRegression() if model is None else model)


CLASSIFIERS = [
    pipe(),
    GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=3),
    GridSearchCV(pipe(), {"logisticregression__C": [0.1, 1]}, cv=3, scoring="accuracy"),
    pipe(GridSearchCV(LogisticRegression(), {"C": [1]}, cv=3)),
    VotingClassifier([("a", LogisticRegression()), ("b", TREE)], voting="soft"),
    VotingClassifier([("a", pipe()), ("b", TREE)], voting="soft"),
    GridSearchCV(
        VotingClassifier([("a", pipe()), ("b", TREE)], voting="soft"), {"weights": [None]}, cv=3
    ),
    StackingClassifier([("a", LogisticRegression()), ("b", TREE)], cv=3),
    StackingClassifier([("a", pipe()), ("b", TREE)], LogisticRegression(), cv=3),
    CalibratedClassifierCV(LogisticRegression(), cv=3),
    CalibratedClassifierCV(pipe(), cv=3),
    pipe(CalibratedClassifierCV(pipe(), cv=3)),
    BaggingClassifier(LogisticRegression(), 5, random_state=0),
    OneVsRestClassifier(pipe()),
    AdaBoostClassifier(n_estimators=3),
    FixedThresholdClassifier(pipe()),
]


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=lambda e: str(e)[:60])
def test_weights_reach_every_predictor(estimator):
    def mean_probability(weights):
        return fit_with_weights(estimator, X, Y, weights).predict_proba(X)[:, 1].mean()

    even = mean_probability(np.ones(len(Y)))
    assert mean_probability(np.where(Y == 1, 1.0, 0.02)) > even + 0.03


@pytest.mark.parametrize(
    "estimator",
    [
        TransformedTargetRegressor(),
        TransformedTargetRegressor(Ridge(), func=np.cbrt, inverse_func=lambda z: z**3),
        TransformedTargetRegressor(pipe(Ridge())),
        StackingRegressor([("a", Ridge()), ("b", pipe(Ridge()))], LinearRegression(), cv=3),
        VotingRegressor([("a", Ridge())]),
        GridSearchCV(TransformedTargetRegressor(Ridge()), {"regressor__alpha": [1]}, cv=3),
    ],
    ids=lambda e: str(e)[:60],
)
def test_weights_reach_every_regressor(estimator):
    targets = X[:, 0] + np.where(Y == 1, 5.0, 0.0)
    even, low = (
        fit_with_weights(estimator, X, targets, weights).predict(X).mean()
        for weights in (np.ones(len(Y)), np.where(Y == 1, 0.02, 1.0))
    )
    assert low < even - 0.5


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (KNeighborsClassifier(), "KNeighborsClassifier"),
        (pipe(KNeighborsClassifier()), "KNeighborsClassifier"),
        (GridSearchCV(KNeighborsClassifier(), {}), "KNeighborsClassifier"),
        (VotingClassifier([("a", LogisticRegression()), ("b", KNeighborsClassifier())]), "KNe"),
        (StackingClassifier([("a", TREE)], KNeighborsClassifier()), "KNeighborsClassifier"),
        (CalibratedClassifierCV(pipe(KNeighborsClassifier())), "KNeighborsClassifier"),
        (TunedThresholdClassifierCV(LogisticRegression()), "TunedThresholdClassifierCV"),
        (FrozenEstimator(LogisticRegression().fit(X, Y)), "FrozenEstimator"),
        (BaggingClassifier(TREE, bootstrap=False), r"BaggingClassifier\(bootstrap=False\)"),
        (
            CalibratedClassifierCV(FrozenEstimator(LogisticRegression().fit(X, Y))),
            "FrozenEstimator",
        ),
    ],
    ids=lambda e: str(e)[:60],
)
def test_estimators_that_would_ignore_the_weights_are_refused(estimator, name):
    with pytest.raises(ValueError, match=f"must accept sample_weight, and {name}"):
        learn_weights(X[:100], Y[:100], X[100:], Y[100:], estimator=estimator)
    held = TransformedTargetRegressor(KNeighborsRegressor())
    with pytest.raises(ValueError, match="and KNeighborsRegressor does not"):
        learn_weights(X[:100], X[:100, 0], X[100:], X[100:, 0], estimator=held)


def table(n, seed):
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"size": rng.normal(size=n), "colour": rng.choice(["red", "blue"], n)})
    return X, np.where(X["size"] + (X["colour"] == "red") > 0.5, "yes", "no")


COLOUR: Any = ["colour"]
TREES = HistGradientBoostingClassifier(
    categorical_features=COLOUR, max_iter=3, min_samples_leaf=5, random_state=0
)


@pytest.mark.parametrize(
    "estimator",
    [
        TREES,
        CalibratedClassifierCV(TREES, cv=2),
        GridSearchCV(TREES, {"max_iter": [3]}, cv=2),
        OneVsRestClassifier(CalibratedClassifierCV(TREES, cv=2)),
        VotingClassifier([("a", TREES), ("b", TREES)], voting="soft"),
    ],
    ids=lambda e: str(e)[:30],
)
def test_trees_find_their_columns_by_name_whatever_holds_them(estimator):
    (train, y), (trusted, y_trusted) = table(60, 0), table(40, 1)
    train.loc[3, "size"] = np.nan
    tables = prepare(
        *(train, y, trusted, y_trusted),
        task="auto",
        scaler=None,
        holdout=None,
        estimator=estimator,
    )
    assert list(tables.train.X.columns) == ["size", "colour"]
    assert np.isnan(tables.train.X["size"]).sum() == 1
    fitted = fit_with_weights(estimator, tables.train.X, tables.train.y, np.arange(60) % 2 + 1.0)
    assert fitted.score(tables.trusted.X, tables.trusted.y) > 0.6


def test_trees_know_columns_by_their_places():
    """Columns of categories went to the end of the table, where a setting meant another column."""
    table_, y = table(200, 0)
    first = table_[["colour", "size"]]  # the larger, the likelier is "yes", unless it is forbidden

    def fitted(X, **settings):
        trees: Any = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5, **settings)
        rows = X[:120], y[:120], X[120:], y[120:]
        given = prepare(*rows, task="auto", scaler=None, holdout=None, estimator=trees)
        return trees.fit(given.train.X, given.train.y), given

    trees, given = fitted(first, monotonic_cst=[0, -1], categorical_features=[0])
    assert trees.is_categorical_.tolist() == [True, False]
    line = pd.DataFrame({"colour": "red", "size": np.linspace(-2, 2, 9)})
    assert np.diff(trees.predict_proba(given.encoding.encode(line, "X"))[:, 1]).max() <= 0
    by_name, same = fitted(table_, monotonic_cst={"size": -1}, categorical_features=["colour"])
    np.testing.assert_allclose(
        by_name.predict_proba(same.trusted.X), trees.predict_proba(given.trusted.X), rtol=1e-12
    )
    dated = first.assign(day=pd.date_range("2020-01-01", periods=200))[["day", "colour", "size"]]
    fitted(dated, monotonic_cst={"size": -1})
    with pytest.raises(InputError, match=r"\(monotonic_cst\), and each of the columns 'day'"):
        fitted(dated, monotonic_cst=[0, 0, -1])


class OnlyCodes(ClassifierMixin, BaseEstimator):
    """Takes no labels but the codes 0, 1, ..., as XGBoost's; predicts a column, as CatBoost's."""

    def __init__(self, depth: int = 2):
        self.depth = depth

    def fit(self, X, y, sample_weight=None):
        codes = np.unique(y)
        if not np.array_equal(codes, np.arange(len(codes))):
            raise ValueError(f"Expected: {np.arange(len(codes))}, got {codes}")
        self.tree_ = DecisionTreeClassifier(max_depth=self.depth, random_state=0)
        self.classes_ = self.tree_.fit(X, y, sample_weight).classes_
        return self

    def predict(self, X):
        return self.tree_.predict(X)[:, None]

    def predict_proba(self, X):
        return self.tree_.predict_proba(X)


@pytest.mark.parametrize("names", [[1, 2], ["no", "yes"], [0, 1]])
def test_a_classifier_that_takes_only_codes_takes_any_labels(names):
    y = np.array(names)[Y]
    with pytest.warns(UserWarning, match="no trusted rows"):
        clf = ReweightedClassifier(OnlyCodes()).fit(X, y)
    assert clf.predict(X).shape == y.shape
    np.testing.assert_array_equal(clf.classes_, names)
    codes: Any = TREE.fit(X, Y).predict(X)
    np.testing.assert_array_equal(clf.predict(X), np.array(names)[codes])


@pytest.mark.slow
@pytest.mark.parametrize("names", [[1, 2], ["no", "yes"], [0, 1]])
def test_weights_of_a_classifier_that_takes_only_codes(names):
    """Codes are learned from, and labels predicted: all is as with the codes themselves."""
    y = np.array(names)[Y]
    clf, same = ReweightedClassifier(OnlyCodes()), ReweightedClassifier(TREE)
    for model, labels in ((clf, y), (same, Y)):
        model.fit(X[:100], labels[:100], X_trusted=X[100:], y_trusted=labels[100:])
    assert clf.predict(X).shape == y.shape
    np.testing.assert_array_equal(clf.predict(X), np.array(names)[same.predict(X)])
    np.testing.assert_array_equal(clf.classes_, names)
    np.testing.assert_array_equal(clf.weights_, same.weights_)
    table, other = (m.compare_baselines(X[:40], z[:40]) for m, z in ((clf, y), (same, Y)))
    pd.testing.assert_frame_equal(table, other)


@pytest.mark.parametrize("names", [[0, 1], [1, 2], ["no", "yes"]])
def test_class_weights_go_by_the_labels_in_every_fit(names):
    """They went by codes: a weight for class 1 of the classes 1 and 2 counted for class 2."""
    tree: Any = DecisionTreeClassifier(max_depth=2, class_weight={names[0]: 20.0}, random_state=0)
    y = np.array(names)[Y]
    options: Any = {"task": "classification", "scaler": None, "holdout": None, "estimator": tree}
    tables = prepare(X[:100], y[:100], X[100:], y[100:], **options)
    judge = own_label_model(make_folds(Y[:100], Y[100:], 0), tables, tree)
    fitted = judge.fit(np.ones(100), np.zeros(60))
    expected = tree.fit(X[:100], y[:100]).predict_proba(X)
    assert expected[:, 0].mean() > 0.1 + np.mean(Y == 0)
    np.testing.assert_array_equal(fitted.predict_proba(X), expected)


def test_a_class_without_weight_leaves_no_gap_in_the_codes():
    y = Y.copy()
    y[X[:, 1] > 0.5] = 2
    fitted = fit_weighted(OnlyCodes(), X, y, (y != 1).astype(float))
    assert set(fitted.predict(X)) == {0, 2}
    with pytest.raises(ValueError, match="got"):  # of the labels as they were given
        fit_weighted(OnlyCodes(), X, y + 1, np.full(3, 2.0), drop_zero=False)


def test_predictions_that_are_a_column_are_a_vector():
    y = np.array(["no", "yes"])[Y]
    fits = {}
    for name, model in (("column", CodedLabels(OnlyCodes())), ("vector", TREE)):
        fits[name] = fit_weighted(model, X[:100], y[:100], np.ones(100))
    column, vector = (predictions(fits[k], X) for k in ("column", "vector"))
    np.testing.assert_array_equal(column, vector)
    assert predictions(OnlyCodes().fit(X, Y), X).shape == (160,)


@pytest.mark.slow
def test_many_classes_of_few_rows_are_taken_for_no_regression():
    """The module turns warnings into errors: scikit-learn's, that these may be numbers, is none."""
    y = np.arange(40) % 25
    for weights in (None, np.full(40, 2.0)):
        fitted = fit_with_weights(pipe(), X[:40], y, weights)
        assert len(fitted.classes_) == 25


def test_whatever_holds_a_pipeline_gets_the_table():
    columns = make_column_transformer((OneHotEncoder(), ["colour"]), (StandardScaler(), ["size"]))
    inner = make_pipeline(columns, LogisticRegression())
    (train, y), (trusted, y_trusted) = table(120, 0), table(60, 1)
    clf = ReweightedClassifier(CalibratedClassifierCV(inner, cv=2))
    clf.fit(train, y, X_trusted=trusted, y_trusted=y_trusted)
    assert clf.score(trusted, y_trusted) > 0.8
    assert len(clf.score_rows(trusted, y_trusted)) == 60


def by_type(rows: int, seed: int, names: str, boolean: type) -> tuple[pd.DataFrame, np.ndarray]:
    """A category that is the label, a number, and a truth value."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows)
    kind = pd.Categorical(np.array(["no", "yes"])[y], categories=names.split())
    size, flag = rng.normal(size=rows), (rng.random(rows) > 0.5).astype(boolean)
    return pd.DataFrame({"kind": kind, "size": size, "flag": flag}), y


@pytest.mark.parametrize("given", ["no yes", "yes other no", "objects"])
def test_columns_that_are_picked_by_their_types_are_there_in_every_fit(given, monkeypatch):
    """What pandas makes of two tables whose categories differ is of no type that was asked for."""
    train, y = by_type(60, 0, "no yes", bool)
    trusted, y_trusted = by_type(30, 1, "no yes" if given == "objects" else given, int)
    trusted = trusted.astype({"kind": object}) if given == "objects" else trusted
    encode = make_column_transformer(
        (OneHotEncoder(), make_column_selector(dtype_include="category")),
        ("passthrough", make_column_selector(dtype_include=bool)),
    )
    pipeline = make_pipeline(encode, LogisticRegression())
    tables = prepare(
        train,
        y,
        trusted,
        y_trusted,
        task="auto",
        scaler=None,
        holdout=(trusted[:9], y_trusted[:9]),
        estimator=pipeline,
    )
    assert tables.holdout is not None
    for part in (tables.train, tables.trusted, tables.holdout):
        model: Any = clone(pipeline)
        assert model.fit(part.X, part.y).score(part.X, part.y) == 1
    learned = SimpleNamespace(
        **dict.fromkeys(("noise", "group_weights", "candidates", "history", "winner")),
        **dict.fromkeys(("weights", "label_quality"), np.ones(60)),
        **dict.fromkeys(("trusted_weight", "effective_sample_size"), 1.0),
        keep=np.ones(60, bool),
        sample_weight=lambda m: np.ones(60 + m),
    )
    monkeypatch.setattr(_estimator, "learn_weights", lambda *_, **__: learned)
    clf: Any = ReweightedClassifier(pipeline)
    clf.fit(train, y, X_trusted=trusted, y_trusted=y_trusted)
    picked = [columns for *_, columns in clf.estimator_[0].transformers_[:2]]
    assert picked == [["kind"], ["flag"]]
    assert clf.score(trusted, y_trusted) == 1


@pytest.mark.slow
def test_column_names_of_two_levels():
    def rows(n, seed):
        X, y = table(n, seed)
        X.columns = pd.MultiIndex.from_tuples([("size", "mean"), ("colour", "")])
        return X, y

    (train, y), (trusted, y_trusted) = rows(120, 0), rows(60, 1)
    clf = ReweightedClassifier().fit(train, y, X_trusted=trusted, y_trusted=y_trusted)
    flat = [x.set_axis(["size_mean", "colour"], axis=1) for x in (train, trusted)]
    same = ReweightedClassifier().fit(flat[0], y, X_trusted=flat[1], y_trusted=y_trusted)
    np.testing.assert_array_equal(clf.weights_, same.weights_)
    np.testing.assert_array_equal(clf.predict(trusted), same.predict(flat[1]))
