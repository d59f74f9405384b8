"""What u and w may be: several dtypes, modules; complex variables are refused in words."""

import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import bilevel
from bilevel import AID, ITD, DoubleLoop, GradientInner
from methods import METHODS
from rows import BY_BLOCKS, draws, with_steps

QUICK = ("SOBA", "F2SA")
SOLVERS = {
    "CG": bilevel.CG(rtol=1e-6),
    "Richardson": bilevel.Richardson(rtol=1e-6),
    "Neumann": bilevel.Neumann(num_terms=60),
    "Nystrom": bilevel.Nystrom(5, 1e-7),
    "LU": lx.LU(),
    "GMRES": lx.GMRES(rtol=1e-6, atol=1e-6),
}
U = {"scale": jnp.array(2.0, jnp.float32), "shift": jnp.full(2, 2.0)}
W = {
    "net": jnp.full(2, 2.0, jnp.float32),
    "heat": jnp.full(2, 2.0, jnp.float64),
    "half": jnp.full((), 2.0, jnp.bfloat16),
}


def outer(u, w, _) -> Any:
    return sum(jnp.sum((x.astype(jnp.float64) - 1) ** 2) for x in jax.tree.leaves(w))


def inner(u, w, _) -> Any:
    """`w* = scale` in each entry of net and half, and `w* = shift` in heat."""
    target = {"net": u["scale"], "heat": u["shift"], "half": u["scale"]}
    seen = {name: x.dtype for name, x in w.items()}
    assert seen == {name: x.dtype for name, x in W.items()}  # the objectives see what was given
    return 0.5 * sum(
        jnp.sum((w[name].astype(jnp.float64) - target[name].astype(jnp.float64)) ** 2) for name in w
    )


MIXED = bilevel.BilevelProblem(outer, inner)


def dtypes(tree: Any) -> Any:
    return jax.tree.map(lambda x: str(x.dtype), tree)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x == "Richardson")) for x in SOLVERS]
)
def test_implicit_gradient_of_several_dtypes(name):
    """`Phi = 3 (scale - 1)^2 + |shift - 1|^2`."""
    found = bilevel.implicit_gradient(MIXED, U, W, SOLVERS[name])
    np.testing.assert_allclose(found.grad["scale"], 6.0, rtol=1e-5)
    np.testing.assert_allclose(found.grad["shift"], 2.0, rtol=1e-5)
    assert dtypes(found.grad) == dtypes(U)
    assert dtypes(found.v) == dtypes(W) == dtypes(found.w)


METHODS_OF_TWO_LOOPS = {
    "AID": DoubleLoop(GradientInner("auto", 4), AID(), optax.sgd(0.1)),
    "ITD": DoubleLoop(GradientInner(optax.sgd(0.5), 20), ITD(), optax.sgd(0.1), warm_start=True),
    "forward": DoubleLoop(GradientInner(optax.sgd(1.0), 2), ITD("forward"), optax.sgd(0.1)),
}
SINGLE = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name, row in METHODS.items()
    if row.oracle is not None and name not in BY_BLOCKS
]


@pytest.mark.parametrize(
    "name", [*SINGLE, "AID", "ITD", pytest.param("forward", marks=pytest.mark.slow)]
)
def test_solve_with_several_dtypes(name):
    method = METHODS_OF_TWO_LOOPS.get(name) or with_steps(METHODS[name].kind, 0.5, 0.5, 0.03)
    solution = bilevel.solve(MIXED, method, U, W, num_steps=150)
    assert dtypes(solution.u) == dtypes(U)
    assert dtypes(solution.w) == dtypes(W)
    random = {"SUSTAIN": 0.5, "BSA": 0.5, "PZOBO": 0.2, "BOME": 0.5, "PDBO": 0.5}
    atol = random.get(name, 0.05)
    for x in jax.tree.leaves(solution.u):
        np.testing.assert_allclose(x, 1.0, atol=atol)
    # To go on needs no more than the state.
    further = bilevel.solve(MIXED, method, U, W, num_steps=152, state=solution.state)
    assert dtypes(further.w) == dtypes(W)


@pytest.mark.parametrize("name", ["CG", "Richardson", "Neumann", "Nystrom", "StochasticRichardson"])
def test_linear_systems_of_several_dtypes(name):
    """`A = diag(2, 4, 1)` over a float32, a float64 and a bfloat16 leaf."""
    structure, b = jax.eval_shape(lambda: W), jax.tree.map(jnp.ones_like, W)
    solver = SOLVERS.get(name, bilevel.StochasticRichardson(0.25, 80))
    with jax.numpy_dtype_promotion("standard"):  # lineax itself promotes
        operator = lx.FunctionLinearOperator(
            lambda x: {"net": 2 * x["net"], "heat": 4 * x["heat"], "half": x["half"]},
            structure,
            lx.positive_semidefinite_tag,
        )
        x = lx.linear_solve(operator, b, solver).value
    assert dtypes(x) == dtypes(W)
    for leaf, truth in (("net", 0.5), ("heat", 0.25), ("half", 1.0)):
        np.testing.assert_allclose(np.asarray(x[leaf], float), truth, rtol=1e-2)


class Model(eqx.Module):
    """Arrays, a function, a number and an integer array: a module as people write them."""

    weight: jax.Array
    count: jax.Array
    activation: Any
    power: float = 2.0

    def __call__(self):
        return self.activation(self.weight)


MODEL = Model(jnp.zeros(3), jnp.arange(2), jnp.tanh)
OF_MODULES = bilevel.BilevelProblem(  # w* = u, Phi = |tanh u - 1/2|^2
    outer=lambda u, w, _: jnp.sum((w() - 0.5) ** w.power),
    inner=lambda u, w, _: 0.5 * jnp.sum((w.weight - u.weight) ** 2),
)
BOTH = DoubleLoop(GradientInner(optax.sgd(1.0), 1), AID(), optax.sgd(0.5))


def test_modules_as_variables():
    u0 = eqx.tree_at(lambda m: m.weight, MODEL, jnp.full(3, 0.1))
    solution = bilevel.solve(OF_MODULES, BOTH, u0, MODEL, num_steps=60)
    for found in (solution.u, solution.w):
        np.testing.assert_allclose(found(), 0.5, atol=1e-6)  # it can be called as it was
        assert found.count.tolist() == [0, 1]
    gradient = bilevel.implicit_gradient(OF_MODULES, u0, u0, bilevel.CG(rtol=1e-10))
    t = np.tanh(0.1)
    np.testing.assert_allclose(gradient.grad.weight, 2 * (t - 0.5) * (1 - t**2), rtol=1e-12)
    assert gradient.grad.activation is None
    assert gradient.w.activation is jnp.tanh
    assert bool(bilevel.check_hypergradient(OF_MODULES, u0, MODEL))
    checked = bilevel.retrain_check(OF_MODULES, solution, u0, lambda _: MODEL)
    assert checked.verdict == "holds"


@pytest.mark.slow
def test_modules_in_a_comparison():
    frame = bilevel.compare(
        {"double loop": BOTH},
        OF_MODULES,
        MODEL,
        MODEL,
        num_steps=60,
        seeds=1,
        metrics={"first": lambda u, w: w()[0]},
    )
    assert abs(frame["first"].iloc[-1] - 0.5) < 1e-6


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SOBA", "modules"),
        pytest.param("SOBA", "dtypes", marks=pytest.mark.slow),
        pytest.param("DoubleLoop", "modules", marks=pytest.mark.slow),
        pytest.param("DoubleLoop", "dtypes", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_bitwise(name, kind, tmp_path):
    """Six steps; three, a file and three; and six steps of a loop of one's own."""
    problem, u, w = (OF_MODULES, MODEL, MODEL) if kind == "modules" else (MIXED, U, W)
    method = bilevel.SOBA(0.5, 0.5, 0.1) if name == "SOBA" else METHODS_OF_TWO_LOOPS["AID"]
    given, key = bilevel.as_arrays(problem, u, w), jax.random.key(3)
    checkpoint = bilevel.Checkpoint(tmp_path / "run.eqx")

    unbroken = bilevel.solve(problem, method, u, w, num_steps=6, key=key)
    bilevel.solve(problem, method, u, w, num_steps=3, key=key, callbacks=[checkpoint])
    start = method.init(given.problem, given.u, given.w, key)
    loaded = checkpoint.load(start, problem, method)
    assert int(loaded.step) == 3
    resumed = bilevel.solve(problem, method, u, w, num_steps=6, state=loaded)
    assert eqx.tree_equal((unbroken.u, unbroken.w), (resumed.u, resumed.w))
    assert eqx.tree_equal(unbroken.state, resumed.state)

    state, step = start, eqx.filter_jit(method.step)
    for _ in range(6):
        state, _ = step(given.problem, state)
    own_u, own_w = given.restore(state.u, state.w)
    assert jax.tree.structure(own_w) == jax.tree.structure(unbroken.w)
    for x, y in zip(*map(jax.tree.leaves, ((own_u, own_w), (unbroken.u, unbroken.w))), strict=True):
        if eqx.is_array(x):
            assert x.dtype == y.dtype
            np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), rtol=1e-6)


def test_a_formula_for_a_module():
    method = DoubleLoop(bilevel.ClosedForm(lambda u, _: u), AID(), optax.sgd(0.5))
    solution = bilevel.solve(OF_MODULES, method, MODEL, MODEL, num_steps=60)
    np.testing.assert_allclose(solution.w(), 0.5, atol=1e-6)


@pytest.mark.slow
def test_a_ball_around_a_module():
    """The nearest point of the ball of radius 0.3 around 0 has all three entries equal."""
    ball = bilevel.Ball(0.3, center=MODEL)
    problem = bilevel.BilevelProblem(OF_MODULES.outer, OF_MODULES.inner, geometry=ball)
    solution = bilevel.solve(problem, BOTH, MODEL, MODEL, num_steps=60)
    np.testing.assert_allclose(solution.u.weight, 0.3 / np.sqrt(3), rtol=1e-6)


COMPLEX = jnp.ones(2, complex)


@pytest.mark.parametrize("name", ["u", "w"])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": x}, lambda x: Model(x, x, None)])
def test_complex_variables_are_refused(name, wrap):
    leaf = {0: "", 1: r"\['a'\]", 2: r"\.weight"}
    wrapped = wrap(COMPLEX)
    kind = 1 if isinstance(wrapped, dict) else 2 if isinstance(wrapped, Model) else 0
    variables = {"u": jnp.ones(2), "w": jnp.ones(2)} | {name: wrapped}
    for suffix, call in (
        ("0", lambda u, w: bilevel.solve(OF_MODULES, BOTH, u, w, num_steps=2)),
        ("0", lambda u, w: BOTH.init(OF_MODULES, u, w, jax.random.key(0))),
        ("0", lambda u, w: bilevel.SOBA().init(OF_MODULES, u, w, jax.random.key(0))),
        ("", lambda u, w: bilevel.implicit_gradient(OF_MODULES, u, w, lx.LU())),
        ("", lambda u, w: bilevel.implicit_layer(OF_MODULES, u, w)),
        ("", lambda u, w: bilevel.check_hypergradient(OF_MODULES, u, w)),
    ):
        with pytest.raises(TypeError, match=f"`{name}{suffix}{leaf[kind]}` is a complex array"):
            call(**variables)


def test_what_is_no_variable_is_refused():
    for wrong, message in (
        ({"a": jnp.ones(2), "f": jnp.tanh}, r"`w0\['f'\]` must be .* `equinox.partition"),
        ({"a": jnp.ones(2), "n": 3}, r"`w0\['n'\]` must be a floating-point array, got 3"),
        (Model(jnp.arange(3), jnp.arange(2), jnp.tanh), "`w0` has no floating-point array"),
    ):
        with pytest.raises(TypeError, match=message):
            bilevel.solve(OF_MODULES, BOTH, MODEL, wrong, num_steps=2)
    for problem, u, w in ((MIXED, U, W), (OF_MODULES, MODEL, MODEL)):
        for name, row in METHODS.items():
            blocks = draws(bilevel.Blocks, 1) if name in BY_BLOCKS else {}
            method = BOTH if row.oracle is None else row.kind(**blocks)
            with pytest.raises(TypeError, match=r"of one dtype in u0 and w0.*`given = "):
                method.init(problem, u, w, jax.random.key(0))


def test_a_solution_says_how_it_ended():
    solution = bilevel.solve(OF_MODULES, BOTH, MODEL, MODEL, num_steps=60, tol=1e-5)
    text = str(solution)
    for part in (
        f"converged at step {solution.stats['num_steps']} of 60",
        "outer ",
        "(meets its tolerance 1e-05)",
        "F(u, w) = ",
        "f(u, w) = ",
        "inner gradients",
        "seconds",
        "float64[3]",
    ):
        assert part in text
    assert "<svg" in solution._repr_html_()
    assert "Successful" in str(solution.result)
    short = bilevel.solve(OF_MODULES, BOTH, MODEL, MODEL, num_steps=2, tol=1e-9, throw=False)
    assert "outer_max_steps_reached at step 2 of 2" in str(short)
    assert "go on with solve(..., state=solution.state" in str(short)
    assert "above its tolerance 1e-09" in str(short)
    read = pickle.loads(pickle.dumps(short.run))
    assert read.values(None, None) == (None, None)
