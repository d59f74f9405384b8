"""What the linear solvers of this package share: settings as data, and power iteration."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, Scalar, ScalarLike

StepSize = Float[np.ndarray | Array, "*batch"] | Literal["auto"]
POWER_STEPS = 20


def as_data(value: Any) -> Float[np.ndarray | Array, "*batch"]:
    """A setting as an array: data, so that a new value compiles nothing and several can be vmapped."""
    return value if isinstance(value, jax.Array) else np.asarray(value, dtype=float)


def as_optional_data(value: Any) -> Float[np.ndarray | Array, "*batch"] | None:
    """The same, of a setting that may be left out."""
    return None if value is None else as_data(value)


def as_schedule(value: Any) -> Any:
    """A number as data, or a schedule `k -> number` as it is."""
    return value if callable(value) else as_data(value)


def as_step_size(value: Any) -> StepSize:
    """A step size as data; `"auto"` stays what it is, another word is refused."""
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"a step size must be a number > 0 or 'auto', got {value!r}.")
        return "auto"
    return as_data(value)


def check_step_size(name: str, step_size: StepSize) -> None:
    """Refuse a step that is not positive."""
    if isinstance(step_size, np.ndarray) and not np.all(step_size > 0):
        raise ValueError(f"`{name}` needs a step size > 0 or 'auto', got {step_size}.")


def largest_eigenvalue(
    mv: Callable[[PyTree], PyTree], like: PyTree[Array], num_steps: int = POWER_STEPS
) -> Scalar:
    """The largest absolute eigenvalue of a symmetric operator, from below, by power iteration.

    The cosine c of the random start with that eigenvector decides how far below: by a factor of
    about `c^(1/k)` at most after k steps. A step of `1 / estimate` contracts if it is above half.
    """
    return power_iteration(mv, random_unit(like), num_steps)[0]


def power_iteration(
    mv: Callable[[PyTree], PyTree], start: PyTree[Array], num_steps: ScalarLike
) -> tuple[Scalar, PyTree[Array]]:
    """`v <- A v / ||A v||` from the unit vector `start`: the last norm, and v."""

    def iterate(_: Any, carry: tuple[Scalar, PyTree]) -> tuple[Scalar, PyTree]:
        product = mv(carry[1])
        size = jnp.asarray(optax.tree.norm(product))
        return size, optax.tree.scale(1 / jnp.where(size > 0, size, 1), product)

    first = (jnp.zeros_like(optax.tree.norm(start)), start)
    return jax.lax.fori_loop(0, num_steps, iterate, first)


def random_unit(like: PyTree[Array]) -> PyTree[Array]:
    """A random vector of norm one, always the same."""
    start = optax.tree.random_like(jr.key(0), like)
    return optax.tree.scale(1 / optax.tree.norm(start), start)


class Resolved(NamedTuple):
    """A step size, the products that it took to find it, and what the next search starts from."""

    step: Scalar
    num_products: Int[Array, ""]
    eigenvector: PyTree[Array] | None

    def stats(self, num_products: Int[Array, ""] | int) -> dict[str, Any]:
        """For the solver's stats, after `num_products` more."""
        known = {} if self.eigenvector is None else {"eigenvector": self.eigenvector}
        return {"step_size": self.step, "num_products": num_products + self.num_products, **known}


def resolve_step_size(
    name: str, step_size: StepSize, operator: lx.AbstractLinearOperator, options: dict[str, Any]
) -> Resolved:
    """The step size as a number: `"auto"` is 1 / L, by power iteration.

    Option `eigenvector`: the vector that an earlier solve with nearly the same operator left in its
    stats. One product then follows it, in place of 20 from a random start; zero means unknown.
    """
    structure = operator.in_structure()
    dtype = jnp.result_type(*jax.tree.leaves(structure))
    if not isinstance(step_size, str):
        return Resolved(jnp.asarray(step_size, dtype), jnp.zeros((), jnp.int32), None)
    if not lx.is_symmetric(operator):
        raise ValueError(
            f"`{name}` with step_size='auto' takes the step from the largest eigenvalue of a "
            "symmetric operator, and this one is not tagged as one; pass a number. For a fixed-point "
            "problem, 1.0 iterates its map."
        )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), structure)
    start = random_unit(zeros)
    num_steps = jnp.full((), POWER_STEPS, jnp.int32)
    known = options.get("eigenvector")
    if known is not None:
        unknown = optax.tree.norm(known) == 0
        start = jax.tree.map(lambda new, old: jnp.where(unknown, new, old), start, known)
        num_steps = jnp.where(unknown, num_steps, 1)
    largest, vector = power_iteration(operator.mv, start, num_steps)
    return Resolved(1 / jnp.where(largest > 0, largest, 1), num_steps, vector)


def finds_its_step(solver: lx.AbstractLinearSolver) -> bool:
    """Whether the solver has `step_size="auto"`."""
    return isinstance(getattr(solver, "step_size", None), str)


def transpose_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The state of a solver for the transposed operator, which is its first entry."""
    operator, *rest = state
    return (operator.transpose(), *rest)


def conj_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same for the conjugated operator."""
    operator, *rest = state
    return (lx.conj(operator), *rest)
