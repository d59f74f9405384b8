"""G11: the rates of stochastic bilevel methods, measured beside the published ones.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], list methods with the number of samples that they need for a mean squared gradient of
epsilon. A bound of eps^-a samples says that N samples give a mean squared gradient of N^(-1/a). Here
N counts every row that an oracle (a gradient of F or of f, a Hessian-vector or a mixed product) sees,
and the mean is that over all outer iterates of a run, as in the theorems.

Each method runs for several horizons S with the step sizes that its theorem asks for, as powers of S:
constant within a run, and scaled to the same step at the shortest horizon (MRBO and SUSTAIN: as powers
of the step k within a run). The exponent is fitted
over the horizons, with an interval of 95 % by resampling the seeds. A bound holds if the error falls
*at least* as fast. The problems are easier than the theorems allow, because Phi is strongly convex:
a mean over iterates then falls as 1 / N at best, which is what methods with a bounded sum of errors
show.

Both problems are random quadratics of rank-one rows. In the finite sum there are few rows, so that
passes over all data are cheap; in the noisy problem there are so many that batches are as good as
independent.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from _tutorial import Claim, Measured, panels, run, slope

import bilevel
from bilevel import Blocks, FullBatch, Shuffled, WithReplacement

ROWS = {"finite sum": 512, "noisy": 16384}
DIM_U, DIM_W, CONDITION = 4, 8, 2.0
BATCH, TERMS, RESAMPLES = 16, 25, 1000
FEW = 8  # seeds of the quick run
ALLOWANCE = 0.05  # of an exponent that still counts as the published one
QUICK, FULL = (64, 256, 1024, 4096), (64, 256, 1024, 4096, 16384)
LONG = (256, 1024, 4096, 16384)  # of those whose momentum takes long to be small
SQUARES = (16, 32, 64, 128)  # horizons of methods whose batches or loops grow with them


class Problem(NamedTuple):
    """A quadratic, its outer solution and the Hessian of Phi."""

    problem: bilevel.BilevelProblem
    solution: jax.Array
    hessian: jax.Array
    rows: int


class Method(NamedTuple):
    """A method as its theorem has it.

    Attributes:
        source: the key of its paper.
        exponent: b of the published N^-b; None if no rate is published or quoted.
        published: the published number of samples, in words.
        judged: the problem on which the published rate is judged.
        build: the method for a horizon and a problem's number of rows.
        horizons: those of the quick run, if not `QUICK`.
        passes: the calls of a pass over all data, and a function from (horizon, rows) to the passes.
        full: whether all of its batches are all data.
        alone: whether it is run on the problem on which it is judged only: with a coin of its own
            for each seed, a compiled step makes the pass over all data whether it is used or not.
        logs: whether the published number has a factor of log(1 / eps), by which N is divided.
    """

    source: str
    exponent: float | None
    published: str
    judged: str
    build: Callable[[int, int], Any]
    horizons: tuple[int, ...] = ()
    passes: tuple[int, Callable[[int, int], float]] | None = None
    full: bool = False
    alone: bool = False
    logs: bool = False


def scaled(first: float, power: float, start: int = QUICK[0]) -> Callable[[int], float]:
    """`first * (S / start)^-power`, a step size for the horizon S."""
    return lambda s: first * (s / start) ** -power


def batches(sampler: Any, size: int = BATCH) -> dict[str, Any]:
    return {"inner_sampler": sampler(size), "outer_sampler": sampler(size)}


def period(rows: int) -> int:
    """Steps between passes, so that a pass costs as much as the batches in between."""
    return rows // BATCH


IID = partial(batches, WithReplacement)
half = scaled(0.4, 1 / 2)


# One function object for all horizons, so that a method is compiled once.
LOGARITHMIC, DECREASING = bilevel.logarithmic(2.0), bilevel.decreasing_step(4.0, 8.0)


def step(k):
    """Falls as k^-1/3 from outer step to outer step."""
    return 0.1 * (1 + k / 64) ** (-1 / 3)


def half_a_step(k):
    return step(k) / 2


def momentum(k):
    """Falls as k^-2/3."""
    return 4 * step(k) ** 2


def storm(s: int, rows: int, kind: Any) -> Any:
    """Steps of k^-1/3 and momentum of k^-2/3: a constant momentum would keep the first error."""
    return kind(
        step,
        0.5,
        half_a_step,
        momentum,
        num_terms=TERMS,
        **IID(),
    )


def bsa(s: int, rows: int) -> Any:
    """Inner loops of sqrt(S)."""
    steps = scaled(0.4, 1 / 2, SQUARES[0])(s)
    return bilevel.BSA(steps, 0.5, steps / 4, num_inner=math.isqrt(s), num_terms=TERMS, **IID())


def sihd(s: int, rows: int) -> Any:
    """Cold loops of S steps, S samples."""
    return bilevel.InexactDescent(DECREASING, DECREASING, 0.3, float(s), float(s), **IID())


METHODS = {
    "SOBA": Method(
        "dagreou2022", 1 / 2, "eps^-2", "noisy",
        lambda s, rows: bilevel.SOBA(half(s), half(s), half(s) / 2, **IID()),
    ),
    "SABA": Method(
        "dagreou2022", 1.0, "n^(2/3) eps^-1", "finite sum",
        lambda s, rows: bilevel.SABA(0.2, 0.2, 0.1, **batches(Blocks)),
    ),
    "SRBA": Method(
        "dagreou2023", 1.0, "n^(1/2) eps^-1", "finite sum",
        lambda s, rows: bilevel.SRBA(0.3, 0.3, 0.15, period=period(rows), **batches(Shuffled)),
        passes=(4, lambda s, rows: -(-s // period(rows))),
    ),
    "SPABA": Method(
        "chu2024", 1.0, "n^(1/2) eps^-1", "finite sum",
        lambda s, rows: bilevel.SPABA(
            0.3, 0.3, 0.15, probability=1 / period(rows), **batches(Shuffled)
        ),
        passes=(4, lambda s, rows: 1 + (s - 1) / period(rows)),  # in expectation
        alone=True,
    ),
    "SFFBA": Method(
        "chu2025", 1.0, "n^(1/2) eps^-1", "finite sum",
        lambda s, rows: bilevel.SFFBA(
            0.2, 0.2, 0.1, momentum=1 / (2 * period(rows)), **batches(Blocks)
        ),
    ),
    "MSEBA": Method(
        "chu2025", 1.0, "n^(1/2) eps^-1", "finite sum",
        lambda s, rows: bilevel.MSEBA(
            0.2, 0.2, 0.1,
            momentum=1 / period(rows), probability=1 / period(rows), **batches(Blocks),
        ),
        passes=(4, lambda s, rows: 1 + (s - 1) / period(rows)),  # in expectation
        alone=True,
    ),
    "FSLA": Method(
        "li2022", 1 / 2, "eps^-2", "noisy",
        lambda s, rows: bilevel.FSLA(
            half(s), half(s), half(s) / 2, momentum=scaled(0.9, 1 / 2)(s), **IID()
        ),
    ),
    "MRBO": Method(
        "yang2021", 2 / 3, "eps^-1.5", "noisy", partial(storm, kind=bilevel.MRBO), LONG
    ),
    "SUSTAIN": Method(
        "khanduri2021", 2 / 3, "eps^-1.5", "noisy", partial(storm, kind=bilevel.SUSTAIN), LONG
    ),
    "VRBO": Method(
        "yang2021", 2 / 3, "eps^-1.5", "finite sum",
        lambda s, rows: bilevel.VRBO(
            0.2, 0.5, 0.1, period=period(rows) // 4, num_inner=3, num_terms=TERMS, **IID()
        ),
        passes=(2 + TERMS, lambda s, rows: -(-s // (period(rows) // 4))),
    ),
    "stocBiO": Method(
        "ji2021", 1 / 2, "eps^-2", "noisy",
        lambda s, rows: bilevel.StocBiO(
            0.4, 0.5, 0.3, num_inner=5, num_terms=TERMS, **IID(s)
        ),
        SQUARES,
    ),
    "AmIGO": Method(
        "arbel2022", 1 / 2, "eps^-2", "noisy",
        lambda s, rows: bilevel.AmIGO(half(s), half(s), half(s) / 2, 2, 2, **IID()),
    ),
    "BSA": Method("ghadimi2018", 1 / 3, "eps^-3", "noisy", bsa, (16, 64, 256, 1024)),
    "TTSA": Method(
        "hong2020", 2 / 5, "eps^-2.5", "noisy",
        lambda s, rows: bilevel.BSA(
            scaled(0.4, 2 / 5)(s), 0.5, scaled(0.1, 3 / 5)(s), num_inner=1, num_terms=TERMS, **IID()
        ),
    ),
    "F2SA": Method(
        "kwon2023", 2 / 7, "eps^-3.5", "noisy",
        lambda s, rows: bilevel.F2SA(
            scaled(0.4, 4 / 7)(s), scaled(0.1, 5 / 7)(s), scaled(2.0, -1 / 7)(s), num_inner=5, **IID()
        ),
    ),
    "PZOBO": Method(
        "sow2022b", None, "not quoted", "noisy",
        lambda s, rows: bilevel.PZOBO(
            half(s), half(s) / 8, radius=0.01, num_inner=5, num_directions=8, **IID()
        ),
    ),
    "SIHD": Method("grazzi2022", 1 / 2, "eps^-2", "noisy", sihd, SQUARES),
    "IHD": Method(
        "grazzi2023", 1.0, "eps^-1 log(1 / eps)", "finite sum",
        lambda s, rows: bilevel.InexactDescent(
            0.9, 0.9, 0.3, LOGARITHMIC, inner_sampler=FullBatch()
        ),
        full=True,
        logs=True,
    ),
    "HOAG": Method(
        "pedregosa2016", None, "not quoted", "finite sum",
        lambda s, rows: bilevel.HOAG(0.9, 0.3),
        full=True,
    ),
    "penalty": Method(
        "shen2023", 2 / 3, "eps^-1.5", "finite sum",
        lambda s, rows: bilevel.ValueFunctionPenalty(
            0.5, scaled(0.1, 1 / 3)(s), multiplier=scaled(2.0, -1 / 3)(s), num_inner=10
        ),
        full=True,
    ),
    "BOME": Method(
        "liu2022", 1 / 4, "k^-1/4 after k steps (of its own measure)", "finite sum",
        lambda s, rows: bilevel.BOME(0.5, 0.1, num_inner=10),
        full=True,
    ),
    "PDBO": Method(
        "sow2022", None, "not quoted", "finite sum",
        lambda s, rows: bilevel.PDBO(0.5, 0.1, num_inner=10),
        full=True,
    ),
}  # fmt: skip


def problem(rows: int) -> Problem:
    """A random quadratic, and what linear algebra says of its Phi."""
    made = bilevel.tasks.quadratic(
        jax.random.key(1),
        num_inner_rows=rows,
        num_outer_rows=rows,
        dim_u=DIM_U,
        dim_w=DIM_W,
        condition=CONDITION,
    )
    inner, outer = (
        [np.asarray(x) for x in jax.tree.leaves(data)]
        for data in (made.inner_data, made.outer_data)
    )
    a, b, _, d = inner
    inverse = np.linalg.inv(b.T @ b / rows)
    response, shift = -inverse @ (b.T @ a / rows), -inverse @ d.mean(0)
    a, b, c, d = outer
    along = a + b @ response
    hessian = along.T @ along / rows
    slope = along.T @ (b @ shift) / rows + c.mean(0) + response.T @ d.mean(0)
    return Problem(made, jnp.asarray(-np.linalg.solve(hessian, slope)), jnp.asarray(hessian), rows)


@eqx.filter_jit
@eqx.filter_vmap(in_axes=(None, None, None, 0))
def mean_squared_gradient(method, given, num_steps, key):
    """The mean of `|grad Phi(u_k)|^2` over the outer iterates of a run, and its oracle calls."""
    state = method.init(given.problem, jnp.zeros(DIM_U), jnp.zeros(DIM_W), key)

    def step(_, carry):
        state, total = carry
        gradient = given.hessian @ (state.u - given.solution)
        return method.step(given.problem, state)[0], total + jnp.sum(gradient**2)

    state, total = jax.lax.fori_loop(0, num_steps, step, (state, jnp.zeros(())))
    calls = sum(jax.tree.leaves(state.calls))
    return total / num_steps, calls


def curve(method: Method, given: Problem, horizons: tuple[int, ...], seeds: int) -> dict[str, Any]:
    """Samples and mean squared gradients at the horizons; the exponent and its interval."""
    keys = jax.random.split(jax.random.key(0), 1 if method.full else seeds)
    samples, errors = [], []
    for horizon in horizons:
        built = method.build(horizon, given.rows)
        found, calls = mean_squared_gradient(built, given, jnp.asarray(horizon), keys)
        size = getattr(built.inner_sampler, "batch_size", given.rows)
        seen = float(np.mean(calls)) * size
        if method.passes is not None:
            each, passes = method.passes[0], method.passes[1](horizon, given.rows)
            seen += each * passes * (given.rows - size)
        samples.append(seen)
        errors.append(np.asarray(found))
    errors = np.array(errors)
    drawn = np.random.default_rng(0).integers(errors.shape[1], size=(RESAMPLES, errors.shape[1]))
    per = np.array(samples) / (np.log(horizons) if method.logs else 1.0)
    slopes = [slope(per, errors[:, rows].mean(axis=1)) for rows in drawn]
    half = [slope(per, errors[:, rows[:FEW]].mean(axis=1)) for rows in drawn]
    return {
        "horizons": list(horizons),
        "samples": samples,
        "errors": errors.mean(axis=1),
        "exponent": slope(per, errors.mean(axis=1)),
        "interval": np.quantile(slopes, [0.025, 0.975]),
        "interval of few seeds": np.quantile(half, [0.025, 0.975]),
    }


def measure(full: bool) -> Measured:
    """Every method where its rate is judged; in full size, on both problems if it draws batches."""
    usual, seeds = (FULL, 2 * FEW) if full else (QUICK, FEW)
    found: dict[str, dict[str, Any]] = {}
    with jax.enable_x64(True):
        given = {name: problem(rows) for name, rows in ROWS.items()}
        for name, method in METHODS.items():
            found[name] = {}
            for place in given:
                if place != method.judged and (method.full or method.alone or not full):
                    continue
                horizons = method.horizons or usual
                found[name][place] = curve(method, given[place], horizons, seeds)
    settings = {
        "rows": ROWS,
        "dimensions": [DIM_U, DIM_W],
        "condition": CONDITION,
        "batch": BATCH,
        "terms of a series": TERMS,
        "allowance": ALLOWANCE,
        "seeds": seeds,
    }
    published = {
        name: {"samples": m.published, "exponent": m.exponent, "source": m.source, "on": m.judged}
        for name, m in METHODS.items()
    }
    return {
        "settings": settings,
        "seeds": list(range(seeds)),
        "published": published,
        "methods": found,
    }


def draw(measured: Measured):
    """One panel for each problem."""
    figure, axes = panels(1, 2, (13, 5.2), sharey=True)
    for axis, place in zip(axes, ROWS, strict=True):
        for i, (name, curves) in enumerate(measured["methods"].items()):
            if place in curves:
                style = ("-o", "--s", ":^")[i // 10]
                found = curves[place]
                axis.loglog(
                    found["samples"], found["errors"], style, color=f"C{i % 10}", ms=3, label=name
                )
        axis.set(title=place, xlabel="rows seen by oracles, N")
    axes[0].set_ylabel("mean squared gradient of the iterates")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def claims(measured: Measured) -> list[Claim]:
    """One claim for each method whose rate is published."""
    found = []
    for name, method in METHODS.items():
        if method.exponent is None:
            continue
        here = measured["methods"][name][method.judged]
        low, high = here["interval"]
        spread = "" if method.full else f" [{low:.2f}, {high:.2f}]"
        found.append(
            Claim(
                "G11",
                f"{name}: on the {method.judged} problem the mean squared gradient falls at least as "
                "fast as published.",
                f"{method.published}, N^-{method.exponent:.2f}",
                f"N^{here['exponent']:.2f}{spread}",
                here["exponent"] <= -method.exponent + ALLOWANCE,
                "The interval reaches above the published exponent: other seeds may judge otherwise. "
                f"With {FEW} seeds the exponent is between {{:.2f}} and {{:.2f}}.".format(
                    *here["interval of few seeds"]
                )
                if high > -method.exponent + ALLOWANCE
                else "",
            )
        )
    return found


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
