"""Before and after on the hold-out, against published intervals, scikit-learn and hand counts."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, confusion_matrix, log_loss

from bilevel.reweighting._report.before_after import (
    Fits,
    _bins,
    before_and_after,
    change_of_score,
    effects_by,
)
from bilevel.reweighting._report.refits import Rows
from bilevel.reweighting._weights.metric import Metric, Said
from reports import made_result


class _Kind(ClassifierMixin, BaseEstimator):
    """Only its kind is asked for."""


class _Number(RegressorMixin, BaseEstimator):
    """Only its kind is asked for."""


def made(
    y: Any, before: Any, after: Any, metric: Any = None, kind: Any = None
) -> tuple[Rows, Fits]:
    """Rows and fits that say what they are told to: labels, or probabilities of the classes."""
    y = np.asarray(y)
    classes = None if kind is not None else np.unique(y)
    said = []
    for told in (np.asarray(before), np.asarray(after)):
        responses = {"predict": told}
        if told.ndim == 2:
            assert classes is not None
            responses = {"predict": classes[told.argmax(axis=1)], "predict_proba": told}
        said.append(Said(classes, responses))
    result = made_result(np.ones(len(y)), metric=Metric.of(metric))
    X = np.zeros((len(y), 1))
    return Rows(kind or _Kind(), X, y, X, y, result), Fits(X, y, classes, *said)


def test_the_paired_interval_is_the_published_one():
    # R's PropCIs, diffpropci.mp(b = 40, c = 20, n = 160): -0.1234568, -0.21601726 to -0.03089632.
    y = np.zeros(160, int)
    before, after = np.zeros(160, int), np.zeros(160, int)
    before[:40] = 1  # right only afterwards
    after[40:60] = 1
    line = change_of_score(*made(y, before, after), np.arange(160), recall=True)
    assert (line["low"], line["high"]) == pytest.approx((0.03089632, 0.21601726), abs=2e-5)
    assert line["difference"] == pytest.approx(20 / 160)
    assert line["change"] == "gains"
    # Of a hundred comparisons it is one that chance makes.
    line = change_of_score(*made(y, before, after), np.arange(160), recall=True, comparisons=100)
    assert line["change"] == "unclear"
    line = change_of_score(*made(y, after, before), np.arange(160), recall=True)
    assert line["change"] == "loses"


def test_few_rows_have_no_interval():
    rows, fits = made([0, 1] * 10, [0] * 20, [0, 1] * 10)
    assert "low" not in change_of_score(rows, fits, np.arange(9), recall=True)
    assert change_of_score(rows, fits, np.arange(10), recall=True)["low"] > 0


def test_regressions_compare_squared_errors():
    rng = np.random.default_rng(0)
    y = rng.normal(size=50)
    before, after = y + rng.normal(size=50), y + 0.1 * rng.normal(size=50)
    rows, fits = made(y, before, after, kind=_Number())
    line = change_of_score(rows, fits, np.arange(50), recall=False)
    gain = ((before - y) ** 2 - (after - y) ** 2) / np.var(y)
    half = norm.ppf(0.975) * gain.std(ddof=1) / np.sqrt(50)
    assert line["difference"] == pytest.approx(gain.mean())
    assert (line["low"], line["high"]) == pytest.approx((gain.mean() - half, gain.mean() + half))
    found = before_and_after(rows, fits, {"classes": None, "groups": None})
    assert found is not None
    assert found["confusion"] is None
    assert sum(t["rows"] for t in found["calibration"]["before"]) == 50
    assert found["calibration"]["table"][0]["equal"] == pytest.approx(np.mean((before - y) ** 2))


def test_groups_are_scored_by_the_metric_of_the_user_and_classes_by_their_recall():
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [60, 30, 10])
    before, after = np.where(rng.random(100) < 0.4, 0, y), np.where(rng.random(100) < 0.1, 0, y)
    rows, fits = made(y, before, after, metric="balanced_accuracy")
    groups = np.where(np.arange(100) % 2, "odd", "even")
    table = {t["name"]: t for t in effects_by(rows, "groups", groups, fits, groups)}
    for name, line in table.items():
        some = groups == name
        assert line["equal"] == pytest.approx(balanced_accuracy_score(y[some], before[some]))
        assert line["low"] < line["difference"] < line["high"]
    by_class = effects_by(rows, "classes", y, fits, y)
    assert [t["reweighted"] for t in by_class] == pytest.approx(
        [np.mean(after[y == k] == k) for k in range(3)]
    )
    found = before_and_after(rows, fits, {"classes": by_class, "groups": None})
    assert found is not None
    assert found["score"]["reweighted"] == pytest.approx(balanced_accuracy_score(y, after))
    assert found["sentences"]["classes"].startswith(
        "Of 3 classes, 2 clearly gain (1, 2); chance could"
    )


def test_confusions_and_losses_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 90)
    before, after = (rng.dirichlet([1, 1, 1], 90) for _ in range(2))
    found = before_and_after(*made(y, before, after), {"classes": None, "groups": None})
    assert found is not None
    for side, p in (("before", before), ("after", after)):
        counts = np.zeros((3, 3), int)
        for cell in found["confusion"]["cells"]:
            counts[cell["true"], cell["predicted"]] = cell[side]
        np.testing.assert_array_equal(counts, confusion_matrix(y, p.argmax(axis=1)))
    changes = [abs(t["change"]) for t in found["confusion"]["changes"]]
    assert changes == sorted(changes, reverse=True)
    assert 0 not in changes
    losses = {t["name"]: t for t in found["calibration"]["table"]}
    for key, p in (("equal", before), ("reweighted", after)):
        assert losses["log loss"][key] == pytest.approx(log_loss(y, p))
        brier = sum(brier_score_loss(y == k, p[:, k]) for k in range(3))
        assert losses["Brier score"][key] == pytest.approx(brier)


def test_a_calibrated_model_is_on_the_line_and_a_sure_one_is_not():
    rng = np.random.default_rng(3)
    p = rng.random(4000)
    y = (rng.random(4000) < p).astype(int)
    sure = np.clip(2 * p - 0.5, 0, 1)
    both = [np.stack([1 - q, q], axis=1) for q in (sure, p)]
    found = before_and_after(*made(y, *both), {"classes": None, "groups": None})
    assert found is not None
    inside = [t["low"] <= t["said"] <= t["high"] for t in found["calibration"]["after"]]
    assert sum(inside) >= 8
    gaps = found["calibration"]["table"][-1]
    assert gaps["name"] == "calibration gap"
    assert gaps["reweighted"] < 0.03 < 0.1 < gaps["equal"]


def test_bins_hold_every_row_once_and_their_intervals_are_wilsons():
    said = np.linspace(0, 1, 103)
    lines = _bins(said, np.r_[np.zeros(53), np.ones(50)])
    assert sum(t["rows"] for t in lines) == 103
    # Wilson's interval of 0 of 11: 0 to z^2 / (n + z^2).
    assert (lines[0]["low"], lines[0]["high"]) == pytest.approx((0, 1.96**2 / (11 + 1.96**2)))
