"""Residual nets as a `Model`: ResNet-18, which the paper cleans data with, and smaller ones.

He, Zhang, Ren and Sun (2016), "Deep residual learning for image recognition" [he2016][], with the stem
for small images: a 3 x 3 convolution, then stages of blocks with 1, 2, 4, ... times `width` channels.
Group normalisation takes the place of batch normalisation, because running averages are not a function
of the parameters, and because the training mode of batch normalisation couples the rows of a batch.
The number of parameters is the same.
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
    return eqx.nn.GroupNorm(max(1, channels // 8), channels)


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

    def __init__(
        self,
        channels: int,
        outputs: int,
        width: int,
        stages: int,
        depth: int,
        key: Key[Array, ""],
    ):
        keys = jr.split(key, 2 + stages * depth)
        self.stem, self.stem_norm = convolution(3, channels, width, 1, keys[0]), norm(width)
        self.blocks, inputs = [], width
        for k in range(stages * depth):
            size = width * 2 ** (k // depth)
            stride = 2 if k and k % depth == 0 else 1
            self.blocks.append(Block(inputs, size, stride, keys[1 + k]))
            inputs = size
        self.head = eqx.nn.Linear(inputs, outputs, key=keys[-1])

    def features(self, image: Array) -> Array:
        """The channel means that the head is linear in."""
        hidden = jax.nn.relu(self.stem_norm(self.stem(image)))
        for block in self.blocks:
            hidden = block(hidden)
        return jnp.mean(hidden, axis=(1, 2))

    def __call__(self, image: Array) -> Array:
        return self.head(self.features(image))


def resnet(
    channels: int,
    side: int,
    outputs: int,
    *,
    key: Key[Array, ""],
    width: int = 64,
    stages: int = 4,
    depth: int = 2,
) -> tasks.models.Model:
    """For rows of `side * side * channels` pixels, channels last; `stages` of `depth` blocks.

    The defaults are ResNet-18, with 11173962 parameters for colours and ten classes.
    """
    net = ResNet(channels, outputs, width, stages, depth, key)
    w0, static = eqx.partition(net, eqx.is_array)

    def predict(w: PyTree, x: Float[Array, "batch features"]) -> Float[Array, "batch outputs"]:
        images = jnp.moveaxis(x.reshape(-1, side, side, channels), -1, 1)
        return jax.vmap(eqx.combine(w, static))(images)

    return tasks.models.Model(w0, predict)


def representation(
    channels: int, *, key: Key[Array, ""], width: int = 64, stages: int = 4, depth: int = 2
) -> tasks.models.Representation:
    """The features of a `resnet` for images `(height, width, channels)`, whatever their size."""
    net = ResNet(channels, 1, width, stages, depth, key)
    u0, static = eqx.partition(net, eqx.is_array)

    def features(u: PyTree, x: Float[Array, "rows ..."]) -> Float[Array, "rows features"]:
        images = jnp.moveaxis(x.reshape(*x.shape[:3], channels), -1, 1)
        return jax.vmap(eqx.combine(u, static).features)(images)

    return tasks.models.Representation(u0, features)
