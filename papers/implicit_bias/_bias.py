"""What several scripts of this folder share: a run as one scan, a watched run, a relative distance."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import bilevel


class ErrorRate(eqx.Module):
    """The share of the original rows that a model puts into the wrong class."""

    predict: Any
    X: jax.Array
    y: jax.Array

    def __call__(self, u: Any, w: Any) -> jax.Array:
        return jnp.mean(jnp.argmax(self.predict(w, self.X), axis=1) != self.y)


class Watch(bilevel.Trajectory):
    """A trajectory that also keeps the model and its accuracy, after every `every`-th chunk.

    `labels` are the soft labels after each chunk, if the outer variable has any.
    """

    def __init__(self, error: ErrorRate, every: int = 1):
        super().__init__()
        self.error, self.accuracy, self.ws = eqx.filter_jit(error), [], []
        self.every, self.chunks, self.labels = every, 0, []

    def __call__(self, chunk):
        self.chunks += 1
        u = chunk.state.u
        if isinstance(u, dict) and "labels" in u:
            self.labels.append(np.asarray(jax.nn.softmax(u["labels"], axis=1)))
        if self.chunks % self.every:
            return
        super().__call__(chunk)
        self.accuracy.append(1 - float(self.error(chunk.state.u, chunk.state.w)))
        self.ws.append(jax.tree.map(np.asarray, chunk.state.w))


def rollout(problem: Any, method: Any, u0: Any, w0: Any, num_steps: int) -> tuple[Any, Any]:
    """The outer and the inner variable after each step, stacked."""

    def step(state, _):
        state, _ = method.step(problem, state)
        return state, (state.u, state.w)

    first = method.init(problem, u0, w0, jax.random.key(0))
    return jax.lax.scan(step, first, length=num_steps)[1]


def hypergradient(problem: Any, estimator: Any, inner: Any, u: Any, w: Any) -> jax.Array:
    """One full-batch hypergradient, with the inner solver started at `w`."""
    streams = bilevel.Streams(
        *(
            bilevel.Stream(bilevel.FullBatch(), data, ())
            for data in (problem.outer_data, problem.inner_data)
        )
    )
    state = estimator.init(problem, inner, u, w)
    return estimator.estimate(problem, inner, u, w, state, streams)[0].grad


def distance(one: Any, other: Any) -> Any:
    """`|one - other| / |other|`."""
    return jnp.linalg.norm(one - other) / jnp.linalg.norm(other)
