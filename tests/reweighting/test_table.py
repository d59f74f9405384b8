"""Tables: what is read, what columns become, and the pipeline as a file that is safe to open."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._inputs.columns import (
    check_values,
    is_messy,
    table_pipeline,
    tidy,
    vectorise,
)
from bilevel.reweighting._inputs.files import digest, read_table
from bilevel.reweighting._inputs.parts import ParquetRows
from bilevel.reweighting._inputs.saved import load_model, model_types

N = 60
ROWS = np.arange(N)
DAYS = pd.date_range("2026-01-01", periods=N)


def texts(rows=ROWS) -> list[str]:
    return [f"the {i}th film was {'good' if i % 3 else 'bad'}" for i in rows]


def messy() -> pd.DataFrame:
    """Numbers, booleans and categories with gaps, dates of two kinds, free text, vectors."""
    table = pd.DataFrame(
        {
            "size": np.where(ROWS % 7, ROWS / 4, np.nan),
            "flag": np.where(ROWS % 5, ROWS % 2 == 0, None),
            "colour": np.array(["red", "blue", None], object)[ROWS % 3],
            "when": DAYS + pd.Timedelta("90min"),
            "day": DAYS.strftime("%d/%m/%Y").astype(object),
            "review": texts(),
            "emb": list(np.stack([ROWS, ROWS**2], axis=1).astype(np.float32)),
        },
        index=[f"r{i}" for i in ROWS],
    )
    table.loc["r4", ["when", "day", "review"]] = None
    return table


def encoded(table: pd.DataFrame, *more: pd.DataFrame) -> list[pd.DataFrame]:
    """What the pipeline makes of tables, with its names for columns."""
    names = ["train", *map(str, range(len(more)))]
    pipeline, tidied, matrices = vectorise(dict(zip(names, [table, *more], strict=True)))
    columns = list(map(str, np.asarray(pipeline.get_feature_names_out())))
    return [pd.DataFrame(matrices[n], tidied[n].index, columns) for n in names]


def test_every_kind_of_column_becomes_numbers_in_the_unit_interval():
    (result,) = encoded(messy())
    assert list(result.index) == [f"r{i}" for i in ROWS]
    parts = [f"{c}_{p}" for c in ("when", "day") for p in ("year", "month", "day", "weekday")]
    expected = {
        *(f"numbers__{c}" for c in ("size", "flag", "emb_0", "emb_1")),
        *(f"numbers__missingindicator_{c}" for c in ("size", "flag")),
        *(f"categories__colour_{c}" for c in ("red", "blue", "None")),
        *(f"text__review_{i:02d}" for i in range(30)),
        *(f"dates__{part}" for part in parts),
        *(f"dates__{c}" for c in ("when_hour", "when_total_seconds", "day_total_seconds")),
    }
    flags = {c for c in result.columns if c.startswith("dates__missingindicator_")}
    assert len(flags) == 2 * 5 + 1
    found = {c.replace("colour_nan", "colour_None") for c in result.columns}
    assert found == expected | flags
    assert np.isfinite(result.to_numpy()).all()
    assert result.to_numpy().min() >= 0
    assert result.to_numpy().max() <= 1 + 1e-6


def test_the_numbers_are_right():
    (result,) = encoded(messy())
    sizes = np.where(ROWS % 7, ROWS / 4, np.nan)
    filled = np.where(np.isnan(sizes), np.nanmedian(sizes), sizes)
    expected = (filled - filled.min()) / (filled.max() - filled.min())
    np.testing.assert_allclose(result["numbers__size"], expected, rtol=1e-12)
    np.testing.assert_array_equal(result["numbers__missingindicator_size"], ROWS % 7 == 0)
    np.testing.assert_array_equal(result["categories__colour_red"], ROWS % 3 == 0)
    np.testing.assert_array_equal(result["numbers__emb_0"], ROWS / (N - 1))
    known = ROWS != 4
    for name in ("when", "day"):
        weekday = DAYS.day_of_week / 6  # Monday 0, Sunday 1
        np.testing.assert_allclose(result[f"dates__{name}_weekday"][known], weekday[known], 1e-6)
        np.testing.assert_allclose(
            result[f"dates__{name}_month"][known], (DAYS.month[known] - 1) / 2
        )
        seconds = result[f"dates__{name}_total_seconds"]
        np.testing.assert_allclose(seconds[known], (ROWS / (N - 1))[known], atol=1e-4)
        np.testing.assert_array_equal(
            result[f"dates__missingindicator_{name}_year"], (~known).astype(float)
        )


def test_gaps_that_new_rows_have_in_full_columns_are_filled_by_the_mean():
    """Number for number, a column is what MinMaxScaler makes of it."""
    table = pd.DataFrame({"gaps": [1.0, np.nan, 3, 8], "full": [2.0, 4, 3, 7], "none": np.nan})
    new = pd.DataFrame({"gaps": [np.nan, 0.5], "full": [np.nan, 2.5], "none": [1.0, np.nan]})
    first, second = encoded(table, new)
    assert list(first.columns) == [
        "numbers__gaps",
        "numbers__none",
        "numbers__missingindicator_gaps",
        "numbers__missingindicator_none",
        "numbers__full",
    ]
    scaled = (table["full"].to_numpy() * (1 / 5)) + (0 - 2 * (1 / 5))
    np.testing.assert_array_equal(first["numbers__full"], scaled)
    np.testing.assert_allclose(second["numbers__full"], [0.4, 0.1], rtol=1e-12)
    np.testing.assert_allclose(first["numbers__gaps"], [0, 2 / 7, 2 / 7, 1], rtol=1e-12)
    np.testing.assert_allclose(second["numbers__gaps"], [2 / 7, -0.5 / 7], rtol=1e-12)
    np.testing.assert_array_equal(second["numbers__missingindicator_gaps"], [1, 0])


def test_text_of_one_kind_is_near_text_of_the_same_kind():
    """Which of the two words is in it can be read off the components."""
    (result,) = encoded(pd.DataFrame({"review": texts()}))
    bad = ROWS % 3 == 0
    model = LogisticRegression(max_iter=1000).fit(result[::2], bad[::2])
    assert model.score(result[1::2], bad[1::2]) == 1.0


def test_equal_calls_give_equal_numbers():
    first, second = encoded(messy())[0], encoded(messy())[0]
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_many_values_of_few_n_grams_are_categories():
    """Text components need more n-grams than there are components."""
    tallies = pd.DataFrame({"tally": ["I" * (i + 1) for i in [*ROWS, 0]]})
    (result,) = encoded(tallies)
    assert result.shape == (N + 1, 50)
    assert all(c.startswith("categories__tally_") for c in result.columns)


def test_dates_of_any_kind_are_the_same_dates():
    times = DAYS + pd.Timedelta("30min")
    kinds = {
        "naive": times,
        "texts": times.strftime("%Y-%m-%d %H:%M").astype(object),
        "paris": times.tz_localize("UTC").tz_convert("Europe/Paris"),
        "offsets": [
            t.tz_localize("UTC").tz_convert("Europe/Paris" if i % 2 else "Asia/Tokyo").isoformat()
            for i, t in enumerate(times)
        ],
        "category": pd.Categorical(times.astype(str)),
    }
    tables = {k: pd.DataFrame({"when": pd.Series(v)}) for k, v in kinds.items()}
    expected = encoded(tables["naive"])[0]
    for like in tables.values():
        for table in encoded(like, *tables.values()):
            pd.testing.assert_frame_equal(table, expected, check_exact=True)
    days = pd.DataFrame({"when": [t.date() for t in times]})
    texts = pd.DataFrame({"when": DAYS.strftime("%d/%m/%Y")})
    for first, second in [(days, texts), (texts, days)]:
        one, other = encoded(first, second)
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_values_that_are_not_dates_are_refused_in_a_column_of_dates():
    train = messy()
    for column, value in [("when", "yesterday"), ("day", "2026-31-12"), ("day", "yesterday")]:
        other = messy().astype({column: object})
        other.loc["r3", column] = value
        with pytest.raises(
            InputError,
            match=f"the column '{column}' holds dates in the training rows, and something else in "
            f"the rows with ids 'r3': '{value}'. Mend or empty these values.",
        ):
            tidy(other, like=train)
    with pytest.raises(
        InputError, match=r"holds dates .* the rows with ids 'r0', 'r1', .* 55 more"
    ):
        tidy(messy().assign(when=1.5), like=train)
    empty = tidy(messy().assign(when=np.nan, day=np.nan), like=train)
    assert empty[["when", "day"]].isna().to_numpy().all()


def test_decimals_mixed_columns_and_codes():
    from decimal import Decimal

    table = pd.DataFrame(
        {
            "price": [Decimal("1.5"), None],
            "mixed": ["x", 2],
            "code": pd.Categorical([1, 2]),
            "nullable": pd.array([1, None], dtype="Int64"),
            "truth": pd.array([True, None], dtype="boolean"),
        }
    )
    check_values(table, "train")
    tidied = tidy(table)
    for column, values in {
        "price": [1.5, np.nan],
        "nullable": [1, np.nan],
        "truth": [1, np.nan],
    }.items():
        np.testing.assert_array_equal(tidied[column], values)
    assert tidied["mixed"].tolist() == ["x", "2"]
    assert tidied["code"].tolist() == ["1", "2"]


@pytest.mark.parametrize(
    "values",
    [
        pd.timedelta_range("1 day", periods=N),
        [["a", "b"]] * N,
        [{"a": 1}] * N,
        [b"bytes"] * N,
        [1 + 2j] * N,
        [[[1], [1, 2]]] * N,
    ],
)
def test_columns_of_other_things_are_refused(values):
    table = pd.DataFrame({"what": pd.Series(values), "a": 1.0})
    message = "the train columns 'what' are neither numbers, booleans, dates nor text: convert them"
    with pytest.raises(InputError, match=message):
        check_values(table, "train")


def test_vectors_of_unequal_length_are_refused_with_their_rows():
    table = messy()
    table["emb"] = pd.Series(
        [v[: 1 + (i not in (3, 8))] for i, v in enumerate(table["emb"])], table.index
    )
    with pytest.raises(
        InputError,
        match=r"the train column 'emb' holds vectors of 2 numbers, but the rows with ids 'r3', 'r8' "
        r"have 1\. Mend or drop these rows\.",
    ):
        check_values(table, "train")
    table["emb"] = messy()["emb"].where(ROWS != 5, None)
    with pytest.raises(InputError, match="the rows with ids 'r5' have none"):
        check_values(table, "train")
    table["emb"] = [[1.0, "x"] if i == 7 else [1.0, 2.0] for i in ROWS]
    with pytest.raises(InputError, match="the rows with ids 'r7' have none"):
        check_values(table, "train")
    table["emb"] = [[1.0, np.inf] if i == 7 else [1.0, np.nan] for i in ROWS]
    with pytest.raises(
        InputError, match="infinite values in the columns 'emb', rows with ids 'r7'"
    ):
        check_values(table, "train")
    short = messy().assign(emb=[[1.0]] * N)
    with pytest.raises(InputError, match="the column 'emb_1' is in one table and not in the other"):
        tidy(short, like=messy())
    with pytest.raises(InputError, match="has repeated column names: 'emb_0'"):
        tidy(messy().assign(emb_0=1))


def test_one_word_per_row_is_taken_for_an_id_and_a_sentence_is_not():
    message = (
        "the train columns 'key' have a different word in every row, from which nothing can be"
    )
    with pytest.raises(InputError, match=message):
        check_values(pd.DataFrame({"key": [f"k{i}" for i in ROWS]}), "train")
    with pytest.raises(
        InputError, match=r"the X columns 'key' .* `X.set_index\(...\)`\); else leave"
    ):
        check_values(pd.DataFrame({"key": [f"k{i}" for i in ROWS]}), "X")
    check_values(pd.DataFrame({"key": [f"k{i}" for i in ROWS[:50]]}), "train")
    check_values(pd.DataFrame({"review": texts()}), "train")
    with pytest.raises(InputError, match="the train table has repeated column names: 'a'"):
        check_values(pd.DataFrame([[1, 2]], columns=["a", "a"]), "train")


def test_which_tables_need_encoding():
    clean = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]})
    assert not is_messy(clean)
    assert is_messy(clean.assign(d=["x", "y"]))
    assert is_messy(clean.assign(a=[1.0, np.nan]))
    assert is_messy(clean.assign(d=DAYS[:2]))
    assert is_messy(clean.assign(d=[[1.0], [2.0]]))


def test_columns_with_numbers_for_names():
    table = pd.DataFrame({0: [1.0, 3.0], 1: ["x", "y"], 7: [[1.0, 2.0], [3.0, 4.0]]})
    (result,) = encoded(table)
    names = ["numbers__0", "numbers__7_0", "numbers__7_1", "categories__1_x", "categories__1_y"]
    assert list(result.columns) == names
    np.testing.assert_array_equal(result, [[0, 0, 0, 1, 0], [1, 1, 1, 0, 1]])
    with pytest.raises(InputError, match="the table has repeated column names: '0'"):
        tidy(table.assign(**{"0": 1.0}))


# Reading.


def write_parts(folder: Path, *tables: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, table in enumerate(tables):
        table.to_parquet(folder / f"part-{i}.parquet", index=False)
    return folder


def test_formats(tmp_path):
    table = pd.DataFrame({"a": [1.5, np.nan], "b": ["x", "y, z"]})
    for name, write in {
        "t.csv": lambda p: table.to_csv(p, index=False),
        "T.CSV": lambda p: table.to_csv(p, index=False),
        "t.csv.gz": lambda p: table.to_csv(p, index=False),
        "t.tsv": lambda p: table.to_csv(p, index=False, sep="\t"),
        "t.parquet": lambda p: table.to_parquet(p, index=False),
        "t.pq": lambda p: table.to_parquet(p, index=False),
    }.items():
        write(tmp_path / name)
        pd.testing.assert_frame_equal(read_table(tmp_path / name, "train").frame, table)
    (tmp_path / "t.gz").write_bytes(b"x")
    formats = r"\.csv, \.csv\.gz, \.tsv, \.parquet, \.pq and folders of Parquet files"
    with pytest.raises(
        InputError, match=f"t.gz ends in '.gz'; the formats read are {formats}. Conv"
    ):
        read_table(tmp_path / "t.gz", "train")
    (tmp_path / "t.csv.gz").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(InputError, match=r"t.csv.gz cannot be read as csv.gz: Not a gzipped file"):
        read_table(tmp_path / "t.csv.gz", "train")


def test_folder_names_above_a_file_are_not_columns(tmp_path):
    folder = write_parts(tmp_path / "run=3", pd.DataFrame({"a": [1, 2]}))
    assert list(read_table(folder / "part-0.parquet", "train").frame.columns) == ["a"]
    assert list(read_table(folder, "train").frame.columns) == ["a"]


def test_a_folder_of_parquet_files_is_one_table_in_the_order_of_its_paths(tmp_path):
    first = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    second = pd.DataFrame({"a": [0.5], "b": [None]})  # another numeric type; only gaps
    folder = write_parts(tmp_path / "parts", first, second)
    (folder / "_SUCCESS").touch()
    (folder / "README.txt").write_text("about")
    write_parts(folder / "_tmp", pd.DataFrame({"c": [1]}))
    table = read_table(folder, "train").frame
    assert table["a"].tolist() == [1.0, 2.0, 0.5]
    assert table["b"].tolist()[0] == "x"
    assert table["b"].isna().tolist() == [False, True, True]
    assert list(table.index) == [0, 1, 2]

    for year, values in (2024, [1, 2]), (2025, [3]):
        write_parts(tmp_path / "hive" / f"year={year}", pd.DataFrame({"a": values}))
    table = read_table(tmp_path / "hive", "train").frame
    assert table["a"].tolist() == [1, 2, 3]
    assert table["year"].tolist() == [2024, 2024, 2025]


@pytest.mark.parametrize("kinds", [("category", "str"), ("str", "category")])
def test_categories_beside_texts_are_texts(tmp_path, kinds):
    """As of a column that pandas made a category in some of the files."""
    table: Any = pd.DataFrame({"a": ["x", "y", "z", "x"], "b": range(4)})
    parts = [table[:2].astype({"a": kinds[0]}), table[2:].astype({"a": kinds[1]})]
    folder = write_parts(tmp_path / "parts", *parts)
    assert read_table(folder, "train").frame["a"].tolist() == list("xyzx")
    rows = ParquetRows(folder, "train").frames(3)
    assert pd.concat([*rows])["a"].tolist() == list("xyzx")


def test_folders_that_hold_no_one_table_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the train folder .*empty holds no Parquet files"):
        read_table(tmp_path / "empty", "train")
    folder = write_parts(tmp_path / "two", pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}))
    with pytest.raises(
        InputError,
        match=r"two holds files of different columns: part-1.parquet differs from part-0.parquet, "
        r"it lacks 'a' and has 'b'. Keep one table in a folder.",
    ):
        read_table(folder, "train")
    (folder / "part-1.parquet").write_bytes(b"PAR1 this is no parquet file")
    with pytest.raises(InputError, match=r"part-1.parquet cannot be read as parquet: "):
        read_table(folder, "train")
    texts = pd.DataFrame({"a": ["x"]})
    folder = write_parts(tmp_path / "mixed", pd.DataFrame({"a": [1]}), texts)
    match = r"column 'a' holds int64 in part-0.parquet and (large_)?string in part-1.parquet"
    with pytest.raises(InputError, match=match):
        read_table(folder, "train")
    folder = write_parts(tmp_path / "none", texts.iloc[:0])
    with pytest.raises(InputError, match="none has a header and zero rows"):
        read_table(folder, "train")


def test_vectors_are_read_from_parquet(tmp_path):
    vectors = [[0.5, 1.0], [2.0, 3.0]]
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64())):
        table = pa.table({"a": [1, 2], "emb": pa.array(vectors, kind)})
        pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
        read = read_table(tmp_path / "t.parquet", "train").frame
        check_values(read, "train")
        tidied = tidy(read)
        assert list(tidied.columns) == ["a", "emb_0", "emb_1"]
        np.testing.assert_array_equal(tidied[["emb_0", "emb_1"]].to_numpy(), vectors)


def test_digests(tmp_path):
    folder = write_parts(tmp_path / "a", pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]}))
    file = folder / "part-0.parquet"
    assert digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    same = write_parts(tmp_path / "b", pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]}))
    assert digest(folder) == digest(same)
    write_parts(tmp_path / "b", pd.DataFrame({"a": [2]}), pd.DataFrame({"a": [1]}))
    assert digest(folder) != digest(same)


# The model as a file.


def fitted(regression: bool = False) -> tuple[Any, pd.DataFrame]:
    table = tidy(messy())
    final = Ridge() if regression else LogisticRegression(max_iter=1000)
    y = ROWS / 10.0 if regression else np.array(["bad", "good"])[(ROWS % 3 > 0).astype(int)]
    return make_pipeline(table_pipeline(table), final).fit(table, y), table


@pytest.mark.parametrize("regression", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_loaded_model_predicts_bitwise_the_same(tmp_path, regression):
    model, table = fitted(regression)
    skops.io.dump(model, tmp_path / "model.skops")
    untrusted = skops.io.get_untrusted_types(file=tmp_path / "model.skops")
    assert sorted(untrusted) == sorted(model_types())  # no more is trusted than is needed
    loaded: Any = load_model(str(tmp_path / "model.skops"))
    assert loaded is not model
    np.testing.assert_array_equal(loaded[0].transform(table), model[0].transform(table))
    np.testing.assert_array_equal(loaded.predict(table), model.predict(table))
    if not regression:
        np.testing.assert_array_equal(loaded.predict_proba(table), model.predict_proba(table))


def test_new_rows_are_read_as_the_loaded_model_needs_them(tmp_path):
    """From CSV: columns in another order and more of them, codes as numbers, empty columns."""
    model, table = fitted()
    skops.io.dump(model, tmp_path / "model.skops")
    loaded = load_model(tmp_path / "model.skops")
    new = messy().iloc[::-1, ::-1].assign(more="x")
    tidied = tidy(new, like=loaded)
    assert list(tidied.columns) == list(table.columns)
    pd.testing.assert_frame_equal(tidied, table.iloc[::-1])
    new = tidy(new.assign(colour=1, review=np.nan, day=np.nan, when="2026-01-05"), like=loaded)
    assert new["colour"].tolist()[0] == "1"
    assert np.isfinite(loaded[0].transform(new)).all()
    with pytest.raises(
        InputError, match="lack columns that the model was fitted on: 'size', 'day'"
    ):
        tidy(messy().drop(columns=["size", "day"]), like=loaded)
    with pytest.raises(InputError, match=r"'size' holds numbers in the training rows, .*: 'large'"):
        tidy(messy().assign(size="large"), like=loaded)
    offsets = messy().assign(when=["2026-01-01T01:30:00+01:00", "2026-01-01T09:30:00+09:00"] * 30)
    assert set(tidy(offsets, like=loaded)["when"]) == {pd.Timestamp("2026-01-01 00:30")}


def test_a_model_file_of_other_types_is_refused_by_their_names(tmp_path):
    path = tmp_path / "model.skops"
    model, _ = fitted()
    steps = FunctionTransformer(subprocess.getoutput), FunctionTransformer(Path.exists)
    skops.io.dump(make_pipeline(model[0], *steps, model[1]), path)
    with pytest.raises(
        InputError,
        match=r"model.skops holds types that no model of `bilevel weigh` has: .*"
        r"'subprocess.getoutput'.* It is not opened",
    ):
        load_model(path)
    skops.io.dump(model[1], path)
    with pytest.raises(InputError, match="holds a LogisticRegression, not a pipeline"):
        load_model(path)
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(
        InputError,
        match=r"model\.skops is not a skops file, or is damaged \(File is not a zip file",
    ):
        load_model(path)
    with pytest.raises(InputError, match=r"no\.skops does not exist; check the path"):
        load_model(tmp_path / "no.skops")


@pytest.mark.slow
def test_skrub_is_imported_for_columns_that_need_it_only():
    code = (
        "import sys, pandas as pd\n"
        "from bilevel.reweighting._inputs import columns, containers\n"
        "t = pd.DataFrame({'a': [1.0, None], 'b': ['x', 'y']})\n"
        "columns.vectorise({'train': t})\n"
        "assert not {'skrub', 'torch', 'datasets', 'polars'} & sys.modules.keys()\n"
        "columns.vectorise({'train': t.assign(c=['2026-01-01', '2026-01-02'])})\n"
        "assert 'skrub' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
