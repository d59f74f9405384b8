"""What u and w may be, and the one form in which the methods see them: real arrays of one dtype."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._geometry import AbstractGeometry, Ball
from ._problem import BilevelProblem, FixedPointProblem, Problem


class Form(eqx.Module):
    """How a variable was given: its static leaves, and the dtypes of its arrays.

    `strip` makes it a pytree of arrays in one dtype, and `restore` turns that back.
    """

    static: PyTree
    dtypes: tuple[Any, ...] = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)

    def strip(self, tree: PyTree) -> PyTree[Array]:
        """Its floating-point arrays, in the common dtype."""
        arrays = eqx.filter(tree, eqx.is_inexact_array)
        return jax.tree.map(lambda x: jnp.asarray(x).astype(self.dtype), arrays)

    def restore(self, arrays: PyTree[Array]) -> PyTree:
        """The variable as it was given, with these arrays."""
        return eqx.combine(self.cast(arrays), self.static)

    def cast(self, arrays: PyTree[Array]) -> PyTree[Array]:
        """The arrays in their own dtypes, without the static leaves, as a gradient has them."""
        leaves, structure = jax.tree.flatten(arrays)
        cast = [x.astype(dtype) for x, dtype in zip(leaves, self.dtypes, strict=True)]
        return jax.tree.unflatten(structure, cast)


class Uniform(NamedTuple):
    """A problem on variables that are arrays of one dtype, and how to turn these back."""

    problem: Problem
    u: PyTree[Array]
    w: PyTree[Array]
    forms: tuple[Form, Form] | None

    def strip(self, u: PyTree, w: PyTree) -> tuple[PyTree, PyTree]:
        """The form in which the methods see u and w."""
        return (u, w) if self.forms is None else (self.forms[0].strip(u), self.forms[1].strip(w))

    def restore(self, u: PyTree, w: PyTree) -> tuple[PyTree, PyTree]:
        """Both variables as they were given."""
        return (
            (u, w) if self.forms is None else (self.forms[0].restore(u), self.forms[1].restore(w))
        )

    def cast(self, by_u: PyTree, by_w: PyTree) -> tuple[PyTree, PyTree]:
        """Gradients in u and w, in the dtypes of these; `None` stays."""
        if self.forms is None:
            return by_u, by_w
        return self.forms[0].cast(by_u), None if by_w is None else self.forms[1].cast(by_w)


def as_arrays(
    problem: Problem, u: PyTree, w: PyTree, names: tuple[str, str] = ("u", "w")
) -> Uniform:
    """The problem as the methods see it: u and w are pytrees of real arrays of one dtype.

    - Of an `equinox.Module` within u or w, the floating-point arrays are the variable; all else
      (functions, integers, flags) is static and returns to its place before an objective is called.
    - Leaves of several dtypes are kept and updated in the widest of them, and in float32 at least.
      The objectives see each leaf in its own dtype, and so does who asked for a solution.

    Variables that already are arrays of one dtype stay as they are. `solve` and the functions that
    look at a problem call this by themselves; a loop of your own, or `Checkpoint.load`, needs it for
    modules and for several dtypes:

        given = bilevel.as_arrays(problem, u0, w0)
        state = algorithm.init(given.problem, given.u, given.w, key)
        state, info = algorithm.step(given.problem, state)
        u, w = given.restore(state.u, state.w)

    Args:
        problem: the problem, with objectives of u and w as they are given here.
        u, w: the variables.
        names: what errors call them.

    Returns:
        `problem`, `u` and `w` in this form, and two functions: `restore(u, w)` gives both variables
        back as they were given, and `strip(u, w)` brings others like them into the form. A
        `ClosedForm` in a loop of your own gets u in this form.

    Raises:
        TypeError: a leaf is complex, or no floating-point array and not within a module.

    >>> mixed = {"net": jnp.ones(2, jnp.float32), "heat": jnp.ones((), jnp.bfloat16)}
    >>> problem = BilevelProblem(
    ...     outer=lambda u, w, _: jnp.sum((w["net"] - 3) ** 2) + u["heat"] ** 2,
    ...     inner=lambda u, w, _: jnp.sum((w["net"] - u["net"]) ** 2) + w["heat"] ** 2,
    ... )
    >>> given = as_arrays(problem, mixed, mixed)
    >>> str(given.w["heat"].dtype), str(given.restore(given.u, given.w)[1]["heat"].dtype)
    ('float32', 'bfloat16')
    """
    for name, tree in zip(names, (u, w), strict=True):
        check_variable(name, tree)
    arrays = [eqx.filter(tree, eqx.is_inexact_array) for tree in (u, w)]
    leaves = [jax.tree.leaves(tree) for tree in arrays]
    dtypes = [tuple(jnp.dtype(x.dtype) for x in xs) for xs in leaves]
    distinct = set(dtypes[0] + dtypes[1])
    with jax.numpy_dtype_promotion("standard"):
        widest = jnp.result_type(*distinct, jnp.float32)
    given = [jax.tree.leaves(tree) for tree in (u, w)]
    if distinct == {widest} and [len(x) for x in given] == [len(x) for x in leaves]:
        return Uniform(problem, u, w, None)

    forms = tuple(
        Form(eqx.filter(tree, eqx.is_inexact_array, inverse=True), own, widest)
        for tree, own in zip((u, w), dtypes, strict=True)
    )
    form_u, form_w = forms
    geometry = _in_form(problem.geometry, form_u)
    outer = _Objective(problem.outer, form_u, form_w)
    data = problem.outer_data, problem.inner_data
    if isinstance(problem, BilevelProblem):
        inner = _Objective(problem.inner, form_u, form_w)
        problem = BilevelProblem(outer, inner, *data, geometry)
    else:
        problem = FixedPointProblem(outer, _Map(problem.map, form_u, form_w), *data, geometry)
    return Uniform(problem, form_u.strip(u), form_w.strip(w), (form_u, form_w))


class _Objective(eqx.Module):
    function: Callable
    u: Form
    w: Form

    def __call__(self, u: PyTree, w: PyTree, batch: Any) -> Any:
        value = self.function(self.u.restore(u), self.w.restore(w), batch)
        return value.astype(self.u.dtype) if eqx.is_array(value) else value


class _Map(eqx.Module):
    function: Callable
    u: Form
    w: Form

    def __call__(self, u: PyTree, w: PyTree, batch: Any) -> Any:
        return self.w.strip(self.function(self.u.restore(u), self.w.restore(w), batch))


class Formula(eqx.Module):
    """A formula `(u, batch) -> w` for variables as they were given, on those of the methods."""

    function: Callable
    u: Form
    w: Form

    def __call__(self, u: PyTree, batch: Any) -> Any:
        return self.w.strip(self.function(self.u.restore(u), batch))


def _in_form(geometry: AbstractGeometry, form: Form) -> AbstractGeometry:
    """The center of a ball is a pytree like u."""

    def replace(x: Any) -> Any:
        if isinstance(x, Ball) and x.center is not None:
            return dataclasses.replace(x, center=form.strip(x.center))
        return x

    return jax.tree.map(replace, geometry, is_leaf=lambda x: isinstance(x, Ball))


def from_numbers(tree: PyTree) -> PyTree:
    """Numbers of Python as arrays, except within a module, where they are settings."""

    def convert(x: Any) -> Any:
        return jnp.asarray(x) if isinstance(x, float | np.ndarray | np.generic) else x

    return jax.tree.map(convert, tree, is_leaf=lambda x: isinstance(x, eqx.Module))


def check_variable(name: str, tree: PyTree) -> None:
    """Refuse what no method can move: complex arrays, integers, functions that are in no module.

    And what none should: running statistics, which are no function of a gradient.
    """
    _refuse_running_statistics(name, tree)
    found = False
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_module):
        module = _is_module(node)
        for rest, leaf in jax.tree_util.tree_leaves_with_path(node):
            place = f"{name}{jax.tree_util.keystr(path)}{jax.tree_util.keystr(rest)}"
            if not eqx.is_inexact_array(leaf):
                if not module:
                    raise TypeError(_not_a_variable(place, leaf))
                continue
            found = True
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                raise TypeError(
                    f"`{place}` is a complex array ({leaf.dtype}), and u and w must be real: no "
                    "method here conjugates a gradient. Pass the real and the imaginary part as two "
                    "arrays, and write `x['re'] + 1j * x['im']` in the objectives."
                )
    if not found:
        raise TypeError(
            f"`{name}` has no floating-point array, so there is nothing to move; got "
            f"{type(tree).__name__}."
        )


def _refuse_running_statistics(name: str, tree: PyTree) -> None:
    """An `equinox.nn.State`, or what flax keeps under "batch_stats", within a variable."""

    def is_state(x: Any) -> bool:
        return isinstance(x, eqx.nn.State) or (isinstance(x, dict) and "batch_stats" in x)

    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_state):
        if is_state(node):
            kind = "`batch_stats` of flax" if isinstance(node, dict) else "an `equinox.nn.State`"
            raise TypeError(
                f"`{name}{jax.tree_util.keystr(path)}` holds {kind}, the running statistics of "
                "layers such as BatchNorm, which no gradient moves. Pass the model, or "
                "`variables['params']`, alone as the variable, and use the statistics in the "
                "objective as constants: in training mode a layer takes those of the batch, and the "
                "new ones can be dropped. Compute them anew at the end, or take a layer without a "
                "state, such as `GroupNorm` or `LayerNorm`."
            )


def _not_a_variable(place: str, leaf: Any) -> str:
    got = f"{leaf.dtype} array" if eqx.is_array(leaf) else repr(leaf)
    if callable(leaf):
        return (
            f"`{place}` must be a floating-point array, got the function {got}. Put it into an "
            "`equinox.Module`, or split the arrays off with `equinox.partition(x, "
            "equinox.is_inexact_array)` and use the rest in the objectives."
        )
    return (
        f"`{place}` must be a floating-point array, got {got}; pass e.g. "
        "`jnp.asarray(x, dtype=float)`."
    )


def _is_module(x: Any) -> bool:
    return isinstance(x, eqx.Module)
