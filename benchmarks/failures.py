#!/usr/bin/env python3
"""What a run says when it fails: methods x ways to fail.

Each method runs on problems that are made to fail: steps that are too large, data that are NaN or
become it, a singular inner Hessian, a fixed-point map that is no contraction, a structure that is
promised by a tag and does not hold, a start where the gradient in u is zero. The report has the result
code, whether what is returned is finite, and how many steps were kept. Federated methods have one
client, and `GossipSOBA` has two agents, who are alike. `ImportanceSampling` is left out: its u are the
weights of rows, and it fails as the method within it does.

    benchmarks/failures.py            # about three minutes of CPU
    benchmarks/failures.py PZOBO      # the rows of these methods anew
"""

import json
import sys
import warnings
from typing import Any

import _measure
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

import bilevel
from bilevel._solution import NAMES

jax.config.update("jax_enable_x64", True)

STEPS = 60
ZERO = jnp.zeros(2)


def two_loops(step: Any = 0.5, outer: Any = 0.1, solver: Any = None, **options: Any) -> Any:
    steps = (step, outer)
    txs: list[Any] = [x if isinstance(x, str) else optax.sgd(x) for x in steps]
    tx, outer_tx = txs
    estimator = options.pop("estimator", None) or bilevel.AID(solver or bilevel.CG(rtol=1e-6))
    return bilevel.DoubleLoop(bilevel.GradientInner(tx, 5), estimator, outer_tx, warm_start=True)


def single(kind: Any, **options: Any) -> Any:
    """A method by its three steps; those without an adjoint variable take no linear one."""

    def make(step: Any = 0.5, outer: Any = 0.1) -> Any:
        known = {"linear_step": step}
        known = known if "linear_step" in kind.__dataclass_fields__ else {}
        return kind(inner_step=step, outer_step=outer, **known, **options)

    return make


BLOCKS = {"inner_sampler": bilevel.Blocks(1), "outer_sampler": bilevel.Blocks(1)}
METHODS = {
    "DoubleLoop, AID": two_loops,
    "DoubleLoop, ITD": lambda step=0.5, outer=0.1: two_loops(step, outer, estimator=bilevel.ITD()),
    "SOBA": single(bilevel.SOBA),
    "SABA": single(bilevel.SABA, **BLOCKS),
    "SRBA": single(bilevel.SRBA),
    "SPABA": single(bilevel.SPABA),
    "SFFBA": single(bilevel.SFFBA, **BLOCKS),
    "MSEBA": single(bilevel.MSEBA, **BLOCKS),
    "FSLA": single(bilevel.FSLA),
    "MRBO": single(bilevel.MRBO),
    "SUSTAIN": single(bilevel.SUSTAIN),
    "VRBO": single(bilevel.VRBO),
    "StocBiO": single(bilevel.StocBiO),
    "BSA": single(bilevel.BSA),
    "AmIGO": single(bilevel.AmIGO),
    "F2SA": single(bilevel.F2SA),
    "BOME": single(bilevel.BOME),
    "ValueFunctionPenalty": single(bilevel.ValueFunctionPenalty),
    "PDBO": single(bilevel.PDBO),
    "PZOBO": single(bilevel.PZOBO),
    "InexactDescent": single(bilevel.InexactDescent),
    "HOAG": single(bilevel.HOAG),
    "FedNest": single(bilevel.FedNest),
    "LFedNest": single(bilevel.LFedNest),
    "GossipSOBA": single(bilevel.GossipSOBA, mixing=[[0.5, 0.5], [0.5, 0.5]]),
    "LookAhead": lambda step=0.5, outer=0.1: bilevel.LookAhead(two_loops(step, outer)),
    "IterateAveraging": lambda step=0.5, outer=0.1: bilevel.IterateAveraging(
        single(bilevel.SOBA)(step, outer), 2
    ),
}


def outer(u: Any, w: Any, batch: Any) -> Any:
    return 0.5 * jnp.sum((w - 1.0) ** 2) + jnp.sum(batch) * jnp.sum(w)


def inner(u: Any, w: Any, batch: Any) -> Any:
    return 0.5 * jnp.sum((w - u) ** 2) + jnp.sum(batch) * jnp.sum(w)


def problem(F: Any = outer, f: Any = inner, rows: Any = 0.0) -> bilevel.BilevelProblem:
    return bilevel.BilevelProblem(F, f, jnp.zeros(1), jnp.full(1, rows))


def undefined_above(u: Any, w: Any, batch: Any) -> Any:
    """NaN where the first entry of w exceeds 0.3, on the way to 1."""
    return outer(u, w, batch) + 0.0 * jnp.sqrt(0.3 - w[0])


def too_large(u: Any, w: Any, batch: Any) -> Any:
    """It has an array of 8 TB."""
    n = 10**6
    large = jnp.outer(jnp.arange(n) * w[0], jnp.ones(n) + w[1])
    return inner(u, w, batch) + 0.0 * jnp.fft.fft(large, axis=1)[0, 0].real


def singular(u: Any, w: Any, batch: Any) -> Any:
    """The second entry of w is free."""
    return 0.5 * (w[0] - u[0]) ** 2 + jnp.sum(batch) * jnp.sum(w) + 0.0 * u[1]


WAYS = {
    "step on w too large": lambda make: (make(step=2.6), problem()),
    "step on u too large": lambda make: (make(outer=60.0), problem()),
    "two steps, of 1e12 on u": lambda make: (make(outer=1e12), problem()),
    "NaN in the data": lambda make: (make(), problem(rows=jnp.nan)),
    "F becomes NaN": lambda make: (make(), problem(undefined_above)),
    "singular Hessian": lambda make: (make(), problem(f=singular)),
    "f unbounded below": lambda make: (make(), problem(f=indefinite)),
    "no memory": lambda make: (make(), problem(f=too_large)),
    "zero gradient in u at the start, auto": lambda make: (make("auto", "auto"), problem()),
}
LINEAR = {
    "CG": bilevel.CG(rtol=1e-6),
    "lineax.CG": lx.CG(1e-6, 1e-6),
    "Neumann": bilevel.Neumann(),
    "Neumann(step 3)": bilevel.Neumann(3.0, 20),
    "Richardson": bilevel.Richardson(),
    "Nystrom": bilevel.Nystrom(2),
    "Cholesky": lx.Cholesky(),
    "LU": lx.LU(),
}


def indefinite(u: Any, w: Any, batch: Any) -> Any:
    """The Hessian has the eigenvalues 1 and -1, where a tag promises that there is none below 0."""
    return 0.5 * (w[0] - u[0]) ** 2 - 0.5 * (w[1] - u[1]) ** 2


def ran(method: Any, of: bilevel.BilevelProblem, steps: int = STEPS) -> dict[str, Any]:
    start = ZERO
    if isinstance(method, bilevel.GossipSOBA):
        start = bilevel.replicate(ZERO, 2)
        data = jnp.repeat(jnp.asarray(of.inner_data)[:, None], 2, axis=1)
        alone = bilevel.BilevelProblem(of.outer, of.inner, jnp.zeros((1, 2)), data)
        of = bilevel.on_network(alone, 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            solution = bilevel.solve(of, method, start, start, num_steps=steps, throw=False)
        except MemoryError as error:
            kind = type(error).__name__
            return {"result": kind, "steps": 0, "asked": steps, "finite": True, "warned": False}
    leaves = [np.asarray(x) for x in jax.tree.leaves((solution.u, solution.w))]
    return {
        "result": NAMES[int(solution.result._value)],
        "steps": solution.stats["num_steps"],
        "asked": steps,
        "finite": bool(all(np.all(np.isfinite(x)) for x in leaves)),
        "u": float(leaves[0].flat[0]),
        "warned": bool(said),
    }


def outcome(make: Any, way: str) -> dict[str, Any]:
    try:
        method, of = WAYS[way](make)
    except ValueError:  # the wrong call is refused before it runs
        return {"result": "ValueError", "steps": 0, "asked": 0, "finite": True, "warned": False}
    return ran(method, of, 2 if way.startswith("two") else STEPS)


def solved(solver: Any, f: Any) -> dict[str, Any]:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = bilevel.implicit_gradient(problem(f=f), ZERO, ZERO, solver)
    return {
        "result": NAMES[int(found.result._value)],
        "linear_residual": float(found.linear_residual),
        "finite": bool(np.all(np.isfinite(found.grad))),
    }


def main(*names: str) -> None:
    """Run all, or the methods named, and write the report."""
    runs = json.loads((_measure.RESULTS / "failures.json").read_text())["runs"] if names else {}
    runs |= {
        name: {way: outcome(METHODS[name], way) for way, build in WAYS.items()}
        for name in names or METHODS
    }
    systems = {
        name: {
            "singular Hessian": solved(solver, singular),
            "a tag that does not hold": solved(solver, indefinite),
        }
        for name, solver in LINEAR.items()
    }
    _measure.write(
        __file__,
        {"settings": {"steps": STEPS, "start": 0.0}, "runs": runs, "systems": systems},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
