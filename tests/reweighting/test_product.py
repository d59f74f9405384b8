"""The estimator on what people have: a table with text, dates and gaps; and its report."""

import json
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from bilevel import ReweightedClassifier, learn_weights
from bilevel.reweighting._inputs.checks import InputError, find_classes

N, M, H = 240, 60, 100


def people(n: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows whose class shows in a number with gaps, a short text and a date."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    age = 40 + 15 * y + rng.normal(0, 6, n)
    age[rng.random(n) < 0.1] = np.nan
    town = np.where(rng.random(n) < 0.85, np.array(["Ulm", "Bonn"])[y], "Köln")
    days = pd.to_timedelta(rng.integers(0, 300, n) + 200 * y, unit="D")
    frame = pd.DataFrame({"age": age, "town": town, "since": pd.Timestamp("2020-01-01") + days})
    return frame, np.array(["no", "yes"])[y]


@pytest.fixture(scope="module")
def fitted() -> Any:
    X, y = people(N + M + H, seed=0)
    flip = np.random.default_rng(1).random(N) < 0.35
    noisy = y.copy()
    noisy[:N][flip] = np.where(y[:N][flip] == "yes", "no", "yes")
    mask = np.arange(N + M) >= N
    table = pl.from_pandas(X)
    clf = ReweightedClassifier().fit(table[: N + M], pl.Series(noisy[: N + M]), is_trusted=mask)
    return clf, (table[N + M :], y[N + M :]), flip, (X, y)


def test_a_polars_table_gives_polars_weights(fitted):
    clf, (held, y_held), flip, _ = fitted
    assert isinstance(clf.weights_, pl.Series)
    assert len(clf.weights_) == N + M
    assert clf.weights_.to_numpy()[:N].mean() == pytest.approx(1.0, rel=1e-5)
    quality = clf.label_quality_.to_numpy()[:N]
    assert roc_auc_score(flip, -quality) > 0.9
    assert (clf.predict(held) == y_held).mean() > 0.9
    assert clf.predict_proba(held).shape == (H, 2)
    scored = clf.score_rows(held, y_held)
    assert (scored["predicted_label"] == y_held).mean() > 0.9
    assert list(clf.baselines_.index) == [
        *("uniform", "all rows + trusted", "trusted only", "filter")
    ]
    assert "weights" in clf.candidates_.index
    pd.testing.assert_frame_equal(clf.baselines_, clf.candidates_.loc[clf.baselines_.index])
    pd.testing.assert_frame_equal(clf.candidates_, clf.result_.candidates)
    table = clf.compare_baselines(held, y_held)
    assert table.loc["reweighted", "score"] == pytest.approx((clf.predict(held) == y_held).mean())


def test_pandas_predicts_the_same(fitted):
    clf, (held, _), _, (X, _) = fitted
    np.testing.assert_array_equal(clf.predict(X[N + M :]), clf.predict(held))


@pytest.mark.slow
def test_the_report_of_an_estimator(fitted, tmp_path):
    clf, (held, y_held), flip, _ = fitted
    report = clf.report(held, y_held)
    report.save(tmp_path / "report.json")
    page = report.save(tmp_path / "report.html").read_text()
    evidence = json.loads((tmp_path / "report.json").read_text())
    assert evidence["train_rows"] == N
    assert evidence["winner"] == clf.winner_
    assert evidence["verdict"]["headline"] in page
    # The verdict is about the hold-out, which took no part in `fit`.
    assert f"on {H} hold-out rows" in evidence["verdict"]["detail"]
    table = clf.compare_baselines(held, y_held)
    assert {row["name"]: row["score"] for row in evidence["baselines"]} == table["score"].to_dict()
    assert evidence["checks"][-1]["name"] == "the choice holds on the hold-out"
    worst = [int(row["id"]) for row in evidence["worst"]["rows"][:30]]
    assert flip[worst].mean() > 0.9


@pytest.mark.slow
def test_rows_of_a_class_without_trusted_rows_are_judged_by_models_of_all_rows():
    rng = np.random.default_rng(0)
    y = np.arange(360) % 3
    X = np.eye(3)[y] * 3 + rng.normal(size=(360, 3))
    noisy = np.where(np.arange(300) % 10 == 0, (y[:300] + 1) % 3, y[:300])
    verified = np.flatnonzero(y[300:] < 2) + 300
    with pytest.warns(
        UserWarning, match=r"labels that no trusted row has: 2\. These rows are judged by"
    ):
        result = learn_weights(X[:300], noisy, X[verified], y[verified])
    third, wrong = noisy == 2, noisy != y[:300]
    quality, keep = np.asarray(result.label_quality), np.asarray(result.keep)
    assert quality[third & wrong].max() < np.quantile(quality[third & ~wrong], 0.1)
    assert keep[third & ~wrong].mean() > 0.9
    assert keep[third & wrong].mean() <= 0.2


def test_a_class_without_trusted_rows_is_refused_or_warned_of():
    y, trusted = np.array([0, 1, 2, 2]), np.array([0, 1, 1])
    with pytest.raises(InputError, match=r"no trusted row has: 2\. Every row of such a class"):
        find_classes(y[:3], trusted, judge_all=True)
    with pytest.warns(UserWarning, match=r"no trusted row has: 2\. These rows are judged by"):
        assert find_classes(y[:3], trusted, judge_all=False).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="no trusted row has: 0, 2"):
        find_classes(y, np.ones(4, int), judge_all=False)


def test_rows_of_weight_zero_bring_no_class():
    y, trusted = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    ones, first = np.ones(4), np.array([1.0, 1.0, 0.0, 0.0])
    with pytest.raises(InputError, match=r"only one class of a weight above 0 \(0\)"):
        find_classes(y, trusted, judge_all=False, weights=(first, ones))
    with pytest.raises(InputError, match="no trusted row has: 1"):
        find_classes(y, y, judge_all=False, weights=(ones, first))
    assert find_classes(y, trusted, judge_all=False, weights=(ones, first)).tolist() == [0, 1]
