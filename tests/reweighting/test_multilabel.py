"""Several labels per row: what is found in each column, and how the columns become one row."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from bilevel.reweighting import InputError, learn_multilabel_weights, learn_weights
from schema import faults


@pytest.fixture(scope="module")
def case():
    """Three labels of 240 rows: one noisy in a tenth of the rows, one clean, one that never occurs."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(320, 4)), index=[f"r{k}" for k in range(320)])
    names = ["red", "round", "never"]
    Y = pd.DataFrame((X.to_numpy()[:, :3] > [0, 0.5, 9]).astype(int), X.index, names)
    noisy = Y.iloc[:240].copy()
    wrong = rng.random(240) < 0.1
    noisy["red"] = np.where(wrong, 1 - noisy["red"], noisy["red"])
    with pytest.warns(UserWarning, match=r"the labels 'never' are the same in all training rows"):
        found = learn_multilabel_weights(X[:240], noisy, X[240:], Y[240:])
    return X, Y, noisy, wrong, found


@pytest.mark.slow
def test_each_label_is_what_learn_weights_finds_alone(case):
    X, Y, noisy, _, found = case
    alone = learn_weights(X[:240], noisy["round"].to_numpy(), X[240:], Y["round"][240:])
    np.testing.assert_array_equal(found.label_quality["round"], alone.label_quality)
    np.testing.assert_array_equal(found.keep["round"], alone.keep)
    np.testing.assert_allclose(found.sample_weights(80)[:, 1], alone.sample_weight(80), rtol=1e-12)
    assert found.labels.loc["round", "winner"] == alone.winner
    assert found.labels.loc["round", "flagged"] == (~alone.keep).sum()


def test_neither_other_labels_nor_their_order_change_what_is_found(case):
    """Each label is a question of its own: `round` alone, and as the second of three."""
    X, Y, noisy, _, found = case
    alone = learn_multilabel_weights(X[:240], noisy[["round"]], X[240:], Y.loc["r240":, ["round"]])
    np.testing.assert_array_equal(alone.label_quality["round"], found.label_quality["round"])
    np.testing.assert_array_equal(alone.label_weights["round"], found.label_weights["round"])


def test_a_row_is_ranked_by_its_worst_label_and_weighs_the_mean(case):
    X, _, noisy, wrong, found = case
    quality = found.label_quality.to_numpy()
    np.testing.assert_array_equal(found.row_quality, quality.min(axis=1))
    assert roc_auc_score(~wrong, found.row_quality) > 0.95
    both = found.sample_weights(80)
    np.testing.assert_allclose(found.sample_weight(80), both.mean(axis=1), rtol=1e-12)
    assert np.mean(found.weights) == pytest.approx(1)
    for table in (found.label_quality, found.keep, found.label_weights):
        assert table.columns.tolist() == noisy.columns.tolist()
        assert table.index.tolist() == X.index[:240].tolist()
    assert found.row_quality.index.tolist() == X.index[:240].tolist()


def test_a_label_that_never_occurs_is_left_alone(case):
    found = case[-1]
    assert (found.label_quality["never"] == 1).all()
    assert found.keep["never"].all()
    assert (found.sample_weights(80)[:, 2] == 1).all()
    assert sorted(found.results) == ["red", "round"]
    assert {check.name.split(":")[0] for check in found.checks} == {"red", "round"}
    flagged = int((~found.keep).to_numpy().sum())
    assert f"with {flagged} labels that are probably wrong" in str(found)


@pytest.mark.parametrize(
    ("Y", "message"),
    [
        (np.zeros(6), r"must be an indicator matrix \(rows, labels\), got shape \(6,\)"),
        (np.array([[0, 2], [1, 0]] * 3), r"the columns 1 hold other values, in the rows 0, 2, 4"),
        (np.zeros((6, 2)), r"every label is the same in all training rows"),
        (np.zeros((6, 3)), r"`Y` has the labels 0, 1, 2, `Y_trusted` 0, 1;"),
        (pd.DataFrame([[0, 1]] * 6, columns=["a", "a"]), r"two columns of the name 'a'"),
        (pd.DataFrame([[0, None]] * 6), r"the columns 1 hold other values"),
        (pd.DataFrame([[0, None]] * 6, dtype="Int64"), r"the columns 1 hold other values"),
        (pd.Series([0, 1] * 3), r"must be an indicator matrix \(rows, labels\), got shape \(6,\)"),
        (np.zeros((0, 2)), r"must be an indicator matrix \(rows, labels\), got shape \(0, 2\)"),
        (
            pd.DataFrame([[0, 1]] * 6, columns=pd.MultiIndex.from_product([["a"], ["b", "c"]])),
            r"names of 2 levels",
        ),
    ],
)
def test_what_is_no_indicator_matrix_is_refused(Y, message):
    X = np.arange(6.0)[:, None]
    with pytest.raises(InputError, match=message):
        learn_multilabel_weights(X, Y, X, np.array([[0, 1], [1, 0]] * 3))


@pytest.mark.parametrize("name", ["Y", "Y_trusted"])
def test_indicators_in_another_order_than_their_rows_are_refused(case, name):
    X, Y, noisy, *_ = case
    given = {"Y": noisy, "Y_trusted": Y[240:]}
    given[name] = given[name][::-1]
    with pytest.raises(InputError, match=rf"`{name}` has the index of its rows in another order"):
        learn_multilabel_weights(X[:240], given["Y"], X[240:], given["Y_trusted"])


def test_several_columns_of_labels_are_sent_to_the_function_for_them(case):
    X, Y, noisy, *_ = case
    with pytest.raises(InputError, match=r"`y` has 3 columns.*learn_multilabel_weights"):
        learn_weights(X[:240], noisy, X[240:], Y[240:])


def test_the_report_names_the_labels_at_fault(case, tmp_path):
    found = case[-1]
    report = found.report()
    evidence = report.evidence
    flagged = ~found.keep
    assert evidence["rows_to_look_at"] == int(flagged.any(axis=1).sum())
    assert evidence["labels_to_look_at"] == int(flagged.to_numpy().sum())
    assert [row["id"] for row in evidence["rows"]] == list(
        found.row_quality[flagged.any(axis=1)].sort_values(kind="stable").index
    )
    for row in evidence["rows"]:
        names = [label["name"] for label in row["labels"]]
        assert set(names) == set(flagged.columns[flagged.loc[row["id"]]])
        assert [label["given"] for label in row["labels"]] == [
            bool(found.given.loc[row["id"], name]) for name in names
        ]
    both = int((flagged["red"] & flagged["round"]).sum())
    assert sum(pair["rows"] for pair in evidence["pairs"]) == both
    by_name = {line["name"]: line for line in evidence["labels"]}
    assert by_name["red"]["rate"]["value"] == found.results["red"].noise.rate.value
    assert by_name["never"]["rate"] is None
    assert "all trusted rows: never" in evidence["verdict"]["detail"]
    path = report.save(tmp_path / "report.json")
    assert json.loads(path.read_text(encoding="utf-8")) == evidence
    assert faults(path) == []
    with pytest.raises(ValueError, match=r"is saved as \.html or \.json, got 'report.pdf'"):
        report.save(tmp_path / "report.pdf")


def test_hostile_names_change_no_element_of_the_page(case):
    found = case[-1]
    hostile = {"red": "<script>alert(1)</script>", "round": '"><img src=x>\u202e', "never": "\x00"}
    tables = {
        name: getattr(found, name).rename(columns=hostile)
        for name in ("keep", "label_quality", "given")
    }
    ids = pd.Index([f"<b>{k}</b>" for k in range(240)])
    renamed = dataclasses.replace(
        found,
        **{name: table.set_axis(ids, axis=0) for name, table in tables.items()},
        labels=found.labels.rename(index=hostile),
        results={hostile[name]: result for name, result in found.results.items()},
    )

    def elements(result) -> list[str]:
        return re.findall(
            r"<(\w+)", re.sub(r"<script.*?</script>", "", result.report().to_html(), flags=re.S)
        )

    assert elements(renamed) == elements(found)
    assert "\u202e" not in renamed.report().to_html()
