"""Flows on the simplex: closed forms, what `Flow` reports, and the tests of a field at a point."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.optimize
from jax.flatten_util import ravel_pytree

import bilevel
from bilevel import dynamics
from bilevel.tasks import reweighting, uniform_weights
from bilevel.tasks.models import linear_model, squared_error


def low_rank(seed: int, n: int = 5, p: int = 3) -> dynamics.LowRankField:
    """The random field of Figure 3 of Ivanova and Ablin (2023) [ivanova2023][]."""
    rng = np.random.default_rng(seed)
    gradients, outer, v = rng.normal(size=(n, p)), rng.normal(size=p), rng.normal(size=(n, p))
    hessians = v[:, :, None] * v[:, None, :] + 0.1 * np.eye(p)
    return dynamics.LowRankField(*map(jnp.asarray, (gradients, hessians, outer)))


class Affine(eqx.Module):
    """`phi(u) = matrix u + offset`."""

    matrix: jax.Array
    offset: jax.Array

    def __call__(self, u):
        return self.matrix @ u + self.offset


def constant(*phi: float) -> Affine:
    return Affine(jnp.zeros((3, 3)), jnp.array(phi, float))


# Three rows or five, three times: the tests share a few compilations.
UNIFORM_3, UNIFORM_5 = uniform_weights(3), uniform_weights(5)
LONG = jnp.array([1.0, 500.0, 1000.0])


def limit(field: dynamics.Field, tol: float = 1e-8) -> jax.Array:
    """Where the flow from uniform weights ends."""
    flow = dynamics.mirror_flow(field, UNIFORM_5, LONG, tol=tol)
    assert bool(flow.converged)
    return flow.u[-1]


L2 = 0.3
X, Y = np.random.default_rng(0).normal(size=(6, 2)), np.random.default_rng(1).normal(size=6)
X_OUT, Y_OUT = np.random.default_rng(2).normal(size=(9, 2)), np.arange(9) / 9.0
MODEL = linear_model(2, 1, bias=False)
W0 = {"weight": jnp.array([[1.0, -2.0]])}
PROBLEM = reweighting(
    jnp.asarray(X),
    jnp.asarray(Y),
    jnp.asarray(X_OUT),
    jnp.asarray(Y_OUT),
    MODEL.predict,
    loss=squared_error,
    l2=L2,
)
UNIFORM = uniform_weights(6)


def hessian(u):
    return jnp.asarray(X.T) @ (u[:, None] * jnp.asarray(X)) + L2 * jnp.eye(2)


def solution(u, batch):
    x, y, _ = batch
    return {"weight": jnp.linalg.solve(hessian(u), x.T @ (u * y))[None]}


def weight(flow: dynamics.Flow) -> jax.Array:
    assert isinstance(flow.w, dict)
    return flow.w["weight"][:, 0]


# Mirror flows with a closed form.


@pytest.mark.parametrize("ties", [False, True])
def test_constant_field(ties):
    phi, u0 = (0.7, -1.0, -1.0 if ties else 2.0), jnp.array([0.7, 0.2, 0.1])
    ts = jnp.array([0.0, 0.5, 40.0])
    flow = dynamics.mirror_flow(constant(*phi), u0, ts)
    expected = np.asarray(u0) * np.exp(-np.outer(ts, phi))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(flow.u, expected, atol=1e-9)
    for t, row in zip(ts, expected, strict=True):
        np.testing.assert_allclose(
            dynamics.constant_field_flow(jnp.array(phi), u0, t), row, rtol=1e-12
        )
    end = dynamics.constant_field_limit(jnp.array(phi), u0)
    np.testing.assert_allclose(end, [0, 2 / 3, 1 / 3] if ties else [0, 1, 0], rtol=1e-15)
    np.testing.assert_allclose(flow.u[-1], end, atol=1e-9)
    assert flow.w is None


def test_constant_field_limit_needs_weight():
    """A row that starts at 0 stays at 0, however small its entry is."""
    end = dynamics.constant_field_limit(jnp.array([-5.0, 1.0, 1.0]), jnp.array([0.0, 0.25, 0.75]))
    np.testing.assert_allclose(end, [0, 0.25, 0.75], rtol=1e-15)


RING = jnp.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])


def test_a_periodic_flow_does_not_converge():
    """The flow of an antisymmetric matrix conserves the product of the weights."""
    u0 = jnp.array([0.6, 0.3, 0.1])
    flow = dynamics.mirror_flow(
        Affine(RING, jnp.zeros(3)), u0, jnp.array([2.0, 4.0, 100.0]), tol=1e-3
    )
    assert not bool(flow.converged)
    assert bool(flow.finished)
    np.testing.assert_allclose(jnp.sum(flow.log_u, axis=1), np.log(0.018), atol=1e-6)
    assert float(flow.residual) > 0.01
    assert np.ptp(flow.u[:, 0]) > 0.3


@pytest.mark.slow
def test_one_compilation_for_fields_of_one_shape(compilations):
    for seed, tol in ((1001, 0.0), (1002, 1e-6), (1003, 1e-8)):
        dynamics.mirror_flow(low_rank(seed, 7, 2), uniform_weights(7), jnp.array([1.0]), tol=tol)
    assert compilations.count("jit(_integrate)") == 1


# What a flow reports.
@pytest.mark.slow
def test_rows_at_zero_stay_and_do_not_count():
    field = low_rank(98)
    on = np.array([True, True, False, True, False])
    u0 = jnp.where(on, 1 / 3, 0)
    flow = dynamics.mirror_flow(field, u0, jnp.array([0.5, 2.0, 200.0]), tol=1e-8)
    assert bool(jnp.all(flow.u[:, ~on] == 0))
    assert bool(jnp.all(flow.log_u[:, ~on] == -jnp.inf))
    assert bool(flow.converged)
    # Row 0 alone: everything else may want in, but nothing is there.
    alone = dynamics.mirror_flow(field, jax.nn.one_hot(0, 5), LONG, tol=1e-8)
    assert bool(alone.converged)
    assert float(alone.residual) == 0
    phi = field(jax.nn.one_hot(0, 5))
    assert float(jnp.min(phi)) < float(phi[0])

    # The same flow on the smaller simplex.
    small = dynamics.LowRankField(field.gradients[on], field.hessians[on], field.outer_gradient)
    again = dynamics.mirror_flow(small, UNIFORM_3, flow.ts, tol=1e-8)
    np.testing.assert_allclose(flow.u[:, on], again.u, atol=1e-8)


def test_the_last_state_is_repeated_after_convergence():
    field = low_rank(98)
    flow = dynamics.mirror_flow(field, UNIFORM_5, jnp.array([0.0, 500.0, 1000.0]), tol=1e-8)
    assert bool(flow.converged)
    assert bool(flow.finished)
    assert 0 < float(flow.residual) <= 1e-8
    assert bool(jnp.all(flow.u[1] == flow.u[2]))
    np.testing.assert_allclose(flow.u[0], np.full(5, 0.2), rtol=1e-12)
    assert flow.support.tolist() == [True, True, False, True, False]
    whole = dynamics.mirror_flow(field, UNIFORM_5, jnp.array([0, 500, 1000]), tol=1e-8)
    assert bool(whole.converged)
    np.testing.assert_array_equal(whole.u, flow.u)
    # The same without a tolerance goes all the way, to the same place.
    on = dynamics.mirror_flow(field, UNIFORM_5, flow.ts)
    assert not bool(on.converged)
    assert bool(on.finished)
    assert int(on.num_steps) > 3 * int(flow.num_steps)
    np.testing.assert_allclose(on.u, flow.u, atol=1e-7)


def test_residual_by_hand():
    field = low_rank(3)
    flow = dynamics.mirror_flow(field, UNIFORM_5, jnp.array([0.2, 0.5, 0.7]))
    u = flow.u[-1]
    c = field(u) - jnp.vdot(u, field(u))
    expected = max(float(jnp.max(u * jnp.abs(c))), float(jnp.max(-c)))
    assert float(flow.residual) == pytest.approx(expected, rel=1e-9)


def test_an_unstable_vertex_is_not_at_rest():
    """At a vertex that is not stable, a share of 1e-9 elsewhere keeps the residual up."""
    u0 = jnp.array([1 - 1e-9, 1e-9, 0.0])
    flow = dynamics.mirror_flow(constant(1, 0, 0), u0, jnp.array([0.0, 1.0, 60.0]), tol=1e-6)
    np.testing.assert_allclose(flow.u[-1], [0, 1, 0], atol=1e-5)
    assert bool(flow.converged)


def test_running_out_of_steps_is_reported():
    ts = jnp.array([0.0, 100.0, 200.0])
    flow = dynamics.mirror_flow(low_rank(98), UNIFORM_5, ts, max_steps=10)
    assert not bool(flow.finished)
    assert not bool(flow.converged)
    assert int(flow.num_steps) == 10
    np.testing.assert_allclose(flow.u[0], np.full(5, 0.2), rtol=1e-12)
    assert bool(jnp.all(flow.u[1] == flow.u[2]))  # where it stopped
    assert bool(jnp.all(jnp.isfinite(flow.u)))


@pytest.mark.slow
def test_without_a_tolerance_a_flow_does_not_stop_early():
    """The weights do not change by a bit, but the flow runs to the end and does not report
    convergence."""
    flow = dynamics.mirror_flow(constant(1, 1, 1), UNIFORM_3, LONG)
    assert not bool(flow.converged)
    assert float(flow.residual) < 1e-15
    assert int(flow.num_steps) > 0


@pytest.mark.slow
def test_vmap_equals_a_loop():
    fields = [low_rank(seed) for seed in (0, 1, 98)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *fields)
    flows = eqx.filter_jit(
        eqx.filter_vmap(lambda field: dynamics.mirror_flow(field, UNIFORM_5, LONG, tol=1e-8))
    )(batch)
    assert flows.u.shape == (3, 3, 5)
    assert flows.support.shape == (3, 5)
    for i, field in enumerate(fields):
        single = dynamics.mirror_flow(field, UNIFORM_5, LONG, tol=1e-8)
        np.testing.assert_allclose(flows.u[i], single.u, atol=1e-7)
        assert flows.support[i].tolist() == single.support.tolist()
        assert bool(flows.converged[i]) == bool(single.converged)


# Joint flows.


def joint(u0, w0, ts, alpha, beta, solver=None):
    return dynamics.joint_flow(PROBLEM, u0, w0, ts, alpha=alpha, beta=beta, solver=solver)


def gradient_flow(u, ts):
    """`w(t)` of `dw/dt = -grad_w f(u, w)` from W0 with u fixed, in closed form."""
    best = solution(u, PROBLEM.inner_data)["weight"][0]
    gap = W0["weight"][0] - best
    return np.array(
        [best + scipy.linalg.expm(-float(t) * np.asarray(hessian(u))) @ gap for t in ts]
    )


TIMES = jnp.array([0.5, 2.0, 8.0])


def test_joint_flow_from_a_vertex():
    """No weight can move there, but the model does."""
    u0 = jax.nn.one_hot(3, 6)
    flow = joint(u0, W0, TIMES, 0.7, 1.0)
    assert not bool(flow.converged)
    assert bool(flow.finished)
    np.testing.assert_allclose(flow.u, np.tile(u0, (3, 1)), atol=1e-14)
    np.testing.assert_allclose(weight(flow), gradient_flow(u0, 0.7 * TIMES), atol=1e-7)


@pytest.mark.slow
def test_joint_flow_with_a_slow_model():
    flow = joint(UNIFORM, W0, TIMES, 1e-10, 1.0, diffrax.Tsit5())
    frozen = dynamics.mirror_flow(dynamics.frozen_field(PROBLEM, W0), UNIFORM, TIMES)
    np.testing.assert_allclose(flow.u, frozen.u, atol=1e-7)
    np.testing.assert_allclose(weight(flow)[-1], W0["weight"][0], atol=1e-7)
    assert float(jnp.max(jnp.abs(frozen.u[-1] - UNIFORM))) > 0.3


# Fields.


def test_frozen_field_is_low_rank():
    gradients = eqx.filter_jit(dynamics.row_gradients)(PROBLEM, UNIFORM, W0)
    hessians = jnp.asarray(X[:, :, None] * X[:, None, :] + L2 * np.eye(2))
    outer_w = jax.jit(jax.grad(PROBLEM.outer, argnums=1))
    outer = outer_w(UNIFORM, W0, PROBLEM.outer_data)["weight"][0]
    expected = eqx.filter_jit(dynamics.LowRankField(gradients, hessians, outer))
    field = eqx.filter_jit(dynamics.frozen_field(PROBLEM, W0))
    for seed in range(3):
        u = jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(6)))
        np.testing.assert_allclose(field(u), expected(u), rtol=1e-10)
        # Equation 6, written out.
        by_hand = -gradients @ np.linalg.solve(hessian(u), outer)
        np.testing.assert_allclose(field(u), by_hand, rtol=1e-10)
    again = eqx.filter_jit(dynamics.frozen_field(PROBLEM, W0, lx.LU()))
    np.testing.assert_allclose(again(UNIFORM), field(UNIFORM), rtol=1e-10)


def test_row_gradients():
    by_hand = jax.jacobian(
        lambda w: squared_error(MODEL.predict(w, jnp.asarray(X)), jnp.asarray(Y))
    )
    expected = by_hand(W0)["weight"][:, 0]
    row_gradients = eqx.filter_jit(dynamics.row_gradients)
    np.testing.assert_allclose(row_gradients(PROBLEM, UNIFORM, W0), expected, rtol=1e-12)
    np.testing.assert_allclose(expected, (X @ [1, -2] - Y)[:, None] * X, rtol=1e-12)
    # More parameters than rows, through the other mode, and several leaves.
    x, y = jnp.asarray(X[:3]), jnp.array([0, 2, 1])
    model = linear_model(2, 3)
    problem = reweighting(x, y, x, y, model.predict)
    w = jax.tree.map(lambda leaf: leaf + 0.3, model.w0)
    gradients = row_gradients(problem, uniform_weights(3), w)
    gradient = jax.jit(jax.grad(problem.inner, argnums=1))
    assert gradients.shape == (3, 9)
    for i in range(3):
        row = gradient(jax.nn.one_hot(i, 3), w, problem.inner_data)
        flat = ravel_pytree(row)[0] - 1e-2 * 0.3  # the l2 term is no row's
        np.testing.assert_allclose(gradients[i], flat, atol=1e-14)


def test_exact_field_is_the_gradient():
    field = eqx.filter_jit(dynamics.exact_field(PROBLEM, bilevel.ClosedForm(solution), W0))

    @jax.jit
    @jax.grad
    def gradient(u):
        return PROBLEM.outer(u, solution(u, PROBLEM.inner_data), PROBLEM.outer_data)

    u = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(6)))
    np.testing.assert_allclose(field(u), gradient(u), rtol=1e-10)
    inner = bilevel.GradientInner(optax.sgd(0.3), 400)
    iterated = dynamics.exact_field(PROBLEM, inner, W0, lx.LU())
    np.testing.assert_allclose(eqx.filter_jit(iterated)(u), gradient(u), rtol=1e-8)


def two_row_mean(w0, target, t):
    """w and the row with the weight at time t, piece by piece; D = S_2 - S_1 for x = -1 and 1."""
    x, start, began, d = 1.0, w0, 0.0, 0.0
    while True:
        path = lambda s, x=x, start=start: x + (start - x) * np.exp(-s)  # noqa: E731
        integral = lambda s, x=x, start=start, d=d: (  # noqa: E731
            d + 2 * ((x - target) * s + (start - x) * (1 - np.exp(-s)))
        )
        grid = np.linspace(1e-3, 50, 20_000)
        crossed = grid[np.flatnonzero(integral(grid) * x >= 0)[0]]
        end = float(
            scipy.optimize.brentq(integral, max(crossed - 3e-3, 1e-9), crossed, xtol=1e-14)  # pyright: ignore[reportArgumentType]
        )
        if began + end > t:
            return path(t - began), int(x > 0)
        x, start, began, d = -x, path(end), began + end, 0.0


def test_slow_model_flow_of_a_mean_by_hand():
    """The weight stays on a row until the integral of the field has changed its sign."""
    rows, target, w0 = jnp.array([-1.0, 1.0]), 0.3, -0.5
    problem = bilevel.BilevelProblem(
        lambda u, w, _: 0.5 * jnp.sum((w - target) ** 2),
        lambda u, w, _: 0.5 * jnp.vdot(u, (w - rows) ** 2),
        geometry=bilevel.Simplex(),
    )
    ts, start = jnp.linspace(0, 3, 13), (uniform_weights(2), jnp.array([w0]))
    flow = dynamics.slow_model_flow(problem, *start, ts)
    assert bool(flow.finished)
    assert int(flow.num_steps) == 2
    expected = [two_row_mean(w0, target, float(t)) for t in ts]
    w = jnp.asarray(flow.w)[:, 0]
    np.testing.assert_allclose(w, [w for w, _ in expected], atol=1e-7)
    assert jnp.argmax(flow.u, axis=1).tolist() == [row for _, row in expected]
    np.testing.assert_allclose(jnp.max(flow.u, axis=1), 1, rtol=1e-12)
    few = dynamics.slow_model_flow(problem, *start, ts, max_switches=1)
    assert not bool(few.finished)
    np.testing.assert_allclose(jnp.asarray(few.w)[:9, 0], w[:9], rtol=1e-12)
    assert float(jnp.max(jnp.abs(w - target))) > 0.4  # the printed limit stays at 0.3


# A field at a point.


def test_is_stationary():
    for seed in range(5):
        field = low_rank(seed)
        assert all(dynamics.is_stationary(field, vertex) for vertex in jnp.eye(5))
        assert not dynamics.is_stationary(field, UNIFORM_5)
        assert not dynamics.is_stationary(field, jnp.array([0.5, 0.5, 0.0, 0.0, 0.0]))
    centred = lambda u: 3 * (u - 1 / 3)  # noqa: E731
    assert dynamics.is_stationary(centred, uniform_weights(3))
    nearly = jnp.array([1 / 3 + 1e-6, 1 / 3, 1 / 3 - 1e-6])
    assert not dynamics.is_stationary(centred, nearly)
    assert dynamics.is_stationary(centred, nearly, tol=1e-5)


class Scaled(eqx.Module):
    """`factor phi(u)`."""

    field: dynamics.Field
    factor: jax.Array

    def __call__(self, u):
        return self.factor * self.field(u)


@pytest.mark.slow
def test_a_factor_on_the_field_changes_no_verdict():
    """Of points that are stationary and of points that are not; also where phi vanishes."""
    field = low_rank(4)
    end = limit(field)
    end = jnp.where(end > dynamics.SUPPORT, end, 0) / jnp.sum(end, where=end > dynamics.SUPPORT)
    points = [end, *jnp.eye(5)]
    rates = []
    for factor in jnp.array([1e-6, 1.0, 1e6]):
        scaled = Scaled(field, factor)
        assert dynamics.is_stationary(scaled, end, 1e-6)
        assert not dynamics.is_stationary(scaled, UNIFORM_5, 1e-2)
        found = [dynamics.stability(scaled, u) for u in points]
        assert [x.stable for x in found] == [True, False, False, False, False, False]
        rates.append([x.rate / float(factor) for x in found])
        # phi = 0 at uniform weights up to rounding, and next to it as small as its differences.
        centred = Scaled(Affine(3 * jnp.eye(3), -jnp.ones(3)), factor)
        assert dynamics.is_stationary(centred, UNIFORM_3)
        assert dynamics.stability(centred, UNIFORM_3).stable
        assert not dynamics.is_stationary(centred, jnp.array([0.34, 0.33, 0.33]), 1e-3)
        # Two rows that are copies neither attract nor repel each other.
        copies = Scaled(constant(0.1, 0.1, 0.7), factor)
        assert not dynamics.stability(copies, jnp.array([0.3, 0.7, 0.0])).stable
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-9)
    np.testing.assert_allclose(rates[2], rates[1], rtol=1e-9)


def full_spectrum(field, u):
    """The eigenvalues of `D(P phi)` on all tangent directions."""
    jacobian = jax.jacfwd(lambda u: u * (field(u) - jnp.vdot(u, field(u))))(u)
    basis = scipy.linalg.null_space(np.ones((1, u.size)))
    return np.linalg.eigvals(basis.T @ jacobian @ basis)


@pytest.mark.slow  # quick: stability by hand
@pytest.mark.parametrize(("seed", "rows"), [(4, 2), (21, 3)])
def test_stability_is_the_full_spectrum(seed, rows):
    """The blocks of section 3.1 against the whole Jacobian: limits of flows, and all vertices."""
    field = low_rank(seed)
    points = [limit(field), *jnp.eye(5)]
    assert int(jnp.sum(points[0] > dynamics.SUPPORT)) == rows
    for i, u in enumerate(points):
        u = jnp.where(u > dynamics.SUPPORT, u, 0)
        u = u / jnp.sum(u)
        verdict = dynamics.stability(field, u)
        expected = np.sort_complex(full_spectrum(field, u))
        found = np.sort_complex(np.concatenate([verdict.eigenvalues, verdict.margins]))
        np.testing.assert_allclose(np.real(found), np.real(expected), rtol=1e-5, atol=1e-6)
        assert verdict.rate == pytest.approx(np.real(expected).min(), rel=1e-5, abs=1e-6)
        assert dynamics.local_rate(field, u) == pytest.approx(verdict.rate, rel=1e-5, abs=1e-6)
        assert verdict.stable == (verdict.rate > 0)
        assert verdict.support.tolist() == (u > 0).tolist()
        assert len(verdict.eigenvalues) == int(jnp.sum(u > 0)) - 1
        assert verdict.stable or i > 0  # where a flow ends is stable


def test_stability_by_hand():
    # A vertex of a constant field: the margins are the differences.
    verdict = dynamics.stability(lambda u: jnp.array([0.5, -1.0, 2.0]), jax.nn.one_hot(0, 3))
    np.testing.assert_allclose(verdict.margins, [-1.5, 1.5])
    assert not verdict.stable
    assert verdict.rate == -1.5
    assert verdict.eigenvalues.shape == (0,)
    # phi = c (u - 1/2) at the middle: c / 2.
    for c in (1.5, -1.5):
        verdict = dynamics.stability(lambda u, c=c: c * (u - 0.5), uniform_weights(2))
        assert verdict.stable == (c > 0)
        assert verdict.rate == pytest.approx(c / 2, rel=1e-12)
        assert verdict.margins.shape == (0,)
    # The ring with a pull to the middle: (eps +- i sqrt 3) / 3.
    field = lambda u: RING @ u + 0.3 * u  # noqa: E731
    verdict = dynamics.stability(field, uniform_weights(3))
    np.testing.assert_allclose(
        np.sort(np.imag(verdict.eigenvalues)), [-(3**-0.5), 3**-0.5], rtol=1e-9
    )
    np.testing.assert_allclose(np.real(verdict.eigenvalues), 0.1, rtol=1e-9)
    assert dynamics.local_rate(field, uniform_weights(3)) == pytest.approx(0.1, rel=1e-9)
    # A single row is stable with nothing to compare it to.
    assert dynamics.stability(lambda u: u, jnp.ones(1)).rate == np.inf


def test_stability_drops_what_is_below_the_threshold():
    u = jnp.array([1 - 3e-7, 1e-7, 2e-7])
    verdict = dynamics.stability(lambda u: jnp.array([0.0, 1.0, 2.0]), u)
    assert verdict.support.tolist() == [True, False, False]
    np.testing.assert_allclose(verdict.margins, [1, 2])


def test_stability_needs_a_stationary_point():
    with pytest.raises(ValueError, match=r"not a stationary point.*follow `mirror_flow`"):
        dynamics.stability(low_rank(0), UNIFORM_5)


# How large a support can be.


def test_support_bound():
    rng = np.random.default_rng(0)
    assert dynamics.support_bound(jnp.asarray(rng.normal(size=(7, 3)))) == 3
    assert dynamics.support_bound(jnp.asarray(rng.normal(size=(2, 3)))) == 2
    assert dynamics.support_bound(jnp.asarray(rng.normal(size=(4, 1)))) == 1
    assert dynamics.support_bound(jnp.zeros((4, 2))) == 0
    copies = jnp.asarray(np.repeat(rng.normal(size=(2, 3)), 3, axis=0))
    assert dynamics.support_bound(copies) == 2
    flat = jnp.asarray(rng.normal(size=(6, 2)) @ rng.normal(size=(2, 4)))
    assert dynamics.support_bound(flat) == 2


def test_may_be_stationary_by_hand():
    everywhere = jnp.ones(3, bool)
    column = lambda *x: jnp.array(x)[:, None]  # noqa: E731
    assert dynamics.may_be_stationary(column(2.0, 2.0, 2.0), everywhere)
    assert not dynamics.may_be_stationary(column(1.0, 2.0, 2.0), everywhere)
    assert dynamics.may_be_stationary(column(1.0, 2.0, 2.0), jnp.array([False, True, True]))
    assert dynamics.may_be_stationary(column(0.0, 0.0, 0.0), everywhere)  # 0 is level too
    # Copies of two rows; then rows on a line that misses the origin: no general position.
    rng = np.random.default_rng(0)
    copies = jnp.asarray(np.repeat(rng.normal(size=(2, 2)), 3, axis=0))
    assert dynamics.may_be_stationary(copies, jnp.ones(6, bool))
    line = jnp.array([[1.0, 0.3], [1.0, -2.0], [1.0, 0.7], [1.0, 5.0]])
    assert dynamics.may_be_stationary(line, jnp.ones(4, bool))
    assert not dynamics.may_be_stationary(line + jnp.eye(4, 2), jnp.ones(4, bool))
