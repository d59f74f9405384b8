"""What the linear solvers of this package share: real operators, and step sizes found for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Int, PyTree, Scalar

from .._arrays import function_operator
from .._settings import POWER_STEPS, ConstantStep, power_iteration, random_unit


class Resolved(NamedTuple):
    """A step size, the products that it took to find it, and what the next search starts from."""

    step: Scalar
    num_products: Int[Array, ""]
    eigenvector: PyTree[Array] | None

    def stats(self, num_products: Int[Array, ""] | int) -> dict[str, Any]:
        """For the solver's stats, after `num_products` more."""
        known = {} if self.eigenvector is None else {"eigenvector": self.eigenvector}
        return {"step_size": self.step, "num_products": num_products + self.num_products, **known}


def real_operator(name: str, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The operator as this package's solvers take it: linearised, real, of one dtype.

    An operator on leaves of several dtypes, or in half precision, becomes one on the widest of them,
    or on float32; `widened` and `optax.tree.cast_like` do the same to vectors.

    Raises:
        TypeError: a leaf is complex.
    """
    refuse_complex(name, operator)
    operator = lx.linearise(operator)
    structure = operator.in_structure()
    wide = jax.eval_shape(widened, structure)
    if wide == structure:
        return operator
    tags = [lx.symmetric_tag] if lx.is_symmetric(operator) else []
    tags += [lx.positive_semidefinite_tag] if lx.is_positive_semidefinite(operator) else []

    def product(x: PyTree[Array]) -> PyTree[Array]:
        return widened(operator.mv(optax.tree.cast_like(x, structure)))

    return lx.FunctionLinearOperator(product, wide, tags)


def refuse_complex(name: str, operator: lx.AbstractLinearOperator) -> None:
    """Complex operators are for lineax's own solvers."""
    structures = operator.in_structure(), operator.out_structure()
    for path, leaf in jax.tree_util.tree_leaves_with_path(structures):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            place = jax.tree_util.keystr(path[1:]) or "its vectors"
            raise TypeError(
                f"`{name}` is for real operators, and this one is complex ({leaf.dtype} in {place}). "
                "Use a solver of lineax, such as `lineax.CG`, `lineax.GMRES` or `lineax.LU`, or write "
                "the system in real and imaginary parts."
            )


def widened(tree: PyTree[Array]) -> PyTree[Array]:
    """The leaves in one dtype, the widest of theirs and at least float32."""
    dtypes = {x.dtype for x in jax.tree.leaves(tree)}
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *dtypes)
    return tree if dtypes == {dtype} else jax.tree.map(lambda x: x.astype(dtype), tree)


def placed(vector: PyTree[Array], operator: lx.AbstractLinearOperator) -> PyTree[Array]:
    """The vector, split among devices as those of the operator are.

    lineax also traces a solver on vectors without their sharding, which is a part of their type under
    a mesh with explicit axes. (Where they have it, nothing is moved.)
    """

    def place(x: Array, structure: jax.ShapeDtypeStruct) -> Array:
        split = isinstance(structure.sharding, NamedSharding)
        return jax.sharding.reshard(x, structure.sharding.spec) if split else x

    return jax.tree.map(place, vector, operator.in_structure())


def resolve_step_size(
    name: str, step_size: ConstantStep, operator: lx.AbstractLinearOperator, options: dict[str, Any]
) -> Resolved:
    """The step size as a number; `"auto"` becomes 1 / L, with L found by power iteration.

    The option `eigenvector` is the vector that an earlier solve with nearly the same operator left
    in its stats. One product with the operator then brings it up to date, where a random start
    takes 20. A vector of zeros means that none is known yet.
    """
    structure = operator.in_structure()
    dtype = jnp.result_type(*jax.tree.leaves(structure))
    if not isinstance(step_size, str):
        return Resolved(jnp.asarray(step_size, dtype), jnp.zeros((), jnp.int32), None)
    if not (lx.is_symmetric(operator) or lx.is_positive_semidefinite(operator)):
        raise ValueError(
            f"`{name}` with step_size='auto' takes the step from the largest eigenvalue of a "
            "symmetric operator, and this one is not tagged as one; pass a number, or tag it with "
            "`lineax.symmetric_tag` or `lineax.positive_semidefinite_tag`. For a fixed-point problem, "
            "1.0 iterates its map."
        )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), structure)
    start = placed(random_unit(zeros), operator)
    num_steps = jnp.full((), POWER_STEPS, jnp.int32)
    known = options.get("eigenvector")
    if known is not None:
        known = placed(widened(known), operator)
        unknown = optax.tree.norm(known) == 0
        start = jax.tree.map(lambda new, old: jnp.where(unknown, new, old), start, known)
        num_steps = jnp.where(unknown, num_steps, 1)
    largest, vector = power_iteration(operator.mv, start, num_steps)
    return Resolved(1 / jnp.where(largest > 0, largest, 1), num_steps, vector)


def solve_linear(
    product: Callable[[PyTree[Array]], PyTree[Array]],
    b: PyTree[Array],
    solver: lx.AbstractLinearSolver,
    tags: Any = (),
    options: dict[str, Any] | None = None,
) -> lx.Solution:
    """`lineax.linear_solve` with `throw=False` whose derivatives do not raise either.

    lineax raises where the solve that a derivative takes does not converge, within compiled code too.
    Where the solver is for operators of full rank, JAX takes the derivative here,
    `x' = A^-1 (b' - A' x)`, and the same solver solves that.
    """
    options = {} if options is None else options
    if not solver.assume_full_rank():
        operator = function_operator(product, b, tags)
        return lx.linear_solve(operator, b, solver, options=options, throw=False)

    def solve(product: Callable, b: PyTree[Array]) -> tuple[PyTree[Array], Any]:
        operator = function_operator(product, b, tags)
        found = lx.linear_solve(operator, b, solver, options=options, throw=False)
        return found.value, (found.result, found.stats)

    value, (result, stats) = jax.lax.custom_linear_solve(
        jax.jit(product), b, solve, solve, symmetric=bool(tags), has_aux=True
    )
    return lx.Solution(value=value, result=result, stats=stats, state=None)


class AbstractStepSolver(lx.AbstractLinearSolver[Any]):
    """A linear solver that takes steps of one size, which may be `"auto"`.

    Its option `eigenvector` of `lineax.linear_solve` and its `stats["eigenvector"]` carry the
    search for the step size from one solve to the next: see `resolve_step_size`.
    """

    step_size: eqx.AbstractVar[ConstantStep]

    def transpose(self, state, options):
        """The same step on the transposed operator."""
        return transpose_state(state), options

    def conj(self, state, options):
        """The same step on the conjugated operator."""
        return conj_state(state), options

    def assume_full_rank(self):
        """Steps are defined for any operator."""
        return True


def finds_its_step(solver: lx.AbstractLinearSolver) -> bool:
    """Whether the solver searches for its own step size."""
    return isinstance(solver, AbstractStepSolver) and isinstance(solver.step_size, str)


def transpose_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The state of a solver for the transposed operator, which is its first entry."""
    operator, *rest = state
    return (operator.transpose(), *rest)


def conj_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same for the conjugated operator."""
    operator, *rest = state
    return (lx.conj(operator), *rest)
