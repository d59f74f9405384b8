"""Label models: forests, boosted trees, kernel models, and how far linear ones are fitted."""

import dataclasses
from typing import Any

import joblib
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import ttest_1samp
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import minmax_scale

from bilevel.reweighting import _learn, learn_weights
from bilevel.reweighting._inputs.row_facts import RowFacts
from bilevel.reweighting._weights import candidates, flexible_models, joining, label_models
from bilevel.reweighting._weights.folds import make_folds


def rings(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """What no linear model can tell apart: inside, or outside of a circle."""
    X = np.random.default_rng(0).normal(size=(rows, 2))
    return X, (np.square(X).sum(axis=1) > 1.4).astype(int)


def saying(name: str, log_p: np.ndarray, rows: int) -> label_models.Member:
    """A member that says this of the training rows, which come first, and of the trusted ones."""
    return label_models.Member(name, None, [log_p[:rows]] * 6, [log_p[rows:]] * 6, [])


@pytest.mark.parametrize("times", [False, True])
def test_every_member_says_probabilities_of_every_row_that_it_judges(times, monkeypatch):
    found: list[Any] = []

    def spy(*args: Any, **options: Any) -> Any:
        found.append(candidates.search(*args, **options))
        return found[-1]

    monkeypatch.setattr(_learn, "search", spy)
    monkeypatch.setattr(joining, "FOREST_JOINS", np.inf)
    X, y = rings(260)
    when = np.arange(260) if times else None
    given = np.where(np.arange(260) % 10 == 0, 1 - y, y)
    rows = X[:200], given[:200], X[200:], y[200:]
    columns: dict[str, Any] = (
        {} if when is None else {"times": when[:200], "times_trusted": when[200:]}
    )
    learn_weights(*rows, task="classification", **columns)
    members = found[0].members
    names = [member.name for member in members]
    assert {"kernel, all rows", "kernel, trusted rows", "kernel, weighted rows"} <= set(names)
    judged = np.flatnonzero(found[0].folds.known(candidates.FOLDS))
    for member in members:
        for outputs in (member.train[-1], member.trusted[-1][judged]):
            sums = np.asarray(logsumexp(outputs, axis=1))
            np.testing.assert_allclose(sums, 0.0, atol=1e-6)


@pytest.mark.parametrize(("joins", "fits"), [(np.inf, 9), (-np.inf, 13)])
def test_of_forests_that_do_not_join_no_more_is_fitted_than_tells_that(joins, fits, monkeypatch):
    """Six of all rows, and three of trusted rows; those that join need four more of these."""
    fitted: list[str] = []
    task = label_models.LabelModel.task

    def spy(self: Any, *weights: Any) -> Any:
        fitted.append(self.name)
        return task(self, *weights)

    monkeypatch.setattr(label_models.LabelModel, "task", spy)
    monkeypatch.setattr(joining, "FOREST_JOINS", joins)
    monkeypatch.setattr(joining, "FOREST_CONFIRMED", joins)
    monkeypatch.setattr(joining, "FEW_WRONG", 0.0)
    monkeypatch.setattr(flexible_models, "TREES", 5)
    X, y = rings(150)
    learn_weights(X[:100], y[:100], X[100:], y[100:], task="classification")
    assert fitted.count("forest") == fits


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_boosted_trees_find_wrong_labels_that_nobody_else_finds(task, monkeypatch):
    """Two of twelve columns decide, by their signs together; the noise of ten blinds the others."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(600, 12))
    y: Any = ((X[:, 0] > 0) ^ (X[:, 1] > 0)).astype(int)
    wrong = rng.random(450) < 0.1
    given = np.where(wrong, 1 - y[:450], y[:450])
    if task == "regression":
        given, y = given + 0.1 * X[:450, 2], y + 0.1 * X[:, 2]
    rows = X[:450], given, X[450:], y[450:]

    def area() -> float:
        return roc_auc_score(~wrong, learn_weights(*rows, task=task).label_quality)

    assert area() > 0.95
    monkeypatch.setattr(joining, "BOOSTED_JOINS", np.inf)
    monkeypatch.setattr(joining, "FEW_WRONG", 0.0)
    assert area() < 0.8


def test_boosted_trees_see_ranks():
    """Nothing changes where each column is bent without changing the order of its numbers."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 4)), rng.integers(0, 3, 300)
    folds = make_folds(y[:240], y[240:], 0)
    weights = rng.random(240), rng.random(60)

    def outputs(X: np.ndarray) -> np.ndarray:
        model = joining.boosted_label_model(folds, X[:240], X[240:])
        assert model is not None
        return model.on_trusted(model.fit(*weights), np.arange(60))

    np.testing.assert_array_equal(outputs(X), outputs(5.0 + np.sinh(2.0 * X)))
    assert np.ptp(outputs(X)) > 1


def test_several_jobs_change_no_bit_of_a_kernel_model():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(353, 7)), rng.integers(0, 2, 353)
    folds = make_folds(y[:300], y[300:], 0)

    def outputs(jobs: int) -> np.ndarray:
        with joblib.parallel_config("threading", n_jobs=jobs):
            model = joining.kernel_label_model(folds, X[:300], X[300:])
            assert model is not None
            return model.on_train(model.fit(np.ones(300), np.ones(53)), np.arange(300))

    np.testing.assert_array_equal(outputs(3), outputs(1))


def test_who_adds_nothing_to_those_that_join_later_leaves():
    """The first is a blunt copy of the second, which says nearly all."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    folds = make_folds(y[:100], y[100:], 0)

    def member(name: str, sure: float) -> label_models.Member:
        score = sure * (2 * y - 1) + rng.normal(size=200)
        return saying(name, log_softmax(np.stack([-score, score], axis=1), axis=1), 100)

    plain, blunt, sharp = member("plain", 0.0), member("blunt", 0.5), member("sharp", 3.0)
    offers = [joining.Offer([blunt], 1.0), joining.Offer([sharp], 1.0)]
    for some, names in ((offers[:1], ["plain", "blunt"]), (offers, ["plain", "sharp"])):
        members, again = joining.join(folds, [plain], some)
        assert [m.name for m in members] == names
        assert again == []


@pytest.mark.parametrize(
    ("rows", "confirmed", "few", "joins"),
    [(2000, 2, 0.0, True), (30, 2, 0.0, False), (2000, 9, 0.0, False), (2000, 9, 0.3, True)],
)
def test_given_labels_say_who_joins(rows, confirmed, few, joins, monkeypatch):
    """Trusted rows leave a doubt that many given labels, a tenth of them wrong, do not; few do."""
    monkeypatch.setattr(joining, "FEW_WRONG", few)
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, rows + 100)
    given = np.where(rng.random(rows) < 0.1, 1 - y[:rows], y[:rows])
    score = 0.2 * (2 * y - 1) + rng.normal(scale=0.5, size=len(y))
    log_p = log_softmax(np.stack([-score, score], axis=1), axis=1)
    plain, better = saying("plain", 0 * log_p - np.log(2), rows), saying("better", log_p, rows)
    folds = make_folds(given, y[rows:], 0)
    offer = joining.Offer([better], 9.0, confirmed=confirmed)
    members, _ = joining.join(folds, [plain], [offer])
    assert [m.name for m in members[1:]] == (["better"] if joins else [])


def test_rows_that_belong_together_are_one_witness():
    """Ten copies of the rows say with no more certainty who joins than the rows."""
    rng = np.random.default_rng(0)
    X, y, losses = rng.normal(size=(300, 2)), rng.integers(0, 2, 330), rng.normal(size=300)
    found = []
    for copies in (1, 10):
        facts = RowFacts.plain(np.repeat(X, copies, axis=0)), RowFacts.plain(X[:30] + 9)
        folds = make_folds(np.repeat(y[:300], copies), y[300:], 0, facts)
        rows = np.arange(300 * copies)
        found.append(joining.in_standard_errors(folds.of_units(np.repeat(losses, copies), rows)))
    assert found[1] == pytest.approx(found[0])
    assert found[0] == pytest.approx(ttest_1samp(losses, 0)[0])


def test_rows_that_do_not_differ_beside_one_far_away_have_no_kernel():
    rng = np.random.default_rng(0)
    X = 1e-3 * rng.normal(size=(200, 1))
    y = (X[:, 0] > 0).astype(int)
    X[0] = 1e12
    result = learn_weights(X[:140], y[:140], X[140:], y[140:], task="classification")
    assert np.isfinite(np.asarray(result.weights)).all()


def test_many_rows_are_asked_by_parts(monkeypatch):
    X, y = rings(50)
    model = LogisticRegression().fit(X, y)
    arguments = model, X, np.array([0, 1]), 0.0, 1.0
    at_once = label_models.outputs(*arguments)
    asked: list[int] = []
    monkeypatch.setattr(label_models, "PART", 20)
    predict = model.predict_proba
    monkeypatch.setattr(model, "predict_proba", lambda X: asked.append(len(X)) or predict(X))
    np.testing.assert_allclose(label_models.outputs(*arguments), at_once, rtol=1e-12)
    assert asked == [20, 20, 10]


@pytest.mark.parametrize("classes", [2, 10, pytest.param(300, marks=pytest.mark.slow)])
def test_a_linear_model_is_fitted_for_any_number_of_classes(classes):
    """Nearly as far as it goes: most of what a fit to the end gains over knowing nothing."""
    X, y = make_classification(
        3000, 30, n_informative=30, n_redundant=0, n_classes=classes, class_sep=3.0,
        n_clusters_per_class=1, random_state=0,
    )  # fmt: skip
    X, y = minmax_scale(X), np.asarray(y)
    quick = LogisticRegression(tol=label_models.tolerance(y, classes)).fit(X, y)
    exact = LogisticRegression(tol=1e-6, max_iter=1000).fit(X, y)
    losses = [log_loss(y, model.predict_proba(X)) for model in (quick, exact)]
    assert np.log(classes) - losses[0] > 0.9 * (np.log(classes) - losses[1])


@pytest.mark.parametrize("classes", [2, 3])
def test_columns_are_centred_for_the_solver_and_nobody_else(classes, monkeypatch):
    monkeypatch.setattr(label_models, "MANY_CLASSES", 1)
    X, y = make_classification(
        240, 5, n_informative=4, n_redundant=0, n_classes=classes, random_state=0
    )
    X, y = 3.0 + minmax_scale(X), np.asarray(y)
    before = X.copy()
    folds = make_folds(y[:180], y[180:], 0)
    exact = LogisticRegression(tol=1e-9, max_iter=10_000)
    linear = label_models.linear_label_model(folds, X[:180], X[180:])
    linear = dataclasses.replace(linear, estimator=exact)
    weights = np.random.default_rng(0).random(240)
    found = linear.fit(weights[:180], weights[180:])
    exact.fit(X, y, weights)
    np.testing.assert_allclose(found.coef_, exact.coef_, atol=1e-5)
    np.testing.assert_allclose(found.predict_proba(X), exact.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize(("rows", "columns"), [(150, 3), (300, 501)])
def test_few_rows_and_wide_tables_have_no_boosted_trees(rows, columns):
    X, y = np.zeros((rows + 50, columns)), np.arange(rows + 50) % 2
    folds = make_folds(y[:rows], y[rows:], 0)
    assert joining.boosted_label_model(folds, X[:rows], X[rows:]) is None
    more = np.zeros((300, 3)), np.zeros((50, 3))
    folds = make_folds(np.arange(300) % 2, np.arange(50) % 2, 0)
    assert joining.boosted_label_model(folds, *more) is not None
