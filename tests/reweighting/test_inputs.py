"""Inputs of every kind: what they become, what comes back, and what is refused and how."""

import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse

from bilevel.reweighting._inputs.checks import InputError, densify
from bilevel.reweighting._inputs.columns import tidy, vectorise
from bilevel.reweighting._inputs.containers import (
    as_internal,
    as_rows,
    feature_rows,
    image_shape,
    like,
    split_dataset,
)

VALUES = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]])
RESULT = np.array([0.5, 2.0, 0.0])


class Tensor:
    """What we use of a torch tensor."""

    def __init__(self, values: Any, device="cuda:0", requires_grad=True, dtype="torch.float32"):
        self.values, self.device, self.dtype = np.asarray(values), device, dtype
        self.requires_grad = requires_grad

    @property
    def shape(self):
        return self.values.shape

    def detach(self):
        return Tensor(self.values, self.device, False, self.dtype)

    def cpu(self):
        return Tensor(self.values, "cpu", self.requires_grad, self.dtype)

    def float(self):
        return Tensor(self.values.astype(np.float32), self.device, self.requires_grad)

    def numpy(self):
        if self.requires_grad or self.device != "cpu" or self.dtype == "torch.bfloat16":
            raise TypeError("can't convert it to numpy.")
        return self.values

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("the detached tensor on the CPU is what is to be read")


class Parameter(Tensor):
    """Of a class of its own, as in torch."""


@pytest.fixture
def torch(monkeypatch) -> ModuleType:
    module: Any = ModuleType("torch")
    module.Tensor = Tensor
    module.as_tensor = lambda values, device: Tensor(values, device, False, f"torch.{values.dtype}")
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def frame(index: Any = (7, 8, 9)) -> pd.DataFrame:
    return pd.DataFrame(VALUES, columns=["a", "b"], index=list(index))


def test_pandas_passes_through_and_numpy_is_not_copied():
    table, array = frame(), VALUES
    assert as_internal(table, "X") is table
    series = table["a"]
    assert as_internal(series, "y") is series
    assert np.shares_memory(np.asarray(as_internal(array, "X")), array)


def test_lists_and_masked_arrays_become_arrays():
    np.testing.assert_array_equal(as_internal([[1, 2], [3, 4]], "X"), [[1, 2], [3, 4]])
    assert np.asarray(as_internal(["a", "b"], "y")).tolist() == ["a", "b"]
    masked = np.ma.masked_array([[1, 2], [3, 4]], mask=np.array([[0, 1], [0, 0]], bool))
    np.testing.assert_array_equal(as_internal(masked, "X"), [[1, np.nan], [3, 4]])


@pytest.mark.parametrize("kind", ["polars", "lazy", "pyarrow", "batch", "pandas-arrow"])
def test_tables_of_other_libraries_become_pandas(kind):
    columns = {"a": [1.0, 3.0, 5.0], "b": [2, None, 6], "c": ["x", None, "y"]}
    given: Any = {
        "polars": lambda: pl.DataFrame(columns),
        "lazy": lambda: pl.LazyFrame(columns),
        "pyarrow": lambda: pa.table(columns),
        "batch": lambda: pa.RecordBatch.from_pydict(columns),
        "pandas-arrow": lambda: pa.table(columns).to_pandas(types_mapper=pd.ArrowDtype),
    }[kind]()
    table = tidy(pd.DataFrame(feature_rows(given, "X")))
    assert list(table.columns) == ["a", "b", "c"]
    assert list(table.index) == [0, 1, 2]
    np.testing.assert_array_equal(table[["a", "b"]].to_numpy(), VALUES)
    assert table["c"].tolist()[::2] == ["x", "y"]
    assert pd.isna(table["c"].iloc[1])


@pytest.mark.parametrize(
    "given",
    [pl.Series([1, 0, 2]), pa.chunked_array([[1, 0], [2]]), pa.array([1, 0, 2])],
    ids=["polars", "chunked", "array"],
)
def test_series_of_other_libraries_become_pandas(given):
    series = as_internal(given, "y")
    assert isinstance(series, pd.Series)
    assert series.tolist() == [1, 0, 2]


def test_dates_and_decimals_of_arrow_and_polars_are_used():
    import datetime
    import decimal

    days = [datetime.date(2026, 1, 1), None, datetime.date(2026, 1, 3)]
    prices = [decimal.Decimal("1.25"), None, decimal.Decimal("2.5")]
    for given in (
        pa.table({"day": days, "price": prices}),
        pl.DataFrame({"day": days, "price": prices}),
    ):
        table = tidy(pd.DataFrame(feature_rows(given, "X")))
        np.testing.assert_array_equal(table["price"], [1.25, np.nan, 2.5])
        assert table["day"].tolist()[::2] == [pd.Timestamp(days[0]), pd.Timestamp(days[2])]
        assert pd.isna(table["day"].iloc[1])


def test_torch_tensors_are_detached_and_copied_to_the_host(torch):
    np.testing.assert_array_equal(feature_rows(Tensor(VALUES), "X"), VALUES)
    np.testing.assert_array_equal(feature_rows(Parameter(VALUES), "X"), VALUES)
    half = feature_rows(Tensor(VALUES, dtype="torch.bfloat16"), "X")
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, VALUES)

    class Sparse(Tensor):
        def detach(self):
            return self

        def cpu(self):
            return self

    with pytest.raises(InputError, match="`X` is a torch tensor that cannot be made a numpy array"):
        as_internal(Sparse(VALUES), "X")


def test_tensors_of_torch_itself():
    """Where it is installed, which no extra of this project does; the stand-in above is everywhere."""
    torch = pytest.importorskip("torch")
    values = torch.tensor(VALUES, requires_grad=True)
    np.testing.assert_array_equal(feature_rows(values, "X"), VALUES)
    np.testing.assert_array_equal(feature_rows(values.to(torch.bfloat16), "X"), VALUES)
    weights = like(RESULT, values, "weights")
    assert isinstance(weights, torch.Tensor)
    np.testing.assert_array_equal(weights.numpy(), RESULT)
    with pytest.raises(InputError, match="`X` is a torch tensor that cannot be made a numpy array"):
        feature_rows(torch.eye(3).to_sparse(), "X")


def test_jax_arrays_become_numpy():
    values = as_internal(jnp.arange(6.0).reshape(3, 2), "X")
    assert type(values) is np.ndarray
    np.testing.assert_array_equal(values, [[0, 1], [2, 3], [4, 5]])


def test_sparse_matrices_become_csr():
    for make in (scipy.sparse.coo_array, scipy.sparse.csc_matrix, scipy.sparse.lil_array):
        matrix = feature_rows(make([[1.0, 0], [0, 2]]), "X")
        assert matrix.format == "csr"
        np.testing.assert_array_equal(matrix.toarray(), [[1, 0], [0, 2]])
    with pytest.raises(InputError, match=r"`X` is a sparse array of shape \(2,\); give a matrix"):
        as_internal(scipy.sparse.coo_array([1.0, 2.0]), "X")


def test_densify_refuses_what_is_too_large():
    matrix = scipy.sparse.csr_array([[1.0, 0], [0, 2]])
    np.testing.assert_array_equal(densify(matrix, "X"), [[1, 0], [0, 2]])
    assert densify(VALUES, "X") is VALUES
    assert densify(matrix, "X", limit_bytes=32).shape == (2, 2)
    with pytest.raises(InputError, match=r"takes 0\.0 GB when dense, more than 3\.1e-08 GB"):
        densify(matrix, "X", limit_bytes=31)
    huge = scipy.sparse.csr_array((100_000, 50_000), dtype=np.float32)
    with pytest.raises(
        InputError,
        match=r"`X_trusted` is a sparse matrix of shape \(100000, 50000\), which takes 20.0 GB when "
        r"dense, more than 2 GB. Reduce it first: `sklearn.decomposition.TruncatedSVD",
    ):
        densify(huge, "X_trusted")


def test_images_become_rows_of_pixels():
    images = np.arange(24).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(feature_rows(images, "X"), np.arange(24).reshape(2, 12))
    assert image_shape(images) == (2, 2, 3)
    assert image_shape(jnp.zeros((5, 8, 9))) == (8, 9)
    assert image_shape(VALUES) is None
    assert image_shape(frame()) is None
    assert image_shape([[1, 2]]) is None


def test_npy_files_are_mapped_and_nothing_is_unpickled(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(12.0).reshape(3, 2, 2))
    for given in (path, str(path)):
        mapped = feature_rows(given, "X")
        assert isinstance(mapped, np.memmap)
        assert not mapped.flags.writeable
        np.testing.assert_array_equal(mapped, np.arange(12.0).reshape(3, 4))
        assert image_shape(given) == (2, 2)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    message = r"the `X` file .*x.npy cannot be mapped as an array of numbers: .*np.save"
    with pytest.raises(InputError, match=message):
        as_internal(path, "X")
    np.savez(tmp_path / "y.npz", a=VALUES)
    (tmp_path / "y.npz").rename(tmp_path / "y.npy")
    for content in ((tmp_path / "y.npy").read_bytes(), b"", b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            as_internal(path, "X")
    with pytest.raises(InputError, match=r"the `y` file .*no\.npy does not exist; check the path"):
        as_internal(tmp_path / "no.npy", "y")


def test_paths_of_tables_become_data_frames(tmp_path):
    frame().to_csv(tmp_path / "x.csv", index=False)
    pd.testing.assert_frame_equal(
        feature_rows(str(tmp_path / "x.csv"), "X"), frame().reset_index(drop=True)
    )
    (tmp_path / "parts").mkdir()
    frame().iloc[:2].to_parquet(tmp_path / "parts" / "1.parquet")
    frame().iloc[2:].to_parquet(tmp_path / "parts" / "2.parquet")
    pd.testing.assert_frame_equal(feature_rows(tmp_path / "parts", "X"), frame())
    X, y = as_rows(tmp_path / "parts", "b")
    pd.testing.assert_frame_equal(X, frame().drop(columns="b"))
    pd.testing.assert_series_equal(y, pd.Series(frame()["b"]))
    np.savez(tmp_path / "x.npz", a=VALUES)
    with pytest.raises(
        InputError, match=r"the `X` file .*x\.npz ends in '\.npz'; the formats read"
    ):
        as_internal(tmp_path / "x.npz", "X")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones(3), r"`X` has one dimension, shape \(3,\): .* `.reshape\(-1, 1\)`"),
        (pd.Series([1, 2]), r"`X` has one dimension, shape \(2,\)"),
        (["one text", "another"], r"a table by `pd.DataFrame\(\{'text': ...\}\)`"),
        (np.ones((2, 2, 2, 2, 2)), r"`X` has 5 dimensions, shape \(2, 2, 2, 2, 2\): give \(rows"),
        ({"a": [1, 2]}, "`X` is a dict, which has no rows. Give an array, a data frame"),
        (None, "`X` is a NoneType, which has no rows"),
        (3, "`X` is a int, which has no rows"),
        ([[1, 2], [3], [4, 5], 6], "a list whose rows differ in length: rows 1, 3 differ from the"),
    ],
)
def test_what_has_no_rows_of_features_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        feature_rows(given, "X")


def test_arrays_on_a_device_are_refused_with_advice():
    class OnDevice:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    with pytest.raises(InputError, match=r"`X` is a OnDevice, which numpy cannot read: Implicit"):
        as_internal(OnDevice(), "X")


def test_labels_by_the_name_of_their_column():
    X, y = as_rows(pl.DataFrame({"a": [1, 2], "label": ["u", "v"]}), "label")
    assert list(X.columns) == ["a"]
    assert y.tolist() == ["u", "v"]
    with pytest.raises(
        InputError, match=r"`X` has no column 'lable'; did you mean 'label'\? Its col"
    ):
        as_rows(pa.table({"a": [1, 2], "label": ["u", "v"]}), "lable")
    with pytest.raises(InputError, match="`X` has no column besides the label 'label'"):
        as_rows(pd.DataFrame({"label": ["u", "v"]}), "label")
    with pytest.raises(InputError, match="`y` is 'label', the name of a column, but `X` is no tab"):
        as_rows(VALUES, "label")


def test_results_come_back_as_the_rows_came(torch):
    series = like(RESULT, frame(), "weight")
    pd.testing.assert_series_equal(series, pd.Series(RESULT, [7, 8, 9], name="weight"))
    pd.testing.assert_series_equal(like(RESULT, frame()["a"], "weight"), series)

    for given in (pl.DataFrame(VALUES), pl.LazyFrame(VALUES), pl.Series([1, 2, 3])):
        back = like(RESULT, given, "weight")
        assert isinstance(back, pl.Series)
        assert (back.name, back.dtype, back.to_list()) == ("weight", pl.Float64, RESULT.tolist())

    table = pa.table({"a": [1, 2, 3]})
    for given, kind in [
        (table, pa.ChunkedArray),
        (table["a"], pa.ChunkedArray),
        (pa.array([1, 2, 3]), pa.Array),
        (table.to_batches()[0], pa.Array),
    ]:
        back = like(RESULT, given, "weight")
        assert isinstance(back, kind)
        assert (back.type, back.to_pylist()) == (pa.float64(), RESULT.tolist())

    back = like(RESULT, Tensor(VALUES), "weight")
    assert isinstance(back, Tensor)
    assert (back.device, back.dtype) == ("cuda:0", "torch.float64")
    np.testing.assert_array_equal(back.values, RESULT)

    back = like(RESULT, jnp.zeros((3, 2)), "weight")
    assert isinstance(back, jax.Array)
    np.testing.assert_array_equal(back, RESULT)

    for given in (VALUES, VALUES.tolist(), scipy.sparse.csr_array(VALUES), "x.npy"):
        back = like(RESULT, given, "weight")
        assert type(back) is np.ndarray
        np.testing.assert_array_equal(back, RESULT)


def test_masks_and_labels_come_back_too(torch):
    mask, labels = np.array([True, False, True]), np.array(["a", "b", "c"])
    assert like(mask, pl.DataFrame(VALUES), "keep").to_list() == [True, False, True]
    assert like(labels, pl.DataFrame(VALUES), "label").to_list() == ["a", "b", "c"]
    assert like(labels.astype(object), pa.table({"a": [1, 2, 3]}), "label").to_pylist() == [*"abc"]
    assert like(mask, jnp.zeros(3), "keep").dtype == bool
    for given in (Tensor(VALUES), jnp.zeros(3)):  # neither holds text
        assert like(labels, given, "label") is labels


@pytest.fixture(scope="module")
def hf() -> Any:
    datasets = pytest.importorskip("datasets")
    if not hasattr(datasets, "Dataset"):  # the folder tests/datasets has the same name
        pytest.skip("Hugging Face's datasets is not installed")
    datasets.disable_progress_bars()
    return datasets


def sentiment(hf, **more: Any):
    """Three rows: a text, a class label of which one is unknown, and more columns."""
    label = hf.ClassLabel(names=["neg", "pos"])
    columns = {"text": ["good one", "bad", "fine"], "label": [1, 0, -1]}
    features = {"text": hf.Value("string"), "label": label}
    columns |= {name: values for name, (values, _) in more.items()}
    features |= {name: feature for name, (_, feature) in more.items()}
    return hf.Dataset.from_dict(columns, features=hf.Features(features))


def test_hugging_face_datasets_with_class_labels(hf):
    data = sentiment(hf, source=([0, 1, 0], hf.ClassLabel(names=["web", "book"])))
    X, y = split_dataset(data.select([2, 0, 1]), "label")
    assert X["text"].tolist() == ["fine", "good one", "bad"]
    assert X["source"].tolist() == ["web", "web", "book"]
    assert y.name == "label"
    assert y.tolist()[1:] == ["pos", "neg"]
    assert pd.isna(y.iloc[0])
    assert as_rows(data, "label")[0].equals(split_dataset(data, "label")[0])
    assert type(like(RESULT, data, "weight")) is np.ndarray
    with pytest.raises(
        InputError, match=r"`X` has no column 'labels'; did you mean 'label'\? Its col"
    ):
        split_dataset(data, "labels")


def test_hugging_face_embeddings_and_images_become_matrices(hf):
    vectors = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    data = sentiment(hf, emb=(vectors.tolist(), hf.List(hf.Value("float64"))))
    X, y = split_dataset(data.remove_columns("text"), "label")
    np.testing.assert_array_equal(X, vectors)
    assert y.tolist()[:2] == ["pos", "neg"]
    X, _ = split_dataset(data, "label")
    np.testing.assert_array_equal(tidy(X)[["emb_0", "emb_1"]].to_numpy(), vectors)

    pixels = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4)
    data = sentiment(hf, im=(pixels.tolist(), hf.Array2D((2, 4), "float32")))
    X, _ = as_rows(data.remove_columns("text"), "label")
    np.testing.assert_array_equal(X, pixels.reshape(3, 8))
    assert image_shape(data) == (2, 4)
    assert image_shape(data.remove_columns("im")) is None


def test_hugging_face_pictures(hf):
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    pictures = [image.fromarray(p) for p in pixels]
    data = sentiment(hf, picture=(pictures, hf.Image()))
    X, _ = as_rows(data.remove_columns("text"), "label")
    np.testing.assert_array_equal(X, pixels.reshape(3, 12))
    assert image_shape(data) == (2, 2, 3)
    pictures[1] = image.new("RGB", (3, 2))
    with pytest.raises(
        InputError,
        match=r"the column 'picture' of `X` differ in shape \(\(2, 2, 3\), \(2, 3, 3\)\)",
    ):
        as_rows(sentiment(hf, picture=(pictures, hf.Image())), "label")


def test_a_dataset_that_still_holds_the_labels_is_refused(hf):
    data = sentiment(hf).select([0, 1])
    message = "the dataset holds the labels, as its column 'label', and .* Say `y='label'`"
    for y in ([1, 0], ["pos", "neg"], data["label"], np.array([1, 0], np.int8)):
        with pytest.raises(InputError, match=message):
            as_rows(data, y)
    X, y = as_rows(data.remove_columns("label"), data["label"])
    assert list(X.columns) == ["text"]
    np.testing.assert_array_equal(y, [1, 0])


def test_dictionaries_and_streams_of_datasets_are_refused(hf):
    data = sentiment(hf)
    with pytest.raises(
        InputError, match=r"dictionary of the datasets 'train', 'test' \(give one of"
    ):
        as_internal(hf.DatasetDict({"train": data, "test": data}), "X")
    with pytest.raises(InputError, match=r"a streamed dataset \(load it with `streaming=False`\)"):
        as_internal(data.to_iterable_dataset(), "X")


def test_a_table_of_every_kind_of_column_becomes_numbers():
    rows = np.arange(60)
    table = pl.DataFrame(
        {
            "size": rows / 2,
            "colour": np.array(["red", "blue"])[rows % 2],
            "review": [f"the {i}th film was {'good' if i % 3 else 'bad'}" for i in rows],
            "emb": np.stack([rows, -rows], axis=1).astype(float),
        }
    )
    X = pd.DataFrame(feature_rows(table, "X"))
    _, _, matrices = vectorise({"X": X, "X_trusted": X.iloc[:5]})
    assert matrices["X"].shape == (60, 1 + 2 + 30 + 2)
    np.testing.assert_array_equal(matrices["X_trusted"], matrices["X"][:5])
    assert matrices["X"].min() >= 0
    np.testing.assert_allclose(matrices["X"].max(axis=0), 1, rtol=1e-6)


@pytest.mark.parametrize("kind", ["pandas", "pyarrow"])
def test_repeated_names_of_columns_are_refused_by_name(kind):
    values = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    table = pa.table(values, names=["a", "b", "a"])
    with pytest.raises(InputError, match=r"`X` has repeated column names.*'a'"):
        feature_rows(table if kind == "pyarrow" else table.to_pandas(), "X")
