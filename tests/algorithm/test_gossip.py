"""Agents on a graph: SOBA in the mean, disagreement against the spectral gap, bias of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel import GossipSOBA, on_network, replicate


def ring(agents: int, keep: float = 0.5) -> np.ndarray:
    """Each agent keeps a share and takes the rest from its two neighbours."""
    one = np.eye(agents)
    return keep * one + (1 - keep) / 2 * (np.roll(one, 1, axis=0) + np.roll(one, -1, axis=0))


def slow_mode(mixing: np.ndarray) -> tuple[float, np.ndarray]:
    """The second largest eigenvalue, and its eigenvector."""
    values, vectors = np.linalg.eigh(mixing)
    return values[-2], vectors[:, -2]


def inner(u, w, batch):
    a, b = batch  # one row, for one agent
    return 0.5 * w @ a[0] @ w - w @ (u + b[0])


def outer(u, w, batch):
    return 0.5 * jnp.sum((w - batch[0]) ** 2) + 0.05 * jnp.sum(u**2)


def problem_of(seed: int, agents: int, dim: int = 2):
    """One agent's objectives, and everybody's data, `(row, agent, ...)`."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(agents, dim, dim)) / 2
    a = np.eye(dim) + root @ root.transpose(0, 2, 1)
    b, c = rng.normal(size=(2, agents, dim))
    inner_data = jnp.asarray(a)[None], jnp.asarray(b)[None]
    problem = bilevel.BilevelProblem(outer, inner, jnp.asarray(c)[None], inner_data)
    return problem, (a, b, c)


def solution(a, b, c) -> np.ndarray:
    """u* of the means: w = A (u + b) with A the inverse of the mean matrix."""
    inverse = np.linalg.inv(a.mean(0))
    left = inverse @ inverse + 0.1 * np.eye(len(inverse))
    return np.linalg.solve(left, inverse @ (c.mean(0) - inverse @ b.mean(0)))


def run(method, problem, u0, w0, num_steps):
    return bilevel.solve(problem, method, u0, w0, num_steps=num_steps, trace_every=num_steps)


def test_with_complete_mixing_it_is_soba_on_the_mean():
    agents, steps = 4, (0.3, 0.3, 0.1)
    problem, _ = problem_of(0, agents)
    outer_mean, inner_mean = (
        lambda u, w, batch, f=f: jnp.mean(jax.vmap(f, in_axes=(None, None, 1))(u, w, batch))
        for f in (outer, inner)
    )
    mean = bilevel.BilevelProblem(
        outer_mean,
        inner_mean,
        problem.outer_data,
        problem.inner_data,
    )
    u0, w0 = jnp.array([0.3, -0.2]), jnp.array([1.0, 0.5])
    central = run(bilevel.SOBA(steps[0], steps[1], steps[2]), mean, u0, w0, 30)
    gossip = GossipSOBA(np.full((agents, agents), 1 / agents), *steps)
    network = on_network(problem, agents)
    found = run(gossip, network, replicate(u0, agents), replicate(w0, agents), 30)
    for mine, theirs in ((found.u, central.u), (found.w, central.w)):
        np.testing.assert_allclose(mine, np.broadcast_to(theirs, mine.shape), rtol=1e-10)


@pytest.mark.parametrize("agents", [4, 9])
def test_disagreement_settles_as_the_spectral_gap_says(agents):
    """Along the slowest mode q: d = l (d - a (d - q)), so d = l a q / (1 - l (1 - a))."""
    mixing = ring(agents)
    slow, mode = slow_mode(mixing)
    data = jnp.ones((1, agents, 1, 1)), jnp.asarray(mode)[None, :, None]
    problem = on_network(
        bilevel.BilevelProblem(outer, inner, jnp.zeros((1, agents, 1)), data), agents
    )
    step, start = 0.02, jnp.zeros((agents, 1))
    found = run(GossipSOBA(mixing, step, step, 0.0), problem, start, start, 3000)
    expected = slow * step / (1 - slow * (1 - step)) * mode
    np.testing.assert_allclose(found.w[:, 0] - jnp.mean(found.w), expected, rtol=1e-6, atol=1e-12)
    # Equal objectives: the same mode dies out by lambda (1 - a) per step.
    equal = on_network(
        bilevel.BilevelProblem(
            outer, inner, jnp.zeros((1, agents, 1)), (data[0], jnp.zeros((1, agents, 1)))
        ),
        agents,
    )
    found = run(GossipSOBA(mixing, step, step, 0.0), equal, start, jnp.asarray(mode)[:, None], 40)
    decay = (slow * (1 - step)) ** 40
    np.testing.assert_allclose(found.w[:, 0], decay * mode, rtol=1e-9, atol=1e-15)


def test_the_bias_is_of_the_order_of_the_step():
    agents = 5
    problem, data = problem_of(1, agents)
    start = jnp.zeros((agents, 2))
    errors = []
    for step in (0.02, 0.01):
        method = GossipSOBA(ring(agents), step, step, step)
        found = run(method, on_network(problem, agents), start, start, round(120 / step))
        errors.append(np.linalg.norm(np.asarray(found.u).mean(0) - solution(*data)))
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        (np.ones((2, 3)), "square matrix"),
        (np.array([[0.5, 0.5], [0.2, 0.8]]), "symmetric with rows that sum to 1"),
        (np.array([[1.5, -0.5], [-0.5, 1.5]]), "non-negative"),
        (np.full((2, 2), np.nan), "must be finite"),
        (np.eye(2), "never brings all agents together"),  # ended at [1, 3], and said `successful`
        ([[0.0, 1.0], [1.0, 0.0]], "a diagonal above 0"),
    ],
)
def test_other_matrices_are_refused(mixing, message):
    with pytest.raises(ValueError, match=message):
        GossipSOBA(mixing, 0.1, 0.1, 0.1)


def test_problems_and_variables_without_agents_are_refused():
    """The entries of a plain problem's variables were mixed, as if each were an agent."""
    problem, _ = problem_of(0, 3, dim=3)
    method, start = GossipSOBA(ring(3), 0.1, 0.1, 0.1), jnp.arange(3.0)
    plain = bilevel.BilevelProblem(
        lambda u, w, _: jnp.sum((w - 1) ** 2), lambda u, w, _: jnp.sum((w - u) ** 2)
    )
    with pytest.raises(ValueError, match="make it with `on_network"):
        bilevel.solve(plain, method, start, start, num_steps=1)
    network = on_network(problem, 3)
    with pytest.raises(ValueError, match=r"`w0` needs the 3 agents.*got the shape \(2, 3\)"):
        method.init(network, replicate(start, 3), replicate(start, 2), jax.random.key(0))
    wrapped = bilevel.penalised(network, lambda u: jnp.sum(u**2), 0.1)
    jax.eval_shape(lambda u: method.init(wrapped, u, u, jax.random.key(0)).u, replicate(start, 3))


def test_other_calls_are_refused():
    with pytest.raises(ValueError, match="needs a number or a schedule as outer_step"):
        GossipSOBA(ring(3), 0.1, 0.1, "auto")
    with pytest.raises(ValueError, match=r"`outer_data` needs the rows as axis 0 and the 4 agents"):
        on_network(problem_of(0, 3)[0], 4)
