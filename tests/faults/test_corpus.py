"""Small files that once failed, or could: refused in words, or read as they are meant.

What `torture.py` finds is kept here as a file, with a line below. All are made to be read beside
`trusted.csv`; Parquet files are read beside themselves.
"""

from pathlib import Path

import pandas as pd
import pytest
from test_text import ANY_UNSEEN

from bilevel.cli._probabilities import read_probabilities
from bilevel.cli._weigh_config import WeighConfig
from bilevel.cli._weigh_tables import Tables, check_tables
from bilevel.reweighting import InputError
from bilevel.reweighting._inputs.checks import check_labels
from bilevel.reweighting._inputs.containers import _from_path
from bilevel.reweighting._inputs.files import read_table
from bilevel.reweighting._inputs.scalars import check_spelling
from runs import bilevel

FOLDER = Path(__file__).with_name("corpus")
REFUSED = {
    "blank_first_line.csv": "the first line of the train file",
    "bytes.parquet": "are neither numbers, booleans, dates nor text",
    "cut.csv.gz": "cannot be read as csv.gz",
    "cut.parquet": "cannot be read as parquet",
    "empty.csv": "is empty",
    "header_only.csv": "has a header and zero rows",  # once a traceback
    "header_again.csv": "row 13 of the train file",  # once a row, and a class called "y"
    "huge_numbers.csv": "whose squares are not finite",
    "id_gap.csv": "has 1 rows without an id",
    "ids_repeat.csv": "repeat: 'r0'",
    "infinite.csv": "infinite values in the columns 'a'",
    "label_as_feature.csv": "has the label twice: 'Y '",
    "label_twice.csv": "repeated column names: 'y'",
    "labels_lists.parquet": "must hold one text, number, boolean or date per row",
    "labels_nfd.csv": "look alike",
    "labels_true_and_1.csv": "truth values in two ways",
    "labels_zero_width.csv": "look alike",
    "lists.parquet": "are neither numbers",
    "maps.parquet": "are neither numbers",
    "nameless_maps.parquet": "are neither numbers",  # once a traceback
    "not_utf8.csv": "cannot be read as csv",
    "nul_in_name.csv": "hold the character NUL",  # once a traceback of scikit-learn
    "ragged.csv": "has 2 fields; the first line names 4 columns",
    "stray_quotes.csv": "holds 16 lines that look like rows",
    "texts_not_utf8.parquet": "Invalid UTF8",
}
READ = (
    *("all_gaps.parquet", "blank_lines.csv", "carriage_returns.csv", "decimal_commas.csv"),
    *("far_dates.parquet", "ids_with_zeros.csv", "labels_01_and_1.csv"),
)
SHOWN = ("control_characters.csv", "formulas.csv", "long_cell.csv", "not_characters.csv")


def checked(name: str, identifier: str | None) -> Tables:
    path = FOLDER / name
    trusted = path if identifier is None else FOLDER / "trusted.csv"
    config = WeighConfig(
        train=str(path), label="y", trusted=str(trusted), out="none", id=identifier
    )
    return check_tables(config, {"train": path, "trusted": trusted})


def check_labels_too(tables: Tables) -> None:
    check_labels(tables.labels["train"], tables.features["train"], "labels")
    check_spelling(tables.labels["train"], what="the labels")


def test_every_file_has_a_line():
    others = {"trusted.csv", "header_cut.npy", "line_separators_in_name.csv"}
    assert {p.name for p in FOLDER.iterdir()} == {*REFUSED, *READ, *SHOWN, *others}


def test_a_name_that_holds_other_separators_of_lines_costs_no_row():
    """Once the first row was taken for a part of the header, without a word."""
    frame = read_table(FOLDER / "line_separators_in_name.csv", "train", ids=["id"]).frame
    assert list(frame.columns) == ["id", "a", "b\u2028\x0c\x85", "y"]
    assert len(frame) == 24
    assert frame["id"].iloc[0] == "00000"


def test_a_damaged_header_of_an_array_is_refused():
    """Once a traceback of Python's tokenizer, found by `torture.py`."""
    path = FOLDER / "header_cut.npy"
    with pytest.raises(InputError, match=r"cannot be read as \.npy"):
        read_probabilities(path, pd.RangeIndex(24), None, "--pred-probs")
    with pytest.raises(InputError, match="cannot be mapped as an array"):
        _from_path(path, "X")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_words(name):
    with pytest.raises(InputError) as caught:
        check_labels_too(checked(name, None if name.endswith(".parquet") else "id"))
    assert REFUSED[name] in str(caught.value)


@pytest.mark.parametrize("name", READ)
def test_what_can_be_used_is_read_as_it_is_meant(name):
    tables = checked(name, None if name.endswith(".parquet") else "id")
    train, labels = tables.features["train"], tables.labels["train"]
    assert len(train) == len(labels) == 24
    if name == "ids_with_zeros.csv":
        assert list(train.index[:2]) == ["00000", "00001"]
    if name == "labels_01_and_1.csv":
        assert set(labels) == {"01", "1", "0"}
    if name == "decimal_commas.csv":
        assert train["a"].tolist()[:2] == [0.126, 1.126]
    if name == "far_dates.parquet":
        assert pd.Series(train["b"]).dt.year.tolist()[:2] == [1970, 36812]
    assert pd.api.types.is_numeric_dtype(train["a"])


@pytest.mark.parametrize("name", SHOWN)
def test_what_is_shown_of_them_is_plain_text(name):
    path = FOLDER / name
    said = bilevel("audit", path, "--trusted", path, "--label", "y", "--id", "id")
    assert said.code == 0
    assert not ANY_UNSEEN.search(said.stdout + said.stderr)
