"""Settings of solvers and methods: numbers as data, schedules, `"auto"`, and power iteration."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree, Scalar, ScalarLike

ConstantStep = Float[np.ndarray | Array, "*batch"] | Literal["auto"]
StepSize = ConstantStep | Callable[[Array], Any]

POWER_STEPS = 20


def as_data(value: Any) -> Float[np.ndarray | Array, "*batch"]:
    """A setting as an array: data, so that a new value compiles nothing and several can be vmapped."""
    return value if isinstance(value, jax.Array) else np.asarray(value, dtype=float)


def known(value: Any) -> np.ndarray | None:
    """The numbers of an array, or None where they cannot be looked at: under a transformation."""
    if isinstance(value, jax.Array):
        there = not isinstance(value, Tracer) and value.is_fully_addressable
        return np.asarray(value) if there else None
    return value if isinstance(value, np.ndarray) else None


def as_optional_data(value: Any) -> Float[np.ndarray | Array, "*batch"] | None:
    """The same, of a setting that may be left out."""
    return None if value is None else as_data(value)


def as_schedule(value: Any) -> Any:
    """A number as data, or a schedule `k -> number` as it is."""
    return value if callable(value) else as_data(value)


def as_step_size(value: Any) -> ConstantStep:
    """A step size as data; `"auto"` stays what it is, and another word is refused."""
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"a step size must be a number > 0 or 'auto', got {value!r}.")
        return "auto"
    return as_data(value)


def as_setting(value: Any) -> StepSize:
    """A step size as data, or as it is if it is a schedule `k -> number` or the word `"auto"`.

    A negative number is refused: a run with it goes uphill, and its residuals need not show it. Zero
    holds a variable where it is.
    """
    size = value if callable(value) else as_step_size(value)
    numbers = known(size)
    if numbers is not None and not np.all((numbers >= 0) & np.isfinite(numbers)):
        raise ValueError(f"a step size must be a number >= 0, a schedule or 'auto', got {value}.")
    return size


def check_step_size(name: str, step_size: ConstantStep) -> None:
    """Refuse a step size that is not positive."""
    numbers = known(step_size)
    if numbers is not None and not np.all(numbers > 0):
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
