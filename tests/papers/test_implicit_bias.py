"""What the scripts on implicit bias compute, against formulas and other implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import tasks


def test_distillation_from_a_cold_start_ends_at_the_formula(script):
    distillation = script("distillation")
    rng = np.random.default_rng(0)
    w0 = jnp.asarray(0.1 * rng.normal(size=(4, 6)))
    u = {
        "inputs": jnp.asarray(rng.normal(size=(3, 6))),
        "labels": jnp.asarray(rng.normal(size=(3, 4))),
    }
    X, y = jnp.asarray(rng.normal(size=(5, 6))), jnp.arange(5) % 4
    problem = tasks.distillation(X, y, distillation.predict)
    inner = bilevel.GradientInner(optax.sgd(0.5), 10_000)
    stream = bilevel.Stream(bilevel.FullBatch(), None, ())
    w, *_ = inner.solve(problem, u, w0, inner.init(problem, u, w0), stream)
    exact = distillation.Nearest(w0)(u, None)
    np.testing.assert_allclose(w, exact, atol=1e-9)
    # It predicts the soft labels, and moved in the span of the points only.
    predicted = jax.nn.softmax(distillation.predict(exact, u["inputs"]))
    np.testing.assert_allclose(predicted, jax.nn.softmax(u["labels"]), rtol=1e-10)
    _, _, rows = np.linalg.svd(u["inputs"])
    np.testing.assert_allclose((exact - w0) @ rows[3:].T, 0, atol=1e-12)


@pytest.mark.slow
def test_equation_5_is_approximate(script):
    """The gap tends to max (1 - exp(-x)) (1 + 1/x) - 1 = 0.298, at x = l / eps = 1.79."""
    _, numbers = script("inverse_spectra").spectra(20)
    rows = numbers["terms"]
    assert rows["1"]["gap"] == pytest.approx(1.0, abs=0.01)  # 1 + a l at the largest l
    assert rows["100"]["gap"] == pytest.approx(0.30, abs=0.01)
    assert rows["100"]["gap_at"] == pytest.approx(1.79, rel=0.2)
    for row in rows.values():
        assert 0.29 <= row["gap"] < row["gap_one_more_term"]


def test_the_rate_of_projections_is_the_product_of_the_cosines_between_the_lines(script):
    found = script("projections").plane()
    turns = np.deg2rad([40, 45, 50, 45])
    assert found["rate"] == pytest.approx(np.prod(np.cos(turns)), rel=1e-12)
    np.testing.assert_allclose(found["measured_rate"], found["rate"], rtol=1e-9)


def test_cold_starts_of_quadratics_end_at_equation_4(script):
    """Equation (4) from the normal equations, for a problem that moves far."""
    equilibria = script("equilibria")
    case = equilibria.quadratic("singular", 0)
    us, _ = jax.jit(lambda c: equilibria.path(c, 0 * c.w0, 60, False, 500))(case)
    nearest = equilibria.nearest_solution(case, np.zeros(equilibria.DIM_W))
    assert np.linalg.norm(us[-1] - case.u0) >= 0.5
    np.testing.assert_allclose(us[-1], nearest, rtol=1e-3)
    value, gradient = jax.value_and_grad(
        lambda u: case.outer(
            u, jnp.linalg.pinv(case.inner.x) @ (case.inner.y @ u + case.inner.t), 0
        )
    )(jnp.asarray(nearest))
    np.testing.assert_allclose(gradient, 0, atol=1e-10)
    assert value >= 0


def test_norms_of_learned_targets(script):
    """The squared norms of the limits, from the spectrum alone."""
    module = script("anti_distillation")
    made = module.cases()
    limits = script("_limits")

    def norm(name, label):
        direction = limits.closed_form(made[name], label)
        u = limits.limits_of(made[name], jnp.asarray(direction)[None])[0]
        return round(float(u @ u), 2)

    terms = (1, 100, 10_000)
    assert [norm("exponential", f"Neumann {k}") for k in terms] == [15.40, 8.65, 4.98]
    assert [norm("exponential", f"damped {k}") for k in terms] == [15.11, 8.88, 5.07]
    assert [norm("1/n", f"Neumann {k}") for k in terms] == [17.63, 13.02, 4.02]
    assert norm("exponential", "exact") == norm("exponential", "CG 13") == 4
    assert limits.even_rank(made["exponential"]) == 7
    assert np.linalg.matrix_rank(made["exponential"].X) == 13


def test_ends_of_two_learned_targets(script):
    runs = script("anti_distillation_more").line_runs()
    np.testing.assert_allclose(runs["1"]["end"], [0.5, 1.5], rtol=1e-8)
    np.testing.assert_allclose(runs["exact"]["end"], [1.0, 1.0], rtol=1e-12)


@pytest.mark.slow
def test_closed_form_solution_concepts(script):
    """The cold start is the minimum-norm fit, and the optimistic value is lower."""
    concepts = script("solution_concepts")
    problem, u = concepts.problem_of(concepts.original(0)), jnp.asarray(concepts.START)
    w0 = jnp.zeros(concepts.BUMPS**2)
    cold = bilevel.cold_start_solution(problem, u, w0)
    shortest = np.linalg.pinv(np.asarray(concepts.features(u))) @ concepts.LABELS
    np.testing.assert_allclose(cold.w, shortest, atol=1e-12)
    best = bilevel.optimistic_solution(problem, u, w0, num_steps=1)
    assert best.value < cold.value
