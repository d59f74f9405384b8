"""The user's metric: what it is computed on, its standard error, and that it decides."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    average_precision_score,
    log_loss,
    make_scorer,
    mean_absolute_error,
    roc_auc_score,
)

from bilevel import ReweightedClassifier, compare_baselines, learn_weights
from bilevel.reweighting import InputError
from bilevel.reweighting._inputs.row_facts import RowFacts
from bilevel.reweighting._weights.folds import FOLDS, make_folds
from bilevel.reweighting._weights.label_models import linear_label_model
from bilevel.reweighting._weights.metric import Metric, Said

RNG = np.random.default_rng(0)


def rare(seed: int, n: int, m: int, rate: float, missing: float, rows: int = 0) -> Any:
    """Training rows some of whose positives are called negative, trusted rows, and more to test on."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + m + rows, 5))
    score = X @ [1.0, 1.0, 0.5, 0.0, 0.0] + 0.5 * rng.normal(size=len(X))
    y = (score > np.quantile(score, 1 - rate)).astype(int)
    noisy = np.where(rng.random(n) < missing, 0, y[:n])
    return (X[:n], noisy, X[n : n + m], y[n : n + m]), (X[n + m :], y[n + m :])


def test_of_a_mean_the_pseudo_values_are_the_rows():
    """Leaving out one row at a time, the pseudo-values of accuracy say which predictions are right."""
    y = RNG.integers(0, 3, 18)
    outputs = np.log(RNG.dirichlet(np.ones(3), 18))
    metric: Any = Metric.of("accuracy")
    rows = np.arange(18)
    said = Said.of_log(outputs, np.arange(3))
    losses, score = metric.judge(said, np.zeros((18, 1)), y, np.ones(18), rows)
    right = outputs.argmax(1) == y
    assert score == right.mean()
    np.testing.assert_allclose(sorted(-losses), sorted(right), atol=1e-12)


@pytest.mark.slow
def test_the_standard_error_is_about_that_of_fresh_rows():
    """The jackknife's for the area under the curve, against its spread over fresh samples."""
    metric: Any = Metric.of("roc_auc")
    rng = np.random.default_rng(0)
    scores, errors = [], []
    for _ in range(80):
        y = rng.integers(0, 2, 200)
        p = 1 / (1 + np.exp(-(y + rng.normal(size=200))))
        said = Said.of_log(np.log(np.stack([1 - p, p], axis=1)), np.arange(2))
        losses, score = metric.judge(said, p[:, None], y, np.ones(200), np.arange(200))
        assert score == pytest.approx(roc_auc_score(y, p))
        assert losses.mean() == pytest.approx(-score)
        scores.append(score)
        errors.append(losses.std(ddof=1) / np.sqrt(len(losses)))
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.25)


def test_weights_count_in_the_metric():
    y, weight = RNG.integers(0, 2, 40), RNG.integers(1, 3, 40)
    outputs = np.log(RNG.dirichlet(np.ones(2), 40))
    metric: Any = Metric.of("neg_log_loss")
    rows = np.repeat(np.arange(40), weight)
    judged = [
        metric.judge(Said.of_log(outputs[r], np.arange(2)), np.zeros((len(r), 1)), y[r], w, r)
        for r, w in [(np.arange(40), weight.astype(float)), (rows, np.ones(len(rows)))]
    ]
    np.testing.assert_allclose(judged[0][0], judged[1][0])
    expected = -log_loss(y, np.exp(outputs), sample_weight=weight)
    assert judged[0][1] == pytest.approx(expected)


@pytest.mark.parametrize("labels", [("no", "yes"), pytest.param((0, 1), marks=pytest.mark.slow)])
def test_candidates_are_scored_out_of_fold(labels):
    """By the metric of scikit-learn, on the predictions of models fitted on the other folds."""
    rows, holdout = rare(0, 300, 90, 0.3, 0.3, 200)
    X, y, X_trusted, y_trusted = rows
    names = np.array(labels)
    result = learn_weights(
        X,
        names[y],
        X_trusted,
        names[y_trusted],
        estimator=LogisticRegression(),
        scaler=None,
        holdout=(holdout[0], names[holdout[1]]),
        scoring="average_precision",
    )
    folds = make_folds(y, y_trusted, 0, (RowFacts.plain(X), RowFacts.plain(X_trusted)))
    p = np.zeros(90)
    for k in range(FOLDS):
        here = folds.fold == k
        model = LogisticRegression(tol=1e-3).fit(X_trusted[~here], y_trusted[~here])
        p[here] = model.predict_proba(X_trusted[here])[:, 1]
    table: Any = result.candidates
    assert table.loc["trusted only", "score"] == pytest.approx(
        average_precision_score(y_trusted, p)
    )
    np.testing.assert_allclose(table["loss"], -table["score"])
    final = LogisticRegression().fit(np.r_[X, X_trusted], np.r_[y, y_trusted])
    expected = average_precision_score(holdout[1], final.predict_proba(holdout[0])[:, 1])
    baselines: Any = result.baselines
    assert baselines.loc["all rows + trusted", "score"] == pytest.approx(expected)
    gap = baselines.loc["reweighted", "score"] - expected
    assert baselines.loc["all rows + trusted", "difference"] == pytest.approx(gap, abs=1e-12)


@pytest.mark.slow
def test_the_metric_decides():
    """Positives are missing among the training rows: who wants many asks the trusted rows alone."""
    rows, _ = rare(1, 300, 90, 0.3, 0.6)

    def positives(estimator: Any, X: Any, y: Any) -> float:
        return float(np.mean(estimator.predict_proba(X)[:, 1]))

    plain, many = learn_weights(*rows), learn_weights(*rows, scoring=positives)
    table: Any = many.candidates
    assert table["score"].idxmax() == many.winner != plain.winner


def test_a_regression_and_a_callable_get_targets_in_their_units():
    X = RNG.normal(size=(200, 3))
    y = 1000 + 50 * X[:, 0] + RNG.normal(size=200)
    seen = []

    def scorer(estimator: Any, X: Any, y: Any) -> float:
        seen.append(y)
        return -mean_absolute_error(y, estimator.predict(X))

    given = X[:140], y[:140], X[140:], y[140:]
    result: Any = learn_weights(*given, estimator=Ridge(), scoring=scorer)
    assert min(map(np.min, seen)) > 800
    named: Any = learn_weights(*given, estimator=Ridge(), scoring="neg_mean_absolute_error")
    pd.testing.assert_frame_equal(result.candidates, named.candidates)
    assert result.metric.name == "scorer"


@pytest.mark.slow
def test_the_estimator_and_its_report_use_it():
    rows, holdout = rare(0, 300, 90, 0.3, 0.3, 200)
    clf: Any = ReweightedClassifier(scoring="roc_auc").fit(
        rows[0], rows[1], X_trusted=rows[2], y_trusted=rows[3]
    )
    table = clf.compare_baselines(*holdout)
    expected = roc_auc_score(holdout[1], clf.predict_proba(holdout[0])[:, 1])
    assert table.loc["reweighted", "score"] == pytest.approx(expected)
    evidence = clf.report(*holdout).evidence
    assert evidence["score"] == "roc_auc"
    assert evidence["verdict"]["measure"] == "roc_auc"
    assert evidence["verdict"]["ours"] == pytest.approx(expected)
    assert clf.report().evidence["verdict"]["ours"] > 0  # the score itself, without the minus


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        (
            "average_precison",
            "must name a scorer of scikit-learn.*did you mean 'average_precision'",
        ),
        (3, r"must be the name of a scorer or a callable \(estimator, X, y\), got 3"),
        (roc_auc_score, "which compares labels; a scorer is wanted"),
        ("r2", None),
        (lambda estimator, X, y: np.nan, "is not a number on held-out rows"),
        (
            make_scorer(roc_auc_score, response_method="decision_function"),
            "cannot be computed on held-out",
        ),
    ],
)
def test_what_is_no_metric_is_named(scoring, message):
    rows, _ = rare(0, 60, 30, 0.3, 0.3)
    if message is None:  # it can be computed on class codes
        assert learn_weights(*rows, scoring=scoring).metric is not None
        return
    with pytest.raises(InputError, match=message):
        learn_weights(*rows, scoring=scoring)


def test_a_rare_class_is_learned_to_the_end():
    """It adds little to the gradient of the mean loss, at which a solver stops."""
    (X, y, X_trusted, y_trusted), _ = rare(0, 3000, 600, 0.005, 0)
    model = linear_label_model(make_folds(y, y_trusted, 0), X, X_trusted)
    fitted = model.fit(np.ones(3000), np.zeros(600))
    exact = LogisticRegression(tol=1e-9, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(fitted.coef_, exact.coef_, atol=0.05 * np.abs(exact.coef_).max())


@pytest.mark.slow
def test_rare_positives_some_of_which_are_missing():
    """0.3 % positives, of which 30 % are called negative: never worse than all rows, by 2 errors."""
    gains = []
    for seed in range(20):
        rows, holdout = rare(seed, 8000, 2000, 0.003, 0.3, 20_000)
        result = learn_weights(*rows, scoring="average_precision", seed=seed)
        weights = result.scale * np.asarray(result.weights), result.scale * result.trusted_weight
        given: Any = (*rows, *weights, *holdout)
        table = compare_baselines(
            LogisticRegression(max_iter=300),
            *given,
            scoring="average_precision",
        )
        gains.append(table.loc[["uniform", "all rows + trusted"], "difference"])
    gains = np.array(gains, float)
    assert np.all(gains.mean(axis=0) >= -2 * gains.std(axis=0, ddof=1) / np.sqrt(20))
