"""SID: its result on full batches, its consistency and its cost."""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax
import pytest

import bilevel
from bilevel import (
    SID,
    FullBatch,
    GradientInner,
    StochasticRichardson,
    Stream,
    Streams,
    WithReplacement,
    decreasing_step,
)
from helpers import CASES, norm_error


def estimate(case, estimator, inner, sampler=None, key=None, w0=None):
    problem = case.problem

    def stream(data, key):
        if sampler is None:
            return Stream(FullBatch(), data, ())
        return Stream(sampler, data, sampler.init(data, key))

    outer_key, inner_key = jr.split(jr.key(0) if key is None else key)
    streams = Streams(stream(problem.outer_data, outer_key), stream(problem.inner_data, inner_key))
    w0 = case.w0 if w0 is None else w0
    state = estimator.init(problem, inner, case.u, w0)
    return eqx.filter_jit(estimator.estimate)(problem, inner, case.u, w0, state, streams)[0]


def test_closed_form_on_full_batches():
    case = CASES["logistic"]
    inner = GradientInner(case.sgd(), 3000)
    found = estimate(case, SID(StochasticRichardson(1 / case.bounds[1], 3000)), inner)
    assert norm_error(found.grad, case.gradient(case.u)) < 1e-9
    assert float(found.error_estimate) < 1e-8


@pytest.mark.slow
def test_minibatches_converge_to_the_hypergradient():
    """With rows drawn with replacement, the error falls as all numbers grow."""
    case, sampler = CASES["logistic"], WithReplacement(4)
    mu, largest = case.bounds
    truth = case.gradient(case.u)

    def mean_squared_error(budget):
        schedule = decreasing_step(2 / mu, 4 * largest / mu)
        estimator = SID(StochasticRichardson(schedule, budget), budget)
        inner = GradientInner(optax.sgd(schedule), budget)
        run = jax.jit(jax.vmap(lambda k: estimate(case, estimator, inner, sampler, k).grad))
        found = np.asarray(run(jr.split(jr.key(1), 100)))
        return np.mean(np.sum((found - truth) ** 2, axis=1))

    few, many = mean_squared_error(200), mean_squared_error(800)
    assert 2.5 < few / many < 8.0, (few, many)
    assert many < 0.05 * np.sum(truth**2)


@pytest.mark.slow
def test_every_sample_uses_a_new_batch():
    """J = 2 on halves of the data, in order, is the full gradient of F; J = 1 is not."""
    case = CASES["logistic"]
    rows = bilevel.FullBatch().draw(case.problem.outer_data, ())[0].data[0].shape[0]
    assert rows % 2 == 0
    inner = bilevel.ClosedForm(lambda u, _: case.w_star(u))
    solver = StochasticRichardson(0.1, 1)
    halves = bilevel.Shuffled(rows // 2)
    streams = Streams(
        Stream(halves, case.problem.outer_data, halves.init(case.problem.outer_data, jr.key(0))),
        Stream(FullBatch(), case.problem.inner_data, ()),
    )
    state = bilevel.EstimatorState(())
    values = [
        float(
            SID(solver, j).estimate(case.problem, inner, case.u, case.w0, state, streams)[0].value
        )
        for j in (1, 2)
    ]
    full = float(case.phi(case.u))
    np.testing.assert_allclose(values[1], full, rtol=1e-12)
    assert abs(values[0] - full) > 1e-6


def test_calls_and_settings():
    case = CASES["logistic"]
    estimator = SID(StochasticRichardson(0.1, 7), 3)
    found = estimate(case, estimator, GradientInner(optax.sgd(0.1), 5), WithReplacement(2))
    calls = {name: int(n) for name, n in vars(found.calls).items()}
    assert calls == {"outer_grad": 3, "inner_grad": 5 + 3, "hvp": 7 + 3, "mixed": 3}
    with pytest.raises(ValueError, match="num_samples >= 1, got 0"):
        SID(StochasticRichardson(0.1, 7), 0)
