"""The settings of a training run as the outer variable: its rate, its momentum, its start."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar, Shaped

from .._arrays import take_rows
from .._problem import BilevelProblem, FixedPointProblem
from ._meta import Episodes
from .models import Loss, Predict, check_shape, row_losses, softmax_cross_entropy


class Descent(NamedTuple):
    """What a run of gradient descent with momentum carries: the parameters and their velocity."""

    parameters: PyTree[Array]
    velocity: PyTree[Array]


class DescentSettings(NamedTuple):
    """The outer variable of `learning_rate`: the rate is `exp(log_rate)`.

    The momentum is `sigmoid(logit_momentum)`, in (0, 1).
    """

    log_rate: Array
    logit_momentum: Array


class _MeanLoss(eqx.Module):
    predict: Predict
    loss: Loss

    def __call__(self, w: PyTree, batch: tuple[Array, Array]) -> Array:
        x, y = batch
        return jnp.mean(row_losses(self.loss, self.predict(w, x), y))


class _HeavyBall(eqx.Module):
    risk: _MeanLoss

    def __call__(self, u: DescentSettings, w: Descent, batch: tuple[Array, Array]) -> Descent:
        rate, momentum = jnp.exp(u.log_rate), jax.nn.sigmoid(u.logit_momentum)
        slope = jax.grad(self.risk)(w.parameters, batch)
        velocity = jax.tree.map(lambda v, g: momentum * v - rate * g, w.velocity, slope)
        return Descent(optax.tree.add(w.parameters, velocity), velocity)


class _OfParameters(eqx.Module):
    risk: _MeanLoss

    def __call__(self, u: Any, w: Descent, batch: tuple[Array, Array]) -> Array:
        del u
        return self.risk(w.parameters, batch)


def learning_rate(
    X: Shaped[Array, "rows ..."],
    y: Shaped[Array, " rows"],
    X_val: Shaped[Array, "val ..."],
    y_val: Shaped[Array, " val"],
    predict: Predict,
    *,
    loss: Loss = softmax_cross_entropy,
) -> FixedPointProblem:
    """The learning rate and the momentum of a training run, judged by where T steps of it end.

        map(u, (p, m)) = (p + m', m'),    m' = sigmoid(u2) m - exp(u1) grad_p L(p)
        L(p) = mean_i l(predict(p, x_i), y_i)                                    (training rows)
        F(u, (p, m)) = mean_j l(predict(p, x_j), y_j)                            (validation rows)

    Args:
        X, y: the training rows. With a sampler, each step of the run sees one batch.
        X_val, y_val: held-out rows.
        predict: the model, `(parameters, rows) -> predictions`, see `models.Model`.
        loss: `(predictions, y) -> one loss per row`.

    `u` is `DescentSettings(log_rate, logit_momentum)`, and w starts at
    `Descent(parameters, zeros like them)`. The outer variable is no part of a loss: the run itself
    depends on it, so only `ITD` applies, with `GradientInner(optax.sgd(1.0), T)` (which iterates the
    map T times) in a cold `DoubleLoop`. At the fixed point F does not depend on u, and an implicit
    gradient is zero: what is tuned is where T steps lead. The best rate is usually at the edge of
    stability; beyond it F grows without bounds, so take small outer steps. `ITD("forward")` costs two
    runs, for two numbers, and its memory does not grow with T.

    Source: Franceschi, Donini, Frasconi and Pontil (2017), "Forward and reverse gradient-based
    hyperparameter optimization", which has this run as its dynamics [franceschi2017][].

    >>> import jax.numpy as jnp
    >>> from bilevel.tasks import models
    >>> X, y = jnp.eye(2), jnp.array([0, 1])
    >>> model = models.linear_model(2, 2, bias=False)
    >>> problem = learning_rate(X, y, X, y, model.predict)
    >>> u = DescentSettings(jnp.zeros(()), jnp.zeros(()))
    >>> w = Descent(model.w0, {"weight": jnp.zeros((2, 2))})
    >>> problem.map(u, w, (X, y)).parameters["weight"].tolist()
    [[0.25, -0.25], [-0.25, 0.25]]
    """
    risk = _MeanLoss(predict, loss)
    return FixedPointProblem(_OfParameters(risk), _HeavyBall(risk), (X_val, y_val), (X, y))


class _FromStart(eqx.Module):
    """The loss of each task at its displacement from the start that they share."""

    risk: _MeanLoss
    scale: float
    num_tasks: int

    def __call__(self, u: PyTree, w: PyTree, batch: tuple[Array, Array, Array]) -> Scalar:
        x, y, task = batch
        for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(w), strict=True):
            check_shape("w", b, (self.num_tasks, *a.shape), "a displacement of u for each task")

        def one(shift: PyTree, x: Array, y: Array) -> Array:
            return self.risk(optax.tree.add(u, shift), (x, y))

        return self.scale * jnp.mean(jax.vmap(one)(take_rows(w, task), x, y))


def initialisation(
    tasks: Episodes, predict: Predict, *, loss: Loss = softmax_cross_entropy
) -> BilevelProblem:
    """The start of training as the outer variable (MAML), judged on the query rows of many tasks.

        f(u, w) = sum_t mean_{i in support of t} l(predict(u + w_t, x_i), y_i)
        F(u, w) = mean_t mean_{i in query of t}  l(predict(u + w_t, x_i), y_i)

    Args:
        tasks: the tasks, `episodes(...)`.
        predict: the model, `(parameters, rows) -> logits`, see `models.Model`.
        loss: `(logits, y) -> one loss per row`.

    `u` are the parameters at which training starts, and w holds the *displacement* of each task from
    there, along a new axis 0; it starts at zero. T gradient steps on f from w = 0 are T steps of each
    task's own training from u, so a cold `DoubleLoop(GradientInner(optax.sgd(rate), T), ITD(), tx)`
    is MAML with T inner steps, its second derivatives included. `AID` does not apply: at a minimum
    the start does not matter.

    Source: Finn, Abbeel and Levine (2017), "Model-agnostic meta-learning for fast adaptation of deep
    networks", Algorithm 1 [finn2017][], on all tasks in each step. An outer sampler over
    tasks judges some of them; all are trained.

    >>> import numpy as np, jax.numpy as jnp
    >>> from bilevel.tasks import episodes, models
    >>> rows = np.eye(4), np.array([0, 0, 1, 1])
    >>> few = episodes(*rows, ways=2, shots=1, queries=1, num_tasks=3)
    >>> model = models.linear_model(4, 2, bias=False)
    >>> problem = initialisation(few, model.predict)
    >>> w0 = {"weight": jnp.zeros((3, 2, 4))}
    >>> round(float(problem.outer(model.w0, w0, problem.outer_data)), 4)
    0.6931
    """
    num_tasks, risk = len(tasks.support_y), _MeanLoss(predict, loss)
    task = jnp.arange(num_tasks)
    return BilevelProblem(
        outer=_FromStart(risk, 1.0, num_tasks),
        inner=_FromStart(risk, float(num_tasks), num_tasks),
        outer_data=(tasks.query_x, tasks.query_y, task),
        inner_data=(tasks.support_x, tasks.support_y, task),
    )
