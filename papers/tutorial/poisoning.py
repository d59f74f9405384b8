"""G3: how much a few shifted training rows can hurt a classifier, and whether one would see them.

Grazzi and Pontil (2023), "Principled and efficient bilevel optimization for machine learning"
[grazzi2023][], section "Data poisoning attacks": the outer variable is a perturbation `u_i` of
each of k training rows, `|u_i|_p <= eps`; the inner problem trains on the perturbed rows; the
outer problem maximises the loss on the adversary's own ("outer") rows. The slides say two things
that are measured here: the damage can overfit the outer rows, so that it is also measured on
held-out rows; and a smaller eps or k is harder to detect.

- There are two models: multinomial regression and a perceptron with 32 tanh units. The inner
  solution of the regression is unique: warm starts, AID. On the perceptron each hypergradient is
  that of a training run from the adversary's own initial weights (ITD): a warm-started model would
  be damaged through what it remembers of earlier perturbations, which retraining undoes.
- Each eps starts where the next smaller one ended. All rows move by the same length in each step.
- Every number is of a model *retrained from scratch* on the poisoned rows, the perceptron from
  initial weights that the adversary has not seen.
- The control is random directions; each row moves by the length that the attack used.
- The norm is the Euclidean one, p = 2, but for a part of its own: there the regression is attacked in
  the balls of p = 1 and p = infinity that lie within the Euclidean one of twice `radius`.
- Transfer: rows poisoned with one model are used to train the other.
- Detection: the mean distance of each training row to its five nearest rows of the same label, in
  the poisoned table. The AUROC is that of poisoned rows against other rows.

Quick: scikit-learn's digits, 400 training, 400 outer and 997 held-out rows. Full: MNIST, 1000
training and 1000 outer rows, 10000 held-out ones (its test split).
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _tutorial import Claim, Measured, digits, mnist, panels, run
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import bilevel
from bilevel import tasks

L2, TRAINING_STEPS, NEIGHBOURS = 1e-3, 600, 5
NORMS = {"1": 1.0, "infinity": np.inf}


class Settings(NamedTuple):
    """Sizes; `radii` and `counts` ascend, and `radius` is the one at which rows are counted."""

    data: str
    radii: list[float]
    counts: list[int]
    radius: float
    seeds: int
    outer_steps: int
    step: float
    inner_step: float


QUICK = Settings("digits", [1.0, 2.0, 4.0], [10, 40], 2.0, 2, 40, 0.3, 0.3)
FULL = Settings("MNIST", [2.0, 4.0, 8.0], [25, 100], 4.0, 3, 40, 0.8, 0.2)


class Split(NamedTuple):
    """Rows and labels: the training rows, the adversary's, and those that neither has seen."""

    train: tuple[Any, Any]
    outer: tuple[Any, Any]
    hold_out: tuple[Any, Any]


def load(data: str, seed: int) -> Split:
    """One random split, in units of the largest pixel, centred at the training rows' mean."""
    rng = np.random.default_rng(seed)
    if data == "digits":
        (x, y), n = digits(), 400
        order = rng.permutation(len(x))
        parts = order[:n], order[n : 2 * n], order[2 * n :]
        split = [(x[i], y[i]) for i in parts]
    else:
        order, n = rng.permutation(60_000), 1000
        split = [mnist("train", i) for i in (order[:n], order[n : 2 * n])] + [mnist("test")]
    mean = split[0][0].mean(axis=0)
    return Split(*((jnp.asarray(x - mean, "float32"), jnp.asarray(y, "int32")) for x, y in split))


def nesterov(step: float) -> optax.GradientTransformation:
    return optax.sgd(step, momentum=0.9, nesterov=True)


class Victim(NamedTuple):
    """A model, and how it is attacked: `w0(seed)` are initial weights."""

    predict: Any
    w0: Any
    method: bilevel.DoubleLoop


def victims(num_features: int, settings: Settings) -> dict[str, Victim]:
    """The regression and the perceptron."""
    linear = tasks.models.linear_model(num_features, 10)
    perceptron = tasks.models.mlp_model(num_features, 10, key=jr.key(0))

    def initial(seed: int):
        return tasks.models.mlp_model(num_features, 10, key=jr.key(seed)).w0

    rows = optax.stateless(lambda g, _: g / jnp.linalg.norm(g, axis=1, keepdims=True))
    step = optax.linear_schedule(settings.step, settings.step / 20, settings.outer_steps)
    outer_tx = optax.chain(rows, optax.scale_by_learning_rate(step))
    tx = nesterov(settings.inner_step)
    aid = bilevel.AID(bilevel.CG(rtol=1e-2, max_steps=30))
    return {
        "linear": Victim(
            linear.predict,
            lambda seed: linear.w0,
            bilevel.DoubleLoop(bilevel.GradientInner(tx, 20), aid, outer_tx, warm_start=True),
        ),
        "MLP": Victim(
            perceptron.predict,
            initial,
            bilevel.DoubleLoop(bilevel.GradientInner(tx, 100), bilevel.ITD(), outer_tx),
        ),
    }


@partial(jax.jit, static_argnums=(0, 3))
def train(predict, w0, rows, step: float):
    """The inner objective's minimiser, or what `TRAINING_STEPS` from `w0` make of it."""
    x, y = rows
    tx = nesterov(step)

    def loss(w):
        risk = jnp.mean(tasks.models.softmax_cross_entropy(predict(w, x), y))
        return risk + 0.5 * L2 * optax.tree.vdot(w, w)

    def iterate(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(iterate, (w0, tx.init(w0)), length=TRAINING_STEPS)[0][0]


@partial(jax.jit, static_argnums=0)
def accuracy(predict, w, rows):
    x, y = rows
    return jnp.mean(jnp.argmax(predict(w, x), axis=1) == y)


def outlier_scores(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean distance to the nearest rows of the same label."""
    scores = np.empty(len(x))
    for label in np.unique(y):
        of = np.flatnonzero(y == label)
        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(of) - 1)).fit(x[of])
        scores[of] = near.kneighbors()[0].mean(axis=1)
    return scores


def other_class_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The median distance from a row to the nearest row of another class: the scale of eps."""
    squares = (x**2).sum(1)
    distances = squares[:, None] + squares - 2 * x @ x.T
    distances[y[:, None] == y] = np.inf
    return float(np.median(np.sqrt(distances.min(axis=1))))


def judge(
    split: Split, table, poisoned, models: dict[str, Victim], seed: int, step: float
) -> dict[str, Any]:
    """Both models retrained on a table of rows: their accuracies; and how visible its rows are."""
    y = split.train[1]
    record: dict[str, Any] = {}
    for name, model in models.items():
        w = train(model.predict, model.w0(1000 + seed), (table, y), step)
        record[name] = {
            part: float(accuracy(model.predict, w, getattr(split, part)))
            for part in ("outer", "hold_out")
        }
    if len(poisoned):
        is_poisoned = np.isin(np.arange(len(y)), poisoned)
        scores = outlier_scores(np.asarray(table), np.asarray(y))
        limit = np.quantile(scores[~is_poisoned], 0.95)
        record["auroc"] = float(roc_auc_score(is_poisoned, scores))
        record["flagged"] = int((scores[is_poisoned] > limit).sum())
    return record


def other_norms(
    settings: Settings, seed: int, split: Split, model: Victim, rows: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    """The regression attacked in balls of p = 1 and infinity, at two radii, beside random moves."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[dict[str, Any]]] = {}
    d = split.train[0].shape[1]
    for name, p in NORMS.items():
        most = 2 * settings.radius / (1 if p == 1 else np.sqrt(d))
        u, found[name] = jnp.zeros((len(rows), d), split.train[0].dtype), []
        for radius in (most / 2, most):
            parts = *split.train, *split.outer
            ball: dict[str, Any] = {"poisoned": rows, "radius": radius, "p": p, "l2": L2}
            problem = tasks.poisoning(*parts, model.predict, **ball)
            w0, steps = model.w0(seed), settings.outer_steps
            u = bilevel.solve(problem, model.method, u, w0, num_steps=steps).u
            size = jnp.linalg.norm(u, ord=p, axis=1, keepdims=True)
            away = jnp.asarray(rng.normal(size=u.shape), u.dtype)
            away *= size / jnp.linalg.norm(away, ord=p, axis=1, keepdims=True)
            accuracies = {}
            for kind, moves in (("attack", u), ("random", away)):
                table = tasks.poisoned_rows(problem, moves)
                rest = {"linear": model}, seed, settings.inner_step
                record = judge(split, table, rows, *rest)
                accuracies[kind] = record["linear"]["hold_out"]
            found[name].append({"radius": radius, "longest": float(size.max()), **accuracies})
    return found


def measure_seed(
    settings: Settings, seed: int
) -> tuple[list[dict[str, Any]], float, dict[str, list[dict[str, Any]]]]:
    """A record for each table of training rows, the first of them clean; the scale of eps; and what
    other norms do."""
    split = load(settings.data, seed)
    x, y = split.train
    models = victims(x.shape[1], settings)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(x))[: settings.counts[-1]]

    def record(attack: str, radius: float, table, u) -> dict[str, Any]:
        found = judge(split, table, rows[: len(u)], models, seed, settings.inner_step)
        about = {"seed": seed, "attack": attack, "radius": radius, "count": len(u)}
        return {
            **about,
            "mean_norm": float(jnp.linalg.norm(u, axis=1).sum()) / max(len(u), 1),
            **found,
        }

    records = [record("none", 0.0, x, jnp.zeros((0, x.shape[1])))]
    for name, model in models.items():
        for count in settings.counts:
            u = jnp.zeros((count, x.shape[1]), x.dtype)
            for radius in settings.radii:
                if count < settings.counts[-1] and radius > settings.radius:
                    break
                problem = tasks.poisoning(
                    *split.train,
                    *split.outer,
                    model.predict,
                    poisoned=rows[:count],
                    radius=radius,
                    l2=L2,
                )
                w0 = model.w0(seed)
                steps = settings.outer_steps
                solution = bilevel.solve(problem, model.method, u, w0, num_steps=steps)
                u, loss = solution.u, -float(solution.trace["outer_value"][-1])
                if count == settings.counts[-1]:
                    away = jnp.asarray(rng.normal(size=u.shape), u.dtype)
                    away *= jnp.linalg.norm(u, axis=1, keepdims=True) / jnp.linalg.norm(
                        away, axis=1, keepdims=True
                    )
                    table = tasks.poisoned_rows(problem, away)
                    records.append(record(f"random as {name}", radius, table, away))
                elif radius != settings.radius:
                    continue
                found = record(name, radius, tasks.poisoned_rows(problem, u), u)
                records.append({**found, "outer_loss_as_left": loss})
    others = other_norms(settings, seed, split, models["linear"], rows)
    return records, other_class_distance(np.asarray(x), np.asarray(y)), others


class Table:
    """The records, to be asked for one number of each seed."""

    def __init__(self, measured: Measured):
        self.records = measured["records"]
        self.settings = Settings(*(measured["settings"][name] for name in Settings._fields))

    def ask(self, attack: str, radius: float, *path: str, count: int | None = None) -> np.ndarray:
        """One number per seed, such as that at `("MLP", "hold_out")`."""
        count = self.settings.counts[-1] if count is None else count
        found = []
        for record in self.records:
            if (record["attack"], record["radius"], record["count"]) == (attack, radius, count):
                value: Any = record
                for key in path:
                    value = value[key]
                found.append(value)
        assert len(found) == self.settings.seeds
        return np.array(found, float)

    def curve(self, attack: str, *path: str) -> np.ndarray:
        """`(radii, seeds)`."""
        return np.array([self.ask(attack, radius, *path) for radius in self.settings.radii])

    def by_count(self, attack: str, *path: str) -> list[float]:
        """Means over the seeds, for each number of poisoned rows."""
        settings = self.settings
        return [
            self.ask(attack, settings.radius, *path, count=count).mean()
            for count in settings.counts
        ]

    def clean(self, model: str, part: str = "hold_out") -> np.ndarray:
        """One accuracy per seed."""
        return self.ask("none", 0.0, model, part, count=0)


def measure(full: bool) -> Measured:
    """The records of all seeds."""
    settings = FULL if full else QUICK
    seeds = list(range(settings.seeds))
    runs = [measure_seed(settings, seed) for seed in seeds]
    scale = np.mean([scale for _, scale, _ in runs])
    about = {**settings._asdict(), "l2": L2, "other_class_distance": scale}
    records = [record for found, _, _ in runs for record in found]
    others = [other for _, _, other in runs]
    return {"settings": about, "seeds": seeds, "records": records, "other norms": others}


def draw(measured: Measured):
    """Accuracy of both models, and detection, against eps; accuracy against the number of rows."""
    table = Table(measured)
    settings, scale = table.settings, measured["settings"]["other_class_distance"]
    figure, axes = panels(1, 4, (15, 3.9))
    x = [0.0, *settings.radii]

    def line(axis, values, label, style):
        mean, low, high = values.mean(1), values.min(1), values.max(1)
        axis.plot(x[-len(mean) :], mean, style, ms=4, label=label)
        axis.fill_between(x[-len(mean) :], low, high, color=style[:2], alpha=0.12, lw=0)

    for axis, name, other in ((axes[0], "linear", "MLP"), (axes[1], "MLP", "linear")):
        for attack, part, label, style in [
            (f"random as {name}", "hold_out", "random, same size", "C7o-"),
            (other, "hold_out", "found with the other model", "C0s-"),
            (name, "hold_out", "attack", "C3o-"),
            (name, "outer", "attack, its own rows", "C3o:"),
        ]:
            first = table.clean(name, part)[None]
            line(axis, np.concatenate([first, table.curve(attack, name, part)]), label, style)
        axis.set(title=f"{name}, retrained", ylabel="accuracy on held-out rows")
    low = min(axis.get_ylim()[0] for axis in axes[:2])
    for axis in axes[:2]:
        axis.set_ylim(bottom=low)
    axes[1].legend(fontsize=8, loc="lower left")
    for name, color in (("linear", "C0"), ("MLP", "C1")):
        values = [table.clean(name).mean(), *table.by_count(name, name, "hold_out")]
        axes[2].plot([0, *settings.counts], values, color + "o-", ms=4, label=name)
        line(axes[3], table.curve(name, "auroc"), f"{name} attack", color + "o-")
        line(axes[3], table.curve(f"random as {name}", "auroc"), f"random as {name}", color + "o:")
    axes[2].set(
        title=f"eps = {settings.radius:g}",
        xlabel="poisoned rows",
        ylabel="accuracy on held-out rows",
    )
    axes[3].axhline(0.5, color="k", lw=0.8, ls=":")
    axes[3].set(title="are the rows outliers?", ylabel="AUROC of the distance to neighbours")
    for axis in axes[2:]:
        axis.legend(fontsize=8)
    for axis in (axes[0], axes[1], axes[3]):
        axis.axvline(scale, color="0.6", lw=0.8, ls="--")
        axis.set_xlabel("eps (dashed: distance to another class)")
    rows = {"digits": 400, "MNIST": 1000}[settings.data]
    figure.suptitle(
        f"{settings.data}: {settings.counts[-1]} of {rows} training rows shifted by at most eps; "
        f"{settings.seeds} seeds (mean, range)",
        fontsize=11,
    )
    return figure


def claims(measured: Measured) -> list[Claim]:
    """Row G3, claim by claim, for both models."""
    table = Table(measured)
    both = (("linear", "MLP"), ("MLP", "linear"))
    found = [claim for name, other in both for claim in claims_of(table, name, other)]
    clean = table.clean("linear")
    return [*found, *(_norm(p, [x[p] for x in measured["other norms"]], clean) for p in NORMS)]


def _norm(p: str, seeds: list[list[dict[str, Any]]], clean: np.ndarray) -> Claim:
    """The same of another norm: within the ball, worse than random moves, worse with its radius."""
    attack, random = (
        np.array([[x[kind] for x in s] for s in seeds]) for kind in ("attack", "random")
    )
    radii = [x["radius"] for x in seeds[0]]
    inside = all(x["longest"] <= x["radius"] * (1 + 1e-5) for s in seeds for x in s)
    path = [clean.mean(), *attack.mean(axis=0)]
    return Claim(
        "G3",
        f"The linear model, p = {p}: a larger eps hurts more, and at each eps and seed the attack "
        "hurts more than random moves of the same p-norm.",
        "p-norm balls",
        f"held-out accuracy {', '.join(f'{x:.3f}' for x in path)} at eps = 0, "
        f"{', '.join(f'{x:.3g}' for x in radii)}; random "
        f"{', '.join(f'{x:.3f}' for x in random.mean(axis=0))}",
        inside and bool((attack < random).all()) and all(a > b for a, b in pairwise(path)),
    )


def claims_of(table: Table, name: str, other: str) -> Iterator[Claim]:
    """The claims about one model, attacked through itself and through the other one."""
    settings = table.settings

    def shown(values) -> str:
        return ", ".join(f"{x:.3f}" for x in np.ravel(values))

    clean = table.clean(name)
    own = table.curve(name, name, "hold_out")
    random = table.curve(f"random as {name}", name, "hold_out")
    path = [clean.mean(), *own.mean(axis=1)]
    seen = table.curve(name, "outer_loss_as_left").mean(axis=1)
    yield Claim(
        "G3",
        f"The {name} model: a larger eps hurts more (held-out accuracy).",
        "smaller eps, less damage",
        f"{shown(path)} at eps = 0, {', '.join(map(str, settings.radii))}",
        all(a > b for a, b in pairwise(path)),
        f"The outer loss that the attack itself saw last is {shown(seen)}."
        + (
            ""
            if all(a > b for a, b in pairwise(path))
            else " This loss, which the attack maximises, rises with eps; the error of a model "
            "trained anew on the poisoned rows does not have to. By seed the accuracies are "
            + "; ".join(
                f"{shown(row)} at eps = {r}" for r, row in zip(settings.radii, own, strict=True)
            )
            + "."
        ),
    )
    yield Claim(
        "G3",
        f"The {name} model: at each eps and seed the attack hurts more than random moves of the "
        "same length.",
        "control",
        f"random {shown(random.mean(axis=1))}",
        bool((own < random).all()),
    )
    by_count = table.by_count(name, name, "hold_out")
    yield Claim(
        "G3",
        f"The {name} model: fewer poisoned rows hurt less (held-out accuracy).",
        "fewer rows, less damage",
        f"{shown(by_count)} with {settings.counts} rows at eps = {settings.radius}",
        all(a > b for a, b in pairwise([clean.mean(), *by_count])),
    )
    auroc = table.curve(name, "auroc").mean(axis=1)
    random_auroc = table.curve(f"random as {name}", "auroc").mean(axis=1)
    yield Claim(
        "G3",
        f"The {name} model: a smaller eps is harder to detect (AUROC of the outlier score).",
        "smaller eps, lower chance",
        shown(auroc),
        all(a < b for a, b in pairwise([0.5, *auroc])),
        f"For random moves of the same length it is {shown(random_auroc)}.",
    )
    flagged, per_row = table.by_count(name, "flagged"), table.by_count(name, "auroc")
    yield Claim(
        "G3",
        f"The {name} model: fewer poisoned rows are harder to detect (how many score above 95 % "
        "of the other rows).",
        "fewer rows, lower chance",
        ", ".join(f"{x:.1f} of {k}" for x, k in zip(flagged, settings.counts, strict=True)),
        all(a < b for a, b in pairwise([0, *flagged])),
        f"There are fewer of them to be seen. The AUROC of a single row is {shown(per_row)}.",
    )
    gap = [
        (table.clean(name, "outer") - table.ask(name, radius, name, "outer")).mean()
        - (clean - table.ask(name, radius, name, "hold_out")).mean()
        for radius in settings.radii
    ]
    yield Claim(
        "G3",
        f"The {name} model: the damage overfits the outer rows (loss of accuracy there minus that "
        "on held-out rows).",
        "possible",
        shown(gap),
        bool(min(gap) > 0),
    )
    transferred = table.curve(other, name, "hold_out")
    control = table.curve(f"random as {other}", name, "hold_out")
    share = (clean - transferred).mean(axis=1) / (clean - own).mean(axis=1)
    yield Claim(
        "G3",
        f"Rows poisoned with the {other} model hurt the {name} model more than random moves do.",
        "control",
        f"held-out accuracy {shown(transferred.mean(axis=1))}, random "
        f"{shown(control.mean(axis=1))}",
        bool((transferred.mean(axis=1) < control.mean(axis=1)).all()),
        f"The damage is {shown(share)} of that of the model's own attack.",
    )


if __name__ == "__main__":
    run(__file__, measure, draw, claims)
