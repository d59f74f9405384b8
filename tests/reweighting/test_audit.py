"""`audit` and its parts on tables with planted faults, and on clean ones."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from bilevel.reweighting._audit.audit import audit
from bilevel.reweighting._audit.duplicates import (
    find_conflicting_labels,
    find_duplicates,
    find_shared_rows,
)
from bilevel.reweighting._audit.finding import Audit
from bilevel.reweighting._inputs.checks import InputError
from digits import digits, mixed_table

RNG = np.random.default_rng(0)


def split(loader: Any, seed: int = 0) -> tuple[np.ndarray, ...]:
    bunch = loader()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    parts = np.split(order, [len(order) // 2, 3 * len(order) // 4])
    return tuple(x for p in parts for x in (bunch.data[p], bunch.target[p]))


def found(result: Audit, severity: str) -> dict[str, tuple[Any, ...]]:
    return {f.title: f.ids for f in result.findings if f.severity == severity}


def cancer() -> tuple[Any, ...]:
    """Three tables with text ids, a0, a1, ..., b0, ..., c0, ..., and their labels."""
    names = [f"column {i}" for i in range(30)]
    parts: list[Any] = list(split(load_breast_cancer))
    for k, letter in enumerate("abc"):
        X = parts[2 * k]
        parts[2 * k] = pd.DataFrame(X, [f"{letter}{i}" for i in range(len(X))], names)
    return tuple(parts)


def mixed(n: int, seed: int) -> pd.DataFrame:
    """Two numbers, one with gaps, a truth value and a text with gaps."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "a": rng.normal(size=n),
            "b": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
            "c": rng.random(n) < 0.5,
            "d": pd.Series(rng.choice(["x", "y", "<b>"], n)).where(rng.random(n) < 0.8),
            "e": rng.normal(size=n),
        },
        index=[f"{seed}-{i}" for i in range(n)],
    )


CONTRADICTED = "labels that the other rows contradict"


# --- nothing on clean data


@pytest.mark.parametrize(
    "loader", [load_breast_cancer, load_wine, pytest.param(load_digits, marks=pytest.mark.slow)]
)
def test_clean_tables_give_no_finding(loader):
    """But a few labels that models of the other rows contradict: nobody knows that they are right."""
    tables = split(loader)
    result = audit(*tables)
    constant = {"constant columns"} if loader is load_digits else set()  # the pixels of the corners
    assert set(found(result, "problem")) == set()
    warnings = found(result, "warning")
    number = len(warnings)
    assert len(warnings.pop(CONTRADICTED, ())) <= 0.02 * len(tables[0])
    assert set(warnings) == constant
    assert result.passed
    said = "1 warning" if number == 1 else f"{number} warnings"
    assert str(result).startswith(f"0 problems, {said}\n[ok] columns: ")


def test_iris_repeats_one_flower():
    X, y = load_iris(return_X_y=True)
    assert find_duplicates(X).to_numpy().tolist() == [[0, 101], [0, 142]]
    assert len(find_conflicting_labels(X, y)) == 0


CROWDED = {
    "zero-inflated": lambda rng, n: np.where(
        rng.random((n, 20)) < 0.075, rng.lognormal(size=(n, 20)), 0
    ),
    "lognormal": lambda rng, n: rng.lognormal(0, 2.5, (n, 10)),
    "two scales": lambda rng, n: rng.normal(size=(n, 8)) * rng.choice([1e-3, 1.0], (n, 1)),
    "one column": lambda rng, n: rng.normal(size=(n, 1)),
    "rounded": lambda rng, n: rng.normal(size=(n, 4)).round(1),
}


@pytest.mark.parametrize("name", CROWDED)
def test_crowded_rows_are_not_near_duplicates(name):
    rng = np.random.default_rng(6)
    rows, among = (CROWDED[name](rng, n) for n in (2000, 1000))
    near = np.asarray(find_shared_rows(rows, among)["kind"] == "near")
    assert near.sum() <= (5 if name == "zero-inflated" else 0)  # the docstring names the exception


# --- shared rows


def test_equal_rows_for_any_order_of_columns_sign_of_zero_and_gaps():
    rows, among = mixed(60, 1), mixed(50, 2)
    rows.loc["1-7", ["a", "b"]] = 0.0, np.nan
    among.iloc[[3, 11, 20]] = rows.loc[["1-7", "1-30", "1-30"]].to_numpy()
    among.loc["2-3", "a"] = -0.0
    found = find_shared_rows(rows, among[["e", "d", "c", "b", "a"]])
    assert found["id"].tolist() == ["1-7", "1-30"]
    assert found["other_id"].tolist() == ["2-3", "2-11"]  # the first of two equal ones
    assert found["kind"].tolist() == ["exact", "exact"]
    assert found["distance"].tolist() == [0.0, 0.0]


def test_near_rows_need_equal_text_and_equal_gaps():
    rows, among = mixed(400, 3), mixed(400, 4)
    rows.loc[["3-5", "3-6", "3-7"], "b"] = 0.5
    rows.loc["3-8", "b"] = np.nan
    rows["d"] = rows["d"].fillna("x")
    copies = ["4-0", "4-1", "4-2", "4-3"]
    among.loc[copies] = rows.loc[["3-5", "3-6", "3-7", "3-8"]].to_numpy()
    among = among.infer_objects()
    among.loc[copies, "a"] += 1e-6
    among.loc["4-1", "d"] = "another"
    among.loc["4-2", "b"] = np.nan
    found = find_shared_rows(rows, among)
    assert found[["id", "other_id", "kind"]].to_numpy().tolist() == [
        ["3-5", "4-0", "near"],
        ["3-8", "4-3", "near"],
    ]
    assert all(1e-8 < d < 1e-5 for d in found["distance"])
    assert "is usual" in found.attrs["note"]
    assert len(find_shared_rows(rows, among, near=False)) == 0


@pytest.mark.parametrize(
    "loader", [load_breast_cancer, load_wine, pytest.param(load_digits, marks=pytest.mark.slow)]
)
def test_near_rows_of_real_tables(loader):
    X, _, _, _, other, _ = split(loader)
    copies = RNG.permutation(len(X))[:9]
    other = other.copy()
    other[:9] = X[copies] + 1e-6 * X.std(axis=0) * RNG.normal(size=(9, X.shape[1]))
    found = find_shared_rows(X, other)
    assert found["id"].tolist() == sorted(copies)
    assert found.set_index("id").loc[copies, "other_id"].tolist() == list(range(9))
    assert set(found["kind"]) == {"near"}
    assert len(find_shared_rows(X, other[9:])) == 0


def test_more_near_rows_than_are_looked_at(monkeypatch):
    monkeypatch.setattr("bilevel.reweighting._audit.duplicates.LIMIT", 50)
    X = RNG.normal(size=(300, 10))
    found = find_shared_rows(X, X + 1e-7)
    assert len(found) == 50
    assert found["id"].tolist() == found["other_id"].tolist()
    assert "300 rows were suspected, and a random 50" in found.attrs["note"]


def test_whole_numbers_beyond_2_to_the_53_are_not_rounded():
    table = pd.DataFrame({"a": [2**53, 2**53 + 1, 5], "b": [1.0, 1.0, 1.0]})
    assert find_shared_rows(table, table.iloc[[1]], near=False)["id"].tolist() == [1]


def test_kinds_of_columns_that_hold_the_same_values():
    one = pd.DataFrame(
        {"n": [1, 2, 3], "t": pd.Categorical(["u", "v", "w"]), "b": [True, False, True]}
    )
    two = pd.DataFrame({"n": ["2", "x"], "t": ["v", "v"], "b": [0.0, np.nan]}, index=["p", "q"])
    assert find_shared_rows(one, two).iloc[:, :3].to_numpy().tolist() == [[1, "p", "exact"]]


def test_matrices_images_and_empty_tables():
    images = RNG.normal(size=(30, 4, 4))
    assert find_shared_rows(images, images[[4]].reshape(1, 16))["id"].tolist() == [4]
    assert len(find_shared_rows(images, images[:0])) == 0
    assert len(find_shared_rows(images[:0], images)) == 0
    with pytest.raises(InputError, match="must be a table or a matrix"):
        find_shared_rows(np.ones(3), images)
    with pytest.raises(InputError, match="do not share the columns 16"):
        find_shared_rows(images, np.ones((2, 17)))
    with pytest.raises(InputError, match="repeated column names: 'a'"):
        find_duplicates(pd.DataFrame([[1, 2]], columns=["a", "a"]))


# --- one table


def test_duplicates_and_conflicts():
    table = mixed(40, 5)
    table.iloc[[30, 31, 35]] = table.iloc[[2, 9, 2]].to_numpy()
    labels = np.array(["no"] * 40, dtype=object)
    labels[35] = "yes"
    assert find_duplicates(table).to_numpy().tolist() == [
        [0, "5-2"],
        [0, "5-30"],
        [0, "5-35"],
        [1, "5-9"],
        [1, "5-31"],
    ]
    conflicts = find_conflicting_labels(table, labels)
    assert conflicts["ids"].tolist() == [("5-2", "5-30", "5-35")]
    assert conflicts["labels"].tolist() == [("no", "no", "yes")]
    labels[35] = None
    assert len(find_conflicting_labels(table, labels)) == 0


def test_conflicting_targets_by_their_spread():
    X = RNG.normal(size=(30, 3))
    X[[10, 11, 12]] = X[[0, 1, 1]]
    y = RNG.normal(size=30)
    y[[0, 10]] = 1.25, 1.5
    y[[1, 11, 12]] = 0.0, -1.0, 3.0
    conflicts = find_conflicting_labels(X, y)
    assert conflicts["ids"].tolist() == [(1, 11, 12), (0, 10)]
    assert conflicts["spread"].tolist() == [4.0, 0.25]


# --- the audit


def test_planted_copies_are_found_with_their_ids():
    X, y, X_trusted, y_trusted, X_holdout, y_holdout = cancer()
    X_trusted.iloc[:2] = X.loc[["a3", "a8"]].to_numpy()
    y_trusted[:2] = y[3], 1 - y[8]
    X_holdout.iloc[5] = X.loc["a20"].to_numpy() * (1 + 1e-7)
    X_holdout.iloc[6] = X_trusted.loc["b9"].to_numpy()
    X.loc[["a50", "a51"]] = X.loc[["a49", "a49"]].to_numpy()
    y[[49, 50, 51]] = 0, 0, 1
    X_trusted.loc["b40"] = X_trusted.loc["b41"].to_numpy()
    y_trusted[[40, 41]] = 0, 1
    X_holdout = X_holdout.rename(index={"c7": "a100"})
    result = audit(X, y, X_trusted, y_trusted, X_holdout, y_holdout)
    assert found(result, "problem") == {
        "training rows among the trusted rows": ("a3", "a8"),
        "trusted rows among the hold-out rows": ("b9",),
        "equal trusted rows with different labels": ("b40", "b41"),
    }
    warnings = found(result, "warning")
    assert {"a49", "a50"} <= set(
        warnings.pop(CONTRADICTED)
    )  # by each other and by others like them
    assert warnings == {
        "training rows among the hold-out rows": ("a20",),
        "ids of training and hold-out rows": ("a100",),
        "repeated training rows": ("a50", "a51"),
        "equal training rows with different labels": ("a49", "a50", "a51"),
        "nearly equal rows with different labels": ("a20",),
        "repeated trusted rows": ("b41",),
    }
    assert not result.passed
    details = {f.title: f.detail for f in result.findings}
    assert details["training rows among the trusted rows"].startswith(
        "2 training rows equal to a trusted row (a row must not judge itself), 1 with another label: "
        "'a3', 'a8' (there: 'b0', 'b1'). Remove them"
    )
    assert "are labelled 0, 0, 1" in details["equal training rows with different labels"]


def test_constant_columns_and_columns_that_give_the_label_away():
    X, y, X_trusted, y_trusted, _, _ = cancer()
    flipped = np.where(RNG.permutation(len(y)) < 0.3 * len(y), 1 - y, y)
    for table, labels, truth in [(X, flipped, y), (X_trusted, y_trusted, y_trusted)]:
        table["nothing"] = 3
        table["empty"] = None
        table["copy"] = labels * 2.5 + RNG.normal(size=len(labels)) * 0.1  # of the wrong labels too
        table["stage"] = np.where(truth == 1, "early", "late")  # of the right ones
    result = audit(X, flipped, X_trusted, y_trusted)
    assert found(result, "problem") == {
        "columns that give the label away, training rows": ("copy",),
        "columns that give the label away, trusted rows": ("copy", "stage"),
    }
    warnings = found(result, "warning")
    wrong = np.isin(X.index, warnings.pop(CONTRADICTED))  # in spite of a copy of the wrong labels
    assert (flipped != y)[wrong].mean() > 0.9
    assert wrong[flipped != y].mean() > 0.8
    assert warnings == {"constant columns": ("nothing", "empty")}
    # most labels are the same: a constant is as good, and nothing is a leak
    rare = np.where(np.arange(len(y)) < 0.05 * len(y), 1, 0)
    result = audit(X.assign(copy=rare), rare, X_trusted.assign(copy=0.0), y_trusted)
    assert "columns that give the label away, training rows" not in found(result, "problem")


def test_a_regression_target_hidden_in_a_column_and_shifted_targets():
    X, X_trusted = (pd.DataFrame(RNG.normal(size=(n, 4)), columns=list("abcd")) for n in (400, 200))
    y, y_trusted = (t["a"] + RNG.normal(size=len(t)) for t in (X, X_trusted))
    assert found(audit(X, y, X_trusted, y_trusted), "ok").keys() >= {"targets"}
    for table, target in ((X, y), (X_trusted, y_trusted)):
        table["d"] = np.where(np.arange(len(target)) > 0, np.exp(-target), np.nan)  # one gap
    result = audit(X, y, X_trusted, y_trusted + 1)
    assert found(result, "problem") == {
        f"columns that give the label away, {name} rows": ("d",) for name in ("training", "trusted")
    }
    assert set(found(result, "warning")) == {"targets"}


def test_classes_that_one_side_lacks_are_rare_or_are_spelled_in_two_ways():
    X, y, X_trusted, y_trusted, X_holdout, y_holdout = split(load_digits)
    y, y_trusted, y_holdout = ([f"class {k}" for k in v] for v in (y, y_trusted, y_holdout))
    y = np.array(["Class  9" if k == "class 9" else k for k in y], dtype=object)
    y_trusted = np.array(["class 7" if k == "class 8" else k for k in y_trusted], dtype=object)
    fives = np.flatnonzero(y_trusted == "class 5")
    y_trusted[fives[3:]] = "class 4"
    y[17] = None
    result = audit(X, y, X_trusted, y_trusted, X_holdout, y_holdout)
    findings = {(f.severity, f.ids) for f in result.findings}
    assert findings >= {
        ("problem", ("Class  9", "class 8")),  # not trusted
        ("problem", ("class 9",)),  # not in training
        ("warning", ("Class  9",)),  # not in the hold-out
        ("warning", ("class 5",)),  # three trusted rows
        ("warning", ("Class  9", "class 9")),  # the spelling
        ("problem", (17,)),  # no label
    }
    shares = next(f for f in result.findings if "chi-squared" in f.detail)
    assert shares.severity == "warning"
    assert shares.ids in {("class 4",), ("class 5",), ("class 7",)}


def test_shifted_rows_are_told_apart():
    X, y, X_trusted, y_trusted, X_holdout, y_holdout = split(load_breast_cancer)
    shifted = X_trusted + 0.8 * X_trusted.std(axis=0)
    titles = [f"distribution of {name} and trusted rows" for name in ("training", "hold-out")]
    result = audit(X, y, shifted, y_trusted, X_holdout, y_holdout)
    assert [t for t in titles if t in found(result, "warning")] == titles
    areas = [float(f.detail.split("AUC of ")[1][:5]) for f in result.findings if f.title in titles]
    assert min(areas) > 0.75
    gaps = X_trusted.copy()
    gaps[::2, 3] = np.nan
    assert titles[0] in found(audit(X, y, gaps, y_trusted), "warning")


def test_tables_that_differ_in_their_columns():
    X, y, X_trusted, y_trusted, _, _ = cancer()
    X_trusted = X_trusted.rename(columns={"column 3": "Column 3"})
    X_trusted["column 0"] = X_trusted["column 0"].astype(str).str.replace(".", ",")
    result = audit(X, y, X_trusted, y_trusted)
    columns = [f for f in result.findings if f.title == "columns"]
    assert [(f.severity, f.ids) for f in columns] == [
        ("problem", ("column 3", "Column 3")),
        ("warning", ("column 0",)),
    ]
    with pytest.raises(InputError, match="no column in common"):
        audit(X, y, X_trusted[["Column 3"]], y_trusted)


def test_what_cannot_be_audited():
    X, y, X_trusted, y_trusted, _, _ = cancer()
    with pytest.raises(InputError, match="zero trusted rows"):
        audit(X, y, X_trusted[:0], y_trusted[:0])
    with pytest.raises(
        InputError, match=r"`training labels` must be a vector .* got shape \(283,\)"
    ):
        audit(X, y[1:], X_trusted, y_trusted)
    with pytest.raises(InputError, match="another order"):
        audit(X, pd.Series(y, X.index)[::-1], X_trusted, y_trusted)


def test_mixed_tables_with_noisy_labels_have_the_faults_they_were_made_with():
    data = digits()
    tables = [
        mixed_table(*part, first_id=10_000 * k).set_index("row")
        for k, part in enumerate([(data.X, data.y), data[2:4], data.holdout])
    ]
    y, y_trusted, y_holdout = (t.pop("digit") for t in tables)
    result = audit(tables[0], y, tables[1], y_trusted, tables[2], y_holdout)
    assert found(result, "problem") == {}
    assert {"empty", "p39"} <= set(found(result, "warning").pop("constant columns"))


HOSTILE = [
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "\x1b[31mred\x1b[0m",
    "[red]{0} {name} %s[/red]",
    "two\nlines\r\x00",
    "\u202egnp.exe",
    "x" * 100_000,
    "",
]


def test_hostile_texts_do_no_harm():
    n = 20 * len(HOSTILE)
    texts = np.array(HOSTILE * 20, dtype=object)
    rng = np.random.default_rng(7)
    tables, labels = [], []
    for k in range(2):
        t = pd.DataFrame(
            {h: rng.normal(size=n) for h in HOSTILE} | {"text": rng.permutation(texts)}
        )
        t[HOSTILE[3]] = texts  # the leak has a hostile name
        t.index = pd.Index([f"{h}{k}{i}" for i, h in enumerate(texts)], dtype=object)
        tables.append(t)
        labels.append(texts.copy())
    tables[1].iloc[:9] = tables[0].iloc[:9].to_numpy()
    labels[1][labels[1] == HOSTILE[0]] = HOSTILE[1]
    result = audit(tables[0], labels[0], tables[1], labels[1])
    problems = found(result, "problem")
    assert problems["training rows among the trusted rows"] == tuple(tables[0].index[:9])
    assert problems["columns that give the label away, training rows"] == (HOSTILE[3],)
    assert problems["classes"] == (HOSTILE[0],)
    text = str(result)
    assert text.isascii() or not set(text) & set("\x1b\r\x00\u202e")
    assert not set(text) & set("\x1b\r\x00\u202e")
    assert len(text.splitlines()) == 1 + len(result.findings)
    assert len(text) < 10_000
    assert json.loads(json.dumps(result.to_dict()))["findings"][1]["num_ids"] == 9


def test_to_dict_is_json_with_few_ids():
    table = pd.DataFrame({"a": np.ones(300), "b": np.arange(300.0)})
    table.index = pd.date_range("2020-01-01", periods=300)
    y = np.arange(300) % 2
    made = audit(table, y, table, y).to_dict(at_most=3)
    finding = next(f for f in made["findings"] if f["title"].startswith("training rows among"))
    assert (finding["severity"], finding["num_ids"]) == ("problem", 300)
    assert json.loads(json.dumps(finding["ids"])) == [f"2020-01-0{k} 00:00:00" for k in (1, 2, 3)]
    assert made["passed"] is False
