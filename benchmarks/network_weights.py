"""Wrong labels and a network: which weights of its training rows are worth learning, at what cost?

    python benchmarks/network_weights.py [--quick] [--add]

A small convolutional network, images with 40 % wrong labels (pairs of classes, or by features) and
some hundred trusted rows. Each method gives a weight per training row. It is judged by the area
under the ROC curve with which it ranks the right labels above the wrong ones, and by the test
accuracy of a network that is trained from scratch on the weighted rows and the trusted rows, with as
many steps for every method.

- "all rows + trusted" and "trusted only" learn no weights; the latter ranks labels by the
  probability that its network gives them;
- "pool": `learn_weights` with the probabilities of five networks, each trained without a fifth of
  the training rows (`pred_probs`), as `docs/start/jax.md` says; "pool, network fitted" gives it the
  network as an estimator, which it fits itself on what it wants;
- "bilevel": one weight per row on the simplex (`tasks.reweighting`), minibatches. "one step" is the
  derivative through the last step of Adam (`ITD`), "SOBA" is the single-loop method; the steepest
  row of a batch moves by `RADIUS` in its log-weight per step;
- "MW-Net-style": the weight is a small network of the row's loss, learned through one step of the
  inner optimiser: Shu et al. (2019), "Meta-weight-net: Learning an explicit mapping for sample
  weighting" [shu2019][];
- "L2RW-style": weights of a batch are the positive parts of the derivatives of the trusted loss after
  a virtual step, normalised: Ren et al. (2018), "Learning to reweight examples for robust deep
  learning" [ren2018][], Algorithm 1. A row's weight is the mean over its visits;
- "right rows + trusted" knows the truth.

Departures: all networks are trained by Adam. In MW-Net-style the step of the network is the virtual
step too, as `DoubleLoop` does it, and the weights of a batch are divided by their mean, without which
they all went to 1: larger steps are what the trusted loss asks for first. Searches also have the
network that they end with ("as left"). Cost: gradients of rows, where a gradient, a product with the
Hessian and a mixed product on the same row count one each, without the training on the weights, and
CPU seconds with compilation.

The settings of the methods were chosen on scikit-learn's digits (`--quick`, which needs no files):
the step of MW-Net's weights among 1e-3, 1e-2 and 1e-1, of which the larger two gave the weight to
rows of high loss. The others are first guesses.
The full size reads Fashion-MNIST and MNIST from BILEVEL_DATA, 14 x 14 pixels each. It takes about an
hour; `--add` goes on from the last report.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from _measure import IMAGES, RESULTS, panels, save, write
from _one_step import ADAM, Scored, first_weights, reweight, weigh
from _small_network import (
    BATCH,
    CLASSES,
    L2,
    RATE,
    STEP,
    TRAINED,
    Cell,
    NetworkClassifier,
    Size,
    draw,
    logits,
    network,
    probabilities,
    train,
)
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

import bilevel
from bilevel import tasks
from bilevel.reweighting import learn_weights
from bilevel.reweighting._weights.row_weights import row_weights
from bilevel.tasks.models import softmax_cross_entropy

FOLDS, TRUSTED_BATCH = 5, 64
RADIUS = 0.5  # of the log-weight of the steepest row of a batch
SOBA_STEP = 0.05
META_STEP = 1e-3  # as published; at 1e-2 rows of high loss got all the weight


QUICK, FULL = Size(900, 400, 8, 600), Size(2000, 400, 8, 10_000)


# -- what the methods find -----------------------------------------------------------------------


class Found(NamedTuple):
    """Weights of the training rows and of one trusted row; the ranking; what the search took."""

    weights: np.ndarray
    trusted: float
    ranking: np.ndarray | None
    gradients_of_rows: int
    left: Any = None


class Search(NamedTuple):
    """What every method is given."""

    cell: Cell
    model: tasks.models.Model
    size: Size
    seed: int


def none(s: Search, weight: float) -> Found:
    """All rows alike, or none of them."""
    n = len(s.cell.given)
    if weight:
        return Found(np.ones(n), 1.0, None, 0)
    w = train(
        s.model, s.cell.x_trusted, s.cell.y_trusted, np.ones(len(s.cell.y_trusted)), s.size.steps, 7
    )
    p = probabilities(s.model.predict, w, s.cell.x)
    return Found(np.zeros(n), 1.0, p[np.arange(n), s.cell.given], 0)


def right_rows(s: Search) -> Found:
    """The truth."""
    return Found(1.0 - s.cell.wrong, 1.0, None, 0)


def pool(s: Search) -> Found:
    """Out-of-fold probabilities of five networks, and `learn_weights`."""
    cell = s.cell
    p, p_trusted = np.zeros((len(cell.given), CLASSES)), 0
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=s.seed)
    for fit, judge in folds.split(cell.x, cell.given):
        weight = np.isin(np.arange(len(p)), fit).astype(float)
        w = train(s.model, cell.x, cell.given, weight, s.size.steps, s.seed)
        p[judge] = probabilities(s.model.predict, w, cell.x[judge])
        p_trusted = p_trusted + probabilities(s.model.predict, w, cell.x_trusted) / FOLDS
    given = {"pred_probs": p, "pred_probs_trusted": p_trusted}
    return _learned(s, **given)


def pool_of_fits(s: Search) -> Found:
    """The network is the estimator, and the pool fits it."""
    estimator = NetworkClassifier(s.cell.x.shape[1:], s.size.width, s.size.steps, s.seed)
    return _learned(s, estimator=estimator)


def _learned(s: Search, **options: Any) -> Found:
    rows = [x.reshape(len(x), -1) for x in (s.cell.x, s.cell.x_trusted)]
    found = learn_weights(
        *(rows[0], s.cell.given, rows[1], s.cell.y_trusted),
        task="classification",
        seed=s.seed,
        **options,
    )
    weight = found.sample_weight(len(rows[1]))
    n = len(s.cell.given)
    return Found(weight[:n], float(weight[n]), np.asarray(found.label_quality), 0)


def _samplers() -> dict[str, Any]:
    return {
        "inner_sampler": bilevel.Shuffled(BATCH),
        "outer_sampler": bilevel.Shuffled(TRUSTED_BATCH),
    }


def _problem(s: Search, l2: float = L2) -> bilevel.BilevelProblem:
    x, y = jnp.asarray(s.cell.x), jnp.asarray(s.cell.given, jnp.int32)
    trusted = jnp.asarray(s.cell.x_trusted), jnp.asarray(s.cell.y_trusted)
    return tasks.reweighting(x, y, *trusted, s.model.predict, l2=l2)


def bilevel_rows(s: Search, kind: str) -> Found:
    """One weight per row, on the simplex."""
    problem, n = _problem(s), len(s.cell.given)
    inner = bilevel.GradientInner(ADAM, 1)
    if kind == "one step":
        method: Any = bilevel.DoubleLoop(inner, bilevel.ITD(), BOLD, True, **_samplers())
    else:
        limited = bilevel.TransformedGeometry(LIMIT)
        problem = eqx.tree_at(lambda p: p.geometry, problem, limited)
        method = bilevel.SOBA(SOBA_STEP, SOBA_STEP, 1e6, **_samplers())
    solution = bilevel.solve(
        problem,
        method,
        tasks.uniform_weights(n),
        s.model.w0,
        num_steps=s.size.steps,
        key=jax.random.key(s.seed),
        trace_every=s.size.steps,
        throw=False,
    )
    _to_the_end(solution, s)
    u = np.asarray(solution.u, np.float64)
    found = row_weights(u)
    return Found(found.weights, found.trusted_weight, u, _rows_of(solution.stats), solution.w)


def _to_the_end(solution: bilevel.Solution, s: Search) -> None:
    """Few steps on minibatches may end in any way but before their number."""
    if solution.stats["num_steps"] < s.size.steps:
        raise RuntimeError(f"a search stopped early: {solution.result}")


# One object each, so that runs share a compilation.
LIMIT = bilevel.limit_log_step(RADIUS)
BOLD = optax.chain(optax.sgd(1e6), LIMIT)
META_ADAM = optax.adam(META_STEP)


def _rows_of(stats: dict[str, Any]) -> int:
    calls = stats["calls"]
    return TRUSTED_BATCH * calls["outer_grad"] + BATCH * sum(
        calls[name] for name in ("inner_grad", "hvp", "mixed")
    )


def meta_weight_net(s: Search) -> Found:
    """A network from the loss of a row to its weight."""
    base = _problem(s)
    problem = bilevel.BilevelProblem(
        base.outer, Scored(s.model.predict), base.outer_data, base.inner_data
    )
    u0 = first_weights(jax.random.key(s.seed))
    method = bilevel.DoubleLoop(
        *(bilevel.GradientInner(ADAM, 1), bilevel.ITD(), META_ADAM, True),
        **_samplers(),
    )
    solution = bilevel.solve(
        *(problem, method, u0, s.model.w0),
        num_steps=s.size.steps,
        key=jax.random.key(s.seed),
        trace_every=s.size.steps,
        throw=False,
    )
    _to_the_end(solution, s)
    x, y, _ = base.inner_data  # pyright: ignore[reportGeneralTypeIssues]
    losses = softmax_cross_entropy(logits(s.model.predict, solution.w, x), y)
    v = np.asarray(weigh(solution.u, losses), np.float64)
    return _one_step(v, _rows_of(solution.stats), solution.w)


def _one_step(v: np.ndarray, gradients: int, w: Any) -> Found:
    """The weights as they are; a trusted row weighs as much as a row at their 90th percentile."""
    return Found(v / v.mean(), float(np.quantile(v, 0.9) / v.mean()), v, gradients, w)


def reweight_examples(s: Search) -> Found:
    """Weights of a batch by one derivative, which are forgotten after it."""
    rng, steps, cell = np.random.default_rng(s.seed), s.size.steps, s.cell

    def order(rows: int, batch: int) -> Any:
        epochs = -(-steps * batch // rows)
        drawn = np.concatenate([rng.permutation(rows) for _ in range(epochs)])
        return jnp.asarray(drawn[: steps * batch].reshape(steps, batch))

    data = (cell.x, cell.given.astype(np.int32)), (cell.x_trusted, cell.y_trusted)
    orders = order(len(cell.given), BATCH), order(len(cell.y_trusted), TRUSTED_BATCH)
    rows, trusted = jax.tree.map(jnp.asarray, data)
    w, u = reweight(s.model.predict, s.model.w0, rows, trusted, orders)
    # The derivative in the weights and the gradient of the batch, and the trusted gradient.
    return _one_step(np.asarray(u, np.float64), steps * (2 * BATCH + TRUSTED_BATCH), w)


METHODS: dict[str, Callable[[Search], Found]] = {
    "all rows + trusted": partial(none, weight=1.0),
    "trusted only": partial(none, weight=0.0),
    "pool": pool,
    "pool, network fitted": pool_of_fits,  # about twenty trainings
    "bilevel, one step": partial(bilevel_rows, kind="one step"),
    "bilevel, SOBA": partial(bilevel_rows, kind="SOBA"),
    "MW-Net-style": meta_weight_net,
    "L2RW-style": reweight_examples,
    "right rows + trusted": right_rows,
}


FIRST = ("all rows + trusted", "pool", "bilevel, SOBA", "right rows + trusted")
NOISES = ("pairs", "features")
DATA, ROWS, SEEDS = ("fashion_mnist", "mnist"), (200, 1000), (0, 1)
CELLS = list(product(DATA, NOISES, ROWS, SEEDS))
PLACE = ("data", "noise", "trusted", "seed")
RUN = (*PLACE, "method")
QUICK_CELLS = [("digits", noise, 200, 0) for noise in NOISES]


def judge(s: Search, name: str) -> dict[str, Any]:
    """Run a method, and train a network from scratch on what it found."""
    start, before = time.process_time(), sum(TRAINED)
    found = METHODS[name](s)
    seconds, trained = time.process_time() - start, sum(TRAINED) - before
    cell, predict = s.cell, s.model.predict
    m = len(cell.y_trusted)

    def accuracy(w: Any) -> float:
        return float(np.mean(probabilities(predict, w, cell.x_test).argmax(1) == cell.y_test))

    weight = np.concatenate([found.weights, np.full(m, found.trusted)])
    if not np.isfinite(weight).all():
        raise FloatingPointError(f"{name}: weights that are not finite")
    x, y = np.concatenate([cell.x, cell.x_trusted]), np.concatenate([cell.given, cell.y_trusted])
    fresh = network(cell.x.shape[1:], s.size.width, s.seed + 1000)
    accurate = accuracy(train(fresh, x, y, weight, s.size.steps, s.seed + 1000))
    ranked = found.ranking
    return {
        "method": name,
        "auroc": None if ranked is None else float(roc_auc_score(~cell.wrong, ranked)),
        "accuracy": accurate,
        "as left": None if found.left is None else accuracy(found.left),
        "ess": bilevel.effective_sample_size(found.weights) if found.weights.any() else 0.0,
        "weight on wrong": float(found.weights @ cell.wrong / max(found.weights.sum(), 1e-12)),
        "gradients_of_rows": found.gradients_of_rows + trained,
        "cpu_seconds": seconds,
    }


def summary(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Means over the seeds, per data set, noise, number of trusted rows and method."""
    keys = [key for key in RUN if key != "seed"]
    groups: Any = runs.drop(columns="seed").groupby(keys, sort=False)
    found = groups.mean().reset_index()
    return found.assign(seeds=groups.size().to_numpy()).to_dict(orient="records")


def main() -> None:
    """Run all cells, or what the last report lacks, and write the report after each method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--add", action="store_true", help="only what the last report lacks")
    options = parser.parse_args()
    size, cells = (QUICK, QUICK_CELLS) if options.quick else (FULL, CELLS)
    runs = _last_runs(cells) if options.add else []
    done = {tuple(run[key] for key in RUN) for run in runs}
    missing = [(place, name) for place in cells for name in METHODS if (*place, name) not in done]
    # What decides first, then fewer seeds and fewer trusted rows.
    for place, name in sorted(missing, key=lambda x: (x[1] not in FIRST, x[0][3], x[0][2])):
        data, noise, trusted, seed = place
        cell = draw(data, noise, trusted, seed, size)
        s = Search(cell, network(cell.x.shape[1:], size.width, seed), size, seed)
        runs.append(dict(zip(PLACE, place, strict=True)) | judge(s, name))
        print(*(f"{x:.4g}" if isinstance(x, float) else x for x in runs[-1].values()))
        report(runs, cells, size, full=not options.quick)
    if not options.quick:
        draw_runs(runs)


def report(runs: list[dict[str, Any]], cells: list[Any], size: Size, *, full: bool) -> None:
    """Write the runs in the order of cells and methods, with their means over the seeds."""
    names = list(METHODS)
    ordered = sorted(
        runs, key=lambda r: (cells.index(tuple(r[k] for k in PLACE)), names.index(r["method"]))
    )
    settings = size._asdict() | {
        "batch": BATCH,
        "trusted_batch": TRUSTED_BATCH,
        "noise": RATE,
        "adam": STEP,
        "l2": L2,
        "radius": RADIUS,
        "soba": SOBA_STEP,
        "meta": META_STEP,
        "training": size.steps * BATCH,
    }
    measured = {
        "settings": settings,
        "seeds": sorted({r["seed"] for r in runs}),
        "runs": ordered,
        "cells": summary(pd.DataFrame(ordered)),
    }
    write(__file__, measured, full=full)


def draw_runs(runs: list[dict[str, Any]]) -> None:
    """The accuracy of retrained networks over that of all rows, and the area under the ROC curve."""
    base = {
        tuple(run[key] for key in PLACE): run["accuracy"]
        for run in runs
        if run["method"] == "all rows + trusted"
    }
    places = list(dict.fromkeys(place[:3] for place in base))
    figure, axes = panels(1, 2, (13, 0.5 * len(places) + 2.2), sharey=True)
    for k, name in enumerate(METHODS):
        own = [(tuple(run[key] for key in PLACE), run) for run in runs if run["method"] == name]
        for axis, key in zip(axes, ("accuracy", "auroc"), strict=True):
            found = [
                (run[key] - (base[place] if key == "accuracy" else 0), places.index(place[:3]))
                for place, run in own
                if run[key] is not None
            ]
            if found and name != "all rows + trusted":
                x, at = np.array(found).T
                style = "o^svDPX*d"[k]
                axis.plot(x, at + 0.08 * (k - 4), style, color=f"C{k}", label=name, alpha=0.8)
    axes[0].axvline(0, color="k", lw=1)
    axes[0].set_xlabel(
        "test accuracy after training on the weights, minus that of all rows + trusted"
    )
    axes[1].set_xlabel("area under the ROC curve of the ranking")
    axes[0].set_yticks(range(len(places)), [f"{a}, {b}, {c} trusted" for a, b, c in places])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save(figure, IMAGES / "network_weights.png")


def _last_runs(cells: list[Any]) -> list[dict[str, Any]]:
    last = RESULTS / "network_weights.json"
    runs = json.loads(last.read_text())["runs"] if last.exists() else []
    return [run for run in runs if tuple(run[key] for key in PLACE) in cells]


if __name__ == "__main__":
    main()
