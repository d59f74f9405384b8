"""Neumann, Richardson, Nystrom, stochastic and preconditioned solvers, in plain lineax code."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from bilevel import (
    CG,
    Neumann,
    Nystrom,
    Richardson,
    StochasticRichardson,
    decreasing_step,
    diagonal_preconditioner,
    nystrom_preconditioner,
)
from solvers import APPROXIMATE

N = 8
RNG = np.random.default_rng(1)
B = RNG.normal(size=N)
SYMMETRIC = (lx.symmetric_tag, lx.positive_semidefinite_tag)


def spd(low: float = 1.0, high: float = 50.0, n: int = N, seed: int = 0) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return (q * np.geomspace(low, high, n)) @ q.T


def operator(matrix, tags=SYMMETRIC) -> lx.AbstractLinearOperator:
    matrix = np.asarray(matrix)
    return lx.MatrixLinearOperator(jnp.asarray(0.5 * (matrix + matrix.T)), tags)


@pytest.mark.parametrize("name", APPROXIMATE)
def test_the_error_that_stays(name):
    """On a diagonal matrix, from the formula of each."""
    solver, error = APPROXIMATE[name]
    diagonal = np.array([1.0, 1.5, 2.0])
    found = np.asarray(solve(np.diag(diagonal), np.ones(3), solver).value)
    assert np.linalg.norm(found - 1 / diagonal) < 2 * error + 1e-14


def solve(matrix, b, solver, **options):
    return lx.linear_solve(operator(matrix), jnp.asarray(b), solver, options=options, throw=False)


def partial_sum(matrix, b, step, terms):
    total = term = step * b
    for _ in range(terms - 1):
        term = term - step * matrix @ term
        total = total + term
    return total


@pytest.mark.parametrize("terms", [1, 2, 7])
@pytest.mark.parametrize("step", [0.01, 0.03])
def test_neumann_is_the_partial_sum(terms, step):
    a = spd()
    solution = solve(a, B, Neumann(step, terms))
    np.testing.assert_allclose(solution.value, partial_sum(a, B, step, terms), rtol=1e-13)
    assert solution.stats["num_products"] == terms - 1
    assert solution.result == lx.RESULTS.successful


def test_neumann_has_the_eigenvalues_of_figure_6():
    values = np.geomspace(1e-3, 1.0, N)
    found = solve(np.diag(values), np.ones(N), Neumann(0.8, 30)).value
    np.testing.assert_allclose(found, (1 - (1 - 0.8 * values) ** 30) / values, rtol=1e-12)


@pytest.mark.parametrize("solver", [Neumann(num_terms=4), Richardson(max_steps=4, rtol=0.0)])
def test_auto_step_is_the_inverse_of_the_largest_eigenvalue_and_says_so(solver):
    a = spd(1.0, 5.0)
    solution = solve(a, B, solver)
    np.testing.assert_allclose(solution.stats["step_size"], 1 / 5, rtol=0.05)
    assert float(solution.stats["step_size"]) < 2 / 5
    step = float(solution.stats["step_size"])
    np.testing.assert_allclose(solution.value, partial_sum(a, B, step, 4), rtol=1e-12)
    assert int(solution.stats["num_products"]) in (23, 24)  # 20 of them for the step


@pytest.mark.parametrize("solver", [Neumann(num_terms=4), Richardson(max_steps=4, rtol=0.0)])
def test_auto_step_follows_a_known_eigenvector_with_one_product(solver):
    first = solve(spd(1.0, 5.0), B, solver, eigenvector=jnp.zeros(N))
    assert int(first.stats["num_products"]) in (23, 24)
    grown = solve(spd(1.0, 8.0), B, solver, eigenvector=first.stats["eigenvector"])
    assert int(grown.stats["num_products"]) in (4, 5)
    np.testing.assert_allclose(grown.stats["step_size"], 1 / 8, rtol=0.05)


def test_richardson_reaches_its_tolerance_from_any_start():
    a = spd()
    truth = np.linalg.solve(a, B)
    for options in ({}, {"y0": jnp.asarray(B)}):
        solution = solve(a, B, Richardson(rtol=1e-12, max_steps=5000), **options)
        np.testing.assert_allclose(solution.value, truth, rtol=1e-9)
        assert solution.result == lx.RESULTS.successful
        assert not solution.stats["not_contracting"]
    at_solution = solve(a, B, Richardson(0.01, rtol=1e-6), y0=jnp.asarray(truth))
    assert at_solution.stats["num_steps"] == 0
    np.testing.assert_array_equal(at_solution.value, truth)
    short = solve(a, B, Richardson(0.01, rtol=1e-12, max_steps=5))
    assert short.result == lx.RESULTS.max_steps_reached


def test_rate_of_richardson():
    """The error shrinks by the factor `1 - a mu` per step."""
    a, step = spd(1.0, 10.0), 0.1
    truth = np.linalg.solve(a, B)
    errors = [
        np.linalg.norm(solve(a, B, Richardson(step, rtol=0.0, max_steps=k)).value - truth)
        for k in (60, 80, 100)
    ]
    np.testing.assert_allclose(np.diff(np.log(errors)) / 20, np.log(1 - step), rtol=1e-3)


@pytest.mark.parametrize("solver", [Neumann(0.1, 50), Richardson(0.1), Richardson(0.1, rtol=0.0)])
def test_a_step_above_two_over_l_is_reported(solver):
    solution = solve(spd(1.0, 50.0), B, solver)
    assert solution.result == lx.RESULTS.breakdown
    assert bool(solution.stats["not_contracting"])
    assert np.all(np.isfinite(solution.value))


@pytest.mark.parametrize("solver", [Neumann(1.0, 200), Richardson(1.0, rtol=1e-12)])
def test_operators_that_are_not_symmetric(solver):
    j = 0.5 * RNG.normal(size=(N, N)) / np.sqrt(N)
    op = lx.MatrixLinearOperator(jnp.asarray(np.eye(N) - j))
    solution = lx.linear_solve(op, jnp.asarray(B), solver)
    np.testing.assert_allclose(solution.value, np.linalg.solve(np.eye(N) - j, B), rtol=1e-10)
    transposed = jax.grad(lambda b: jnp.vdot(lx.linear_solve(op, b, solver).value, B))(
        jnp.asarray(B)
    )
    np.testing.assert_allclose(transposed, np.linalg.solve(np.eye(N) - j.T, B), rtol=1e-9)
    auto = type(solver)()
    with pytest.raises(ValueError, match="not tagged as one; pass a number"):
        lx.linear_solve(op, jnp.asarray(B), auto)


SOLVERS = [
    Neumann(0.02, 3000),
    Richardson(rtol=1e-13, max_steps=10_000),
    Nystrom(N, damping=1e-7),
    StochasticRichardson(0.03, 3000),
    CG(rtol=1e-13, preconditioner=diagonal_preconditioner()),
    CG(rtol=1e-13, preconditioner=nystrom_preconditioner(4, 1e-2)),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_all_solvers_work_under_jax_transformations(solver):
    """jit, vmap, gradients through the solve, pytrees."""
    a = spd()
    truth = np.linalg.inv(a)

    def run(b):
        return lx.linear_solve(operator(a), b, solver, throw=False).value

    np.testing.assert_allclose(jax.jit(run)(B), truth @ B, rtol=1e-6)
    many = np.stack([B, 2 * B, B**2])
    np.testing.assert_allclose(jax.vmap(run)(many), many @ truth, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        jax.grad(lambda b: jnp.vdot(run(b), B))(jnp.asarray(B)), truth @ B, rtol=1e-6
    )
    scale = {"a": jnp.full(3, 2.0), "b": jnp.full((2, 2), 5.0)}
    tree = lx.FunctionLinearOperator(
        lambda x: jax.tree.map(lambda s, y: s * y, scale, x),
        jax.eval_shape(lambda: scale),
        SYMMETRIC,
    )
    if not (isinstance(solver, Nystrom) and solver.rank > 7):
        found = lx.linear_solve(tree, scale, solver, throw=False).value
        np.testing.assert_allclose(found["a"], 1.0, rtol=1e-6)
        np.testing.assert_allclose(found["b"], 1.0, rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_zero_right_hand_side(solver):
    np.testing.assert_array_equal(solve(spd(), np.zeros(N), solver).value, np.zeros(N))


@pytest.mark.parametrize("columns", ["random", "leading"])
def test_nystrom_is_exact_on_low_rank(columns):
    """`(A + damping I)^{-1} b` for a matrix of rank 3, from 3 or more columns."""
    factor = RNG.normal(size=(N, 3))
    a, damping = factor @ factor.T, 0.1
    for rank in (3, 5):
        solution = solve(a, B, Nystrom(rank, damping, columns))
        truth = np.linalg.solve(a + damping * np.eye(N), B)
        np.testing.assert_allclose(solution.value, truth, rtol=1e-6)
        products = rank * (2 if columns == "leading" else 1)
        assert solution.stats["num_products"] == products


def test_nystrom_takes_the_leading_columns():
    diagonal = np.array([1e-6, 9.0, 1e-6, 4.0, 1e-6, 1e-6, 1e-6, 1e-6])
    solution = solve(np.diag(diagonal), np.ones(N), Nystrom(2, 1e-3, "leading"))
    np.testing.assert_allclose(solution.value[jnp.array([1, 3])], [1 / 9.001, 1 / 4.001], rtol=1e-9)
    np.testing.assert_allclose(solution.value[0], 1e3, rtol=1e-9)


def test_nystrom_keys_differ():
    a = spd(1e-3, 50.0)
    one, two = (solve(a, B, Nystrom(2, 0.1, key=jr.key(k))).value for k in (0, 1))
    assert not np.allclose(one, two)


def test_preconditioners_save_steps():
    n = 60
    scales = np.geomspace(1, 1e3, n)
    scaled = scales[:, None] * spd(1.0, 3.0, n) * scales[None, :]
    decaying = spd(1.0, 1e4, n)
    b = RNG.normal(size=n)
    for a, preconditioner in [
        (scaled, diagonal_preconditioner()),
        (decaying, nystrom_preconditioner(30, 1.0)),
    ]:
        plain = solve(a, b, CG(rtol=1e-10))
        better = solve(a, b, CG(rtol=1e-10, preconditioner=preconditioner))
        np.testing.assert_allclose(better.value, np.linalg.solve(a, b), rtol=1e-6)
        assert int(better.stats["num_steps"]) < 0.7 * int(plain.stats["num_steps"])


def test_preconditioner_as_an_option_of_lineax():
    a = np.diag(np.geomspace(1, 1e4, N))
    inverse = lx.TaggedLinearOperator(operator(np.linalg.inv(a)), SYMMETRIC)
    solution = solve(a, B, CG(rtol=1e-12), preconditioner=inverse)
    assert solution.stats["num_steps"] == 1
    np.testing.assert_allclose(solution.value, B / np.diag(a), rtol=1e-12)


def test_probed_diagonal_is_exact_for_a_diagonal_matrix():
    a = np.diag(np.geomspace(1, 1e3, N))
    solution = solve(a, B, CG(rtol=1e-12, preconditioner=diagonal_preconditioner(1)))
    assert solution.stats["num_steps"] == 1


def test_smallest_curvature_of_cg():
    found = solve(spd(2.0, 3.0), B, CG(rtol=1e-12)).stats["smallest_curvature"]
    assert 2.0 <= float(found) <= 3.0


def noisy(a, sigma):
    """`A x` plus noise of size `sigma |x|`, which is new each time."""

    def sample(x, key):
        key, sub = jr.split(key)
        return jnp.asarray(a) @ x + sigma * jnp.linalg.norm(x) * jr.normal(sub, x.shape), key

    return sample


def mean_squared_error(solver, sigma=0.5, seeds=200):
    a = spd(1.0, 4.0)
    truth = np.linalg.solve(a, B)

    def run(key):
        options = {"sample": jax.tree_util.Partial(noisy(a, sigma)), "sample_state": key}
        return lx.linear_solve(
            operator(a), jnp.asarray(B), solver, options=options, throw=False
        ).value

    found = jax.jit(jax.vmap(run))(jr.split(jr.key(0), seeds))
    return float(np.mean(np.sum((np.asarray(found) - truth) ** 2, axis=1)))


@pytest.mark.slow
def test_stochastic_with_decreasing_steps_converges_and_with_constant_ones_stalls():
    errors = [
        mean_squared_error(StochasticRichardson(decreasing_step(2.0, 8.0), k))
        for k in (250, 500, 1000)
    ]
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert np.all((ratios > 1.6) & (ratios < 2.6)), ratios
    constant = [mean_squared_error(StochasticRichardson(0.2, k)) for k in (250, 1000)]
    assert constant[1] > 0.8 * constant[0]
    halved = mean_squared_error(StochasticRichardson(0.1, 1000))
    assert 1.6 < constant[1] / halved < 3.0  # of the order of the step


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Neumann(0.0), "`Neumann` needs a step size > 0"),
        (lambda: Neumann("fast"), "a number > 0 or 'auto', got 'fast'"),
        (lambda: Neumann(num_terms=0), "num_terms >= 1, got 0"),
        (lambda: Richardson(-1.0), "`Richardson` needs a step size > 0"),
        (lambda: Richardson(rtol=-1.0), "tolerances must be >= 0"),
        (lambda: Nystrom(0), "rank >= 1, got 0"),
        (lambda: Nystrom(2, 0.0), "damping > 0"),
        (lambda: Nystrom(2, columns="best"), "best"),  # pyright: ignore[reportArgumentType],
        (lambda: StochasticRichardson(0.1, 0), "num_steps >= 1, got 0"),
        (lambda: solve(spd(), B, Nystrom(9)), "rank=9 for a system of dimension 8"),
        (
            lambda: lx.linear_solve(operator(spd(), ()), jnp.asarray(B), Nystrom(2)),
            "positive_semidefinite_tag",
        ),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_step_sizes_are_data():
    """Many step sizes in one program."""
    steps = jnp.array([0.01, 0.02, 0.03])
    found = jax.vmap(lambda s: solve(spd(), B, Neumann(s, 5)).value)(steps)
    for step, row in zip(steps, found, strict=True):
        np.testing.assert_allclose(row, partial_sum(spd(), B, float(step), 5), rtol=1e-12)


@pytest.mark.slow
def test_dtype_is_kept():
    a = lx.MatrixLinearOperator(jnp.asarray(spd(), jnp.float32), SYMMETRIC)
    b = jnp.asarray(B, jnp.float32)
    for solver in (Neumann(num_terms=3), Richardson(rtol=1e-3), Nystrom(3), *SOLVERS[3:]):
        value = lx.linear_solve(a, b, solver, throw=False).value
        assert value.dtype == jnp.float32
        assert np.all(np.isfinite(value))
