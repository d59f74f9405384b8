"""Samplers: every index once an epoch, uniform draws, functional streams, clear refusals."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilevel import Blocks, FromParts, FullBatch, Shuffled, Stream, WithReplacement
from bilevel._bits import bits, fold_in
from bilevel._sampler import _uniform


def draws(sampler, n, num_draws, seed=0):
    """The indices of `num_draws` draws, one row per draw, checked against the data drawn."""
    data = {"x": jnp.arange(n) * 10, "y": jnp.arange(2 * n).reshape(n, 2)}

    def step(state, _):
        batch, state = sampler.draw(data, state)
        return state, batch

    state = sampler.init(data, jr.key(seed))
    _, batches = jax.jit(lambda s: jax.lax.scan(step, s, length=num_draws))(state)
    index = np.asarray(batches.index)
    np.testing.assert_array_equal(np.asarray(batches.data["x"]), index * 10)
    np.testing.assert_array_equal(np.asarray(batches.data["y"])[..., 1], 2 * index + 1)
    return index


@functools.cache
def compiled(size, n, num_draws):
    data = jnp.arange(n)

    def step(state, _):
        batch, state = Shuffled(size).draw(data, state)
        return state, batch.data

    return jax.jit(
        lambda seed: jax.lax.scan(step, Shuffled(size).init(data, jr.key(seed)), length=num_draws)[
            1
        ]
    )


@given(st.sampled_from([(1, 1), (1, 5), (2, 6), (3, 7), (5, 8), (7, 7)]), st.integers(0, 9999))
def test_shuffled_visits_each_index_once_an_epoch(sizes, seed):
    """Divisors, non-divisors and one batch per epoch, whatever the key."""
    size, n = sizes
    epochs = 3
    index = np.asarray(compiled(size, n, -(-epochs * n // size))(seed)).ravel()[: epochs * n]
    for epoch in index.reshape(epochs, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


def test_shuffled_redraws_its_order():
    index = draws(Shuffled(10), 40, 8)
    epochs = index.reshape(2, 40)
    assert np.sum(epochs[0] == epochs[1]) < 10
    assert np.sum(epochs[0] == np.arange(40)) < 10
    other = draws(Shuffled(10), 40, 8, seed=1)
    assert np.sum(other == index) < 20


def test_shuffled_block_size_does_not_change_the_order():
    one, two = draws(Shuffled(3), 10, 10).ravel(), draws(Shuffled(5), 10, 6).ravel()
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("n", [3, 7])
def test_shuffled_positions_are_uniform(n):
    """Every index is at every place of an epoch equally often: (n - 1)^2 degrees of freedom."""
    epochs = 3000
    order = draws(Shuffled(n), n, epochs)
    counts = np.zeros((n, n))
    np.add.at(counts, (np.broadcast_to(np.arange(n), order.shape), order), 1)
    expected = epochs / n
    limit = {3: 23.5, 7: 77.9}[n]  # 99.99 % of chi-squared with 4 and 36 degrees of freedom
    assert np.sum((counts - expected) ** 2 / expected) < limit


def test_with_replacement_positions_are_independent():
    index = draws(WithReplacement(2), 4, 4000)
    pairs = np.bincount(index[:, 0] * 4 + index[:, 1], minlength=16)
    assert np.sum((pairs - 250) ** 2 / 250) < 44.3  # 15 degrees of freedom, 99.99 %
    lagged = np.bincount(index[:-1, 0] * 4 + index[1:, 0], minlength=16)
    expected = len(index[1:]) / 16
    assert np.sum((lagged - expected) ** 2 / expected) < 44.3


@pytest.mark.parametrize("n", [1, 7, 8000, 10**6, 2**31 - 1])
def test_with_replacement_draws_what_jax_draws(n):
    """Its rule, up to the order of the programs; a new rule of JAX would make this fail."""
    key = jr.key(n)
    for kind in (jnp.int32, jnp.int64):
        expected = jr.randint(key, (50,), 0, n, kind)
        np.testing.assert_array_equal(_uniform(key, (50,), n, kind), expected)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_bits_are_those_of_jax(impl):
    key = jr.key(5, impl=impl)
    for data in (0, 7, 2**31 - 1):
        folded = jr.fold_in(key, data)
        assert (jr.key_data(fold_in(key, data)) == jr.key_data(folded)).all()
        for shape, dtype in [((), jnp.uint32), ((3, 5), jnp.uint32), ((7,), jnp.uint64)]:
            np.testing.assert_array_equal(bits(folded, shape, dtype), jr.bits(folded, shape, dtype))


def test_with_replacement_may_exceed_the_number_of_rows():
    index = draws(WithReplacement(7), 2, 3)
    assert index.shape == (3, 7)
    assert set(index.ravel()) == {0, 1}


@pytest.mark.parametrize("sampler", [Shuffled(3), WithReplacement(3)], ids=["S", "W"])
def test_streams_are_functional(sampler):
    data = jnp.arange(10)
    first = Stream(sampler, data, sampler.init(data, jr.key(0)))
    one, following = first.draw()
    again, _ = first.draw()
    two, _ = following.draw()
    np.testing.assert_array_equal(np.asarray(one), np.asarray(again))
    assert not np.array_equal(np.asarray(one), np.asarray(two))


def test_full_batch_is_all_rows_or_nothing():
    data = jnp.arange(4)
    batch, state = FullBatch().draw(data, FullBatch().init(data, jr.key(0)))
    np.testing.assert_array_equal(np.asarray(batch.data), [0, 1, 2, 3])
    assert batch.index is None
    assert state == ()
    assert FullBatch().draw(None, ())[0].data is None


@pytest.mark.parametrize("kind", [Shuffled, WithReplacement])
def test_refusals(kind):
    with pytest.raises(ValueError, match=f"`{kind.__name__}` needs batch_size >= 1, got 0"):
        kind(0)
    with pytest.raises(ValueError, match=f"`{kind.__name__}` draws rows, but the problem has no"):
        kind(2).init(None, jr.key(0))


def test_shuffled_refuses_a_batch_above_the_rows():
    with pytest.raises(ValueError, match="batch_size=5 for 4 rows; use at most 4"):
        Shuffled(5).init(jnp.arange(4), jr.key(0))


def test_blocks_refuse_a_size_that_does_not_divide_the_rows():
    with pytest.raises(
        ValueError, match=r"does not divide 10 rows\. Use one that does \(5 is the "
    ):
        Blocks(4).num_blocks(jnp.arange(10))


@pytest.mark.parametrize("inner", [Shuffled(3), WithReplacement(3)], ids=["S", "W"])
def test_each_part_gives_as_many_rows_by_draws_of_its_own(inner):
    """One of 4 parts of 5 rows draws as its sampler does with its key, and no two draw alike."""
    index = draws(FromParts(inner, 4), 20, 25)
    assert index.shape == (25, 12)
    by_part = index.reshape(25, 4, 3) - 5 * np.arange(4)[:, None]
    for k, key in enumerate(jr.split(jr.key(0), 4)):
        state, rows = inner.init(jnp.arange(5), key), []
        for _ in range(3):
            batch, state = inner.draw(jnp.arange(5), state)
            rows.append(np.asarray(batch.index))
        np.testing.assert_array_equal(by_part[:3, k], rows)
    assert not np.array_equal(by_part[:, 0], by_part[:, 1])
    if isinstance(inner, Shuffled):
        for epoch in np.sort(by_part.transpose(1, 0, 2).reshape(4, 15, 5)):
            np.testing.assert_array_equal(epoch, np.tile(np.arange(5), (15, 1)))


def test_refusals_of_parts():
    with pytest.raises(ValueError, match="`FromParts` needs parts >= 1, got 0"):
        FromParts(Shuffled(1), 0)
    with pytest.raises(TypeError, match="by `Shuffled` or `WithReplacement`, got FullBatch"):
        FromParts(FullBatch(), 2)
    with pytest.raises(ValueError, match="parts=4 does not divide 10 rows"):
        FromParts(Shuffled(2), 4).init(jnp.arange(10), jr.key(0))
    with pytest.raises(ValueError, match="batch_size=6 for 5 rows"):
        FromParts(Shuffled(6), 2).init(jnp.arange(10), jr.key(0))
