"""PyTorch: against the JAX library on the same problems, and against closed forms."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import bilevel

torch: Any = pytest.importorskip("torch")
door: Any = pytest.importorskip("bilevel.torch")

RNG = np.random.default_rng(0)
N, M, D = 30, 20, 5
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
X_VAL, Y_VAL = RNG.normal(size=(M, D)), RNG.normal(size=M)
U = RNG.normal(size=D) - 1  # logarithms of one penalty per feature


def tensor(x: Any) -> Any:
    return torch.tensor(np.asarray(x))


def inner(u: Any, w: Any) -> Any:
    return 0.5 * ((tensor(X) @ w - tensor(Y)) ** 2).sum() + 0.5 * (torch.exp(u) * w**2).sum()


def outer(u: Any, w: Any) -> Any:
    return 0.5 * ((tensor(X_VAL) @ w - tensor(Y_VAL)) ** 2).mean() + 0.01 * u.sum()


def solution() -> tuple[np.ndarray, np.ndarray]:
    """(w*(U), grad Phi(U)) in closed form."""
    hessian = X.T @ X + np.diag(np.exp(U))
    w = np.linalg.solve(hessian, X.T @ Y)
    v = np.linalg.solve(hessian, X_VAL.T @ (X_VAL @ w - Y_VAL) / M)
    return w, 0.01 - np.exp(U) * w * v


LARGEST = float(np.linalg.eigvalsh(X.T @ X + np.diag(np.exp(U))).max())
EXACT = {
    "CG": door.CG(rtol=1e-12),
    "Neumann": door.Neumann(1 / LARGEST, 3000),
    "Richardson": door.Richardson(1 / LARGEST, rtol=1e-12, max_steps=5000),
    "Nystrom": door.Nystrom(D, damping=1e-11),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_closed_form_of_ridge(name):
    w, expected = solution()
    found = door.implicit_gradient(outer, inner, tensor(U), tensor(w), EXACT[name])
    np.testing.assert_allclose(found.grad, expected, rtol=1e-8)
    assert found.inner_residual < 1e-10
    assert found.linear_residual < 1e-8
    assert found.converged
    assert found.value == pytest.approx(0.5 * np.mean((X_VAL @ w - Y_VAL) ** 2) + 0.01 * U.sum())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (door.CG(rtol=1e-2), bilevel.CG(rtol=1e-2)),
        (door.Neumann(0.5 / LARGEST, 7), bilevel.Neumann(0.5 / LARGEST, 7)),
        (door.Richardson(0.5 / LARGEST, rtol=0.1), bilevel.Richardson(0.5 / LARGEST, rtol=0.1)),
        (door.Nystrom(D, damping=0.3), bilevel.Nystrom(D, damping=0.3)),
    ],
)
def test_inexact_solvers_are_those_of_the_library(ours, theirs):
    """At a point that is no solution, far from convergence."""
    w = RNG.normal(size=D)
    problem = bilevel.BilevelProblem(
        lambda u, w, _: 0.5 * jnp.mean((X_VAL @ w - Y_VAL) ** 2) + 0.01 * jnp.sum(u),
        lambda u, w, _: 0.5 * jnp.sum((X @ w - Y) ** 2) + 0.5 * jnp.sum(jnp.exp(u) * w**2),
    )
    expected = bilevel.implicit_gradient(problem, jnp.asarray(U), jnp.asarray(w), theirs)
    found = door.implicit_gradient(outer, inner, tensor(U), tensor(w), ours)
    np.testing.assert_allclose(found.grad, expected.grad, rtol=1e-9)
    np.testing.assert_allclose(found.v, np.asarray(expected.v), rtol=1e-9)
    for name in ("value", "inner_residual", "linear_residual"):
        assert getattr(found, name) == pytest.approx(float(getattr(expected, name)), rel=1e-8)


def test_nystrom_needs_rank_vectors_and_no_square_matrix():
    """100,000 parameters, whose square matrix would take 80 GB; `H = I`, `H_S v = v` on 3 of them."""
    b = torch.ones(100_000, dtype=torch.float64)
    x, _ = door.Nystrom(3, damping=0.5).solve(lambda v: v, b)
    assert sorted(set(x.tolist())) == pytest.approx([1 / 1.5, 1 / 0.5])
    assert int((x < 1).sum()) == 3


def test_damping_solves_another_system():
    w, _ = solution()
    hessian = X.T @ X + np.diag(np.exp(U)) + 2 * np.eye(D)
    v = np.linalg.solve(hessian, X_VAL.T @ (X_VAL @ w - Y_VAL) / M)
    args = outer, inner, tensor(U), tensor(w), door.CG(rtol=1e-12)
    np.testing.assert_allclose(door.implicit_gradient(*args, damping=2.0).v, v, rtol=1e-9)


def test_what_does_not_converge_is_told():
    w, _ = solution()
    point = tensor(U), tensor(w)
    for solver in (door.CG(rtol=1e-12, max_steps=2), door.Neumann(3 / LARGEST, 60)):
        with pytest.warns(bilevel.HypergradientWarning, match="did not converge"):
            found = door.implicit_gradient(outer, inner, *point, solver)
        assert not found.converged
        assert found.linear_residual > 1e-6
    with pytest.warns(bilevel.HypergradientWarning):
        found = door.implicit_gradient(outer, lambda u, w: -inner(u, w), *point)
    assert not found.converged  # negative curvature
    with pytest.raises(ValueError, match="does not depend on its argument `u`"):
        door.implicit_gradient(outer, lambda u, w: (w**2).sum(), *point)


def test_variables_are_trees():
    """A penalty in a dictionary, and a model in a tuple of two tensors, as one tensor of either."""
    w, expected = solution()
    found = door.implicit_gradient(
        lambda u, w: outer(u["log"], torch.cat(w)),
        lambda u, w: inner(u["log"], torch.cat(w)),
        {"log": tensor(U)},
        (tensor(w[:2]), tensor(w[2:])),
        door.CG(rtol=1e-12),
    )
    np.testing.assert_allclose(found.grad["log"], expected, rtol=1e-8)
    assert [len(v) for v in found.v] == [2, 3]


def test_a_layer_has_the_derivative_of_the_solution():
    """`w*(u) = sin(u)`, found without a graph; through a loss that torch differentiates."""
    u = torch.tensor([0.3, 1.1], dtype=torch.float64, requires_grad=True)
    w = torch.sin(u.detach())
    layer = door.implicit_layer(lambda u, w: 2.0 * ((w - torch.sin(u)) ** 2).sum(), u, w)
    (layer**3).sum().backward()
    np.testing.assert_allclose(u.grad, 3 * np.sin([0.3, 1.1]) ** 2 * np.cos([0.3, 1.1]), rtol=1e-9)
    np.testing.assert_array_equal(layer.detach(), w)


def test_a_fixed_point_has_its_derivative():
    """`z = tanh(W z + u)`, W not symmetric, against central differences."""
    weight = 0.4 * RNG.normal(size=(4, 4)) / 2
    u0 = RNG.normal(size=4)

    def solve(u: np.ndarray) -> np.ndarray:
        z = np.zeros(4)
        for _ in range(200):
            z = np.tanh(weight @ z + u)
        return z

    u, wt = torch.tensor(u0, requires_grad=True), torch.tensor(weight, requires_grad=True)
    z = door.fixed_point_layer(
        lambda p, z: torch.tanh(p[1] @ z + p[0]),
        (u, wt),
        tensor(solve(u0)),
        door.Richardson(1.0, rtol=1e-12),
    )
    (z**2).sum().backward()
    for i, e in enumerate(1e-5 * np.eye(4)):
        ahead, behind = (np.sum(solve(u0 + s * e) ** 2) for s in (1, -1))
        assert float(u.grad[i]) == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)
    assert wt.grad.shape == (4, 4)


def test_row_weights_of_a_module_as_in_the_library():
    """Softmax regression in float64: the hypergradient by the rows, and a run that finds them."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 3))
    labels = np.argmax(rows @ rng.normal(size=(3, 3)), axis=1)
    noisy = np.where(np.arange(40) < 12, (labels + 1) % 3, labels)
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 3).double()
    problem = door.reweighting_objectives(
        module,
        partial(torch.nn.functional.cross_entropy, reduction="none"),
        (tensor(rows), torch.tensor(noisy)),
        (tensor(rows), torch.tensor(labels)),
        l2=0.1,
    )
    w = {name: p.requires_grad_() for name, p in problem.w0.items()}
    optimiser = torch.optim.LBFGS(
        list(w.values()),
        tolerance_grad=1e-12,
        tolerance_change=0,
        max_iter=500,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Any:
        optimiser.zero_grad()
        value = problem.inner(problem.u0, w)
        value.backward()
        return value

    for _ in range(3):
        optimiser.step(closure)
    found = door.implicit_gradient(*problem[:2], problem.u0, w, door.CG(rtol=1e-11))
    assert found.inner_residual < 1e-6

    def losses(w: Any, x: Any, y: Any) -> Any:
        logits = x @ w["weight"].T + w["bias"][None]
        logits = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=1, keepdims=True))
        return -logits[jnp.arange(len(y)), y]

    jax_problem = bilevel.BilevelProblem(
        lambda u, w, _: jnp.mean(losses(w, rows, labels)),
        lambda u, w, _: (
            jnp.vdot(jnp.exp(u) / jnp.sum(jnp.exp(u)), losses(w, rows, noisy))
            + 0.05 * (jnp.sum(w["weight"] ** 2) + jnp.sum(w["bias"] ** 2))
        ),
    )
    point = jnp.zeros(40), door.to_jax({k: v.detach() for k, v in w.items()})
    expected = bilevel.implicit_gradient(jax_problem, *point, lx.LU())
    np.testing.assert_allclose(found.grad, expected.grad, atol=1e-9)
    assert found.grad[:12].mean() > found.grad[12:].mean()  # wrong labels lose weight


def test_running_statistics_are_refused():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    rows = torch.zeros(5, 3), torch.zeros(5, dtype=torch.long)
    loss = partial(torch.nn.functional.cross_entropy, reduction="none")
    with pytest.raises(ValueError, match=re.escape("1 change running statistics")):
        door.reweighting_objectives(module, loss, rows, rows)
    door.reweighting_objectives(module.eval(), loss, rows, rows)


def test_frozen_parameters_stay_and_random_layers_are_refused():
    """Of a frozen first layer only the second is w, and its gradient is that of the features."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
    ).double()
    module[0].requires_grad_(False)
    x, y = tensor(RNG.normal(size=(6, 3))), tensor(RNG.normal(size=6))

    def squares(found: Any, expected: Any) -> Any:
        return (found[:, 0] - expected) ** 2

    problem = door.reweighting_objectives(module, squares, (x, y), (x, y), l2=0.1)
    assert sorted(problem.w0) == ["2.bias", "2.weight"]
    features = np.tanh(module[0](x).detach().numpy())
    design = np.column_stack([np.ones(6), features])
    hessian = 2 * design.T @ design / 6 + 0.1 * np.eye(5)
    solved = np.linalg.solve(hessian, 2 * design.T @ y.numpy() / 6)
    w = {"2.bias": tensor(solved[:1]), "2.weight": tensor(solved[None, 1:])}
    found = door.implicit_gradient(*problem[:2], problem.u0, w, door.CG(rtol=1e-12))
    assert found.inner_residual < 1e-12
    residuals = design @ solved - y.numpy()
    v = np.linalg.solve(hessian, 2 * design.T @ residuals / 6)
    slopes = 2 * residuals * (design @ v)  # of each loss, along v
    np.testing.assert_allclose(found.grad, -(slopes - slopes.mean()) / 6, rtol=1e-8, atol=1e-12)

    noisy = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout(0.5)).double()
    with pytest.raises(ValueError, match="1 draw numbers in training"):
        door.reweighting_objectives(noisy, squares, (x, y), (x, y))
    door.reweighting_objectives(noisy.eval(), squares, (x, y), (x, y))
    with pytest.raises(ValueError, match="no parameter of the module requires a gradient"):
        door.reweighting_objectives(module.requires_grad_(False), squares, (x, y), (x, y))


def test_what_is_no_real_tensor_is_refused():
    def half_square(u: Any, w: Any) -> Any:
        return ((w - u).abs() ** 2).sum() / 2

    for bad, named in [
        (torch.tensor([1 + 1j]), "a tensor of torch.complex64"),
        (torch.tensor([1]), "a tensor of torch.int64"),
        (2.0, "float"),
        (np.ones(1), "ndarray"),
    ]:
        with pytest.raises(TypeError, match=f"real floating-point numbers, .*; got {named}"):
            door.implicit_gradient(half_square, half_square, torch.ones(1), {"a": bad})


def test_a_map_has_to_return_a_tree_like_z():
    """A transposed image has as many entries, and one number would be repeated."""
    for function in (lambda u, z: (0.5 * z + u).T, lambda u, z: (0.5 * z + u).sum()):
        u = torch.arange(6.0).reshape(2, 3).requires_grad_()
        layer = door.fixed_point_layer(function, u, torch.ones(2, 3))
        with pytest.raises(ValueError, match=r"must return a tree like z, of \(2, 3\), got"):
            layer.sum().backward()


def test_what_is_not_finite_has_not_converged():
    u, w = torch.ones(2), torch.tensor([float("inf"), 1.0])

    def outer(u: Any, w: Any) -> Any:
        return (w**2).sum()

    def inner(u: Any, w: Any) -> Any:
        return ((w - u) ** 2).sum()

    with pytest.warns(bilevel.HypergradientWarning, match="did not converge"):
        assert not door.implicit_gradient(outer, inner, u, w, door.Nystrom(2)).converged


def test_batches_of_a_data_loader(tmp_path):
    """SOBA on the NumPy output of a `DataLoader` with its own order; resumed from a checkpoint."""
    data = torch.utils.data.TensorDataset(tensor(X), tensor(Y))

    def loader() -> Any:
        order = torch.Generator().manual_seed(0)
        sampler = torch.utils.data.RandomSampler(data, generator=order)
        return torch.utils.data.DataLoader(data, 10, sampler=sampler, drop_last=True)

    def method() -> Any:
        return bilevel.SOBA(0.01, 0.01, 0.05, bilevel.FromLoader(loader(), 4), bilevel.FullBatch())

    def squares(u: Any, w: Any, batch: Any) -> Any:
        x, y = batch
        return 0.5 * jnp.sum((x @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(u) * w**2)

    def validation(u: Any, w: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2)

    problem = bilevel.BilevelProblem(
        validation, squares, outer_data=(jnp.asarray(X_VAL), jnp.asarray(Y_VAL))
    )
    start = jnp.asarray(U), jnp.zeros(D)
    whole = bilevel.solve(problem, method(), *start, num_steps=12)
    path = tmp_path / "run.eqx"
    save = [bilevel.Checkpoint(path)]
    bilevel.solve(problem, method(), *start, num_steps=5, callbacks=save)
    with bilevel.Loaders(method()) as loaders:
        like = loaders.algorithm.init(problem, *start, jax.random.key(0))
    again = method()
    state = bilevel.Checkpoint(path).load(like, problem, again)
    resumed = bilevel.solve(problem, again, *start, num_steps=12, state=state)
    np.testing.assert_array_equal(resumed.u, whole.u)
    np.testing.assert_array_equal(resumed.w, whole.w)

    # The same batches, drawn beside and held in memory: three per epoch, four epochs.
    one = loader()
    batches = [tuple(np.asarray(x) for x in batch) for _ in range(4) for batch in one]
    assert len(batches) == 12
    assert not np.array_equal(batches[0][0], batches[3][0])
    method_of_lists = bilevel.SOBA(
        0.01, 0.01, 0.05, bilevel.FromLoader(batches), bilevel.FullBatch()
    )
    listed = bilevel.solve(problem, method_of_lists, *start, num_steps=12)
    np.testing.assert_array_equal(listed.u, whole.u)


def test_arrays_go_to_jax_and_back():
    tree = {"a": torch.arange(6.0).reshape(2, 3), "b": [torch.tensor(2.5, dtype=torch.float64)]}
    there = door.to_jax(tree)
    np.testing.assert_array_equal(there["a"], np.arange(6.0).reshape(2, 3))
    assert there["b"][0].dtype == jnp.float64
    back = door.from_jax(there)
    assert back["b"][0].item() == 2.5
    assert back["a"].dtype == torch.float32
    negative = torch.tensor([1 + 2j]).conj().imag  # a view of +2 with a flag for its sign
    assert float(door.to_jax(negative)[0]) == -2.0
