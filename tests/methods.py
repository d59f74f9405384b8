"""The one table of methods: `METHODS`, a row for every public algorithm.

A new method is one row here. The laws, the oracle of its trajectory, the rates, the counts of calls,
the failures, the tests of "auto" step sizes, `benchmarks/step_time.py` and the tables of
`docs/algorithms.md` read it; `tests/test_tables.py` fails if a public algorithm has no row.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import lineax as lx
import optax

import bilevel
import equations
from bilevel import AID, ITD, Blocks, DoubleLoop, GradientInner, Shuffled, WithReplacement
from equations import BATCH, ETA, GAMMA, RHO, SIGMA, K, T
from helpers import BLOCKS, REPLACED, SHUFFLED, double_loop, soba
from problems import CASES, COUPLED, Case, Quadratic, spd

Algorithm = bilevel.AbstractAlgorithm

# How far from u* an untuned run ends, relative to u*: the bias that stays with the default lengths.
EXACT, SERIES, RANDOM = 1e-8, 2e-2, 0.3
WIDE = Quadratic.random(4, spd(4, 14, 1.0, 30.0), 3)  # CG takes more than ten steps


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
        floor: what `benchmarks/step_time.py` measures: a name, an algorithm, which is given the
            samplers and the lengths of the benchmark, and its arithmetic by hand, a function there.
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
    floor: tuple[str, Callable[[Any], Algorithm], str] | None = None

    def calls_in(self, num_steps: int, counted: Counted) -> tuple[int, ...] | None:
        """What `per_step` says that so many steps cost, if it says all."""
        if self.per_step is None or self.note:
            return None
        letters = {
            letter: int(vars(counted.algorithm)[name]) for letter, name in self.sizes.items()
        }
        return tuple(num_steps * eval(each, {}, letters) for each in self.per_step)


def with_steps(kind: Any, inner: Any, linear: Any, outer: Any, **options: Any) -> Any:
    """A method by its step sizes; one without an adjoint variable takes no linear step."""
    steps = {"inner_step": inner, "linear_step": linear, "outer_step": outer}
    known = {f.name for f in fields(kind)}
    return kind(**({name: step for name, step in steps.items() if name in known} | options))


def by_hand(kind: Any, **options: Any) -> Any:
    """A method with the step sizes and samplers of its oracle."""
    return with_steps(kind, RHO, SIGMA, GAMMA, **(draws(WithReplacement, BATCH) | options))


def small(kind: Any, **options: Any) -> Any:
    """A method with small steps, for counting."""
    return with_steps(kind, 0.02, 0.02, 0.01, **options)


def failing(kind: Any, **options: Any) -> dict[str, Algorithm]:
    """A method with the step sizes that the failures take."""
    return {kind.__name__: with_steps(kind, 0.5, 0.5, 0.1, **options)}


def draws(sampler: Any, batch_size: int) -> dict[str, Any]:
    return dict.fromkeys(("inner_sampler", "outer_sampler"), sampler(batch_size))


_coupled, _tree, _logistic = CASES["coupled"], CASES["pytree"], CASES["logistic"]
_simplex, _box = CASES["simplex"], CASES["box"]
_two_steps = GradientInner(optax.sgd(0.5), 2)
_three_steps = GradientInner(optax.sgd(0.02), 3)
_accurate = AID(bilevel.CG(rtol=1e-12))


def _loop(hypergradient: Any, outer_step: float = 0.01, **options: Any) -> Any:
    inner = options.pop("inner", _three_steps)
    return DoubleLoop(inner, hypergradient, optax.sgd(outer_step), **options)


ROWS = [
    Row(
        DoubleLoop,
        "double_loop",
        laws={
            "AID cold": Law(_coupled, double_loop(_coupled, 50)),
            "AID warm": Law(_tree, double_loop(_tree, 5, warm_start=True)),
            "ITD box": Law(_box, double_loop(_box, 40, hypergradient=ITD())),
            "AID simplex": Law(_simplex, double_loop(_simplex, 40, 1.0)),
            "SID": Law(
                _logistic,
                double_loop(
                    _logistic,
                    5,
                    hypergradient=bilevel.SID(bilevel.StochasticRichardson(0.3, 5), 2),
                    warm_start=True,
                    **REPLACED,
                ),
            ),
            "double loop auto": Law(_coupled, DoubleLoop(GradientInner("auto", 120), _accurate)),
            "BiGSAM": Law(
                _logistic,
                _loop(ITD(), 0.1, inner=bilevel.BiGSAM(0.3, 0.3, 6, every=2), **SHUFFLED),
                quick=False,
            ),
        },
        counted={
            "CG": Counted(_loop(AID(bilevel.CG(rtol=1e-8), warm_start=False)), None, WIDE),
            "CG warm": Counted(_loop(AID(bilevel.CG(rtol=1e-8)), warm_start=True), None, WIDE),
            "lineax CG": Counted(_loop(AID(lx.CG(rtol=1e-8, atol=1e-8))), None, WIDE),
            "LU": Counted(_loop(AID(lx.LU(), warm_start=False)), (6, 24, 6 * (5 + 1), 6)),
            "ITD": Counted(_loop(ITD()), (6, 24, 18, 18), differentiated="reverse"),
            "double loop auto": Counted(DoubleLoop(GradientInner("auto", 3), AID())),
        },
        failing={
            "AID": _loop(AID(), 0.02, inner=_two_steps),
            "ITD": _loop(ITD(), 0.02, inner=_two_steps),
            "untuned double loop": DoubleLoop(GradientInner("auto", 5), AID()),
        },
        untuned={
            "DoubleLoop": (DoubleLoop(GradientInner("auto", 200), AID()), 1e-5),
            "DoubleLoop warm": (
                DoubleLoop(GradientInner("auto", 50), ITD(), warm_start=True),
                1e-6,
            ),
        },
    ),
    Row(
        bilevel.SOBA,
        "soba",
        laws={
            "SOBA": Law(_coupled, soba(0.4, 0.4, 0.05)),
            "SOBA simplex": Law(_simplex, soba(0.5, 0.5, 0.5)),
            "SOBA shuffled": Law(_logistic, soba(0.3, 0.3, 0.1, **SHUFFLED)),
            "SOBA replaced": Law(_logistic, soba(0.3, 0.3, 0.1, **REPLACED), quick=False),
            "auto SOBA": Law(_logistic, bilevel.SOBA(**SHUFFLED)),
        },
        counted={
            "SOBA": Counted(soba(0.1, 0.1, 0.01)),
            "SOBA auto": Counted(bilevel.SOBA(), (7, 7, 22 + 6 + 6, 8)),
        },
        per_step=("1", "1", "1", "1"),
        memory="0 + 1",
        rate="eps^-2",
        oracle=(by_hand(bilevel.SOBA), equations.soba),
        failing={**failing(bilevel.SOBA), "untuned": bilevel.SOBA()},
        untuned={"SOBA": (bilevel.SOBA(), EXACT)},
        on_batches=(bilevel.SOBA(**draws(Shuffled, 32)), 0.05),
        decaying=lambda s, t: bilevel.SOBA(s, s, t, **draws(WithReplacement, 32)),
        place_of_v=lambda state: state.aux,
        floor=("SOBA", lambda b: bilevel.SOBA(*b.SIZES, **b.SHUFFLED), "soba"),
    ),
    Row(
        bilevel.SABA,
        "saba",
        laws={
            "SABA": Law(_logistic, bilevel.SABA(0.3, 0.3, 0.1, **BLOCKS)),
            "SABA auto": Law(_logistic, bilevel.SABA(**BLOCKS), quick=False),
        },
        per_step=("1", "1", "1", "1"),
        memory="a table",
        rate="n^(2/3) / eps",
        oracle=(by_hand(bilevel.SABA, **draws(Blocks, BATCH)), equations.saba),
        failing=failing(bilevel.SABA, **draws(Blocks, 1)),
        on_batches=(bilevel.SABA(**draws(Blocks, 32)), 1e-8),
        linear=bilevel.SABA(0.2, 0.2, 0.05, **draws(Blocks, 32)),
        place_of_v=lambda state: state.aux,
        floor=("SABA", lambda b: bilevel.SABA(*b.SIZES, **b.BLOCKS), "saba"),
    ),
    Row(
        bilevel.SRBA,
        "srba",
        laws={"SRBA": Law(_coupled, with_steps(bilevel.SRBA, 0.4, 0.4, 0.05, period=3))},
        # Once at two exact steps, twice at four others.
        counted={"SRBA": Counted(small(bilevel.SRBA, period=3), (10, 10, 10, 10))},
        per_step=("2", "2", "2", "2"),
        note="every `period` steps 1 of each, on all data",
        memory="2 + 5",
        rate="n^(1/2) / eps",
        oracle=(by_hand(bilevel.SRBA, period=5), equations.srba),
        failing=failing(bilevel.SRBA),
        untuned={"SRBA": (bilevel.SRBA(), EXACT)},
        linear=bilevel.SRBA(0.2, 0.2, 0.05, period=16, **draws(Shuffled, 32)),
        place_of_v=lambda state: state.aux.v,
        floor=("SRBA", lambda b: bilevel.SRBA(*b.SIZES, period=b.PERIOD, **b.SHUFFLED), "srba"),
    ),
    Row(
        bilevel.FSLA,
        "fsla",
        laws={"FSLA": Law(_coupled, with_steps(bilevel.FSLA, 0.4, 0.4, 0.05))},
        counted={"FSLA": Counted(small(bilevel.FSLA))},
        per_step=("3", "1", "1", "2"),
        memory="2 + 1",
        rate="eps^-2",
        oracle=(by_hand(bilevel.FSLA, momentum=ETA), equations.fsla),
        failing=failing(bilevel.FSLA),
        untuned={"FSLA": (bilevel.FSLA(), EXACT)},
        on_batches=(bilevel.FSLA(**draws(Shuffled, 32)), 0.05),
        decaying=lambda s, t: bilevel.FSLA(s, s, t, 1.0, **draws(WithReplacement, 32)),
        place_of_v=lambda state: state.aux.v,
        floor=("FSLA", lambda b: bilevel.FSLA(*b.SIZES, b.ETA, **b.SHUFFLED), "fsla"),
    ),
    Row(
        bilevel.MRBO,
        "mrbo",
        laws={
            "MRBO": Law(
                _coupled, with_steps(bilevel.MRBO, 0.4, 0.4, 0.1, num_terms=75), quick=False
            )
        },
        counted={"MRBO": Counted(small(bilevel.MRBO, num_terms=4))},
        per_step=("2", "2", "2 * K", "2"),
        sizes={"K": "num_terms"},
        memory="2 + 2",
        rate="eps^-1.5",
        bias="(1 - mu / L)^K",
        oracle=(by_hand(bilevel.MRBO, momentum=ETA, num_terms=K), equations.mrbo),
        failing=failing(bilevel.MRBO),
        untuned={"MRBO": (bilevel.MRBO(num_terms=100), 1e-4)},
        floor=("MRBO", lambda b: bilevel.MRBO(*b.SIZES, b.ETA, b.K, **b.SHUFFLED), "mrbo"),
    ),
    Row(
        bilevel.SUSTAIN,
        "sustain",
        laws={"SUSTAIN": Law(_logistic, with_steps(bilevel.SUSTAIN, 0.3, 0.3, 0.1, **SHUFFLED))},
        counted={"SUSTAIN": Counted(small(bilevel.SUSTAIN, num_terms=4))},
        per_step=("2", "2", "2 * (p + 1)", "2"),
        sizes={"K": "num_terms"},
        note="p is uniform on 0 .. K - 1",
        memory="2 + 2",
        rate="eps^-1.5",
        bias="(1 - mu / L)^K",
        oracle=(by_hand(bilevel.SUSTAIN, momentum=ETA, num_terms=K), equations.sustain),
        failing=failing(bilevel.SUSTAIN),
        untuned={"SUSTAIN": (bilevel.SUSTAIN(), RANDOM)},
        floor=("SUSTAIN", lambda b: bilevel.SUSTAIN(*b.SIZES, b.ETA, b.K, **b.SHUFFLED), "sustain"),
    ),
    Row(
        bilevel.VRBO,
        "vrbo",
        laws={
            "VRBO": Law(_coupled, with_steps(bilevel.VRBO, 0.4, 0.4, 0.1, period=3, num_terms=75))
        },
        counted={
            "VRBO": Counted(
                small(bilevel.VRBO, period=3, num_inner=2, num_terms=4),
                (26, 26, 6 * 16 + 2 * 3, 26),
            )
        },
        per_step=("2 * T", "2 * T", "2 * T * K", "2 * T"),
        sizes={"T": "num_inner", "K": "num_terms"},
        note="every `period` steps also 1, 1, K - 1 and 1 on all data",
        memory="1 + 1",
        rate="eps^-1.5",
        bias="(1 - mu / L)^K",
        oracle=(by_hand(bilevel.VRBO, period=5, num_inner=T, num_terms=K), equations.vrbo),
        failing=failing(bilevel.VRBO),
        untuned={"VRBO": (bilevel.VRBO(num_terms=100), EXACT)},
        floor=(
            "VRBO",
            lambda b: bilevel.VRBO(
                *b.SIZES, period=b.PERIOD, num_inner=b.T, num_terms=b.K, **b.SHUFFLED
            ),
            "vrbo",
        ),
    ),
    Row(
        bilevel.StocBiO,
        "stocbio",
        laws={"StocBiO": Law(_coupled, with_steps(bilevel.StocBiO, 0.4, 0.4, 0.1, num_terms=75))},
        counted={"StocBiO": Counted(small(bilevel.StocBiO, num_inner=3, num_terms=4))},
        per_step=("1", "T + 1", "K", "1"),
        sizes={"T": "num_inner", "K": "num_terms"},
        memory="0",
        rate="eps^-2",
        bias="(1 - mu / L)^K",
        oracle=(by_hand(bilevel.StocBiO, num_inner=T, num_terms=K), equations.stocbio),
        failing=failing(bilevel.StocBiO),
        untuned={
            "StocBiO": (bilevel.StocBiO(num_terms=100), EXACT),
            "short series": (bilevel.StocBiO(), SERIES),
        },
        on_batches=(bilevel.StocBiO(**draws(Shuffled, 32)), 0.05),
    ),
    Row(
        bilevel.BSA,
        "bsa",
        laws={"BSA": Law(_logistic, with_steps(bilevel.BSA, 0.3, 0.3, 0.1, **SHUFFLED), False)},
        counted={"BSA": Counted(small(bilevel.BSA, num_inner=3, num_terms=4))},
        per_step=("1", "T + 1", "p + 1", "1"),
        sizes={"T": "num_inner", "K": "num_terms"},
        note="p is uniform on 0 .. K - 1",
        memory="0",
        rate="eps^-3 (TTSA eps^-2.5)",
        bias="(1 - mu / L)^K",
        oracle=(by_hand(bilevel.BSA, num_inner=T, num_terms=K), equations.bsa),
        failing=failing(bilevel.BSA),
        untuned={"BSA": (bilevel.BSA(), RANDOM)},
        floor=("TTSA", lambda b: bilevel.BSA(*b.SIZES, 1, b.K, **b.SHUFFLED), "ttsa"),
    ),
    Row(
        bilevel.AmIGO,
        "amigo",
        laws={
            "AmIGO": Law(_coupled, with_steps(bilevel.AmIGO, 0.4, 0.4, 0.1), quick=False),
            "AmIGO auto": Law(_coupled, bilevel.AmIGO(), quick=False),
        },
        counted={"AmIGO": Counted(small(bilevel.AmIGO, num_inner=3, num_linear=4))},
        per_step=("1", "T + 1", "K + 1", "1"),
        sizes={"T": "num_inner", "K": "num_linear"},
        memory="0 + 1",
        rate="eps^-2",
        oracle=(by_hand(bilevel.AmIGO, num_inner=T, num_linear=K), equations.amigo),
        failing=failing(bilevel.AmIGO),
        untuned={"AmIGO": (bilevel.AmIGO(), EXACT)},
        on_batches=(bilevel.AmIGO(**draws(Shuffled, 32)), 0.05),
        decaying=lambda s, t: bilevel.AmIGO(s, s, t, 2, 2, **draws(WithReplacement, 32)),
        place_of_v=lambda state: state.aux,
    ),
    Row(
        bilevel.F2SA,
        "f2sa",
        laws={"F2SA": Law(_logistic, with_steps(bilevel.F2SA, 0.3, None, 0.1, **SHUFFLED))},
        counted={"F2SA": Counted(small(bilevel.F2SA, num_inner=3))},
        per_step=("T + 1", "2 * T + 2", "0", "0"),
        sizes={"T": "num_inner"},
        memory="0 + 1",
        rate="eps^-3.5",
        bias="1 / multiplier",
        oracle=(
            by_hand(bilevel.F2SA, multiplier=lambda step: 5 + step, num_inner=T),
            equations.f2sa,
        ),
        failing={**failing(bilevel.F2SA), "untuned F2SA": bilevel.F2SA()},
        untuned={"F2SA": (bilevel.F2SA(), 1e-2)},
        on_batches=(bilevel.F2SA(**draws(Shuffled, 32)), 0.05),
    ),
    Row(
        bilevel.ValueFunctionPenalty,
        "penalty",
        laws={
            "penalty": Law(
                _logistic, with_steps(bilevel.ValueFunctionPenalty, 0.3, None, 0.1, **SHUFFLED)
            )
        },
        counted={"penalty": Counted(small(bilevel.ValueFunctionPenalty, num_inner=3))},
        per_step=("1", "T + 2", "0", "0"),
        sizes={"T": "num_inner"},
        memory="0",
        rate="eps^-1.5, all data",
        bias="1 / multiplier",
        oracle=(
            by_hand(bilevel.ValueFunctionPenalty, multiplier=5.0, num_inner=T),
            equations.penalty,
        ),
        failing=failing(bilevel.ValueFunctionPenalty),
        untuned={"ValueFunctionPenalty": (bilevel.ValueFunctionPenalty(), 0.1)},
    ),
    Row(
        bilevel.BOME,
        "bome",
        laws={"BOME": Law(_logistic, with_steps(bilevel.BOME, 0.3, None, 0.1))},
        counted={"BOME": Counted(small(bilevel.BOME, num_inner=3))},
        per_step=("1", "T + 2", "0", "0"),
        sizes={"T": "num_inner"},
        memory="0",
        rate="k^-1/4 after k steps, all data",
        oracle=(by_hand(bilevel.BOME, eta=0.5, num_inner=T), equations.bome),
        failing=failing(bilevel.BOME),
        untuned={"BOME": (bilevel.BOME(), RANDOM)},
    ),
    Row(
        bilevel.PDBO,
        "pdbo",
        laws={"PDBO": Law(_logistic, with_steps(bilevel.PDBO, 0.3, None, 0.1, **SHUFFLED), False)},
        counted={"PDBO": Counted(small(bilevel.PDBO, num_inner=3))},
        per_step=("1", "T + 2", "0", "0"),
        sizes={"T": "num_inner"},
        memory="2 numbers",
        bias="sqrt(delta)",
        oracle=(
            by_hand(
                bilevel.PDBO,
                dual_step=0.2,
                delta=0.1,
                max_multiplier=3.0,
                extrapolation=ETA,
                first_multiplier=2.0,
                num_inner=T,
            ),
            equations.pdbo,
        ),
        failing=failing(bilevel.PDBO),
    ),
    Row(
        bilevel.PZOBO,
        "pzobo",
        laws={"PZOBO": Law(_logistic, with_steps(bilevel.PZOBO, 0.3, None, 0.1, **SHUFFLED))},
        counted={"PZOBO": Counted(small(bilevel.PZOBO, num_inner=3, num_directions=2))},
        per_step=("1", "(Q + 1) * T + 1", "0", "0"),
        sizes={"T": "num_inner", "Q": "num_directions"},
        memory="0",
        bias="(1 - mu / L)^T, radius^2",
        oracle=(
            by_hand(bilevel.PZOBO, radius=1e-2, num_inner=T, num_directions=K),
            equations.pzobo,
        ),
        failing=failing(bilevel.PZOBO),
        untuned={"PZOBO": (bilevel.PZOBO(), RANDOM)},
    ),
    Row(
        bilevel.InexactDescent,
        "inexact",
        laws={
            "inexact": Law(
                _coupled, with_steps(bilevel.InexactDescent, 0.4, 0.4, 0.1, num_steps=75)
            )
        },
        counted={"inexact": Counted(small(bilevel.InexactDescent, num_steps=3))},
        per_step=("J", "t + J", "t + J", "J"),
        sizes={"t": "num_steps", "J": "num_samples"},
        memory="0 + 1",
        oracle=(
            by_hand(
                bilevel.InexactDescent,
                inner_step=bilevel.decreasing_step(2, 10),
                linear_step=bilevel.decreasing_step(3, 20),
                num_steps=bilevel.logarithmic(3.0),
                num_samples=2,
            ),
            equations.inexact,
        ),
        failing=failing(bilevel.InexactDescent),
        untuned={"InexactDescent": (bilevel.InexactDescent(), EXACT)},
    ),
    Row(
        bilevel.IterateAveraging,
        "remedies",
        laws={
            "averaging": Law(
                _logistic, bilevel.IterateAveraging(soba(0.3, 0.3, 0.1, **SHUFFLED), 2), quick=False
            )
        },
    ),
    Row(
        bilevel.ImportanceSampling,
        "remedies",
        laws={},  # its sampler keeps weights in the default dtype; see tests/outer/test_remedies.py
    ),
]

METHODS = {row.kind.__name__: row for row in ROWS}
LAWS = {name: law for row in ROWS for name, law in row.laws.items()}
DETERMINISTIC = [name for name, law in LAWS.items() if law.case.u_star is not None]


def row_of(law: str) -> Row:
    """The row that a law belongs to."""
    return next(row for row in ROWS if law in row.laws)
