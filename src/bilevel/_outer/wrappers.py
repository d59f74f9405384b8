"""What keeps weights from going sparse: parts that wrap a geometry or an algorithm.

Data reweighting collapses onto a few rows when the weights move faster than the model (Ivanova &
Ablin, section 3). Each of these is one answer, a few lines, and they combine:

    limit_log_step, kl_pull, optax.clip   transform an outer update; `Adjusted` brings them into
                                          methods that have step sizes in place of optax
    ImportanceSampling, Averaged          wrap an algorithm
    penalised                             wraps a problem: entropy or l2 on the outer objective

Near-exact outer steps (`near_exact`) and weight functions with few parameters (`weight_function`)
change the method and the problem themselves. `docs/reweighting.md` compares them all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Key, PyTree, Scalar, ScalarLike

from .._algorithm.base import AbstractAlgorithm, SamplerStates, State
from .._geometry import AbstractGeometry, Simplex
from .._problem import BilevelProblem, num_rows
from .._sampler import AbstractSampler, Batch


class Adjusted(AbstractGeometry):
    """A geometry whose updates first pass through an optax transformation.

        retract(u, delta) = inside.retract(u, tx(delta, u))

    The single-loop methods have step sizes in place of an optax transformation; this is how
    one gets in: `Adjusted(optax.clip(0.1))` bounds what one visit does to a row's log-weight. In
    `DoubleLoop`, chain the transformation behind `outer_tx` instead.

    Args:
        tx: a transformation *without state*: `limit_log_step`, `kl_pull`, `optax.clip`, ...
        inside: the geometry that makes the step.

    Raises:
        ValueError: `tx` has a state.
    """

    tx: optax.GradientTransformation
    inside: AbstractGeometry = Simplex()

    def retract(self, u, delta):
        """A step of `inside` with the transformed update."""
        state = self.tx.init(u)
        if jax.tree.leaves(state):
            raise ValueError(
                "`Adjusted` needs an optax transformation without state, since a geometry remembers "
                "nothing from one step to the next; got one with state "
                f"{jax.tree.structure(state)}. Use it as the `outer_tx` of `DoubleLoop`."
            )
        return self.inside.retract(u, self.tx.update(delta, state, u)[0])

    def project(self, u):
        """As `inside`."""
        return self.inside.project(u)

    def measure(self, u, grad):
        """As `inside`."""
        return self.inside.measure(u, grad)


def limit_log_step(radius: float) -> optax.GradientTransformation:
    """Updates of weights on the simplex, cut so that no log-weight moves by more than `radius`.

        c     = delta - <u, delta>                      (relative to the average row)
        delta = c min(1, radius / max_i |c_i|)

    The update keeps its direction. A step size that is too large for the start, or for a gradient
    that one dominating row blows up, no longer decides the run in one step. In contrast to
    `log_trust_region`, which always moves by its radius and needs no step size, this only bounds.

    Args:
        radius: > 0, in units of log-weight a step.

    >>> import jax.numpy as jnp
    >>> tx, u = limit_log_step(0.1), jnp.array([0.5, 0.5])
    >>> [round(float(x), 4) for x in tx.update(jnp.array([3.0, 1.0]), tx.init(u), u)[0]]
    [0.1, -0.1]
    """
    if not radius > 0:
        raise ValueError(f"`radius` must be positive, got {radius}.")

    def update(delta: PyTree[Array], u: PyTree[Array] | None) -> PyTree[Array]:
        c = Simplex().tangent(u, delta)
        largest = optax.tree.norm(c, ord=jnp.inf)
        return optax.tree.scale(jnp.where(largest > radius, radius / largest, 1), c)

    return optax.stateless(update)


def kl_pull(
    strength: float, reference: PyTree[Array] | None = None
) -> optax.GradientTransformation:
    """Steps on the simplex that end with a proximal step of `strength * KL(u || reference)`.

        delta = (delta + s (log reference - log u)) / (1 + s)

    With v the point that the update led to, the new point is `argmin KL(. || v) + s KL(. ||
    reference)`. After a mirror step of size eta it is one proximal step on `Phi + (s / eta) KL(. ||
    reference)`, stable at any size: the weights settle at `reference * exp(-(eta / s) grad Phi)`,
    which bounds how sparse they get.

    Args:
        strength: s > 0, a step.
        reference: a point of the simplex like `u`, without zeros; `None` is the uniform one.
    """
    if not strength > 0:
        raise ValueError(f"`strength` must be positive, got {strength}.")

    def update(delta: PyTree[Array], u: PyTree[Array] | None) -> PyTree[Array]:
        log_u = jax.tree.map(jnp.log, u)
        # What all rows have in common does not matter.
        target = optax.tree.zeros_like(u) if reference is None else jax.tree.map(jnp.log, reference)
        pull = optax.tree.scale(strength, optax.tree.sub(target, log_u))
        return optax.tree.scale(1 / (1 + strength), optax.tree.add(delta, pull))

    return optax.stateless(update)


class _ByWeight(NamedTuple):
    key: Key[Array, ""]
    drawn: Array
    u: Float[Array, " rows"]


class ByWeight(AbstractSampler):
    """Batches drawn by weight, for objectives that take the importance ratio as a last leaf.

        i ~ q = (1 - share) / n + share u,   ratio_i = 1 / (n q_i)

    independently, with replacement; the batch is `(*data, ratio)`. A mean over the batch with each
    term times its ratio is an unbiased estimate of the mean over all rows, whose terms are bounded:
    a row of weight u_i counts at most `1 / share` times its share of the batch, and any row at
    most `1 / (1 - share)` times as in a uniform draw. Uniform batches see a dominating
    row n / |B| times as heavy as it is, or not at all.

    The weights that it draws by are those of its state: wrap the algorithm in `ImportanceSampling`.

    Args:
        batch_size: >= 1.
        share: strictly between 0 and 1; how much of a batch is drawn by weight, not uniformly.

    Raises:
        ValueError: `batch_size` or `share` outside of its range, no data, or data that are no tuple.
    """

    batch_size: int
    share: float = 0.5

    def __check_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"`ByWeight` needs batch_size >= 1, got {self.batch_size}.")
        if not 0 < self.share < 1:
            raise ValueError(f"`ByWeight` needs 0 < share < 1, got {self.share}.")

    def init(self, data, key):
        """Uniform weights."""
        if not isinstance(data, tuple) or not num_rows(data):
            raise ValueError(
                "`ByWeight` adds a leaf to the rows it draws, so the data must be a tuple of arrays, "
                f"got {type(data).__name__}."
            )
        n = num_rows(data)
        return _ByWeight(key, jnp.zeros((), jnp.int32), jnp.full((n,), 1 / n, float))

    def draw(self, data, state):
        """`batch_size` rows with their ratios."""
        n = num_rows(data)
        q = (1 - self.share) / n + self.share * state.u
        cumulative = jnp.cumsum(q)
        points = jr.uniform(jr.fold_in(state.key, state.drawn), (self.batch_size,), q.dtype)
        index = jnp.searchsorted(cumulative, points * cumulative[-1])
        index = jnp.minimum(index, n - 1).astype(jnp.int32)
        rows = jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data)
        ratio = 1 / (n * q[index])
        following = _ByWeight(state.key, state.drawn + 1, state.u)
        return Batch((*rows, ratio), index), following


class ImportanceSampling(AbstractAlgorithm):
    """An algorithm whose inner sampler `ByWeight` draws by the current weights.

    Args:
        algorithm: any whose `inner_sampler` is `ByWeight`, with `u` one array of weights.

    Raises:
        TypeError: its inner sampler is another one.
    """

    algorithm: AbstractAlgorithm

    def init(self, problem, u0, w0, key):
        """As the algorithm's."""
        sampler = getattr(self.algorithm, "inner_sampler", None)
        if not isinstance(sampler, ByWeight):
            raise TypeError(
                "`ImportanceSampling` needs an algorithm with `inner_sampler=ByWeight(...)`, got "
                f"`{type(self.algorithm).__name__}` with {sampler!r}."
            )
        return self.algorithm.init(problem, u0, w0, key)

    def step(self, problem, state):
        """Tell the sampler the weights, then step."""
        weights = jax.lax.stop_gradient(state.u)

        def tell(x: Any) -> Any:
            if not isinstance(x, SamplerStates):
                return x
            u = weights.astype(x.inner.u.dtype)
            return x._replace(inner=x.inner._replace(u=u))

        aux = jax.tree.map(tell, state.aux, is_leaf=lambda x: isinstance(x, SamplerStates))
        return self.algorithm.step(problem, dataclasses.replace(state, aux=aux))


class _Average(NamedTuple):
    u: PyTree[Array]
    aux: Any


class Averaged(AbstractAlgorithm):
    """An algorithm that also keeps the average of its outer iterates (Polyak & Ruppert).

        a_{k+1} = a_k + (u_{k+1} - a_k) / max(k + 1 - start, 1)

    The run itself is unchanged, and so is `solution.u`; `Averaged.average(solution.state)` is the mean
    of the iterates after the first `start`. Where weights wander from row to row, or
    oscillate, their average is far less sparse than any of them.

    Args:
        algorithm: any.
        start: how many iterates to leave out.
    """

    algorithm: AbstractAlgorithm
    start: int = 0

    def init(self, problem, u0, w0, key):
        """The average begins at `u0`."""
        state = self.algorithm.init(problem, u0, w0, key)
        return dataclasses.replace(state, aux=_Average(state.u, state.aux))

    def step(self, problem, state):
        """A step of the algorithm, and the average brought up to date."""
        inner = dataclasses.replace(state, aux=state.aux.aux)
        following, info = self.algorithm.step(problem, inner)
        count = jnp.maximum(following.step - self.start, 1)
        average = jax.tree.map(
            lambda a, u: a + (u - a) / count.astype(u.dtype), state.aux.u, following.u
        )
        return dataclasses.replace(following, aux=_Average(average, following.aux)), info

    @staticmethod
    def average(state: State) -> PyTree[Array]:
        """The average in a state of such a run."""
        return state.aux.u


class _Penalised(eqx.Module):
    outer: Callable[[PyTree, PyTree, Any], Scalar]
    penalty: Callable[[PyTree], Scalar]
    strength: Array

    def __call__(self, u: PyTree, w: PyTree, batch: Any) -> Scalar:
        value = self.outer(u, w, batch)
        return value + self.strength.astype(value.dtype) * self.penalty(u)


def penalised(
    problem: BilevelProblem, penalty: Callable[[PyTree], Scalar], strength: ScalarLike
) -> BilevelProblem:
    """The problem with `F(u, w) + strength * penalty(u)` as its outer objective.

    `kl_to_uniform` and `l2_to_uniform` are penalties for weights on the simplex.
    """
    outer = _Penalised(problem.outer, penalty, jnp.asarray(strength, float))
    return dataclasses.replace(problem, outer=outer)


def kl_to_uniform(u: Float[Array, " rows"]) -> Scalar:
    """`sum_i u_i log(n u_i)`: log n minus the entropy; 0 for uniform weights, log n at a vertex.

    Its gradient, `log(n u_i) + 1`, grows without bound as a weight vanishes.
    """
    return jnp.sum(jax.scipy.special.xlogy(u, u * u.size))


def l2_to_uniform(u: Float[Array, " rows"]) -> Scalar:
    """`n sum_i u_i^2 - 1`: 0 for uniform weights, n - 1 at a vertex; n / ESS - 1 in between."""
    return u.size * jnp.vdot(u, u) - 1
