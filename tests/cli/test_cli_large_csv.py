"""CSV files beyond `--memory`: cells are texts on disk, and any part has the values of the whole."""

import gzip
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bilevel._reading import client
from bilevel._reading import csv as csv_files
from bilevel.reweighting import InputError
from bilevel.reweighting._inputs import csv_parts
from bilevel.reweighting._inputs.files import find_readings, read_tables, read_texts

COLUMNS = {
    # name: cells of a table of any length; the last cell is the one that decides
    "whole": lambda i: str(i - 5),
    "whole_then_gap": lambda i: "" if i == 40 else str(i),
    "whole_then_half": lambda i: "0.5" if i == 40 else str(i),
    "beyond_64_bits": lambda i: "12345678901234567890123" if i == 40 else str(i),
    "blanks": lambda i: f" {i / 3} ",
    "gaps": lambda i: "NA" if i % 3 else f"{i / 7}e-3",
    "no_cells": lambda i: "?" if i % 2 else "",
    "code": lambda i: "007" if i == 40 else str(i),
    "comma": lambda i: f"{i},25",
    "thousands": lambda i: f"{i % 9 + 1},{i % 9}50" if i < 40 else "3",
    "money": lambda i: "" if i == 3 else f"({i}.50 €)" if i % 2 and i < 40 else f"{i}.50 €",
    "truth": lambda i: ["true", "False"][i % 2],
    "truth_with_gap": lambda i: "" if i == 40 else ["true", "False"][i % 2],
    "truth_or_word": lambda i: "maybe" if i == 40 else "true",
    "word": lambda i: "7" if i < 39 else "seven",
    "text": lambda i: 'a "quoted"\nline, and more' if i % 4 else "None",
    "date": lambda i: f"2026-01-{i % 28 + 1:02d}",
}


def quote(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set('";\n') else cell


def write_csv(path: Path, columns: dict[str, Any], rows: int) -> None:
    lines = [
        ";".join(columns),
        *(";".join(quote(f(i)) for f in columns.values()) for i in range(rows)),
    ]
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def by_parts(path: Path, label: str, ids: list[str], folder: Path | None) -> csv_parts.CsvRows:
    texts = read_texts(path, "train", folder)
    assert texts is not None
    return csv_parts.CsvRows(texts, find_readings([texts], label, ids), {label, *ids})


@pytest.mark.parametrize(
    ("ending", "label"),
    [("csv", "whole_then_half"), ("csv", "truth_with_gap"), ("csv.gz", "code")],
)
def test_parts_have_the_values_of_the_whole(tmp_path, monkeypatch, ending, label):
    """Every rule of `csv.py`, where a cell of the last part decides; blocks end within rows."""
    monkeypatch.setattr(client, "POSSIBLE", ending != "csv.gz")  # the child has its own constants
    monkeypatch.setattr(csv_files, "BLOCK", 700)
    path = tmp_path / f"t.{ending}"
    write_csv(path, COLUMNS, 41)
    expected = read_tables({"train": path}, label=label, ids=["word"])["train"]
    rows = by_parts(path, label, ["word"], tmp_path)
    assert rows.rows == 41
    assert [f"train: {note}" for note in rows.notes] == [*expected.notes]
    for size in (1, 7, 40, 100):
        read: Any = pd.concat(rows.frames(size), ignore_index=True)
        pd.testing.assert_frame_equal(read, expected.frame)
    for name in rows.names:
        column = rows.column(name).to_pandas()
        whole: Any = expected.frame[name]
        pd.testing.assert_series_equal(column, whole, check_names=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]
    assert len(set(expected.frame.dtypes)) >= 4


def test_labels_of_any_kind_by_parts(tmp_path):
    """A target with a comma, classes, numbers with a gap, and labels that only the others decide."""
    for k, label in enumerate(
        [["1,5"] * 3 + [f"{i},25" for i in range(60)], ["01", "1", "2"], ["1", "", "2.5"]]
    ):
        path = tmp_path / f"{k}.csv"
        write_csv(path, {"a": str, "y": label.__getitem__}, len(label))
        expected = read_tables({"train": path}, label="y")["train"].frame
        rows = by_parts(path, "y", [], None)
        pd.testing.assert_frame_equal(pd.concat(rows.frames(2), ignore_index=True), expected)
    (tmp_path / "trusted.csv").write_text("a;y\n1;other\n2;1\n")
    paths = {"train": tmp_path / "2.csv", "trusted": tmp_path / "trusted.csv"}
    texts = {name: read_texts(path, name, None) for name, path in paths.items()}
    found = [one for one in texts.values() if one is not None]
    rows = csv_parts.CsvRows(found[0], find_readings(found, "y", []), {"y"})
    expected = read_tables(paths, label="y")["train"].frame
    assert expected["y"].dropna().tolist() == ["1", "2.5"]
    pd.testing.assert_frame_equal(pd.concat(rows.frames(1), ignore_index=True), expected)


def test_errors_are_those_of_the_whole(tmp_path, monkeypatch):
    """Rows with too many fields, stray quotes and separators at the ends, in a block far behind."""
    monkeypatch.setattr(client, "POSSIBLE", False)
    good = "a,b\n" + "".join(f"{i},x\n" for i in range(200))
    path = tmp_path / "t.csv"
    for more, message in [
        ("7,8,9\n", "a row of the train file .* has 3 fields; .* names 2 columns: '7,8,9'"),
        ('7,"y\n8,y\n9,y\n1,y"\n', "a cell of the column 'b' .* holds 2 lines that look like rows"),
        ("7\n", "has 1 fields"),
    ]:
        path.write_text(good + more + "1,z\n" * 50)
        for block in (1 << 23, 200):
            monkeypatch.setattr(csv_files, "BLOCK", block)
            for folder in (None, tmp_path):
                with pytest.raises(InputError, match=message):
                    read_texts(path, "train", folder)
    ends = good.replace("x\n", "x,\n")
    path.write_text(ends)
    texts = read_texts(path, "train", None)
    assert texts is not None
    assert [*texts.columns] == ["a", "b"]
    assert "one ',' too many" in texts.notes[0]
    for last in ("7,8,9\n", "7,8\n"):
        path.write_text(ends + last)
        with pytest.raises(
            InputError, match="has 3 fields; the first line names 2 columns: '0,x,'"
        ):
            read_texts(path, "train", None)
    path.write_text(good.replace("a,b\n", "a,,b,\n").replace(",x\n", ",,x,\n"))
    texts = read_texts(path, "train", None)
    assert texts is not None
    assert [*texts.columns] == ["a", "b"]
    path.write_text(good.replace("a,b\n", ",a,b\n").replace(",x\n", ",q,x\n"))
    texts = read_texts(path, "train", None)
    assert texts is not None
    assert [*texts.columns] == ["Unnamed: 0", "a", "b"]


@pytest.mark.skipif(not client.POSSIBLE, reason="needs a device that is full")
def test_a_disk_without_room_or_right_is_said(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,x\n" * 100)
    with pytest.raises(InputError, match=r"t.csv is laid down on the disk .* takes no file"):
        read_texts(path, "train", tmp_path / "nowhere")
    monkeypatch.setattr(client, "_unnamed", lambda *_: os.open("/dev/full", os.O_RDWR))
    with pytest.raises(InputError, match=r"t.csv is laid down on the disk .* has no room for it"):
        read_texts(path, "train", tmp_path)


def resident(folder: Path) -> int:
    """Bytes of memory that mappings of files without a name in this folder take."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = str(folder) in line and line.endswith("(deleted)")
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(not client.POSSIBLE, reason="reads /proc")
def test_cells_take_memory_only_while_they_are_asked_for(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + f"{'x' * 60},{'y' * 60},1.5\n" * 40_000)
    texts = read_texts(path, "train", tmp_path)
    assert texts is not None
    assert resident(tmp_path) < 200_000
    assert all(texts.columns["a"].to_pylist())
    assert resident(tmp_path) > 2_000_000
    texts.release()
    assert resident(tmp_path) == 0
    rows = csv_parts.CsvRows(texts, {}, set())
    for part in rows.frames(10_000):
        assert part["c"].tolist() == [1.5] * len(part)
        assert resident(tmp_path) == 0
