"""What the single-loop methods of the library are made of, to build a new one from.

A method is a `bilevel.AbstractAlgorithm` with the methods `init` and `step` and the fields that
`SingleLoop` declares: `inner_step`, `outer_step`, `inner_sampler` and `outer_sampler`; with an adjoint
variable also `linear_step` (`AdjointLoop`). Its step is a turn and reads as its equations: see
`examples/new_method.py`. In the order of use:

    init_state(self, problem, u0, w0, key, aux)
                                            the first `State`, with the samplers' states and what
                                            "auto" starts from; `aux` is what else the method carries
    open_turn(self, problem, state)         a `Turn`: batches are drawn, "auto" is brought up to date

    turn.outer(u, w)                        `.value` F, `.u` grad_u F, `.w` grad_w F
    turn.inner(u, w, v)                     `.residual` grad_w f, `.mixed` (d2_uw f)^T v, and
                                            `.product` H v
    turn.inner_gradient, inner_gradients    grad_w f; the pair grad_u f, grad_w f
    turn.draw, draw_inner                   the turn with the next batches
    turn.inner_step, linear_step            the step sizes of this step: of a number, a schedule or
                                            "auto"
    turn.now(self.momentum)                 another setting at this step

    joint_directions(outer, inner)          the three directions of SOBA, as `Directions`
    recursive, at_both                      variance reduction by recursive momentum
    sgd, linear_sgd, neumann                loops over minibatches, for w and for v
    descend(x, step, direction)             x - step * direction
    count(outer_grad, inner_grad, hvp, mixed)
                                            the `Calls` of a step; nobody else counts them
    turn.close(d, w=w, aux=aux, calls=calls)
                                            u moves along `d.u`: the next `State`, and the `Info`

`StepSize`, `as_setting` and `as_schedule` are the annotation and the converters of a step size and of
another setting. The functions that a turn is made of can be used on their own: `update_curvature`,
`step_size_at`, `move_outer`, `outer_terms`, `inner_terms`, `inner_gradient`, `inner_gradients`,
`make_info` and `advance`. Until version 1.0 the parts may change with the methods that use them; the
changelog says so.
"""

from ._algorithm.auto_steps import move_outer, step_size_at, update_curvature
from ._algorithm.base import (
    AdjointLoop,
    SamplerStates,
    SingleLoop,
    advance,
    count,
)
from ._algorithm.directions import (
    Directions,
    InnerTerms,
    OuterTerms,
    Point,
    at_both,
    descend,
    inner_gradient,
    inner_gradients,
    inner_terms,
    joint_directions,
    make_info,
    outer_terms,
    recursive,
)
from ._algorithm.loops import linear_sgd, neumann, sgd
from ._algorithm.turn import Turn, init_state, open_turn
from ._settings import StepSize, as_schedule, as_setting

__all__ = [
    "AdjointLoop",
    "Directions",
    "InnerTerms",
    "OuterTerms",
    "Point",
    "SamplerStates",
    "SingleLoop",
    "StepSize",
    "Turn",
    "advance",
    "as_schedule",
    "as_setting",
    "at_both",
    "count",
    "descend",
    "init_state",
    "inner_gradient",
    "inner_gradients",
    "inner_terms",
    "joint_directions",
    "linear_sgd",
    "make_info",
    "move_outer",
    "neumann",
    "open_turn",
    "outer_terms",
    "recursive",
    "sgd",
    "step_size_at",
    "update_curvature",
]

# Old names, each of which warns and goes with version 0.2.
_RENAMED = {"follow": "update_curvature", "at": "step_size_at"}
_GONE = ("begin", "start", "streams_of", "close_streams")


def __getattr__(name: str) -> object:
    if name in _GONE:
        raise AttributeError(
            f"`bilevel.parts.{name}` is gone: a method begins with `init_state` and steps with "
            "`open_turn`, see `help(bilevel.parts)`."
        )
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import warnings

    new = _RENAMED[name]
    warnings.warn(
        f"`bilevel.parts.{name}` is called `{new}` now; the old name goes with version 0.2.",
        DeprecationWarning,
        stacklevel=2,
    )
    return globals()[new]
