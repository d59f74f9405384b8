"""Mixtures of sources: unbiased batches, a closed form of the best mixture, refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel._fingerprint import fingerprint
from bilevel.tasks import draw_by_source, draw_mixture, mixture, uniform_weights

SOURCES = [np.array([0.0, 0.2]), np.array([1.0, 1.4, 1.2]), np.array([5.0])]
MEANS = np.array([0.1, 1.2, 5.0])


def squared(w, x):
    return 0.5 * (w - x) ** 2


def test_objectives_are_their_formulas():
    problem = mixture(squared, l2=0.5)
    u, w, batch = jnp.array([0.2, 0.5, 0.3]), jnp.array(2.0), jnp.arange(6.0).reshape(3, 2)
    x = np.arange(6.0).reshape(3, 2)
    expected = np.sum([0.2, 0.5, 0.3] * (0.5 * (2 - x) ** 2).mean(1)) + 0.25 * 4
    assert float(problem.inner(u, w, batch)) == pytest.approx(expected, abs=1e-14)
    assert float(problem.outer(u, w, batch[0])) == pytest.approx((4 + 1) / 4, abs=1e-14)


def test_the_hypergradient_is_the_closed_form():
    """w*(u) = <u, means> on the simplex: dPhi/du_s = (w* - target) (mean_s - w*) / 1."""
    problem = mixture(squared, trusted=jnp.array([0.4]), sources=jnp.asarray(MEANS)[:, None])
    u = jnp.array([0.5, 0.3, 0.2])
    w = u @ jnp.asarray(MEANS)
    found = bilevel.implicit_gradient(problem, u, w, bilevel.CG(rtol=1e-12)).grad
    expected = (float(w) - 0.4) * (MEANS - float(w))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)


def test_a_stream_finds_the_mixture_whose_mean_is_the_targets():
    """Batches of both levels from the host. Of the many such mixtures it finds one."""
    problem = mixture(squared)
    method = bilevel.AmIGO(
        0.3,
        0.3,
        0.3,
        num_inner=3,
        num_linear=1,
        inner_sampler=bilevel.FromLoader(draw_by_source(SOURCES, 4), 12),
        outer_sampler=bilevel.FromLoader(draw_mixture([np.array([0.7, 0.8])], [1.0], 2), 12),
    )
    start = uniform_weights(3), jnp.zeros(())
    solution = bilevel.solve(problem, method, *start, num_steps=400, trace_every=400)
    assert float(jnp.dot(solution.u, jnp.asarray(MEANS))) == pytest.approx(0.75, abs=0.05)
    assert float(solution.w) == pytest.approx(0.75, abs=0.1)


def test_batches_by_source():
    """Each source's rows in its place, uniformly; a start in the middle is the same stream."""
    first = list(itertools.islice(draw_by_source(SOURCES, 50, seed=3)(0), 40))
    assert first[0].shape == (3, 50)
    for k, source in enumerate(SOURCES):
        values, counts = np.unique([x[k] for x in first], return_counts=True)
        np.testing.assert_array_equal(values, np.sort(source))
        expected = 2000 / len(source)
        assert np.sum((counts - expected) ** 2 / expected) < 18.4  # 2 degrees of freedom, 99.99 %
    again = draw_by_source(SOURCES, 50, seed=3)(17)
    np.testing.assert_array_equal(next(again), first[17])
    assert not np.array_equal(first[17], first[18])
    assert not np.array_equal(next(draw_by_source(SOURCES, 50, seed=4)(0)), first[0])


def test_batches_of_a_mixture():
    """Sources are drawn by their weights, which need not add up to one; pytrees of any dtype."""
    sources = [{"x": np.full((4, 2), k, np.uint8), "y": np.full(4, k)} for k in range(3)]
    batches = list(itertools.islice(draw_mixture(sources, [2.0, 0.0, 6.0], 100)(0), 30))
    assert batches[0]["x"].shape == (100, 2)
    assert batches[0]["x"].dtype == np.uint8
    drawn = np.concatenate([x["y"] for x in batches])
    np.testing.assert_array_equal(drawn, np.concatenate([x["x"][:, 1] for x in batches]))
    counts = np.bincount(drawn, minlength=3)
    assert counts[1] == 0
    assert (counts[0] - 750) ** 2 / 750 + (counts[2] - 2250) ** 2 / 2250 < 15.1  # 99.99 %


def test_refusals():
    with pytest.raises(ValueError, match="`l2` must be >= 0, got -1"):
        mixture(squared, l2=-1.0)
    with pytest.raises(ValueError, match=r"must have the shape \(sources, rows, ...\), got \(3,\)"):
        mixture(squared, sources=jnp.ones(3))
    with pytest.raises(ValueError, match=r"got \[2\] sources for 3 weights"):
        mixture(squared).inner(jnp.ones(3), jnp.ones(()), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="`rows` must be at least 1, got 0"):
        draw_by_source(SOURCES, 0)
    with pytest.raises(ValueError, match=r"each with rows, got sizes \[\]"):
        draw_by_source([], 2)
    for weights in ([1.0, 1.0], [1.0, -1.0, 1.0], [0.0] * 3, [np.nan, 1.0, 1.0]):
        with pytest.raises(ValueError, match="must be 3 numbers >= 0 with a sum above 0"):
            draw_mixture(SOURCES, weights, 2)


def test_a_model_of_arrays_of_bytes():
    """Rows are bytes, the model is a pytree: the batch's layout reaches the loss row by row."""

    def loss(w, rows):
        assert rows.shape == (6, 4)
        return jnp.sum(w["scale"] * rows.astype(float), axis=1) * 0 + jnp.arange(6.0)

    batch = jnp.zeros((3, 2, 4), jnp.uint8)
    value = mixture(loss).inner(jnp.eye(3)[1], {"scale": jnp.ones(())}, batch)
    assert float(value) == 2.5
    assert jax.tree.leaves(mixture(loss).inner_data) == []


def test_a_checkpoint_sees_other_draws_and_does_not_read_the_sources():
    sources = [np.zeros(9), np.ones(7)]
    known = fingerprint(draw_by_source(sources, 2))
    assert known == fingerprint(draw_by_source([x + 1 for x in sources], 2))
    for other in (draw_by_source(sources, 3), draw_by_source(sources, 2, seed=1)):
        assert fingerprint(other) != known
    assert fingerprint(draw_by_source([x.astype(np.float32) for x in sources], 2)) != known
    one, two = (draw_mixture(SOURCES, [x, 1.0, 1.0], 2) for x in (1.0, 2.0))
    assert fingerprint(one) != fingerprint(two)
