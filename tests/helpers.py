"""The tables that the core's tests run over, and what the tests share.

A new problem, estimator or algorithm is one row: in `CASES` (problems.py), `ESTIMATORS`, `METHODS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax

import bilevel
from bilevel import Blocks, Shuffled, WithReplacement
from problems import CASES as CASES
from problems import COUPLED as COUPLED
from problems import ISOTROPIC as ISOTROPIC
from problems import Case as Case
from problems import Quadratic as Quadratic
from problems import flat as flat
from problems import spd as spd
from problems import to_float32 as to_float32

# Linear solvers that must all give the exact implicit gradient.
LINEAR_SOLVERS = {
    "CG": bilevel.CG(rtol=1e-13),
    "lineax CG": lx.CG(rtol=1e-13, atol=1e-13),
    "GMRES": lx.GMRES(rtol=1e-12, atol=1e-12),
    "LU": lx.LU(),
    "Cholesky": lx.Cholesky(),
    "SVD": lx.SVD(),
    "Richardson": bilevel.Richardson(rtol=1e-13, max_steps=20_000),
    "CG, diagonal": bilevel.CG(rtol=1e-13, preconditioner=bilevel.diagonal_preconditioner()),
    "CG, Nystrom": bilevel.CG(rtol=1e-13, preconditioner=bilevel.nystrom_preconditioner(1, 1e-2)),
}
ITERATIVE = [n for n in LINEAR_SOLVERS if n not in ("LU", "Cholesky", "SVD")]


@dataclass(frozen=True)
class Estimator:
    """A hypergradient estimator with the inner solver that makes it exact on a case."""

    name: str
    estimator: bilevel.AbstractHypergradient
    inner: Callable[[Case], bilevel.AbstractInnerSolver]


def exact_inner(case: Case) -> bilevel.AbstractInnerSolver:
    return bilevel.ClosedForm(lambda u, _: case.w_star(u))


def converged_inner(case: Case) -> bilevel.AbstractInnerSolver:
    """Gradient steps to rounding error: `T q^T` at 1e-14."""
    steps = 1 if case.contraction < 1e-12 else int(np.log(1e-16) / np.log(case.contraction)) + 1
    return bilevel.GradientInner(case.sgd(), steps)


ESTIMATORS = {
    **{
        name: Estimator(name, bilevel.AID(solver), exact_inner)
        for name, solver in LINEAR_SOLVERS.items()
    },
    "ITD": Estimator("ITD", bilevel.ITD(), converged_inner),
    "ITD forward": Estimator("ITD forward", bilevel.ITD("forward"), converged_inner),
    "ITD checkpointed": Estimator("ITD checkpointed", bilevel.ITD("checkpointed"), converged_inner),
    "ITD through a formula": Estimator("ITD through a formula", bilevel.ITD(), exact_inner),
    "Neumann": Estimator("Neumann", bilevel.AID(bilevel.Neumann(num_terms=3000)), exact_inner),
}


@dataclass(frozen=True)
class Method:
    """An algorithm on the case that it is tried on; the laws run over these."""

    name: str
    case: Case
    algorithm: bilevel.AbstractAlgorithm

    @property
    def problem(self) -> bilevel.BilevelProblem:
        return self.case.problem


def soba(inner_step, linear_step, outer_step, **samplers) -> bilevel.SOBA:
    return bilevel.SOBA(
        inner_step=inner_step, linear_step=linear_step, outer_step=outer_step, **samplers
    )


def double_loop(case: Case, num_steps=20, outer_step=0.2, **options) -> bilevel.DoubleLoop:
    options.setdefault("hypergradient", bilevel.AID(bilevel.CG(rtol=1e-12)))
    return bilevel.DoubleLoop(
        inner=bilevel.GradientInner(case.sgd(), num_steps),
        outer_tx=optax.sgd(outer_step),
        **options,
    )


def double_loop_of(inner, hypergradient, outer_step=0.1, **options) -> bilevel.DoubleLoop:
    return bilevel.DoubleLoop(inner, hypergradient, optax.sgd(outer_step), **options)


def with_steps(kind: Any, *steps: float, **options: Any) -> bilevel.AbstractAlgorithm:
    """An algorithm by its inner, linear and outer step."""
    return kind(*steps, **options)


SHUFFLED: dict[str, Any] = {"inner_sampler": Shuffled(5), "outer_sampler": Shuffled(3)}
REPLACED: dict[str, Any] = {
    "inner_sampler": WithReplacement(4),
    "outer_sampler": WithReplacement(4),
}

BLOCKS: dict[str, Any] = {"inner_sampler": Blocks(4), "outer_sampler": Blocks(4)}

_coupled, _tree, _logistic = CASES["coupled"], CASES["pytree"], CASES["logistic"]
_simplex, _box = CASES["simplex"], CASES["box"]

METHODS = {
    name: Method(name, case, algorithm)
    for name, case, algorithm in [
        ("AID cold", _coupled, double_loop(_coupled, 50)),
        ("AID warm", _tree, double_loop(_tree, 5, warm_start=True)),
        ("ITD box", _box, double_loop(_box, 40, hypergradient=bilevel.ITD())),
        ("AID simplex", _simplex, double_loop(_simplex, 40, 1.0)),
        (
            "SID",
            _logistic,
            double_loop(
                _logistic,
                5,
                hypergradient=bilevel.SID(bilevel.StochasticRichardson(0.3, 5), 2),
                warm_start=True,
                **REPLACED,
            ),
        ),
        ("SOBA", _coupled, soba(0.4, 0.4, 0.05)),
        ("SOBA simplex", _simplex, soba(0.5, 0.5, 0.5)),
        ("SOBA shuffled", _logistic, soba(0.3, 0.3, 0.1, **SHUFFLED)),
        ("SOBA replaced", _logistic, soba(0.3, 0.3, 0.1, **REPLACED)),
        ("SABA", _logistic, with_steps(bilevel.SABA, 0.3, 0.3, 0.1, **BLOCKS)),
        ("SRBA", _coupled, with_steps(bilevel.SRBA, 0.4, 0.4, 0.05, period=3)),
        ("FSLA", _coupled, with_steps(bilevel.FSLA, 0.4, 0.4, 0.05)),
        ("MRBO", _coupled, with_steps(bilevel.MRBO, 0.4, 0.4, 0.1, num_terms=75)),
        ("SUSTAIN", _logistic, with_steps(bilevel.SUSTAIN, 0.3, 0.3, 0.1, **SHUFFLED)),
        ("VRBO", _coupled, with_steps(bilevel.VRBO, 0.4, 0.4, 0.1, period=3, num_terms=75)),
        ("StocBiO", _coupled, with_steps(bilevel.StocBiO, 0.4, 0.4, 0.1, num_terms=75)),
        ("BSA", _logistic, with_steps(bilevel.BSA, 0.3, 0.3, 0.1, **SHUFFLED)),
        ("AmIGO", _coupled, with_steps(bilevel.AmIGO, 0.4, 0.4, 0.1)),
        ("F2SA", _logistic, with_steps(bilevel.F2SA, 0.3, 0.1, **SHUFFLED)),
        ("penalty", _logistic, with_steps(bilevel.ValueFunctionPenalty, 0.3, 0.1, **SHUFFLED)),
        ("BOME", _logistic, with_steps(bilevel.BOME, 0.3, 0.1)),
        ("PDBO", _logistic, with_steps(bilevel.PDBO, 0.3, 0.1, **SHUFFLED)),
        ("PZOBO", _logistic, with_steps(bilevel.PZOBO, 0.3, 0.1, **SHUFFLED)),
        ("auto SOBA", _logistic, bilevel.SOBA(**SHUFFLED)),
        ("SABA auto", _logistic, bilevel.SABA(**BLOCKS)),
        ("AmIGO auto", _coupled, bilevel.AmIGO()),
        (
            "double loop auto",
            _coupled,
            bilevel.DoubleLoop(
                bilevel.GradientInner("auto", 120), bilevel.AID(bilevel.CG(rtol=1e-12))
            ),
        ),
        (
            "BiGSAM",
            _logistic,
            double_loop_of(bilevel.BiGSAM(0.3, 0.3, 6, every=2), bilevel.ITD(), **SHUFFLED),
        ),
        (
            "inexact",
            _coupled,
            with_steps(bilevel.InexactDescent, 0.4, 0.4, 0.1, num_steps=75),
        ),
    ]
}
DETERMINISTIC = [name for name, m in METHODS.items() if m.case.u_star is not None]


def run(method: Method, num_steps: int = 7, **options) -> bilevel.Solution:
    """`solve` from the case's start, on a fixed key."""
    options = {"key": jax.random.key(3), "chunk_size": 4} | options
    return bilevel.solve(
        method.problem,
        method.algorithm,
        method.case.u,
        method.case.w0,
        num_steps=num_steps,
        **options,
    )


def raw(tree: Any) -> list[np.ndarray]:
    """The leaves as numpy arrays, random keys as their data."""

    def to_numpy(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return [to_numpy(x) for x in jax.tree.leaves(tree)]


def assert_same(one: Any, two: Any) -> None:
    """Equal bit for bit, NaN in the same places included."""
    ones, twos = raw(one), raw(two)
    assert len(ones) == len(twos)
    for x, y in zip(ones, twos, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


implicit_gradient = eqx.filter_jit(bilevel.implicit_gradient)
"""Compiled whole; called eagerly it is compiled operation by operation, which takes far longer."""


def assert_close(one: Any, two: Any, rtol: float, atol: float = 0.0) -> None:
    ones, twos = raw(one), raw(two)
    assert len(ones) == len(twos)
    for x, y in zip(ones, twos, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def norm_error(estimate: Any, truth: Any) -> float:
    """`|estimate - truth| / |truth|`, all leaves together."""
    x, y = flat(estimate), flat(truth)
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))
