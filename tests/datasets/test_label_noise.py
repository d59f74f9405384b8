import math

import numpy as np
import pytest
from scipy.stats import truncnorm
from sklearn.linear_model import LogisticRegression

from bilevel.datasets import (
    flip_by_features,
    flip_by_matrix,
    flip_to_different,
    flip_to_next,
    redraw_uniform,
)

MODELS = [flip_to_different, redraw_uniform, flip_to_next]
WRONG = [flip_to_different, flip_to_next]  # the models whose every selected label is wrong

each_model = pytest.mark.parametrize("corrupt", MODELS)
each_wrong = pytest.mark.parametrize("corrupt", WRONG)


def digits(n: int = 10_000) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 10, n).astype(np.uint8)


def within(count: float, n: int, p: float, sigmas: float = 4.5) -> bool:
    """Is a binomial(n, p) count within 4.5 standard deviations (wrong in 7 of a million seeds)?"""
    return abs(count - n * p) <= sigmas * math.sqrt(n * p * (1 - p))


@each_wrong
@pytest.mark.parametrize("n", [1, 2, 7, 1000, 8000])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_exactly_rate_n_labels_are_wrong(corrupt, n, rate):
    y = digits(n)
    noisy, changed = corrupt(y, rate, seed=0, classes=range(10))
    assert changed.sum() == round(rate * n)
    np.testing.assert_array_equal(noisy != y, changed)


def test_redrawn_labels_are_uniform_over_all_classes():
    noisy = redraw_uniform(np.full(20_000, 4), 1.0, seed=0, classes=range(10)).labels
    assert all(within(count, 20_000, 1 / 10) for count in np.bincount(noisy, minlength=10).tolist())


def test_different_labels_are_uniform_over_the_other_classes():
    noisy = flip_to_different(np.full(18_000, 4), 1.0, seed=0, classes=range(10)).labels
    counts = np.bincount(noisy, minlength=10)
    assert counts[4] == 0
    assert all(within(int(count), 18_000, 1 / 9) for count in np.delete(counts, 4))


@each_model
def test_rows_are_selected_uniformly(corrupt):
    # 400 seeds, 50 rows, half of them selected: each row about 200 times.
    y = np.arange(50) % 5
    times = np.sum([corrupt(y, 0.5, seed=seed).changed for seed in range(400)], axis=0)
    p = 0.5 * (0.8 if corrupt is redraw_uniform else 1.0)
    assert all(within(count, 400, p) for count in times)


def test_next_is_the_next_class_and_the_last_goes_to_the_first():
    y = digits()
    noisy, changed = flip_to_next(y, 0.4, seed=0)
    np.testing.assert_array_equal(noisy[changed], (y[changed] + 1) % 10)


def test_next_follows_the_order_of_classes():
    y = ["low", "mid", "high", "low"]
    assert flip_to_next(y, 1.0, seed=0).labels.tolist() == [
        "mid",
        "high",
        "low",
        "mid",
    ]  # h < l < m
    ordered = flip_to_next(y, 1.0, seed=0, classes=["low", "high", "mid"])
    assert ordered.labels.tolist() == ["high", "low", "mid", "high"]


def test_one_seed_selects_the_same_rows_in_every_model():
    y = digits()
    different, redrawn, following = (corrupt(y, 0.5, seed=11).changed for corrupt in MODELS)
    np.testing.assert_array_equal(different, following)
    assert not np.any(redrawn & ~different)


@each_model
def test_reproducible(corrupt):
    y = digits()
    first, again, other = (corrupt(y, 0.5, seed=seed).labels for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.3


@each_model
def test_a_generator_is_used_and_advanced(corrupt):
    y, rng = digits(), np.random.default_rng(0)
    first, second = corrupt(y, 0.5, seed=rng).labels, corrupt(y, 0.5, seed=rng).labels
    np.testing.assert_array_equal(first, corrupt(y, 0.5, seed=0).labels)
    assert np.mean(first != second) > 0.3


@each_model
def test_the_input_is_not_modified(corrupt):
    y = digits()
    before = y.copy()
    y.setflags(write=False)
    noisy = corrupt(y, 0.9, seed=0).labels
    np.testing.assert_array_equal(y, before)
    assert not np.shares_memory(noisy, y)


@each_model
@pytest.mark.parametrize(
    "y",
    [
        np.array([0, 1, 2, 9] * 50, np.uint8),
        np.array([-1, 1] * 50, np.int64),
        np.array([0.5, 1.5, -2.0] * 50, np.float32),
        np.array([True, False] * 50),
        np.array(["cat", "horse", "ox"] * 50),
        np.array([b"cat", b"ox"] * 50),
        np.array(["cat", "horse", "ox"] * 50, object),
    ],
    ids=lambda y: str(y.dtype),
)
def test_any_label_type_keeps_its_dtype_and_its_classes(corrupt, y):
    noisy, changed = corrupt(y, 0.8, seed=0)
    assert noisy.dtype == y.dtype
    assert set(noisy.tolist()) == set(y.tolist())
    np.testing.assert_array_equal(changed, noisy != y)
    assert np.all(corrupt(y, 0.0, seed=0).labels == y)


def test_lists_and_pandas_columns():
    pd = pytest.importorskip("pandas")
    y = ["cat", "dog", "cat", "ox"] * 25
    expected = flip_to_different(y, 0.5, seed=0).labels.tolist()
    for column in (pd.Series(y), pd.Series(y, dtype="category"), pd.Series(y, dtype="string")):
        assert flip_to_different(column, 0.5, seed=0).labels.tolist() == expected


def test_classes_that_do_not_occur_are_used_and_keep_the_labels_dtype():
    noisy = flip_to_different(np.zeros(1000, np.uint8), 1.0, seed=0, classes=range(10)).labels
    assert noisy.dtype == np.uint8
    assert set(noisy.tolist()) == set(range(1, 10))


def test_a_class_name_longer_than_every_label_is_not_cut():
    noisy = flip_to_next(["a", "b"], 1.0, seed=0, classes=["a", "rhinoceros", "b"]).labels
    assert noisy.tolist() == ["rhinoceros", "a"]


def test_no_rows():
    for corrupt in MODELS:
        noisy, changed = corrupt(np.zeros(0, np.int64), 1.0, seed=0, classes=[0, 1])
        assert noisy.shape == changed.shape == (0,)


REFUSED = {
    "rate above 1": ([0, 1], 1.5, None, r"rate must be in \[0, 1\].* got 1.5"),
    "rate below 0": ([0, 1], -0.1, None, r"rate must be in \[0, 1\].* got -0.1"),
    "rate in per cent": ([0, 1], 90.0, None, r"got 90.0"),
    "rate NaN": ([0, 1], math.nan, None, r"got nan"),
    "one class": ([3, 3], 0.5, None, r"at least 2 distinct .* got \[3\] \(those that occur"),
    "no rows, no classes": ([], 0.5, None, r"at least 2 distinct values .* got \[\]"),
    "class twice": ([0, 1], 0.5, [0, 1, 1], r"at least 2 distinct values .* got \[0, 1, 1\]"),
    "classes in a matrix": ([0, 1], 0.5, [[0, 1]], r"in one list; got \[\[0, 1\]\]"),
    "unknown label": ([0, 1, 5], 0.5, [0, 1], r"1 of the labels .* \[0, 1\]; the first is 5"),
    "NaN label": ([0.0, math.nan], 0.5, None, r"1 of the labels .* the first is nan"),
    "matrix of labels": ([[0, 1], [1, 0]], 0.5, None, r"shape \(n,\).* got \(2, 2\)"),
    "wide class": (
        np.array([0, 1], np.uint8),
        0.5,
        [0, 300],
        r"\[0, 300\] cannot be held .* uint8",
    ),
    "text class": ([0, 1], 0.5, ["a", "b"], r"\['a', 'b'\] cannot be held .* int64"),
    "number class": (["a", "b"], 0.5, [0, 1], r"\[0, 1\] cannot be held .* <U1"),
}


@each_model
@pytest.mark.parametrize("case", REFUSED)
def test_wrong_calls_are_refused(corrupt, case):
    y, rate, classes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        corrupt(y, rate, seed=0, classes=classes)


@each_model
def test_labels_without_an_order_are_refused(corrupt):
    with pytest.raises(TypeError, match=r"cannot be sorted into classes.*one type"):
        corrupt(np.array([1, "a", None], object), 0.5, seed=0)


def test_noise_that_depends_on_the_features():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(6000, 4)), np.arange(6000) % 3
    noisy, changed = flip_by_features(X, y, 0.4, seed=1)
    np.testing.assert_array_equal(changed, noisy != y)
    assert abs(changed.mean() - 0.4) < 0.025
    again, _ = flip_by_features(X, y, 0.4, seed=1)
    np.testing.assert_array_equal(again, noisy)
    # Which wrong class it is can be told from the features: here by a linear rule, for one class.
    some = changed & (y == 0)
    model = LogisticRegression().fit(X[some], noisy[some])
    assert model.score(X[some], noisy[some]) > 0.7
    # With labels drawn to any other class it cannot.
    drawn, moved = flip_to_different(y, 0.4, seed=1)
    some = moved & (y == 0)
    assert LogisticRegression().fit(X[some], drawn[some]).score(X[some], drawn[some]) < 0.6


def test_noise_by_features_refuses_other_rows():
    with pytest.raises(ValueError, match=r"finite matrix with a row a label \(3\), got \(2, 1\)"):
        flip_by_features(np.zeros((2, 1)), [0, 1, 2], 0.1, seed=0)
    with pytest.raises(ValueError, match="rate must be in"):
        flip_by_features(np.zeros((2, 1)), [0, 1], 1.1, seed=0)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 0.9, 1.0])
def test_the_rate_of_noise_by_features(rate):
    # The mean of N(rate, 0.1^2) given [0, 1], which its docstring tells for some of these.
    expected = float(truncnorm(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1).mean())
    told = {0.0: 0.080, 0.1: 0.129, 0.2: 0.2055, 0.5: 0.5, 0.9: 1 - 0.129, 1.0: 1 - 0.080}
    assert expected == pytest.approx(told[rate], abs=6e-4)
    X, y = np.random.default_rng(0).normal(size=(20_000, 3)), digits(20_000)
    assert within(int(flip_by_features(X, y, rate, seed=2).changed.sum()), 20_000, expected)


# ---- class-conditional noise --------------------------------------------------------------------

T = np.array([[0.7, 0.3, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 0]])


def test_each_class_follows_its_row_of_the_matrix():
    y = np.arange(40_000) % 4
    noisy, changed = flip_by_matrix(y, T, seed=0)
    np.testing.assert_array_equal(changed, noisy != y)
    for j in range(4):
        counts = np.bincount(noisy[y == j], minlength=4)
        for k in range(4):
            if T[j, k] in (0, 1):
                assert counts[k] == T[j, k] * 10_000
            else:
                assert within(int(counts[k]), 10_000, T[j, k])


def test_the_matrix_follows_the_order_of_classes():
    matrix = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    y = ["low", "mid", "high"]
    ordered = flip_by_matrix(y, matrix, seed=0, classes=["low", "mid", "high"])
    assert ordered.labels.tolist() == ["mid", "high", "low"]
    assert flip_by_matrix(y, matrix, seed=0).labels.tolist() == ["mid", "high", "low"]
    assert flip_by_matrix(y, matrix, seed=0, classes=["mid", "low", "high"]).labels.tolist() == [
        "high",
        "low",
        "mid",
    ]


def test_noise_by_matrix_is_reproducible_and_leaves_its_input():
    y = digits().astype(np.int32)
    y.setflags(write=False)
    matrix = np.full((10, 10), 0.1)
    first, again, other = (flip_by_matrix(y, matrix, seed=s).labels for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first != other) > 0.8
    assert first.dtype == np.int32
    empty = flip_by_matrix(np.zeros(0, np.int64), np.eye(2), seed=0, classes=[0, 1])
    assert empty.labels.shape == empty.changed.shape == (0,)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), r"for each of the 2 classes \[0, 1\]; got shape \(3, 3\)"),
        ([0.5, 0.5], r"got shape \(2,\)"),
        ([[1, 0], [0.2, 0.7]], r"of sum 1; row 1 is \[0\.2, 0\.7\]"),
        ([[1.5, -0.5], [0, 1]], r"row 0 is \[1\.5, -0\.5\]"),
        ([[1, 0], [math.nan, 1]], r"row 1 is \[nan, 1\.0\]"),
        ([[0.9, 0.4], [0.1, 0.6]], r"row 0 .*Are rows and columns exchanged\?"),
    ],
)
def test_a_matrix_that_holds_no_probabilities_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        flip_by_matrix([0, 1, 0], matrix, seed=0)


def test_noise_by_matrix_refuses_wrong_labels_like_the_other_models():
    with pytest.raises(ValueError, match="at least 2 distinct values"):
        flip_by_matrix([3, 3], [[1]], seed=0)
    with pytest.raises(TypeError, match="cannot be sorted into classes"):
        flip_by_matrix(np.array([1, "a", None], object), np.eye(3), seed=0)
