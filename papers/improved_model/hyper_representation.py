"""L5: hyper-representation, the improved model against the basic one at equal inner iterations.

Li, Gu & Huang, section 5.2, Figures 4 and 5 and appendix C.2: the outer variable is a convolutional
net, the inner ones a linear model for each training task, fitted by K steps of size t on the support
rows (basic model, Algorithm 6), or by K BiG-SAM steps, which average such a step with one of size
s = t on the *query* rows (improved model, Algorithms 2 and 5). Omniglot and MiniImageNet are not to
be had here; the images are those of `papers/tutorial/meta_learning.py`. Both models see the same episodes,
start from the same net, and have the same t, K and outer steps (Adam). Both weightings are run:

- `printed_weighting()`: alpha_k = k^-.25 on the support step, as the paper prints and uses it;
- `sabach_shtern_weighting()`: the one that its theorems are about.

The paper does not say how a new task is fitted for the accuracy curves. Two ways are measured:

- from the support rows alone, K gradient steps: what a new task has labels for;
- by the model's own inner solver, which for the improved model sees the labels of the query rows on
  which it is then scored. This is no accuracy on new rows. It is printed to show its size.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib as mpl
import numpy as np
import optax
from sklearn.datasets import load_digits

import bilevel
from bilevel import tasks

sys.path.insert(0, str(Path(__file__).parents[1]))
from _script import Claim, run_script

WAYS, QUERIES, TEST_TASKS = 5, 10, 100
BASIC, PRINTED, HARMONIC = "basic", "improved, printed weights", "improved, Sabach-Shtern weights"


class Settings(NamedTuple):
    """Sizes: of the net, of a batch of tasks, and of the runs."""

    width: int
    blocks: int
    num_tasks: int
    steps: int
    inner_step: float
    learning_rate: float
    runs: list[tuple[int, int]]  # shots, K


def digits():
    """Training classes 0 to 4, each turned by quarters; held-out classes 5 to 9."""
    found = load_digits()
    x, y = (found.images / 16).astype(np.float32), found.target
    return tasks.rotated_classes(x[y < 5], y[y < 5]), (x[y >= 5], y[y >= 5])


def mnist():
    """The same classes of MNIST, the held-out ones of its test split; 1000 images a training class."""
    parts = []
    for split in ("train", "test"):
        images, labels = bilevel.datasets.mnist(split)
        parts.append((images.astype(np.float32) / 255, labels.astype(int)))
    (x, y), (x_test, y_test) = parts
    rows = np.concatenate([np.flatnonzero(y == k)[:1000] for k in range(5)])
    return tasks.rotated_classes(x[rows], y[rows]), (x_test[y_test >= 5], y_test[y_test >= 5])


def inner_solvers(step: float, num_steps: int, num_tasks: int) -> dict[str, Any]:
    """The three models. F is a mean over tasks where the paper sums, so s is `num_tasks` t."""
    big_sam = partial(bilevel.BiGSAM, step, step * num_tasks, num_steps)
    return {
        BASIC: bilevel.GradientInner(optax.sgd(step), num_steps),
        PRINTED: big_sam(bilevel.printed_weighting()),
        HARMONIC: big_sam(bilevel.sabach_shtern_weighting()),
    }


def score(problem, inner, w0, u) -> float:
    """Mean query accuracy of the models that an inner solver fits."""
    stream = bilevel.Stream(bilevel.FullBatch(), problem.inner_data, ())
    w = inner.solve(problem, u, w0, inner.init(problem, u, w0), stream)[0]
    return tasks.meta_accuracy(problem, u, w)


def run(data, shots: int, num_steps: int, settings: Settings) -> dict[str, Any]:
    """Curves of the three models on the same episodes."""
    (x, y), (x_test, y_test) = data
    net = tasks.conv4(x.shape[1:], key=jr.key(0), width=settings.width, blocks=settings.blocks)

    def problem_of(x, y, num_tasks, seed):
        drawn = tasks.episodes(
            x, y, ways=WAYS, shots=shots, queries=QUERIES, num_tasks=num_tasks, seed=seed
        )
        return tasks.meta_learning(net.features, drawn, l2=0.0)

    first = problem_of(x, y, settings.num_tasks, 0)
    test = problem_of(x_test, y_test, TEST_TASKS, 2**31)
    size = jax.eval_shape(net.features, net.u0, x[:1]).shape[1]
    found = {}
    for name, inner in inner_solvers(settings.inner_step, num_steps, settings.num_tasks).items():
        method = bilevel.DoubleLoop(inner, bilevel.ITD(), optax.adam(settings.learning_rate))
        w0 = jnp.zeros((settings.num_tasks, WAYS, size))
        state = method.init(first, net.u0, w0, jr.key(0))
        step = eqx.filter_jit(lambda problem, state, method=method: method.step(problem, state))
        at_test = {
            "support alone": inner_solvers(settings.inner_step, num_steps, TEST_TASKS)[BASIC],
            "its own solver": inner_solvers(settings.inner_step, num_steps, TEST_TASKS)[name],
        }
        judge_by = {
            way: eqx.filter_jit(
                lambda u, solver=solver: score(test, solver, jnp.zeros((TEST_TASKS, WAYS, size)), u)
            )
            for way, solver in at_test.items()
        }
        curve: dict[str, list[float]] = {"step": [], "loss": [], **{way: [] for way in at_test}}
        last = {}
        for k in range(settings.steps + 1):
            if k % (settings.steps // 6) == 0:
                last = {way: np.asarray(rate(state.u)) for way, rate in judge_by.items()}
                curve["step"].append(k)
                for way, values in last.items():
                    curve[way].append(float(values.mean()))
            problem = problem_of(x, y, settings.num_tasks, k)
            state, info = step(problem, state)
            curve["loss"].append(float(info.outer_value))
        found[name] = {
            "curve": curve,
            "accuracy": {way: float(a.mean()) for way, a in last.items()},
            "interval": {
                way: float(1.96 * a.std(ddof=1) / TEST_TASKS**0.5) for way, a in last.items()
            },
            "values": last["support alone"].tolist(),
        }
    basic = np.array(found[BASIC]["values"])
    for result in found.values():
        gap = np.array(result.pop("values")) - basic
        result["minus_basic"] = [
            float(gap.mean()),
            float(1.96 * gap.std(ddof=1) / TEST_TASKS**0.5),
        ]
        curve = np.array(result["curve"]["support alone"])
        result["area"] = float(curve[1:].mean())
    return found


def draw(report: dict[str, Any], path: Path) -> None:
    """A panel for each run: solid on the support rows alone, dotted with the query labels seen."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    runs = report["runs"]
    figure, axes = plt.subplots(
        1, len(runs), figsize=(4.6 * len(runs), 4), layout="constrained", squeeze=False
    )
    for axis, (title, found) in zip(axes[0], runs.items(), strict=True):
        for (name, result), color in zip(found.items(), ["0.3", "C0", "C3"], strict=True):
            curve = result["curve"]
            axis.plot(curve["step"], curve["support alone"], "o-", color=color, ms=4, label=name)
            if name != BASIC:
                axis.plot(
                    curve["step"],
                    curve["its own solver"],
                    ":",
                    color=color,
                    label="the same, fitted on query labels too",
                )
        axis.set_title(f"{WAYS}-way {title}", size=10)
        axis.set_xlabel("outer steps")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy on tasks of held-out classes")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(f"Hyper-representation: {report['data']}", size=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(full: bool, out: Path) -> tuple[dict[str, Any], list[Claim]]:
    """Run all, draw, judge."""
    settings = (
        Settings(16, 4, 4, 180, 0.2, 1e-3, [(1, 10), (5, 10)])
        if full
        else Settings(16, 2, 4, 90, 0.2, 1e-3, [(1, 10)])
    )
    data = mnist() if full else digits()
    report: dict[str, Any] = {
        "data": "MNIST" if full else "digits (8 x 8)",
        "settings": settings._asdict() | {"ways": WAYS, "test_tasks": TEST_TASKS},
        "runs": {
            f"{shots}-shot, K = {k}": run(data, shots, k, settings) for shots, k in settings.runs
        },
    }
    draw(report, out / "hyper_representation.png")
    return report, judge(report)


def judge(report: dict[str, Any]) -> list[Claim]:
    """The published statement, for both weightings and both ways to fit a new task."""
    claims = []
    for title, found in report["runs"].items():
        for name, rule in {
            PRINTED: "printed_weighting()",
            HARMONIC: "sabach_shtern_weighting()",
        }.items():
            ours, basic = found[name], found[BASIC]
            gap, half = ours["minus_basic"]
            claims.append(
                Claim(
                    "L5",
                    f"{title}, {rule}: the improved model reaches a better accuracy than the basic "
                    "one (new tasks fitted on their support rows alone)",
                    'Figures 4, 5: "better accuracy ... under all settings" (MiniImageNet 20-way '
                    "1-shot: 30 % against 26 %)",
                    f"{ours['accuracy']['support alone']:.3f} against "
                    f"{basic['accuracy']['support alone']:.3f}, difference on the same tasks "
                    f"{gap:+.3f} +- {half:.3f}",
                    gap > half,
                    f"mean along the curve {ours['area']:.3f} against {basic['area']:.3f}; other "
                    f"data than published, 95 % interval over {TEST_TASKS} tasks, one seed.",
                )
            )
            seen = ours["accuracy"]["its own solver"]
            claims.append(
                Claim(
                    "L5",
                    f"{title}, {rule}: the same, new tasks fitted by the model's own inner solver",
                    "Figures 4, 5 do not say how new tasks are fitted",
                    f"{seen:.3f} against {basic['accuracy']['its own solver']:.3f}",
                    seen > basic["accuracy"]["its own solver"],
                    "this solver sees the labels that it is scored on.",
                )
            )
    return claims


if __name__ == "__main__":
    run_script(__file__, main)
