"""Tables that were once read as something else without a word: each is refused, or read as it is."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bilevel.cli._probabilities import read_probabilities
from bilevel.reweighting import audit
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._inputs.columns import check_values
from bilevel.reweighting._inputs.containers import as_internal
from bilevel.reweighting._inputs.files import digest, read_table, split_label
from bilevel.reweighting._inputs.prepare import prepare
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
