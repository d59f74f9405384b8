"""Rows, dot products and linear operators that also work on arrays split among devices.

A mesh whose axes have the type `Explicit`, which is what `jax.make_mesh` gives, makes the sharding of
an array a part of its type; JAX then refuses operations whose result could be split in several ways.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, PyTree, Scalar


def take_rows(tree: PyTree[Array], index: Int[Array, " batch"]) -> PyTree[Array]:
    """The rows `index` of every leaf, as `x[index]`; sharded arrays give sharded rows.

    Under a mesh with explicit axes, JAX refuses `x[index]` where x is split by rows, because it cannot
    know how the result is to be split. Here the rows taken are split along the same mesh axis as x if
    their number allows it, and are a full copy on every device of that axis if not. An objective that
    looks up one outer variable per row, `take_rows(u, i)`, then runs on any mesh. Within
    `jax.set_mesh`, as many rows as there are, in their order, are the leaf itself: a full batch then
    moves no row between devices.

    Args:
        tree: arrays that share axis 0.
        index: row numbers from 0 to n - 1. Others give undefined rows.
    """
    return jax.tree.map(lambda x: _take(x, index), tree)


def _take(x: Array, index: Int[Array, " batch"]) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    # Before version 0.10, JAX could not transpose the condition under explicit axes.
    if mesh.explicit_axes and jax.__version_info__ < (0, 10):
        return _gather(x, index)
    if len(index) != len(x) or mesh.empty:
        return _gather(x, index)
    # XLA would gather all of x and add up all slopes: it does not know that each device asks for the
    # rows that it has. They are compared when it runs, for another order has as many.
    in_order = jnp.all(index == jnp.arange(len(x)))
    return jax.lax.cond(in_order, lambda: x, lambda: _gather(x, index))


def _gather(x: Array, index: Int[Array, " batch"]) -> Array:
    # The indices are in range by construction, so no bounds check is compiled in.
    rows = x.at[index]
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or not any(sharding.spec):
        return rows.get(mode="promise_in_bounds")
    along, *rest = sharding.spec
    axes = () if along is None else (along if isinstance(along, tuple) else (along,))
    parts = math.prod(sharding.mesh.shape[axis] for axis in axes)
    spec = PartitionSpec(along if index.shape[0] % parts == 0 else None, *rest)
    return rows.get(mode="promise_in_bounds", out_sharding=spec)


def take_rows_of_parts(tree: PyTree[Array], index: Int[Array, "parts batch"]) -> PyTree[Array]:
    """The rows `x[k, index[k]]` of every part k of every leaf, one part after the other.

    Where the parts are split among devices, each takes rows of its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and not mesh.explicit_axes:
        # XLA would split the computation of the index too, and tell all devices its parts.
        index = jax.lax.with_sharding_constraint(index, PartitionSpec())

    def take(x: Array) -> Array:
        places, sharding = index, getattr(jax.typeof(x), "sharding", None)
        if sharding is not None and any(sharding.spec):
            places = jax.sharding.reshard(index, PartitionSpec(sharding.spec[0], None))
        rows = jax.vmap(lambda part, i: part.at[i].get(mode="promise_in_bounds"))(x, places)
        return rows.reshape(-1, *x.shape[2:])

    return jax.tree.map(take, tree)


def whole(x: Array) -> Array:
    """The array with a full copy on every device, where its type says that it is split."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or not any(sharding.spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*[None] * x.ndim))


def dot(x: PyTree[Array], y: PyTree[Array]) -> Scalar:
    """`<x, y>` of two pytrees.

    A sum of products, because under a mesh with explicit axes JAX refuses the dot product of two
    vectors that are split among its devices.

    Raises:
        ValueError: at trace time, leaves of different shapes, which would broadcast.
    """

    def product(a: Array, b: Array) -> Scalar:
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"a dot product needs arrays of one shape, got {jnp.shape(a)} and {jnp.shape(b)}."
            )
        return jnp.sum(a * b)

    return jnp.asarray(optax.tree.sum(jax.tree.map(product, x, y)))


def function_operator(
    function: Callable[[PyTree[Array]], PyTree[Array]], like: PyTree[Any], tags: Any = ()
) -> lx.FunctionLinearOperator:
    """A linear operator on pytrees like `like`, as `lineax.FunctionLinearOperator`.

    The function stays one piece in the program: lineax evaluates it for several purposes, and what it
    captures would lose its sharding. The lambda hides it from equinox, which warns of an attribute
    that is jitted.
    """
    whole = jax.jit(function)
    return lx.FunctionLinearOperator(lambda x: whole(x), jax.eval_shape(lambda: like), tags)
