"""`check_hypergradient` says agrees, disagrees or inconclusive, each where it should."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import bilevel
from bilevel import check_hypergradient
from helpers import CASES
from solvers import converged_inner, exact_inner


@pytest.mark.parametrize(
    "name",
    [n if n == "coupled" else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_aid_agrees_with_central_differences(name):
    """Rung three of the ladder: 1e-6, for the default estimator and an accurate inner solve."""
    case = CASES[name]
    check = check_hypergradient(
        case.problem, case.u, case.w0, inner=exact_inner(case), reference=exact_inner(case)
    )
    assert check.verdict == "agrees"
    assert check.relative_error < 1e-6
    assert check.rtol == 1e-6
    assert bool(check)


@pytest.mark.parametrize(
    "name", ["coupled", pytest.param("ridge_per_feature", marks=pytest.mark.slow)]
)
def test_itd_agrees_with_central_differences(name):
    case = CASES[name]
    check = check_hypergradient(
        case.problem,
        case.u,
        case.w0,
        bilevel.ITD(),
        converged_inner(case),
        reference=exact_inner(case),
        num_directions=3,
    )
    assert check.verdict == "agrees"
    assert check.relative_error < 1e-6
    assert check.estimated.shape == check.differences.shape == (3,)


def test_defaults_need_nothing_but_the_problem():
    """BFGS defines w*, CG the estimate."""
    case = CASES["ridge"]
    check = check_hypergradient(case.problem, case.u, case.w0)
    assert check.verdict == "agrees"
    assert check.relative_error < 1e-6


@pytest.mark.slow
def test_defaults_check_a_fixed_point_problem():
    """A map that is not symmetric and not affine, nor is its fixed point near the start."""
    jacobian = jnp.asarray([[0.3, -0.7, 0.0], [0.6, 0.2, 0.1], [0.0, 0.4, -0.3]])
    problem = bilevel.FixedPointProblem(
        outer=lambda u, w, _: jnp.sum((w - 1.0) ** 2) + jnp.sum(u**4),
        map=lambda u, w, _: jnp.tanh(jacobian @ w) + jnp.sin(u),
    )
    u, w = jnp.asarray([0.5, -1.0, 2.0]), jnp.full(3, 5.0)
    check = check_hypergradient(problem, u, w)
    assert check.verdict == "agrees"
    assert check.relative_error < 1e-7
    wrong = check_hypergradient(problem, u, w, Wrong(bilevel.AID(bilevel.Richardson(1.0)), -1.0))
    assert wrong.verdict == "disagrees"


class Wrong(bilevel.AbstractHypergradient):
    """AID with its implicit term scaled: by -1 a wrong sign, by 0 a lost `stop_gradient`."""

    aid: bilevel.AID
    factor: float

    def init(self, problem, inner, u, w):
        return self.aid.init(problem, inner, u, w)

    def estimate(self, problem, inner, u, w, state, streams):
        found, state, streams = self.aid.estimate(problem, inner, u, w, state, streams)
        direct = jax.grad(problem.outer)(u, found.w, problem.outer_data)
        grad = direct + self.factor * (found.grad - direct)
        return eqx.tree_at(lambda x: x.grad, found, grad), state, streams


@pytest.mark.parametrize("factor", [pytest.param(-1.0, marks=pytest.mark.slow), 0.0, 1.01])
def test_wrong_estimators_disagree(factor):
    case = CASES["coupled"]
    inner = exact_inner(case)
    check = check_hypergradient(
        case.problem,
        case.u,
        case.w0,
        Wrong(bilevel.AID(bilevel.CG(rtol=1e-12)), factor),
        inner,
        reference=inner,
    )
    assert check.verdict == "disagrees"
    assert not check
    assert check.relative_error > 1e-3


def test_unconverged_inner_solve_disagrees_and_shows_its_residual():
    case = CASES["coupled"]
    check = check_hypergradient(
        case.problem,
        case.u,
        case.w0,
        inner=bilevel.GradientInner(case.sgd(), 2),
        reference=exact_inner(case),
    )
    assert check.verdict == "disagrees"
    assert check.inner_residual > 0.1


def float32_case():
    """`w* = sin(u)`, `Phi = 100 + |sin(u)|^2`: the constant costs the differences their digits."""
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: 100 + jnp.sum(w**2),
        inner=lambda u, w, _: jnp.sum((w - jnp.sin(u)) ** 2),
    )
    return problem, jnp.linspace(0.1, 1.0, 3, dtype=jnp.float32), jnp.zeros(3, jnp.float32)


def test_float32_noise_is_inconclusive():
    problem, u, w = float32_case()
    formula = bilevel.ClosedForm(lambda u, _: jnp.sin(u))
    check = check_hypergradient(
        problem, u, w, bilevel.AID(bilevel.CG(rtol=1e-6)), reference=formula, rtol=1e-6
    )
    assert check.verdict == "inconclusive"
    assert not check
    assert np.max(check.difference_error) > 1e-6


def test_float32_agrees_at_its_default_tolerance():
    case = CASES["coupled"]
    u, w = case.u.astype(jnp.float32), case.w0.astype(jnp.float32)
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: jnp.sum(w**2) + 0.1 * jnp.sum(u**2),
        inner=lambda u, w, _: jnp.sum((w[:3] - jnp.sin(u)) ** 2) + jnp.sum(w[3:] ** 2),
    )
    check = check_hypergradient(problem, u, w)
    assert check.rtol == 1e-2
    assert check.verdict == "agrees"
    assert check.relative_error < 1e-3


@pytest.mark.parametrize(
    "reference",
    [bilevel.MinimiserInner(optx.BFGS(rtol=1e-2, atol=1e-2)), "two steps"],
    ids=["loose", "truncated"],
)
def test_inaccurate_reference_is_not_blamed_on_the_estimator(reference):
    """The differences of a truncated Phi are smooth, precise and wrong."""
    case = CASES["coupled"]
    if reference == "two steps":
        reference = bilevel.GradientInner(case.sgd(), 2)
    check = check_hypergradient(
        case.problem, case.u, case.w0, inner=exact_inner(case), reference=reference
    )
    assert check.verdict == "inconclusive"
    assert check.relative_error > 1e-4
    assert "a more accurate `reference`" in str(check)


def test_nonfinite_estimate_disagrees():
    case = CASES["coupled"]
    inner = exact_inner(case)
    wrong = Wrong(bilevel.AID(bilevel.CG(rtol=1e-12)), float("nan"))
    check = check_hypergradient(case.problem, case.u, case.w0, wrong, inner, reference=inner)
    assert check.verdict == "disagrees"


def test_report_is_readable():
    case = CASES["scalar"]
    check = check_hypergradient(
        case.problem, case.u, case.w0, reference=exact_inner(case), num_directions=2
    )
    lines = str(check).splitlines()
    assert lines[0].startswith("hypergradient check: agrees (relative error ")
    assert lines[0].endswith("tolerance 1.0e-06)")
    assert re.fullmatch(r"  inner residual \S+e[-+]\d\d, linear residual \S+e[-+]\d\d", lines[2])
    assert lines[3].split()[:3] == ["direction", "estimate", "difference"]
    assert len(lines) == 4 + 2
    slope = 3 * (3 * 0.4 - 1) + 0.5 * 0.4
    for line, k in zip(lines[4:], range(2), strict=True):
        index, estimate, difference, _ = line.split()
        assert int(index) == k
        np.testing.assert_allclose(abs(float(estimate)), slope, rtol=1e-5)
        np.testing.assert_allclose(float(difference), float(estimate), rtol=1e-5)
    assert max(len(line) for line in lines) <= 100


def test_the_key_chooses_directions_and_step_sets_the_width():
    case = CASES["coupled"]
    options = {"reference": exact_inner(case), "num_directions": 2}
    one = check_hypergradient(case.problem, case.u, case.w0, key=jax.random.key(1), **options)
    two = check_hypergradient(
        case.problem, case.u, case.w0, key=jax.random.key(1), step=1e-2, **options
    )
    other = check_hypergradient(case.problem, case.u, case.w0, key=jax.random.key(2), **options)
    np.testing.assert_array_equal(one.estimated, two.estimated)
    assert np.all(np.abs(one.estimated - other.estimated) > 1e-3)
    assert np.any(one.differences != two.differences)
