"""The one table of methods: `METHODS`, a row for every public algorithm.

A new method is one row here. The laws, the oracle of its trajectory, the rates, the counts of calls,
the failures, the tests of "auto" step sizes, `benchmarks/step_time.py` and the tables of
`docs/algorithms.md` read it; `tests/test_tables.py` fails if a public algorithm has no row.
`rows.py` says what a row is made of.
"""

import dataclasses
from typing import Any

import lineax as lx
import optax

import bilevel
import equations
from bilevel import AID, ITD, Blocks, DoubleLoop, GradientInner, Shuffled, WithReplacement
from equations import BATCH, ETA, K, T
from helpers import BLOCKS, PARTS, REPLACED, SHUFFLED, double_loop, soba
from problems import CASES, Quadratic, among_clients, on_network, spd
from rows import Counted, Law, Row, costs, draws, single_loop

# How far from u* an untuned run ends, relative to u*: the bias that stays with the default lengths.
EXACT, SERIES, RANDOM = 1e-8, 2e-2, 0.3
SHORT = r"$(1 - \mu / L)^K$"  # the bias of K terms of the Neumann series
WIDE = Quadratic.random(4, spd(4, 14, 1.0, 30.0), 3)  # CG takes more than ten steps


_coupled, _tree, _logistic = CASES["coupled"], CASES["pytree"], CASES["logistic"]
_simplex, _box = CASES["simplex"], CASES["box"]
RING = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.2, 0.3, 0.5]]  # a gossip matrix of three agents
CLIENTS = among_clients(_coupled)
DRIFTING = dataclasses.replace(CLIENTS, u_star=None)  # of a method that ends elsewhere
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
        note="those of its inner solver and of its estimator",
        laws={
            "AID cold": Law(_coupled, double_loop(_coupled, 50), quick=False),
            "AID warm": Law(_tree, double_loop(_tree, 5, warm_start=True)),
            "ITD box": Law(_box, double_loop(_box, 40, hypergradient=ITD())),
            "AID simplex": Law(_simplex, double_loop(_simplex, 40, 1.0), quick=False),
            "SID": Law(
                _logistic,
                double_loop(
                    _logistic,
                    5,
                    hypergradient=bilevel.SID(bilevel.StochasticRichardson(0.3, 5), 2),
                    warm_start=True,
                    **REPLACED,
                ),
                quick=False,
            ),
            "double loop auto": Law(
                _coupled, DoubleLoop(GradientInner("auto", 120), _accurate), quick=False
            ),
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
            "BiG-SAM": Counted(
                _loop(ITD(), inner=bilevel.BiGSAM(0.02, 0.02, 6, every=4)),
                (6 * 2, 6 * 7, 6 * 6, 6 * 6),
                differentiated="reverse",
            ),
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
        floor=lambda b: DoubleLoop(
            GradientInner(optax.sgd(b.RHO), b.T),
            AID(bilevel.Neumann(b.SIGMA, b.K), warm_start=False),
            optax.sgd(b.GAMMA),
            warm_start=True,
            **b.SHUFFLED,
        ),
    ),
    single_loop(
        bilevel.SOBA,
        "soba",
        tried=(_coupled, 0.4, 0.05),
        by_hand=(equations.soba, {}),
        **costs("1, 1, 1, 1", "$0 + 1$", r"$\varepsilon^{-2}$"),
        lengths={},
        untuned=(EXACT, {}),
        also={
            "laws": {
                "SOBA simplex": Law(_simplex, soba(0.5, 0.5, 0.5)),
                "SOBA shuffled": Law(_logistic, soba(0.3, 0.3, 0.1, **SHUFFLED)),
                "SOBA replaced": Law(_logistic, soba(0.3, 0.3, 0.1, **REPLACED), quick=False),
                "SOBA parts": Law(_logistic, soba(0.3, 0.3, 0.1, **PARTS), quick=False),
                "auto SOBA": Law(_logistic, bilevel.SOBA(**SHUFFLED)),
            },
            "counted": {"SOBA auto": Counted(bilevel.SOBA(), (7, 6, 20 + 6 + 6, 8))},
            "failing": {"untuned": bilevel.SOBA()},
        },
        on_batches=(bilevel.SOBA(**draws(Shuffled, 32)), 0.05),
        decaying=lambda s, t: bilevel.SOBA(s, s, t, **draws(WithReplacement, 32)),
        place_of_v=lambda state: state.aux,
        floor={},
    ),
    single_loop(
        bilevel.SABA,
        "saba",
        tried=(_logistic, 0.3, 0.1, BLOCKS),
        by_hand=(equations.saba, draws(Blocks, BATCH)),
        **costs("1, 1, 1, 1", "a table", r"$n^{2/3} \varepsilon^{-1}$"),
        samplers=draws(Blocks, 1),
        also={"laws": {"SABA auto": Law(_logistic, bilevel.SABA(**BLOCKS), quick=False)}},
        on_batches=(bilevel.SABA(**draws(Blocks, 32)), 1e-8),
        linear=bilevel.SABA(0.2, 0.2, 0.05, **draws(Blocks, 32)),
        place_of_v=lambda state: state.aux,
        floor={},
    ),
    single_loop(
        bilevel.SRBA,
        "srba",
        tried=(_coupled, 0.4, 0.05, {"period": 3}),
        by_hand=(equations.srba, {"period": 5}),
        **costs(
            "2, 2, 2, 2",
            "$2 + 5$",
            r"$n^{1/2} \varepsilon^{-1}$",
            note="every `period` steps $1$ of each, on all data",
        ),
        lengths={"period": 3},
        calls=(10, 10, 10, 10),
        untuned=(EXACT, {}),
        linear=bilevel.SRBA(0.2, 0.2, 0.05, period=16, **draws(Shuffled, 32)),
        place_of_v=lambda state: state.aux.v,
        floor={"period": "PERIOD"},
    ),
    single_loop(
        bilevel.SPABA,
        "spaba",
        tried=(_coupled, 0.4, 0.05, {"probability": 0.4}),
        by_hand=(equations.spaba, {"probability": 0.3}),
        **costs(
            "2, 2, 2, 2",
            "$2 + 5$",
            r"$n^{1/2} \varepsilon^{-1}$",
            note="with `probability` $1$ of each instead, on all data",
        ),
        quick=False,
        lengths={"probability": 0.4},
        untuned=(EXACT, {}),
        linear=bilevel.SPABA(0.2, 0.2, 0.05, probability=1 / 16, **draws(Shuffled, 32)),
        place_of_v=lambda state: state.aux.v,
        floor={"probability": "PROBABILITY"},
    ),
    single_loop(
        bilevel.SFFBA,
        "spaba",
        tried=(_logistic, 0.3, 0.1, BLOCKS),
        by_hand=(equations.sffba, draws(Blocks, BATCH) | {"momentum": ETA}),
        **costs("2, 2, 2, 2", "a table and $2 + 5$", r"$n^{1/2} \varepsilon^{-1}$"),
        quick=False,
        samplers=draws(Blocks, 1),
        linear=bilevel.SFFBA(0.2, 0.2, 0.05, momentum=1 / 16, **draws(Blocks, 32)),
        place_of_v=lambda state: state.aux.v,
        floor={"momentum": "ETA"},
    ),
    single_loop(
        bilevel.MSEBA,
        "spaba",
        tried=(_logistic, 0.3, 0.1, BLOCKS),
        by_hand=(
            equations.mseba,
            draws(Blocks, BATCH) | {"momentum": ETA, "probability": 0.3},
        ),
        **costs(
            "2, 2, 2, 2",
            "a table of $w$ and $2 + 5$",
            r"$n^{1/2} \varepsilon^{-1}$",
            note="with `probability` $1$ more of each, on all data",
        ),
        quick=False,
        samplers=draws(Blocks, 1),
        linear=bilevel.MSEBA(
            0.2, 0.2, 0.05, momentum=1 / 16, probability=1 / 16, **draws(Blocks, 32)
        ),
        place_of_v=lambda state: state.aux.v,
        floor={"momentum": "ETA", "probability": "PROBABILITY"},
    ),
    single_loop(
        bilevel.FSLA,
        "fsla",
        tried=(_coupled, 0.4, 0.05),
        by_hand=(equations.fsla, {"momentum": ETA}),
        **costs("3, 1, 1, 2", "$2 + 1$", r"$\varepsilon^{-2}$"),
        lengths={},
        untuned=(EXACT, {}),
        on_batches=(bilevel.FSLA(**draws(Shuffled, 32)), 0.05),
        decaying=lambda s, t: bilevel.FSLA(
            s, s, t, lambda k: (1 + k / 100) ** -0.5, **draws(WithReplacement, 32)
        ),
        place_of_v=lambda state: state.aux.v,
        quick=False,
        floor={"momentum": "ETA"},
    ),
    single_loop(
        bilevel.MRBO,
        "mrbo",
        tried=(_coupled, 0.4, 0.1, {"num_terms": 75}),
        by_hand=(equations.mrbo, {"momentum": ETA, "num_terms": K}),
        **costs("2, 2, 2 * K, 2", "$2 + 2$", r"$\varepsilon^{-1.5}$", SHORT, K="num_terms"),
        quick=False,
        lengths={"num_terms": 4},
        untuned=(1e-4, {"num_terms": 100}),
        floor={"momentum": "ETA", "num_terms": "K"},
    ),
    single_loop(
        bilevel.SUSTAIN,
        "sustain",
        tried=(_logistic, 0.3, 0.1, SHUFFLED),
        by_hand=(equations.sustain, {"momentum": ETA, "num_terms": K}),
        **costs(
            "2, 2, 2 * (p + 1), 2",
            "$2 + 2$",
            r"$\varepsilon^{-1.5}$",
            SHORT,
            K="num_terms",
            note=r"$p$ is uniform on $0 \dots K - 1$",
        ),
        quick=False,
        lengths={"num_terms": 4},
        untuned=(RANDOM, {}),
        floor={"momentum": "ETA", "num_terms": "K"},
    ),
    single_loop(
        bilevel.VRBO,
        "vrbo",
        tried=(_coupled, 0.4, 0.1, {"period": 3, "num_terms": 75}),
        by_hand=(equations.vrbo, {"period": 5, "num_inner": T, "num_terms": K}),
        **costs(
            "2 * (T + 1), 2 * (T + 1), 2 * (T + 1) * K, 2 * (T + 1)",
            "$1 + 1$",
            r"$\varepsilon^{-1.5}$",
            SHORT,
            T="num_inner",
            K="num_terms",
            note="every `period` steps also $1$, $1$, $K - 1$ and $1$ on all data",
        ),
        lengths={"period": 3, "num_inner": 2, "num_terms": 4},
        calls=(38, 38, 6 * 24 + 2 * 3, 38),
        untuned=(EXACT, {"num_terms": 100}),
        quick=False,
        floor={"period": "PERIOD", "num_inner": "T", "num_terms": "K"},
    ),
    single_loop(
        bilevel.StocBiO,
        "stocbio",
        tried=(_coupled, 0.4, 0.1, {"num_terms": 75}),
        by_hand=(equations.stocbio, {"num_inner": T, "num_terms": K}),
        **costs(
            "1, T + 1, K, 1", "$0$", r"$\varepsilon^{-2}$", SHORT, T="num_inner", K="num_terms"
        ),
        quick=False,
        lengths={"num_inner": 3, "num_terms": 4},
        untuned=(EXACT, {"num_terms": 100}),
        also={"untuned": {"short series": (bilevel.StocBiO(), SERIES)}},
        on_batches=(bilevel.StocBiO(**draws(Shuffled, 32)), 0.05),
        floor={"num_inner": "T", "num_terms": "K"},
    ),
    single_loop(
        bilevel.BSA,
        "bsa",
        tried=(_logistic, 0.3, 0.1, SHUFFLED),
        by_hand=(equations.bsa, {"num_inner": T, "num_terms": K}),
        **costs(
            "1, T + 1, p + 1, 1",
            "$0$",
            r"$\varepsilon^{-3}$ (TTSA $\varepsilon^{-2.5}$)",
            SHORT,
            T="num_inner",
            K="num_terms",
            note=r"$p$ is uniform on $0 \dots K - 1$",
        ),
        quick=False,
        lengths={"num_inner": 3, "num_terms": 4},
        untuned=(RANDOM, {}),
        floor={"num_inner": "T", "num_terms": "K"},
    ),
    single_loop(
        bilevel.AmIGO,
        "amigo",
        tried=(_coupled, 0.4, 0.1),
        by_hand=(equations.amigo, {"num_inner": T, "num_linear": K}),
        **costs(
            "1, T + 1, K + 1, 1", "$0 + 1$", r"$\varepsilon^{-2}$", T="num_inner", K="num_linear"
        ),
        quick=False,
        lengths={"num_inner": 3, "num_linear": 4},
        untuned=(EXACT, {}),
        also={"laws": {"AmIGO auto": Law(_coupled, bilevel.AmIGO(), quick=False)}},
        on_batches=(bilevel.AmIGO(**draws(Shuffled, 32)), 0.05),
        decaying=lambda s, t: bilevel.AmIGO(s, s, t, 2, 2, **draws(WithReplacement, 32)),
        place_of_v=lambda state: state.aux,
        floor={"num_inner": "T", "num_linear": "K"},
    ),
    single_loop(
        bilevel.F2SA,
        "f2sa",
        tried=(_logistic, 0.3, 0.1, SHUFFLED),
        quick=False,
        by_hand=(equations.f2sa, {"multiplier": lambda step: 5 + step, "num_inner": T}),
        **costs(
            "T + 1, 2 * T + 2, 0, 0",
            "$0 + 1$",
            r"$\varepsilon^{-3.5}$",
            "1 / multiplier",
            T="num_inner",
        ),
        lengths={"num_inner": 3},
        untuned=(1e-2, {}),
        also={"failing": {"untuned F2SA": bilevel.F2SA()}},
        on_batches=(bilevel.F2SA(**draws(Shuffled, 32)), 0.05),
        floor={"num_inner": "T", "multiplier": "MULTIPLIER"},
    ),
    single_loop(
        bilevel.ValueFunctionPenalty,
        "penalty",
        tried=(_logistic, 0.3, 0.1, SHUFFLED),
        by_hand=(equations.penalty, {"multiplier": 5.0, "num_inner": T}),
        **costs(
            "1, T + 2, 0, 0",
            "$0$",
            r"$\varepsilon^{-1.5}$, all data",
            "1 / multiplier",
            T="num_inner",
        ),
        quick=False,
        lengths={"num_inner": 3},
        untuned=(0.1, {}),
        floor={"num_inner": "T", "multiplier": "MULTIPLIER"},
    ),
    single_loop(
        bilevel.BOME,
        "bome",
        tried=(_logistic, 0.3, 0.1),
        by_hand=(equations.bome, {"eta": 0.5, "num_inner": T}),
        **costs("1, T + 2, 0, 0", "$0$", "$k^{-1/4}$ after $k$ steps, all data", T="num_inner"),
        lengths={"num_inner": 3},
        untuned=(RANDOM, {}),
        floor={"num_inner": "T", "eta": "ETA"},
    ),
    single_loop(
        bilevel.PDBO,
        "pdbo",
        tried=(_logistic, 0.3, 0.1, SHUFFLED),
        by_hand=(
            equations.pdbo,
            {
                "dual_step": 0.2,
                "delta": 0.1,
                "max_multiplier": 3.0,
                "extrapolation": ETA,
                "first_multiplier": 2.0,
                "num_inner": T,
            },
        ),
        **costs("1, T + 2, 0, 0", "two numbers", "", r"$\sqrt{\delta}$", T="num_inner"),
        quick=False,
        lengths={"num_inner": 3},
        floor={"num_inner": "T", "first_multiplier": "MULTIPLIER", "delta": "DELTA"},
    ),
    single_loop(
        bilevel.PZOBO,
        "pzobo",
        tried=(_logistic, 0.3, 0.1, SHUFFLED),
        by_hand=(equations.pzobo, {"radius": 1e-2, "num_inner": T, "num_directions": K}),
        **costs(
            "1, (Q + 1) * T + 1, 0, 0",
            "$0$",
            "",
            r"$(1 - \mu / L)^T$, radius$^2$",
            T="num_inner",
            Q="num_directions",
        ),
        quick=False,
        lengths={"num_inner": 3, "num_directions": 2},
        untuned=(RANDOM, {}),
        floor={"num_inner": "T", "num_directions": "K", "radius": "RADIUS"},
    ),
    single_loop(
        bilevel.InexactDescent,
        "inexact",
        tried=(_coupled, 0.4, 0.1, {"num_steps": 75}),
        by_hand=(
            equations.inexact,
            {
                "inner_step": bilevel.decreasing_step(2, 10),
                "linear_step": bilevel.decreasing_step(3, 20),
                "num_steps": bilevel.logarithmic(3.0),
                "num_samples": 2,
            },
        ),
        **costs("J, t + J, t + J, J", "$0 + 1$", t="num_steps", J="num_samples"),
        lengths={"num_steps": 3},
        untuned=(EXACT, {}),
        quick=False,
        floor={"num_steps": "T"},
    ),
    single_loop(
        bilevel.HOAG,
        "hoag",
        tried=(_logistic, 0.3, 0.1),
        by_hand=(equations.hoag, {}),
        **costs(
            "1, s + 2, l + 1, 1",
            "$0 + 1$",
            note="$s$ and $l$: steps until the tolerance is met",
        ),
        quick=False,
        lengths={"tolerance": 0.5},
        untuned=(EXACT, {}),
        place_of_v=lambda state: state.aux.v,
        floor={"tolerance": "TIGHT", "max_inner": "T", "max_linear": "K"},
    ),
    Row(
        bilevel.FedNest,
        "federated",
        laws={"FedNest": Law(CLIENTS, bilevel.FedNest(0.05, 0.2, 0.02, 3, 2, 200), quick=False)},
        failing={"FedNest": bilevel.FedNest(0.5, 0.5, 0.1)},
        **costs(
            "S + 1, T + 1, K, 1",
            "$0$",
            "",
            SHORT,
            "each is one of every client; $S = 0$ with one local step of $u$",
            S="num_outer",
            T="num_inner",
            K="num_terms",
        ),
        floor=lambda b: bilevel.FedNest(b.RHO, b.SIGMA, b.GAMMA, b.T, 1, b.K, **b.CLIENTS),
    ),
    Row(
        bilevel.LFedNest,
        "federated",
        laws={"LFedNest": Law(DRIFTING, bilevel.LFedNest(0.1, 0.2, 0.1, 3, 2, 8), quick=False)},
        failing={"LFedNest": bilevel.LFedNest(0.5, 0.5, 0.1)},
        **costs(
            "S, T + S, S * K, S",
            "$0$",
            "",
            "where clients differ",
            "each is one of every client",
            S="num_outer",
            T="num_inner",
            K="num_terms",
        ),
        floor=lambda b: bilevel.LFedNest(b.RHO, b.SIGMA, b.GAMMA, b.T, 1, b.K, **b.CLIENTS),
    ),
    Row(
        bilevel.GossipSOBA,
        "gossip",
        laws={
            "gossip": Law(
                on_network(_coupled, 3), bilevel.GossipSOBA(RING, 0.4, 0.4, 0.05), quick=False
            )
        },
        place_of_v=lambda state: state.aux,
        **costs(
            "1, 1, 1, 1",
            "$0 + 1$",
            "",
            "where agents differ",
            "each is one of every agent, and three exchanges",
        ),
        floor=lambda b: bilevel.GossipSOBA(b.MIXING, *b.SIZES, **b.OF_AGENTS),
    ),
    Row(
        bilevel.LookAhead,
        "double_loop",
        note="those of the method within, and a second inner solve",
        laws={
            "look ahead": Law(
                _tree, bilevel.LookAhead(double_loop(_tree, 5, 0.05, warm_start=True)), quick=False
            )
        },
        counted={
            "look ahead": Counted(
                bilevel.LookAhead(_loop(AID(lx.LU(), warm_start=False))), (6, 42, 6 * (5 + 1), 6)
            )
        },
    ),
    Row(
        bilevel.IterateAveraging,
        "remedies",
        note="those of the method within; one more vector like $u$",
        laws={
            "averaging": Law(
                _logistic, bilevel.IterateAveraging(soba(0.3, 0.3, 0.1, **SHUFFLED), 2), quick=False
            )
        },
    ),
    Row(
        bilevel.ImportanceSampling,
        "remedies",
        note="those of the method within; one more vector like $u$",
        laws={
            "importance sampling": Law(
                _logistic,
                bilevel.ImportanceSampling(
                    soba(0.3, 0.3, 0.1, inner_sampler=bilevel.WeightedSampler(4))
                ),
                quick=False,
            )
        },
    ),
]

METHODS = {row.kind.__name__: row for row in ROWS}
LAWS = {name: law for row in ROWS for name, law in row.laws.items()}


def row_of(law: str) -> Row:
    """The row that a law belongs to."""
    return next(row for row in ROWS if law in row.laws)
