"""Updates by any optax transformation, line searches included."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree, Scalar


def transformed(
    tx: optax.GradientTransformation,
    grad: PyTree[Array],
    state: Any,
    params: PyTree[Array],
    value: Scalar | None,
    value_fn: Callable[[PyTree], Scalar] | None,
) -> tuple[PyTree[Array], Any]:
    """`tx.update`, which is told all that optax's transformations ask for; the state keeps its dtypes.

    Args:
        tx, grad, state, params: as in `tx.update(grad, state, params)`.
        value, value_fn: the objective at `params`, and as a function of them, on the same batch:
            `optax.lbfgs`, `polyak_sgd` and line searches take these. `None` where there is no
            objective.

    Raises:
        TypeError: there is no objective, and the transformation needs one.
    """
    if value is None or value_fn is None:
        try:
            updates, new = tx.update(grad, state, params)
        except TypeError as error:
            if "value" not in str(error):
                raise
            raise TypeError(
                "this optax transformation has a line search, or takes the value of an objective, and "
                "a fixed-point problem has none. Use another one, such as `optax.sgd(1.0)`, or solve "
                "with `RootInner`; for an inner objective, `MinimiserInner` has line searches too. "
                f"({error})"
            ) from error
    else:
        extended = optax.with_extra_args_support(tx)
        known = {"value": value, "grad": grad, "value_fn": value_fn}
        updates, new = extended.update(grad, state, params, **_taken(extended, known))
    new = jax.tree.map(lambda x, old: jnp.asarray(x).astype(jnp.asarray(old).dtype), new, state)
    return updates, new


def _taken(tx: optax.GradientTransformation, known: dict[str, Any]) -> dict[str, Any]:
    """The keywords that the update takes: `optax.contrib.sam` takes none, for one."""
    taken = inspect.signature(tx.update).parameters
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    return {name: x for name, x in known.items() if every or name in taken}


def line_search_steps(state: Any) -> Int[Array, ""]:
    """How often the last update evaluated the objective in line searches."""
    found = optax.tree.get_all_with_path(state, "num_linesearch_steps")
    counts = [jnp.asarray(count).astype(jnp.int32) for _, count in found]
    return sum(counts, jnp.zeros((), jnp.int32))
