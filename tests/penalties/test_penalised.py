"""Estimators that choose their penalties: their hypergradients, optima and scikit-learn's
checks."""

import warnings
from typing import Any

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from scipy.sparse import csc_array, csr_matrix, random_array
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV, LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import bilevel
from bilevel import ElasticNetBilevelCV, LogisticRegressionBilevelCV, RidgeBilevelCV
from bilevel.penalties import _elastic_net, _ridge
from bilevel.penalties._elastic_net import _Fold as LassoFold
from bilevel.penalties._logistic_fold import Fold as LogisticFold
from bilevel.penalties._parts import Part, Rows, Source, make_part
from bilevel.penalties._ridge import _Normal as RidgeFold
from bilevel.penalties._search import tune
from bilevel.penalties._tuning import penalty_map

FIVE = KFold(5)
ridge_cv: Any = RidgeCV  # whose stubs know no arrays of alphas
lasso_cv: Any = LassoCV


def run_check(check: Any, estimator: Any) -> None:
    with warnings.catch_warnings():
        # Of tiny and degenerate data: folds without a class, no optimum.
        warnings.simplefilter("ignore")
        check(estimator)


@parametrize_with_checks(
    [
        RidgeBilevelCV(cv=3),
        LogisticRegressionBilevelCV(cv=3, penalties="shared", tol=1e-10),
        ElasticNetBilevelCV(l1_ratio=0.5, cv=3),
    ],
)
def test_check_estimator_of_scikit_learn(estimator, check):
    run_check(check, estimator)


@pytest.mark.slow
@parametrize_with_checks([RidgeBilevelCV(), LogisticRegressionBilevelCV(), ElasticNetBilevelCV()])
def test_check_estimator_of_the_default_settings(estimator, check):
    run_check(check, estimator)


def test_a_search_that_ends_at_its_start_took_one_step():
    X = np.random.default_rng(0).normal(size=(40, 2))
    for model in (RidgeBilevelCV(), ElasticNetBilevelCV()):
        assert model.fit(X, np.zeros(40)).n_iter_ == 1


def of(model: Any, **settings: Any) -> Any:
    """A copy with other settings."""
    copy: Any = clone(model)
    return copy.set_params(**settings)


def rows(load: Any) -> Any:
    """`(X, y)` as arrays."""
    return load(return_X_y=True)


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """The diabetes data, cut to 440 rows for five folds of the same size."""
    X, y = rows(load_diabetes)
    return X[:440], y[:440]


def split(X: np.ndarray, y: np.ndarray, intercept: bool = False) -> Part:
    """Every second row is a training row and the others are held out, with weights of 1."""
    kept, held = np.arange(0, len(y), 2), np.arange(1, len(y), 2)
    return make_part(Source(X, y, np.ones(len(y)), intercept), kept, held, float(len(held)))


def differences(value: Any, u: np.ndarray, h: float = 1e-5) -> np.ndarray:
    steps = h * np.eye(len(u))
    return np.array([(value(u + step) - value(u - step)) / (2 * h) for step in steps])


def library_gradient(problem: bilevel.BilevelProblem, u: np.ndarray, w: np.ndarray) -> np.ndarray:
    found = bilevel.implicit_gradient(problem, jnp.asarray(u), jnp.asarray(w), lx.Cholesky())
    assert float(found.inner_residual) < 1e-7
    return np.asarray(found.grad)


@pytest.mark.parametrize(
    "features", [pytest.param(10, marks=pytest.mark.slow), 60]
)  # fewer and more than the 20 rows
def test_ridge_hypergradient_is_that_of_the_library(features):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, features)), rng.normal(size=40)
    part = split(X, y)
    penalties, fold = penalty_map("feature", part), RidgeFold(part)
    u = rng.normal(size=features)
    value, grad = fold.value_and_hypergradient(u, penalties)
    problem = bilevel.tasks.ridge(*map(jnp.asarray, (part.X.X, part.y, part.X_held.X, part.y_held)))
    w = fold.solution(u)
    n = len(part.y)  # the task takes means where the estimator takes sums
    expected = library_gradient(problem, u - np.log(n), w)
    np.testing.assert_allclose(grad, 2 * expected, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(value, np.mean((part.X_held.X @ w - part.y_held) ** 2), rtol=1e-12)


@pytest.mark.slow
def test_logistic_hypergradient_is_that_of_the_library():
    X, y = rows(load_breast_cancer)
    part = split(StandardScaler().fit_transform(X)[:, :8], y)
    penalties, fold = penalty_map("feature", part), LogisticFold(part, False, 2)
    u = np.random.default_rng(0).normal(size=8)
    value, grad = fold.value_and_hypergradient(u, penalties)
    data = [part.X.X, 2 * part.y - 1, part.X_held.X, 2 * part.y_held - 1]
    problem = bilevel.tasks.logistic(*map(jnp.asarray, data))
    w = fold.solution(u)[0][0]
    expected = library_gradient(problem, u - np.log(len(part.y)), w)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-9)
    outer = problem.outer(jnp.asarray(u), jnp.asarray(w), problem.outer_data)
    np.testing.assert_allclose(value, float(outer), rtol=1e-10)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "penalties", ["feature", "shared", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]]
)
def test_logistic_hypergradient_by_differences(classes, penalties):
    X, y = rows(load_wine)
    y = y if classes == 3 else (y == 1).astype(int)
    part = split(StandardScaler().fit_transform(X), y, intercept=True)
    found, fold = penalty_map(penalties, part), LogisticFold(part, True, classes)
    u = np.random.default_rng(1).normal(size=found.number)
    grad = fold.value_and_hypergradient(u, found)[1]
    expected = differences(lambda u: fold.value_and_hypergradient(u, found)[0], u)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=5e-8)


@pytest.mark.parametrize("u", [(-1.0, -3.0), (0.5, -8.0), (0.9, -2.0)])
def test_elastic_net_hypergradient_by_differences(u):
    X, y = rows(load_diabetes)
    fold: Any = LassoFold(split(X * 20, y / 10, intercept=True))
    grad = fold.value_and_hypergradient(*np.exp(u))[1]
    expected = differences(lambda u: fold.value_and_hypergradient(*np.exp(u))[0], np.array(u), 1e-6)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-8)
    assert 0 < np.count_nonzero(fold.solution(*np.exp(u))) <= 10


def test_elastic_net_solution_meets_its_conditions():
    X, y = rows(load_diabetes)
    fold: Any = LassoFold(split(X * 20, y / 10, intercept=True))
    l1, l2 = 1.2, 0.3
    w = fold.solution(l1, l2)
    slope = fold.X.T @ (fold.X @ w - fold.y) / fold.rows + l2 * w
    np.testing.assert_allclose(slope[w != 0], -l1 * np.sign(w[w != 0]), rtol=1e-10)
    assert np.all(np.abs(slope[w == 0]) < l1)
    assert 0 < np.sum(w == 0) < 10


def test_one_penalty_is_that_of_ridge_cv():
    X, y = diabetes()
    model = RidgeBilevelCV(penalties="shared", cv=FIVE).fit(X, y)
    near = model.alpha_ * np.logspace(-0.1, 0.1, 41)  # and everywhere, in case it is elsewhere
    grid: Any = ridge_cv(
        alphas=np.r_[np.logspace(-4, 1, 51), near], cv=FIVE, scoring="neg_mean_squared_error"
    ).fit(X, y)
    assert model.cv_loss_ <= -grid.best_score_ * (1 + 1e-8)
    np.testing.assert_allclose(model.cv_loss_, -grid.best_score_, rtol=1e-6)
    np.testing.assert_allclose(
        model.alpha_, grid.alpha_, rtol=0.01
    )  # the grid's step is 1.2 % there
    refitted = Ridge(alpha=model.alpha_).fit(X, y)
    np.testing.assert_allclose(model.coef_, refitted.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.predict(X), refitted.predict(X), rtol=1e-8)


def test_the_lasso_is_that_of_lasso_cv():
    X, y = diabetes()
    grid: Any = lasso_cv(alphas=np.logspace(-3, 0, 500), cv=FIVE, tol=1e-6, max_iter=10_000).fit(
        X, y
    )
    model = ElasticNetBilevelCV(l1_ratio=1.0, cv=FIVE).fit(X, y)
    best = grid.mse_path_.mean(axis=1).min()
    assert model.cv_loss_ <= best * (1 + 1e-7)
    np.testing.assert_allclose(model.cv_loss_, best, rtol=1e-5)
    np.testing.assert_allclose(model.alpha_, grid.alpha_, rtol=0.02)


@pytest.mark.slow
def test_one_logistic_penalty_is_that_of_a_grid_search():
    X, y = rows(load_wine)
    X = StandardScaler().fit_transform(X[:177])
    y = y[:177] > 0
    folds = list(KFold(3, shuffle=True, random_state=0).split(X))
    alphas = np.logspace(-3, 2, 201)
    grid: Any = GridSearchCV(
        LogisticRegression(tol=1e-8, max_iter=10_000),
        {"C": 1 / alphas},
        scoring="neg_log_loss",
        cv=folds,
    ).fit(X, y)
    model = LogisticRegressionBilevelCV(penalties="shared", cv=folds).fit(X, y)
    assert model.cv_loss_ <= -grid.best_score_ + 1e-9
    np.testing.assert_allclose(model.cv_loss_, -grid.best_score_, rtol=1e-3)
    np.testing.assert_allclose(model.alpha_, 1 / grid.best_params_["C"], rtol=0.06)
    refitted = LogisticRegression(C=1 / model.alpha_, tol=1e-8, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), refitted.predict_proba(X), atol=1e-5)
    np.testing.assert_allclose(
        np.log(model.predict_proba(X)), model.predict_log_proba(X), rtol=1e-9
    )


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (RidgeBilevelCV(penalties="feature", max_iter=500), load_diabetes),
        pytest.param(
            LogisticRegressionBilevelCV(penalties="feature", cv=3, tol=1e-4),
            load_wine,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_more_penalties_lower_the_loss_to_a_stationary_point(model: Any, data: Any):
    X, y = rows(data)
    X = StandardScaler().fit_transform(X)
    fitted = of(model).fit(X, y)
    assert fitted.alpha_.shape == (X.shape[1],)
    assert fitted.cv_loss_ < 0.99 * fitted.shared_cv_loss_
    assert fitted.hypergradient_norm_ <= 2 * model.tol * fitted.shared_cv_loss_
    halves = of(model, penalties=["a"] * 6 + ["b"] * (X.shape[1] - 6)).fit(X, y)
    assert len(set(halves.alpha_)) == 2
    assert fitted.cv_loss_ <= halves.cv_loss_ <= halves.shared_cv_loss_
    assert np.all(np.diff(fitted.tuned_.values) <= 0)


def test_noise_columns_are_penalised_away():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 20))
    y = X[:, :3] @ [3.0, -2.0, 1.0] + 0.5 * rng.normal(size=200)
    model = RidgeBilevelCV().fit(X, y)
    assert model.nested_loss_["feature"] < model.nested_loss_["shared"]
    assert np.all(model.alpha_[:3] < 10)
    assert np.median(model.alpha_[3:]) > 1000
    fresh = rng.normal(size=(5000, 20))
    target = fresh[:, :3] @ [3.0, -2.0, 1.0]
    shared = RidgeBilevelCV(penalties="shared").fit(X, y)
    errors = [np.mean((m.predict(fresh) - target) ** 2) for m in (model, shared)]
    assert errors[0] < 0.6 * errors[1]


@pytest.mark.parametrize("model", [RidgeBilevelCV(penalties="shared"), ElasticNetBilevelCV()])
def test_a_weight_of_two_equals_a_duplicate_row(model: Any):
    X, y = diabetes()
    fold = np.arange(440) % 5
    weight = np.where(np.arange(440) % 3 == 0, 2, np.where(np.arange(440) % 3 == 1, 1, 0))

    def splits(folds: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.flatnonzero(folds != k), np.flatnonzero(folds == k)) for k in range(5)]

    weighted = of(model, cv=splits(fold)).fit(X, y, sample_weight=weight)
    repeated = np.repeat(np.arange(440), weight)
    plain = of(model, cv=splits(fold[repeated])).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(weighted.cv_loss_, plain.cv_loss_, rtol=1e-10)
    np.testing.assert_allclose(weighted.predict(X), plain.predict(X), rtol=1e-8)


@pytest.mark.slow
def test_the_nested_choice_does_not_follow_penalties_that_overfit():
    X, y = rows(load_wine)
    tuned = make_pipeline(StandardScaler(), LogisticRegressionBilevelCV(cv=3, max_iter=5))
    losses = {}
    for penalties in ("auto", "feature", "shared"):
        tuned.set_params(logisticregressionbilevelcv__penalties=penalties)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = cross_validate(tuned, X, y, cv=2, scoring="neg_log_loss", return_estimator=True)
        losses[penalties] = -np.mean(found["test_score"])
    assert losses["auto"] == losses["shared"] < 0.15
    assert losses["feature"] > 2 * losses["shared"]  # what makes the choice worth its price


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (RidgeBilevelCV(penalties="row"), "`penalties` must be 'auto', 'feature'"),
        (RidgeBilevelCV(penalties=[0, 1]), "one group label for each of the 10 features"),
        (RidgeBilevelCV(cv=2), "needs at least 3 folds, got 2"),
        (RidgeBilevelCV(max_iter=0), "`max_iter` must be an integer >= 1, got 0"),
        (RidgeBilevelCV(tol=0.0), "`tol` must be > 0, got 0.0"),
        (ElasticNetBilevelCV(l1_ratio=0.0), "`l1_ratio` must be None or in"),
    ],
)
def test_bad_settings(model, message):
    with pytest.raises(ValueError, match=message):
        model.fit(*rows(load_diabetes))


def test_bad_data():
    X, y = rows(load_wine)
    with pytest.raises(ValueError, match="the class 0 has no row"):
        LogisticRegressionBilevelCV(cv=KFold(3)).fit(X, y)
    with pytest.raises(ValueError, match="needs at least 2 classes, got one class"):
        LogisticRegressionBilevelCV(cv=3).fit(X, np.zeros(len(y), int))
    with pytest.raises(ValueError, match=r"at least one non-zero|zero for all rows"):
        RidgeBilevelCV().fit(X, y, sample_weight=np.zeros(len(y)))


def test_too_few_steps_warn():
    X, y = rows(load_diabetes)
    with pytest.warns(ConvergenceWarning, match="did not converge in max_iter=2 steps"):
        RidgeBilevelCV(max_iter=2, penalties="feature").fit(X, y)


@pytest.mark.parametrize(
    ("model", "splitter"),
    [
        (RidgeBilevelCV(penalties="shared"), GroupKFold(3)),
        (ElasticNetBilevelCV(), GroupKFold(3)),
        (LogisticRegressionBilevelCV(penalties="shared", tol=1e-3), StratifiedGroupKFold(3)),
    ],
    ids=["ridge", "elastic net", "logistic"],
)
def test_folds_of_whole_groups(model, splitter):
    rng = np.random.default_rng(0)
    X, patients = rng.normal(size=(90, 3)), np.arange(90) // 5
    y = X[:, 0] + rng.normal(size=90)
    y = (y > 0).astype(int) if isinstance(model, LogisticRegressionBilevelCV) else y
    by_hand = of(model, cv=list(splitter.split(X, y, patients))).fit(X, y)
    for cv in (splitter, 3):
        assert of(model, cv=cv).fit(X, y, groups=patients).cv_loss_ == by_hand.cv_loss_
    with pytest.raises(ValueError, match=r"GroupKFold\(.* was given none: pass `groups=` to fit"):
        of(model, cv=splitter).fit(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        of(model, cv=3).fit(X, y, groups=patients[:-1])


def pairs_of(kind: str, intercept: bool) -> tuple[Any, Any]:
    """An estimator, and targets for it that depend on the features."""
    settings: Any = {"cv": 3, "fit_intercept": intercept}
    if kind == "logistic":
        # Dense rows are used in single precision on the way: only solutions are the same.
        settings |= {"penalties": "shared", "tol": 1e-9}
        return LogisticRegressionBilevelCV(**settings), lambda s: (s > 0) + 0
    if kind == "classes":
        settings |= {"penalties": [0] * 10 + [1] * 10, "tol": 1e-9}
        return LogisticRegressionBilevelCV(**settings), lambda s: np.digitize(s, [-1, 1])
    if kind == "elastic net":
        return ElasticNetBilevelCV(l1_ratio=0.7, **settings), lambda s: s
    return RidgeBilevelCV(penalties="shared", **settings), lambda s: s


@pytest.mark.parametrize("intercept", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "rows"),
    [("ridge", 90), ("ridge", 24), ("logistic", 90), ("classes", 90), ("elastic net", 90)],
)
@pytest.mark.parametrize("layout", [csr_matrix, pytest.param(csc_array, marks=pytest.mark.slow)])
def test_sparse_rows_give_the_model_of_the_same_dense_rows(kind, rows, layout, intercept):
    rng = np.random.default_rng(0)
    X = np.where(rng.random((rows, 20)) < 0.3, rng.normal(1.0, 1.0, (rows, 20)), 0.0)
    weight = rng.uniform(0.5, 1.5, rows)
    model, targets = pairs_of(kind, intercept)
    y = targets(X[:, 0] - 2 * X[:, 1] + X[:, 2] + 0.3 * rng.normal(size=rows))
    dense = of(model).fit(X, y, sample_weight=weight)
    sparse = of(model).fit(layout(X), y, sample_weight=weight)
    assert sparse.__sklearn_tags__().input_tags.sparse
    np.testing.assert_allclose(sparse.cv_loss_, dense.cv_loss_, rtol=1e-8)
    near = 1e-5 if kind in ("logistic", "classes") else 1e-8
    np.testing.assert_allclose(sparse.alpha_, dense.alpha_, rtol=10 * near)
    np.testing.assert_allclose(sparse.coef_, dense.coef_, rtol=near, atol=near)
    np.testing.assert_allclose(sparse.intercept_, dense.intercept_, rtol=near, atol=near)
    np.testing.assert_allclose(sparse.predict(layout(X)), sparse.predict(X), rtol=1e-12, atol=1e-12)


def test_rounding_does_not_choose_among_penalties_of_one_rough_solution():
    # Each row is in each fold, so that weak penalties are best. Coordinate descent leaves a solution
    # that is good enough for the next ones, too, and their losses differ by rounding only.
    rng = np.random.default_rng(10)
    X, y = np.tile(rng.random((15, 30)), (3, 1)), np.tile(rng.integers(0, 3, 15), 3)
    model = ElasticNetBilevelCV(cv=KFold(3))
    dense, sparse = model.fit(X, y).alpha_, model.fit(csr_matrix(X), y).alpha_
    np.testing.assert_allclose(dense, sparse, rtol=1e-7)  # 6.5 times this one otherwise


@pytest.mark.parametrize("kind", ["ridge", "elastic net"])
def test_large_sparse_rows_are_solved_without_a_dense_matrix_of_them(kind, monkeypatch):
    rng = np.random.default_rng(0)
    X = random_array((60, 30), density=0.2, rng=rng, format="csr")
    y = X @ rng.normal(size=30) + 0.3 * rng.normal(size=60)
    model, _ = pairs_of(kind, True)
    small = of(model).fit(X, y)
    monkeypatch.setattr(_ridge, "LARGEST", 10)
    monkeypatch.setattr(_elastic_net, "LARGEST_GRAM", 10)
    monkeypatch.setattr(Rows, "gram", None)
    monkeypatch.setattr(Rows, "kernel", None)
    large = of(model).fit(X, y)
    np.testing.assert_allclose(large.cv_loss_, small.cv_loss_, rtol=1e-8)
    np.testing.assert_allclose(large.coef_, small.coef_, rtol=1e-6, atol=1e-8)


def kinked(u: np.ndarray) -> tuple[float, np.ndarray]:
    """Least at 0.7, where the derivative jumps from -0.6 to 1.5."""
    x = u[0] - 0.7
    slope = 1.5 if x > 0 else -0.6
    return 1 + slope * x + 0.1 * x**2, np.array([slope + 0.2 * x])


@pytest.mark.parametrize(
    ("phi", "least"),
    [
        (lambda u: (np.cosh(u[0] - 2.3), np.sinh(u - 2.3)), 2.3),
        (kinked, 0.7),
        (lambda u: (15.0 - u[0], -np.ones(1)), 10.0),
    ],
    ids=["smooth", "kink", "bound"],
)
def test_the_search_for_one_penalty_ends_at_a_minimum(phi, least):
    found = tune(phi, np.array([-1.0]), -10.0, 10.0, 100, 1e-6)
    np.testing.assert_allclose(found.u, least, atol=1e-6)
    assert found.converged
    assert np.all(np.diff(found.values) <= 0)
    assert len(found.values) <= 20
    assert not tune(phi, np.array([-1.0]), -10.0, 10.0, 1, 1e-6).converged


def test_folds_as_masks_or_counted_from_the_end():
    """The nested folds of "auto" leave out the rows that a fold judges, however these are named."""
    rng = np.random.default_rng(0)
    X, rows = rng.normal(size=(24, 3)), np.arange(24)
    y = X @ [1.0, 0.5, 0.0] + 0.3 * rng.normal(size=24)
    masks = [(rows % 3 != k, rows % 3 == k) for k in range(3)]
    numbers = [(rows[kept], rows[held]) for kept, held in masks]
    backwards = [(kept - 24, held) for kept, held in numbers]
    first, *others = (RidgeBilevelCV(cv=cv).fit(X, y) for cv in (numbers, masks, backwards))
    for other in others:
        np.testing.assert_allclose(other.coef_, first.coef_, rtol=1e-12)
        assert other.nested_loss_ == pytest.approx(first.nested_loss_, rel=1e-12)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
@pytest.mark.parametrize("model", [RidgeBilevelCV, LogisticRegressionBilevelCV])
def test_the_unit_of_the_weights_changes_nothing_but_that_of_the_penalty(model, unit):
    """Solvers stop at absolute errors: with weights of 1e-12 they stopped where they began."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = (X @ [1.0, -2.0, 0.5] + rng.normal(size=60) > 0).astype(int)
    one, other = (
        model(penalties="shared", cv=3).fit(X, y, sample_weight=np.full(60, each))
        for each in (1.0, unit)
    )
    np.testing.assert_allclose(other.coef_, one.coef_, rtol=1e-6)
    np.testing.assert_allclose([other.alpha_, other.shared_alpha_], unit * one.alpha_, rtol=1e-6)
    np.testing.assert_allclose(other.tuned_.u, np.log(other.alpha_), rtol=1e-9)
