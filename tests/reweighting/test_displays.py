"""What a notebook shows: the report in a frame, and charts that can be restyled."""

import html
import re
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import recall_score

from bilevel import ReweightedClassifier
from bilevel.reweighting import (
    BeforeAfterDisplay,
    GainsDisplay,
    InputError,
    Report,
    WeightsDisplay,
    WrongLabelsDisplay,
)
from reports import HARMLESS, HOSTILE, iris_evidence


@pytest.fixture(scope="module")
def fitted():
    """A classifier of 120 noisy rows and 60 trusted ones, the true labels, and a hold-out."""
    X, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, trusted, held = np.split(order[:400], [120, 180])
    given = np.where(np.arange(120) % 6 == 0, 1 - y[train], y[train])
    clf = ReweightedClassifier().fit(X[train], given, X_trusted=X[trusted], y_trusted=y[trusted])
    return clf, y[train], (X[held], y[held])


def values(chart: alt.Chart) -> list[dict]:
    data: Any = chart.data
    return data.to_dict()["values"]


def test_displays_hold_the_numbers_that_the_report_shows(fitted):
    clf, truth, holdout = fitted
    weights = WeightsDisplay.from_estimator(clf)
    assert sum(row["rows"] for row in values(weights.plot())) == 120
    wrong = WrongLabelsDisplay.from_estimator(clf, truth)
    assert len(values(wrong.plot())) == len(wrong.first_rows)
    assert wrong.first_rows["observed"].iloc[-1] <= 1
    gains = GainsDisplay.from_estimator(clf, *holdout)
    by_name = {row["name"]: row["gain"] for row in values(gains.plot())}
    assert by_name == pytest.approx(gains.baselines["difference"].drop("reweighted").to_dict())
    changes = BeforeAfterDisplay.from_estimator(clf, *holdout)
    for row in values(changes.plot("classes")):
        told = clf.predict(holdout[0])
        truth_of = holdout[1] == int(row["name"])
        assert row["reweighted"] == pytest.approx(recall_score(truth_of, told == int(row["name"])))
    for kind in ("calibration", "confusion-before", "confusion-after"):
        assert values(changes.plot(kind))
    with pytest.raises(ValueError, match="`kind` must be one of calibration, confusion-before"):
        changes.plot("pie")
    for odd, message in [
        (truth[:3], r"`truth` must be a vector with one label per row, got shape \(3,\) for 120"),
        (np.where(np.arange(120) == 7, np.nan, truth), r"`truth` has 1 missing labels"),
        (np.array(["one"] * 120), r"`truth` has labels that are not numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            WrongLabelsDisplay.from_estimator(clf, odd)
    as_texts = WrongLabelsDisplay.from_estimator(clf, truth.astype(str))  # as a CSV file has them
    pd.testing.assert_frame_equal(as_texts.first_rows, wrong.first_rows)


def test_a_display_pairs_the_rows_it_is_given_with_their_labels(fitted):
    clf, _, (X, y) = fitted
    table, labels = pd.DataFrame(X), pd.Series(y)
    with pytest.raises(InputError, match="`y_holdout` has the index of its rows in another order"):
        BeforeAfterDisplay.from_estimator(clf, table, labels[::-1])
    with pytest.raises(InputError, match="`y_holdout` has labels that the training rows lack: 7"):
        BeforeAfterDisplay.from_estimator(clf, X, np.where(np.arange(len(y)) == 3, 7, y))


def test_charts_can_be_restyled_and_have_colours_of_their_own():
    charts = Report(iris_evidence(HARMLESS)).charts
    assert {"gains", "histogram", "calibration", "change-groups"} <= charts.keys()
    for chart in charts.values():
        assert "var(--" not in chart.to_json()
    restyled = charts["histogram"].properties(title="Mine", width=700).configure_bar(color="red")
    made = restyled.to_dict()
    assert (made["title"], made["width"], made["config"]["bar"]["color"]) == ("Mine", 700, "red")


@pytest.mark.slow
def test_hostile_names_do_not_leave_the_frame():
    hostile = Report(iris_evidence(HOSTILE))._repr_html_()
    assert re.findall("<[a-z/]+", hostile) == ["<iframe", "</iframe"]


def test_a_notebook_shows_the_page_in_a_frame():
    report = Report(iris_evidence(HARMLESS))
    shown = report._repr_html_()
    assert shown.startswith("<iframe ")
    assert re.findall("<[a-z/]+", shown) == ["<iframe", "</iframe"]  # the page is an attribute
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', shown)[1])  # type: ignore[index]
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("<svg") == 16
    assert len(page) < 600_000  # without the libraries of the page
    assert "Weighting paid" in page


def test_the_text_says_the_verdict_the_advice_and_the_alarms():
    lines = repr(Report(iris_evidence(HARMLESS))).splitlines()
    assert lines[0].startswith("Weighting paid: accuracy is 0.900 on 30 hold-out rows")
    assert lines[1] == "Advice: Use the weights."
    assert "[NO] tables share rows: name 7: 1 exact and 2 near duplicates" in lines


def test_an_estimator_shows_weights_and_verdict(fitted):
    text = repr(fitted[0])
    assert f"chosen: {fitted[0].winner_}" in text
    assert "weights_: from" in text
    assert "chosen: " in fitted[0]._repr_html_()
