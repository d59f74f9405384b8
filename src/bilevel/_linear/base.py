"""What the linear solvers of this package share: settings as data, and power iteration."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, Scalar

StepSize = Float[np.ndarray | Array, "*batch"] | Literal["auto"]
POWER_STEPS = 20


def as_data(value: Any) -> Float[np.ndarray | Array, "*batch"]:
    """A setting as an array: data, so that a new value compiles nothing and several can be vmapped."""
    return value if isinstance(value, jax.Array) else np.asarray(value, dtype=float)


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
    mv: Callable[[PyTree], PyTree], structure: PyTree, num_steps: int = POWER_STEPS
) -> Scalar:
    """The largest absolute eigenvalue of a symmetric operator, from below, by power iteration.

    The cosine c of the random start with that eigenvector decides how far below: by a factor of
    about `c^(1/k)` at most after k steps. A step of `1 / estimate` contracts if it is above half.
    """

    def iterate(v: PyTree, _: None) -> tuple[PyTree, Scalar]:
        product = mv(v)
        size = jnp.asarray(optax.tree.norm(product))
        return optax.tree.scale(1 / jnp.where(size > 0, size, 1), product), size

    start = optax.tree.random_like(jr.key(0), structure)
    start = optax.tree.scale(1 / optax.tree.norm(start), start)
    return jax.lax.scan(iterate, start, length=num_steps)[1][-1]


def resolve_step_size(
    name: str, step_size: StepSize, operator: lx.AbstractLinearOperator
) -> tuple[Scalar, int]:
    """The step size, and the products that it took to find it."""
    structure = operator.in_structure()
    dtype = jnp.result_type(*jax.tree.leaves(structure))
    if not isinstance(step_size, str):
        return jnp.asarray(step_size, dtype), 0
    if not lx.is_symmetric(operator):
        raise ValueError(
            f"`{name}` with step_size='auto' takes the step from the largest eigenvalue of a "
            "symmetric operator, and this one is not tagged as one; pass a number. For a fixed-point "
            "problem, 1.0 iterates its map."
        )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), structure)
    largest = largest_eigenvalue(operator.mv, zeros)
    return 1 / jnp.where(largest > 0, largest, 1), POWER_STEPS


def transpose_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The state of a solver for the transposed operator, which is its first entry."""
    operator, *rest = state
    return (operator.transpose(), *rest)


def conj_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same for the conjugated operator."""
    operator, *rest = state
    return (lx.conj(operator), *rest)
