"""Each check of `audit` on a table with the fault that it is for, and on clean tables."""

import itertools
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bilevel.reweighting._audit.audit import IN_ORDER, audit
from bilevel.reweighting._audit.drift import row_drift
from bilevel.reweighting._audit.finding import CHECKS, Audit
from bilevel.reweighting._audit.fixes import proposals, safe_changes
from bilevel.reweighting._audit.near import near_texts
from bilevel.reweighting._audit.view import make_view
from bilevel.reweighting._inputs.checks import InputError


def found(result: Audit, *severities: str) -> dict[str, tuple[Any, ...]]:
    """By check, all that is at fault."""
    by_check: dict[str, tuple[Any, ...]] = {}
    for f in result.findings:
        if f.severity in (severities or ("problem", "warning")):
            by_check[f.check] = (*by_check.get(f.check, ()), *f.ids)
    return by_check


def plain(n: int, seed: int) -> pd.DataFrame:
    """Rows without any fault: numbers, whole numbers, a category; the label `y`."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "height": rng.normal(170, 10, n),
            "age": rng.integers(18, 90, n),
            "price": np.exp(rng.normal(3, 1, n)).round(2),
            "rooms": rng.poisson(3, n),
            "town": rng.choice([f"town {k}" for k in range(40)], n),
            "colour": rng.choice(["red", "green", "blue"], n),
        }
    )
    score = (table["height"] - 170) / 10 + (table["colour"] == "red") + rng.normal(size=n)
    table["y"] = np.where(score > 0.3, "yes", "no")
    return table


def split(table: pd.DataFrame, sizes: tuple[int, int]) -> list[Any]:
    """The arguments of `audit`: training rows, trusted rows, hold-out, and their labels."""
    cuts = np.cumsum(sizes)
    parts = [table.iloc[: cuts[0]], table.iloc[cuts[0] : cuts[1]], table.iloc[cuts[1] :]]
    return [x for p in parts for x in (p.drop(columns="y").reset_index(drop=True), p["y"])]


def patients(seed: int, *, leak: bool) -> list[Any]:
    """200 patients with three rows each, spread over the tables, or each in one of them."""
    rng = np.random.default_rng(seed)
    people = pd.DataFrame(
        {
            "patient": rng.permutation(np.arange(1000, 3000))[:200],
            "age": rng.integers(18, 90, 200),
            "sex": rng.choice(["f", "m"], 200),
            "lab": rng.normal(size=200),
            "lab2": rng.normal(size=200),
        }
    )
    table = people.loc[np.repeat(np.arange(200), 3)].reset_index(drop=True)
    table[["lab", "lab2"]] += 0.3 * rng.normal(size=(600, 2))
    table["pulse"] = rng.normal(70, 8, 600).round()
    table["ward"] = rng.choice(list("abcdefgh"), 600)
    table["y"] = np.where(table["lab"] + rng.normal(size=600) > 0, "ill", "well")
    place = rng.permutation(600) if leak else np.argsort(np.repeat(rng.permutation(200), 3))
    if not leak:  # whole patients, in random order within each table
        cuts = [0, 360, 480, 600]
        parts = [rng.permutation(place[a:b]) for a, b in itertools.pairwise(cuts)]
        place = np.concatenate(parts)
    return split(table.iloc[place], (360, 120))


def test_columns_of_every_kind_with_gaps_are_taken():
    n = 120
    rng = np.random.default_rng(0)
    gap = rng.random(n) < 0.2  # of the numbers; each other column has its own
    table = pd.DataFrame(
        {
            "number": np.where(gap, np.nan, rng.normal(size=n)),
            "category": pd.Series(rng.choice(["u", "v"], n))
            .astype("category")
            .mask(rng.random(n) < 0.2),
            "long": pd.Series(sentences(n, 0)).astype("category").mask(rng.random(n) < 0.2),
            "text": pd.Series(rng.choice(["p", "q"], n), dtype="string").mask(rng.random(n) < 0.2),
            "whole": pd.Series(rng.integers(0, 50, n), dtype="Int64").mask(rng.random(n) < 0.2),
            "truth": pd.Series(rng.random(n) < 0.5, dtype="boolean").mask(rng.random(n) < 0.2),
            "day": pd.Series(pd.date_range("2024-01-01", periods=n, tz="UTC")).mask(
                rng.random(n) < 0.2
            ),
            "mixed": pd.Series([3 if g else "three" for g in gap]).mask(rng.random(n) < 0.1),
            "empty": None,
            "y": rng.choice(["yes", "no"], n),
        }
    )
    result = audit(*split(table, (60, 30)))
    assert set(found(result)) == {"columns/constant"}, str(result)


def test_every_check_has_a_name_and_a_sentence():
    assert set(IN_ORDER) | {"labels/wrong", "reading/file"} == set(CHECKS)
    result = audit(*split(plain(300, 0), (160, 70)))
    assert {f.check for f in result.findings} <= {*IN_ORDER, "labels/wrong"}


# --- entities and times


def leaks_of_patients(seed: int) -> tuple[dict, dict, dict, dict]:
    """What is found with the leak and without it: by `entity`, and by a proposal."""
    named = [found(audit(*patients(seed, leak=x), entity="patient")) for x in (True, False)]
    hidden = []
    for leak in (True, False):
        tables = patients(seed, leak=leak)
        for k in (0, 2, 4):
            tables[k] = tables[k].rename(columns={"patient": "x7"})  # a name that says nothing
        hidden.append(found(audit(*tables)))
    return named[0], named[1], hidden[0], hidden[1]


def check_patients(seed: int) -> None:
    given, clean, hidden, hidden_clean = leaks_of_patients(seed)
    assert len(given["leak/entity"]) > 100
    assert hidden["proposed/entity"] == ("x7",)
    for nothing in (clean, hidden_clean):
        assert not {c for c in nothing if c.partition("/")[0] in ("leak", "proposed", "order")}


def test_patients_in_two_tables_are_found_and_proposed_without_a_false_alarm():
    check_patients(0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 30))
def test_patients_in_two_tables_are_found_for_every_seed(seed):
    check_patients(seed)


def test_an_entity_severity_depends_on_the_table_and_gaps_name_nobody():
    tables = split(plain(300, 1), (160, 70))
    for k, first in ((0, 0), (2, 159), (4, 500)):
        names = np.arange(first, first + len(tables[k])).astype(float)
        names[-1] = np.nan
        tables[k]["who"] = names
    result = audit(*tables, entity="who")
    assert found(result, "problem") == {}
    assert "leak/entity" not in found(result)  # 159 is the gap of the training rows
    tables[4]["who"] = tables[0]["who"].to_numpy()[:70].astype(str)  # "0.0" names whom 0 names
    tables[4].loc[0, "who"] = "7"
    result = audit(*tables, entity="who")
    assert found(result, "problem")["leak/entity"] == (7.0,)
    with pytest.raises(InputError, match="have no column 'whom'"):
        audit(*tables, entity="whom")


def test_rows_later_than_the_holdout_by_date_and_by_number():
    tables = split(plain(300, 2), (160, 70))
    days = pd.date_range("2024-01-01", periods=300).astype(str).to_numpy()
    for k, part in zip((0, 2, 4), np.split(days, [160, 230]), strict=True):
        tables[k]["made_on"] = part
    assert not {c for c in found(audit(*tables, time="made_on")) if "time" in c}
    assert "proposed/time" not in found(audit(*tables))
    tables[0].loc[[3, 5], "made_on"] = "2024-12-01"
    tables[2].loc[0, "made_on"] = "2025-01-01"
    result = audit(*tables, time="made_on")
    assert found(result, "problem")["leak/time"] == (3, 5, 0)
    assert found(audit(*tables))["proposed/time"] == ("made_on",)
    for k in (0, 2, 4):
        tables[k]["made_on"] = pd.to_datetime(tables[k]["made_on"]).astype("M8[s]").astype(int)
    assert found(audit(*tables, time="made_on"), "problem")["leak/time"] == (3, 5, 0)
    assert found(audit(*tables))["proposed/time"] == ("made_on",)
    tables[0]["made_on"] = "some day"
    with pytest.raises(InputError, match="`time` must hold numbers or dates"):
        audit(*tables, time="made_on")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_clean_tables_have_no_leak_and_no_proposal(seed):
    result = audit(*split(plain(900, seed), (500, 200)))
    # Their labels are drawn, some against all that the columns say.
    assert set(found(result)) <= {"labels/wrong"}, str(result)


def test_a_clean_table_has_no_finding():
    result = audit(*split(plain(400, 5), (220, 90)))
    assert found(result) == {}, str(result)


# --- rows


def test_rows_of_coarse_columns_are_alike_by_chance_and_one_copy_among_them_is_found():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"answer": rng.integers(0, 4, 360), "sex": rng.choice(["f", "m"], 360)})
    table["y"] = np.where(rng.random(360) < 0.2, "yes", "no")
    table.loc[[3, 300], ["answer", "sex"]] = 9, "f"  # in a training row and in a hold-out row
    X, y, X_trusted, y_trusted, X_holdout, y_holdout = split(table, (200, 100))
    result = audit(X, y, X_trusted, y_trusted, X_holdout, y_holdout)
    assert found(result, "problem") == {"leak/rows": (3,)}
    assert {"leak/rows", "conflicts/rows"} <= found(result, "warning").keys()
    assert found(result, "warning")["conflicts/rows"] == ()
    view = make_view({"train": (X, y), "holdout": (X_holdout, y_holdout)}, "auto", None, None, 0)
    (dropped,) = safe_changes(view, "y")
    assert (dropped.kind, dropped.rows) == ("drop-row", (3,))
    assert proposals(view) == []


def test_a_hold_out_that_holds_every_training_row_is_refused_by_fix():
    X, y, *_ = split(plain(60, 0), (60, 0))
    view = make_view({"train": (X, y), "holdout": (X, y)}, "auto", None, None, 0)
    with pytest.raises(InputError, match="every training row is equal to a hold-out row"):
        safe_changes(view, "y")
    assert safe_changes(view, "y", skip=("drop-row",)) == []


def test_copies_with_one_cell_changed_are_found_in_every_kind_of_column():
    tables = split(plain(400, 3), (220, 90))
    train, holdout = tables[0], tables[4]
    holdout.iloc[[0, 1]] = train.iloc[[10, 20]].to_numpy()
    holdout.loc[0, "town"] = "nowhere"
    holdout.loc[1, "height"] = 40.0
    train.iloc[30] = train.iloc[31].to_numpy()
    train.loc[30, "colour"] = "green" if train.loc[31, "colour"] != "green" else "red"
    tables[1] = tables[1].to_numpy(dtype=object)
    tables[1][30], tables[1][31] = "yes", "no"
    result = audit(*tables)
    # No conflict of labels: the column that differs may be what tells the two rows apart.
    assert set(found(result)) - {"labels/wrong"} == {"leak/rows", "duplicates/near"}
    assert found(result)["leak/rows"] == (10, 20)
    assert found(result)["duplicates/near"] == (31,)


def test_among_rows_that_agree_by_chance_more_copies_than_chance_makes_are_found():
    rng = np.random.default_rng(0)
    weights = [0.7, 0.2, 0.07, 0.03]
    table = pd.DataFrame({c: rng.choice(list("pqrs"), 460, p=weights) for c in "abcdefgh"})
    table["y"] = rng.choice(["u", "v"], 460)
    tables = split(table, (220, 120))
    one_cell = lambda tables: [  # noqa: E731
        f
        for f in audit(*tables).findings
        if f.check == "leak/rows" and "but for one cell" in f.detail
    ]
    assert one_cell(tables) == []
    train, holdout = tables[0], tables[4]
    rare = np.argsort(-(train != "p").sum(axis=1).to_numpy())[:40]
    rows = train.iloc[rare].to_numpy().copy()
    rows[:, 3] = np.where(rows[:, 3] == "p", "s", "p")
    holdout.iloc[:40] = rows
    (finding,) = (f for f in one_cell(tables) if f.table == "train" and "hold-out" in f.title)
    assert len(set(finding.ids) & set(rare.tolist())) >= 36
    assert "chance explains about" in finding.detail


def test_rows_of_few_categories_agree_in_all_but_one_by_chance():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 4, (400, 6)).astype(str), columns=list("abcdef"))
    table["y"] = rng.choice(["u", "v"], 400)
    assert not {"leak/rows", "duplicates/near"} & set(found(audit(*split(table, (220, 90))), "x"))
    kinds = [f.detail for f in audit(*split(table, (220, 90))).findings if "one cell" in f.detail]
    assert kinds == []


SENTENCES = (
    "the {a} train to {b} was late by {n} minutes because of a {c} near the {d} station",
    "passengers to {b} complained of {n} broken seats, a {c} and the smell of {a} near {d}",
)


def sentences(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)

    def word() -> str:
        return "".join(rng.choice(list("abcdefghijklmnoprstuvwz"), 7))

    return np.array(
        [
            SENTENCES[i % 2].format(a=word(), b=word(), c=word(), d=word(), n=rng.integers(1000))
            for i in range(n)
        ],
        dtype=object,
    )


def test_texts_with_a_few_characters_changed_are_near():
    texts, others = sentences(60, 0), sentences(50, 1)
    others[7] = texts[3].upper().replace("TRAIN", "TRAINS")
    others[8] = texts[4] + "!!"
    i, k = near_texts(texts, others)
    assert list(zip(i.tolist(), k.tolist(), strict=True)) == [(3, 7), (4, 8)]
    assert [x.tolist() for x in near_texts(np.append(texts, texts[9] + "."), None)] == [[60], [9]]
    table = pd.DataFrame({"text": np.concatenate([texts, others]), "y": ["u", "v"] * 55})
    table.loc[67, "y"] = "u" if table.loc[3, "y"] == "v" else "v"
    train, trusted = table[:60], table[60:].reset_index(drop=True)
    result = audit(train[["text"]], train["y"], trusted[["text"]], trusted["y"])
    assert found(result)["leak/rows"] == (3, 4)
    assert found(result)["conflicts/near"] == (3,)


# --- labels and ids


@pytest.mark.parametrize(
    ("one", "other", "check"),
    [
        ("yes", "Yes", "labels/spelling"),
        ("yes", " yes", "labels/spelling"),
        ("yes", "y\u200bes", "labels/spelling"),
        ("caf\u00e9", "cafe\u0301", "labels/spelling"),
        ("A1", "\uff21\uff11", "labels/spelling"),
        ("yes", "yess", None),
        (True, 1, "labels/kinds"),
        ("true", "1", "labels/kinds"),
        (1, "1", "labels/kinds"),
        (1, 2, None),
    ],
)
def test_labels_that_are_one_class_in_two_spellings(one, other, check):
    rows = plain(60, 6).drop(columns="y")
    y = np.array(["no", one, other] * 20, dtype=object)
    if not isinstance(one, str):
        y[::3] = 0 if other != True else False  # noqa: E712
    result = audit(rows[:40], y[:40], rows[40:].reset_index(drop=True), y[40:])
    faults = {c for c in found(result) if c in ("labels/spelling", "labels/kinds")}
    assert faults == ({check} if check else set())


def test_ids_with_gaps_are_a_problem():
    tables = split(plain(300, 7), (160, 70))
    tables[0].index = pd.Index([f"r{i}" for i in range(158)] + [None, np.nan], dtype=object)
    assert found(audit(*tables), "problem") == {"ids/gaps": (158, 159)}
    assert "duplicates/ids" not in found(audit(*tables))


# --- columns


@pytest.mark.parametrize("where", [0, 1])
def test_a_category_in_two_spellings_is_found_within_a_table_and_between_two(where):
    tables = split(plain(300, 8), (160, 70))
    for k, table in enumerate(tables[::2]):
        table["paid"] = np.where(np.arange(len(table)) % 2, "yes", "no")
        table["note"] = sentences(len(table), k)
        if k == where:
            table.loc[table.index[::5], "paid"] = "Yes"
    assert found(audit(*tables))["columns/spelling"] == ("paid",)
    for table in tables[::2]:
        table["paid"] = table["paid"].str.lower()
    assert "columns/spelling" not in found(audit(*tables))


def test_columns_that_hold_nothing_to_learn_are_told_apart():
    table = plain(300, 8)
    rng = np.random.default_rng(0)
    table["Unnamed: 0"] = np.arange(300) + 7
    table["member"] = rng.permutation(300) + 10_000
    table["key"] = [f"{x:016x}" for x in rng.integers(2**62, size=300)]
    table["code"] = [f"AB-{k}" for k in rng.permutation(300)]
    table["note"] = sentences(300, 2)  # free text is no identifier
    table["weight"] = rng.normal(size=300)  # nor is a number that happens to be unique
    table["income"] = rng.permutation(10**6)[:300]
    table["comma"] = [f"{x:.2f}".replace(".", ",") for x in rng.normal(size=300)]
    table["list"] = [f"{a},{b}" for a, b in rng.integers(10, size=(300, 2))]
    result = found(audit(*split(table, (160, 70))))
    assert result["columns/index"] == ("Unnamed: 0",)
    assert result["columns/identifier"] == ("member", "key", "code")
    assert set(result["columns/decimal-comma"]) == {"comma", "list"}  # a list looks like one
    assert not {c for c in result if c.startswith(("leak", "proposed"))}


def test_a_leak_is_told_with_the_score_with_and_without_the_column():
    table = plain(600, 9)
    table["after"] = np.where(table["y"] == "yes", 1.0, 0.0)
    details = [
        f.detail for f in audit(*split(table, (400, 100))).findings if f.check == "leak/label"
    ]
    with_it, without = (float(x) for x in re.findall(r"(?:accuracy|and) ([01]\.\d{3})", details[0]))
    assert with_it == 1.0
    assert 0.6 < without < 0.85


def test_a_leak_is_found_for_many_classes_of_equal_size():
    """Where every split is as good as another, a tree takes off one class at a time."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(440, 3)), columns=list("abc"))
    table["y"] = [f"class {k}" for k in rng.permutation(440) % 11]
    table["later"] = table["y"].str[6:].astype(float)
    assert found(audit(*split(table, (300, 140))[:4]))["leak/label"] == ("later",) * 2


# --- drift and order


def test_drift_names_the_columns_at_fault():
    tables = split(plain(700, 10), (400, 150))
    tables[4]["price"] *= 3
    tables[4].loc[:60, "colour"] = "red"
    result = audit(*tables)
    drift = [f for f in result.findings if f.check == "drift/rows" and f.severity == "warning"]
    assert [(f.table, f.ids) for f in drift] == [
        ("holdout", ("price",)),  # of which there are few rows
        ("train", ("price", "colour")),
    ]
    spread = split(plain(700, 11), (400, 150))
    spread[2]["height"] = 170 + 3 * (spread[2]["height"] - 170)  # which no linear model sees
    result = audit(*spread)
    assert {f.ids for f in result.findings if f.severity == "warning"} == {("height",)}


@pytest.mark.parametrize(("shift", "told"), [(0.0, 0), (1.5, 6)])
def test_other_people_are_no_drift(shift, told):
    """Six rows of each, nearly equal, look like six times as many people as there are."""
    hits = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        people = rng.normal(size=(90, 3)) + shift * (np.arange(90) >= 60)[:, None]
        who = np.repeat(np.arange(90), 6)
        table = pd.DataFrame(people[who] + 0.1 * rng.normal(size=(540, 3)), columns=list("abc"))
        table["who"], y = who, rng.integers(0, 2, 540)
        given = {"train": (table[:360], y[:360]), "holdout": (table[360:], y[360:])}
        view = make_view(given, "classification", "who", None, 0)
        hits += any(f.severity == "warning" for f in row_drift(view))
    assert hits == told


def test_the_order_of_rows_is_told_by_labels_and_columns():
    table = plain(400, 12)
    by_label = table.sort_values("y", kind="stable")[:300]
    rest = table.drop(by_label.index)
    train, trusted = by_label.drop(columns="y").reset_index(drop=True), rest.drop(columns="y")
    result = audit(train, np.asarray(by_label["y"]), trusted, np.asarray(rest["y"]))
    order = next(f for f in result.findings if f.check == "order/rows")
    assert (order.severity, order.ids) == ("warning", ())
    assert "labels follow each other" in order.detail
    tables = split(table, (300, 100))[:4]
    tables[0]["pulse"] = np.cumsum(np.random.default_rng(0).normal(size=300))
    tables[2]["pulse"] = 0.0
    assert found(audit(*tables))["order/rows"] == ("pulse",)
