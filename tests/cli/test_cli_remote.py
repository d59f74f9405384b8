"""Tables at URLs, which `fsspec` reads."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bilevel.cli._remote import as_given, is_url, local_copies
from bilevel.reweighting import InputError
from runs import bilevel, weigh


@pytest.fixture
def tables(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name, rows in (("train", 300), ("trusted", 80)):
        X = rng.normal(size=(rows, 3))
        y = np.where((X[:, 0] > 0) ^ (rng.random(rows) < 0.2 * (name == "train")), "yes", "no")
        table = pd.DataFrame(X, columns=list("abc")).assign(y=y)
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        table.to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


@pytest.fixture
def storage(tables) -> Any:
    """The tables in fsspec's file system in memory."""
    fsspec = pytest.importorskip("fsspec")
    storage = fsspec.filesystem("memory")
    for file in tables.iterdir():
        storage.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    whole = pd.read_parquet(tables / "train.parquet")
    for k, part in enumerate(np.array_split(np.arange(300), 3)):
        whole.iloc[part].to_parquet(tables / "part.parquet")
        content = (tables / "part.parquet").read_bytes()
        storage.pipe_file(f"/bucket/shards/year={2020 + k}/part.parquet", content)
    storage.pipe_file("/bucket/shards/README.txt", b"no table")
    (tables / "part.parquet").unlink()
    yield storage
    storage.rm("/bucket", recursive=True)


def test_urls_are_told_from_paths(tmp_path):
    urls = ["s3://b/t.csv", "memory://t.csv", "file:///t.csv", "zip://t.csv::s3://b/x.zip", "s3:/b"]
    paths = ["t.csv", "C:/t.csv", "C:\\t.csv", "./a:b/t.csv", "/tmp/x://y", "2026:/t.csv"]
    assert [is_url(x) for x in urls + paths] == [True] * 5 + [False] * 6
    assert [as_given(x) for x in ["s3://b/t.csv", "./a//t.csv"]] == ["s3://b/t.csv", "a/t.csv"]


def test_copies_are_what_is_there_and_vanish(storage, tables):
    files = {
        "train": "memory://bucket/shards",
        "trusted": "memory://bucket/trusted.csv",
        "holdout": f"file://{tables}/trusted.parquet",
        "other": str(tables / "train.csv"),
    }
    before = sorted(tables.iterdir())
    with local_copies(files, tables / "new" / "run") as paths:
        assert paths["trusted"].read_bytes() == (tables / "trusted.csv").read_bytes()
        assert paths["holdout"].read_bytes() == (tables / "trusted.parquet").read_bytes()
        assert paths["other"] == tables / "train.csv"
        parts = sorted(
            p.relative_to(paths["train"]).as_posix() for p in paths["train"].rglob("*.*")
        )
        assert parts == [f"year={year}/part.parquet" for year in (2020, 2021, 2022)]
        assert sorted(tables.iterdir()) != before
    assert sorted(tables.iterdir()) == before
    with (
        pytest.raises(InputError, match="the train file memory://bucket/shards is no good"),
        local_copies(files, tables / "run") as paths,
    ):
        raise InputError(f"the train file {paths['train']} is no good")
    assert sorted(tables.iterdir()) == before


@pytest.mark.slow  # quick: copies are what is there, and a dry run of a URL
def test_tables_at_urls_give_the_same_as_files(storage, tables):
    def options(folder: str) -> list[str]:
        return ["weigh", f"{folder}/train.csv", "--trusted", f"{folder}/trusted.parquet"]

    rest = ["--label", "y", "--no-report"]
    here = weigh([*options(str(tables)), *rest], tables / "here")
    there = weigh([*options("memory://bucket"), *rest], tables / "there")
    assert (here.code, there.code) == (0, 0)
    pd.testing.assert_frame_equal(here.weights, there.weights)
    assert there.config["train"] == "memory://bucket/train.csv"
    assert there.config["sha256"] == here.config["sha256"]
    assert not list(tables.glob(".bilevel*"))


def test_a_url_is_read(storage, tables):
    trusted = ["--label", "y", "--trusted", f"file://{tables}/trusted.csv", "--out", tables / "run"]
    said = bilevel("weigh", "memory://bucket/train.csv", *trusted, "--dry-run")
    assert said.code == 0
    assert "300 training and 80 trusted rows" in said.stdout


def test_what_cannot_be_had_is_said(storage, tables):
    trusted = ["--label", "y", "--trusted", tables / "trusted.csv", "--out", tables / "run"]
    said = bilevel("weigh", "memory://bucket/none.csv", *trusted)
    assert said.code == 3
    assert "thetrainfilememory://bucket/none.csvcannotberead" in said.squeezed
    storage.pipe_file("/bucket/bad.csv", b"a,y\n1,2,3\n4,5,6,7\n")
    said = bilevel("weigh", "memory://bucket/bad.csv", *trusted)
    assert said.code == 3
    assert "arowofthetrainfilememory://bucket/bad.csvhas3fields" in said.squeezed
    said = bilevel("weigh", "nowhere://bucket/bad.csv", *trusted)
    assert said.code == 3
    assert "nowhere" in said.squeezed
    assert sorted(p.suffix for p in tables.iterdir()) == [".csv", ".csv", ".parquet", ".parquet"]


def test_without_fsspec_it_is_named(tables, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    trusted = ["--label", "y", "--trusted", tables / "trusted.csv"]
    said = bilevel("weigh", "s3://bucket/train.csv", *trusted, "--out", tables / "run")
    assert said.code == 3
    assert "pipinstall'bilevel[remote]'" in said.squeezed
    said = bilevel("weigh", tables / "train.csv", *trusted, "--out", "s3://bucket/run")
    assert said.code == 2
    assert "isaURL" in said.squeezed.replace("│", "")
