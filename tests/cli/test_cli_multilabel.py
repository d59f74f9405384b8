"""`bilevel multilabel`: the tables that it writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bilevel.cli import app
from schema import faults


def write(folder: Path) -> tuple[list[str], np.ndarray]:
    """Three labels of four numbers, of which a tenth is wrong; the arguments but --out."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4))
    Y = (X @ rng.normal(size=(4, 3)) > 0).astype(int)
    wrong = rng.random((240, 3)) < 0.1
    Y[:240] = np.where(wrong, 1 - Y[:240], Y[:240])
    table = pd.DataFrame(X, columns=list("abcd")).assign(id=[f"r{k}" for k in range(300)])
    table[["one", "two", "three"]] = Y
    table[:240].to_csv(folder / "train.csv", index=False)
    table[240:].to_parquet(folder / "trusted.parquet")
    arguments = ["multilabel", str(folder / "train.csv"), "--id", "id"]
    arguments += ["--trusted", str(folder / "trusted.parquet")]
    return arguments + [a for name in ("one", "two", "three") for a in ("--label", name)], wrong


def test_the_folder_holds_rows_and_labels(tmp_path):
    arguments, wrong = write(tmp_path)
    out = tmp_path / "run"
    done = CliRunner().invoke(app, [*arguments, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert faults(out / "summary.json") == faults(out / "report.json") == []
    names = ["labels.parquet", "report.html", "report.json", "rows.parquet", "summary.json"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "worst.csv"]
    rows: Any = pd.read_parquet(out / "rows.parquet")
    assert rows["id"].tolist() == [f"r{k}" for k in range(240)]
    quality = rows[["quality one", "quality two", "quality three"]].to_numpy()
    np.testing.assert_allclose(rows["row_quality"], quality.min(axis=1))
    assert quality[wrong].mean() < 0.5 < 0.8 < quality[~wrong].mean()
    named = np.array([["one" in t, "two" in t, "three" in t] for t in rows["labels_to_look_at"]])
    assert wrong[named].mean() > 0.7
    assert named[wrong].mean() > 0.7
    np.testing.assert_array_equal(rows["keep"], ~named.any(axis=1))
    assert summary["labels_to_look_at"] == named.sum()
    assert pd.Series(pd.read_csv(out / "worst.csv")["row_quality"]).is_monotonic_increasing
    for k, name in enumerate(("one", "two", "three")):
        rate = summary["labels"][name]["noise"]["rate"]
        assert rate["low"] <= wrong[:, k].mean() <= rate["high"]
    again = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert again.exit_code == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--label", "tree"],
            "the train file has no column 'tree' (--label); did you mean 'three'?",
        ),
        (["--label", "two"], "the label columns 'two' are given twice"),
        (["--label", "a"], "0 and 1"),
    ],
)
def test_what_cannot_be_used_leaves_nothing(tmp_path, more, message):
    arguments, _ = write(tmp_path)
    out = tmp_path / "run"
    done = CliRunner().invoke(app, [*arguments, *more, "--out", str(out)])
    assert done.exit_code == 3
    assert message in " ".join(done.output.split())
    assert not out.exists()


def test_a_copy_of_any_of_the_labels_is_no_feature(tmp_path):
    arguments, _ = write(tmp_path)
    train = pd.read_csv(tmp_path / "train.csv")
    train.assign(Three=train["three"]).to_csv(tmp_path / "train.csv", index=False)
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 3
    assert "the train file has the label twice: 'Three'" in " ".join(done.output.split())


def test_weigh_takes_one_label_and_names_the_command_for_several(tmp_path):
    arguments, _ = write(tmp_path)
    done = CliRunner().invoke(app, ["weigh", *arguments[1:], "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "learn_multilabel_weights" in " ".join(done.output.replace("│", " ").split())
