"""HOAG: hyperparameter optimization with approximate gradients.

Pedregosa (2016) [pedregosa2016][].
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._arrays import function_operator
from .._derivatives import residual_along
from .._linear.cg import CG
from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_data, as_schedule, as_setting, known
from .._solution import RESULTS
from .auto_steps import Move
from .base import AbstractAlgorithm, as_variables, count, require_positive
from .directions import descend, joint_directions
from .turn import init_state, open_turn


def _geometric(step: Int[Array, ""]) -> Array:
    return 0.1 * 0.9 ** jnp.asarray(step, float)


class SufficientDecrease(eqx.Module):
    """An outer step of `1 / L` for `HOAG`, whose L follows the values of F.

        L_0 = dim(u) |d_0|, or 1 where |d_0| <= 1e-3
        L <- shrink L   if  F_k <= F_{k-1} + e_k + e_{k-1} (1 + c_k) - (L / 2) c_k^2
        L <- grow L     if  F_k > F_{k-1} and not so

    with d_0 the first hypergradient, `F_k = F(u_k, w_k)`, `c_k = |u_k - u_{k-1}|` and e_k the
    tolerance. The first step has the length `1 / dim(u)`, so u has to be of order one, as
    log-penalties are.

    Args:
        shrink: below 1; how much L falls after a step that was good.
        grow: above 1; how much L rises after a step along which F rose.

    Raises:
        ValueError: `shrink` is not in (0, 1], or `grow` < 1.

    Source: the code that Pedregosa published for his "Hyperparameter optimization with approximate
    gradient" (2016) [pedregosa2016][]. That code takes for c_k the length of the step to come, which
    has not been judged yet; here it is that of the step whose values are compared.
    """

    shrink: Float[np.ndarray | Array, ""] = eqx.field(default=0.95, converter=as_data)
    grow: Float[np.ndarray | Array, ""] = eqx.field(default=2.0, converter=as_data)

    def __check_init__(self):
        shrink, grow = known(self.shrink), known(self.grow)
        if shrink is not None and not np.all((shrink > 0) & (shrink <= 1)):
            raise ValueError(f"`SufficientDecrease` needs shrink in (0, 1], got {self.shrink}.")
        if grow is not None and not np.all(grow >= 1):
            raise ValueError(f"`SufficientDecrease` needs grow >= 1, got {self.grow}.")


def _as_outer_step(value: Any) -> Any:
    return value if isinstance(value, SufficientDecrease) else as_setting(value)


class HOAG(AbstractAlgorithm):
    """Inner problem and linear system solved to a tolerance that shrinks from step to step.

        w_k: gradient steps from w_{k-1} until  |grad_w f(u_k, w_k)| <= e_k r_k
        v_k: CG from v_{k-1} until  |H v_k - grad_w F| <= e_k s_k
        u_{k+1} = retract(u_k, -outer_step (grad_u F - (d2_uw f)^T v_k))

    with r_k the first |grad_w f(u_j, w_{j-1})| and s_k the first |grad_w F(u_j, w_j)|, j <= k, above
    rounding.
    Pedregosa (2016), "Hyperparameter optimization with approximate gradient", Algorithm 1
    [pedregosa2016][]. If the tolerances have a finite sum, the error of the hypergradients has one,
    too, and the iterates converge to a stationary point: a rough hypergradient is enough at first,
    and a warm start makes an accurate one cheap later. The paper bounds distances by e_k; its
    authors' code bounds residuals relative to the first ones, as here, but for those that vanish
    because a run begins at `w*(u_0)`.

    Args:
        inner_step, outer_step: numbers, or schedules of the number of outer steps made. The paper
            leaves the inner solver open (its code has L-BFGS). Its code has outer steps of 1 / L for
            an L that it adapts: `outer_step=SufficientDecrease()`. "auto" is what it is for all
            methods.
        tolerance: e_k, a function of the number k of outer steps made, by default `0.1 * 0.9**k`; a
            number keeps it, and with it an error of the hypergradient. Below 100 times the rounding
            of the dtype of w it stays there, and an inner residual of ten times the rounding of
            |w| / inner_step is small enough in any case, as is a linear one of that of grad_w F.
        max_inner, max_linear: the most gradient steps and the most CG steps per outer step.
        inner_sampler, outer_sampler: where batches come from; all data by default. One inner batch
            serves a whole outer step, so that its tolerance can be met.

    A step that ran out of inner steps has the code `inner_max_steps_reached`. Cost per step: the
    gradient steps and two more inner gradients, the CG steps and two more products, one outer
    gradient and one mixed product; their number is bounded, but not known beforehand, so the step
    cannot be differentiated in reverse mode. Memory beyond u and w: v, and five vectors like it
    during a step.

    Raises:
        ValueError: `max_inner` or `max_linear` < 1.
    """

    inner_step: StepSize = eqx.field(default="auto", converter=as_setting)
    outer_step: StepSize | SufficientDecrease = eqx.field(default="auto", converter=_as_outer_step)
    tolerance: StepSize = eqx.field(default=_geometric, converter=as_schedule)
    max_inner: int = 1000
    max_linear: int = 1000
    inner_sampler: AbstractSampler = FullBatch()
    outer_sampler: AbstractSampler = FullBatch()

    def __check_init__(self):
        require_positive(self, max_inner=self.max_inner, max_linear=self.max_linear)

    def init(self, problem, u0, w0, key):
        """The adjoint variable starts at zero."""
        u0, w0 = as_variables(u0, w0)
        nothing = jnp.zeros((), jax.tree.leaves(w0)[0].dtype)
        adapted = (
            _Adapted(*[nothing] * 4) if isinstance(self.outer_step, SufficientDecrease) else ()
        )
        aux = _Aux(optax.tree.zeros_like(w0), nothing, nothing, adapted)
        return init_state(self, problem, u0, w0, key, aux=aux)

    def step(self, problem, state):
        """One outer step."""
        turn, u = open_turn(self, problem, state), state.u
        aux, begins, inner_step = turn.state.aux, turn.state.step == 0, turn.inner_step
        rounding = 100 * float(jnp.finfo(aux.first_inner.dtype).eps)
        asked = jnp.asarray(turn.now(self.tolerance)).astype(aux.first_inner.dtype)
        tolerance = jnp.maximum(asked, rounding)

        def at(w: PyTree[Array], steps: Int[Array, ""]) -> _Point:
            slope = turn.inner_gradient(u, w)
            return _Point(w, slope, jnp.asarray(optax.tree.norm(slope)), steps)

        start = at(turn.state.w, jnp.zeros((), jnp.int32))

        of_w = optax.tree.norm(start.w) / jnp.asarray(inner_step).astype(start.size.dtype)
        unseen = (aux.first_inner == 0) & (start.size > rounding / 10 * of_w)
        first_inner = jnp.where(unseen, start.size, aux.first_inner)
        target = jnp.maximum(tolerance * first_inner, rounding / 10 * of_w)

        def unsolved(point: _Point) -> Bool[Array, ""]:
            return (point.size > target) & (point.steps < self.max_inner)

        def move(point: _Point) -> _Point:
            return at(descend(point.w, inner_step, point.slope), point.steps + 1)

        end = jax.lax.while_loop(unsolved, move, start)
        w, outer = end.w, turn.outer(u, end.w)
        size = jnp.asarray(optax.tree.norm(outer.w))
        first_outer = jnp.where(aux.first_outer == 0, size, aux.first_outer)
        hessian = function_operator(
            lambda x: residual_along(problem, u, w, turn.inner_batch, x),
            w,
            lx.positive_semidefinite_tag,
        )
        solver = CG(rounding / 10, tolerance * first_outer, self.max_linear)
        found = lx.linear_solve(hessian, outer.w, solver, options={"y0": aux.v}, throw=False)
        d = joint_directions(outer, turn.inner(u, w, found.value))

        moved, adapted = None, aux.adapted
        if isinstance(self.outer_step, SufficientDecrease):
            adapted = _adapt(self.outer_step, adapted, d.u, outer.value, tolerance, begins)
            step = 1 / adapted.curvature
            after = problem.geometry.retract(u, optax.tree.scale(-step, d.u))
            length = jnp.asarray(optax.tree.norm(optax.tree.sub(after, u)))
            adapted = adapted._replace(length=length.astype(step.dtype))
            moved = Move(after, step, turn.state.control)

        products = found.stats["num_products"] + 1
        state, info = turn.close(
            d,
            w=w,
            aux=_Aux(found.value, first_inner, first_outer, adapted),
            calls=count(1, end.steps + 2, products, 1),
            move=moved,
        )
        short = end.size > target
        result = RESULTS.where(short, RESULTS.inner_max_steps_reached, info.result)
        return state, dataclasses.replace(info, result=result)


def _adapt(
    rule: SufficientDecrease,
    before: "_Adapted",
    direction: PyTree[Array],
    value: Scalar,
    tolerance: Scalar,
    begins: Bool[Array, ""],
) -> "_Adapted":
    """L for the step to come, from the values at both ends of the last one."""
    size, dim = jnp.asarray(optax.tree.norm(direction)), optax.tree.size(direction)
    first = jnp.where(size > 1e-3, dim * size, 1).astype(before.curvature.dtype)
    slack = tolerance + before.tolerance * (1 + before.length)
    target = before.value + slack - before.curvature * before.length**2 / 2
    factor = jnp.where(value > before.value, rule.grow, 1)
    factor = jnp.where(value <= target, rule.shrink, factor).astype(first.dtype)
    curvature = jnp.where(begins, first, factor * before.curvature)
    return before._replace(curvature=curvature, value=value, tolerance=tolerance)


class _Adapted(NamedTuple):
    curvature: Scalar  # L
    value: Scalar  # of F, where the last step began
    tolerance: Scalar
    length: Scalar  # of the last step


class _Aux(NamedTuple):
    v: PyTree[Array]
    first_inner: Scalar  # what tolerances are relative to
    first_outer: Scalar
    adapted: _Adapted | tuple[()]


class _Point(NamedTuple):
    w: PyTree[Array]
    slope: PyTree[Array]  # the inner gradient
    size: Scalar
    steps: Int[Array, ""]
