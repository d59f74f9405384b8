"""The remedies against sparse weights, each compared with its formula."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import tasks
from helpers import assert_close, assert_same, soba

SIMPLEX = bilevel.Simplex()
U = jnp.array([0.1, 0.2, 0.3, 0.4])
DELTA = jnp.array([3.0, -1.0, 0.5, 0.0])


def small_problem(n=30, geometry=None):
    keys = jax.random.split(jax.random.key(1), 4)
    X, X_trusted = jax.random.normal(keys[0], (n, 3)), jax.random.normal(keys[1], (12, 3))
    slope = jnp.array([1.0, -2.0, 0.5])
    y = X @ slope + 0.1 * jax.random.normal(keys[2], (n,))
    y = y.at[: n // 3].add(3.0)
    model = tasks.models.linear_model(3, 1)
    problem = tasks.reweighting(
        X, y, X_trusted, X_trusted @ slope, model.predict, loss=tasks.models.squared_error
    )
    if geometry is not None:
        problem = bilevel.reparametrise(problem, lambda u: u, geometry)
    return problem, model.w0, tasks.uniform_weights(n)


@pytest.mark.parametrize("radius", [0.1, 1.0, 100.0])
def test_limited_log_steps(radius):
    """No log-weight moves by more than the radius, relative to the mean; ratios keep direction."""
    tx: Any = bilevel.limit_log_step(radius)
    delta = tx.update(DELTA, tx.init(U), U)[0]
    centred = DELTA - jnp.vdot(U, DELTA)
    assert float(jnp.max(jnp.abs(delta))) <= radius * (1 + 1e-12)
    factor = min(1.0, radius / float(jnp.max(jnp.abs(centred))))
    np.testing.assert_allclose(delta, factor * centred, rtol=1e-12)
    moved = bilevel.TransformedGeometry(tx).retract(U, DELTA)
    assert_close(moved, SIMPLEX.retract(U, factor * centred), rtol=1e-12)


def test_a_wide_limit_changes_nothing_on_the_simplex():
    moved = bilevel.TransformedGeometry(bilevel.limit_log_step(1e3)).retract(U, DELTA)
    assert_close(moved, SIMPLEX.retract(U, DELTA), rtol=1e-12)


def test_limit_of_a_zero_update_is_zero():
    tx: Any = bilevel.limit_log_step(0.1)
    assert_same(tx.update(jnp.zeros(4), tx.init(U), U)[0], jnp.zeros(4))


@pytest.mark.parametrize("reference", [None, jnp.array([0.7, 0.1, 0.1, 0.1])])
def test_kl_pull_is_the_proximal_step(reference):
    """argmin_u KL(u | v) + s KL(u | reference), by its formula and by comparing values."""
    s = 0.3
    tx: Any = bilevel.kl_pull(s, reference)
    found = bilevel.TransformedGeometry(tx).retract(U, DELTA)
    v = SIMPLEX.retract(U, DELTA)
    r = jnp.full(4, 0.25) if reference is None else reference
    expected = v ** (1 / (1 + s)) * r ** (s / (1 + s))
    assert_close(found, expected / expected.sum(), rtol=1e-12)

    def objective(u):
        return jnp.sum(u * jnp.log(u / v)) + s * jnp.sum(u * jnp.log(u / r))

    for seed in range(20):
        other = SIMPLEX.retract(found, 0.1 * jax.random.normal(jax.random.key(seed), (4,)))
        assert objective(found) < objective(other)


def test_transformed_geometry_composes_and_delegates():
    tx = optax.chain(optax.clip(0.5), bilevel.kl_pull(0.2))
    both = bilevel.TransformedGeometry(tx).retract(U, DELTA)
    by_hand = bilevel.TransformedGeometry(bilevel.kl_pull(0.2)).retract(
        U, jnp.clip(DELTA, -0.5, 0.5)
    )
    assert_close(both, by_hand, rtol=1e-14)
    nested = bilevel.TransformedGeometry(
        optax.clip(0.5), bilevel.TransformedGeometry(bilevel.kl_pull(0.2))
    )
    assert_close(nested.retract(U, DELTA), by_hand, rtol=1e-14)
    wrapped = bilevel.TransformedGeometry(optax.clip(0.5))
    point = jnp.array([0.5, 0.9, -0.1, 0.0])
    assert_same(wrapped.project(point), SIMPLEX.project(point))
    assert_same(wrapped.magnitude(U, DELTA), SIMPLEX.magnitude(U, DELTA))


def test_transformed_geometry_refuses_a_transformation_with_state():
    with pytest.raises(ValueError, match="without state"):
        bilevel.TransformedGeometry(optax.adam(0.1)).retract(U, DELTA)


@pytest.mark.parametrize("make", [bilevel.limit_log_step, bilevel.kl_pull])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_settings_must_be_positive(make, value):
    with pytest.raises(ValueError, match="must be positive"):
        make(value)


def test_weighted_batches_have_their_distribution():
    n, batch, share = 6, 50_000, 0.75
    u = jnp.array([0.5, 0.3, 0.1, 0.1, 0.0, 0.0])
    sampler = bilevel.WeightedSampler(batch, share)
    data = (jnp.arange(6.0), jnp.arange(6))
    state = sampler.init(data, jax.random.key(0))
    assert_close(state.u, jnp.full(n, 1 / n), rtol=1e-15)
    drawn, following = sampler.draw(data, state._replace(u=u))
    q = (1 - share) / n + share * u
    counts = np.bincount(np.asarray(drawn.index), minlength=n) / batch
    np.testing.assert_allclose(counts, q, atol=4 * np.sqrt(0.25 / batch))
    x, i, ratio = drawn.data
    np.testing.assert_array_equal(i, drawn.index)
    assert_same(x, i.astype(x.dtype))
    np.testing.assert_allclose(ratio, (1 / (n * q))[i], rtol=1e-12)
    again, _ = sampler.draw(data, state._replace(u=u))
    assert_same(again.data, drawn.data)
    other, _ = sampler.draw(data, following)
    assert not np.array_equal(np.asarray(other.index), np.asarray(drawn.index))


@pytest.mark.slow
def test_importance_ratios_leave_the_inner_objective_unbiased():
    """The mean over all batches of one row, weighted by q, is the objective: value and
    gradients."""
    problem, w0, _ = small_problem(12)
    share = 0.6
    u = jax.random.dirichlet(jax.random.key(2), jnp.ones(12))
    w = jax.tree.map(lambda x: x + 0.3, w0)
    q = (1 - share) / 12 + share * u

    def mean_over_batches(u, w):
        x, y, i = problem.inner_data  # pyright: ignore[reportGeneralTypeIssues]
        values = [
            q[k]
            * problem.inner(u, w, (x[k : k + 1], y[k : k + 1], i[k : k + 1], 1 / (12 * q[k])[None]))
            for k in range(12)
        ]
        return sum(values)

    full = jax.value_and_grad(lambda u, w: problem.inner(u, w, problem.inner_data), (0, 1))(u, w)
    assert_close(jax.value_and_grad(mean_over_batches, (0, 1))(u, w), full, rtol=1e-12, atol=1e-14)


def test_importance_sampling_tells_the_sampler_the_weights():
    problem, w0, u0 = small_problem()
    method = bilevel.ImportanceSampling(bilevel.SOBA(0.05, 0.05, 0.2, bilevel.WeightedSampler(5)))
    state = eqx.filter_jit(method.init)(problem, u0, w0, jax.random.key(0))
    step = eqx.filter_jit(method.step)
    for _ in range(3):
        before = state.u
        state, _ = step(problem, state)
        assert_same(state.samplers.inner.u, before)
    assert float(jnp.max(jnp.abs(state.u - u0))) > 0


def test_importance_sampling_needs_its_sampler():
    problem, w0, u0 = small_problem()
    with pytest.raises(TypeError, match=r"inner_sampler=WeightedSampler"):
        bilevel.ImportanceSampling(soba(0.1, 0.1, 0.1)).init(problem, u0, w0, jax.random.key(0))
    method = bilevel.ImportanceSampling(bilevel.SOBA(0.1, 0.1, 0.1, bilevel.WeightedSampler(5)))
    for geometry in (bilevel.Euclidean(), bilevel.Box(0.0, 9.0)):  # the ratios were wrong, unseen
        other = dataclasses.replace(problem, geometry=geometry)
        with pytest.raises(ValueError, match=f"add up to 1.*got {type(geometry).__name__}"):
            eqx.filter_eval_shape(method.init, other, u0, w0, jax.random.key(0))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 3, "share": 1.0}])
def test_weighted_sampler_refuses_bad_settings(options):
    with pytest.raises(ValueError, match="WeightedSampler"):
        bilevel.WeightedSampler(**options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weighted_sampler_has_the_precision_of_the_data(dtype):
    data = (jnp.ones((4, 2), dtype), jnp.arange(4))
    sampler = bilevel.WeightedSampler(2)
    batch, _ = sampler.draw(data, sampler.init(data, jax.random.key(0)))
    assert batch.data[-1].dtype == dtype


def test_weighted_sampler_needs_a_tuple_of_data():
    with pytest.raises(ValueError, match="tuple of arrays"):
        bilevel.WeightedSampler(2).init(jnp.arange(3.0), jax.random.key(0))


@pytest.mark.parametrize("start", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_average_is_the_mean_of_the_iterates(start):
    problem, w0, u0 = small_problem()
    plain = bilevel.SOBA(0.1, 0.1, 0.5)
    method = bilevel.IterateAveraging(plain, start)
    state = eqx.filter_jit(plain.init)(problem, u0, w0, jax.random.key(0))
    step = eqx.filter_jit(plain.step)
    iterates = []
    for _ in range(10):
        state, _ = step(problem, state)
        iterates.append(state.u)
    run = bilevel.solve(problem, method, u0, w0, num_steps=10, key=jax.random.key(0))
    assert_close(run.u, iterates[-1], rtol=1e-12)
    expected = np.mean(np.stack(iterates[start:]), axis=0)
    np.testing.assert_allclose(method.average(run.state), expected, rtol=1e-11)


@pytest.mark.slow
def test_iterate_averaging_resumes_where_it_stopped():
    problem, w0, u0 = small_problem()
    method = bilevel.IterateAveraging(bilevel.SOBA(0.1, 0.1, 0.5, bilevel.Shuffled(5)), 2)
    unbroken = bilevel.solve(problem, method, u0, w0, num_steps=9)
    half = bilevel.solve(problem, method, u0, w0, num_steps=4)
    rest = bilevel.solve(problem, method, u0, w0, num_steps=9, state=half.state)
    assert_same(unbroken.state, rest.state)


@pytest.mark.slow
def test_penalties_and_their_gradients():
    n = 5
    uniform, vertex = jnp.full(n, 1 / n), jnp.eye(n)[2]
    assert float(bilevel.kl_to_uniform(uniform)) == pytest.approx(0.0, abs=1e-15)
    assert float(bilevel.kl_to_uniform(vertex)) == pytest.approx(np.log(n), rel=1e-12)
    assert float(bilevel.l2_to_uniform(uniform)) == pytest.approx(0.0, abs=1e-12)
    assert float(bilevel.l2_to_uniform(vertex)) == pytest.approx(n - 1, rel=1e-12)
    u = jax.random.dirichlet(jax.random.key(0), jnp.ones(n))
    assert_close(jax.grad(bilevel.kl_to_uniform)(u), jnp.log(n * u) + 1, rtol=1e-12)
    assert_close(jax.grad(bilevel.l2_to_uniform)(u), 2 * n * u, rtol=1e-12)
    ess = bilevel.effective_sample_size(np.asarray(u))
    assert float(bilevel.l2_to_uniform(u)) == pytest.approx(n / ess - 1, rel=1e-12)


def test_penalised_adds_to_the_outer_objective_only():
    problem, w0, _ = small_problem()
    u = jax.random.dirichlet(jax.random.key(0), jnp.ones(30))
    with_penalty = bilevel.penalised(problem, bilevel.l2_to_uniform, 0.3)
    difference = with_penalty.outer(u, w0, problem.outer_data) - problem.outer(
        u, w0, problem.outer_data
    )
    assert float(difference) == pytest.approx(0.3 * float(bilevel.l2_to_uniform(u)), rel=1e-12)
    assert with_penalty.inner is problem.inner
    assert isinstance(with_penalty.geometry, bilevel.Simplex)


@pytest.mark.slow
def test_weight_function_against_the_chain_rule():
    problem, w0, _ = small_problem(12)
    z = jax.random.normal(jax.random.key(5), (12, 2))
    low = tasks.weight_function(problem, z)
    x = jnp.array([0.2, -1.0, 0.7])

    def weights(x):
        s = jax.nn.sigmoid(x[0] + z @ x[1:])
        return s / jnp.sum(s)

    w = jax.tree.map(lambda a: a + 0.1, w0)
    solver = bilevel.CG(rtol=1e-12)
    outer = bilevel.implicit_gradient(problem, weights(x), w, solver).grad
    expected = jax.vjp(weights, x)[1](outer)[0]
    found = bilevel.implicit_gradient(low, x, w, solver).grad
    assert_close(found, expected, rtol=1e-9, atol=1e-12)
    zero = low.inner(jnp.zeros(3), w, problem.inner_data)
    uniform = problem.inner(jnp.full(12, 1 / 12), w, problem.inner_data)
    assert float(zero) == pytest.approx(float(uniform), rel=1e-12)


def test_problems_of_equal_shape_share_a_compilation(compilations):
    """Reparametrised problems are data: another problem of the same kind compiles nothing."""
    problem, w0, u0 = small_problem()
    geometry = bilevel.TransformedGeometry(optax.clip(0.1))
    method = bilevel.SOBA(0.1, 0.1, 0.5)

    def same(u):
        return u

    def run(penalty):
        p = bilevel.penalised(problem, bilevel.l2_to_uniform, penalty)
        return bilevel.solve(bilevel.reparametrise(p, same, geometry), method, u0, w0, num_steps=3)

    one = run(0.1)
    compilations.clear()
    two = run(0.2)
    assert compilations == []
    assert float(jnp.max(jnp.abs(one.u - two.u))) > 0
