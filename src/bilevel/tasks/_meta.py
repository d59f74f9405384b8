"""Meta-learning: many small tasks share a representation, and each has a linear model of its own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from .._arrays import take_rows
from .._problem import BilevelProblem
from .models import Loss, Represent, check_shape, row_losses, softmax_cross_entropy

Rows = Shaped[Array | np.ndarray, "rows ..."]


class Episodes(NamedTuple):
    """Few-shot tasks along axis 0: support rows to fit a model on, and query rows to judge it by.

    `support_x` has shape `(tasks, ways * shots, *row)`, and `query_x` has `(tasks, ways * queries,
    *row)`. The labels `support_y` and `query_y` are 0 .. ways - 1 and have another meaning in each
    task.
    """

    support_x: Shaped[Array, "tasks support ..."]
    support_y: Int[Array, "tasks support"]
    query_x: Shaped[Array, "tasks query ..."]
    query_y: Int[Array, "tasks query"]


def episodes(
    X: Rows,
    y: Shaped[Array | np.ndarray, " rows"],
    *,
    ways: int,
    shots: int,
    queries: int,
    num_tasks: int,
    seed: int = 0,
    classes: Sequence[Any] | np.ndarray | None = None,
) -> Episodes:
    """Draw few-shot tasks ("N-way k-shot") from labelled rows.

    Each task takes `ways` random classes in random order, and `shots + queries` different rows of
    each. Tasks are independent of each other and may share rows.

    Args:
        X, y: rows of any shape, such as images, and their labels of any kind.
        ways, shots, queries: classes per task, support rows per class, query rows per class.
        num_tasks: the number of tasks.
        seed: the same seed gives the same tasks.
        classes: the classes to draw from, by default all in `y`. For meta-test, pass those held
            out.

    Raises:
        ValueError: there are fewer classes than `ways`, or a class has fewer than `shots + queries`
            rows.

    Source: Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra (2016), "Matching networks for
    one shot learning" [vinyals2016][].

    >>> found = episodes(np.arange(20), np.arange(20) % 4, ways=3, shots=1, queries=2, num_tasks=5)
    >>> found.support_x.shape, found.query_x.shape, found.query_y[0].tolist()
    ((5, 3), (5, 6), [0, 0, 1, 1, 2, 2])
    """
    if min(ways, shots, queries, num_tasks) < 1:
        raise ValueError(
            "`episodes` needs ways, shots, queries and num_tasks >= 1, got "
            f"{(ways, shots, queries, num_tasks)}."
        )
    labels, allowed = np.asarray(y), np.unique(np.asarray(y if classes is None else classes))
    if len(allowed) < ways:
        raise ValueError(f"`ways`={ways}, but there are {len(allowed)} classes to draw from.")
    members = [np.flatnonzero(labels == label) for label in allowed]
    for label, rows in zip(allowed, members, strict=True):
        if len(rows) < shots + queries:
            raise ValueError(
                f"a task needs shots + queries = {shots + queries} rows of a class, but class "
                f"{label} has {len(rows)}; ask for fewer, or leave the class out of `classes`."
            )
    rng = np.random.default_rng(seed)
    index = np.empty((num_tasks, ways, shots + queries), int)
    for task in index:
        for way, k in enumerate(rng.permutation(len(members))[:ways]):
            task[way] = rng.choice(members[k], shots + queries, replace=False)
    x = np.asarray(X)[index]

    def part(rows: slice) -> tuple[Array, Array]:
        chosen = x[:, :, rows]
        flat = chosen.reshape(num_tasks, -1, *x.shape[3:])
        code = np.repeat(np.arange(ways, dtype=np.int32), chosen.shape[2])
        return jnp.asarray(flat), jnp.asarray(np.tile(code, (num_tasks, 1)))

    return Episodes(*part(slice(shots)), *part(slice(shots, None)))


def rotated_classes(
    images: Shaped[np.ndarray, "rows size size ..."], y: Int[np.ndarray, " rows"]
) -> tuple[Shaped[np.ndarray, "_ size size ..."], Int[np.ndarray, " _"]]:
    """Four classes in place of each class: its images turned by 0, 90, 180 and 270 degrees.

    Quarter turn q of class c has the label `4 c + q`. Axes 1 and 2 of `images` are height and
    width.

    Source: Santoro, Bartunov, Botvinick, Wierstra and Lillicrap (2016), "Meta-learning with
    memory-augmented neural networks" [santoro2016][], for Omniglot; Li, Gu and Huang (2020),
    "Improved bilevel model: Fast and optimal algorithm with theoretical guarantee", appendix C.2
    [li2020][].

    >>> turned, labels = rotated_classes(np.arange(4).reshape(1, 2, 2), np.array([7]))
    >>> turned.reshape(4, 4).tolist(), labels.tolist()
    ([[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1]], [28, 29, 30, 31])
    """
    turned = [np.rot90(images, quarter, axes=(1, 2)) for quarter in range(4)]
    return np.concatenate(turned), np.concatenate([4 * y + quarter for quarter in range(4)])


# Modules, not closures: problems of new episodes of the same shapes share one compilation.
class SharedFeatures(eqx.Module):
    represent: Represent
    biased: bool

    def features(
        self, u: PyTree, x: Shaped[Array, "tasks rows ..."]
    ) -> Float[Array, "tasks rows features"]:
        tasks, rows = x.shape[:2]
        params = u["representation"] if self.biased else u
        return self.represent(params, x.reshape(-1, *x.shape[2:])).reshape(tasks, rows, -1)

    def from_centre(self, u: PyTree, w: Array) -> Array:
        if not self.biased:
            return w
        check_shape("u['bias']", u["bias"], w.shape[1:], "one entry for each way and feature")
        return w - u["bias"][None]


class _TaskRisk(eqx.Module):
    shared: SharedFeatures
    loss: Loss
    num_tasks: int

    def logits(self, u: PyTree, w: Array, batch: tuple[Array, Array, Array]) -> Array:
        if w.shape[0] != self.num_tasks:
            raise ValueError(
                f"`meta_learning` needs one model for each of its {self.num_tasks} tasks on axis 0 "
                f"of w, got {w.shape[0]}. `ClosedForm` knows the models of its batch only: use "
                "`FullBatch` with it, and draw new episodes between the steps."
            )
        x, _, i = batch
        return jnp.einsum("tkd,trd->trk", take_rows(w, i), self.shared.features(u, x))

    def __call__(self, u: PyTree, w: Array, batch: tuple[Array, Array, Array]) -> Array:
        logits = self.logits(u, w, batch)
        return jnp.mean(
            row_losses(self.loss, logits.reshape(-1, logits.shape[-1]), batch[1].reshape(-1))
        )


class SupportRisk(eqx.Module):
    risk: _TaskRisk
    l2: float

    def __call__(self, u: PyTree, w: Array, batch: tuple[Array, Array, Array]) -> Array:
        own = w[batch[2]]
        penalty = jnp.sum(self.risk.shared.from_centre(u, own) ** 2) / own.shape[0]
        return self.risk.num_tasks * (self.risk(u, w, batch) + 0.5 * self.l2 * penalty)


def meta_learning(
    represent: Represent,
    tasks: Episodes,
    *,
    loss: Loss = softmax_cross_entropy,
    outer_loss: Loss | None = None,
    l2: float = 1e-2,
    biased: bool = False,
) -> BilevelProblem:
    """A representation with which linear models do well on new rows of their task.

        f(u, w) = sum_t [ mean_{support of t} loss(w_t phi(x; u), y) + l2 / 2 |w_t|^2 ]
        F(u, w) = mean_t  mean_{query of t}  outer_loss(w_t phi(x; u), y)

    The inner problem is separable, with one model per task. With `one_hot_error` it is ridge
    regression.

    Args:
        represent: phi, any function `(params, rows) -> (rows, features)`, such as the `features` of
            `conv4` and `mlp_representation`. A constant feature makes the linear models affine.
        tasks: tasks from `episodes`, or your own of this shape.
        loss: `(logits, y) -> one loss per row`: `softmax_cross_entropy`, or `one_hot_error`, whose
            solution is the formula `meta_ridge_solution`.
        outer_loss: the loss of a query row; by default `loss`.
        l2: a value > 0 makes f strongly convex in w with this constant. With 0, f has many
            minimisers where there are more features than support rows.
        biased: whether the penalty is `l2 / 2 |w_t - b|^2` with a b that is learned too. This helps
            where label k means related things in all tasks. Between `episodes`, which number their
            classes at random, all rows of b are equal by symmetry.

    `u` is the `params` of the representation, or `{"representation": params, "bias": (ways,
    features)}` if biased; `w` is an array `(tasks, ways, features)`; start it from zeros.

    **Which tasks are in a batch.** The data have one row per task, which includes its number i, and
    the objectives look up `w[i]`. On any batch of tasks they are unbiased estimates. The inner and
    the outer sampler therefore need not draw the same tasks, and single-loop methods such as `SOBA`
    keep the models of a *fixed* set of tasks warm. To train on new tasks in every step, make a new
    problem from new `episodes` before each step of a cold-started `DoubleLoop` with the default
    `FullBatch` samplers, and pass the problem to the compiled step as an argument. Support and
    query rows then belong to the same tasks, and nothing compiles again as long as the shapes stay
    the same.

    Raises:
        ValueError: `l2` < 0; at trace time, w does not have one model per task.

    Source: Grazzi and Pontil, "Principled and efficient bilevel optimization for machine learning",
    section "Meta-learning" [grazzi2023][]; Franceschi, Frasconi, Salzo, Grazzi and Pontil (2018),
    "Bilevel programming for hyperparameter optimization and meta-learning" [franceschi2018][];
    ridge regression: Bertinetto, Henriques, Torr and Vedaldi (2019), "Meta-learning with
    differentiable closed-form solvers" [bertinetto2019][]; `biased`: Rajeswaran, Finn, Kakade and
    Levine (2019), "Meta-learning with implicit gradients" [rajeswaran2019][], and Denevi,
    Ciliberto, Grazzi and Pontil (2019), "Learning-to-learn stochastic gradient descent with biased
    regularization" [denevi2019][].

    >>> import jax.numpy as jnp
    >>> drawn = episodes(jnp.eye(6), np.arange(6) % 2, ways=2, shots=1, queries=2, num_tasks=3)
    >>> problem = meta_learning(lambda u, x: x * u[None], drawn)
    >>> value = problem.outer(jnp.ones(6), jnp.zeros((3, 2, 6)), problem.outer_data)
    >>> round(float(value), 4)
    0.6931
    """
    if l2 < 0:
        raise ValueError(f"`l2` must be >= 0, got {l2}.")
    num_tasks = tasks.support_y.shape[0]
    index = jnp.arange(num_tasks, dtype=jnp.int32)
    shared = SharedFeatures(represent, biased)
    return BilevelProblem(
        outer=_TaskRisk(shared, loss if outer_loss is None else outer_loss, num_tasks),
        inner=SupportRisk(_TaskRisk(shared, loss, num_tasks), l2),
        outer_data=(tasks.query_x, tasks.query_y, index),
        inner_data=(tasks.support_x, tasks.support_y, index),
    )


def meta_accuracy(
    problem: BilevelProblem, u: PyTree[Array], w: Float[Array, "tasks ways features"]
) -> Float[Array, " tasks"]:
    """The accuracy of the model `w_t` of each task on its query rows.

    Raises:
        TypeError: the problem was not made by `meta_learning`.
    """
    if not isinstance(problem.outer, _TaskRisk):
        raise TypeError("`meta_accuracy` needs a problem made by `meta_learning`.")
    batch: Any = problem.outer_data
    given = jnp.argmax(problem.outer.logits(u, w, batch), axis=2).astype(batch[1].dtype)
    return jnp.mean((given == batch[1]).astype(w.dtype), axis=1)
