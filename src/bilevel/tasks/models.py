"""Models and losses for the tasks: pairs of starting parameters and a function, and losses per row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from ._equilibrium_model import EquilibriumModel, FixedPoints, contracted, equilibrium_model

__all__ = [
    "EquilibriumModel",
    "FixedPoints",
    "Kernel",
    "Loss",
    "Model",
    "Predict",
    "Represent",
    "Representation",
    "augment",
    "contracted",
    "conv4",
    "equilibrium_model",
    "linear_model",
    "linear_predict",
    "logistic_loss",
    "mlp_model",
    "mlp_representation",
    "one_hot_error",
    "rbf_kernel",
    "soft_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
]

Predict = Callable[[PyTree, Array], Array]
Loss = Callable[[Array, Array], Array]
Represent = Callable[[PyTree, Array], Array]
Kernel = Callable[[PyTree, Array, Array], Array]


class Model(NamedTuple):
    """A differentiable model: its starting parameters and its prediction function.

    `predict(w, x)` maps parameters and rows `(batch, features)` to `(batch, outputs)`, which are
    logits or predicted targets. Any such pair is a model; the functions below make the usual ones.
    """

    w0: PyTree[Array]
    predict: Predict


def linear_model(num_features: int, num_outputs: int, *, bias: bool = True) -> Model:
    """The linear model `x -> W x + b`, which starts at zero.

    The weight matrix is stored class-major, `(outputs, features)`, so that the two products of a
    training step, `W @ x.T` and `E @ x`, both stream the rows of `x`. On a CPU this is faster than
    the transposed layout.
    """
    w0 = {"weight": jnp.zeros((num_outputs, num_features))}
    if bias:
        w0["bias"] = jnp.zeros(num_outputs)
    return Model(w0, _affine)


def _affine(
    w: dict[str, Array], x: Float[Array, "batch features"]
) -> Float[Array, "batch outputs"]:
    outputs = w["weight"] @ x.T
    if "bias" in w:
        outputs = outputs + w["bias"][:, None]
    return outputs.T


def linear_predict(
    w: Float[Array, " features"], x: Float[Array, "batch features"]
) -> Float[Array, "batch 1"]:
    """`x'w` per row: the model of `ridge` and `logistic`, for builders that accept any model."""
    return (x @ w)[:, None]


def mlp_model(
    num_features: int,
    num_outputs: int,
    *,
    key: Key[Array, ""],
    width: int = 32,
    depth: int = 1,
) -> Model:
    """A multi-layer perceptron with tanh units (so that the inner objective is smooth).

    Args:
        num_features, num_outputs: sizes of a row and of a prediction.
        key: for the initial parameters (zero parameters would be a stationary point).
        width: units per hidden layer.
        depth: hidden layers.
    """
    net = eqx.nn.MLP(num_features, num_outputs, width, depth, activation=jnp.tanh, key=key)
    w0, static = eqx.partition(net, eqx.is_array)

    def predict(w: PyTree, x: Float[Array, "batch features"]) -> Float[Array, "batch outputs"]:
        return jax.vmap(eqx.combine(w, static))(x)

    return Model(w0, predict)


class Representation(NamedTuple):
    """Initial parameters, and `features(u, rows)` of shape `(rows, features)`."""

    u0: PyTree[Array]
    features: Represent


def mlp_representation(
    num_inputs: int,
    num_features: int,
    *,
    key: Key[Array, ""],
    width: int = 64,
    depth: int = 1,
) -> Representation:
    """A perceptron with `depth` hidden tanh layers, on rows of any shape, which are flattened."""
    net = eqx.nn.MLP(num_inputs, num_features, width, depth, activation=jnp.tanh, key=key)
    u0, static = eqx.partition(net, eqx.is_array)

    def features(u: PyTree, x: Shaped[Array, "rows ..."]) -> Float[Array, "rows features"]:
        return jax.vmap(eqx.combine(u, static))(x.reshape(x.shape[0], -1))

    return Representation(u0, features)


class _Conv4(eqx.Module):
    convolutions: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.GroupNorm]

    def __call__(self, x: Float[Array, "channels height width"]) -> Float[Array, " features"]:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = _pool(jax.nn.relu(norm(convolution(x))))
        return x.reshape(-1)


def _pool(
    x: Float[Array, "channels height width"],
) -> Float[Array, "channels half_height half_width"]:
    # A maximum over reshaped axes, because the derivative of a windowed maximum is slow on a CPU.
    channels, height, width = x.shape[0], x.shape[1] // 2, x.shape[2] // 2
    cut = x[:, : 2 * height, : 2 * width].reshape(channels, height, 2, width, 2)
    rows = _larger(cut[:, :, 0], cut[:, :, 1])
    return _larger(rows[..., 0], rows[..., 1])


def _larger(x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # Not a maximum of JAX: its derivative looks for the entries that equal the maximum. Where the
    # compiler computes them twice, rounded in two ways, none does, and the derivative is 0 or NaN.
    return jnp.where(x > y, x, jnp.where(x < y, y, x / 2 + y / 2))


def conv4(
    shape: tuple[int, ...],
    *,
    key: Key[Array, ""],
    width: int = 64,
    blocks: int = 4,
    groups: int = 1,
) -> Representation:
    """The convolutional net of the few-shot literature: four blocks with 3 x 3 filters.

    A block is a convolution, a normalisation, a relu and 2 x 2 max-pooling.

    Args:
        shape: the shape of an image, `(height, width)` or `(channels, height, width)`.
        key: for the initial parameters.
        width: filters per block; 64 in the literature.
        blocks: the number of blocks. Each halves height and width, rounding down; four blocks need
            16 pixels. There are `width * (height >> blocks) * (breadth >> blocks)` features: 64 for
            28 x 28 images.
        groups: the number of groups of the group normalisation.

    Raises:
        ValueError: the images are too small for the blocks, or `groups` does not divide `width`.

    Source: Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra (2016), "Matching networks for
    one shot learning" [vinyals2016][]; Li, Gu and Huang (2020), "Improved bilevel model: Fast and
    optimal algorithm with theoretical guarantee", appendix C.2 [li2020][]. Departure: the
    normalisation is over the channels and pixels of *one* image (GroupNorm; with one group it is
    LayerNorm) and not over a batch. The representation is then a function of the row alone, and f
    and F are functions of (u, w) only.
    """
    channels, height, breadth = (1, *shape) if len(shape) == 2 else shape
    if min(height, breadth) < 2**blocks:
        raise ValueError(
            f"{blocks} blocks halve an image {blocks} times, which needs {2**blocks} pixels a side, "
            f"got {height} x {breadth}; use fewer `blocks`."
        )
    if width % groups:
        raise ValueError(f"`groups`={groups} must divide `width`={width}.")
    sizes = [channels, *[width] * blocks]
    keys = jax.random.split(key, blocks)
    net = _Conv4(
        [eqx.nn.Conv2d(sizes[k], width, 3, padding=1, key=keys[k]) for k in range(blocks)],
        [eqx.nn.GroupNorm(groups, width) for _ in range(blocks)],
    )
    u0, static = eqx.partition(net, eqx.is_array)

    def features(u: PyTree, x: Shaped[Array, "rows ..."]) -> Float[Array, "rows features"]:
        images = x.reshape(x.shape[0], channels, height, breadth)
        return jax.vmap(eqx.combine(u, static))(images)

    return Representation(u0, features)


def augment(
    u: dict[str, Array], x: Float[Array, "batch features"]
) -> Float[Array, "batch features"]:
    """The linear augmentation network `x A^T + b`, with `u = {"matrix": A, "bias": b}`."""
    return x @ u["matrix"].T + u["bias"][None]


def rbf_kernel(
    log_scale: Float[Array, "*features"],
    a: Float[Array, "a features"],
    b: Float[Array, "b features"],
) -> Float[Array, "a b"]:
    """`exp(-1/2 sum_j (a_j - b_j)^2 / l_j^2)`, `l = exp(log_scale)`.

    One length-scale, of shape `()`, gives scikit-learn's `rbf` with `gamma = 1 / (2 l^2)`. One
    length-scale per feature is automatic relevance determination (ARD): l_j of an irrelevant
    feature grows.

    >>> import jax.numpy as jnp
    >>> a = jnp.array([[0.0], [2.0]])
    >>> rbf_kernel(jnp.log(2.0), a, a).round(3).tolist()[1][1]
    1.0
    """
    scale = jnp.broadcast_to(jnp.exp(-log_scale), a.shape[1:])
    a, b = a * scale[None, :], b * scale[None, :]
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :]
    return jnp.exp(a @ b.T - 0.5 * squares)


def row_losses(
    loss: Loss, prediction: PyTree[Array], y: PyTree[Shaped[Array, "batch ..."]]
) -> Float[Array, " batch"]:
    """`loss(prediction, y)`, which must be one number per row.

    Others broadcast against weights of rows, or against each other, without an error: a vector and a
    column make a matrix.

    Raises:
        ValueError: at trace time, with the shapes.
    """
    losses = loss(prediction, y)
    shapes = [jnp.shape(x) for x in jax.tree.leaves((prediction, y))]
    if jnp.shape(losses) != shapes[-1][:1]:
        raise ValueError(
            f"`loss` must return one number per row, shape {shapes[-1][:1]}, got shape "
            f"{jnp.shape(losses)} from predictions of shape {shapes[0]} and labels of shape "
            f"{shapes[-1]}. Pass labels that are a column as `y[:, 0]`; leave out a mean over rows."
        )
    return losses


def check_shape(name: str, x: Any, shape: tuple[int, ...], meaning: str) -> None:
    """Refuse a variable of another shape: it would broadcast, or have no entry for some rows.

    Raises:
        ValueError: at trace time, with the shapes.
    """
    if jnp.shape(x) != shape:
        raise ValueError(f"`{name}` must have {meaning}, shape {shape}, got shape {jnp.shape(x)}.")


def unless(
    valid: Bool[Array, " batch"], values: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """The values; NaN, with NaN derivatives, in rows whose label is none. It would not be noticed."""
    rows = jnp.expand_dims(valid, tuple(range(1, values.ndim)))
    return values * jnp.where(rows, 1, jnp.nan).astype(values.dtype)


def codes_of(y: Shaped[Array, " batch"], classes: int) -> tuple[Int[Array, " batch"], Array]:
    """(labels in a type that has all codes, whether each is one)."""
    codes = y.astype(jnp.int32)
    return codes, (codes >= 0) & (codes < classes) & (codes.astype(y.dtype) == y)


def softmax_cross_entropy(
    logits: Float[Array, "batch classes"], y: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """`log sum_k exp(z_k) - z_y` per row, for labels 0, 1, ..., classes - 1; others give NaN.

    It is computed class-major, `(classes, batch)`: reductions over a short last axis, and the
    gather and scatter of an indexed label, cost more on a CPU than the matrix products around them.
    """
    z = logits.T
    codes, valid = codes_of(y, z.shape[0])
    label = jnp.arange(z.shape[0], dtype=jnp.int32)[:, None] == codes[None, :]
    losses = jax.nn.logsumexp(z, axis=0) - jnp.sum(jnp.where(label, z, 0), axis=0)
    return unless(valid, losses)


def soft_cross_entropy(
    logits: Float[Array, "batch classes"], target: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """`-sum_k t_k log softmax(z)_k` per row, for targets that are probabilities."""
    return optax.softmax_cross_entropy(logits, target)


def one_hot_error(
    prediction: Float[Array, "batch classes"], y: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """`|z - e_y|^2 / 2` per row: least squares on one-hot labels 0, 1, ...; others give NaN."""
    codes, valid = codes_of(y, prediction.shape[1])
    one_hot = jax.nn.one_hot(codes, prediction.shape[1], dtype=prediction.dtype)
    return unless(valid, 0.5 * jnp.sum((prediction - one_hot) ** 2, 1))


def logistic_loss(
    prediction: Float[Array, "batch outputs"], y: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """`log(1 + exp(-y z))` per row, for labels in {-1, 1} and models with one output z.

    Other labels give NaN.
    """
    return unless(jnp.abs(y) == 1, jax.nn.softplus(-y * prediction[:, 0]))


def squared_error(
    prediction: Float[Array, "batch outputs"], y: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """`(prediction - y)^2 / 2` per row, for models with one output."""
    return 0.5 * (prediction[:, 0] - y) ** 2


def check_labels(loss: Loss | None, **labels: Any) -> None:
    """Refuse labels that a loss of ours does not take; it makes NaN of codes above all classes."""
    for name, y in labels.items():
        if loss is logistic_loss:
            signs(name, y, jnp.float32)
        elif loss in (softmax_cross_entropy, one_hot_error) and not isinstance(y, Tracer):
            given = np.unique(np.asarray(y))
            others = given[~((given >= 0) & (given == np.floor(given)))]
            if others.size:
                raise ValueError(
                    f"`{name}` must hold class codes 0, 1, ..., got {others[:5].tolist()} among them; "
                    "`numpy.unique(labels, return_inverse=True)` gives the classes and such codes."
                )


def signs(name: str, y: Array, dtype: Any) -> Array:
    if not isinstance(y, Tracer):
        others = np.setdiff1d(np.asarray(y), [-1, 1])
        if others.size:
            raise ValueError(
                f"`{name}` must hold labels in {{-1, 1}}, got {others[:5].tolist()} among them; of "
                "labels in {0, 1} pass `2 * y - 1`. For more classes use `tensor_penalties`."
            )
    return jnp.asarray(y, dtype)
