"""The weights of one step: Meta-Weight-Net as a bilevel problem, and a step of L2RW.

Shu et al. (2019), "Meta-weight-net: Learning an explicit mapping for sample weighting" [shu2019][];
Ren et al. (2018), "Learning to reweight examples for robust deep learning" [ren2018][].
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from _small_network import L2, STEP

from bilevel.tasks.models import softmax_cross_entropy

WIDTH = 100  # of the network of the weights
ADAM = optax.adam(STEP, eps_root=1e-10)  # the root, as the derivative of a step needs it


class Scored(eqx.Module):
    """The inner objective of MW-Net: a row weighs `V(its loss)`, which carries no slope in w."""

    predict: Any

    def __call__(self, u: Any, w: Any, batch: Any) -> Any:
        x, y, _ = batch
        losses = softmax_cross_entropy(self.predict(w, x), y)
        weights = weigh(u, jax.lax.stop_gradient(losses))
        risk = jnp.mean(weights * losses) / jnp.mean(weights)
        return risk + L2 / 2 * optax.tree.norm(w, squared=True)


def weigh(u: Any, losses: Any) -> Any:
    """V, one weight in (0, 1) per loss."""
    hidden = jax.nn.relu(losses[:, None] * u["in"][None] + u["bias"][None])
    return jax.nn.sigmoid(hidden @ u["out"] + u["last"])


def first_weights(key: Any) -> Any:
    """The parameters of V at the start."""
    one, other = jax.random.split(key)
    return {
        "in": jax.random.normal(one, (WIDTH,)),
        "bias": jnp.zeros(WIDTH),
        "out": jax.random.normal(other, (WIDTH,)) / WIDTH**0.5,
        "last": jnp.zeros(()),
    }


@eqx.filter_jit
def reweight(predict: Any, w: Any, train: Any, trusted: Any, orders: Any) -> Any:
    """Algorithm 1 of L2RW on these batches: the network, and the mean weight of each row.

    The derivative of the trusted loss in the weight of row i, after a virtual step of gradient descent
    from weights of zero, is minus `<grad F, grad loss_i>` times the length of the step.
    """
    (x, y), tx = train, ADAM

    def losses(w: Any, x: Any, y: Any) -> Any:
        return softmax_cross_entropy(predict(w, x), y)

    def step(carry: Any, drawn: Any) -> Any:
        w, state, total, visits = carry
        rows, seen = drawn
        mean = jax.grad(lambda w: jnp.mean(losses(w, trusted[0][seen], trusted[1][seen])))(w)
        # The virtual step starts from weights of zero, so it ends at w itself.
        slopes = jax.jvp(lambda w: losses(w, x[rows], y[rows]), (w,), (mean,))[1]
        positive = jnp.maximum(slopes, 0)
        weight = positive / jnp.maximum(jnp.sum(positive), 1e-12)
        gradient = jax.grad(lambda w: jnp.dot(weight, losses(w, x[rows], y[rows])))(w)
        updates, state = tx.update(gradient, state, w)
        total, visits = total.at[rows].add(weight), visits.at[rows].add(1)
        return (optax.apply_updates(w, updates), state, total, visits), None

    zero = jnp.zeros(len(y))
    w, _, total, visits = jax.lax.scan(step, (w, tx.init(w), zero, zero), orders)[0]
    return w, total / jnp.maximum(visits, 1)
