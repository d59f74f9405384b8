"""Second derivatives of objectives, also of those that forward mode cannot differentiate.

Products with second derivatives are taken forward over reverse, which is the cheapest way. A function
with a `jax.custom_vjp` (a kernel of one's own, `jax.experimental.ode.odeint`, the default adjoint of
diffrax) has no forward mode. Its products are taken in reverse over reverse: the derivative of
`<r(u, w), x>`, which for `r = grad_w f` is the same vector, because Hessians are symmetric.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, PyTree

from ._problem import BilevelProblem, Problem


class Traced:
    """What a function that is traced has in it, at any depth."""

    def __init__(self, function: Callable, *arguments: PyTree):
        self._names = set[str]()
        self._add(jax.make_jaxpr(function)(*arguments).jaxpr)

    def _add(self, jaxpr: Jaxpr) -> None:
        for equation in jaxpr.eqns:
            self._names.add(equation.primitive.name)
            for part in jax.tree.leaves(equation.params):
                part = part.jaxpr if isinstance(part, ClosedJaxpr) else part
                if isinstance(part, Jaxpr):
                    self._add(part)

    @property
    def has_checkpoint(self) -> bool:
        """Whether it has a `jax.checkpoint`."""
        return not self._names.isdisjoint(("checkpoint", "remat", "remat2"))

    @property
    def has_forward_mode(self) -> bool:
        """Whether forward mode can differentiate it: it has no `jax.custom_vjp`."""
        return not any(name.startswith("custom_vjp") for name in self._names)


def inner_traced(problem: Problem, u: PyTree[Array], w: PyTree[Array], batch: Any) -> Traced:
    """The inner objective, or the map."""
    function = problem.inner if isinstance(problem, BilevelProblem) else problem.map
    return Traced(lambda u, w: function(u, w, batch), u, w)


def pull_back(
    problem: Problem, u: PyTree[Array], w: PyTree[Array], batch: Any
) -> tuple[PyTree[Array], Callable[[PyTree[Array]], tuple[PyTree[Array], PyTree[Array]]]]:
    """The inner residual `r(u, w)` and the map `v -> ((d_u r)^T v, (d_w r)^T v)`, in reverse mode.

    The map raises a `ValueError` where reverse mode cannot differentiate a gradient either.
    """
    residual, pull = jax.vjp(lambda u, w: problem.residual(u, w, batch), u, w)

    def products(v: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        try:
            return pull(v)
        except ValueError as error:
            if "Reverse-mode" not in str(error) or not isinstance(problem, BilevelProblem):
                raise
            raise ValueError(
                "the inner objective has a `jax.custom_vjp`, so its gradient has no forward mode, and "
                f"it has no reverse mode either ({error}) With diffrax, pass "
                "`adjoint=diffrax.DirectAdjoint()`, or write the rule as a `jax.custom_jvp`. `F2SA`, "
                "`BOME` and `ValueFunctionPenalty` need no second derivatives."
            ) from error

    return residual, products


def residual_along(
    problem: Problem, u: PyTree[Array], w: PyTree[Array], batch: Any, x: PyTree[Array]
) -> PyTree[Array]:
    """`(d_w r) x`, or `(d_w r)^T x` where there is no forward mode.

    These are equal for an inner objective, and for a map they give the same `<x, (d_w r) x>`.
    """

    def residual(w: PyTree[Array]) -> PyTree[Array]:
        return problem.residual(u, w, batch)

    if inner_traced(problem, u, w, batch).has_forward_mode:
        return jax.jvp(residual, (w,), (x,))[1]
    return jax.vjp(residual, w)[1](x)[0]
