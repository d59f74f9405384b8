"""`learn_weights(method="auto")`: what it chooses, and what it says of the choice."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier

import bilevel
from bilevel import learn_weights
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._inputs.row_facts import RowFacts
from bilevel.reweighting._weights.baselines import fit_weighted, stack_rows
from bilevel.reweighting._weights.folds import FOLDS, make_folds
from digits import RATE, TRAIN, TRUSTED, digits, learned


@pytest.fixture(scope="module")
def result() -> Any:
    return learned()


def test_noisy_digits(result):
    wrong = digits().wrong
    assert result.weights.shape == (TRAIN,)
    assert result.weights.mean() == pytest.approx(1.0, rel=1e-6)
    assert result.winner in ("weights", "clean rows")
    assert roc_auc_score(wrong, -result.weights) >= 0.95
    assert roc_auc_score(wrong, -result.label_quality) >= 0.95
    assert 0 <= result.label_quality.min() < result.label_quality.max() <= 1
    assert wrong[~result.keep].mean() >= 0.75  # of the rows to look at
    assert (~result.keep)[wrong].mean() >= 0.9
    assert result.effective_sample_size == pytest.approx(
        bilevel.effective_sample_size(result.weights), rel=1e-12
    )


def test_the_table_of_candidates_and_the_checks(result):
    table = result.candidates
    baselines = ["uniform", "all rows + trusted", "trusted only", "filter"]
    assert list(table.index) == [*baselines, "weights", "clean rows"]
    assert table.loc["all rows + trusted", "difference"] == 0
    assert result.winner in ("weights", "clean rows")
    names = [check.name for check in result.checks]
    assert names == [
        "the choice on held-out trusted rows",
        "the weights did not collapse",
        "the choice holds on the hold-out",
    ]
    assert f"held-out loss {table.loc[result.winner, 'loss']:.4g}" in result.checks[0].detail
    assert result.believable
    assert list(result.scores.index) == ["uniform", "chosen"]
    assert result.scores.loc["chosen", "trusted_loss"] == table.loc[result.winner, "loss"]
    assert list(result.history["step"]) == [1, 2]  # rounds of the pool
    assert result.history["wrong"].iloc[-1] == pytest.approx(RATE, abs=0.06)
    assert (result.history["effective_sample_size"] <= TRAIN).all()


def test_the_final_fit_counts_rows_as_their_effective_sample_size(result):
    data = digits()
    both = result.sample_weight(TRUSTED)
    assert both[:TRAIN].sum() == pytest.approx(result.scale * TRAIN, rel=1e-6)
    np.testing.assert_allclose(both[TRAIN:], result.scale * result.trusted_weight)
    by_hand = fit_weighted(
        make_pipeline(
            MinMaxScaler(), StandardScaler(with_std=False), LogisticRegression(max_iter=1000)
        ),
        stack_rows(data.X, data.X_trusted),
        stack_rows(data.y, data.y_trusted),
        both,
    )
    score = by_hand.score(*data.holdout)
    assert result.baselines.loc["reweighted", "score"] == pytest.approx(score, abs=1e-12)
    assert score > result.baselines["score"].drop("reweighted").max() - 0.01


def test_new_rows_are_scored(result):
    data = digits()
    right = result.score_rows(*data.holdout)
    wrong_labels = (data.y_holdout + 3) % 10
    wrong = result.score_rows(data.X_holdout, wrong_labels)
    quality = np.r_[right["label_quality"], wrong["label_quality"]]
    assert roc_auc_score(np.repeat([1, 0], len(right)), quality) > 0.97
    assert right["keep"].mean() > 0.85
    assert wrong["keep"].mean() < 0.05
    assert (right["predicted_label"] == data.y_holdout).mean() > 0.85
    frame = pd.DataFrame(data.X_holdout[:2], index=["a", "b"])
    assert list(result.score_rows(frame, data.y_holdout[:2]).index) == ["a", "b"]
    with pytest.raises(InputError, match="`y` has labels that the training rows lack: 11"):
        result.score_rows(data.X_holdout[:1], np.array([11]))


def test_training_rows_score_about_as_they_did(result):
    """A row that joined its models scores a little higher than when it was left out."""
    data = digits()
    again = result.score_rows(data.X, data.y)["label_quality"]
    assert np.corrcoef(again, result.label_quality)[0, 1] > 0.9


@pytest.mark.slow
def test_useless_labels_leave_the_trusted_rows_alone():
    data = digits()
    y = np.random.default_rng(0).permutation(data.y)
    result: Any = learn_weights(data.X, y, data.X_trusted, data.y_trusted, holdout=data.holdout)
    scores = result.baselines["score"]
    assert scores["reweighted"] > scores["uniform"] + 0.3
    assert scores["reweighted"] >= scores["trusted only"] - 0.02
    if result.winner == "trusted only":
        assert not result.weights.any()
        assert result.effective_sample_size == 0


@pytest.mark.slow
def test_an_own_estimator_judges_the_candidates():
    data = digits()
    tree = DecisionTreeClassifier(min_samples_leaf=3, random_state=0)
    fresh: Any = clone(tree)
    result = learn_weights(*data.learnable, holdout=data.holdout, estimator=tree)
    facts = RowFacts.plain(data.X), RowFacts.plain(data.X_trusted)
    folds = make_folds(data.y, data.y_trusted, 0, facts)
    # The table's scores are this tree's, fitted on the other folds.
    by_hand = [
        fresh.fit(data.X_trusted[folds.fold != k], data.y_trusted[folds.fold != k]).predict(
            data.X_trusted[folds.fold == k]
        )
        == data.y_trusted[folds.fold == k]
        for k in range(FOLDS)
    ]
    assert result.candidates is not None
    score = result.candidates.loc["trusted only", "score"]
    assert score == pytest.approx(np.mean(np.concatenate(by_hand)))
    assert result.baselines is not None
    scores = result.baselines["score"].drop("reweighted")
    assert result.baselines.loc["reweighted", "score"] >= scores.max() - 0.03
    assert result.baselines.loc["reweighted", "score"] > scores["uniform"] + 0.1


@pytest.mark.slow  # quick: the sources of `runs.full_run`
def test_bad_sources_lose_their_weight():
    """Ten annotators, as many as the row's features are (one compilation); three of them guess."""
    data = digits()
    rng = np.random.default_rng(0)
    groups = np.array(list("abcdefghij"))[rng.integers(0, 10, TRAIN)]
    bad = ["h", "i", "j"]
    y = np.where(np.isin(groups, bad), rng.integers(0, 10, TRAIN), data.y)
    result = learn_weights(data.X, y, data.X_trusted, data.y_trusted, groups=groups)
    assert result.group_weights is not None
    assert result.candidates is not None
    assert "groups" in result.candidates.index
    assert result.group_weights[bad].max() < 0.6 * result.group_weights.drop(bad).min()


@pytest.mark.slow
def test_a_shifted_distribution_is_noticed_and_followed():
    """Two labelling rules, one in each half of the space; the trusted rows live in one."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 5))
    left = X[:, 0] < 0
    y = np.where(left, X[:, 1] > 0, X[:, 1] < 0).astype(int)
    train, rest = np.arange(600), np.arange(600, 900)
    trusted = rest[left[rest]][:80]
    result = learn_weights(X[train], y[train], X[trusted], y[trusted])
    assert result.candidates is not None
    assert "density ratio" in result.candidates.index
    weights = np.asarray(result.weights)
    assert weights[left[train]].mean() > 3 * weights[~left[train]].mean()
    assert result.candidates.loc[result.winner, "difference"] < -0.1


@pytest.mark.slow
def test_regression_finds_corrupted_targets():
    bunch: Any = load_diabetes()
    X, y = bunch.data, bunch.target
    rng = np.random.default_rng(0)
    train, trusted, rest = np.split(rng.permutation(len(y)), [220, 330])
    wrong = rng.random(220) < 0.3
    noisy = y[train] + 400.0 * wrong
    holdout = X[rest], y[rest]
    result: Any = learn_weights(X[train], noisy, X[trusted], y[trusted], holdout=holdout)
    assert roc_auc_score(~wrong, result.label_quality) >= 0.95
    scores = result.baselines["score"].to_dict()
    assert scores["reweighted"] > scores["uniform"] + 0.1
    by_hand = make_pipeline(MinMaxScaler(), Ridge()).fit(X[train], noisy)
    assert scores["uniform"] == pytest.approx(by_hand.score(*holdout), abs=1e-12)
    scored = result.score_rows(*holdout)
    assert np.corrcoef(scored["predicted_label"], y[rest])[0, 1] > 0.55  # measured 0.588
    assert scored["keep"].mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 5}, "`num_steps` has no meaning for method='auto'"),
        ({"groups": np.zeros(3)}, r"`groups` must have one entry per training row \(400\)"),
        ({"groups": np.zeros(TRAIN)}, "`groups` has 1 distinct values for 400 rows"),
        ({"groups": np.arange(TRAIN)}, "`groups` has 400 distinct values for 400 rows"),
        ({"groups": [None] * TRAIN}, "`groups` has 400 missing entries"),
        (
            {"groups": np.arange(TRAIN) % 2, "method": "soba"},
            "`groups` needs method='auto' and model='linear'",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        learn_weights(*digits().learnable, **arguments)


def test_five_trusted_rows_are_too_few():
    data = digits()
    some = [np.flatnonzero(data.y_trusted == k)[0] for k in range(10)]
    X, y = data.X[data.y < 5], data.y[data.y < 5]
    with pytest.raises(InputError, match="got 5 trusted rows, at least 6"):
        learn_weights(X, y, data.X_trusted[some[:5]], data.y_trusted[some[:5]])
