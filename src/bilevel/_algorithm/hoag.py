"""HOAG: hyperparameter optimization with approximate gradients.

Pedregosa (2016) [pedregosa2016][].
"""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from .._arrays import function_operator
from .._linear.cg import CG
from .._sampler import AbstractSampler, FullBatch
from .._settings import StepSize, as_schedule, as_setting
from .._solution import RESULTS
from .base import AbstractAlgorithm, as_variables, count, require_positive
from .directions import descend, joint_directions
from .turn import init_state, open_turn


def _geometric(step: Int[Array, ""]) -> Array:
    return 0.1 * 0.9 ** jnp.asarray(step, float)


class HOAG(AbstractAlgorithm):
    """Inner problem and linear system solved to a tolerance that shrinks from step to step.

        w_k: gradient steps from w_{k-1} until  |grad_w f(u_k, w_k)| <= e_k |grad_w f(u_0, w_0)|
        v_k: CG from v_{k-1} until  |H v_k - grad_w F| <= e_k |grad_w F| of the first step
        u_{k+1} = retract(u_k, -outer_step (grad_u F - (d2_uw f)^T v_k))

    Pedregosa (2016), "Hyperparameter optimization with approximate gradient", Algorithm 1
    [pedregosa2016][]. If the tolerances have a finite sum, the error of the hypergradients has one,
    too, and the iterates converge to a stationary point: a rough hypergradient is enough at first,
    and a warm start makes an accurate one cheap later. The paper bounds distances by e_k; its
    authors' code bounds residuals relative to the first ones, as here.

    Args:
        inner_step, outer_step: numbers, or schedules of the number of outer steps made. The paper
            leaves the inner solver open (its code has L-BFGS), and has outer steps of 1 / L for an L
            that it adapts; here "auto" is what it is for all methods.
        tolerance: e_k, a function of the number k of outer steps made, by default `0.1 * 0.9**k`; a
            number keeps it, and with it an error of the hypergradient. Below 100 times the rounding
            of the dtype of w it stays there.
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
    outer_step: StepSize = eqx.field(default="auto", converter=as_setting)
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
        aux = _Aux(optax.tree.zeros_like(w0), nothing, nothing)
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
        first_inner = jnp.where(begins, start.size, aux.first_inner)

        def unsolved(point: _Point) -> Bool[Array, ""]:
            return (point.size > tolerance * first_inner) & (point.steps < self.max_inner)

        def move(point: _Point) -> _Point:
            return at(descend(point.w, inner_step, point.slope), point.steps + 1)

        end = jax.lax.while_loop(unsolved, move, start)
        w, outer = end.w, turn.outer(u, end.w)
        size = jnp.asarray(optax.tree.norm(outer.w))
        first_outer = jnp.where(begins, size, aux.first_outer)
        hessian = function_operator(
            lambda x: jax.jvp(lambda w: turn.inner_gradient(u, w), (w,), (x,))[1],
            w,
            lx.positive_semidefinite_tag,
        )
        solver = CG(rtol=0.0, atol=tolerance * first_outer, max_steps=self.max_linear)
        found = lx.linear_solve(hessian, outer.w, solver, options={"y0": aux.v}, throw=False)
        d = joint_directions(outer, turn.inner(u, w, found.value))

        products = found.stats["num_products"] + 1
        state, info = turn.close(
            d,
            w=w,
            aux=_Aux(found.value, first_inner, first_outer),
            calls=count(1, end.steps + 2, products, 1),
        )
        short = end.size > tolerance * first_inner
        result = RESULTS.where(short, RESULTS.inner_max_steps_reached, info.result)
        return state, dataclasses.replace(info, result=result)


class _Aux(NamedTuple):
    v: PyTree[Array]
    first_inner: Scalar  # the lengths that tolerances are relative to
    first_outer: Scalar


class _Point(NamedTuple):
    w: PyTree[Array]
    slope: PyTree[Array]  # the inner gradient
    size: Scalar
    steps: Int[Array, ""]
