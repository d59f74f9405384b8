"""V5, Figures 7, 12, 13: distilling concentric rings into two or three learned points.

Vicol, Lorraine, Pedregosa, Duvenaud and Grosse (2022), "On implicit bias in overparameterized bilevel
optimization", section 4.1 and Appendix F.1 [vicol2022][]: a 4-layer MLP with 200 ReLU units per layer
is trained on one learned point per class by warm-started bilevel steps (one inner SGD step of size
0.001, the hypergradient unrolled through it, one Adam step of size 0.01 on the points). The points
wander and trace out the rings, and the model, which remembers where they were, fits the rings nearly
perfectly. A model that is retrained on the points as they are at any moment does not fit them. There
are three settings: two rings and two points; three rings and three points; three rings, two points and
learned soft labels.

The paper does not give the rings: we take the radii 1, 2 (and 3), and normal noise of 0.1.
Glorot-normal initialisation and zero biases are needed; with He's initialisation the warm run does not
fit the rings. Three rings need Adam without momentum and with a short memory (b1 = 0, b2 = 0.9). We
report the best warm accuracy along the path (which is how the paper reads its curves) *and* the one at
the end, on rows that were not used too, and retrain at points along the whole path, not only at the
last. The left panels of the figures, a model trained on the original rows, are there as numbers: its
accuracy and its outer loss. Beside every warm start stands what it knows of new rows (`leak_check`).

Every run is made twice, in the library's order and in the printed one, which makes the hypergradient a
look one inner solve ahead of the model that is kept (`bilevel.LookAhead`).

`rings.py --animate FILE.gif` writes the walk of the points as an animation.
"""

import itertools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

import bilevel
from bilevel import tasks

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bias import ErrorRate, Watch
from _frame import Claim, left_out, panels, run

WIDTH, LAYERS, NOISE, PER_RING = 200, 4, 0.1, 100
INNER_STEP, OUTER_STEP, EVERY = 1e-3, 1e-2, 50
RETRAIN_STEP, RETRAIN_STEPS, RETRAIN_POINTS = 1e-1, 1000, 12
DIRECT_STEPS = 2000  # of Adam at 1e-3, on the original rows
RETRAIN = bilevel.GradientInner(optax.sgd(RETRAIN_STEP), RETRAIN_STEPS)


class Setting(NamedTuple):
    """A figure: rings, learned points, whether their labels are learned too, and how."""

    name: str
    figure: str
    classes: int
    points: int
    soft: bool
    steps: int
    adam: tuple[float, float] = (0.0, 0.9)


SETTINGS = (
    Setting("two rings, two points", "Figure 7", 2, 2, False, 6000, (0.9, 0.999)),
    Setting("three rings, three points", "Figure 12", 3, 3, False, 8000),
    Setting("three rings, two points, soft labels", "Figure 13", 3, 2, True, 12_000),
)


def rings(classes: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """`PER_RING` points on each ring, and which ring they are on."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), PER_RING)
    angle = rng.uniform(0, 2 * np.pi, len(y))
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    X = (1.0 + y[:, None]) * circle + NOISE * rng.normal(size=(len(y), 2))
    return jnp.asarray(X, jnp.float32), jnp.asarray(y, jnp.int32)


def network(classes: int, key: jax.Array) -> Any:
    """The MLP's parameters: Glorot-normal weights, zero biases."""
    net = eqx.nn.MLP(2, classes, WIDTH, LAYERS - 1, activation=jax.nn.relu, key=key)
    init = jax.nn.initializers.glorot_normal(in_axis=1, out_axis=0)
    keys = jr.split(key, LAYERS)
    weights = [init(k, layer.weight.shape) for k, layer in zip(keys, net.layers, strict=True)]
    biases = [jnp.zeros(layer.weight.shape[0]) for layer in net.layers]
    where = lambda n: [x.weight for x in n.layers] + [x.bias for x in n.layers]  # noqa: E731
    return eqx.partition(eqx.tree_at(where, net, weights + biases), eqx.is_array)


class Predict(eqx.Module):
    """Logits of the MLP."""

    static: Any

    def __call__(self, w: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(w, self.static))(x)


def direct(problem: bilevel.BilevelProblem, u0: Any, w0: Any) -> Any:
    """The model trained on the original rows: the left panels of Figures 7, 12 and 13."""
    adam = optax.adam(1e-3)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        w, state = carry
        slope = jax.grad(lambda w: problem.outer(u0, w, problem.outer_data))(w)
        updates, state = adam.update(slope, state)
        return (optax.apply_updates(w, updates), state), None

    train = jax.jit(lambda w: jax.lax.scan(step, (w, adam.init(w)), length=DIRECT_STEPS)[0][0])
    return train(w0)


def label_classes(us: list[dict[str, np.ndarray]]) -> dict[str, list[int]]:
    """Which classes some point's soft label has mostly named along the path, and at its end."""
    shares = np.asarray(jax.nn.softmax(np.stack([u["labels"] for u in us]), axis=-1))
    mostly = np.any(shares > 0.5, axis=1)  # (moments, classes)
    return {
        "on the way": np.flatnonzero(mostly.any(axis=0)).tolist(),
        "at the end": np.flatnonzero(mostly[-1]).tolist(),
    }


def one_run(
    setting: Setting, seed: int, steps: int | None = None, printed: bool = False
) -> dict[str, Any]:
    """One warm run, and retraining along its path; in the printed order, or in the library's."""
    method = bilevel.DoubleLoop(
        bilevel.GradientInner(optax.sgd(INNER_STEP), 1),
        bilevel.ITD(),
        optax.adam(OUTER_STEP, *setting.adam),
        warm_start=True,
    )
    method = bilevel.LookAhead(method) if printed else method
    X, y = rings(setting.classes, seed)
    w0, static = network(setting.classes, jr.key(seed))
    error = ErrorRate(Predict(static), X, y)
    rng = np.random.default_rng(seed)
    u0 = {"inputs": jnp.asarray(rng.normal(size=(setting.points, 2)), jnp.float32)}
    given = None
    if setting.soft:
        labels = rng.normal(size=(setting.points, setting.classes))  # equal ones stay equal
        u0["labels"] = jnp.asarray(labels, jnp.float32)
    else:
        given = tasks.hard_labels(jnp.arange(setting.points), setting.classes)
    problem = tasks.distillation(X, y, error.predict, labels=given)
    path = Watch(error)
    solution = bilevel.solve(
        *(problem, method, u0, w0),
        num_steps=steps or setting.steps,
        chunk_size=EVERY,
        trace_every=EVERY,
        callbacks=[path],
    )
    along = bilevel.Trajectory()
    picked = np.linspace(0, len(path.us) - 1, RETRAIN_POINTS).round().astype(int)
    along.steps = [path.steps[k] for k in picked]
    along.us = [path.us[k] for k in picked]
    check = bilevel.retrain_check(
        *(problem, solution, u0, lambda key: network(setting.classes, key)[0]),
        inner=RETRAIN,
        value=error,
        path=along,
        key=jr.key(seed + 100),
    )
    warm = np.asarray(path.accuracy)
    best = int(warm.argmax())
    unseen = rings(setting.classes, seed + 1000)
    fresh = ErrorRate(error.predict, *unseen)
    leak = bilevel.leak_check(problem, solution, check, unseen)
    trained = direct(problem, u0, w0)

    def judged(w: Any) -> dict[str, float]:
        return {
            "accuracy": 1 - float(error(None, w)),
            "test accuracy": 1 - float(fresh(None, w)),
            "outer loss": float(problem.outer(u0, w, problem.outer_data)),
        }

    return {
        "models": {"direct": judged(trained), "warm": judged(path.ws[best])},
        "leak": leak._asdict(),
        "classes of the labels": label_classes(path.us) if setting.soft else None,
        "setting": setting,
        "X": np.asarray(X),
        "y": np.asarray(y),
        "steps": np.asarray(path.steps),
        "warm": warm,
        "us": path.us,
        "best": best,
        "best_w": path.ws[best],
        "retrained_w": jax.tree.map(lambda x: np.asarray(x[0]), check.w),
        "predict": error.predict,
        "retrained": 1 - check.retrained,
        "along": 1 - check.path["retrained"].to_numpy(),
        "along_steps": check.path["step"].to_numpy(),
        "kept": check.kept,
        "verdict": check.verdict,
    }


COLOURS = np.array([[0.80, 0.20, 0.55], [0.25, 0.60, 0.30], [0.20, 0.35, 0.75]])


def boundary(axis: Any, outcome: dict[str, Any], w: Any) -> None:
    """Which class a model predicts where, behind the original points."""
    reach = outcome["setting"].classes + 0.8
    grid = np.linspace(-reach, reach, 160, dtype=np.float32)
    plane = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    predicted = np.asarray(outcome["predict"](w, jnp.asarray(plane))).argmax(1)
    picture = (0.35 * COLOURS[predicted] + 0.65).reshape(len(grid), len(grid), 3)
    axis.imshow(picture, origin="lower", extent=(-reach, reach) * 2)
    rows(axis, outcome)


def rows(axis: Any, outcome: dict[str, Any], **options: Any) -> None:
    """The original points."""
    reach = outcome["setting"].classes + 0.8
    axis.scatter(*outcome["X"].T, c=COLOURS[outcome["y"]], s=4, **options)
    axis.set(xticks=[], yticks=[], xlim=(-reach, reach), ylim=(-reach, reach))


def point_colours(outcome: dict[str, Any], u: dict[str, np.ndarray]) -> np.ndarray:
    """The class of each learned point; soft labels mix the colours."""
    setting = outcome["setting"]
    if "labels" in u:
        share = np.asarray(jax.nn.softmax(jnp.asarray(u["labels"])))
    else:
        share = np.eye(setting.classes)[: setting.points]
    return share @ COLOURS[: setting.classes]


def draw(measured: dict[str, Any]) -> Figure:
    """One row per setting: warm boundary and path of the points, retrained boundary, accuracies."""
    outcomes = measured["figure"]
    figure, axes = panels(len(outcomes), 3, (9.5, 3.1 * len(outcomes)), squeeze=False)
    for (warm, retrained, curve), outcome in zip(axes, outcomes, strict=True):
        setting, best = outcome["setting"], outcome["best"]
        boundary(warm, outcome, outcome["best_w"])
        us = [outcome["us"][k] for k in range(0, best + 1, 2)]
        for before, after in itertools.pairwise(us):
            colours = point_colours(outcome, after)
            for a, b, colour in zip(before["inputs"], after["inputs"], colours, strict=True):
                style = {"arrowstyle": "->", "color": 0.6 * colour, "lw": 0.9}
                warm.annotate("", xy=b, xytext=a, arrowprops=style)
        step, accuracy = outcome["steps"][best], outcome["warm"][best]
        warm.set_title(f"{setting.name}\nwarm, step {step}: {accuracy:.2f}", fontsize=9)
        boundary(retrained, outcome, outcome["retrained_w"])
        last = outcome["us"][-1]
        retrained.scatter(
            *last["inputs"].T, c=point_colours(outcome, last), s=110, marker="X", edgecolors="k"
        )
        accuracy = outcome["retrained"].mean()
        retrained.set_title(f"retrained on the final points\naccuracy {accuracy:.2f}", fontsize=9)
        curve.plot(outcome["steps"], outcome["warm"], label="warm, as left")
        curve.plot(outcome["along_steps"], outcome["along"], "o--", label="retrained", ms=4)
        curve.axhline(1 / setting.classes, color="0.6", ls=":", label="chance")
        curve.set(xlabel="outer step", ylabel="accuracy on the rings", ylim=(0, 1.03))
        curve.legend(loc="lower right", fontsize=8)
    return figure


def animate(measured: dict[str, Any], path: Path, frames: int = 60) -> None:
    """The walk of the points, with the warm accuracy at each moment, as a GIF."""
    outcome = measured["figure"][0]
    figure, axis = panels(1, 1, (4, 4))
    rows(axis, outcome, alpha=0.5)
    points = axis.scatter([], [], s=110, marker="X", edgecolors="k", zorder=3)
    inputs = np.stack([u["inputs"] for u in outcome["us"]])
    lines = [axis.plot([], [], lw=1, color="0.3")[0] for _ in range(inputs.shape[1])]
    picked = np.linspace(0, len(inputs) - 1, frames).round().astype(int)

    def show(k: int) -> list[Any]:
        points.set_offsets(inputs[k])
        points.set_facecolor(point_colours(outcome, outcome["us"][k]))
        for j, line in enumerate(lines):
            line.set_data(*inputs[max(0, k - 20) : k + 1, j].T)
        axis.set_title(f"step {outcome['steps'][k]}: warm accuracy {outcome['warm'][k]:.2f}")
        return [points, *lines]

    FuncAnimation(figure, show, frames=list(picked)).save(path, PillowWriter(fps=10), dpi=70)


def measure(full: bool) -> dict[str, Any]:
    """Full: all settings and three seeds. Quick: the first setting and seed, and half the steps."""
    settings = SETTINGS if full else SETTINGS[:1]
    seeds = range(3 if full else 1)
    steps = None if full else 3000
    with jax.enable_x64(False):
        runs = {s.name: [one_run(s, seed, steps) for seed in seeds] for s in settings}
        # The first setting alone, in the printed order.
        ahead = [one_run(settings[0], seed, steps, printed=True) for seed in seeds]
    kept = (
        "steps",
        "warm",
        "along_steps",
        "along",
        "retrained",
        "kept",
        "verdict",
        "models",
        "leak",
    )
    kept += ("classes of the labels",)
    return {
        "settings": {
            "width": WIDTH,
            "layers": LAYERS,
            "noise": NOISE,
            "rows_per_ring": PER_RING,
            "inner_step": INNER_STEP,
            "outer_step": OUTER_STEP,
            "steps": {s.name: steps or s.steps for s in settings},
        },
        "seeds": list(seeds),
        "not run": [
            left_out(
                "V5",
                f"{s.figure}, {s.name}: the warm model fits the rings, and no retrained model does.",
                "figure",
                "the quick size has two rings and two points only",
            )
            for s in SETTINGS[len(settings) :]
        ],
        "runs": {
            name: [{key: outcome[key] for key in kept} for outcome in outcomes]
            for name, outcomes in runs.items()
        },
        "printed_order": [{key: outcome[key] for key in kept} for outcome in ahead],
        "figure": [outcomes[0] for outcomes in runs.values()],
    }


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Two claims per setting, on its worst seed, and the first setting in the printed order."""
    judged = []
    for s in SETTINGS[: len(measured["runs"])]:
        runs = measured["runs"][s.name]
        judged += [
            _fits("V5", f"{s.figure}: {s.name}", runs),
            _as_good_as_direct(s, runs),
            _leaks(s, runs),
        ]
        if s.soft:
            judged.append(_all_classes(s, runs))
    ahead = measured["printed_order"]
    first = f"{SETTINGS[0].figure}, Algorithm 2 in the order as printed (`LookAhead`)"
    return [*judged, _fits("V1", first, ahead)]


def _fits(row: str, where: str, runs: list[dict[str, Any]]) -> Claim:
    warm = [round(float(max(o["warm"])), 3) for o in runs]
    again = [round(float(max(*o["along"], *o["retrained"])), 3) for o in runs]
    ends = [round(float(o["warm"][-1]), 3) for o in runs]
    test = [round(o["models"]["warm"]["test accuracy"], 3) for o in runs]
    return Claim(
        row,
        f"The warm model fits the rings, and no retrained model does ({where}).",
        "the warm model is nearly as good as one trained on the original data (figure)",
        f"best warm accuracy {warm}, best retrained accuracy along the path {again}",
        min(warm) >= 0.93 and max(again) <= 0.75,
        f"On rows that were not used, the best warm model has the accuracy {test}. At the end of the "
        f"run the warm model has {ends}. The verdict of retrain_check is "
        f"{', '.join(o['verdict'] for o in runs)}.",
    )


def _leaks(setting: Setting, runs: list[dict[str, Any]]) -> Claim:
    leaks = [o["leak"] for o in runs]
    share = [round(x["gain_new"] / x["gain_seen"], 3) for x in leaks]
    memorised = [f"{x['memorised']:.3f} +- {x['standard_error']:.3f}" for x in leaks]
    gains = [round(x["gain_seen"], 2) for x in leaks]
    return Claim(
        "V5",
        "What the warm model gains over retrained ones is the task and not its rows: on new rows it "
        "gains at least 0.9 of what it gains on the original ones "
        f"({setting.figure}: {setting.name}).",
        "warm starts leak the outer objective and may overfit it",
        f"share {share}; of the gain in the loss, {gains}, it has memorised {'; '.join(memorised)} "
        "(leak_check)",
        min(share) >= 0.9,
    )


def _all_classes(setting: Setting, runs: list[dict[str, Any]]) -> Claim:
    """The colours of the paths in the middle panel of Figure 13."""
    found = [o["classes of the labels"] for o in runs]
    way, end = ([x[key] for x in found] for key in ("on the way", "at the end"))
    return Claim(
        "V5",
        f"With two points the soft labels change so that all {setting.classes} classes are covered on "
        f"the way, of which the two last labels hold at most two ({setting.figure}).",
        "the labels change such that all three classes are covered",
        f"classes that a label has mostly named: on the way {way}, at the end {end}",
        all(len(x) == setting.classes for x in way) and all(len(x) <= 2 for x in end),
    )


def _as_good_as_direct(setting: Setting, runs: list[dict[str, Any]]) -> Claim:
    direct, warm = ([o["models"][key] for o in runs] for key in ("direct", "warm"))
    gaps = [one["accuracy"] - two["accuracy"] for one, two in zip(direct, warm, strict=True)]
    losses = {
        name: [float(f"{x['outer loss']:.2g}") for x in found]
        for name, found in (("warm", warm), ("direct", direct))
    }
    return Claim(
        "V5",
        "The warm model is nearly as good as a model trained on the original rows, by its accuracy: "
        f"less than 0.05 below it ({setting.figure}: {setting.name}).",
        "nearly as good (left panel)",
        f"accuracy of the original training minus that of the best warm model "
        f"{[round(x, 3) for x in gaps]}",
        max(gaps) < 0.05,
        f"By the outer loss it is not: {losses['warm']} (warm) against {losses['direct']} (trained "
        "on the original rows).",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == [
        "--animate"
    ]:  # rings.py --animate FILE.gif: the quick size, as an animation
        animate(measure(full=False), Path(sys.argv[2]))
    else:
        run(__file__, measure, draw, claims)
