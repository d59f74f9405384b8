"""`retrain_check` and `leak_check` on problems whose answers are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest

import bilevel
from bilevel import BilevelProblem, Solution


def found(u, w) -> Solution:
    """A solution to be judged, from any method."""
    return Solution(u, w, bilevel.RESULTS.successful, None, {}, {})


def determined():
    """One inner solution for each u, w* = u: retraining loses nothing."""
    return BilevelProblem(
        lambda u, w, _: jnp.sum((w - 1.0) ** 2), lambda u, w, _: jnp.sum((w - u) ** 2)
    )


def underdetermined():
    """f = (w_0 - u)^2 / 2 leaves w_1 free; F wants both to be 1."""
    return BilevelProblem(
        lambda u, w, _: 0.5 * jnp.sum((w - 1.0) ** 2), lambda u, w, _: 0.5 * (w[0] - u) ** 2
    )


STEPS = bilevel.GradientInner(optax.sgd(0.5), 200)


def test_a_problem_with_one_inner_solution_loses_nothing():
    check = bilevel.retrain_check(
        determined(),
        found(jnp.full(2, 0.9), jnp.full(2, 0.9)),
        jnp.zeros(2),
        lambda key: jax.random.normal(key, (2,)),
    )
    np.testing.assert_allclose(check.retrained, 0.02, rtol=1e-5)
    np.testing.assert_allclose(check.start, 2.0, rtol=1e-5)
    assert check.warm == pytest.approx(0.02, rel=1e-12)
    assert check.kept == pytest.approx(1.0, abs=1e-5)
    assert check.verdict == "holds"
    assert "can be used on its own" in str(check)


@pytest.mark.parametrize(("max_steps", "converged"), [(1, False), (500, True)])
def test_says_whether_retraining_converged(max_steps, converged):
    check = bilevel.retrain_check(
        determined(),
        found(jnp.full(2, 0.9), jnp.full(2, 0.9)),
        jnp.zeros(2),
        lambda key: jax.random.normal(key, (2,)),
        inner=bilevel.MinimiserInner(optx.LBFGS(rtol=1e-6, atol=1e-8), max_steps=max_steps),
    )
    assert check.converged is converged


def test_what_lives_in_the_inner_variable_is_lost():
    """F is 0 at u = 1 for the warm w = (1, 1), 2 for w retrained from w_1 = -1, and 2.5 at u =
    0."""
    starts = jnp.array([0.0, -1.0])
    check = bilevel.retrain_check(
        underdetermined(),
        found(jnp.array(1.0), jnp.ones(2)),
        jnp.array(0.0),
        lambda key: starts,
        inner=STEPS,
        num_inits=2,
    )
    assert check.warm == 0.0
    np.testing.assert_allclose(check.retrained, 2.0, rtol=1e-12)
    np.testing.assert_allclose(check.start, 2.5, rtol=1e-12)
    assert check.kept == pytest.approx(0.2, rel=1e-12)
    assert (check.verdict, check.spread) == ("lost", 0.0)
    np.testing.assert_allclose(check.w, np.tile([1.0, -1.0], (2, 1)), rtol=1e-12)
    assert "lives in the inner variable" in str(check)


@pytest.mark.parametrize(("free", "verdict"), [(0.5, "partly"), (0.95, "holds")])
def test_verdicts_in_between(free, verdict):
    """kept = 1 - (1 - free)^2 / (1 + (1 - free)^2)."""
    check = bilevel.retrain_check(
        underdetermined(),
        found(jnp.array(1.0), jnp.ones(2)),
        jnp.array(0.0),
        lambda key: jnp.array([0.3, free]),
        inner=STEPS,
    )
    lost = (1 - free) ** 2
    assert check.kept == pytest.approx(1 / (1 + lost), rel=1e-9)
    assert check.verdict == verdict


def test_spread_over_the_starts():
    check = bilevel.retrain_check(
        underdetermined(),
        found(jnp.array(1.0), jnp.ones(2)),
        jnp.array(0.0),
        lambda key: jax.random.normal(key, (2,)),
        inner=STEPS,
        num_inits=5,
    )
    free = np.asarray(check.w)[:, 1]
    np.testing.assert_allclose(check.retrained, 0.5 * (free - 1) ** 2, rtol=1e-10)
    gain = check.start.mean() - check.warm
    assert check.spread == pytest.approx(check.retrained.std(ddof=1) / gain, rel=1e-12)


def test_without_improvement_no_share_is_kept():
    check = bilevel.retrain_check(
        determined(), found(jnp.zeros(2), jnp.zeros(2)), jnp.zeros(2), lambda _: jnp.zeros(2)
    )
    assert check.verdict == "no improvement"
    assert np.isnan(check.kept)
    assert "did not improve" in str(check)


def test_an_inner_solver_that_diverges_tells_nothing_of_the_run():
    """NaN was "no improvement", and the failure of the solver was taken for that of the run."""
    run = found(jnp.full(2, 0.9), jnp.full(2, 0.9))
    checks = [
        bilevel.retrain_check(
            *(determined(), run, jnp.zeros(2), lambda _: jnp.ones(2)),
            inner=bilevel.GradientInner(optax.sgd(3.0), steps),
            num_inits=1,
        )
        for steps in (2000, 20)
    ]
    assert checks[0].verdict == "inconclusive"
    assert np.isnan(checks[0].kept)
    assert "a value is not finite" in str(checks[0])
    assert not checks[1].converged
    assert "did not converge from all fresh starts" in str(checks[1])


def test_a_trajectory_holds_one_run():
    """That of a second run was appended to that of the first."""
    trajectory, zero = bilevel.Trajectory(), jnp.zeros(())
    problem = BilevelProblem(lambda u, w, _: (w - 1.0) ** 2, lambda u, w, _: (w - u) ** 2)

    def run(num_steps, **options):
        method, options = bilevel.SOBA(0.1, 0.1, 0.1), {"chunk_size": 4, **options}
        run = bilevel.solve(
            *(problem, method, zero, zero), num_steps=num_steps, callbacks=[trajectory], **options
        )
        return run.state

    run(6, chunk_size=2)
    state = run(8)
    assert trajectory.steps == [4, 8]
    run(12, state=state)
    assert trajectory.steps == [4, 8, 12]
    assert len(trajectory.us) == 3


def test_another_value_and_the_path():
    problem = underdetermined()
    trajectory = bilevel.Trajectory()
    u0, w0 = jnp.array(0.0), jnp.array([0.0, 0.25])
    with pytest.warns(bilevel.HypergradientWarning, match="the inner Hessian .* is singular"):
        run = bilevel.solve(
            problem,
            bilevel.SOBA(0.5, 0.5, 0.2),
            u0,
            w0,
            num_steps=30,
            chunk_size=10,
            callbacks=[trajectory],
        )
    assert trajectory.steps == [10, 20, 30]
    check = bilevel.retrain_check(
        problem,
        run,
        u0,
        lambda _: w0,
        inner=STEPS,
        value=lambda u, w: jnp.abs(w[1] - w[0]),
        path=trajectory,
    )
    expected = [abs(0.25 - float(u)) for u in trajectory.us]
    np.testing.assert_allclose(check.path["retrained"], expected, rtol=1e-9)
    assert check.path["step"].tolist() == [10, 20, 30]
    assert check.retrained[0] == pytest.approx(expected[-1], rel=1e-9)


def test_at_least_one_fresh_start_is_needed():
    with pytest.raises(ValueError, match="num_inits"):
        bilevel.retrain_check(
            determined(), found(jnp.zeros(2), jnp.zeros(2)), jnp.zeros(2), lambda _: 0, num_inits=0
        )


def location(rows):
    """F = mean_j |w_1 - z_j|^2 / 2 over outer rows; f does not see w_1."""
    return BilevelProblem(
        lambda u, w, z: 0.5 * jnp.mean(jnp.sum((w[1][None] - z) ** 2, axis=-1)),
        lambda u, w, _: 0.5 * (w[0, 0] - u) ** 2,
        outer_data=rows,
    )


def test_leak_in_closed_form():
    """Warm w_1 = 1, retrained 0: a row z of one number gains z - 1/2, seen or new."""
    seen, new = jnp.array([[1.0], [2.0], [0.5]]), jnp.array([[0.0], [1.5], [-1.0], [0.2]])
    problem = location(seen)
    solution = found(jnp.array(0.0), jnp.array([[0.0], [1.0]]))
    check = bilevel.retrain_check(
        problem, solution, jnp.array(0.0), lambda _: jnp.zeros((2, 1)), inner=STEPS
    )
    leak = bilevel.leak_check(problem, solution, check, new)
    a, b = np.asarray(seen)[:, 0] - 0.5, np.asarray(new)[:, 0] - 0.5
    assert leak.gain_seen == pytest.approx(a.mean(), rel=1e-12)
    assert leak.gain_new == pytest.approx(b.mean(), rel=1e-12)
    assert leak.memorised == pytest.approx(a.mean() - b.mean(), rel=1e-12)
    error = np.sqrt(a.var(ddof=1) / 3 + b.var(ddof=1) / 4)
    assert leak.standard_error == pytest.approx(error, rel=1e-12)
    wins = np.mean(a[:, None] > b[None, :])
    assert leak.auroc == pytest.approx(wins, rel=1e-12)
    assert "rows told apart" in str(leak)


def test_leak_needs_outer_rows():
    problem = determined()
    solution = found(jnp.zeros(2), jnp.zeros(2))
    check = bilevel.retrain_check(problem, solution, jnp.ones(2), lambda _: jnp.zeros(2))
    with pytest.raises(ValueError, match="this problem has none"):
        bilevel.leak_check(problem, solution, check, jnp.zeros((3, 1)))
