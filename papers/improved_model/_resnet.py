"""ResNet-18, the model of the paper's cleaning experiments, as a `tasks.Model`. It is not run there.

He, Zhang, Ren & Sun (2016), with the stem for small images: a 3 x 3 convolution, then four stages of
two blocks with 1, 2, 4 and 8 times `width` channels. Group normalisation takes the place of batch
normalisation, whose running averages are no function of the parameters and whose training mode ties
the rows of a batch together; the number of parameters is the same.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree

from bilevel import tasks


def convolution(size: int, inputs: int, outputs: int, stride: int, key: Key[Array, ""]):
    return eqx.nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, use_bias=False, key=key)


def norm(channels: int) -> eqx.nn.GroupNorm:
    return eqx.nn.GroupNorm(min(32, channels), channels)


class Block(eqx.Module):
    """`relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))`."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    first_norm: eqx.nn.GroupNorm
    second_norm: eqx.nn.GroupNorm
    shortcut: eqx.nn.Sequential | eqx.nn.Identity

    def __init__(self, inputs: int, outputs: int, stride: int, key: Key[Array, ""]):
        keys = jr.split(key, 3)
        self.first = convolution(3, inputs, outputs, stride, keys[0])
        self.second = convolution(3, outputs, outputs, 1, keys[1])
        self.first_norm, self.second_norm = norm(outputs), norm(outputs)
        self.shortcut = eqx.nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = convolution(1, inputs, outputs, stride, keys[2])
            self.shortcut = eqx.nn.Sequential([projection, norm(outputs)])

    def __call__(self, x: Array) -> Array:
        hidden = jax.nn.relu(self.first_norm(self.first(x)))
        return jax.nn.relu(self.second_norm(self.second(hidden)) + self.shortcut(x))


class ResNet(eqx.Module):
    """An image `(channels, side, side)` to logits."""

    stem: eqx.nn.Conv2d
    stem_norm: eqx.nn.GroupNorm
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, channels: int, outputs: int, width: int, key: Key[Array, ""]):
        keys = jr.split(key, 10)
        self.stem, self.stem_norm = convolution(3, channels, width, 1, keys[0]), norm(width)
        self.blocks, inputs = [], width
        for k in range(8):
            size = width * 2 ** (k // 2)
            stride = 2 if k in (2, 4, 6) else 1
            self.blocks.append(Block(inputs, size, stride, keys[1 + k]))
            inputs = size
        self.head = eqx.nn.Linear(inputs, outputs, key=keys[9])

    def __call__(self, image: Array) -> Array:
        hidden = jax.nn.relu(self.stem_norm(self.stem(image)))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(jnp.mean(hidden, axis=(1, 2)))


def resnet18(
    channels: int, side: int, outputs: int, *, key: Key[Array, ""], width: int = 64
) -> tasks.Model:
    """For rows of `side * side * channels` pixels, channels last. 11173962 parameters for colours."""
    w0, static = eqx.partition(ResNet(channels, outputs, width, key), eqx.is_array)

    def predict(w: PyTree, x: Float[Array, "batch features"]) -> Float[Array, "batch outputs"]:
        images = jnp.moveaxis(x.reshape(-1, side, side, channels), -1, 1)
        return jax.vmap(eqx.combine(w, static))(images)

    return tasks.Model(w0, predict)
