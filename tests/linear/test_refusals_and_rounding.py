"""Linear solvers: complex operators are refused, tags are believed, rounding is not amplified."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel
from problems import spd

HERMITIAN = jnp.asarray(
    spd(0, 4) + 0.3j * (np.triu(np.ones((4, 4)), 1) - np.tril(np.ones((4, 4)), -1))
)
SOLVERS = {
    "CG": bilevel.CG(rtol=1e-8),
    "CG, Nystrom": bilevel.CG(preconditioner=bilevel.nystrom_preconditioner(2, 1e-3)),
    "Richardson": bilevel.Richardson(),
    "Richardson, a number": bilevel.Richardson(0.1),
    "Neumann": bilevel.Neumann(),
    "Neumann, a number": bilevel.Neumann(0.1),
    "Nystrom": bilevel.Nystrom(4, 1e-6),
    "StochasticRichardson": bilevel.StochasticRichardson(0.1, 3),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("tags", [(), lx.positive_semidefinite_tag])
def test_complex_operators_are_refused(name, tags):
    operator = lx.MatrixLinearOperator(HERMITIAN, tags)
    with pytest.raises(
        TypeError, match=r"is for real operators, and this one is complex.*lineax.CG"
    ):
        lx.linear_solve(operator, jnp.ones(4, complex), SOLVERS[name])


def test_a_complex_leaf_is_named():
    operator = lx.DiagonalLinearOperator({"a": jnp.ones(2), "b": jnp.ones(2, complex)})
    b = {"a": jnp.ones(2), "b": jnp.ones(2, complex)}
    with pytest.raises(TypeError, match=r"complex128 in \['b'\]"):
        lx.linear_solve(operator, b, bilevel.StochasticRichardson(0.1, 3))


@pytest.mark.parametrize("solver", [bilevel.Richardson(), bilevel.Neumann(num_terms=200)])
@pytest.mark.parametrize("tag", [lx.symmetric_tag, lx.positive_semidefinite_tag])
@pytest.mark.parametrize("kind", ["matrix", "function", "tagged"])
def test_auto_takes_either_tag(solver, tag, kind):
    a = jnp.asarray(spd(1, 5))
    if kind == "function":
        operator = lx.FunctionLinearOperator(lambda x: a @ x, jnp.ones(5), tag)
    else:
        operator = lx.MatrixLinearOperator(a, tag if kind == "matrix" else ())
    if kind == "tagged":
        operator = lx.TaggedLinearOperator(operator, tag)
    b = np.arange(1.0, 6.0)
    x = lx.linear_solve(operator, jnp.asarray(b), solver).value
    np.testing.assert_allclose(x, np.linalg.solve(a, b), rtol=1e-5)


@pytest.mark.parametrize("damping", [1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("rank", [5, 12])
def test_nystrom_does_not_divide_rounding_by_the_damping(damping, rank):
    """A of rank 5 in 12 dimensions, b within its range; and A of full rank."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(12, rank)))
    a = (q * np.linspace(1, 3, rank)) @ q.T
    b = q @ np.arange(1.0, rank + 1)
    operator = lx.MatrixLinearOperator(jnp.asarray(a), lx.positive_semidefinite_tag)
    x = lx.linear_solve(operator, jnp.asarray(b), bilevel.Nystrom(rank, damping)).value
    truth = q @ (np.arange(1.0, rank + 1) / (np.linspace(1, 3, rank) + damping))
    # In the first case the range itself is known up to rounding, which the damping divides.
    error = 1e-9 + (1e-14 / damping if rank == 5 else 0)
    np.testing.assert_allclose(x, truth, rtol=0, atol=float(error * np.linalg.norm(truth)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dense", [False, True])
def test_cg_stops_on_a_singular_operator(seed, dense):
    """b has a part outside of the range; its part within is solved, and no rounding is amplified."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0] if dense else np.eye(6)
    a = (q * np.array([1.0, 0.7, 0.3, 2.0, 0.0, 0.0])) @ q.T
    b = rng.normal(size=6)
    operator = lx.MatrixLinearOperator(jnp.asarray(a), lx.positive_semidefinite_tag)
    solution = lx.linear_solve(operator, jnp.asarray(b), bilevel.CG(rtol=1e-10), throw=False)
    assert not bool(solution.result == lx.RESULTS.successful)
    residual = a @ np.asarray(solution.value) - b
    assert np.linalg.norm(residual) <= 1.001 * np.linalg.norm(b)


@pytest.mark.parametrize("low", [1e-3, 1e-7, 1e-10])
def test_cg_still_solves_ill_conditioned_systems(low):
    values = np.geomspace(low, 1, 8)
    q = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))[0]
    a = (q * values) @ q.T
    operator = lx.MatrixLinearOperator(jnp.asarray((a + a.T) / 2), lx.positive_semidefinite_tag)
    x = q @ np.ones(8)
    solution = lx.linear_solve(operator, jnp.asarray(a @ x), bilevel.CG(rtol=1e-12), throw=False)
    assert not bool(solution.stats["negative_curvature"])
    np.testing.assert_allclose(a @ np.asarray(solution.value), a @ x, atol=1e-11)
