"""Tables that were once read as something else without a word: each is refused, or read as it is."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bilevel._reading import map_file
from bilevel.cli._private import without_names
from bilevel.cli._probabilities import read_probabilities
from bilevel.cli._scorer_files import Scorer
from bilevel.cli._weigh_config import WeighConfig
from bilevel.cli._weigh_tables import check_tables
from bilevel.reweighting import audit
from bilevel.reweighting._inputs.checks import InputError, shared_ids
from bilevel.reweighting._inputs.columns import check_values, describe, tidy, vectorise
from bilevel.reweighting._inputs.containers import as_internal
from bilevel.reweighting._inputs.csv import TEXT, Reading, Texts
from bilevel.reweighting._inputs.csv_parts import CsvRows
from bilevel.reweighting._inputs.files import digest, read_table, split_label
from bilevel.reweighting._inputs.number_texts import looks_like_numbers
from bilevel.reweighting._inputs.prepare import Encoding, prepare
from bilevel.reweighting._inputs.row_facts import hash_names
from bilevel.reweighting._inputs.strange import strange
from bilevel.reweighting._learn import learn_weights

ROWS = 24
RNG = np.random.default_rng(0)
X = pd.DataFrame({"a": RNG.normal(size=ROWS), "b": RNG.normal(size=ROWS)})
NFC = "caf\u00e9"
NFD = unicodedata.normalize("NFD", NFC)


def prepare_with(y: Any, y_trusted: Any, groups: Any = None) -> Any:
    return prepare(
        X, y, X, y_trusted, task="auto", scaler=None, holdout=None, groups=groups, folds=3
    )


def prepared(labels: Any, groups: Any = None) -> Any:
    trusted = np.asarray(["yes", "no"] * (ROWS // 2), object)
    known = trusted if isinstance(labels[0], str) else np.asarray(labels)
    return prepare_with(np.asarray(labels, object), known, groups)


@pytest.mark.parametrize("other", ["yes\u200b", "\ufeffyes", "yes ", "ye\u00ads", "\u202eyes"])
def test_labels_that_look_alike_are_refused(other):
    labels = ["yes", "no"] * (ROWS // 2)
    assert len(prepared(labels).classes) == 2
    with pytest.raises(InputError, match="look alike: 'yes', "):
        prepared([other, *labels[1:]])


def test_labels_that_unicode_composes_in_two_ways_are_refused():
    labels = [NFC, "no"] * (ROWS // 2)
    with pytest.raises(InputError, match=r"look alike: 'cafe\\u0301', 'caf\\xe9'"):
        prepare_with(np.array([NFD, *labels[1:]]), np.array(labels))
    with pytest.raises(InputError, match="the groups are written in several ways"):
        prepared(["yes", "no"] * (ROWS // 2), np.array([NFD, *[NFC, "x"] * 11, "x"], object))


@pytest.mark.parametrize("mixed", [[True, 0, 1, 0], ["True", "0", "1", "0"], [1.0, False, True, 0]])
def test_truth_values_in_two_ways_are_refused(mixed):
    with pytest.raises(InputError, match="truth values in two ways"):
        prepared(mixed * (ROWS // 4))


@pytest.mark.parametrize(
    "value", [[1, 2], [], {"x": 1}, b"bytes", np.zeros(2), pd.Timedelta(1, "s")], ids=repr
)
def test_columns_of_other_things_than_one_value_are_refused(value):
    column = pd.Series([value] * ROWS)
    for name in ("label", "id"):
        table = X.assign(label=["yes", "no"] * (ROWS // 2), id=np.arange(ROWS)).assign(
            **{name: column}
        )
        with pytest.raises(InputError, match="must hold one text, number, boolean or date per row"):
            split_label(table, "label", "id", "train")
    with pytest.raises(InputError, match="`groups` holds"):
        prepared(["yes", "no"] * (ROWS // 2), np.asarray(column))


def test_an_id_with_a_gap_is_refused():
    table = X.assign(label=0, id=[f"k{i}" for i in range(ROWS - 1)] + [None])
    with pytest.raises(
        InputError, match="has 1 rows without an id in 'id', the first of them row 23"
    ):
        split_label(table, "label", "id", "train")


def test_numbers_whose_squares_are_not_finite_are_refused():
    table = X.copy()
    table.loc[[3, 5], "b"] = [1e308, -2e200]
    with pytest.raises(InputError, match=r"columns 'b' hold numbers beyond 1e\+150.*ids 3, 5"):
        check_values(table, "train")
    table.loc[[3, 5], "b"] = [1e149, -1e149]
    check_values(table, "train")


def test_audit_sees_a_single_class_and_numbers_that_are_not_finite():
    y = np.array(["yes", "no"] * (ROWS // 2))
    found = audit(X, np.full(ROWS, "yes"), X + 1, np.full(ROWS, "yes"))
    (one,) = (f for f in found.findings if f.title == "classes")
    assert (one.severity, one.ids) == ("problem", ("yes",))
    table = X.copy()
    table.loc[3, "a"], table.loc[7, "b"] = np.inf, -1e308
    found = audit(table, y, X + 1, y)
    (one,) = (f for f in found.findings if f.title.startswith("numbers of"))
    assert (one.severity, one.title, one.ids) == (
        *("problem", "numbers of the training rows", (3, 7)),
    )
    assert not found.passed
    found = audit(X, np.array([NFD, *[NFC, "no"] * 11, "no"]), X + 1, np.array([NFC, "no"] * 12))
    (one,) = (f for f in found.findings if f.title == "spelling of the labels")
    assert set(one.ids) == {NFC, NFD}


def test_stray_quote_marks_do_not_swallow_rows(tmp_path):
    path = tmp_path / "t.csv"
    lines = [f"k{i},{i}.5,word,yes" for i in range(20)]
    header = "key,a,b,label"
    for first, last in [(4, 14), (4, 7)]:
        stray = [f'"{x}' if i in (first, last) else x for i, x in enumerate(lines)]
        path.write_text("\n".join([header, *stray]) + "\n")
        with pytest.raises(InputError, match=r"column 'key' .* look like rows, from 'k5"):
            read_table(path, "train")
    # A text of several lines, with commas in it, is a text.
    told = [x.replace("word", '"one, two\nthree\n, four, five, six"') for x in lines]
    path.write_text("\n".join([header, *told]) + "\n")
    assert len(set(read_table(path, "train").frame["b"])) == 1


def test_decimal_commas_with_three_digits_are_not_thousands(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a;y\n"0,126";1\n"-0,500";0\n"1,250";1\n')
    np.testing.assert_array_equal(read_table(path, "train").frame["a"], [0.126, -0.5, 1.25])
    path.write_text('a;y\n"1,126";1\n"-2,500";0\n"1,250";1\n')
    np.testing.assert_array_equal(read_table(path, "train").frame["a"], [1126, -2500, 1250])


def test_an_array_that_lies_about_its_size_takes_no_memory(tmp_path):
    path, header = tmp_path / "p.npy", {"descr": "<f8", "fortran_order": False}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (10**12, 2)})
        file.write(bytes(160))
    with pytest.raises(InputError, match=r"p\.npy cannot be read as \.npy: .*length"):
        read_probabilities(path, X.index, None, "--pred-probs")
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(InputError, match="does not exist; check the path"):
        as_internal(tmp_path / "x.npy", "X")


def test_a_file_without_an_end_is_refused():
    with pytest.raises(InputError, match="/dev/zero is no file, and may have no end"):
        digest(Path("/dev/zero"))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none_is_refused(seed):
    y = np.arange(ROWS) % 2
    with pytest.raises(ValueError, match=r"`seed` must be an integer from 0 to 4294967295, got"):
        learn_weights(X, y, X, y, seed=seed)


@pytest.mark.parametrize(
    ("write", "typed_only"),
    [
        ("{} km/h".format, False),
        ("R$ {}".format, False),
        ("{}/100".format, False),
        ("{} mg/dL".format, False),
        ("~{}".format, False),
        (lambda x: f"{x / 1000:.1f}k" if x > 1000 else f"{x:.1f}", False),
        ("{}%".format, True),
        ("{}".format, True),
        (lambda x: f"{x:,.2f} €", True),
    ],
)
def test_texts_that_look_like_numbers_are_named(tmp_path, write, typed_only):
    # A CSV file's are read as numbers where every cell has the same mark.
    values = np.repeat(RNG.integers(0, 99999, 20) / 10, 2)
    X = pd.DataFrame({"speed": [write(x) for x in values], "b": RNG.normal(size=40)})
    (said,) = describe(X)
    assert said.startswith("the column 'speed' holds texts that look like numbers, such as ")
    y = np.where(values > 5000, "yes", "no")
    assert (read_table_of(X.assign(y=y), tmp_path)["speed"].dtype == np.float64) == typed_only


def test_texts_that_look_like_numbers_are_named_by_the_commands(tmp_path):
    values = np.repeat(RNG.integers(0, 99999, 20) / 10, 2)
    X = pd.DataFrame({"speed": [f"{x} km/h" for x in values], "b": RNG.normal(size=40)})
    table = X.assign(y=np.where(values > 5000, "yes", "no"))
    for name in ("train", "trusted"):
        table.to_parquet(tmp_path / f"{name}.parquet")
    config = WeighConfig(
        train=str(tmp_path / "train.parquet"),
        trusted=str(tmp_path / "trusted.parquet"),
        label="y",
        out=str(tmp_path / "run"),
    )
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train", "trusted")}
    y = table["y"]
    with pytest.warns(UserWarning, match="'speed' holds texts that look like numbers"):
        prepare(X, y, X, y, task="auto", scaler=None, holdout=None)
    (note,) = check_tables(config, paths).notes
    assert note.startswith("train: the column 'speed' holds texts that look like numbers")
    found = audit(X, y, X, y).findings
    assert [f.ids for f in found if f.check == "columns/number-text"] == [("speed",)]


def test_numbers_written_as_texts_are_no_names_of_rows():
    X = pd.DataFrame({"share": [f"{k / 8}%" for k in range(60)], "b": RNG.normal(size=60)})
    with pytest.raises(InputError, match=r"'share' hold numbers as texts, .* such as '0.0%'"):
        check_values(X, "train")


def test_the_word_that_makes_texts_of_numbers_is_shown():
    texts = [f"{k / 8}" for k in range(60)]
    texts[7] = "n.a."
    X = pd.DataFrame({"share": texts, "b": RNG.normal(size=60)})
    with pytest.raises(
        InputError, match=r"'share' hold numbers as texts, .* such as 'n.a.', '0.0'"
    ):
        check_values(X, "train")


def test_words_of_text_that_are_read_as_gaps_are_named(tmp_path):
    """Namibia is NA: a gap, as for pandas; not so where the words stand among numbers or dates."""
    X = pd.DataFrame({"country": ["NA", "DE", "", "None"] * 3, "a": ["NA", "1", "", "2"] * 3})
    X["day"], X["y"] = ["NA", "2024-03-01", "", "2024-04-01"] * 3, ["NA", "None", "no", "yes"] * 3
    X.to_csv(tmp_path / "x.csv", index=False)
    table = read_table(tmp_path / "x.csv", "train", label="y")
    pandas = pd.read_csv(tmp_path / "x.csv")
    for c in ("country", "a", "day"):
        assert table.frame[c].isna().tolist() == pandas[c].isna().tolist()
    assert table.frame["y"].tolist() == X["y"].tolist()
    assert table.notes == (
        "train: words in columns of text are read as gaps, as empty cells are: 'NA' in 3 cells of "
        "'country', 'None' in 3 cells of 'country'; write them otherwise where they are values",
    )
    texts = Texts.of(map_file("csv", tmp_path / "x.csv", "x", "csv", None, separator=","))
    by_parts = CsvRows(texts, {}, ["y"]).notes
    assert [f"train: {note}" for note in by_parts] == [*table.notes]


def test_saved_row_numbers_that_became_floating_are_left_out(tmp_path):
    (tmp_path / "t.csv").write_text(",a,y\n0.0,1.5,1\n1.0,2.5,0\n2.0,2.25,1\n")
    assert list(read_table(tmp_path / "t.csv", "train", label="y").frame) == ["a", "y"]
    (tmp_path / "t.csv").write_text(",a,y\n0.5,1.5,1\n1.0,2.5,0\n2.0,2.25,1\n")
    assert list(read_table(tmp_path / "t.csv", "train", label="y").frame)[1:] == ["a", "y"]


def read_table_of(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    frame.to_csv(folder / "t.csv", index=False)
    return read_table(folder / "t.csv", "train", label="y").frame


@pytest.mark.parametrize(
    "write",
    [
        "A{}".format,
        "lot {}".format,
        "{:05d}".format,
        "10.0.{}.1".format,
        "1.{}.0".format,
        "+49 30 {}123".format,
        "user_{}".format,
        "{0}-{0}5".format,
        "No {}".format,
        lambda k: f"{k}{'abcdefg'[k % 7]}",
        lambda k: f"{k % 24}:{k % 60:02d}",
        lambda k: f"{k % 28 + 1}.{k % 12 + 1}.2024",
        lambda k: str(1990 + k % 30),
        lambda k: f"{k % 5}.5 kg",
    ],
)
def test_names_that_hold_numbers_do_not_look_like_numbers(write):
    assert looks_like_numbers(pd.Series([write(k) for k in range(99)])) is None


def test_names_that_look_alike_are_one_in_all_tables():
    """An export of another system composes them otherwise, or pads them with blanks."""
    ids = pd.Index([NFC, "r1 ", "r2"]), pd.Index([NFD, "r1", "r3", "r2\u200b"])
    assert shared_ids(*ids) == [NFC, "r1 ", "r2"]
    frames = {"train": X.iloc[:3].set_index(ids[0]), "trusted": X.iloc[:4].set_index(ids[1])}
    found = audit(frames["train"], ["a", "b", "a"], frames["trusted"], ["a", "b", "a", "b"])
    (shared,) = (f for f in found.findings if f.title == "ids of training and trusted rows")
    assert shared.ids == (NFC, "r1 ", "r2")
    one, other = (hash_names(np.asarray(x, object)) for x in ids)
    assert np.isin(one, other).tolist() == [True, True, True]
    words = pd.DataFrame({"place": [NFC, "bar"] * 12})
    pipeline, _, matrices = vectorise({"train": words, "new": words.replace(NFC, NFD)})
    np.testing.assert_array_equal(matrices["train"], matrices["new"])
    assert strange(tidy(words.replace(NFC, NFD), like=pipeline), pipeline) == []


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["18446744073709551615", "18446744073709551614", "1"], None),
        (["9223372036854775806", "9223372036854775807", "1"], [1, 2**63 - 2, 2**63 - 1]),
        (["18446744073709551615", "2.5", "1"], [1.0, 2.5, 2.0**64]),
    ],
)
def test_long_codes_are_as_many_classes_as_they_are(tmp_path, labels, classes):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "".join(f"{i}.5,{labels[i % 3]}\n" for i in range(30)))
    found = read_table(path, "train", label="y").frame["y"]
    assert sorted(found.unique().tolist()) == (sorted(labels) if classes is None else classes)


def test_labels_of_new_rows_are_read_as_those_of_the_training_rows():
    """A few new rows tell less of how their labels are written."""
    euro = Reading("number", mark=("", "EUR"))
    numbers: Any = Encoding(None, None, None, 0.0, 1.0)
    names = numbers._replace(classes=np.array(["1.0", "other"]))

    def reading(encoding: Any, readings: dict[str, Reading]) -> dict[str, Reading]:
        none: Any = None
        return Scorer(none, none, encoding, readings).reading_of_labels("y", "label")

    assert reading(numbers, {"y": euro}) == {"label": euro}
    assert reading(numbers, {}) == {}
    assert reading(names, {}) == {"label": TEXT}


def test_numbers_that_are_shown_keep_their_units(tmp_path):
    lines = [f"{i}.5 km,${i},{i},{i * 7 % 61}.25 EUR\n" for i in range(60)]
    for name in ("train", "trusted"):
        (tmp_path / f"{name}.csv").write_text("far,cost,n,y\n" + "".join(lines))
    paths = {name: tmp_path / f"{name}.csv" for name in ("train", "trusted")}
    settings: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    settings |= {"label": "y", "out": str(tmp_path / "run"), "show": ("far", "cost", "n")}
    tables = check_tables(WeighConfig(**settings), paths)
    assert tables.units == {"far": "km", "cost": "$", None: "EUR"}
    assert without_names(tables, regression=True).units == {}
