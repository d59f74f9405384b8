"""BiG-SAM against its equations in numpy, closed forms by pseudo-inverse, central differences."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import (
    ITD,
    BiGSAM,
    BilevelProblem,
    DoubleLoop,
    FullBatch,
    GradientInner,
    Shuffled,
    Stream,
    printed_weighting,
    sabach_shtern_weighting,
)
from helpers import estimate_on_all_data, norm_error, on_all_data


def inner_loss(u, w, rows):
    a, b, c = rows
    return 0.5 * jnp.sum((a @ w - b @ u - c) ** 2)


def outer_loss(u, w, rows):
    r, s, t = rows
    return 0.5 * jnp.sum((r @ w - s @ u - t) ** 2) + 0.5 * jnp.sum(u**2)


def with_singular_values(rng, n: int, m: int, low: float, high: float) -> np.ndarray:
    q = np.linalg.qr(rng.normal(size=(m, n)))[0].T
    return np.linalg.qr(rng.normal(size=(n, n)))[0] @ (np.linspace(low, high, n)[:, None] * q)


@dataclass(frozen=True)
class Wide:
    """`f = |A w - B u - c|^2 / 2`, 3 rows for 6 unknowns; `F = (|R w - S u - t|^2 + |u|^2) / 2`.

    f has a three-dimensional affine set of minimisers for every u; L = 4 and mu = 1 across them.
    F is strongly convex in w with constants 1 and 3.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    r: np.ndarray
    s: np.ndarray
    t: np.ndarray

    @classmethod
    def random(cls, seed: int) -> "Wide":
        rng = np.random.default_rng(seed)
        return cls(
            a=with_singular_values(rng, 3, 6, 1.0, 2.0),
            b=rng.normal(size=(3, 2)),
            c=rng.normal(size=3),
            r=with_singular_values(rng, 6, 6, 1.0, np.sqrt(3.0)),
            s=0.3 * rng.normal(size=(6, 2)),
            t=rng.normal(size=6),
        )

    @property
    def problem(self) -> BilevelProblem:
        inner_rows = tuple(jnp.asarray(x) for x in (self.a, self.b, self.c))
        outer_rows = tuple(jnp.asarray(x) for x in (self.r, self.s, self.t))
        return BilevelProblem(outer_loss, inner_loss, outer_rows, inner_rows)

    def f(self, u, w) -> float:
        return 0.5 * float(np.sum((self.a @ w - self.b @ u - self.c) ** 2))

    def outer(self, u, w) -> float:
        return 0.5 * float(np.sum((self.r @ w - self.s @ u - self.t) ** 2) + np.sum(u**2))

    def inner_grad(self, u, w):
        return self.a.T @ (self.a @ w - self.b @ u - self.c)

    def outer_grad(self, u, w):
        return self.r.T @ (self.r @ w - self.s @ u - self.t)

    def project(self, u, w):
        """The nearest inner minimiser."""
        return w - np.linalg.pinv(self.a) @ (self.a @ w - self.b @ u - self.c)

    def best(self, u):
        """The w(u) of the improved model: the inner minimiser with the lowest F."""
        start = np.linalg.pinv(self.a) @ (self.b @ u + self.c)
        null = np.linalg.svd(self.a)[2][3:].T
        right = self.s @ u + self.t - self.r @ start
        return start + null @ np.linalg.lstsq(self.r @ null, right, rcond=None)[0]

    def nearest(self, u):
        """The w(u) of the basic model: the end of gradient descent from zero."""
        return self.project(u, np.zeros(6))

    def outer_optimum(self, u):
        """argmin_w F, whatever f is."""
        return np.linalg.solve(self.r, self.s @ u + self.t)

    def weighted_optimum(self, u, weight):
        """The fixed point of the average of the two steps, at a constant weight."""
        p, q = INNER_STEP * (1 - weight), OUTER_STEP * weight
        hessian = p * self.a.T @ self.a + q * self.r.T @ self.r
        right = p * self.a.T @ (self.b @ u + self.c) + q * self.r.T @ (self.s @ u + self.t)
        return np.linalg.solve(hessian, right)


def central(function, u, h: float = 1e-5) -> np.ndarray:
    return np.array([(function(u + h * e) - function(u - h * e)) / (2 * h) for e in np.eye(len(u))])


INNER_STEP = 1 / 4
OUTER_STEP = 2 / (1 + 3)
CONTRACTION = np.sqrt(1 - 2 * OUTER_STEP * 3 / (1 + 3))  # = 1/2
WEIGHTINGS = {
    "Sabach-Shtern": (sabach_shtern_weighting(CONTRACTION), lambda k: min(2 / (k / 2), 1.0)),
    "printed": (printed_weighting(), lambda k: 1 - k**-0.25),
}
INNER_TX, OUTER_TX = optax.sgd(INNER_STEP), optax.sgd(0.1)
WIDE = Wide.random(0)
U = np.array([0.5, -0.3])
STREAMS = on_all_data(WIDE.problem)


def bigsam(name: str, num_steps: int, **options) -> BiGSAM:
    return BiGSAM(INNER_STEP, OUTER_STEP, num_steps, WEIGHTINGS[name][0], **options)


@eqx.filter_jit
def _solve(solver, problem, u, w, stream):
    return solver.solve(problem, u, w, solver.init(problem, u, w), stream)


def solve(solver, u=U, w0=None, problem=WIDE.problem):
    w0 = np.zeros(6) if w0 is None else w0
    stream = Stream(FullBatch(), problem.inner_data, ())
    return np.asarray(_solve(solver, problem, jnp.asarray(u), jnp.asarray(w0), stream)[0])


def estimate(estimator, solver, u, w0):
    return estimate_on_all_data(WIDE.problem, estimator, solver, u, w0)


def transcribed(weight, num_steps: int, every: int = 1) -> np.ndarray:
    """The paper's Algorithm 1, alpha_k on the inner step; its Figure 2 by `every`."""
    w = np.zeros(6)
    for k in range(num_steps):
        alpha = 1 - weight(k + 1)
        if (k + 1) % every:
            alpha = 1.0  # "setting alpha_k as 1"
        theta = w - INNER_STEP * WIDE.inner_grad(U, w)
        phi = w - OUTER_STEP * WIDE.outer_grad(U, w)
        w = alpha * theta + (1 - alpha) * phi
    return w


@pytest.mark.parametrize("every", [1, 3, 20])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_fifty_steps_are_the_equations(name, every):
    truth = transcribed(WEIGHTINGS[name][1], 50, every)
    solver = bigsam(name, 50, every=every)
    np.testing.assert_allclose(solve(solver), truth, rtol=0, atol=1e-12)
    assert norm_error(truth, transcribed(lambda k: 0.0, 50)) > 0.01


def test_weightings_by_hand():
    k = jnp.arange(1.0, 7.0)
    np.testing.assert_allclose(
        np.asarray(jax.vmap(sabach_shtern_weighting(0.5, 0.75))(k)),
        [1, 1, 1, 3 / 4, 3 / 5, 1 / 2],
    )
    np.testing.assert_allclose(
        np.asarray(jax.vmap(printed_weighting())(k)), 1 - np.arange(1, 7) ** -0.25, atol=1e-15
    )
    assert float(sabach_shtern_weighting()(8.0)) == 0.25
    assert float(printed_weighting(0.5)(4.0)) == 0.5


# The basic model


def basic(num_steps: int) -> GradientInner:
    return GradientInner(INNER_TX, num_steps)


def test_weights_of_zero_are_the_basic_model():
    """Algorithm 6: the same inner iterates, hypergradients and outer iterates."""
    solver = BiGSAM(INNER_STEP, OUTER_STEP, 20, lambda k: 0.0)
    np.testing.assert_allclose(solve(solver), solve(basic(20)), rtol=0, atol=1e-14)
    one, two = (
        bilevel.solve(
            WIDE.problem,
            DoubleLoop(inner, ITD(), OUTER_TX),
            jnp.asarray(U),
            jnp.zeros(6),
            num_steps=10,
            chunk_size=10,
        )
        for inner in (solver, basic(20))
    )
    np.testing.assert_allclose(np.asarray(one.u), np.asarray(two.u), rtol=0, atol=1e-14)
    values = [run.trace["outer_value"] for run in (one, two)]
    np.testing.assert_allclose(*values, rtol=1e-14)
    assert norm_error(one.u, U) > 0.1


# Hypergradients


def reverse_mode(weight, num_steps: int, last: int = 0) -> np.ndarray:
    """Algorithm 5: K - 1 .. `last`. The paper stops at 1, a step too early."""
    w = transcribed(weight, num_steps)
    adjoint = WIDE.outer_grad(U, w)
    grad = U - WIDE.s.T @ (WIDE.r @ w - WIDE.s @ U - WIDE.t)
    for k in range(num_steps - 1, last - 1, -1):
        p, q = INNER_STEP * (1 - weight(k + 1)), OUTER_STEP * weight(k + 1)
        grad = grad + adjoint @ (p * WIDE.a.T @ WIDE.b + q * WIDE.r.T @ WIDE.s)
        adjoint = adjoint @ (np.eye(6) - p * WIDE.a.T @ WIDE.a - q * WIDE.r.T @ WIDE.r)
    return grad


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("printed", "reverse"),
        ("Sabach-Shtern", "forward"),
        ("printed", "checkpointed"),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in [
                ("Sabach-Shtern", "reverse"),
                ("printed", "forward"),
                ("Sabach-Shtern", "checkpointed"),
            ]
        ),
    ],
)
def test_unrolled_is_algorithm_five(name, mode):
    solver, (_, weight) = bigsam(name, 10), WEIGHTINGS[name]
    found = estimate(ITD(mode), solver, jnp.asarray(U), jnp.zeros(6))
    truth = reverse_mode(weight, 10)
    np.testing.assert_allclose(np.asarray(found.grad), truth, rtol=1e-12)
    differences = central(lambda u: WIDE.outer(u, solve(solver, u)), U)
    assert norm_error(found.grad, differences) < 1e-8
    np.testing.assert_allclose(np.asarray(found.w), solve(solver), rtol=1e-13)
    passes = 2 if mode == "checkpointed" else 1
    assert [int(n) for n in jax.tree.leaves(found.calls)[:2]] == [1 + 10 * passes, 1 + 10 * passes]


def test_blocks_of_steps_go_on_counting():
    """With `every` above the size of a block, and truncated: the same numbers as in one piece."""
    solver = bilevel.BiGSAM(INNER_STEP, OUTER_STEP, 11, every=5)
    runs = [
        estimate(itd, solver, jnp.asarray(U), jnp.zeros(6))
        for itd in (ITD(), ITD("checkpointed"), ITD(truncate=11), ITD("checkpointed", truncate=4))
    ]
    for found in runs:
        np.testing.assert_allclose(np.asarray(found.w), np.asarray(runs[0].w), rtol=1e-13)
    for found in runs[1:3]:
        np.testing.assert_allclose(np.asarray(found.grad), np.asarray(runs[0].grad), rtol=1e-12)
    truncated = estimate(ITD(truncate=4), solver, jnp.asarray(U), jnp.zeros(6)).grad
    np.testing.assert_allclose(np.asarray(runs[3].grad), np.asarray(truncated), rtol=1e-12)
    assert norm_error(truncated, np.asarray(runs[0].grad)) > 1e-3


# What each weighting converges to


def test_sabach_shtern_finds_the_best_inner_minimiser():
    """The distance falls as 1 / K, the inner excess as 1 / K^2, for a known contraction or not."""
    truth, steps = WIDE.best(U), (100, 1000, 10000)
    assert norm_error(WIDE.nearest(U), truth) > 0.3
    for weighting in (sabach_shtern_weighting(CONTRACTION), sabach_shtern_weighting()):
        found = [solve(BiGSAM(INNER_STEP, OUTER_STEP, k, weighting)) for k in steps]
        distance = [norm_error(w, truth) for w in found]
        excess = [WIDE.f(U, w) for w in found]
        np.testing.assert_allclose(np.diff(np.log10(distance)), -1, atol=0.1)
        np.testing.assert_allclose(np.diff(np.log10(excess)), -2, atol=0.2)
        assert distance[-1] < 2e-3
        assert excess[-1] < 2e-6
        # f is not minimised, to the order of b_K, and F is lower for it.
        assert all(WIDE.outer(U, w) < WIDE.outer(U, truth) for w in found)


@pytest.mark.parametrize(
    ("outer_step", "contraction", "power"), [(0.25, 0.0, 0.5), (0.1, 0.0, 0.2), (0.1, 0.9, 1.0)]
)
def test_the_rate_follows_the_scale_of_the_weights(outer_step, contraction, power):
    """`k^-p`, p = min(1, 2 s sigma / (1 - beta)); sigma = 1 is the curvature of F."""
    wide = Wide(WIDE.a, WIDE.b, WIDE.c, np.eye(6), WIDE.s, WIDE.t)
    weighting = sabach_shtern_weighting(contraction)
    distance = [
        norm_error(
            solve(
                BiGSAM(INNER_STEP, outer_step, k, weighting),
                w0=np.full(6, 5.0),
                problem=wide.problem,
            ),
            wide.best(U),
        )
        for k in (10_000, 100_000)
    ]
    assert abs(np.log10(distance[0] / distance[1]) - power) < 0.01


def test_printed_weighting_drifts_to_the_outer_optimum():
    """The distance to argmin F falls as K^-1/4 while f rises: w_K is the optimum of the average."""
    truth, target, steps = WIDE.best(U), WIDE.outer_optimum(U), (100, 1000, 10000, 100000)
    found = [solve(bigsam("printed", k)) for k in steps]
    to_best = [norm_error(w, truth) for w in found]
    to_target = [norm_error(w, target) for w in found]
    excess = [WIDE.f(U, w) for w in found]
    assert np.all(np.diff(to_best) > 0)
    assert np.all(np.diff(excess) > 0)
    assert abs(np.log10(to_target[2] / to_target[3]) - 0.25) < 0.02
    assert to_target[-1] < 0.06
    assert excess[-1] > 0.85 * WIDE.f(U, target)
    for k, w in zip(steps, found, strict=True):
        assert norm_error(w, WIDE.weighted_optimum(U, 1 - k**-0.25)) < 0.1 / k


# Theorem 2


# The machinery


def test_one_inner_batch_per_step_and_all_outer_data():
    """With step 1/2 and b = 1/2, a step averages the row that was drawn and the mean."""
    rows, trusted = jnp.arange(5.0), jnp.array([10.0, 30.0])
    problem = BilevelProblem(
        outer=lambda u, w, y: jnp.mean((w - y) ** 2),
        inner=lambda u, w, x: jnp.mean((w - x) ** 2) + 0.0 * u,
        outer_data=trusted,
        inner_data=rows,
    )
    sampler, zero = Shuffled(1), jnp.array(0.0)
    stream = Stream(sampler, rows, sampler.init(rows, jax.random.key(0)))
    solver = BiGSAM(0.5, 0.5, 1, lambda k: 0.5)
    seen = []
    for _ in range(5):
        w, _, stream, _ = _solve(solver, problem, zero, zero, stream)
        seen.append(2 * float(w) - 20.0)
    np.testing.assert_allclose(sorted(seen), [0.0, 1.0, 2.0, 3.0, 4.0], atol=1e-13)
    start = Stream(sampler, rows, sampler.init(rows, jax.random.key(0)))
    w, _, after, _ = _solve(BiGSAM(0.5, 0.5, 5, lambda k: 0.5), problem, zero, zero, start)
    assert float(w) == pytest.approx((seen[-1] + 20.0) / 2, abs=1e-13)
    assert int(after.state.epoch) == 1


def test_steps_can_be_mapped_over():
    steps = jnp.array([0.1, 0.2, 0.25])

    @jax.jit
    def ends(steps):
        def end(t):
            solver = BiGSAM(t, OUTER_STEP, 9, every=4)
            return solver.solve(WIDE.problem, jnp.asarray(U), jnp.zeros(6), (), STREAMS.inner)[0]

        return jax.vmap(end)(steps)

    for t, w in zip([0.1, 0.2, 0.25], np.asarray(ends(steps)), strict=True):
        one = solve(BiGSAM(t, OUTER_STEP, 9, every=4))
        np.testing.assert_allclose(w, one, rtol=1e-12)


def test_float32_stays_float32():
    problem = BilevelProblem(
        lambda u, w, _: jnp.sum((w - 2.0) ** 2), lambda u, w, _: (w[0] - u) ** 2
    )
    start = jnp.zeros(2, jnp.float32)
    for weighting, _ in WEIGHTINGS.values():
        solver = BiGSAM(0.5, 0.5, 8, weighting)
        w, *_ = solver.solve(problem, jnp.float32(1.0), start, (), Stream(FullBatch(), None, ()))
        assert w.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, r"`BiGSAM` needs num_steps >= 1, got 0\."),
        ({"every": 0}, r"needs every in 1 \.\. num_steps = 5, got 0\. For gradient steps alone"),
        ({"every": 6}, r"needs every in 1 \.\. num_steps = 5, got 6\."),
        ({"inner_step": 0.0}, r"`BiGSAM` needs inner_step > 0, got 0\.0\."),
        ({"outer_step": -1.0}, r"`BiGSAM` needs outer_step > 0, got -1\.0\."),
        ({"outer_step": np.nan}, r"`BiGSAM` needs outer_step > 0, got nan\."),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiGSAM(**({"inner_step": 0.1, "outer_step": 0.1, "num_steps": 5} | arguments))


def test_weightings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"needs contraction in \[0, 1\), got 1\.0\."):
        sabach_shtern_weighting(1.0)
    with pytest.raises(ValueError, match=r"needs gamma in \(0, 1\], got 0\.0\."):
        sabach_shtern_weighting(0.5, 0.0)
    with pytest.raises(ValueError, match=r"`printed_weighting` needs power > 0, got -0\.25\."):
        printed_weighting(-0.25)
    word: str = "printed"
    with pytest.raises(TypeError, match="as a function, k -> weight of the outer step, got 'prin"):
        BiGSAM(0.1, 0.1, 5, word)  # pyright: ignore


def test_a_fixed_point_problem_is_refused():
    problem = bilevel.FixedPointProblem(lambda u, w, _: w, lambda u, w, _: 0.5 * w + u)
    zero = jnp.array(0.0)
    method = DoubleLoop(BiGSAM(0.1, 0.1, 5), ITD(), OUTER_TX)
    with pytest.raises(TypeError, match="inner objective, which a `FixedPointProblem` does not"):
        bilevel.solve(problem, method, zero, zero, num_steps=1, chunk_size=1)
