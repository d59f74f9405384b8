"""`bilevel consensus`: the tables that it writes, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from annotated import simulated
from bilevel.cli import app
from schema import faults


def write(folder):
    """The simulated rows as three files; returns the arguments but --out."""
    X, y, table, first, *_ = simulated(n=200, m=60)
    frame = X.set_axis(["a", "b", "c"], axis=1).rename_axis("id")
    frame[:200].to_csv(folder / "train.csv")
    frame[200:].assign(label=y[200:]).to_csv(folder / "trusted.csv")
    table[table["id"] != "r250"].to_csv(folder / "annotations.csv", index=False)
    arguments = [str(folder / "train.csv"), "--trusted", str(folder / "trusted.csv")]
    arguments += ["--annotations", str(folder / "annotations.csv"), "--annotator", "by"]
    return ["consensus", *arguments, "--label", "label", "--id", "id"], y, first


def test_the_folder_holds_the_tables(tmp_path):
    arguments, y, first = write(tmp_path)
    out = tmp_path / "new" / "run"
    done = CliRunner().invoke(app, [*arguments, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["labels"] == first.sum() == 600
    assert summary["annotators"] == 9
    assert summary["folder"] == str(out)
    assert faults(out / "summary.json") == []
    names = ["annotators.csv", "labels.parquet", "rows.parquet", "summary.json", "worst.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    rows = pd.read_parquet(out / "rows.parquet")
    assert rows["id"].tolist() == [f"r{k}" for k in range(200)]
    assert np.mean(rows["consensus"] == y[:200]) > 0.9
    assert summary["right_consensus"] == pytest.approx(np.mean(rows["label_quality"]))
    worst = pd.read_csv(out / "worst.csv")
    assert pd.Series(worst["label_quality"]).is_monotonic_increasing
    annotators = pd.read_csv(out / "annotators.csv")
    assert pd.Series(annotators["quality"]).is_monotonic_increasing
    assert np.sum(annotators["labels"]) == 600
    again = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert again.exit_code == 2
    assert "exists" in again.output


@pytest.mark.slow  # quick: the same ids in another kind of file, in test_bad_arrays.py
def test_numbers_as_ids_in_files_of_two_kinds(tmp_path):
    """A CSV file has texts, and the Parquet file that was made of it may have numbers."""
    arguments, *_ = write(tmp_path)
    tables = {path.stem: pd.read_csv(path) for path in tmp_path.glob("*.csv")}
    for name, table in tables.items():
        table["id"] = [int(i[1:]) for i in table["id"]]
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "csv")]).exit_code == 0
    tables["train"].to_parquet(tmp_path / "train.parquet")
    arguments[1] = str(tmp_path / "train.parquet")
    assert CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "mixed")]).exit_code == 0
    one, other = (pd.read_parquet(tmp_path / name / "rows.parquet") for name in ("csv", "mixed"))
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--annotator", "who", "the annotations file has no column 'who' (--annotator)"),
        ("--label", "lable", "did you mean 'label'?"),
        ("--drop", "z", "the train file has no column 'z' to --drop"),
    ],
)
def test_what_cannot_be_used_leaves_nothing(tmp_path, option, value, message):
    arguments, *_ = write(tmp_path)
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run"), option, value])
    assert done.exit_code == 3
    assert message in " ".join(done.output.split())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv"] * 3
