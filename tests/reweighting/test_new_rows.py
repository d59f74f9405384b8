"""Weights of rows that had no part in learning them."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bilevel.cli._run_files import write_model
from bilevel.cli._scorer_files import read_scorer, write_scorer
from bilevel.reweighting import learn_weights
from bilevel.reweighting._inputs.csv import TEXT, Reading
from bilevel.reweighting._weights import flexible_models, joining
from bilevel.reweighting._weights.new_rows import LabelledRows, NewRowWeights, _rule
from bilevel.reweighting._weights.scorer import Doubt

N, M, NEW = 400, 80, 300


def draw(rows: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 3)) + shift
    return X, (X[:, 0] + 0.5 * rng.normal(size=rows) > 0).astype(int)


@pytest.fixture(scope="module")
def learned() -> dict[str, Any]:
    """A fifth of the labels is wrong; group 0 has most of them, and trusted rows lie elsewhere."""
    tables = {"train": draw(N, 0), "trusted": draw(M, 1, 0.7), "new": draw(NEW, 2)}
    rng = np.random.default_rng(3)
    rows, wrong = {}, {}
    for name, (X, y) in tables.items():
        groups = rng.integers(0, 3, len(y))
        rate = np.where(groups == 0, 0.5, 0.05) * (name != "trusted")
        wrong[name] = rng.random(len(y)) < rate
        y = np.where(wrong[name], 1 - y, y)
        rows[name] = LabelledRows(X, X, y, groups)
    result = learn_weights(
        rows["train"].given,
        rows["train"].y,
        rows["trusted"].given,
        rows["trusted"].y,
        groups=rows["train"].groups,
    )
    return {"result": result, "wrong": wrong, **rows}


def weigh(learned: dict[str, Any], winner: str) -> tuple[np.ndarray, np.ndarray]:
    """(weights of the training rows as if they were new, of the new rows)."""
    result = dataclasses.replace(learned["result"], winner=winner)
    rule = NewRowWeights(result, LogisticRegression(), learned["train"], learned["trusted"])
    return rule(learned["train"])[1], rule(learned["new"])[1]


@pytest.mark.parametrize(
    "winner",
    [
        *("uniform", "all rows + trusted", "filter", "groups"),
        *("density ratio", "weights by density ratio"),
    ],
)
def test_training_rows_have_mean_one(learned, winner):
    train, new = weigh(learned, winner)
    assert np.mean(train) == pytest.approx(1, rel=1e-12)
    assert np.mean(new) == pytest.approx(1, abs=0.15)
    assert (new >= 0).all()


def test_probabilities_keep_the_scale_of_the_training_rows(learned):
    """Which was found by models that had not seen them."""
    result = dataclasses.replace(learned["result"], winner="weights", scale=0.8)
    rule = NewRowWeights(result, None, learned["train"], learned["trusted"])
    judged, weights = rule(learned["new"])
    np.testing.assert_allclose(weights, judged.right / 0.8)


def test_rules_without_a_model(learned):
    assert np.all(weigh(learned, "trusted only")[1] == 0)
    assert np.all(weigh(learned, "all rows + trusted")[1] == 1)


def test_wrong_labels_weigh_little(learned):
    wrong = learned["wrong"]["new"]
    for winner in ("weights", "clean rows", "filter"):
        _, new = weigh(learned, winner)
        assert new[wrong].mean() < 0.75 * new[~wrong].mean()


def test_the_filter_by_hand(learned):
    train, trusted, new = (learned[name] for name in ("train", "trusted", "new"))
    model = LogisticRegression().fit(trusted.given, trusted.y)
    share = np.mean(model.predict(train.given) == train.y)
    expected = (model.predict(new.given) == new.y) / share
    np.testing.assert_allclose(weigh(learned, "filter")[1], expected)


def test_groups_have_the_weight_of_their_training_rows(learned):
    result = dataclasses.replace(learned["result"], winner="groups")
    means = pd.Series([0.4, 1.2, 1.4], [0, 1, 2])
    result = dataclasses.replace(result, group_weights=means)
    rule = NewRowWeights(result, None, learned["train"], learned["trusted"])
    unknown = learned["new"]._replace(groups=np.full(NEW, 7))
    mean = means[learned["train"].groups].mean()
    expected = np.asarray(means[learned["new"].groups]) / mean
    np.testing.assert_allclose(rule(learned["new"])[1], expected)
    np.testing.assert_allclose(rule(unknown)[1], 1 / mean)  # a group never seen counts as the mean


def test_the_ratio_of_densities_is_that_of_two_normal_distributions(learned):
    """Means 0 and 0.7 in three features: the logarithm is `0.7 sum x`, up to a constant; shrunk."""
    _, new = weigh(learned, "density ratio")
    exact = 0.7 * learned["new"].given.sum(axis=1)
    assert np.corrcoef(np.log(new), exact)[0, 1] > 0.95
    assert np.polyfit(exact, np.log(new), 1)[0] == pytest.approx(0.6, abs=0.4)
    _, both = weigh(learned, "weights by density ratio")
    _, right = weigh(learned, "weights")
    ratio = both / (new * right)
    np.testing.assert_allclose(ratio, ratio[0])  # the product, up to the scale


# ---- from what the pool says to what is wrong


def test_doubt_is_the_curve_of_the_training_rows():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=5000)
    wrong = expit(2 * log_odds - 1)
    doubt = Doubt.of(log_odds, wrong, wrong < 0.6)
    new = np.linspace(-2, 2, 50)
    found = np.interp(new, doubt.log_odds, doubt.wrong)
    np.testing.assert_allclose(found, expit(2 * new - 1), atol=2e-3)
    assert doubt.flagged == log_odds[wrong >= 0.6].min()
    assert Doubt.of(log_odds, wrong, np.ones(5000, bool)).flagged == 0
    assert np.all(doubt(np.array([8.0, 20.0])) > 0.999)  # beyond all training rows
    one = Doubt.of(np.zeros(3), np.full(3, 0.2), np.ones(3, bool))
    assert (len(one.wrong), one.wrong[0]) == (1, 0.2)


def test_new_rows_are_flagged_like_training_rows(learned):
    """The probabilities are calibrated, and the list is as precise as that of the training rows."""
    result = learned["result"]
    X, y = draw(10 * NEW, 4)
    rng = np.random.default_rng(5)
    wrong = rng.random(len(y)) < np.where(rng.random(len(y)) < 1 / 3, 0.5, 0.05)
    scored = result.score_rows(X, np.where(wrong, 1 - y, y))
    assert scored["wrong"].mean() == pytest.approx(wrong.mean(), abs=0.06)
    flagged = ~scored["keep"].to_numpy()
    ours, theirs = wrong[flagged].mean(), learned["wrong"]["train"][~result.keep].mean()
    assert ours == pytest.approx(theirs, abs=0.12)
    assert flagged.mean() == pytest.approx((~result.keep).mean(), abs=0.08)


def test_the_advice_says_where_the_trusted_rows_lie_elsewhere(learned):
    result = learned["result"]
    assert "so these intervals may be too narrow" in result.advice
    alike = result.candidates.drop(["density ratio", "weights by density ratio"])
    assert "too narrow" not in dataclasses.replace(result, candidates=alike).advice


def test_groups_that_are_objects_are_named_by_their_text(learned):
    names = np.array(["2020-01-01", "2020-01-02", "2020-01-03"])
    dates = np.array([np.datetime64(name).astype(object) for name in names])
    result = dataclasses.replace(
        learned["result"], winner="groups", group_weights=pd.Series([0.4, 1.2, 1.4], names)
    )
    train, new = (
        learned[name]._replace(groups=dates[learned[name].groups]) for name in ("train", "new")
    )
    rule = NewRowWeights(result, None, train, learned["trusted"])
    assert len(np.unique(rule(new)[1])) == 3


def test_the_filter_of_a_regression_has_the_threshold_of_the_training_rows(learned):
    """A part in which all targets are far off has no row that is kept."""
    train, trusted = (
        learned[name]._replace(y=learned[name].given[:, 0] + 0.01 * np.cos(np.arange(n)))
        for name, n in (("train", N), ("trusted", M))
    )
    result = dataclasses.replace(learned["result"], winner="filter")
    rule = _rule(result, LinearRegression(), train, trusted)
    seen: Any = None
    judged: Any = None
    assert rule(seen, judged, train).mean() > 0.95
    assert not rule(seen, judged, train._replace(y=train.y + 5)).any()


def test_rows_of_models_that_are_not_kept_are_judged_by_the_others(monkeypatch):
    """Forests find wrong labels that no linear model finds; they are not kept for new rows."""
    monkeypatch.setattr(joining, "FOREST_JOINS", -np.inf)
    monkeypatch.setattr(flexible_models, "TREES", 10)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 3))
    y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(int)
    wrong = rng.random(1000) < 0.1
    z = np.where(wrong, 1 - y, y)
    train, trusted, new = np.split(np.arange(1000), [600, 750])
    result = learn_weights(X[train], z[train], X[trusted], y[trusted])
    assert result.scorer is not None
    scored = result.score_rows(X[new], z[new])
    assert np.mean(scored["wrong"]) == pytest.approx(wrong[new].mean(), abs=0.07)
    assert np.mean(scored["keep"]) > 0.7


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_boosted_trees_judge_new_rows_too_and_last_in_a_file(task, tmp_path):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(900, 12))
    y: Any = ((X[:, 0] > 0) ^ (X[:, 1] > 0)).astype(int)
    wrong = rng.random(900) < 0.1
    given = np.where(wrong, 1 - y, y)
    if task == "regression":
        given, y = given + 0.1 * X[:, 2], y + 0.1 * X[:, 2]
    train, trusted, new = np.split(np.arange(900), [450, 600])
    result = learn_weights(X[train], given[train], X[trusted], y[trusted], task=task)
    scored = result.score_rows(X[new], given[new])
    assert roc_auc_score(wrong[new], scored["wrong"]) > 0.95
    readings = {"a": TEXT, "b": Reading("number", ".", ",", ("", "€"), brackets=True)}
    write_scorer(result, tmp_path, readings)
    write_model(make_pipeline(StandardScaler(), Ridge()), tmp_path / "model.skops")
    x = result.encoding.features(X[new], "X")
    assert result.scorer is not None
    kept, saved = read_scorer(tmp_path).scorer, read_scorer(tmp_path).readings
    assert saved == readings
    for ours, theirs in zip(kept.outputs(x), result.scorer.outputs(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)
