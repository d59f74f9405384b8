"""Bad input of `bilevel weigh`: the exit code, what the message names, and nothing left behind."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bilevel.cli import app
from bilevel.cli._weigh_config import WeighConfig
from bilevel.cli._weigh_tables import check_tables
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._inputs.columns import tidy
from digits import write_table

N, M = 40, 16


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"key": [f"k{seed}-{i}" for i in range(rows)]})
    frame["a"], frame["b"] = rng.normal(size=rows).round(6), rng.normal(size=rows).round(6)
    frame["colour"] = np.array(["red", "blue"])[np.arange(rows) // 2 % 2]
    frame["label"] = np.array(["yes", "no"])[np.arange(rows) % 2]
    return frame


class Case:
    """A folder with good tables, which a test spoils; `refuse` runs weigh and checks the refusal."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.train, self.trusted = table(N, 0), table(M, 1)
        self.holdout: pd.DataFrame | None = None
        self.suffix = ".csv"
        self.out = folder / "new" / "run"

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{self.suffix}"

    def write(self) -> None:
        for name in ("train", "trusted", "holdout"):
            if (frame := getattr(self, name)) is not None:
                write_table(frame, self.path(name))

    def run(self, *flags: str, label: str = "label"):
        files = [str(self.path("train")), "--trusted", str(self.path("trusted"))]
        if self.holdout is not None:
            files += ["--holdout", str(self.path("holdout"))]
        if "--no-id" in flags:
            flags = tuple(flag for flag in flags if flag != "--no-id")
        else:
            flags = ("--id", "key", *flags)
        flags = ("--label", label, *flags, "--out", str(self.out))
        return CliRunner().invoke(app, ["weigh", *files, *flags])

    def refuse(self, code: int, *messages: str, flags=(), write: bool = True, **kwargs) -> None:
        if write:
            self.write()
        before = self.listing()
        result = self.run(*flags, **kwargs)
        text = "".join(result.stderr.split())  # the console wraps lines
        for message in messages:
            assert "".join(message.split()) in text
        assert result.exit_code == code
        assert result.stdout == ""
        assert self.listing() == before

    def listing(self) -> list[str]:
        return sorted(str(path) for path in self.folder.rglob("*"))


@pytest.fixture
def case(tmp_path) -> Case:
    return Case(tmp_path)


def test_missing_file(case):
    case.write()
    case.path("trusted").unlink()
    case.refuse(
        3, f"the trusted file {case.path('trusted')} does not exist; check the path", write=False
    )


def test_empty_file(case):
    case.write()
    case.path("train").write_bytes(b"")
    case.refuse(3, "train.csv is empty (0 bytes).", write=False)


def test_unknown_format(case):
    case.suffix = ".xlsx"
    case.path("train").write_text("a,b\n1,2\n")
    case.refuse(
        3,
        "train.xlsx ends in '.xlsx'; the formats read are .csv, .csv.gz, .tsv, .parquet, .pq and "
        "folders of Parquet files. Convert it",
        write=False,
    )


def test_header_only(case):
    case.trusted = case.trusted.iloc[:0]
    case.refuse(3, "trusted.csv has a header and zero rows.")


def test_unparsable_parquet(case):
    case.suffix = ".parquet"
    case.write()
    case.path("train").write_bytes(b"PAR1 this is no parquet file")
    case.refuse(3, "train.parquet cannot be read as parquet:", write=False)


def test_unparsable_csv(case):
    case.write()
    case.path("train").write_text('a,b\n1,2\n3,4,5,6\n"')
    case.refuse(
        3,
        "train.csv has 4 fields; the first line names 2 columns: '3,4,5,6'. Name every column",
        write=False,
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("a,\u00e9\n1,2\n".encode("latin-1"), id="header"),
        pytest.param("a,b\n1,\u00e9\n".encode("latin-1"), id="cell"),
        pytest.param(b"a,b\n" + b"1,2\n" * 2_200_000 + b"1,\xe9\n", id="a later block"),
        pytest.param("a,b\n1,2\n".encode("utf-16"), id="UTF-16"),
    ],
)
def test_another_encoding(case, content):
    case.write()
    case.path("train").write_bytes(content)
    case.refuse(
        3,
        "train.csv cannot be read as csv: it is not text in UTF-8. Save it in UTF-8",
        write=False,
    )


def test_unknown_label_column(case):
    case.refuse(
        3,
        "the train file has no column 'lable' (--label); did you mean 'label'?",
        "Its columns are 'key', 'a', 'b', 'colour', 'label'.",
        label="lable",
    )


def test_unknown_id_and_drop_columns(case):
    case.refuse(3, "the train file has no column 'z' (--id);", flags=("--no-id", "--id", "z"))
    case.refuse(3, "the train file has no column 'z' to --drop.", flags=("--drop", "z"))


def test_pictures_that_do_not_fit(case):
    path = case.folder / "p.npy"
    flags = ("--images", str(path))
    case.refuse(3, f"the `images` file {path} does not exist", flags=flags)
    np.save(path, np.zeros((N + 1, 3, 3)))
    case.refuse(3, f"{path} has {N + 1} pictures, the train file {N} rows; give", flags=flags)
    np.save(path, np.zeros((N, 3, 3, 2)))
    case.refuse(3, f"{path} cannot be drawn: `images` must have shape", flags=flags)
    np.save(path, np.array(["red"] * N))
    case.refuse(3, f"{path} is not an array of numbers", flags=flags)
    np.save(path, np.zeros(()))
    case.refuse(3, f"{path} is not an array of numbers", flags=flags)


def test_labels_on_one_side_only(case):
    case.trusted.loc[3, "label"] = "maybe"
    case.refuse(3, "the trusted rows have labels that the training rows lack: 'maybe'")
    case.trusted["label"] = "no"
    case.refuse(3, "the training rows have labels that no trusted row has: 'yes'")


def test_labels_of_different_kinds(case):
    case.trusted["label"] = np.arange(M) % 2
    case.refuse(3, "the trusted rows have labels that the training rows lack: '0', '1'. No weight")


def test_missing_labels_with_their_ids(case):
    case.train.loc[[4, 9], "label"] = None
    case.refuse(
        3,
        "`train column label` has 2 missing labels, in the rows with ids 'k0-4', 'k0-9'. Drop",
    )


def test_infinite_values_with_columns_and_ids(case):
    case.train.loc[[2, 5], "a"] = np.inf, -np.inf
    case.train.loc[7, "b"] = np.inf
    case.refuse(
        3,
        "the train rows have infinite values in the columns 'a', 'b', rows with ids 'k0-2', "
        "'k0-5', 'k0-7'. Replace them",
    )


def test_dates_vectors_and_free_text_are_accepted(case, monkeypatch):
    case.suffix = ".parquet"
    case.train = table(60, 0)
    for frame in (case.train, case.trusted):
        rows = np.arange(len(frame))
        frame["when"] = pd.date_range("2026-01-01", periods=len(frame), tz="Europe/Paris")
        frame["emb"] = list(np.stack([rows, -rows], axis=1).astype(np.float32))
        frame["review"] = [f"film {i} was {'bad' if i % 3 else 'good'}" for i in rows]
    shapes = []

    def stop(X, y, X_trusted, *_, **__):
        shapes.extend([X.shape, X_trusted.shape])
        raise InputError("enough is known.")

    monkeypatch.setattr("bilevel.cli._weigh_work.learn_weights", stop)
    case.refuse(3, "enough is known.")
    # The default takes the table: a, b, colour, when, two numbers of a vector, review.
    assert shapes == [(60, 7), (M, 7)]
    shapes.clear()
    # An estimator of one's own takes numbers: two colours, 30 of text; year, month, day, hour,
    # weekday, time.
    case.refuse(3, "enough is known.", flags=("--estimator", "logistic"))
    assert shapes == [(60, 42), (M, 42)]


def test_text_where_the_training_rows_have_numbers(case):
    case.trusted["a"] = case.trusted["a"].astype(object)
    case.trusted.loc[3, "a"] = "unknown"
    case.refuse(
        3,
        "the column 'a' holds numbers in the training rows, and something else in the rows with "
        "ids 'k1-3': 'unknown'. Mend or empty these values.",
    )


def test_trusted_rows_with_the_id_of_a_training_row(case):
    case.trusted.loc[3, "key"] = case.train.loc[11, "key"]
    case.refuse(3, "1 training rows have the id of trusted rows ('k0-11')", "must not judge itself")


def test_columns_beside_the_features(case):
    case.train["w"], case.train["who"] = 1.0, "a"
    for option in ("--sample-weight", "--entity", "--time"):
        case.refuse(
            3, f"the train file has no column 'nowhere' ({option})", flags=(option, "nowhere")
        )
    case.refuse(3, "the trusted file has no column 'who' (--entity)", flags=("--entity", "who"))
    case.train["w"] = -1.0
    case.refuse(
        3,
        "`sample_weight` must hold finite weights >= 0",
        flags=("--sample-weight", "w", "--drop", "who"),
    )


def test_a_column_beside_the_features_may_be_dropped_from_them_too(tmp_path):
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train", "trusted")}
    for k, path in enumerate(paths.values()):
        rows = table(40, k)
        rows.assign(true=rows["label"], who=rows["key"]).to_parquet(path)
    names: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    config = WeighConfig(
        **names, label="label", out="run", truth="true", entity="who", drop=("true", "who", "key")
    )
    found = check_tables(config, paths)
    assert list(found.features["train"].columns) == ["a", "b", "colour"]
    assert found.beside["truth"]["train"].tolist() == found.labels["train"].tolist()


def test_bad_holdout(case):
    case.holdout = table(8, 2).assign(label="maybe")
    case.refuse(3, "`y_holdout` has labels that the training rows lack: 'maybe'")
    case.holdout = table(8, 2).drop(columns="a")
    case.refuse(3, "`holdout` must have the same columns as `train`: it lacks 'a'.")


def test_repeated_ids_and_columns(case):
    case.train.loc[1, "key"] = "k0-0"
    case.refuse(3, "the train file's ids in 'key' repeat: 'k0-0'.")


def test_only_the_label_column(case):
    case.train, case.trusted = case.train[["label"]], case.trusted[["label"]]
    case.refuse(3, "the train file has no column besides the label 'label'.", flags=("--no-id",))


def test_names_in_brackets_are_printed_as_they_are(case):
    case.trusted["x[mm]"] = 1
    case.refuse(3, "it has 'x[mm]', which `train` does not have")


def test_a_path_below_a_file(case):
    case.out = case.path("train") / "run"
    case.refuse(
        2,
        f"the folder {case.out}.partial cannot be written ({case.path('train')} is a file); choose "
        "another --out.",
    )


def test_a_read_only_folder(case, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda _, mode=os.R_OK, **__: mode != os.W_OK)
        case.refuse(2, f"cannot be written ({case.folder} is read-only); choose another --out.")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)
        case.refuse(2, "run.partial cannot be written (Permission denied); choose another --out.")


def test_a_run_folder_that_exists(case):
    case.out.mkdir(parents=True)
    case.refuse(
        2, f"{case.out} exists, and is no run folder; it is not touched. Choose another --out"
    )
    (case.out / "summary.json").write_text("{}")
    case.refuse(2, f"the run folder {case.out} exists; its results are not overwritten")


def test_nothing_to_resume(case):
    case.refuse(
        2,
        f"there is no interrupted run to resume in {case.out}.partial; start it without --resume",
        flags=("--resume",),
    )


def test_wrong_usage(case):
    case.refuse(2, "'--method'", "'adam'", flags=("--method", "adam"))
    case.refuse(2, "'--num-steps'", flags=("--num-steps", "0"))
    case.refuse(2, "'--l2'", flags=("--l2", "-1"))
    case.refuse(2, "No such option: --nonsense", flags=("--nonsense",))


def test_columns_of_one_table_are_read_like_the_training_rows():
    """Codes that pandas reads as text here, as numbers or booleans there."""
    like = pd.DataFrame({"code": ["1", "x"], "flag": [True, False], "size": [1, 2]})
    other = pd.DataFrame(
        {"code": [1.0, np.nan], "flag": np.array([True, None], object), "size": [0.5, None]}
    )
    tidied = tidy(other, like=like)
    assert tidied["code"].iloc[0] == "1"
    assert pd.isna(tidied["code"].iloc[1])
    np.testing.assert_array_equal(tidied["flag"], [1.0, np.nan])
    np.testing.assert_array_equal(tidied["size"], [0.5, np.nan])
    np.testing.assert_array_equal(tidy(like)["flag"], [1.0, 0.0])
