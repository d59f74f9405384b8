"""Problems whose solutions and hypergradients are known: the table `CASES`.

The gradients of Phi are written out by hand in numpy, so that nothing they are compared with shares
their derivation.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import bilevel
from bilevel import FullBatch, Stream, Streams


@dataclass(frozen=True)
class Case:
    """A problem whose solution and hypergradient are known.

    `w_star(u)` is differentiable; `gradient(u)` is grad Phi by a formula of its own, flattened;
    `u_star` is the outer solution where it is known.
    """

    name: str
    problem: bilevel.BilevelProblem
    u: Any
    w0: Any
    w_star: Callable[[Any], Any]
    gradient: Callable[[Any], np.ndarray]
    u_star: Any = None

    def phi(self, u):
        return self.problem.outer(u, self.w_star(u), self.problem.outer_data)

    @functools.cached_property
    def hessian(self) -> np.ndarray:
        """`d2_ww f` at `(u, w*(u))`, dense."""
        problem = self.problem

        @jax.jit  # operation by operation it would be thirty small compilations
        def at(u):
            flat, unravel = ravel_pytree(self.w_star(u))
            return jax.hessian(lambda w: problem.inner(u, unravel(w), problem.inner_data))(flat)

        return np.asarray(at(self.u))

    @functools.cached_property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue of the inner Hessian at `u`."""
        values = np.linalg.eigvalsh(self.hessian)
        return float(values[0]), float(values[-1])

    @property
    def contraction(self) -> float:
        """What one gradient step of size `2 / (mu + L)` leaves of the distance to `w*`."""
        low, high = self.bounds
        return (high - low) / (high + low)

    def sgd(self) -> optax.GradientTransformation:
        low, high = self.bounds
        return optax.sgd(2 / (low + high))

    def streams(self) -> Streams:
        return on_all_data(self.problem)


def on_all_data(problem: Any) -> Streams:
    """The streams whose batches are all the data."""
    data = (problem.outer_data, problem.inner_data)
    return Streams(*(Stream(FullBatch(), x, ()) for x in data))


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def in_dtype(like: jax.Array, arrays: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(like.dtype), arrays)


def to_float32(tree: Any) -> Any:
    """Floating-point leaves in float32; objectives cast their constants to the dtype of `w`."""

    def cast(x):
        return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


def spd(seed: int, n: int, low: float = 1.0, high: float = 4.0) -> np.ndarray:
    """A symmetric matrix with eigenvalues spread evenly over [low, high]."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return (q * np.linspace(low, high, n)) @ q.T


@dataclass(frozen=True)
class Quadratic:
    """`f = w'Aw/2 - w'(Bu + c)`, `F = |w - t|^2/2 + lam |u|^2/2 + u'Dw`, as matrices."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    d: np.ndarray
    t: np.ndarray
    lam: float

    @classmethod
    def random(cls, seed: int, a: np.ndarray, num_u: int) -> "Quadratic":
        rng = np.random.default_rng(seed)
        n = len(a)
        b, c, t = rng.normal(size=(n, num_u)), rng.normal(size=n), rng.normal(size=n)
        return cls(a, b, c, 0.2 * rng.normal(size=(num_u, n)), t, 1.0)

    def gradient(self, u: np.ndarray, damping: float = 0.0) -> np.ndarray:
        w = np.linalg.solve(self.a, self.b @ u + self.c)
        damped = self.a + damping * np.eye(len(self.a))
        v = np.linalg.solve(damped, w - self.t + self.d.T @ u)
        return self.lam * u + self.d @ w + self.b.T @ v

    @property
    def outer_hessian(self) -> np.ndarray:
        zero = self.gradient(np.zeros(self.b.shape[1]))
        return np.stack([self.gradient(e) - zero for e in np.eye(self.b.shape[1])], axis=1)

    @property
    def u_star(self) -> np.ndarray:
        return -np.linalg.solve(self.outer_hessian, self.gradient(np.zeros(self.b.shape[1])))

    def case(self, name: str, u: Any, w0: Any) -> Case:
        """The problem for variables with the structure of `u` and `w0`."""
        matrices = [jnp.asarray(x) for x in (self.a, self.b, self.c, self.d, self.t)]
        a, b, c = matrices[:3]
        unravel_u, unravel_w = ravel_pytree(u)[1], ravel_pytree(w0)[1]

        def inner(u, w, _):
            u, w = ravel_pytree(u)[0], ravel_pytree(w)[0]
            a, b, c = in_dtype(w, matrices[:3])
            return 0.5 * w @ a @ w - w @ (b @ u + c)

        def outer(u, w, _):
            u, w = ravel_pytree(u)[0], ravel_pytree(w)[0]
            d, t = in_dtype(w, matrices[3:])
            return 0.5 * jnp.sum((w - t) ** 2) + 0.5 * self.lam * jnp.sum(u**2) + u @ d @ w

        return Case(
            name=name,
            problem=bilevel.BilevelProblem(outer, inner),
            u=u,
            w0=w0,
            w_star=lambda u: unravel_w(jnp.linalg.solve(a, b @ ravel_pytree(u)[0] + c)),
            gradient=lambda u: self.gradient(flat(u)),
            u_star=unravel_u(jnp.asarray(self.u_star)),
        )


COUPLED = Quadratic.random(1, spd(1, 5), 3)
ISOTROPIC = Quadratic.random(2, 2.0 * np.eye(4), 3)
TREE = Quadratic.random(3, spd(3, 6), 4)


def scalar_case() -> Case:
    """`w*(u) = 3u`, `Phi(u) = (3u - 1)^2/2 + u^2/4`; both variables are scalars."""
    return Case(
        name="scalar",
        problem=bilevel.BilevelProblem(
            outer=lambda u, w, _: 0.5 * (w - 1.0) ** 2 + 0.25 * u**2,
            inner=lambda u, w, _: 0.7 * (w - 3.0 * u) ** 2,
        ),
        u=jnp.array(0.4),
        w0=jnp.array(0.0),
        w_star=lambda u: 3.0 * u,
        gradient=lambda u: np.array([3 * (3 * float(u) - 1) + 0.5 * float(u)]),
        u_star=jnp.array(3 / 9.5),
    )


def tree_case() -> Case:
    u = (jnp.array(0.3), {"x": jnp.array([0.1, -0.2, 0.4])})
    w0 = {"a": jnp.zeros(3), "b": (jnp.array(0.0), jnp.zeros((2, 1)))}
    return TREE.case("pytree", u, w0)


def regression_data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x, xv = rng.normal(size=(20, 4)), rng.normal(size=(15, 4))
    w = rng.normal(size=4)
    return x, x @ w + rng.normal(size=20), xv, xv @ w + rng.normal(size=15)


def ridge_case(name: str, u: jax.Array) -> Case:
    """Ridge regression; `u` is the logarithm of the penalty, one or one per feature."""
    x, y, xv, yv = regression_data()
    n, m = len(x), len(xv)

    def inner(u, w, batch):
        x, y = batch
        return 0.5 * jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(u) * w**2)

    def outer(u, w, batch):
        x, y = batch
        return 0.5 * jnp.mean((x @ w - y) ** 2)

    def gradient(u):
        u = np.asarray(u)
        penalty = np.exp(u) * np.ones(4)
        h = x.T @ x / n + np.diag(penalty)
        w = np.linalg.solve(h, x.T @ y / n)
        v = np.linalg.solve(h, xv.T @ (xv @ w - yv) / m)
        entries = -penalty * w * v
        return entries if u.ndim else np.array([entries.sum()])

    def w_star(u):
        h = jnp.asarray(x.T @ x / n) + jnp.diag(jnp.exp(u) * jnp.ones(4))
        return jnp.linalg.solve(h, jnp.asarray(x.T @ y / n))

    trusted, train = (jnp.asarray(xv), jnp.asarray(yv)), (jnp.asarray(x), jnp.asarray(y))
    problem = bilevel.BilevelProblem(outer, inner, trusted, train)
    return Case(name, problem, u, jnp.zeros(4), w_star, gradient)


def logistic_case() -> Case:
    """Logistic regression with one weight per row on the simplex; no closed form, but Newton."""
    rng = np.random.default_rng(7)
    x, xv = rng.normal(size=(12, 3)), rng.normal(size=(8, 3))
    y, yv = np.sign(x[:, 0] + 0.5 * rng.normal(size=12)), np.sign(xv[:, 0])
    n, mu = len(x), 0.3

    def inner(u, w, batch):
        x, y, i, *ratio = batch  # with the ratio if the rows were drawn by weight
        losses = jax.nn.softplus(-y * (x @ w)) * (ratio[0] if ratio else 1)
        return n / len(i) * jnp.sum(u[i] * losses) + 0.5 * mu * jnp.sum(w**2)

    def outer(u, w, batch):
        x, y = batch
        return jnp.mean(jax.nn.softplus(-y * (x @ w)))

    problem = bilevel.BilevelProblem(
        outer,
        inner,
        outer_data=(jnp.asarray(xv), jnp.asarray(yv)),
        inner_data=(jnp.asarray(x), jnp.asarray(y), jnp.arange(n)),
        geometry=bilevel.Simplex(),
    )

    @jax.jit
    def w_star(u):
        def f(w):
            return problem.inner(u, w, problem.inner_data)

        def newton(_, w):
            return w - jnp.linalg.solve(jax.hessian(f)(w), jax.grad(f)(w))

        return jax.lax.fori_loop(0, 12, newton, jnp.zeros(3))

    def gradient(u):
        u, w, p, h = np.asarray(u), np.zeros(3), y, np.eye(3)
        for _ in range(50):
            p = 1 / (1 + np.exp(y * (x @ w)))
            h = (x * (u * p * (1 - p))[:, None]).T @ x + mu * np.eye(3)
            w = w - np.linalg.solve(h, -(x.T @ (u * y * p)) + mu * w)
        pv = 1 / (1 + np.exp(yv * (xv @ w)))
        v = np.linalg.solve(h, -(xv.T @ (yv * pv)) / len(xv))
        return -(-(y * p)[:, None] * x) @ v

    u = jnp.asarray(rng.dirichlet(np.ones(n)))
    return Case("logistic", problem, u, jnp.zeros(3), w_star, gradient)


def constrained_case(name: str, geometry, target: np.ndarray, u: np.ndarray, u_star) -> Case:
    """`w*(u) = u` and `Phi(u) = |u - target|^2 / 2`, within a set."""
    a, t = jnp.linspace(1.0, 2.0, len(target)), jnp.asarray(target)
    problem = bilevel.BilevelProblem(
        outer=lambda u, w, _: 0.5 * jnp.sum((w - in_dtype(w, t)) ** 2),
        inner=lambda u, w, _: 0.5 * jnp.sum(in_dtype(w, a) * (w - u) ** 2),
        geometry=geometry,
    )
    return Case(
        name,
        problem,
        jnp.asarray(u),
        jnp.zeros(len(target)),
        w_star=lambda u: u,
        gradient=lambda u: np.asarray(u) - target,
        u_star=jnp.asarray(u_star),
    )


_INTERIOR = np.array([0.4, 0.3, 0.2, 0.1])
_OUTSIDE = np.array([0.3, 0.8, -0.2])

CASES = {
    case.name: case
    for case in [
        scalar_case(),
        COUPLED.case("coupled", jnp.array([0.5, -0.3, 0.2]), jnp.zeros(5)),
        ISOTROPIC.case("isotropic", jnp.array([0.1, 0.7, -0.4]), jnp.zeros(4)),
        tree_case(),
        ridge_case("ridge", jnp.array(-0.5)),
        ridge_case("ridge_per_feature", jnp.array([-0.5, 0.2, 0.0, -0.1])),
        logistic_case(),
        constrained_case("simplex", bilevel.Simplex(), _INTERIOR, np.ones(4) / 4, _INTERIOR),
        constrained_case(
            "box", bilevel.Box(0.0, 0.5), _OUTSIDE, np.full(3, 0.25), _OUTSIDE.clip(0, 0.5)
        ),
    ]
}


def on_network(case: Case, agents: int) -> Case:
    """The case for agents who all have the same objectives."""

    def every(x: Any) -> Any:
        return bilevel.replicate(x, agents)

    def gradient(u: Any) -> np.ndarray:
        own = [case.gradient(jax.tree.map(lambda x, i=i: x[i], u)) for i in range(agents)]
        return np.stack(own).ravel() / agents

    return Case(
        f"{case.name} on a network",
        bilevel.on_network(case.problem, agents),
        every(case.u),
        every(case.w0),
        jax.vmap(case.w_star),
        gradient,
        None if case.u_star is None else every(case.u_star),
    )


def client_shifts(dim_u: int, dim_w: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What three clients add to a problem: curvatures and slopes in w, slopes in u; means of zero."""
    rng = np.random.default_rng(11)
    curvatures = 0.1 * rng.normal(size=(3, dim_w, dim_w))
    curvatures = curvatures + curvatures.swapaxes(1, 2)
    slopes, outer_slopes = rng.normal(size=(3, dim_w)), rng.normal(size=(3, dim_u))
    return (
        curvatures - curvatures.mean(axis=0),
        slopes - slopes.mean(axis=0),
        outer_slopes - outer_slopes.mean(axis=0),
    )


def among_clients(case: Case) -> Case:
    """The case as the mean over three clients that differ; its variables are vectors."""
    curvatures, slopes, outer_slopes = client_shifts(len(case.u), len(case.w0))
    problem = case.problem

    def inner(u, w, batch):
        e, s = (jnp.mean(x.astype(w.dtype), axis=0) for x in batch)
        return problem.inner(u, w, None) + 0.5 * w @ e @ w + s @ w

    def outer(u, w, batch):
        return problem.outer(u, w, None) + jnp.mean(batch.astype(u.dtype), axis=0) @ u

    return dataclasses.replace(
        case,
        name=f"{case.name} among clients",
        problem=bilevel.BilevelProblem(
            outer,
            inner,
            outer_data=jnp.asarray(outer_slopes),
            inner_data=(jnp.asarray(curvatures), jnp.asarray(slopes)),
        ),
    )
