"""CSV files by declared rules: what a column of cells is read as."""

import numpy as np
import pandas as pd
import pytest

from bilevel.reweighting import InputError
from bilevel.reweighting._inputs.csv import TEXT
from bilevel.reweighting._inputs.files import read_table, read_tables, split_label


def read(tmp_path, text, **options):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return read_table(path, "train", **options)


def column(tmp_path, cells, **options):
    quoted = "\n".join(f'"{cell}",0' for cell in cells)
    table = read(tmp_path, f"x,other\n{quoted}\n", **options)
    return table.frame["x"], table.notes


NUMBERS = [
    (["1", "-2", "30"], [1, -2, 30]),
    (["1.5", "NA", " 2 ", "", "null"], [1.5, np.nan, 2, np.nan, np.nan]),
    (["1e3", "2.5E-1"], [1000, 0.25]),
    (["12.5%", "80.1%", "NA"], [12.5, 80.1, np.nan]),
    (["-3 %", "\u22124 %"], [-3, -4]),
    (["1,5", "-2,25"], [1.5, -2.25]),
    (["1,234", "12,345,678"], [1234, 12345678]),
    (["1,234.5", "7"], [1234.5, 7]),
    (["1.234,5", "2.000.000,25"], [1234.5, 2000000.25]),
    (["1.234.567", "2.345.678"], [1234567, 2345678]),
    (["1 234", "12 345,5"], [1234, 12345.5]),
    (["1\u00a0234", "5"], [1234, 5]),
    (["1'234.5", "10"], [1234.5, 10]),
    (["$1,200.50", "$3"], [1200.5, 3]),
    (["-$5", "$-6", "+$7"], [-5, -6, 7]),
    (["12 €", "3,5 €"], [12, 3.5]),
    (["USD 5", "USD 7.25"], [5, 7.25]),
    (["70 kg", "81.5 kg"], [70, 81.5]),
    (["+5", "-6"], [5, -6]),
    (["0.5", "0"], [0.5, 0]),
    (["(1,234.50)", "7.25"], [-1234.5, 7.25]),
    (["($3)", "$4"], [-3, 4]),
]


@pytest.mark.parametrize(("cells", "values"), NUMBERS, ids=lambda x: str(x[0]))
def test_numbers_are_numbers_in_whatever_way_the_whole_column_is_written(tmp_path, cells, values):
    found, notes = column(tmp_path, cells)
    assert pd.api.types.is_numeric_dtype(found)
    np.testing.assert_array_equal(found.to_numpy(float), values)
    plain = all(set(cell) <= set("0123456789.-eE NAnul") for cell in cells)
    said = notes and "'x' is read as numbers" in notes[0]
    assert plain or cells[0].startswith("+") or cells[0] == "1.234.567" or said, notes


@pytest.mark.parametrize(
    "cells",
    [
        ["00123", "45678"],  # postcodes
        ["007", "1"],
        ["12%", "0.5"],  # two ways
        ["12%", "about 5%"],
        ["5 kg", "5 lb"],
        ["$5", "€5"],
        ["A1", "A2"],
        ["1,234", "1,5,6"],
        ["2024-01-05", "2024-02-06"],
        ["12:30", "4:05"],
        ["1.2.3", "1.2.4"],
    ],
    ids=str,
)
def test_other_columns_keep_every_character(tmp_path, cells):
    found, _ = column(tmp_path, cells)
    assert found.tolist() == cells


def test_booleans_in_any_case(tmp_path):
    assert column(tmp_path, ["True", "FALSE", "true"])[0].tolist() == [True, False, True]
    assert column(tmp_path, ["True", "", "false"])[0].tolist() == [True, None, False]
    assert column(tmp_path, ["True", "false", "no"])[0].tolist() == ["True", "false", "no"]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["None", "Mild", "NA", "null"], ["None", "Mild", "NA", "null"]),
        (["01", "02", "10"], ["01", "02", "10"]),
        (["1", "2", "other"], ["1", "2", "other"]),
        (["1", "2", "3"], [1, 2, 3]),
        (["-1", "1"], [-1, 1]),
        (["0.5", "1.25"], [0.5, 1.25]),
        (["5%", "10%"], ["5%", "10%"]),
        (["True", "False"], [True, False]),
        (["+", "-"], ["+", "-"]),
    ],
    ids=str,
)
def test_labels_are_numbers_only_where_all_are_plain_numbers(tmp_path, cells, labels):
    assert column(tmp_path, cells, label="x")[0].tolist() == labels


def test_an_empty_label_is_a_gap_and_a_target_may_have_marks(tmp_path):
    assert column(tmp_path, ["a", "", "b"], label="x")[0].isna().tolist() == [False, True, False]
    prices = [f"{k},{k % 10}00.5" for k in range(10, 90)]
    found, notes = column(tmp_path, prices, label="x")
    assert found.iloc[[0, 79]].tolist() == [10000.5, 89900.5]
    assert "',' separates thousands" in notes[0]


def test_stray_words_among_a_target_are_named(tmp_path):
    cells = [f"{k / 7:.4f}" for k in range(100)] + ["n/a"]
    with pytest.raises(InputError, match="'x' holds 100 different numbers, and besides them 'n/a'"):
        column(tmp_path, cells, label="x")


def test_the_labels_of_all_tables_are_read_alike(tmp_path):
    for name, labels in (("train", ["1", "2", "1"]), ("trusted", ["2", "other", "1"])):
        pd.DataFrame({"a": [1, 2, 3], "y": labels}).to_csv(tmp_path / f"{name}.csv", index=False)
    paths = {name: tmp_path / f"{name}.csv" for name in ("train", "trusted")}
    tables = read_tables(paths, label="y")
    assert tables["train"].frame["y"].tolist() == ["1", "2", "1"]
    assert tables["trusted"].frame["y"].tolist() == ["2", "other", "1"]

    typed = pd.DataFrame({"a": [1, 2], "y": [1, 2]})
    typed.to_parquet(tmp_path / "train.parquet", index=False)
    tables = read_tables(paths | {"train": tmp_path / "train.parquet"}, label="y")
    assert tables["train"].frame["y"].tolist() == ["1", "2"]


def test_features_are_read_as_in_the_training_table(tmp_path):
    (tmp_path / "train.csv").write_text("code,rate\n01234,5%\n56789,7%\n")
    (tmp_path / "trusted.csv").write_text("code,rate\n11111,9%\n22222,few\n")
    paths = {name: tmp_path / f"{name}.csv" for name in ("train", "trusted")}
    tables = read_tables(paths)
    assert tables["trusted"].frame["code"].tolist() == ["11111", "22222"]
    assert tables["train"].frame["rate"].tolist() == [5, 7]
    assert tables["trusted"].frame["rate"].tolist() == ["9%", "few"]  # which a later check names


def test_ids_keep_their_zeros(tmp_path):
    table = read(tmp_path, "id,a\n0001,1\n0002,2\nNA,3\n", ids=["id"])
    assert table.frame["id"].tolist() == ["0001", "0002", "NA"]


@pytest.mark.parametrize(
    "text",
    ["y,a\ncat,1,\ndog,2,\n", "y,a,\ncat,1,\ndog,2,\n", "\ufeffy;a\r\ncat;1\r\ndog;2\r\n"],
    ids=["rows end in a comma", "so does the header", "semicolons, byte order mark"],
)
def test_columns_keep_their_names(tmp_path, text):
    table = read(tmp_path, text)
    pd.testing.assert_frame_equal(
        table.frame, pd.DataFrame({"y": ["cat", "dog"], "a": [1, 2]}), check_dtype=False
    )


def test_line_breaks_and_separators_within_quotes(tmp_path):
    table = read(tmp_path, '"a\nname","b,c"\n"x\ny","1,5"\nz,"2,5"\n')
    assert list(table.frame.columns) == ["a\nname", "b,c"]
    assert table.frame["a\nname"].tolist() == ["x\ny", "z"]
    assert table.frame["b,c"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y,y\n1,2,3\n", "has repeated column names: 'y'"),
        ("a,b\n1,2,3\n", "has 3 fields; the first line names 2 columns: '1,2,3'"),
        ("a,b\n1,2\n3\n", "has 1 fields; the first line names 2 columns: '3'"),
        ("a,b\n1,2,\n3,4,5\n", "has 3 fields"),
    ],
)
def test_rows_and_names_that_do_not_fit_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1"])
@pytest.mark.parametrize("values", [[0, 1, 2], [7, 3, 9], ["Mazda", "Volvo", "Fiat"]])
def test_saved_row_numbers_and_names_are_no_feature(tmp_path, name, values):
    rows = "".join(f"{value},{a},x\n" for value, a in zip(values, "123", strict=True))
    table = read(tmp_path, f"{name},a,y\n{rows}")
    assert list(table.frame.columns) == ["a", "y"]
    assert "numbers or names the rows: it is left out" in table.notes[0]
    pd.DataFrame({name: values, "a": [1, 2, 3]}).to_parquet(tmp_path / "t.parquet")
    assert list(read_table(tmp_path / "t.parquet", "train").frame.columns) == ["a"]


def test_an_unnamed_column_that_is_no_row_number_stays(tmp_path):
    table = read(tmp_path, ",a\n0.5,1\n0.25,2\n0.5,3\n")
    assert list(table.frame.columns) == ["Unnamed: 0", "a"]


def test_the_named_index_of_a_parquet_file_is_a_column_where_it_is_asked_for(tmp_path):
    table = pd.DataFrame({"a": [1, 2]}, pd.Index(["p", "q"], name="key"))
    table.to_parquet(tmp_path / "t.parquet")
    assert list(read_table(tmp_path / "t.parquet", "train", ids=["key"]).frame) == ["key", "a"]
    assert list(read_table(tmp_path / "t.parquet", "train", label="key").frame) == ["key", "a"]
    assert read_table(tmp_path / "t.parquet", "train").frame.index.tolist() == ["p", "q"]


@pytest.mark.parametrize("name", ["index", "__index_level_0__"])
def test_the_unnamed_index_of_a_parquet_file_can_be_the_id(tmp_path, name):
    table = pd.DataFrame({"a": [1, 2], "y": ["u", "v"]}, ["p", "q"])
    table.to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet", "train", ids=[name]).frame
    assert list(read) == [name, "a", "y"]
    assert split_label(read, "y", name, "train")[0].index.tolist() == ["p", "q"]
    with pytest.raises(InputError, match=r"no column 'key'.*--id index takes it"):
        split_label(read_table(tmp_path / "t.parquet", "train").frame, "y", "key", "train")
    table.reset_index(drop=True).to_parquet(tmp_path / "t.parquet")  # numbers are not stored
    with pytest.raises(InputError, match="no column 'index' "):
        split_label(
            read_table(tmp_path / "t.parquet", "train", ids=[name]).frame, "y", "index", "t"
        )


def tables(tmp_path, **texts):
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    return read_tables({name: tmp_path / f"{name}.csv" for name in texts}, label="y")


@pytest.mark.parametrize("other", ["0.124", "12,4", "9 kg"])
def test_a_column_with_marks_that_another_table_writes_otherwise_is_refused(tmp_path, other):
    train = "a,y\n12.4%,u\n80.1%,v\n"
    with pytest.raises(InputError, match=f"'a' holds numbers with '%' in the first .*'{other}'"):
        tables(tmp_path, train=train, trusted=f'a,y\n"{other}",u\n9%,v\n')
    found = tables(tmp_path, train=train, trusted="a,y\n9%,u\nNA,v\n")["trusted"].frame["a"]
    np.testing.assert_array_equal(found, [9, np.nan])


def test_a_comma_is_the_decimal_point_of_the_whole_file(tmp_path):
    train = "a;b;y\n0,5;1,234;u\n1,25;2,500;v\n"
    read = tables(tmp_path, train=train, trusted=train.replace("0,5;1,234", "7;3,125"))
    np.testing.assert_array_equal(read["train"].frame["b"], [1.234, 2.5])
    np.testing.assert_array_equal(read["trusted"].frame["b"], [3.125, 2.5])


@pytest.mark.parametrize("column", ["Y", "y ", "y.1", "y_1"])
def test_the_label_under_a_similar_name_is_refused(tmp_path, column):
    labels = ["u", "v"] * 10
    rows = "".join(f"{i},{label},{label}\n" for i, label in enumerate(labels))
    read = tables(tmp_path, train=f"a,y,{column}\n{rows}")["train"].frame
    with pytest.raises(InputError, match=f"label twice: '{column}' .* 20 of 20 rows.*--drop"):
        split_label(read, "y", None, "train")
    # A coordinate beside a class of its name is none.
    rows = "".join(f"{i},{label},{i % 7}\n" for i, label in enumerate(labels))
    read = tables(tmp_path, train=f"a,y,{column}\n{rows}")["train"].frame
    assert list(split_label(read, "y", None, "train")[0].columns) == ["a", column]


def test_texts_of_a_later_file_stay_texts(tmp_path):
    """As `bilevel score` reads them, though they look like numbers or truth values."""
    (tmp_path / "new.csv").write_text("version,flag,y\n1.10,true,1\n1.20,false,2\n")
    known = {"version": TEXT, "flag": TEXT}
    table = read_table(tmp_path / "new.csv", "new", label="y", readings=known).frame
    assert table["version"].tolist() == ["1.10", "1.20"]
    assert table["flag"].tolist() == ["true", "false"]
    assert table["y"].tolist() == [1, 2]
