"""Noisy images, and a small convolutional network with its training, as `network_weights.py` needs."""

from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits

from bilevel import datasets, tasks
from bilevel.tasks.models import softmax_cross_entropy

CLASSES, RATE = 10, 0.4  # the share of wrong labels
BATCH, STEP, L2 = 64, 2e-3, 1e-4  # the step of Adam


class Size(NamedTuple):
    """How much of everything."""

    rows: int
    steps: int  # of every training run, and of every search
    width: int  # filters per layer
    test: int


class Cell(NamedTuple):
    """One draw: training rows with given labels, trusted rows and test rows; and the truth."""

    x: np.ndarray
    given: np.ndarray
    wrong: np.ndarray
    x_trusted: np.ndarray
    y_trusted: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def draw(data: str, noise: str, trusted: int, seed: int, size: Size) -> Cell:
    """Rows of a seeded permutation; test rows are the official ones, where there are any."""
    x, y, x_test, y_test = images(data)
    order = np.random.default_rng(seed).permutation(len(y))
    train, verified = order[: size.rows], order[size.rows : size.rows + trusted]
    if x_test is None:
        x_test, y_test = x[order[-size.test :]], y[order[-size.test :]]
    if noise == "pairs":
        given, wrong = datasets.flip_to_next(y[train], RATE, seed=seed)
    else:
        flat = x[train].reshape(size.rows, -1)
        given, wrong = datasets.flip_by_features(flat, y[train], RATE, seed=seed)
    return Cell(x[train], given, wrong, x[verified], y[verified], x_test, y_test)


@cache
def images(data: str) -> tuple[Any, Any, Any, Any]:
    """Pixels in [0, 1] and labels: of training and of test images, where these are apart."""
    if data == "digits":
        x, y = load_digits(return_X_y=True)
        return (x / 16).reshape(-1, 8, 8).astype(np.float32), y.astype(np.int32), None, None
    read = getattr(datasets, data)

    def halved(part: str) -> tuple[np.ndarray, np.ndarray]:
        found = read(part)
        x = found.images.reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
        return x.astype(np.float32), found.labels.astype(np.int32)

    return *halved("train"), *halved("test")


def network(shape: tuple[int, ...], width: int, seed: int) -> tasks.models.Model:
    """Two convolutional blocks and a linear layer."""
    net = tasks.models.conv4(shape, key=jax.random.key(seed), width=width, blocks=2)
    head = tasks.models.linear_model(width * (shape[0] // 4) * (shape[1] // 4), CLASSES)
    return tasks.models.Model({"body": net.u0, "head": head.w0}, _predictor(shape, width))


_predictors: dict[Any, Any] = {}  # one function per network, so that runs share a compilation


def _predictor(shape: tuple[int, ...], width: int) -> Any:
    if (shape, width) not in _predictors:
        features = tasks.models.conv4(shape, key=jax.random.key(0), width=width, blocks=2).features
        head = tasks.models.linear_model(1, CLASSES).predict
        _predictors[shape, width] = lambda w, x: head(w["head"], features(w["body"], x))
    return _predictors[shape, width]


@eqx.filter_jit
def _descend(predict: Any, w: Any, batches: Any) -> Any:
    tx = optax.adam(optax.cosine_decay_schedule(STEP, len(batches[0])))

    def loss(w: Any, batch: Any) -> Any:
        x, y, weight = batch
        risk = jnp.mean(weight * softmax_cross_entropy(predict(w, x), y))
        return risk + L2 / 2 * optax.tree.norm(w, squared=True)

    def step(carry: Any, batch: Any) -> Any:
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w, batch), state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (w, tx.init(w)), batches)[0][0]


TRAINED: list[int] = []  # gradients of rows of each training run so far


def train(model: tasks.models.Model, x: Any, y: Any, weight: Any, steps: int, seed: int) -> Any:
    """Epochs over the rows that have weight, a fixed number of steps; weights have mean 1.

    The batches are gathered before, so that data of any size share a compilation.
    """
    rng, rows = np.random.default_rng(seed), np.flatnonzero(weight > 0)
    epochs = -(-steps * BATCH // len(rows))
    order = np.concatenate([rng.permutation(rows) for _ in range(epochs)])[: steps * BATCH]
    order = order.reshape(steps, BATCH)
    TRAINED.append(order.size)
    scaled = (weight / weight[rows].mean()).astype(np.float32)
    batches = x[order], y[order].astype(np.int32), scaled[order]
    return _descend(model.predict, model.w0, jax.tree.map(jnp.asarray, batches))


@eqx.filter_jit
def logits(predict: Any, w: Any, x: Any) -> Any:
    return predict(w, x)


def probabilities(predict: Any, w: Any, x: np.ndarray) -> np.ndarray:
    """Of the classes."""
    parts = [logits(predict, w, jnp.asarray(x[i : i + 2000])) for i in range(0, len(x), 2000)]
    return np.asarray(jax.nn.softmax(jnp.concatenate(parts)), np.float64)


class NetworkClassifier(ClassifierMixin, BaseEstimator):
    """The network as an estimator of scikit-learn."""

    def __init__(self, shape: Any = (14, 14), width: int = 12, steps: int = 1000, seed: int = 0):
        self.shape, self.width, self.steps, self.seed = shape, width, steps, seed

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "NetworkClassifier":
        """Train it from scratch."""
        self.classes_, codes = np.unique(y, return_inverse=True)
        weight = np.ones(len(codes)) if sample_weight is None else np.asarray(sample_weight)
        self.model_ = network(self.shape, self.width, self.seed)
        rows = np.asarray(X, np.float32).reshape(-1, *self.shape)
        self.w_ = train(self.model_, rows, codes, weight, self.steps, self.seed)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Of the classes that it has seen."""
        rows = np.asarray(X, np.float32).reshape(-1, *self.shape)
        p = probabilities(self.model_.predict, self.w_, rows)[:, : len(self.classes_)]
        return p / p.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class."""
        return self.classes_[self.predict_proba(X).argmax(1)]
