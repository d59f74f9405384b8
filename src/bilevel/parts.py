"""What the library's own single-loop methods are made of, to build a new one from.

A method is a class with `init` and `step` (`bilevel.AbstractAlgorithm`) and these fields:
`inner_step`, `linear_step`, `outer_step` (those it has), `inner_sampler`, `outer_sampler`. Its step
reads as its equations. `examples/new_method.py` is one in full; in the order of use:

    begin(self, problem, u0, w0, key)       checks, the samplers' states, what "auto" starts from
    start(begun, aux)                       the first `State`; `aux` is what else the method carries
    streams_of(self, problem, samplers)     `.outer` and `.inner`, whose `.draw()` is a batch and the
                                            stream after it
    follow(problem, state, streams.inner)   the state, with "auto" brought up to date
    outer_terms(problem, u, w, batch)       `.value` F, `.u` grad_u F, `.w` grad_w F
    inner_terms(problem, u, w, v, batch)    `.residual` grad_w f, `.cross` (d2_uw f)^T v, and
                                            `.product` H v
    inner_gradient, inner_gradients         grad_w f; the pair grad_u f, grad_w f
    joint_directions(outer, inner)          SOBA's three directions, a `Point(u, w, v)`
    recursive, at_both                      variance reduction by recursive momentum
    sgd, linear_sgd, neumann                loops over minibatches, for w and for v
    at(self.inner_step, state.step, state.control)
                                            the step size: of a number, a schedule or "auto"
    descend(x, step, direction)             x - step * direction
    move_outer(self.outer_step, problem, state, d_u)
                                            retract(u, -outer_step d_u), as `.u`, and `.step`
    count(outer_grad, inner_grad, hvp, cross)
                                            the `Calls` of a step; be honest, nobody else counts
    make_info(outer, directions, calls, step_ratio)
                                            the step's `Info`
    close_streams(Streams(outer_stream, inner_stream))
                                            the samplers' next states
    advance(state, move, w, aux, calls)     the next `State`

A method that takes "auto" calls `follow` at the start of its step, and `at` for its step sizes; one
that takes plain numbers needs neither. `StepSize` and `as_setting` are the annotation and the
converter of a step size field. Until version 1.0 the parts may change with the methods that use
them; the changelog says so.
"""

from ._algorithm.auto_steps import StepSize, as_setting, at, follow, move_outer
from ._algorithm.base import SamplerStates, advance, close_streams, count, start
from ._algorithm.directions import (
    InnerTerms,
    OuterTerms,
    Point,
    at_both,
    begin,
    descend,
    inner_gradient,
    inner_gradients,
    inner_terms,
    joint_directions,
    make_info,
    outer_terms,
    recursive,
    streams_of,
)
from ._algorithm.loops import linear_sgd, neumann, sgd

__all__ = [
    "InnerTerms",
    "OuterTerms",
    "Point",
    "SamplerStates",
    "StepSize",
    "advance",
    "as_setting",
    "at",
    "at_both",
    "begin",
    "close_streams",
    "count",
    "descend",
    "follow",
    "inner_gradient",
    "inner_gradients",
    "inner_terms",
    "joint_directions",
    "linear_sgd",
    "make_info",
    "move_outer",
    "neumann",
    "outer_terms",
    "recursive",
    "sgd",
    "start",
    "streams_of",
]
