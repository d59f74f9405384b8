"""The numbers that say whether weights can be believed: formulas and invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bilevel import effective_sample_size, entropy
from bilevel.reweighting._weights.row_weights import row_weights

ROWS = arrays(
    np.float64,
    st.integers(1, 50),
    elements=st.one_of(st.just(0.0), st.floats(1e-6, 1e3)),
).filter(lambda u: u.sum() > 0)


def test_effective_sample_size_of_known_weights():
    assert effective_sample_size(np.ones(7)) == pytest.approx(7, rel=1e-14)
    assert effective_sample_size(np.eye(7)[3]) == 1.0
    assert effective_sample_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(36 / 14, rel=1e-14)


def test_entropy_of_known_weights():
    assert entropy(np.ones(7)) == pytest.approx(np.log(7), rel=1e-14)
    assert entropy(np.eye(7)[3]) == 0.0
    p = np.array([0.2, 0.3, 0.5])
    assert entropy(10 * p) == pytest.approx(-np.sum(p * np.log(p)), rel=1e-13)


def test_float32_weights_are_summed_in_float64():
    assert effective_sample_size(np.full(10**6, 1e-6, np.float32)) == pytest.approx(1e6, rel=1e-9)


@given(ROWS, st.floats(1e-3, 1e3), st.integers(0, 100))
def test_scale_and_order_do_not_matter_and_zeros_count_for_nothing(u, scale, seed):
    moved = np.random.default_rng(seed).permutation(np.r_[scale * u, 0.0])
    assert effective_sample_size(moved) == pytest.approx(effective_sample_size(u), rel=1e-9)
    assert entropy(moved) == pytest.approx(entropy(u), abs=1e-9)


@given(ROWS)
def test_bounds(u):
    rows = np.count_nonzero(u)
    assert 1 - 1e-9 <= effective_sample_size(u) <= rows * (1 + 1e-9)
    assert -1e-9 <= entropy(u) <= np.log(rows) + 1e-9
    # Jensen: the order-2 entropy is never above Shannon's.
    assert np.log(effective_sample_size(u)) <= entropy(u) + 1e-9


def test_row_weights_of_a_long_tail_by_hand():
    u = np.array([0.7, 0.1, 0.1, 0.1, 0.0])
    p = 5 * u
    cap = 0.5 * 5 / (1 / (0.49 + 0.03))
    capped = np.minimum(p, cap)
    weights, trusted = row_weights(u)
    np.testing.assert_allclose(weights, capped * 5 / capped.sum(), rtol=1e-13)
    assert trusted == pytest.approx(cap * 5 / capped.sum(), rel=1e-13)
    assert weights[0] == trusted
    np.testing.assert_array_equal(row_weights(u).keep, weights >= trusted / 2)


def test_row_weights_of_uniform_and_of_equal_or_zero_weights():
    np.testing.assert_allclose(row_weights(np.full(10, 0.1)).weights, np.ones(10), rtol=1e-14)
    assert row_weights(np.full(10, 0.1)).trusted_weight == pytest.approx(1.0, rel=1e-13)
    half = row_weights(np.array([0.2] * 5 + [0.0] * 5))
    np.testing.assert_allclose(half.weights, [2.0] * 5 + [0.0] * 5, rtol=1e-14)
    assert half.trusted_weight == pytest.approx(2.0, rel=1e-13)
    np.testing.assert_array_equal(half.keep, [True] * 5 + [False] * 5)


@given(ROWS, st.floats(1e-3, 1e3), st.integers(0, 100))
def test_row_weights_laws(u, scale, seed):
    weights, trusted = row_weights(u)
    assert weights.mean() == pytest.approx(1.0, rel=1e-12)
    assert weights.max() <= trusted * (1 + 1e-12)
    assert weights.min() >= 0
    assert (weights[u == 0] == 0).all()
    order = np.argsort(u, kind="stable")
    assert (np.diff(weights[order]) >= -1e-12 * trusted).all()  # never reverses two rows
    assert effective_sample_size(weights) >= effective_sample_size(u) * (1 - 1e-9)
    shuffle = np.random.default_rng(seed).permutation(len(u))
    moved = row_weights(scale * u[shuffle])
    np.testing.assert_allclose(moved.weights, weights[shuffle], rtol=1e-9, atol=1e-12)
    assert moved.trusted_weight == pytest.approx(trusted, rel=1e-9)
