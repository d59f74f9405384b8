"""What a row of the table of methods is made of; the table is in `methods.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import bilevel
from bilevel import WithReplacement
from equations import BATCH, GAMMA, RHO, SIGMA
from problems import COUPLED, Case, Quadratic

Algorithm = bilevel.AbstractAlgorithm
BY_BLOCKS = ("SABA", "SFFBA", "MSEBA")  # methods that remember something of every block
BY_CLIENTS = ("FedNest", "LFedNest")  # methods for which axis 0 of the data are clients


@dataclass(frozen=True)
class Law:
    """An algorithm on the case that it is tried on."""

    case: Case
    algorithm: Algorithm
    quick: bool = True  # among the quick tests; the others are slow

    @property
    def problem(self) -> bilevel.BilevelProblem:
        return self.case.problem


@dataclass(frozen=True)
class Counted:
    """An algorithm whose calls are counted by an instrumented objective.

    `calls` are those of six steps where they are known: outer gradients, inner gradients,
    Hessian-vector products and mixed products.
    """

    algorithm: Algorithm
    calls: tuple[int, int, int, int] | None = None
    quadratic: Quadratic = COUPLED
    differentiated: str = "forward"  # or "reverse"


@dataclass(frozen=True)
class Row:
    """What the tests, the benchmark and the documentation need to know of a method.

    Attributes:
        kind: its class.
        page: its page under `docs/methods`, without the ending.
        laws: what the laws run over. The first part of a name is the method.
        counted: what `test_calls` runs over.
        per_step: for the documentation, the four kinds of calls per step, as expressions in the
            letters of `sizes`; `note` is what they leave out.
        sizes: what the letters are called in the code.
        memory, rate, bias: for the documentation; vectors beyond u and w, those like u first.
        oracle: an algorithm and its equations in numpy, of `tests/equations.py`.
        failing: runs that F makes NaN on the way, and that must end with `RESULTS.nonfinite`.
        untuned: algorithms with "auto" step sizes, and how far from u* they may end.
        on_batches: an untuned algorithm on minibatches, and which part of the gap it may leave.
        decaying: an algorithm whose squared error falls as 1 / k; it is given the steps of w and u.
        linear: an algorithm whose squared error falls linearly with constant steps.
        place_of_v: where the state keeps v, if it does.
        floor: the algorithm that `benchmarks/step_time.py` measures, from the settings of the
            benchmark; its arithmetic by hand is in the table `FLOORS` there.
    """

    kind: type[Algorithm]
    page: str
    laws: dict[str, Law]
    counted: dict[str, Counted] = field(default_factory=dict)
    per_step: tuple[str, str, str, str] | None = None
    sizes: dict[str, str] = field(default_factory=dict)
    note: str = ""
    memory: str = ""
    rate: str = ""
    bias: str = ""
    oracle: tuple[Algorithm, Callable] | None = None
    failing: dict[str, Algorithm] = field(default_factory=dict)
    untuned: dict[str, tuple[Algorithm, float]] = field(default_factory=dict)
    on_batches: tuple[Algorithm, float] | None = None
    decaying: Callable[..., Algorithm] | None = None
    linear: Algorithm | None = None
    place_of_v: Callable[[Any], Any] | None = None
    floor: Callable[[Any], Algorithm] | None = None

    def calls_in(self, num_steps: int, counted: Counted) -> tuple[int, ...] | None:
        """What `per_step` says that so many steps cost, if it says all."""
        if self.per_step is None or self.note:
            return None
        letters = {
            letter: int(vars(counted.algorithm)[name]) for letter, name in self.sizes.items()
        }
        return tuple(num_steps * eval(each, {}, letters) for each in self.per_step)


def with_steps(kind: Any, inner: Any, linear: Any, outer: Any, options: Any = None) -> Any:
    """A method by its step sizes; one without an adjoint variable takes no linear step."""
    steps = {"inner_step": inner, "linear_step": linear, "outer_step": outer}
    known = {f.name for f in fields(kind)}
    return kind(**({name: step for name, step in steps.items() if name in known} | (options or {})))


def draws(sampler: Any, batch_size: int) -> dict[str, Any]:
    return dict.fromkeys(("inner_sampler", "outer_sampler"), sampler(batch_size))


def costs(
    calls: str, memory: str, rate: str = "", bias: str = "", note: str = "", **sizes: str
) -> dict[str, Any]:
    """The fields of `Row` for the documentation; `calls` is `per_step` with commas between."""
    per_step = tuple(calls.split(", "))
    return {
        "per_step": per_step,
        "memory": memory,
        "rate": rate,
        "bias": bias,
        "note": note,
        "sizes": sizes,
    }


def single_loop(
    kind: Any,
    page: str,
    tried: tuple,
    by_hand: tuple[Callable, dict[str, Any]],
    *,
    lengths: dict[str, Any] | None = None,
    calls: tuple[int, int, int, int] | None = None,
    untuned: tuple[float, dict[str, Any]] | None = None,
    samplers: dict[str, Any] | None = None,
    quick: bool = True,
    also: dict[str, dict[str, Any]] | None = None,
    floor: dict[str, str] | None = None,
    **rest: Any,
) -> Row:
    """The row of a method that is made of steps of given sizes.

    Args:
        kind, page: as in `Row`.
        tried: its law: a case, the step size of w (and v), that of u, and other settings.
        by_hand: its equations in numpy, and settings of the method besides the step sizes.
        lengths, calls: settings of the method whose calls are counted, and its calls if they do not
            follow from `per_step`.
        untuned: how far from u* an untuned run may end, and its settings.
        samplers: those of `failing`.
        quick: whether its law is among the quick tests.
        also: more entries of the fields of `Row`.
        floor: for the benchmark, its settings besides the step sizes, by their names there.
        rest: the other fields of `Row`.
    """
    name, (case, step, outer, *options) = kind.__name__, tried
    equations, hand = by_hand
    hand = draws(WithReplacement, BATCH) | hand
    fields: dict[str, dict[str, Any]] = {
        "laws": {name: Law(case, with_steps(kind, step, step, outer, *options), quick)},
        "counted": {},
        "failing": {name: with_steps(kind, 0.5, 0.5, 0.1, samplers or {})},
        "untuned": {},
    }
    if lengths is not None:
        small = with_steps(kind, 0.02, 0.02, 0.01, lengths)
        fields["counted"] = {name: Counted(small, calls)}
    if untuned is not None:
        fields["untuned"] = {name: (kind(**untuned[1]), untuned[0])}
    for each, more in (also or {}).items():
        fields[each] |= more
    if floor is not None:
        drawn = "BLOCKS" if samplers else "SHUFFLED"

        def measured(b: Any) -> Algorithm:
            options = {setting: vars(b)[value] for setting, value in floor.items()}
            return with_steps(kind, b.RHO, b.SIGMA, b.GAMMA, options | vars(b)[drawn])

        rest["floor"] = measured
    oracle = with_steps(kind, RHO, SIGMA, GAMMA, hand), equations
    return Row(kind, page, oracle=oracle, **fields, **rest)
