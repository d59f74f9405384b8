"""Bad input of `learn_weights`: what the message names, one test each."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bilevel import learn_weights
from bilevel.reweighting._inputs.checks import InputError
from bilevel.reweighting._inputs.prepare import MIN_MAX, prepare

N, M, D = 30, 12, 3


def given(**changes: Any) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """Good data with the changes applied, and the hold-out."""
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {
        "X": rng.normal(size=(N, D)),
        "y": np.arange(N) % 3,
        "X_trusted": rng.normal(size=(M, D)),
        "y_trusted": np.arange(M) % 3,
    }
    holdout = rng.normal(size=(5, D)), np.array([0, 1, 2, 0, 1])
    return {**data, **changes}, changes.pop("holdout", holdout)


def refuse(message: str, error: type[Exception] = InputError, **changes: Any) -> None:
    holdout = changes.pop("holdout", None)
    options = {"holdout": holdout} if holdout is not None else {}
    task = changes.pop("task", "auto")
    data, _ = given(**changes)
    with pytest.raises(error, match=message):
        learn_weights(*data.values(), task=task, method="near-exact", num_steps=1, **options)


def frame(rows: int = N, columns: str = "abc", first: int = 100) -> pd.DataFrame:
    values = np.random.default_rng(1).normal(size=(rows, len(columns)))
    return pd.DataFrame(values, columns=list(columns), index=range(first, first + rows))


def mixed(rows: int = N, first: int = 100) -> pd.DataFrame:
    return frame(rows, first=first).assign(colour="red", day=pd.Timestamp("2026-01-01"))


def test_complex_numbers():
    """Numpy keeps their real parts."""
    complex_rows, few = given()[0]["X"] + 1j, given()[0]["X_trusted"]
    refuse("`X` holds complex numbers; give their real and", X=complex_rows, X_trusted=few)
    table = pd.DataFrame(complex_rows, columns=list("abc"))
    refuse("`X` has non-numeric columns: 'a', 'b', 'c'", X=table, X_trusted=frame(M))


@pytest.mark.parametrize("unit", ["D", "s"])
def test_an_array_of_dates_is_a_table_of_dates_in_whatever_unit(unit):
    days = np.datetime64("2026-01-01") + np.arange(N)[:, None] * np.array([1, 30])
    data, _ = given(X=days, X_trusted=days[:M].astype(f"M8[{unit}]"))
    tables = prepare(*data.values(), task="auto", scaler=None, holdout=None)
    np.testing.assert_array_equal(tables.trusted.features, tables.train.features[:M])
    durations = days - days[0, 0]
    refuse("neither numbers, booleans, dates nor text", X=durations, X_trusted=durations[:M])


def test_zero_rows():
    refuse("`X` has zero rows", X=np.zeros((0, D)), y=np.zeros(0, int))
    refuse("`X_trusted` has zero rows", X_trusted=np.zeros((0, D)), y_trusted=np.zeros(0, int))


def test_not_a_matrix():
    refuse(
        r"`X` has 5 dimensions, shape \(30, 1, 2, 1, 1\): give \(rows, features\), or images",
        X=np.zeros((N, 1, 2, 1, 1)),
        X_trusted=np.zeros((M, 1, 2, 1, 1)),
    )


def test_infinity_with_rows_and_columns():
    X = np.ones((N, D))
    X[[4, 7], 1], X[9, 2] = np.inf, -np.inf
    refuse(r"`X` has infinite values in 3 rows \(ids 4, 7, 9\), columns 1, 2. Make gaps", X=X)
    X[[4, 7], 1] = np.nan
    refuse(r"the X rows have infinite values in the columns 2, rows with ids 9", X=X)
    table = frame()
    table.loc[104, "b"] = -np.inf
    refuse(r"in 1 rows \(ids 104\), columns 'b'", X=table, X_trusted=frame(M, first=500))


@pytest.mark.slow
def test_gaps_in_a_table_are_filled_and_an_infinity_beside_them_is_not():
    trusted = mixed(M, first=500)
    trusted["a"] += 10
    trusted.loc[503, "c"] = np.nan
    data, _ = given(X=mixed(), X_trusted=trusted)
    result = learn_weights(*data.values(), method="near-exact", num_steps=1)
    assert len(result.weights) == N
    trusted.loc[504, "a"] = np.inf
    refuse("infinite values in the columns 'a', rows with ids 504", X=mixed(), X_trusted=trusted)


TREES = HistGradientBoostingClassifier(max_iter=2)
PIPELINE = make_pipeline(SimpleImputer(), LogisticRegression())


@pytest.mark.parametrize("estimator", [None, TREES, PIPELINE], ids=["default", "trees", "pipeline"])
def test_gaps_in_an_array_are_those_of_a_table(estimator):
    """The same numbers for label models and for the estimator; a pipeline gets the array itself."""
    X = np.random.default_rng(0).normal(size=(N + M, D))
    X[::7, 1], y = np.nan, np.arange(N + M) % 3

    def prepared(kind):
        tables = kind(X[:N]), y[:N], kind(X[N:]), y[N:]
        return prepare(*tables, task="auto", scaler=MIN_MAX, holdout=None, estimator=estimator)

    table = prepared(pd.DataFrame)
    for kind in (np.asarray, lambda a: np.where(np.isnan(a), None, a.astype(object))):
        found = prepared(kind)
        np.testing.assert_array_equal(found.train.features, table.train.features)
        np.testing.assert_array_equal(found.trusted.features, table.trusted.features)
        if estimator is not None:
            np.testing.assert_array_equal(np.asarray(found.train.X, float), X[:N])
        assert isinstance(found.train.X, np.ndarray) == (estimator is PIPELINE)
        new = found.encoding.features(kind(X[N:]), "X")
        np.testing.assert_array_equal(new, found.trusted.features)


def test_only_some_of_many_rows_are_named():
    X = np.ones((N, D))
    X[:, 0] = np.inf
    refuse(r"in 30 rows \(ids 0, 1, 2, 3, 4 and 25 more\), columns 0", X=X)


@pytest.mark.slow
def test_non_numeric_columns():
    X = mixed()
    data, _ = given(X=X, X_trusted=X.iloc[:M])
    result = learn_weights(*data.values(), method="near-exact", num_steps=1)
    assert list(result.weights.index) == list(X.index)  # text and dates are used
    pipeline: Any = result.encoding.pipeline
    assert {"categories__colour_red", "numbers__a"} <= set(pipeline.get_feature_names_out())
    text = np.full((N, D), "red")
    refuse("`X` must be a numeric matrix, and cannot be read as numbers", X=text)


def test_missing_labels_with_their_rows():
    y = pd.Series(np.arange(N) % 3, dtype=float)
    y[[2, 5]] = np.nan
    refuse(r"`y` has 2 missing labels, in the rows with ids 2, 5\.", y=y, task="classification")
    named = pd.Series([None, *(["a", "b", "c"] * M)[: M - 1]], dtype=object)
    refuse(
        r"`y_trusted` has 1 missing labels, in the rows with ids 100\.",
        X=frame(),
        y=np.array(["a", "b", "c"] * 10),
        X_trusted=frame(M),
        y_trusted=named,
    )


def test_labels_of_another_length_or_shape():
    refuse(r"`y` must be a vector with one label per row, got shape \(29,\) for 30", y=np.ones(29))
    refuse(r"got shape \(30, 1\) for 30 rows", y=np.ones((N, 1), int))


def test_an_index_in_another_order_and_sparse_matrices():
    y = pd.Series(np.arange(N) % 3, index=range(100, 100 + N))
    refuse(
        "`y` has the index of its rows in another order, and rows are paired by position",
        X=frame(),
        y=y.iloc[::-1],
        X_trusted=frame(M),
    )
    wide = scipy.sparse.csr_array((N, 10**8))
    refuse("`X` is a sparse matrix of shape .* when dense, more than", X=wide, X_trusted=wide[:M])


def test_one_class_only():
    refuse(r"`y` has only one class \(1\); there is nothing to classify", y=np.ones(N, int))


def test_labels_on_one_side_only():
    refuse(
        "the trusted rows have labels that the training rows lack: 7",
        y_trusted=np.array([0, 1, 7] * 4),
    )
    refuse("the training rows have labels that no trusted row has: 2", y_trusted=np.arange(M) % 2)


def test_labels_of_different_kinds():
    words = np.array(["cat", "dog", "cow"] * 10)
    message = r"the labels mix types \(int.*, str.*\) and cannot be compared; convert them all"
    refuse(message, y=words.astype(object))
    refuse("the trusted rows have labels that the training rows lack: 0, 1, 2", y=words)


def test_fewer_trusted_rows_than_classes():
    refuse(
        "there are 2 trusted rows for 3 classes; weights need at least one trusted row per class",
        X_trusted=np.random.default_rng(2).normal(size=(2, D)),
        y_trusted=np.array([0, 1]),
    )


def test_trusted_rows_with_ids_of_training_rows():
    train, trusted = (table.rename_axis("row") for table in (frame(), frame(M, first=118)))
    refuse(
        r"12 training rows have the id of trusted rows \(118, 119, 120, 121, 122 and 7 more\): a row "
        "must not judge itself",
        X=train,
        X_trusted=trusted,
    )


@pytest.mark.parametrize("kinds", [(str, int), (int, str), (float, str), (int, float)])
def test_ids_are_the_same_in_whatever_kind_of_file(kinds):
    """A CSV file has the id "118" where a Parquet file has the number 118."""
    train, trusted = (
        table.set_axis(table.index.astype(kind), axis=0).rename_axis("row")
        for table, kind in zip((frame(), frame(M, first=118)), kinds, strict=True)
    )
    refuse(r"12 training rows have the id of trusted rows", X=train, X_trusted=trusted)


def test_different_columns():
    refuse(
        r"`X_trusted` must have the same columns as `X`, got shapes \(12, 4\) and \(30, 3\)",
        X_trusted=np.zeros((M, 4)),
    )
    refuse(
        "`X_trusted` must have the same columns as `X`: it lacks 'c'; it has 'd', which `X` does not",
        X=frame(),
        X_trusted=frame(M, "abd"),
    )
    refuse(
        "`X_trusted` has the columns of `X` in another order",
        X=frame(),
        X_trusted=frame(M, "abc")[["b", "a", "c"]],
    )


def test_bad_holdout_is_refused_before_the_run():
    rows = np.zeros((5, D))
    refuse("`X_holdout` must have the same columns as `X`", holdout=(np.zeros((5, 4)), np.ones(5)))
    refuse(
        "`y_holdout` has labels that the training rows lack: 9",
        holdout=(rows, np.array([0, 1, 2, 0, 9])),
    )
    refuse(r"`y_holdout` must be a vector .* shape \(4,\) for 5", holdout=(rows, np.ones(4, int)))
    broken = rows.copy()
    broken[1, 0] = np.inf
    refuse(
        r"`X_holdout` has infinite values in 1 rows \(ids 1\)",
        holdout=(broken, np.array([0, 1, 2, 0, 1])),
    )


def test_regression_targets():
    y = np.linspace(0, 1, N)
    infinite = y.copy()
    infinite[[3, 8]] = np.inf
    trusted: dict[str, Any] = {"y_trusted": np.linspace(0, 1, M)}
    refuse("`y` has infinite targets in rows 3, 8", y=infinite, task="regression", **trusted)
    words = np.array(["cat"] * N)
    refuse("`y` must hold numbers for a regression: ", y=words, task="regression", **trusted)
    refuse(
        "`y_trusted` must hold numbers for a regression: ",
        y=y,
        y_trusted=np.array(["cat"] * M),
        task="regression",
    )
    refuse("`y` holds complex numbers", y=y + 1j, task="regression", **trusted)


def test_targets_that_teach_nothing_or_have_no_squares():
    """The mean of equal decimals is a rounding away from them, which was taken for their spread."""
    y, y_trusted = np.linspace(0, 1, N), np.linspace(0, 1, M)
    assert np.std(np.full(M, 0.1)) > 0
    for at_fault in ({"y_trusted": np.full(M, 0.1)}, {"y": np.full(N, 0.1)}):
        name = next(iter(at_fault))
        targets: dict[str, Any] = {"y": y, "y_trusted": y_trusted, **at_fault}
        refuse(rf"all targets of `{name}` are 0\.1; nothing can", task="regression", **targets)
    for scale, message in ((1e-200, "differ by less than 1e-150"), (1e160, r"beyond 1e\+150")):
        scaled: dict[str, Any] = {"y": y * scale, "y_trusted": y_trusted * scale}
        refuse(message, task="regression", **scaled)


@pytest.mark.parametrize(
    ("y", "regression"),
    [
        (np.linspace(0, 1, 100), True),
        (np.arange(100) % 10, False),
        (np.arange(100.0) % 10, False),
        (np.arange(100), True),
        (np.arange(10_000) % 200, False),
        (np.array(["a", "b"] * 50), False),
        (np.array([True, False] * 50), False),
    ],
)
def test_what_auto_takes_for_a_regression(y, regression):
    from bilevel.reweighting._inputs.prepare import is_regression

    assert is_regression("auto", y) is regression
    assert is_regression("regression", y) is True
    assert is_regression("classification", y) is False
