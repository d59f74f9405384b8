"""Meta-learning: episodes, the ridge solution and its hypergradients, separability, minibatches."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from sklearn.linear_model import Ridge

import bilevel
from bilevel import tasks
from helpers import assert_close, estimate_on_all_data

RNG = np.random.default_rng(3)
X = RNG.normal(size=(60, 4))
Y = np.arange(60) % 6
WAYS, SHOTS, QUERIES, TASKS, L2 = 3, 2, 4, 5, 0.05
DRAWN = tasks.episodes(X, Y, ways=WAYS, shots=SHOTS, queries=QUERIES, num_tasks=TASKS, seed=1)
NETS = {d: tasks.models.mlp_representation(4, d, key=jax.random.key(0), width=5) for d in (4, 9)}


def problem_of(d=9, loss=tasks.models.one_hot_error, drawn=DRAWN, **settings):
    return tasks.meta_learning(NETS[d].features, drawn, loss=loss, l2=L2, **settings)


def variable(d, biased):
    if not biased:
        return NETS[d].u0
    return {"representation": NETS[d].u0, "bias": 0.3 * jnp.asarray(RNG.normal(size=(WAYS, d)))}


def test_episodes_are_balanced_disjoint_and_reproducible():
    rows = np.arange(60)
    kwargs = {"ways": WAYS, "shots": SHOTS, "queries": QUERIES, "num_tasks": 40}
    found = tasks.episodes(rows, Y, seed=7, classes=[0, 2, 3, 5], **kwargs)
    again = tasks.episodes(rows, Y, seed=7, classes=[0, 2, 3, 5], **kwargs)
    other = tasks.episodes(rows, Y, seed=8, classes=[0, 2, 3, 5], **kwargs)
    for a, b in zip(found, again, strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(found.support_x, other.support_x)
    seen = set()
    for sx, sy, qx, qy in zip(*map(np.asarray, found), strict=True):
        assert len(set(sx) | set(qx)) == WAYS * (SHOTS + QUERIES)  # no row twice
        assert np.bincount(sy).tolist() == [SHOTS] * WAYS
        assert np.bincount(qy).tolist() == [QUERIES] * WAYS
        names = [set(Y[sx[sy == k]]) | set(Y[qx[qy == k]]) for k in range(WAYS)]
        assert all(len(name) == 1 for name in names)  # one class per label, in both parts
        classes = tuple(int(name.pop()) for name in names)
        assert len(set(classes)) == WAYS
        assert set(classes) <= {0, 2, 3, 5}
        seen.add(classes)
    assert len(seen) > 12  # classes and their order vary: there are 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 7}, "6 classes"),
        ({"shots": 8}, "has 10"),
        ({"num_tasks": 0}, ">= 1"),
        ({"classes": [0, 99, 1]}, "class 99 has 0"),
    ],
)
def test_impossible_episodes_are_refused(change, message):
    kwargs = {"ways": 3, "shots": 2, "queries": 4, "num_tasks": 2} | change
    with pytest.raises(ValueError, match=message):
        tasks.episodes(X, Y, **kwargs)


def test_rotated_classes():
    images, labels = RNG.normal(size=(3, 4, 4)), np.array([0, 1, 0])
    turned, codes = tasks.rotated_classes(images, labels)
    assert turned.shape == (12, 4, 4)
    assert np.bincount(codes).tolist() == [2] * 4 + [1] * 4
    for quarter in range(4):
        same = turned[codes == 4 + quarter]
        assert np.array_equal(same[0], np.rot90(images[1], quarter))


# 9 features of 6 support rows take the dual formula, 4 the primal one.
@pytest.mark.parametrize("d", [4, 9])
def test_ridge_solution_is_that_of_scikit_learn(d):
    problem, u = problem_of(d), NETS[d].u0
    w = tasks.reference.meta_ridge_solution(problem, WAYS)(u, problem.inner_data)
    assert w.shape == (TASKS, WAYS, d)
    for t in range(TASKS):
        phi = np.asarray(NETS[d].features(u, DRAWN.support_x[t]))
        alpha = L2 * WAYS * SHOTS
        model = Ridge(alpha, fit_intercept=False).fit(phi, np.eye(WAYS)[DRAWN.support_y[t]])
        assert_close(w[t], model.coef_, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "biased"),
    [
        (4, True),
        pytest.param(9, False, marks=pytest.mark.slow),
        pytest.param(4, False, marks=pytest.mark.slow),
        pytest.param(9, True, marks=pytest.mark.slow),
    ],
)
def test_ridge_solution_is_stationary_and_its_hypergradient_exact(d, biased):
    problem, u = problem_of(d, biased=biased), variable(d, biased)
    solution = tasks.reference.meta_ridge_solution(problem, WAYS)
    w = solution(u, problem.inner_data)
    assert float(jnp.max(jnp.abs(problem.residual(u, w, problem.inner_data)))) < 1e-12

    def value(u):
        return problem.outer(u, solution(u, problem.inner_data), problem.outer_data)

    through = jax.jit(jax.grad(value))(u)
    inner = bilevel.ClosedForm(solution)
    for estimator in (bilevel.ITD(), bilevel.AID(lx.CG(1e-13, 1e-13))):
        found = estimate_on_all_data(problem, estimator, inner, u, w).grad
        distance = optax.tree.norm(optax.tree.sub(found, through)) / optax.tree.norm(through)
        assert float(distance) < 1e-9

    direction = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape)), u)
    h, at = 1e-5, lambda s: value(optax.tree.add_scale(u, s, direction))
    slope = (at(h) - at(-h)) / (2 * h)
    assert_close(slope, optax.tree.vdot(through, direction), rtol=1e-6)


@pytest.mark.slow
def test_softmax_hypergradient_agrees_with_differences():
    problem, u = problem_of(4, loss=tasks.models.softmax_cross_entropy), NETS[4].u0
    w0 = jnp.zeros((TASKS, WAYS, 4))
    assert bilevel.check_hypergradient(problem, u, w0, num_directions=2, rtol=1e-6)


@pytest.mark.slow
def test_inner_problems_are_separate():
    """Task t of f depends on row t of w only; the hypergradient is the mean over the tasks."""
    problem, u = problem_of(biased=True), variable(9, True)
    w = jnp.asarray(RNG.normal(size=(TASKS, WAYS, 9)))
    residual = problem.residual(u, w, problem.inner_data)
    moved = problem.residual(u, w.at[2].add(1.0), problem.inner_data)
    changed = jnp.max(jnp.abs(moved - residual), axis=(1, 2)) > 0
    assert changed.tolist() == [False, False, True, False, False]

    @jax.jit
    def gradient(drawn):
        problem = problem_of(drawn=drawn, biased=True)
        solution = tasks.reference.meta_ridge_solution(problem, WAYS)
        w = solution(u, problem.inner_data)
        values = problem.inner(u, w, problem.inner_data), residual_of(problem, w)
        return bilevel.implicit_gradient(problem, u, w, lx.CG(1e-13, 1e-13)).grad, values

    def residual_of(problem, w):
        return problem.residual(u, jnp.ones_like(w), problem.inner_data)

    together, (value, slopes) = gradient(DRAWN)
    alone = [gradient(jax.tree.map(lambda a, t=t: a[t : t + 1], DRAWN)) for t in range(TASKS)]
    mean = jax.tree.map(lambda *g: sum(g) / TASKS, *(grad for grad, _ in alone))
    distance = optax.tree.norm(optax.tree.sub(together, mean)) / optax.tree.norm(mean)
    assert float(distance) < 1e-9
    assert_close(value, sum(v for _, (v, _) in alone), rtol=1e-12)
    assert_close(slopes, jnp.concatenate([s for _, (_, s) in alone]), rtol=1e-10)


def test_closed_form_on_some_tasks_is_refused():
    problem = problem_of()
    method = bilevel.DoubleLoop(
        bilevel.ClosedForm(tasks.reference.meta_ridge_solution(problem, WAYS)),
        bilevel.ITD(),
        optax.sgd(0.1),
        inner_sampler=bilevel.Shuffled(2),
    )
    w0 = jnp.zeros((TASKS, WAYS, 9))
    with pytest.raises(ValueError, match="FullBatch"):
        bilevel.solve(problem, method, NETS[9].u0, w0, key=jax.random.key(0), num_steps=1)


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="l2"):
        tasks.meta_learning(NETS[4].features, DRAWN, l2=-1.0)
    softmax = problem_of(loss=tasks.models.softmax_cross_entropy)
    with pytest.raises(ValueError, match="one_hot_error"):
        tasks.reference.meta_ridge_solution(softmax, WAYS)
    other = tasks.ridge(jnp.eye(2), jnp.ones(2), jnp.eye(2), jnp.ones(2))
    for call in (
        lambda: tasks.reference.meta_ridge_solution(other, 2),
        lambda: tasks.meta_accuracy(other, jnp.zeros(()), jnp.zeros((1, 2, 2))),
    ):
        with pytest.raises(TypeError, match="meta_learning"):
            call()
    with pytest.raises(ValueError, match="16 pixels"):
        tasks.models.conv4((8, 8), key=jax.random.key(0))
    with pytest.raises(ValueError, match="divide"):
        tasks.models.conv4((16, 16), key=jax.random.key(0), width=5, groups=2)


def test_accuracy_counts_query_rows():
    # Labels are one-hot in the rows, so the identity gets all right; a task with w = 0 a third.
    drawn = tasks.episodes(np.eye(3)[Y % 3], Y % 3, ways=3, shots=1, queries=2, num_tasks=2)
    problem = tasks.meta_learning(
        lambda u, x: x * u, drawn, loss=tasks.models.one_hot_error, l2=0.1
    )
    w = tasks.reference.meta_ridge_solution(problem, 3)(jnp.ones((1, 3)), problem.inner_data)
    found = tasks.meta_accuracy(problem, jnp.ones((1, 3)), w.at[1].set(0.0))
    assert_close(found, jnp.array([1.0, 1 / 3]), rtol=1e-12)


@pytest.mark.parametrize("shape", [(17, 16), (3, 16, 18)])
def test_conv4_is_a_function_of_the_row(shape):
    net = tasks.models.conv4(shape, key=jax.random.key(2), width=4, groups=2)
    x = jnp.asarray(RNG.normal(size=(3, *shape)))
    features = jax.jit(net.features)
    together = features(net.u0, x)
    assert together.shape == (3, 4)
    alone = jnp.concatenate([features(net.u0, x[k : k + 1]) for k in range(3)])
    assert_close(together, alone, rtol=1e-10)


def test_conv4_in_one_block_by_hand():
    net = tasks.models.conv4((4, 4), key=jax.random.key(0), width=1, blocks=1)
    x = RNG.normal(size=(1, 4, 4))
    weight, bias = (np.asarray(a) for a in jax.tree.leaves(net.u0)[:2])
    padded = np.pad(x[0], 1)
    z = np.array(
        [[np.sum(padded[i : i + 3, j : j + 3] * weight[0, 0]) for j in range(4)] for i in range(4)]
    )
    z = (z + bias.item() - np.mean(z + bias.item())) / np.sqrt(np.var(z) + 1e-5)
    z = np.maximum(z, 0).reshape(2, 2, 2, 2).max(axis=(1, 3))
    assert_close(net.features(net.u0, jnp.asarray(x)), z.reshape(1, -1), rtol=1e-9)


def test_the_compiled_derivative_of_conv4_by_central_differences():
    """With `jnp.max` as the pooling it was 0 / 0: the compiler rounded its argument in two ways."""
    net = tasks.models.conv4((8, 8), key=jax.random.key(4), width=4, blocks=2)
    images = jnp.asarray(RNG.uniform(size=(64, 8, 8)))
    drawn = [jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape)), net.u0) for _ in "ab"]
    u, towards = optax.tree.add_scale(net.u0, 0.1, drawn[0]), drawn[1]

    def value(u):
        return jnp.sum(net.features(u, images) ** 2)

    found = jax.jit(lambda u, along: jax.jvp(value, (u,), (along,))[1])(u, towards)
    at = jax.jit(lambda step: value(optax.tree.add_scale(u, step, towards)))
    assert_close(found, (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-6)


def test_pooling_shares_the_slope_among_equal_pixels():
    x = jnp.array([[[2.0, 2.0], [1.0, 0.0]]])
    slope = jax.grad(lambda x: jnp.sum(tasks.models._pool(x)))
    assert_close(slope(x)[0], jnp.array([[0.5, 0.5], [0, 0]]), rtol=0)
    assert_close(slope(jnp.ones((1, 2, 2)))[0], jnp.full((2, 2), 0.25), rtol=0)
    assert jnp.isnan(tasks.models._pool(x.at[0, 1, 1].set(jnp.nan)))


@pytest.mark.slow
def test_the_compiled_conv_ridge_gradient_is_the_eager_one():
    """In float32, XLA's CPU compiler returned infinities here for a product with a constant
    zero."""
    images = RNG.uniform(size=(40, 8, 8)).astype(np.float32)
    drawn = tasks.episodes(
        images, np.arange(40) % 5, ways=5, shots=1, queries=5, num_tasks=8, seed=1
    )
    net = tasks.models.conv4((8, 8), key=jax.random.key(1), width=32, blocks=2)
    u = jax.tree.map(lambda a: a.astype(jnp.float32), net.u0)
    problem = tasks.meta_learning(net.features, drawn, loss=tasks.models.one_hot_error, l2=0.1)
    solution = tasks.reference.meta_ridge_solution(problem, 5)

    def value(u):
        return problem.outer(u, solution(u, problem.inner_data), problem.outer_data)

    compiled, eager = jax.jit(jax.grad(value))(u), jax.grad(value)(u)
    distance = optax.tree.norm(optax.tree.sub(compiled, eager)) / optax.tree.norm(eager)
    assert float(distance) < 1e-3
