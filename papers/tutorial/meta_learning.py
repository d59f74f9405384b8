"""G4: meta-learning, a shared representation whose inner problems are one linear model per task.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], section "Meta-learning": the outer variable is the parameters of a convolutional
net phi; the inner problems are one ridge regression per task on the features of its support rows
(in closed form, so that the hypergradient is exact); the outer objective is the error on the
tasks' query rows. "lambda* is then tested on hold-out tasks (meta-test)": 5-way, 1- and 5-shot,
200 tasks of classes that meta-training has not seen, with 95 % intervals over tasks. It is
compared with

- a random representation: the same net, as it was initialised;
- raw pixels: each task by itself, with no representation;
- a representation learned from the five training classes as they are, without the turned ones.

The first two have the best of six penalties *in hindsight*, on the meta-test tasks; the learned
ones have the penalty that they were trained with. There is no early stopping.

The second part takes the centre of the penalty as the outer variable (`biased=True`; Rajeswaran et
al. (2019), "Meta-learning with implicit gradients" [rajeswaran2019][]; Denevi et al. (2019),
"Learning-to-learn stochastic gradient descent with biased regularization" [denevi2019][]), without
a net: tasks of the same five digits, whose images are tilted by an angle of each task's own. It is
compared with no centre, and with the centre itself as the model of all tasks.

Quick: scikit-learn's digits; training classes 0 to 4, each turned by four quarters (20 classes),
meta-test on 5 to 9. Full: MNIST and Fashion-MNIST, images pooled to half their side; training
classes 0 to 4 of one and all of the other, each turned (60 classes), meta-test on 5 to 9 of the
test split of the first. The net has two of the four blocks of Conv-4: four leave one pixel of such
images.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _tutorial import Claim, Measured, digits, panels, run
from scipy.ndimage import rotate

import bilevel
from bilevel import tasks

WAYS, L2, PENALTIES = 5, 0.1, (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
TEST_TASKS, TEST_QUERIES, CHUNK = 200, 10, 50
MANY, FEW = "one learned from all classes", "one learned from five classes"
RANDOM, RAW = "a random representation", "raw pixels, each task alone"
CENTRE, NO_CENTRE, ONE_MODEL = (
    "a learned centre",
    "no centre",
    "the centre as the model of all tasks",
)
CENTRE_PENALTIES, CENTRE_STEPS, TILT = (0.1, 1.0, 10.0), 200, 60.0


class Data(NamedTuple):
    """Images and labels: classes to learn from, the five that are not turned, and held-out ones."""

    many: tuple[np.ndarray, np.ndarray]
    few: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


class Settings(NamedTuple):
    """Sizes."""

    width: int
    blocks: int
    num_tasks: int
    queries: int
    steps: int
    learning_rate: float


def small_images() -> tuple[np.ndarray, np.ndarray]:
    """Digits of 8 x 8 pixels."""
    x, y = digits()
    return x.reshape(-1, 8, 8).astype(np.float32), y


def classes_of_digits() -> Data:
    """Digits 0 to 4, each turned, to learn from; 5 to 9 are held out."""
    x, y = small_images()
    few = x[y < 5], y[y < 5]
    return Data(tasks.rotated_classes(*few), few, (x[y >= 5], y[y >= 5]))


def pooled(name: str, split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """Images of 14 x 14 pixels."""
    readers = {"MNIST": bilevel.datasets.mnist, "Fashion-MNIST": bilevel.datasets.fashion_mnist}
    images, labels = readers[name](split)
    x = images.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32) / 255
    return x, labels.astype(int)


def classes_of(name: str, other: str) -> Data:
    """Half the classes of one and all of the other to learn from, 1000 images each."""

    def first(x, y, classes):
        rows = np.concatenate([np.flatnonzero(y == k)[:1000] for k in classes])
        return x[rows], y[rows]

    few, more = first(*pooled(name, "train"), range(5)), first(*pooled(other, "train"), range(10))
    both = np.concatenate([few[0], more[0]]), np.concatenate([few[1], more[1] + 10])
    x, y = pooled(name, "test")
    return Data(tasks.rotated_classes(*both), few, (x[y >= 5], y[y >= 5]))


def ridge_problem(represent, drawn: tasks.Episodes, l2: float) -> bilevel.BilevelProblem:
    """Ridge regression on one-hot labels for each task; the outer loss is the same."""
    return tasks.meta_learning(represent, drawn, loss=tasks.models.one_hot_error, l2=l2)


@eqx.filter_jit
def fit_and_score(problem, u):
    """Query accuracies of the tasks' ridge regressions."""
    w = tasks.reference.meta_ridge_solution(problem, WAYS)(u, problem.inner_data)
    return tasks.meta_accuracy(problem, u, w)


def accuracies(represent, u, l2: float, drawn: tasks.Episodes) -> np.ndarray:
    """One per task, computed in chunks."""
    chunks = (
        jax.tree.map(lambda a, k=k: a[k : k + CHUNK], drawn) for k in range(0, TEST_TASKS, CHUNK)
    )
    return np.concatenate(
        [fit_and_score(ridge_problem(represent, chunk, l2), u) for chunk in chunks]
    )


@eqx.filter_jit
def features_of(represent, u, x):
    """The representation of all tasks' images."""
    return jax.vmap(lambda task: represent(u, task))(x)


def represented(represent, u, drawn: tasks.Episodes) -> tasks.Episodes:
    """The same tasks with features in place of images, computed in chunks."""

    def of(x):
        chunks = (x[k : k + CHUNK] for k in range(0, len(x), CHUNK))
        return jnp.concatenate([features_of(represent, u, chunk) for chunk in chunks])

    return drawn._replace(support_x=of(drawn.support_x), query_x=of(drawn.query_x))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval over tasks."""
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))


def meta_train(net, draw, score, settings: Settings):
    """Outer steps on ever new episodes; the parameters, and scores along the way."""
    drawn = draw(0)
    first = ridge_problem(net.features, drawn, L2)
    method = bilevel.DoubleLoop(
        bilevel.ClosedForm(tasks.reference.meta_ridge_solution(first, WAYS)),
        bilevel.ITD(),
        optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps)),
    )
    size = jax.eval_shape(net.features, net.u0, drawn.support_x[0]).shape[1]
    state = method.init(first, net.u0, jnp.zeros((settings.num_tasks, WAYS, size)), jr.key(0))
    step = eqx.filter_jit(lambda problem, state: method.step(problem, state))
    curve = {"step": [0], "accuracy": [score(net.u0)], "loss": [float("nan")]}
    for k in range(1, settings.steps + 1):
        state, info = step(ridge_problem(net.features, draw(k), L2), state)
        if k % (settings.steps // 5) == 0:
            curve["step"].append(k)
            curve["accuracy"].append(score(state.u))
            curve["loss"].append(float(info.outer_value))
    return state.u, curve


def run_all(data: Data, shots: int, settings: Settings) -> dict[str, Any]:
    """Accuracies of all representations on the same meta-test tasks."""
    images, labels = data.test
    net = tasks.models.conv4(
        images.shape[1:], key=jr.key(1), width=settings.width, blocks=settings.blocks
    )
    test = tasks.episodes(
        images,
        labels,
        ways=WAYS,
        shots=shots,
        queries=TEST_QUERIES,
        num_tasks=TEST_TASKS,
        seed=2**31,
    )
    found: dict[str, Any] = {}
    scores: dict[str, np.ndarray] = {}
    fixed = {RANDOM: (net.features, net.u0), RAW: (flat, ())}
    for name, (represent, u) in fixed.items():
        seen = represented(represent, u, test)
        tried = {l2: accuracies(flat, (), l2, seen) for l2 in PENALTIES}
        best = max(tried, key=lambda l2, tried=tried: tried[l2].mean())
        scores[name], found[name] = tried[best], {"l2": best}

    def score(u):
        return float(accuracies(net.features, u, L2, test).mean())

    for name, (x, y) in {MANY: data.many, FEW: data.few}.items():
        draw = partial(draw_tasks, x, y, shots, settings)
        u, curve = meta_train(net, draw, score, settings)
        scores[name] = accuracies(net.features, u, L2, test)
        found[name] = {"l2": L2, "classes": len(np.unique(y)), "curve": curve}
    for name, values in scores.items():
        found[name]["accuracy"], found[name]["interval"] = interval(values)
        if name != MANY:
            found[name]["learned_minus_this"] = interval(scores[MANY] - values)
    return found


def tilted(x, y, shots: int, num_tasks: int, seed: int) -> tasks.Episodes:
    """Tasks where label k is the digit 5 + k always, and all images are tilted by one angle."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(y == 5 + k) for k in range(WAYS)]
    pictures = []
    for angle in rng.uniform(-TILT, TILT, num_tasks):
        rows = [rng.choice(m, shots + TEST_QUERIES, replace=False) for m in members]
        pictures.append(rotate(x[np.array(rows)], angle, axes=(3, 2), reshape=False, order=1))
    turned = jnp.asarray(np.array(pictures))  # (tasks, ways, rows, 8, 8)

    def part(rows: slice) -> tuple[jax.Array, jax.Array]:
        chosen = turned[:, :, rows]
        labels = jnp.repeat(jnp.arange(WAYS), chosen.shape[2])
        return chosen.reshape(num_tasks, -1, 8, 8), jnp.tile(labels, (num_tasks, 1))

    return tasks.Episodes(*part(slice(shots)), *part(slice(shots, None)))


def learn_centre(drawn: list[tasks.Episodes], l2: float) -> jax.Array:
    """The centre after one outer step on each of the tasks, with exact hypergradients."""
    first = centred(drawn[0], l2)
    inner = bilevel.ClosedForm(tasks.reference.meta_ridge_solution(first, WAYS))
    method = bilevel.DoubleLoop(inner, bilevel.ITD(), optax.adam(0.02))
    u = {"representation": (), "bias": jnp.zeros((WAYS, 64))}
    state = method.init(first, u, jnp.zeros((8, WAYS, 64)), jr.key(0))
    step = eqx.filter_jit(lambda problem, state: method.step(problem, state))
    for episodes in drawn[1:]:
        state, _ = step(centred(episodes, l2), state)
    return state.u["bias"]


def centred(drawn: tasks.Episodes, l2: float) -> bilevel.BilevelProblem:
    """Ridge regression towards a centre, on raw pixels."""
    return tasks.meta_learning(flat, drawn, loss=tasks.models.one_hot_error, l2=l2, biased=True)


def centre(shots: int) -> dict[str, Any]:
    """Accuracies on new tasks, tilted by new angles, of new rows; all at their best penalty."""
    x, y = small_images()
    test = tilted(x[1::2], y[1::2], shots, TEST_TASKS, 2**31)

    def rate(bias, l2):
        u = {"representation": (), "bias": bias}
        problem = centred(test, l2)
        shared = jnp.broadcast_to(bias, (TEST_TASKS, WAYS, 64))
        return np.asarray(fit_and_score(problem, u)), tasks.meta_accuracy(problem, u, shared)

    drawn = [tilted(x[::2], y[::2], shots, 8, seed) for seed in range(CENTRE_STEPS + 1)]
    learned = {l2: rate(learn_centre(drawn, l2), l2) for l2 in CENTRE_PENALTIES}
    none = {l2: rate(jnp.zeros((WAYS, 64)), l2)[0] for l2 in PENALTIES}
    best = max(learned, key=lambda l2: learned[l2][0].mean())
    scores = {
        CENTRE: learned[best][0],
        NO_CENTRE: max(none.values(), key=np.mean),
        ONE_MODEL: np.asarray(max((own for _, own in learned.values()), key=jnp.mean)),
    }
    return {
        name: {
            "accuracy": interval(values),
            "learned_minus_this": interval(scores[CENTRE] - values),
        }
        for name, values in scores.items()
    }


def draw_tasks(x, y, shots: int, settings: Settings, seed: int) -> tasks.Episodes:
    """The episodes of one outer step."""
    return tasks.episodes(
        x,
        y,
        ways=WAYS,
        shots=shots,
        queries=settings.queries,
        num_tasks=settings.num_tasks,
        seed=seed,
    )


def flat(u, x):
    """No representation at all."""
    return x.reshape(x.shape[0], -1)


def measure(full: bool) -> Measured:
    """Meta-train and meta-test, on one data set or two."""
    settings = Settings(32, 2, 8, 5, 200 if full else 150, 3e-3)
    names = ["MNIST", "Fashion-MNIST"]
    given = {"digits": classes_of_digits()}
    if full:
        given = {a: classes_of(a, b) for a, b in (names, names[::-1])}
    return {
        "settings": settings._asdict() | {"ways": WAYS, "l2": L2, "test_tasks": TEST_TASKS},
        "seeds": [0],
        "data": {
            name: {str(shots): run_all(data, shots, settings) for shots in (1, 5)}
            for name, data in given.items()
        },
        "centre": {str(shots): centre(shots) for shots in (1, 5)},
    }


def draw(measured: Measured):
    """One panel for each number of shots: learning curves, and the two baselines."""
    data = measured["data"]
    figure, grid = panels(len(data), 2, (10, 0.8 + 3.4 * len(data)), squeeze=False)
    for row, (title, by_shots) in zip(grid, data.items(), strict=True):
        for axis, (shots, found) in zip(row, by_shots.items(), strict=True):
            for name, style in {MANY: "C0o-", FEW: "C3s-"}.items():
                curve = found[name]["curve"]
                label = f"{name} ({found[name]['classes']})" if name == MANY else name
                axis.plot(curve["step"], curve["accuracy"], style, ms=4, label=label)
            for name, style in {RANDOM: "0.3", RAW: "C2"}.items():
                mean, half = found[name]["accuracy"], found[name]["interval"]
                axis.axhline(mean, color=style, ls="--", lw=1.2, label=f"{name}, best penalty")
                axis.axhspan(mean - half, mean + half, color=style, alpha=0.12, lw=0)
            axis.set_title(f"{title}: {WAYS}-way {shots}-shot", size=10)
        row[0].set_ylabel("meta-test accuracy")
    for axis in grid[-1]:
        axis.set_xlabel("outer steps")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(f"Meta-learning: {TEST_TASKS} tasks of held-out classes", size=11)
    return figure


def claims(measured: Measured) -> list[Claim]:
    """The learned representation against each other one, on the same tasks."""
    reasons = {
        RANDOM: "Its penalty is the best in hindsight.",
        RAW: "Its penalty is the best in hindsight.",
        FEW: "The tutorial does not treat it; it shows whether more classes to learn from help.",
    }
    judged = []
    for data, by_shots in measured["data"].items():
        for shots, found in by_shots.items():
            learned = found[MANY]
            for name, why in reasons.items():
                other = found[name]
                gap, half = other["learned_minus_this"]
                judged.append(
                    Claim(
                        "G4",
                        f"On held-out classes of {data}, {WAYS}-way {shots}-shot, the representation "
                        f"learned from {learned['classes']} classes is more accurate than {name}.",
                        "no number; lambda* is tested on hold-out tasks",
                        f"{learned['accuracy']:.3f} +- {learned['interval']:.3f} against "
                        f"{other['accuracy']:.3f} +- {other['interval']:.3f}; difference on the "
                        f"same tasks {gap:+.3f} +- {half:.3f}",
                        gap > half,
                        f"The intervals of 95 % are over {TEST_TASKS} tasks. {why}",
                    )
                )
    for shots, found in measured["centre"].items():
        learned, half_width = found[CENTRE]["accuracy"]
        for name in (NO_CENTRE, ONE_MODEL):
            (other, other_half), (gap, half) = (
                found[name][k] for k in ("accuracy", "learned_minus_this")
            )
            judged.append(
                Claim(
                    "G4",
                    f"On new angles and rows of tilted digits, {WAYS}-way {shots}-shot, a learned "
                    f"centre of the penalty is more accurate than {name}.",
                    "no number",
                    f"{learned:.3f} +- {half_width:.3f} against {other:.3f} +- {other_half:.3f}; "
                    f"difference on the same tasks {gap:+.3f} +- {half:.3f}",
                    gap > half,
                    f"The intervals of 95 % are over {TEST_TASKS} tasks. All have their best "
                    "penalty in hindsight.",
                )
            )
    return judged


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
