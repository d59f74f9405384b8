"""Tables beyond `--memory`: a sample is learned from, the other rows are judged by parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from sklearn.metrics import roc_auc_score

from bilevel._reading import client
from bilevel._reading.parquet import read_rows
from bilevel.cli import _large
from bilevel.cli._judged import share
from bilevel.cli._weigh_config import WeighConfig
from bilevel.cli._weigh_tables import check_tables
from bilevel.reweighting import InputError
from bilevel.reweighting._inputs import parts
from bilevel.reweighting._inputs.parts import draw_sample
from runs import bilevel, weigh

ROWS, TRUSTED = 900, 120
COLUMNS = list("abcd")


def make_table(rows: int, seed: int) -> pd.DataFrame:
    """Three classes, a column of text and one of numbers with gaps."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 3))
    label = np.array(["x", "y", "z"])[np.argmax(X + 0.3 * rng.normal(size=X.shape), axis=1)]
    table: Any = pd.DataFrame(X, columns=COLUMNS[:3])
    table.loc[rng.random(rows) < 0.1, "a"] = np.nan
    table["d"] = rng.choice(["red", "green", "blue"], rows)
    return table.assign(label=label, source=rng.choice(["s", "t"], rows))


def spoil(table: pd.DataFrame, seed: int) -> np.ndarray:
    """Make a quarter of the labels wrong; which ones."""
    wrong = np.random.default_rng(seed).random(len(table)) < 0.25
    table.loc[wrong, "label"] = table.loc[wrong, "label"].map({"x": "y", "y": "z", "z": "x"})
    return wrong


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """The folder of the tables, and which training labels are wrong."""
    folder = tmp_path_factory.mktemp("large")
    train, trusted = make_table(ROWS, 0), make_table(TRUSTED, 1)
    wrong = spoil(train, 2)
    train.insert(0, "key", [f"r{i:05d}" for i in range(ROWS)])
    trusted.insert(0, "key", [f"t{i:05d}" for i in range(TRUSTED)])
    train.to_parquet(folder / "train.parquet", row_group_size=250)
    trusted.to_parquet(folder / "trusted.parquet")
    return folder, wrong


@pytest.fixture
def small_memory(monkeypatch):
    """Memory for some hundred rows, which are read 100 at a time."""
    monkeypatch.setattr(_large, "SMALLEST", 300)
    monkeypatch.setattr(_large, "bytes_of", lambda rows, *_, **__: _large.BASE + 1e6 * rows)
    monkeypatch.setattr(parts, "PART", 100)


def command(folder: Path, train: str, *options: str) -> list[str]:
    files = [str(folder / train), "--label", "label", "--trusted", str(folder / "trusted.parquet")]
    return ["weigh", *files, "--id", "key", *options]


def test_the_sample_is_weighed_as_if_it_were_all_and_the_rest_is_judged(
    files, small_memory, tmp_path
):
    folder, wrong = files
    options = ["--no-report", "--groups", "source", "--seed", "3"]
    run = weigh(command(folder, "train.parquet", *options, "--memory", "701MB"), tmp_path / "run")
    assert run.code == 0
    assert f"{ROWS} rows would need about 1.3 GB" in " ".join(run.stdout.split())
    train: Any = pd.read_parquet(folder / "train.parquet")
    weights: Any = run.weights
    assert weights["id"].tolist() == train["key"].tolist()
    assert weights["given_label"].tolist() == train["label"].tolist()
    assert sorted(weights["rank"]) == list(range(1, ROWS + 1))
    assert run.summary["train_rows"] == ROWS
    assert run.summary["sampled_rows"] == 300
    assert run.summary["keep"] == weights["keep"].sum()

    # The sample alone gives the same weights, bit for bit.
    sample = draw_sample(train["label"].to_numpy(), 300, seed=3)
    train.iloc[sample].to_parquet(folder / "sample.parquet")
    alone = weigh(
        command(folder, "sample.parquet", *options, "--memory", "9GB"), tmp_path / "alone"
    )
    assert alone.code == 0
    columns = ["id", "weight", "label_quality", "keep", "wrong", "given_label", "predicted_label"]
    theirs: Any = alone.weights[columns]
    pd.testing.assert_frame_equal(weights.iloc[sample][columns].reset_index(drop=True), theirs)

    # The others are judged as `bilevel score` judges new rows, and rightly.
    others = np.setdiff1d(np.arange(ROWS), sample)
    train.iloc[others].to_parquet(folder / "others.parquet")
    scored = tmp_path / "scored.parquet"
    said = bilevel("score", tmp_path / "alone", folder / "others.parquet", "--out", scored)
    assert said.code == 0
    ours = weights.iloc[others]
    theirs = pd.read_parquet(scored).set_index("id").loc[ours["id"]]  # it is sorted by quality
    for column in ("label_quality", "wrong", "keep"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-9)
    assert roc_auc_score(wrong[others], -ours["label_quality"]) > 0.95
    assert ours["wrong"].mean() == pytest.approx(wrong[others].mean(), abs=0.06)
    assert ours["weight"].mean() == pytest.approx(1, abs=0.05)
    assert ours["weight"][wrong[others]].mean() < 0.5 * ours["weight"].mean()


@pytest.mark.parametrize(
    "index",
    [
        pd.Index([f"k{i}" for i in range(ROWS)], name="name"),
        pd.Index(np.arange(ROWS) * 3 + 7),
        pd.RangeIndex(5, 5 + ROWS),
        pd.RangeIndex(ROWS),
        pd.MultiIndex.from_product([range(ROWS // 2), list("ab")]),
    ],
)
def test_rows_keep_the_names_that_a_data_frame_was_saved_with(files, small_memory, tmp_path, index):
    folder, _ = files
    train: Any = pd.read_parquet(folder / "train.parquet").drop(columns="key").set_index(index)
    train.to_parquet(tmp_path / "train.parquet", row_group_size=250)
    trusted: Any = pd.read_parquet(folder / "trusted.parquet").drop(columns="key")
    trusted.to_parquet(tmp_path / "trusted.parquet")
    paths = {name: tmp_path / f"{name}.parquet" for name in ("train", "trusted")}
    settings: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    settings |= {"label": "label", "out": str(tmp_path / "run"), "memory": "701MB"}
    config = WeighConfig(**settings)
    tables = check_tables(config, paths)
    assert tables.large is not None
    plain = index.nlevels > 1 or index.equals(pd.RangeIndex(ROWS))
    expected = pd.RangeIndex(ROWS) if plain else index
    positions = tables.large.positions
    assert tables.features["train"].index.tolist() == expected[positions].tolist()
    assert (tables.large.row_names is None) == plain
    if tables.large.row_names is not None:
        assert tables.large.row_names.equals(index)
        assert tables.large.row_names.name == index.name
    if index.name:  # a row that is not in the sample must not judge itself either
        other = np.setdiff1d(np.arange(ROWS), positions)[0]
        trusted.index = pd.Index([index[other], *range(1, TRUSTED)], name="name").astype(str)
        trusted.to_parquet(tmp_path / "trusted.parquet")
        with pytest.raises(InputError, match=f"have the id of trusted rows .*'{index[other]}'"):
            check_tables(config, paths)


@pytest.mark.slow  # quick: parts of a CSV file have the values of the whole (test_cli_large_csv.py)
def test_csv_and_parquet_agree_by_parts_and_in_memory(files, small_memory, tmp_path):
    folder, _ = files
    train: Any = pd.read_parquet(folder / "train.parquet")
    train.to_csv(tmp_path / "train.csv", index=False)
    pd.read_parquet(folder / "trusted.parquet").to_csv(tmp_path / "trusted.csv", index=False)
    sample = draw_sample(train["label"].to_numpy(), 300, seed=3)
    train.iloc[sample].to_csv(tmp_path / "sample.csv", index=False)

    def run(folder: Path, train: str, memory: str, *options: str) -> pd.DataFrame:
        ending = Path(train).suffix
        tables = [str(folder / train), "--trusted", str(folder / f"trusted{ending}")]
        options = "--label", "label", "--id", "key", "--groups", "source", "--seed", "3", *options
        done = weigh(["weigh", *tables, *options, "--memory", memory], tmp_path / f"{train}.run")
        assert done.code == 0
        return done.weights

    of_parquet = run(folder, "train.parquet", "701MB", "--no-report")
    of_csv = run(tmp_path, "train.csv", "701MB")
    pd.testing.assert_frame_equal(of_csv, of_parquet, rtol=1e-6)
    alone = run(tmp_path, "sample.csv", "9GB", "--no-report").drop(columns="rank")
    theirs = of_csv.iloc[sample].drop(columns="rank").reset_index(drop=True)
    pd.testing.assert_frame_equal(theirs, alone, rtol=1e-6)


def test_a_csv_file_is_sampled_too(files, small_memory, tmp_path):
    """And the run tells how its columns are read; what all rows say of them holds in every table."""
    folder, _ = files
    train: Any = pd.read_parquet(folder / "train.parquet")
    money = [f"$ {i + 1},000" for i in range(ROWS)]
    train.assign(money=money).to_csv(tmp_path / "t.csv", index=False)
    trusted = pd.read_parquet(folder / "trusted.parquet").assign(money="$ 7,500")
    trusted.to_csv(tmp_path / "trusted.csv", index=False)
    options = ["--trusted", tmp_path / "trusted.csv", "--label", "label", "--id", "key"]
    options += ["--out", tmp_path / "run", "--memory", "701MB", "--dry-run"]
    said = bilevel("weigh", tmp_path / "t.csv", *options)
    assert said.code == 0
    told = " ".join(said.stdout.split())
    assert "the column 'money' is read as numbers (without '$', ',' separates thousands)" in told
    assert "a random sample of 300 rows" in told
    assert f"{ROWS} training and {TRUSTED} trusted rows, 10 numeric columns" in told
    train.loc[ROWS - 1, "label"] = None
    train.to_csv(tmp_path / "t.csv", index=False)
    said = bilevel("weigh", tmp_path / "t.csv", *options)
    assert said.code == 3
    assert "missinglabels,intherowswithids899" in said.squeezed
    train.to_csv(tmp_path / "t.csv", index=False, columns=["key", "a", "b"])
    said = bilevel("weigh", tmp_path / "t.csv", *options)
    assert said.code == 3
    assert "hasnocolumn'label'" in said.squeezed


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["trees", "ridge"])
def test_trees_and_regressions_judge_the_rest_too(files, small_memory, tmp_path, estimator):
    folder, _ = files
    options = ["--no-report", "--estimator", estimator, "--memory", "701MB"]
    if estimator == "ridge":
        for name in ("train", "trusted"):
            table = pd.read_parquet(folder / f"{name}.parquet")
            noise = np.random.default_rng(0).normal(size=len(table))
            table["label"] = table["b"] + 0.1 * noise + 5 * (noise > 1.5) * (name == "train")
            table.to_parquet(tmp_path / f"{name}.parquet")
        folder = tmp_path
    run = weigh(command(folder, "train.parquet", "--drop", "source", *options), tmp_path / "run")
    assert run.code == 0
    weights: Any = run.weights
    assert len(weights) == ROWS
    assert np.isfinite(weights["weight"]).all()
    assert weights["weight"].mean() == pytest.approx(1, abs=0.1)
    assert weights["weight"][~weights["keep"]].mean() < 0.5


def test_bad_rows_are_found_wherever_they_are_and_nothing_is_left(files, small_memory, tmp_path):
    folder, _ = files
    train = pd.read_parquet(folder / "train.parquet")

    def refuse(message: str, *options: str, **columns: Any) -> None:
        train.assign(**columns).to_parquet(tmp_path / "bad.parquet")
        trusted = pd.read_parquet(folder / "trusted.parquet")
        trusted.to_parquet(tmp_path / "trusted.parquet")
        run = weigh(
            command(tmp_path, "bad.parquet", "--memory", "701MB", *options), tmp_path / "no"
        )
        assert run.code == 3
        assert "".join(message.split()) in run.squeezed.replace("│", "")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.parquet", "trusted.parquet"]

    last = np.arange(ROWS) == ROWS - 1
    refuse("missing labels, in the rows with ids 899", label=train["label"].mask(last))
    refuse(
        "the training rows have infinite values in the columns 'b', rows with ids 'r00899'",
        b=train["b"].mask(last, np.inf),
    )
    refuse("'s ids in 'key' repeat: 'r00000'", key=train["key"].mask(last, "r00000"))
    refuse("without an id in 'key', the first of them row 899", key=train["key"].mask(last))
    refuse("cannot be had of a part of them", "--method", "near-exact")
    outside = np.setdiff1d(np.arange(ROWS), draw_sample(train["label"].to_numpy(), 300, seed=0))[0]
    shared = train["key"].mask(np.arange(ROWS) == outside, "t00000")
    refuse("1 training rows have the id of trusted rows ('t00000')", key=shared)
    refuse("cannot be weighed in --memory 600MB: a sample of 300", "--memory", "600MB")


def test_memory_is_an_amount():
    amounts = {"4GB": 4e9, "500mb": 5e8, " 1.5 GB ": 1.5e9, "1000000000": 1e9}
    assert {text: _large.parse_memory(text) for text in amounts} == amounts
    for text in ("4", "much", "-4GB", "300MB", "nan", "GB"):
        with pytest.raises(ValueError, match="not an amount of memory above 400MB"):
            _large.parse_memory(text)
    files = ["weigh", "a.parquet", "--label", "y", "--trusted", "b.parquet", "--out", "c"]
    assert bilevel(*files, "--memory", "much").code == 2


def test_a_table_that_fits_is_not_sampled(files, tmp_path):
    folder, _ = files
    said = bilevel(*command(folder, "train.parquet", "--out", str(tmp_path / "r"), "--dry-run"))
    assert said.code == 0
    assert "random sample" not in said.stdout
    assert f"{ROWS} training and {TRUSTED} trusted rows" in said.stdout


# ---- reading by parts


def open_table(path: Path, ids: Sequence[str] = ()) -> parts.PartedTable:
    source = parts.ParquetRows.of(path, "train", ids)
    assert source is not None
    return parts.PartedTable(source, "the train file")


def test_parts_are_the_rows_in_their_order(files, monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "PART", 64)
    folder, _ = files
    whole: Any = pd.read_parquet(folder / "train.parquet")
    table = open_table(folder / "train.parquet")
    assert table.rows == ROWS
    read = list(table.parts())
    assert max(map(len, read)) == 64
    pd.testing.assert_frame_equal(pd.concat(read), whole)
    for year, rows in whole.groupby(np.arange(ROWS) // 500):
        (tmp_path / f"year={year}").mkdir()
        indexed = rows.set_index("key")
        indexed.to_parquet(tmp_path / f"year={year}" / "part.parquet")
    table = open_table(tmp_path, ["key"])
    found: Any = pd.concat(table.parts())
    assert found["year"].tolist() == [i // 500 for i in range(ROWS)]
    pd.testing.assert_frame_equal(found[whole.columns], whole)
    assert table.column("key").to_pylist() == whole["key"].tolist()
    some = np.array([0, 63, 64, 500, 899])
    taken: Any = table.take(some, lambda part: None)[whole.columns]
    pd.testing.assert_frame_equal(taken, whole.iloc[some])
    for path, ids in [(folder / "train.parquet", []), (tmp_path, ["key"])]:  # groups, files
        for start, stop in [(0, 1), (249, 251), (499, 501), (130, 870), (250, 500), (899, 900)]:
            within: Any = pd.concat(open_table(path, ids).parts(start, stop))
            pd.testing.assert_frame_equal(within[whole.columns], whole.iloc[start:stop])
    assert parts.ParquetRows.of(folder / "train.csv", "train") is None


def test_a_process_reads_the_groups_of_rows_of_its_share(files, monkeypatch):
    """Of 900 rows in groups of 250, three processes read those in which their 300 rows lie."""
    original, asked = pyarrow.parquet.ParquetFile.iter_batches, []

    def iter_batches(self, size, row_groups, **options):
        asked.append(row_groups)
        return original(self, size, row_groups=row_groups, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    monkeypatch.setattr(client, "POSSIBLE", False)  # in this process, where it is seen
    table = open_table(files[0] / "train.parquet")
    for k in range(3):
        ((start, stop),) = share([(0, ROWS)], k, 3)
        assert sum(len(part) for part in table.parts(start, stop)) == 300
    assert asked == [[0, 1], [1, 2], [2, 3]]


@pytest.mark.skipif(
    int(pa.__version__.split(".")[0]) < 23, reason="pyarrow reads a whole row group"
)
def test_no_row_group_is_read_as_a_whole(tmp_path):
    """While one large row group is read, a part of it is in memory."""
    rng = np.random.default_rng(0)
    columns = {f"c{i}": rng.normal(size=200_000) for i in range(20)}  # 32 MB
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet", use_dictionary=False)
    before = pa.total_allocated_bytes()
    _, reader = next(read_rows(tmp_path / "t.parquet", "it", 20_000, 0, None))
    assert len(next(iter(reader))) == 20_000
    assert pa.total_allocated_bytes() - before < 16e6


@pytest.mark.parametrize("size", [10, 99, 500])
def test_a_sample_has_its_share_of_each_class(size):
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c", "rare"], [6000, 3000, 990, 5])
    labels = labels[rng.permutation(len(labels))]
    sample = draw_sample(labels, size, seed=1)
    assert np.all(np.diff(sample) > 0)
    for name, number in zip(*np.unique(labels, return_counts=True), strict=True):
        share, found = number * size / len(labels), np.sum(labels[sample] == name)
        assert abs(found - share) < 1 or found == min(number, max(parts.FEWEST, round(share)))
    assert np.sum(labels[sample] == "rare") == 5
    assert not np.array_equal(sample, draw_sample(labels, size, seed=2))
    other = np.where(labels == "a", "z", labels)  # sorts otherwise
    np.testing.assert_array_equal(sample, draw_sample(other, size, seed=1))
    np.testing.assert_array_equal(draw_sample(labels, len(labels), 0), np.arange(len(labels)))


def test_a_sample_of_numbers_has_their_distribution():
    targets = np.random.default_rng(0).lognormal(size=20_000)
    sample = targets[draw_sample(targets, 200, seed=0, classes=False)]
    assert len(sample) == 200
    grid = np.linspace(0.05, 0.95, 19)
    shares = np.searchsorted(np.sort(targets), np.quantile(sample, grid)) / len(targets)
    np.testing.assert_allclose(shares, grid, atol=0.01)
