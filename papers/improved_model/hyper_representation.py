"""L5: hyper-representation, the improved model against the basic one at equal inner iterations.

Li, Gu and Huang (2020), "Improved bilevel model: fast and optimal algorithm with theoretical
guarantee", section 5.2, Figures 4 and 5 and appendix C.2: the outer variable is a convolutional net
that represents images, the inner ones a linear model for each training task, fitted by K steps of
size t on the support rows (basic model, Algorithm 6), or by K BiG-SAM steps, which average such a
step with one of size s = t on the *query* rows (improved model, Algorithms 2 and 5). Both models see
the same episodes, start from the same net, and have the same t, K and outer steps (Adam).

The published cells are Omniglot with four layers of 64 filters, t = 0.01 and eta = 0.001, and
MiniImageNet with ResNet-18, t = 0.001 and eta = 0.0001; 5 and 20 ways, 1 and 5 shots, 10 query rows,
classes turned by quarters. `--full` runs those whose files are in the folder BILEVEL_DATA and names
the others (the paper has neither the number of outer steps nor that of tasks per step). A substitute
is always run: digits with turned classes to learn from, and other digits to test on, and a net with
fewer filters.

Both weightings are run:

- `printed_weighting()`: alpha_k = k^-0.25 on the support step, as the paper prints and uses it;
- `sabach_shtern_weighting()`: the one that its theorems are about.

The inner steps see the net only through the features of the batch, z(u). So the hypergradient is
taken in z, by `ITD` on a problem whose rows are numbers of a table of features, and pulled back
through the net once: `grad = z'(u)^T grad_z F`. The net runs once an outer step and not at each
inner one.

The paper does not say how a new task is fitted for the accuracy curves. Two ways are measured:

- from the support rows alone, by K gradient steps: what a new task has labels for. On new rows of the
  training classes and on new classes;
- by the model's own inner solver, which for the improved model sees the labels of the query rows on
  which it is then scored. This is no accuracy on new rows. It is printed to show its size.

Intervals are over seeds (of the net, the training tasks and the test tasks), by Student's t.
"""

import sys
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy.stats import t as student

import bilevel
from bilevel import datasets, tasks

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
import cleaning
from _frame import Claim, left_out, panels
from _resnet import representation

QUERIES, TEST_TASKS, CHUNK = 10, 100, 250
WAYS = 5  # of the substitute
ROWS, CLASSES, SEEN = "new rows", "new classes", "new rows, query labels seen"
RUNS = [(1, 5), (1, 20), (5, 5), (5, 20)]
BASIC, PRINTED, HARMONIC = "basic", "improved, printed weights", "improved, Sabach-Shtern weights"


class Settings(NamedTuple):
    """Sizes: of the net, of a batch of tasks, and of the runs. Without blocks the net is ResNet-18."""

    width: int
    blocks: int
    num_tasks: int
    steps: int
    inner_step: float
    learning_rate: float
    seeds: int
    runs: list[tuple[int, int]]  # shots, K
    ways: tuple[int, ...] = (WAYS,)


PUBLISHED = {
    "Omniglot": Settings(64, 4, 4, 1000, 1e-2, 1e-3, 3, RUNS, (5, 20)),
    "MiniImageNet": Settings(64, 0, 4, 1000, 1e-3, 1e-4, 3, [(1, 5), (5, 5)], (5, 20)),
}
FIGURES = {"Omniglot": "Figure 4", "MiniImageNet": "Figure 5"}


def images_of(name: str, num_rows: int) -> dict[str, Any]:
    """Classes 0 to 4, each turned by quarters, in two halves of rows; and classes 5 to 9.

    At most `num_rows` of a class; "digits" or "MNIST", pooled to half its side.
    """
    x, y = cleaning.rows_of(name)
    side = isqrt(x.shape[1])
    rows = np.concatenate([np.flatnonzero(y == k)[:num_rows] for k in range(10)])
    x, y = x[rows].reshape(-1, side, side).astype(np.float32), y[rows].astype(int)
    few, labels = x[y < 5], y[y < 5]
    return {
        "train": tasks.rotated_classes(few[::2], labels[::2]),
        ROWS: tasks.rotated_classes(few[1::2], labels[1::2]),
        CLASSES: (x[y >= 5], y[y >= 5]),
    }


def published_images(name: str) -> dict[str, Any]:
    """Omniglot at 28 x 28 or MiniImageNet at 64 x 64, as bytes, classes turned by quarters."""
    if name == "Omniglot":
        train, test = (datasets.omniglot(s, size=28) for s in ("background", "evaluation"))
    else:
        train, test = (datasets.mini_imagenet(s, size=64) for s in ("train", "test"))
    x, y = train.images, train.labels
    return {
        "train": tasks.rotated_classes(x[::2], y[::2]),
        ROWS: tasks.rotated_classes(x[1::2], y[1::2]),
        CLASSES: tasks.rotated_classes(test.images, test.labels),
    }


def inner_solvers(step: float, num_steps: int, num_tasks: int) -> dict[str, Any]:
    """The three models. F is a mean over tasks where the paper sums, so s is `num_tasks` t."""
    big_sam = partial(bilevel.BiGSAM, step, step * num_tasks, num_steps)
    return {
        BASIC: bilevel.GradientInner(optax.sgd(step), num_steps),
        PRINTED: big_sam(weighting=bilevel.printed_weighting()),
        HARMONIC: big_sam(weighting=bilevel.sabach_shtern_weighting()),
    }


def look_up(table, rows):
    """The representation of rows that are numbers of a table of features."""
    return table[rows]


def tabled(drawn: tasks.Episodes) -> tuple[jax.Array, bilevel.BilevelProblem]:
    """All images of the tasks, and the problem whose outer variable is the table of their features."""
    parts = drawn.support_x, drawn.query_x
    images = jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in parts])
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.result_type(float)) / 255
    numbers = jnp.split(jnp.arange(len(images)), [drawn.support_y.size])
    support, query = (
        n.reshape(y.shape) for n, y in zip(numbers, (drawn.support_y, drawn.query_y), strict=True)
    )
    rows = drawn._replace(support_x=support, query_x=query)
    return images, tasks.meta_learning(look_up, rows, l2=0.0)


def all_rows(problem) -> bilevel.Stream:
    return bilevel.Stream(bilevel.FullBatch(), problem.inner_data, ())


def meta_gradient(
    net: tasks.models.Representation, inner, u, drawn: tasks.Episodes, ways: int = WAYS
):
    """The hypergradient of the truncated problem in the net's parameters, through its features."""
    images, problem = tabled(drawn)
    table, pull_back = jax.vjp(lambda u: net.features(u, images), u)
    w0 = jnp.zeros((len(drawn.support_y), ways, table.shape[1]))
    outer = bilevel.Stream(bilevel.FullBatch(), problem.outer_data, ())
    estimator = bilevel.ITD()
    state = estimator.init(problem, inner, table, w0)
    found, _, _ = estimator.estimate(
        problem, inner, table, w0, state, bilevel.Streams(outer, all_rows(problem))
    )
    return pull_back(found.grad)[0]


@eqx.filter_jit
def score(problem, inner, table, ways: int) -> jax.Array:
    """Query accuracies of the models that an inner solver fits, one per task."""
    w0 = jnp.zeros((len(problem.inner_data[0]), ways, table.shape[1]))
    w = inner.solve(problem, table, w0, inner.init(problem, table, w0), all_rows(problem))[0]
    return tasks.meta_accuracy(problem, table, w)


@eqx.filter_jit
def features(net, u, images) -> jax.Array:
    """By the chunk: a net's inner layers are far larger than its features."""
    rows = jax.lax.map(lambda x: net.features(u, x[None])[0], images, batch_size=CHUNK)
    return rows.reshape(len(images), -1)


def net_of(shape: tuple[int, ...], settings: Settings, seed: int) -> tasks.models.Representation:
    """The convolutional net, or ResNet-18 where the settings have no blocks."""
    if settings.blocks:
        size = {"width": settings.width, "blocks": settings.blocks}
        return tasks.models.conv4(shape, key=jr.key(seed), **size)
    return representation(shape[-1], key=jr.key(seed), width=settings.width)


def run(
    data, ways: int, shots: int, num_steps: int, settings: Settings, seed: int
) -> dict[str, Any]:
    """Curves of the three models on the same episodes, from the same net."""
    net = net_of(data["train"][0].shape[1:], settings, seed)

    def episodes(rows, num_tasks, number):
        return tasks.episodes(
            *rows,
            ways=ways,
            shots=shots,
            queries=QUERIES,
            num_tasks=num_tasks,
            seed=2**32 * seed + number,
        )

    new = {way: tabled(episodes(data[way], TEST_TASKS, 2**31)) for way in (ROWS, CLASSES)}
    at_test = inner_solvers(settings.inner_step, num_steps, TEST_TASKS)
    found: dict[str, Any] = {}
    for name, inner in inner_solvers(settings.inner_step, num_steps, settings.num_tasks).items():
        u, tx = net.u0, optax.adam(settings.learning_rate)
        momenta = tx.init(u)

        @eqx.filter_jit
        def step(u, momenta, drawn, inner=inner, tx=tx):
            updates, momenta = tx.update(meta_gradient(net, inner, u, drawn, ways), momenta)
            return optax.apply_updates(u, updates), momenta

        curve: dict[str, list[float]] = {"step": [], ROWS: [], CLASSES: [], SEEN: []}
        for k in range(settings.steps + 1):
            if k % (settings.steps // 5) == 0:
                tables = {way: features(net, u, images) for way, (images, _) in new.items()}
                for way, (rows, solver) in {
                    ROWS: (ROWS, BASIC),
                    CLASSES: (CLASSES, BASIC),
                    SEEN: (ROWS, name),
                }.items():
                    values = score(new[rows][1], at_test[solver], tables[rows], ways)
                    curve[way].append(float(values.mean()))
                curve["step"].append(k)
            u, momenta = step(u, momenta, episodes(data["train"], settings.num_tasks, k))
        found[name] = curve
    return found


def summarise(curves: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: mean curves, and each improved model's last accuracy minus the basic one's."""
    found: dict[str, Any] = {}
    for name in curves[0]:
        mean = {key: np.mean([c[name][key] for c in curves], 0).tolist() for key in curves[0][name]}
        found[name] = {"curve": mean, "minus_basic": {}}
        for way in (ROWS, CLASSES, SEEN):
            gaps = np.array([c[name][way][-1] - c[BASIC][way][-1] for c in curves])
            half = 0.0
            if len(gaps) > 1:
                half = float(
                    student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
                )
            found[name]["minus_basic"][way] = {
                "mean": float(gaps.mean()),
                "half_width": half,
                "seeds": gaps.tolist(),
            }
    return found


def cells_left_out(names: list[str]) -> list[dict[str, Any]]:
    """The published figures on data that this run does not have."""
    return [
        left_out(
            "L5",
            f"{FIGURES[name]}, {name}, 5- and 20-way, 1- and 5-shot: the accuracy is better than that "
            "of the basic model, and rises faster.",
            "under all settings (figure)",
            "the quick size has a substitute only, which stands above under its own name; the full "
            "size runs these where their files are",
        )
        for name in names
    ]


def measure(full: bool) -> dict[str, Any]:
    """The substitute, MNIST in full and digits in quick; and in full what is published."""
    if full:
        name, settings = "MNIST", Settings(16, 2, 4, 150, 0.05, 1e-3, 3, RUNS)
    else:
        name, settings = "digits", Settings(8, 2, 4, 60, 0.05, 1e-3, 3, [(1, 10)])
    plan, missing = [(f"{name} (a substitute)", images_of(name, 1000), settings)], []
    for published, of in PUBLISHED.items():
        try:
            if full:
                plan.append((published, published_images(published), of))
        except FileNotFoundError as error:
            print(f"missing, cells not run: {str(error).partition(';')[0]}")
            missing.append(published)
    return {
        "settings": settings._asdict() | {"data": name, "test_tasks": TEST_TASKS},
        "published settings": {key: of._asdict() for key, of in PUBLISHED.items()},
        "missing": missing,
        "not run": cells_left_out([p for p in PUBLISHED if p in missing or not full]),
        "seeds": list(range(settings.seeds)),
        "runs": {
            f"{title}, {ways}-way {shots}-shot, K = {k}": summarise(
                [run(data, ways, shots, k, of, seed) for seed in range(of.seeds)]
            )
            for title, data, of in plan
            for ways in of.ways
            for shots, k in of.runs
        },
    }


def draw(measured: dict[str, Any]) -> Figure:
    """Accuracy against outer steps: a column for each run, a row for each kind of new task."""
    runs = measured["runs"]
    figure, axes = panels(3, len(runs), (max(4.2 * len(runs), 5.5), 8), squeeze=False, sharex=True)
    for column, (title, found) in zip(axes.T, runs.items(), strict=True):
        for axis, way in zip(column, (ROWS, CLASSES, SEEN), strict=True):
            for (name, result), style in zip(found.items(), ["ko-", "C0s-", "C3^--"], strict=True):
                axis.plot(result["curve"]["step"], result["curve"][way], style, ms=4, label=name)
            axis.set_title(f"{title}: {way}", size=9)
        column[-1].set_xlabel("outer steps")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = min(len(runs) + 1, 3)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    figure.suptitle(f"Hyper-representation: {measured['settings']['data']}", size=11)
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """The published statement, for both weightings and each kind of new task."""
    judged = []
    figures = 'Figures 4, 5: "better accuracy and converges faster ... under all settings"'
    for title, found in measured["runs"].items():
        substitute = "(a substitute)" in title
        published = f"not for these data ({figures})" if substitute else figures
        for name in (PRINTED, HARMONIC):
            for way in (ROWS, CLASSES, SEEN):
                ours, basic = found[name]["curve"][way], found[BASIC]["curve"][way]
                gap = found[name]["minus_basic"][way]
                judged.append(
                    Claim(
                        "L5",
                        f"{title}, {name}, {way}: the accuracy is better than that of the basic "
                        "model.",
                        published,
                        f"{ours[-1]:.3f} against {basic[-1]:.3f}, difference "
                        f"{gap['mean']:+.3f} +- {gap['half_width']:.3f}; means along the curves "
                        f"{np.mean(ours[1:]):.3f} against {np.mean(basic[1:]):.3f}",
                        gap["mean"] > gap["half_width"],
                        "This solver sees the labels that it is scored on."
                        if way == SEEN
                        else f"There are {len(gap['seeds'])} seeds of {TEST_TASKS} tasks, and the "
                        "difference has to be above its interval of 95 %."
                        + (
                            ""
                            if gap["mean"] > gap["half_width"]
                            else " It is within it: no difference is seen."
                            if gap["mean"] > -gap["half_width"]
                            else ""
                        ),
                    )
                )
    return judged


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
