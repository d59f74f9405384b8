"""Columns beside the features: how much a row counts, what it belongs to, when it was made."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from digits import write_table
from runs import Run, bilevel, weigh


def tables(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and trusted rows of two classes; 30 persons, 20 days, weights 0 to 2."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(240, 3))
    label = np.where(X[:, 0] + X[:, 1] > 0, "yes", "no")
    table: Any = pd.DataFrame(X, columns=list("abc")).assign(
        label=label,
        person=[f"p{i}" for i in rng.integers(0, 30, 240)],
        day=pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 20, 240), unit="D"),
        count=rng.integers(0, 3, 240),
    )
    train, trusted = table.iloc[:160].copy(), table.iloc[160:].copy()
    wrong = rng.random(160) < 0.2
    train.loc[wrong, "label"] = np.where(train.loc[wrong, "label"] == "yes", "no", "yes")
    return train, trusted


def run(folder: Path, train: pd.DataFrame, trusted: pd.DataFrame, *options: str) -> Run:
    folder.mkdir()
    write_table(train, folder / "train.csv")
    write_table(trusted, folder / "trusted.csv")
    files = ["weigh", str(folder / "train.csv"), "--trusted", str(folder / "trusted.csv")]
    return weigh([*files, "--label", "label", "--no-report", *options], folder / "run")


BESIDE = ["person", "day", "count"]


@pytest.mark.slow
def test_a_row_that_counts_twice_is_the_row_twice(tmp_path):
    train, trusted = tables()
    options = ["--drop", "person", "--drop", "day"]
    weighted = run(tmp_path / "one", train, trusted, *options, "--sample-weight", "count")
    rows, others = (np.repeat(np.arange(len(t)), t["count"]) for t in (train, trusted))
    repeated = (t.iloc[r].drop(columns="count") for t, r in ((train, rows), (trusted, others)))
    again = run(tmp_path / "two", *repeated, *options)
    assert weighted.code == again.code == 0
    assert weighted.config["sample_weight"] == "count"
    for column in ("weight", "label_quality"):
        ours = weighted.weights[column].to_numpy()[rows]
        np.testing.assert_allclose(ours, again.weights[column], atol=1e-4)
    absent = np.flatnonzero(train["count"] == 0)
    assert np.isfinite(weighted.weights["weight"].to_numpy()[absent]).all()
    assert weighted.model().feature_names_in_.tolist() == ["a", "b", "c"]


def test_entities_times_and_a_metric(tmp_path):
    options: Any = ["--drop", "count", "--entity", "person", "--time", "day"]
    done = run(tmp_path / "one", *tables(), *options, "--metric", "average_precision")
    if done.code != 0:  # persons who come back on later days leave no earlier rows of others
        pytest.fail(done.stderr)
    assert done.config["entity"] == "person"
    assert done.config["time"] == "day"
    assert done.summary["score"] == "average_precision"
    table = pd.DataFrame(done.summary["candidates"]).T
    np.testing.assert_allclose(table["loss"], -table["score"])
    assert done.model().feature_names_in_.tolist() == ["a", "b", "c"]


def test_a_metric_that_is_none(tmp_path):
    train, trusted = (t.drop(columns=BESIDE) for t in tables())
    write_table(train, tmp_path / "train.csv")
    write_table(trusted, tmp_path / "trusted.csv")
    command = ["weigh", str(tmp_path / "train.csv"), "--trusted", str(tmp_path / "trusted.csv")]
    said = bilevel(*command, "--label", "label", "--out", str(tmp_path / "run"), "--metric", "auc")
    assert said.code == 3
    assert "`scoring` must name a scorer of scikit-learn, got 'auc'" in " ".join(
        said.stderr.split()
    )
    assert not (tmp_path / "run").exists()
