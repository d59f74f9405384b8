"""What people give beside the rows belongs to the right row, class and moment, of whatever kind it is.

Nothing here learns for long: what is wrong is refused before, and what is right is seen in what the
arguments were read as.
"""

import datetime
import decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression

from bilevel import ReweightedClassifier, compare_baselines, learn_weights
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._inputs.columns import tidy
from bilevel.reweighting._inputs.compact import compact_frame, compact_pipeline
from bilevel.reweighting._inputs.containers import as_internal, as_pairs, as_rows
from bilevel.reweighting._inputs.prepare import check_verified, prepare
from bilevel.reweighting._inputs.probabilities import check_probabilities, disorder
from bilevel.reweighting._inputs.row_facts import RowColumns, hash_names, row_facts

N, M = 40, 20
learn: Any = learn_weights
check: Any = check_probabilities
masked: Any = np.ma.masked_array
baselines: Any = compare_baselines


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=N + M), "b": rng.normal(size=N + M)})
    return X, pd.Series(np.where(X["a"] > 0, "yes", "no"), X.index)


# --- rows and columns in another order


@pytest.mark.parametrize("wrong", [None, "columns", "rows"])
def test_probabilities_in_another_order_are_told(wrong):
    """Of classes named by numbers, sorted as texts; a fifth of the labels are wrong."""
    rng = np.random.default_rng(0)
    classes = np.array(sorted(str(k) for k in range(12)))
    y, y_trusted = rng.integers(0, 12, 400), rng.integers(0, 12, 60)
    given = np.where(rng.random(400) < 0.2, rng.integers(0, 12, 400), y)
    train, trusted = (0.9 * np.eye(12)[labels] + 0.1 / 12 for labels in (y, y_trusted))
    if wrong == "columns":
        train = train[:, np.argsort([int(c) for c in classes])]
    elif wrong == "rows":
        train = train[rng.permutation(400)]
    found = check_probabilities(train, trusted, classes, 400, 60)
    assert found is not None
    said = disorder(found, given, y_trusted, classes)
    assert len(said) == (wrong is not None)
    assert all(text.startswith("`pred_probs`: ") for text in said)
    assert ("if the columns have another order" in "".join(said)) == (wrong == "columns")


def test_a_model_that_is_weak_is_not_taken_for_one_in_another_order():
    rng = np.random.default_rng(1)
    for seed in range(50):
        y, y_trusted = rng.integers(0, 10, 300), rng.integers(0, 10, 20 + 10 * seed)
        p = [rng.dirichlet(0.5 + 0.7 * np.eye(10)[k]) for k in np.concatenate([y, y_trusted])]
        found = check_probabilities(p[:300], p[300:], np.arange(10), 300, len(y_trusted))
        assert found is not None
        assert disorder(found, y, y_trusted, np.arange(10)) == []


def test_the_control_of_a_report_learns_from_all_that_the_fit_had(monkeypatch):
    """From shuffled labels, and otherwise in the same way: with the groups and the probabilities."""
    import bilevel.reweighting._estimator as door

    X, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2
    asked, rest = [], {"groups": np.arange(60) % 3, "sample_weight": np.ones(60)}
    rest |= {"pred_probs": np.full((60, 2), 0.5), "entities": np.arange(60)}

    def learn(*tables, **options):
        asked.append({k: options[k] for k in (*rest, "pred_probs_trusted", "times")})
        same = dict.fromkeys(("weights", "label_quality", "keep"), np.ones(40))
        none = (
            "noise",
            "group_weights",
            "effective_sample_size",
            "candidates",
            "winner",
            "history",
        )
        encoding = prepare(*tables, task="auto", scaler=None, holdout=None).encoding
        return SimpleNamespace(
            **same,
            **dict.fromkeys(none),
            encoding=encoding,
            trusted_weight=1.0,
            sample_weight=lambda m: np.ones(40 + m),
        )

    monkeypatch.setattr(door, "learn_weights", learn)
    monkeypatch.setattr(door, "gather_evidence", lambda *_, **given: given["control"](y[40:]))
    monkeypatch.setattr(door, "Report", lambda found: found)
    clf = door.ReweightedClassifier().fit(X, y, is_trusted=np.arange(60) >= 40, **rest)
    clf.report(control=True)
    first, again = asked
    assert first.keys() == again.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)


def test_labels_in_another_order_than_a_table_of_all_rows_are_refused(rows):
    X, y = rows
    with pytest.raises(InputError, match=r"`y` has the index of its rows in another order"):
        ReweightedClassifier().fit(X, y[::-1], is_trusted=np.arange(N + M) >= N)


@pytest.mark.parametrize(
    "name", ["groups", "pred_probs", "sample_weight", "entities", "times", "given_labels_trusted"]
)
def test_what_is_given_beside_the_rows_in_another_order_is_refused(rows, name):
    X, y = rows
    index = X.index[N:] if name.endswith("_trusted") else X.index[:N]
    values: Any = pd.Series(np.arange(len(index)) % 4, index)
    if name == "pred_probs":
        values = pd.DataFrame({"no": 0.5, "yes": 0.5}, index)
    both = {name: values[::-1]}
    if name in ("pred_probs", "entities", "times"):
        both[f"{name}_trusted"] = values[:M].set_axis(X.index[N:])
    with pytest.raises(InputError, match=rf"`{name}` has the index .* in another order"):
        learn(X[:N], y[:N], X[N:], y[N:], **both)


def test_probabilities_of_all_rows_in_another_order_are_refused(rows):
    X, y = rows
    given = pd.DataFrame({"no": 0.5, "yes": 0.5}, X.index)[::-1]
    with pytest.raises(InputError, match=r"`pred_probs` .* another order"):
        ReweightedClassifier().fit(X, y, is_trusted=np.arange(N + M) >= N, pred_probs=given)


def test_an_index_that_repeats_or_has_levels_may_be_in_another_order_too(rows):
    X, y = rows
    twice = pd.Index(np.arange(N) // 2)
    levels = pd.MultiIndex.from_arrays([np.arange(N) // 2, np.arange(N) % 2])
    trusted = X[N:].to_numpy(), y[N:].to_numpy()
    for index, advice in ((twice, "an entry of its own"), (levels, r"y\.loc\[X\.index\]")):
        table, labels = X[:N].set_axis(index), y[:N].set_axis(index)
        with pytest.raises(InputError, match=rf"`y` .* another order.*{advice}"):
            learn(table, labels[::-1], *trusted)
        prepared = prepare(table, y[:N], *trusted, task="auto", scaler=None, holdout=None)
        assert len(prepared.train) == N  # an index of another kind says nothing
    flat = X[N:].set_axis([f"row {k}" for k in range(M)])
    prepare(X[:N].set_axis(levels), y[:N], flat, trusted[1], task="auto", scaler=None, holdout=None)


def test_columns_of_new_rows_go_by_their_names(rows):
    X, y = rows
    tables = prepare(X[:N], y[:N], X[N:], y[N:], task="auto", scaler=None, holdout=None)
    new = X[["b", "a"]].assign(more=1)
    np.testing.assert_array_equal(tables.encoding.features(new, "X"), X.to_numpy())
    np.testing.assert_array_equal(tables.encoding.features(X.to_numpy(), "X"), X.to_numpy())
    with pytest.raises(
        InputError, match=r"the rows lack columns .*: 'b'; their columns are 'a', 'c'"
    ):
        tables.encoding.features(X.rename(columns={"b": "c"}), "X")


def test_labels_of_new_rows_in_another_order_are_refused(rows):
    X, y = rows
    with pytest.raises(InputError, match=r"`y_holdout` .* another order"):
        baselines(
            LogisticRegression(), X[:N], y[:N], X[N:], y[N:], np.ones(N), 1.0, X[:9], y[:9][::-1]
        )
    with pytest.raises(InputError, match=r"`y` .* another order"):
        as_rows(X, y[::-1])


# --- probabilities


@pytest.mark.parametrize("as_kind", [pl.DataFrame, pa.Table.from_pandas, pd.DataFrame])
def test_columns_of_probabilities_go_by_their_names_in_every_kind_of_table(as_kind):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet([1, 1, 1], N), rng.dirichlet([1, 1, 1], M)
    mixed = [as_kind(pd.DataFrame(x, columns=["a", "b", "c"])[["c", "a", "b"]]) for x in (p, q)]
    found = check(*mixed, np.array(["a", "b", "c"]), N, M)
    np.testing.assert_allclose(np.exp(found.train), p, atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "columns"),
    [
        ([0, 1, 2], pd.RangeIndex(2, -1, -1)),
        ([1, 5, 10], [10.0, 5.0, 1.0]),
        ([1.0, 5.0, 10.0], [10, 5, 1]),
    ],
)
def test_columns_that_are_numbers_name_classes_too(classes, columns):
    p = np.random.default_rng(0).dirichlet([1, 1, 1], N)
    turned = pd.DataFrame(p[:, ::-1].copy()).set_axis(pd.Index(columns), axis=1)
    found = check(turned, turned, np.array(classes), N, N)
    np.testing.assert_allclose(np.exp(found.train), p, atol=1e-5)
    unnamed = check(pd.DataFrame(p), pd.DataFrame(p), np.array([5, 6, 7]), N, N)
    np.testing.assert_allclose(np.exp(unnamed.train), p, atol=1e-5)


def test_probabilities_may_be_sparse_and_gaps_in_them_are_named():
    p = np.eye(2)[np.arange(N) % 2]
    found = check(scipy.sparse.csr_matrix(p), p, np.array([0, 1]), N, N)
    np.testing.assert_allclose(np.exp(found.train), p, atol=1e-5)
    gaps = pd.DataFrame(p, columns=["0", "1"]).astype("Float64").mask(p > 2)
    gaps.iloc[3, 1] = pd.NA
    with pytest.raises(InputError, match="finite probabilities >= 0; the rows 3 do not"):
        check(gaps, gaps, np.array([0, 1]), N, N)


# --- labels


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([1, 0] * 30, "i"),
        ([True, False] * 30, "b"),
        ([decimal.Decimal(1), decimal.Decimal(0)] * 30, "f"),
        ([0.25 * i for i in range(60)], "f"),
    ],
)
def test_labels_that_are_objects_are_numbers_or_truth_values_where_all_are(rows, labels, kind):
    X, _ = rows
    for y in (np.array(labels, object), pd.Series(labels, dtype=object)):
        tables = prepare(X[:N], y[:N], X[N:], y[N:], task="auto", scaler=None, holdout=None)
        assert np.asarray(tables.train.y).dtype.kind == kind
        assert (tables.classes is None) == (kind == "f" and labels[0] != 1)


def test_a_list_of_texts_may_have_gaps_and_no_other_things(rows):
    X, y = rows
    gap = [*y[: N - 1], float("nan")]
    with pytest.raises(InputError, match=r"`y` has 1 missing labels, in the rows with ids 39"):
        learn(X[:N], gap, X[N:], y[N:])
    with pytest.raises(InputError, match=r"labels mix types \(int, str\)"):
        learn(X[:N], [*y[: N - 1], 1], X[N:], y[N:])
    with pytest.raises(InputError, match=r"`groups` has 1 missing entries"):
        learn(X[:N], y[:N], X[N:], y[N:], groups=gap)
    people = [f"p{k}" for k in range(M)]
    with pytest.raises(InputError, match=r"`entities` has 1 missing entries, in the rows 39"):
        learn(X[:N], y[:N], X[N:], y[N:], entities=gap, entities_trusted=people)
    tables = prepare(X[:N], y[:N], X[N:], y[N:], task="auto", scaler=None, holdout=None)
    known = check_verified([*y[N : N + M - 1], float("nan")], tables)
    assert known is not None
    assert known[-1] == -1
    assert (known[:-1] >= 0).all()


def test_texts_of_any_numpy_kind_and_masked_ones_are_labels():
    texts = np.array(["x", "y"] * 3)
    for y in (texts.astype(np.dtypes.StringDType()), masked(texts)):
        _, found = as_rows(np.zeros((6, 1)), y)
        assert np.asarray(found).dtype.kind in "OU"
        assert list(found) == list(texts)
    gap: Any = as_internal(masked(texts, mask=[0, 0, 1, 0, 0, 0]), "y")
    assert gap.tolist() == ["x", "y", None, "y", "x", "y"]
    numbers: Any = as_internal(masked([1, 2], mask=[0, 0]), "y")
    assert numbers.dtype.kind == "i"


def test_labels_are_read_alike_in_both_files_of_the_python_door(rows, tmp_path):
    X, _ = rows
    words = np.array(["None", "01", "1"])[np.arange(N + M) % 3]
    X.assign(y=words)[:N].to_csv(tmp_path / "train.csv", index=False)
    X.assign(y=np.where(words == "None", "1", words))[N:].to_csv(tmp_path / "ok.csv", index=False)
    pairs = as_pairs(
        {"": (tmp_path / "train.csv", "y"), "_trusted": (str(tmp_path / "ok.csv"), "y")}
    )
    assert sorted(set(pairs[""][1])) == ["01", "1", "None"]
    assert sorted(set(pairs["_trusted"][1])) == ["01", "1"]
    _, alone = as_rows(tmp_path / "train.csv", "y")
    assert list(alone) == list(words[:N])


def test_the_estimator_takes_the_name_of_the_label_for_both_tables(rows, monkeypatch):
    X, y = rows
    table, seen = X.assign(y=y), []

    def see(*given, **_):
        seen.extend(given)
        raise RuntimeError("far enough")

    monkeypatch.setattr("bilevel.reweighting._estimator.learn_weights", see)
    with pytest.raises(RuntimeError, match="far enough"):
        ReweightedClassifier().fit(table[:N], "y", X_trusted=table[N:], y_trusted="y")
    pd.testing.assert_frame_equal(seen[2], X[N:])
    assert list(seen[3]) == list(y[N:])


def test_the_default_estimator_takes_sparse_rows(rows):
    X, y = rows
    dense = X.to_numpy()
    with pytest.warns(UserWarning, match="no trusted rows"):
        fitted = [ReweightedClassifier().fit(x, y) for x in (dense, scipy.sparse.csc_matrix(dense))]
    p, q = (clf.predict_proba(scipy.sparse.csr_array(dense)) for clf in fitted)
    np.testing.assert_allclose(p, q)
    tables = prepare(
        *(scipy.sparse.csr_matrix(dense[:N]), y[:N], scipy.sparse.csr_matrix(dense[N:]), y[N:]),
        task="auto",
        scaler=None,
        holdout=None,
    )
    np.testing.assert_array_equal(tables.train.X, dense[:N])


def test_a_mask_of_objects_is_a_mask(rows):
    X, y = rows
    mask = (np.arange(N + M) >= N).astype(object)
    mask[3] = "yes"
    with pytest.raises(ValueError, match="must be a boolean mask"):
        ReweightedClassifier().fit(X, y, is_trusted=mask)
    mask[3] = True
    with pytest.raises(InputError, match="must have one entry per row of X"):  # the mask is right
        ReweightedClassifier().fit(X, y, is_trusted=mask, groups=[1, 2])


# --- times and entities


def _times(a: Any, b: Any) -> list[Any]:
    facts = row_facts(
        RowColumns(times=a, times_trusted=b), np.zeros((len(a), 1)), np.zeros((len(b), 1))
    )
    return [x.time for x in facts]


DAYS: Any = pd.Series(pd.date_range("2024-01-05", periods=40))


@pytest.mark.parametrize(
    "written",
    [
        lambda d: d,
        lambda d: d.astype("datetime64[s]"),
        lambda d: d.dt.tz_localize("UTC"),
        lambda d: d.dt.strftime("%Y-%m-%d"),
        lambda d: d.dt.strftime("%d/%m/%Y"),
        lambda d: d.dt.strftime("%d.%m.%Y"),
        lambda d: d.dt.strftime("%m/%d/%Y"),
        lambda d: d.dt.date,
        lambda d: d.dt.to_period("D"),
        lambda d: pl.Series(d.tolist()),
        lambda d: pa.array(d),
    ],
)
def test_a_moment_is_the_same_in_both_tables_however_it_is_written(written):
    for pair in ((written(DAYS), DAYS), (DAYS, written(DAYS)), (written(DAYS), written(DAYS))):
        one, other = _times(*pair)
        np.testing.assert_array_equal(one, other)
        assert (np.diff(one) == 86400 * 10**9).all()


def test_days_before_months_are_seen_in_whichever_table_shows_them():
    early, late = DAYS[:5].dt.strftime("%d/%m/%Y"), DAYS[20:].dt.strftime("%d/%m/%Y")
    one, other = _times(early, late)  # 05/01/2024 alone might be in May
    assert one.max() < other.min()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.arange(40), DAYS),
        (np.arange(40), DAYS.astype(str)),
        ([True] * 40, [False] * 40),
        ([f"{i}. week" for i in range(40)], DAYS),
        ([1, "2024-01-01"] * 20, DAYS),
    ],
)
def test_times_of_two_kinds_are_refused(a, b):
    with pytest.raises(InputError, match="`times` must hold numbers or dates"):
        _times(a, b)


def test_times_that_are_decimals_or_durations_are_numbers():
    one, other = _times([decimal.Decimal(i) / 2 for i in range(9)], np.arange(9) / 2)
    np.testing.assert_array_equal(one, other)
    one, other = _times(pd.to_timedelta(range(9), "h"), pd.to_timedelta(range(9), "h"))
    assert (np.diff(one) == 3600 * 10**9).all()


def test_an_entity_has_one_name_of_whatever_type_it_is():
    day: Any = pd.Series(pd.to_datetime(["2024-03-30"]))
    for names in (
        [7, 7.0, "7", decimal.Decimal("7.0"), np.float32(7)],
        ["2024-03-30", datetime.date(2024, 3, 30), day[0]],
    ):
        assert len({int(hash_names(np.asarray([x]))[0]) for x in names}) == 1
    units = {int(hash_names(np.asarray(day.dt.as_unit(unit)))[0]) for unit in ("s", "us", "ns")}
    assert units == {int(hash_names(np.array(["2024-03-30"]))[0])}
    different = hash_names(np.array([2**53, 2**53 + 1, np.inf, "infinite"], object))
    assert len(set(different.tolist())) == 4


# --- categories


def test_categories_of_truth_values_fit_zeros_and_ones(rows):
    X, y = rows
    flag = X["b"] > 0
    given = X.assign(flag=pd.Categorical(flag), text="t")
    tables = prepare(given[:N], y[:N], given[N:], y[N:], task="auto", scaler=None, holdout=None)
    as_numbers = given.assign(flag=flag.astype(int))
    one, other = (tables.encoding.features(x, "X") for x in (given, as_numbers))
    np.testing.assert_array_equal(one, other)
    assert np.ptp(one, axis=0).all() or one.shape[1] > 3  # the flag is a column that differs


def test_categories_for_trees_are_integers_with_gaps(rows):
    X, _ = rows
    given = X.assign(town=np.array(["b", None, "a", "b"] * 15, object))
    tidied = tidy(given)
    pipeline = compact_pipeline(tidied).fit(tidied)
    frame = compact_frame(pipeline, tidied, categories=True)
    assert frame["town"].cat.categories.dtype.kind == "i"  # XGBoost refuses floating ones
    np.testing.assert_array_equal(frame["town"].cat.codes[:4], [1, -1, 0, 1])
    new = compact_frame(pipeline, tidied.assign(town="c"), categories=True)
    assert np.asarray(new["town"].isna()).all()
    assert list(new["town"].cat.categories) == [0, 1]
