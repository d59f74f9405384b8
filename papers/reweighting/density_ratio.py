"""R8, Proposition 1: with l = l', the density ratio of the two distributions solves the problem.

Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization", section 2.1.
There are two Gaussians whose ratio dnu/dmu is known: training rows from mu, outer rows from nu. The
proposition says that the ratio is *a* solution in the population. We look at

* the hypergradient at the weights of the true ratio, which must vanish as the rows grow in number;
* the weights that the library learns from uniform ones (exact inner solution, near-exact outer steps
  in a trust region), against the true ratio, and beside a classifier's estimate of it;
* when those weights are the ratio: any weights with the same theta* solve the problem as well, so it
  takes a model that is rich enough to pin them down.

Two models on the same D random Fourier features phi of a row:

    embedding    l(theta; x)    = 1/2 |theta - phi(x)|^2            theta* is a weighted mean
    regression   l(theta; x, y) = 1/2 (<theta, phi(x)> - y)^2 + ridge

The first one is kernel mean matching as a bilevel problem: `F` is, up to a constant, half the
squared distance of the mean embeddings. Mirror steps from uniform weights keep its log-weights
affine in the features, so few steps and few features regularise.

The paper has no numbers here; all constants are ours.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, PolynomialFeatures

import bilevel

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels, slope, span

SHIFT, SCALE = np.array([1.0, 0.5]), 0.7  # nu = N(SHIFT, SCALE^2 I), mu = N(0, I)
N, M, RIDGE = 1000, 1000, 1e-3
FEATURES = (1, 2, 5, 10, 20, 50, 100)
OUTER_ROWS = (10, 30, 100, 300, 1000, 3000)
ROWS, FEW = (400, 1600, 6400, 25_600), 10  # n = m and D, for the hypergradient at the true ratio
STEPS, EARLY = 100, 5  # outer steps
MODELS = ("embedding", "regression")
GOOD = 0.9  # a rank correlation


class Draw(NamedTuple):
    """Training rows of mu and outer rows of nu, and the frequencies and phases of the features."""

    x: np.ndarray
    x_outer: np.ndarray
    frequencies: np.ndarray
    phases: np.ndarray


def draw_rows(seed: int, n: int = N, m: int = M, d: int = FEATURES[-1]) -> Draw:
    rng = np.random.default_rng(seed)
    return Draw(
        rng.normal(size=(n, 2)),
        SHIFT + SCALE * rng.normal(size=(m, 2)),
        rng.normal(size=(2, d)),
        rng.uniform(0, 2 * np.pi, d),
    )


def true_ratio(x: np.ndarray) -> np.ndarray:
    """dnu/dmu, at most 1 / SCALE^2 times a constant because nu is narrower."""
    log = 0.5 * np.sum(x**2, -1) - 0.5 * np.sum((x - SHIFT) ** 2, -1) / SCALE**2
    return np.exp(log) / SCALE**2


def features(x: Any, frequencies: Any, phases: Any, d: Any) -> jax.Array:
    """The first `d` of the random Fourier features, and zeros in place of the others."""
    phi = jnp.sqrt(2.0) * jnp.cos(jnp.asarray(x) @ frequencies + phases)
    return phi * (jnp.arange(phi.shape[-1]) < d)


def target(x: Any) -> jax.Array:
    """What the regression predicts; no noise, which is the best case."""
    x = jnp.asarray(x)
    return jnp.sin(2 * x[:, 0]) + x[:, 0] * x[:, 1]


class Model(NamedTuple):
    """A loss per row (the same on both levels), its weighted minimiser, and a linear solver."""

    loss: Callable[[Any, Any], Any]
    solution: Callable[[Any, Any], Any]
    linear: lx.AbstractLinearSolver


def embedding_loss(w, batch):
    return 0.5 * jnp.sum((w - batch[0]) ** 2, axis=1)


def embedding_solution(u, batch):
    return u @ batch[0] / jnp.sum(u)


def regression_loss(w, batch):
    phi, y = batch
    return 0.5 * (phi @ w - y) ** 2 + 0.5 * RIDGE * jnp.vdot(w, w)


def regression_solution(u, batch):
    phi, y = batch
    hessian = phi.T @ (u[:, None] * phi) + RIDGE * jnp.sum(u) * jnp.eye(phi.shape[1])
    return jnp.linalg.solve(hessian, phi.T @ (u * y))


LOSSES = {
    # The Hessian of the first is the identity: conjugate gradients need one step.
    "embedding": Model(embedding_loss, embedding_solution, lx.CG(rtol=1e-10, atol=1e-12)),
    "regression": Model(regression_loss, regression_solution, lx.Cholesky()),
}


def build(name: str, draw: Draw, d: Any) -> bilevel.BilevelProblem:
    """The reweighting problem (2) of a model with `d` features."""
    model = LOSSES[name]

    def rows(x):
        return features(x, draw.frequencies, draw.phases, d), target(x)

    return bilevel.BilevelProblem(
        outer=lambda u, w, batch: jnp.mean(model.loss(w, batch)),
        inner=lambda u, w, batch: jnp.vdot(u, model.loss(w, batch)),
        outer_data=rows(draw.x_outer),
        inner_data=rows(draw.x),
        geometry=bilevel.Simplex(),
    )


@eqx.filter_jit
def learn(name: str, draw: Draw, d: Any, steps: int) -> tuple[Any, Any]:
    """Weights and outer values along the path from uniform weights; draws may be stacked."""
    model = LOSSES[name]
    method = bilevel.DoubleLoop(
        bilevel.ClosedForm(model.solution),
        bilevel.AID(model.linear),
        # The inner solution is exact, so a rise is the step's fault, and its radius stays smaller.
        bilevel.log_trust_region(grow=1.0),
    )

    def one(draw: Draw) -> tuple[Any, Any]:
        problem = build(name, draw, d)
        n, p = problem.inner_data[0].shape  # pyright: ignore[reportOptionalSubscript]
        state = method.init(problem, jnp.full(n, 1 / n), jnp.zeros(p), jax.random.key(0))

        def step(state, _):
            state, info = method.step(problem, state)
            return state, (state.u, info.outer_value)

        return jax.lax.scan(step, state, length=steps)[1]

    # Not vmap: batched LAPACK calls can deadlock on a machine with few cores (jaxlib 0.10).
    return jax.lax.map(one, draw)


@eqx.filter_jit
def hypergradients(name: str, draw: Draw, ratio: Any, d: Any) -> tuple[Any, Any]:
    """Root mean square of the hypergradient on the simplex: at the true ratio, at uniform weights."""
    model = LOSSES[name]

    def one(draw: Draw, ratio: Any) -> tuple[Any, Any]:
        problem = build(name, draw, d)

        def size(u):
            w = model.solution(u, problem.inner_data)
            grad = bilevel.implicit_gradient(problem, u, w, model.linear).grad
            return jnp.sqrt(jnp.mean(bilevel.Simplex().tangent(u, grad) ** 2))

        return size(ratio / jnp.sum(ratio)), size(jnp.full(len(ratio), 1 / len(ratio)))

    return jax.lax.map(lambda args: one(*args), (draw, ratio))


@eqx.filter_jit
def excess(name: str, draw: Draw, d: Any, values: Any) -> Any:
    """Last over first excess of the outer value, over its minimum: how far the problem is solved."""
    model = LOSSES[name]

    def one(args: tuple[Draw, Any]) -> Any:
        problem = build(name, args[0], d)
        m = args[0].x_outer.shape[0]
        best = problem.outer(
            None, model.solution(jnp.full(m, 1 / m), problem.outer_data), problem.outer_data
        )
        return (args[1][-1] - best) / (args[1][0] - best)

    return jax.lax.map(one, (draw, values))


def classifier_ratio(draw: Draw, kind: str) -> np.ndarray:
    """`p / (1 - p) n / m` of a logistic regression that tells outer rows from training rows."""
    if kind == "quadratic":  # well specified: the log-ratio of two Gaussians is quadratic
        expand = PolynomialFeatures(2, include_bias=False)
    else:
        expand = FunctionTransformer(
            lambda x: np.asarray(features(x, draw.frequencies, draw.phases, FEATURES[-1]))
        )
    model = make_pipeline(expand, LogisticRegression(max_iter=2000))
    label = np.repeat([0, 1], [len(draw.x), len(draw.x_outer)])
    model.fit(np.concatenate([draw.x, draw.x_outer]), label)
    return np.exp(model.decision_function(draw.x)) * len(draw.x) / len(draw.x_outer)


def compare(weights: Any, ratio: np.ndarray) -> dict[str, float]:
    """Rank correlation with the true ratio, total variation distance of the two, ESS."""
    weights = np.asarray(weights)
    weights = weights / weights.sum()
    return {
        "spearman": round(float(np.asarray(spearmanr(weights, ratio)[0])), 4),
        "total_variation": round(0.5 * float(np.abs(weights - ratio / ratio.sum()).sum()), 4),
        "ess": round(bilevel.effective_sample_size(weights), 1),
    }


def stack(draws: list[Draw]) -> Draw:
    return Draw(*(np.stack(column) for column in zip(*draws, strict=True)))


def mean(results: list[dict[str, float]], key: str = "spearman") -> float:
    return float(np.mean([result[key] for result in results]))


def affine_residual(draw: Draw, weights: Any) -> float:
    """What is left of the log-weights when a function affine in the features is fitted to them."""
    phi = np.asarray(features(draw.x, draw.frequencies, draw.phases, FEATURES[-1]))
    design = np.column_stack([phi, np.ones(len(phi))])
    log = np.log(np.asarray(weights))
    return float(np.abs(log - design @ np.linalg.lstsq(design, log)[0]).max())


def vary_features(draws: list[Draw]) -> dict[str, dict[int, Any]]:
    """Both models with 1 to 100 features: the learned weights, against the true ratio."""
    ratios = [true_ratio(draw.x) for draw in draws]
    stacked, results = stack(draws), {}
    for name in MODELS:
        results[name] = {}
        for d in FEATURES:
            path, values = learn(name, stacked, jnp.asarray(d), STEPS)
            results[name][d] = {
                "weights": np.asarray(path[:, -1]),
                "excess": np.asarray(excess(name, stacked, jnp.asarray(d), values)).tolist(),
                "runs": [compare(u[-1], r) for u, r in zip(path, ratios, strict=True)],
            }
    return results


def vary_outer_rows(seeds: int) -> dict[int, Any]:
    """The embedding with all features and 10 to 3000 outer rows: path, end, and the classifier."""
    results = {}
    for m in OUTER_ROWS:
        draws = [draw_rows(seed, m=m) for seed in range(seeds)]
        ratios = [true_ratio(draw.x) for draw in draws]
        path = np.asarray(learn("embedding", stack(draws), jnp.asarray(FEATURES[-1]), STEPS)[0])
        pairs = list(zip(draws, path, ratios, strict=True))
        results[m] = {
            "path": [[compare(u, r)["spearman"] for u in p] for _, p, r in pairs],
            "runs": [compare(p[-1], r) for _, p, r in pairs],
            "early": [compare(p[EARLY - 1], r) for _, p, r in pairs],
            "classifier": [compare(classifier_ratio(x, "quadratic"), r) for x, _, r in pairs],
        }
    return results


def vary_rows(seeds: int) -> dict[str, Any]:
    """Median size of the hypergradient at the true ratio and at uniform weights, and its slope."""
    results: dict[str, Any] = {name: {"ratio": [], "uniform": []} for name in MODELS}
    for n in ROWS:
        draws = stack([draw_rows(seed, n, n, FEW) for seed in range(seeds)])
        for name in MODELS:
            sizes = hypergradients(name, draws, true_ratio(draws.x), jnp.asarray(FEW))
            for key, size in zip(("ratio", "uniform"), sizes, strict=True):
                results[name][key].append(float(np.median(size)))
    for name in MODELS:
        results[name]["slope"] = slope(ROWS, results[name]["ratio"])
    return results


@jax.enable_x64(True)
def measure(full: bool) -> dict[str, Any]:
    """The four studies."""
    seeds = 20 if full else 5
    draws = [draw_rows(seed) for seed in range(seeds)]
    ratios = [true_ratio(draw.x) for draw in draws]
    by_features, by_outer_rows = vary_features(draws), vary_outer_rows(seeds)
    weights = {name: by_features[name][FEATURES[-1]]["weights"][0] for name in MODELS}
    paths = {m: found.pop("path") for m, found in by_outer_rows.items()}
    for found in by_features.values():
        for with_d in found.values():
            del with_d["weights"]
    return {
        "settings": {
            "shift": SHIFT,
            "scale": SCALE,
            "n": N,
            "m": M,
            "ridge": RIDGE,
            "steps": STEPS,
        },
        "seeds": seeds,
        "true_ess": [round(bilevel.effective_sample_size(r), 1) for r in ratios],
        "log_weights_minus_affine": affine_residual(draws[0], weights["embedding"]),
        "features": by_features,
        "outer_rows": by_outer_rows,
        "rows": {"n": ROWS, **vary_rows(4 * seeds)},
        "classifiers": {
            kind: [
                compare(classifier_ratio(d, kind), r) for d, r in zip(draws, ratios, strict=True)
            ]
            for kind in ("quadratic", "same")
        },
        "figure": {"weights": weights, "paths": paths},
    }


def draw(measured: dict[str, Any]) -> Figure:
    """Weights on the plane and against the ratio; correlation by features, outer rows and steps."""
    by_features, by_outer_rows, by_rows, classifiers = (
        measured[key] for key in ("features", "outer_rows", "rows", "classifiers")
    )
    learned, paths = measured["figure"]["weights"], measured["figure"]["paths"]
    data = draw_rows(0)
    figure, axes = panels(2, 3, (15, 9.5))
    ratio = true_ratio(data.x)
    weights = N * learned["embedding"]
    scale = LogNorm(1e-2, max(weights.max(), ratio.max()))

    axis = axes[0, 0]
    points = axis.scatter(*data.x.T, c=np.maximum(weights, 1e-2), s=16, cmap="viridis", norm=scale)
    grid = np.stack(np.meshgrid(np.linspace(-3, 3, 120), np.linspace(-3, 3, 120)), -1)
    lines = axis.contour(
        grid[..., 0], grid[..., 1], true_ratio(grid), levels=[0.1, 1, 3], colors="k", linewidths=1
    )
    axis.clabel(lines, fontsize=8)
    axis.set(xlim=(-3, 3), ylim=(-3, 3), title="training rows; lines: the true ratio")
    figure.colorbar(points, ax=axis, label="learned weight (mean 1)")

    axis = axes[0, 1]
    estimates = {
        "embedding, learned weights": (weights, "C0"),
        "regression, learned weights": (N * learned["regression"], "C3"),
        "classifier, quadratic": (classifier_ratio(data, "quadratic"), "0.4"),
    }
    for name, (estimate, colour) in reversed(estimates.items()):
        axis.scatter(ratio, estimate, s=6, c=colour, label=name, alpha=0.6)
    axis.plot([1e-4, 10], [1e-4, 10], "k", lw=1)
    axis.set(xscale="log", yscale="log", xlim=(1e-4, 10), ylim=(1e-4, 30))
    axis.set(xlabel="true ratio", ylabel="weight (mean 1)", title=f"seed 0, D = {FEATURES[-1]}")
    axis.legend(fontsize=8, loc="lower right")

    axis = axes[0, 2]
    for name, colour in (("embedding", "C0"), ("regression", "C3")):
        by_d = np.array([[r["spearman"] for r in by_features[name][d]["runs"]] for d in FEATURES])
        axis.plot(FEATURES, by_d.mean(1), colour, marker="o", ms=4, label=name)
        axis.fill_between(FEATURES, by_d.min(1), by_d.max(1), color=colour, alpha=0.2, lw=0)
    for (name, runs), style in zip(classifiers.items(), ("--", ":"), strict=True):
        axis.axhline(mean(runs), color="0.4", ls=style, label=f"classifier, {name} features")
    axis.set(xscale="log", ylim=(-0.1, 1.02), xlabel="features D", ylabel="rank correlation")
    axis.set_title(f"n = {N}, m = {M}")
    axis.legend(fontsize=8)

    axis = axes[1, 0]
    for key, name, style in (
        ("runs", f"{STEPS} steps", "C0-"),
        ("early", f"{EARLY} steps", "C9-"),
        ("classifier", "classifier, quadratic", "0.4"),
    ):
        values = np.array([[r["spearman"] for r in by_outer_rows[m][key]] for m in OUTER_ROWS])
        line = axis.plot(OUTER_ROWS, values.mean(1), style, marker="o", ms=4, label=name)[0]
        axis.fill_between(
            OUTER_ROWS, values.min(1), values.max(1), color=line.get_color(), alpha=0.15, lw=0
        )
    axis.set(xscale="log", xlabel="outer rows m", ylabel="rank correlation")
    axis.set_title(f"embedding, D = {FEATURES[-1]}, n = {N}")
    axis.legend(fontsize=8, loc="lower right")

    axis = axes[1, 1]
    for m in OUTER_ROWS:
        axis.plot(np.arange(1, STEPS + 1), np.mean(paths[m], 0), label=f"m = {m}")
    axis.set(xscale="log", xlabel="outer step", ylabel="rank correlation (mean of seeds)")
    axis.set_title("embedding, along the path from uniform weights")
    axis.legend(fontsize=8)

    axis = axes[1, 2]
    for name, colour in (("embedding", "C0"), ("regression", "C3")):
        label = f"{name}, true ratio: slope {by_rows[name]['slope']:.2f}"
        axis.plot(ROWS, by_rows[name]["ratio"], colour, marker="o", ms=4, label=label)
        axis.plot(ROWS, by_rows[name]["uniform"], colour, ls="--", label=f"{name}, uniform")
    axis.set(xscale="log", yscale="log", xlabel="rows n = m", ylabel="rms hypergradient")
    axis.set_ylim(bottom=5e-3)  # room for the legend
    axis.set_title(f"D = {FEW}")
    axis.legend(fontsize=8)
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Proposition 1, and when learning finds the ratio."""
    by_features, by_outer_rows, by_rows, classifiers = (
        measured[key] for key in ("features", "outer_rows", "rows", "classifiers")
    )

    def between(runs: list[dict[str, float]], key: str = "spearman", style: str = ".3f") -> str:
        return span([run[key] for run in runs], style)

    most, fewest = FEATURES[-1], FEATURES[0]
    rich, poor = (by_features["embedding"][d] for d in (most, fewest))
    regression = by_features["regression"]
    quadratic, same = classifiers["quadratic"], classifiers["same"]
    slopes = {name: round(by_rows[name]["slope"], 2) for name in MODELS}
    by_m = [mean(by_outer_rows[m]["runs"]) for m in OUTER_ROWS]
    early = [mean(by_outer_rows[m]["early"]) for m in OUTER_ROWS]
    return [
        Claim(
            "R8",
            "The density ratio solves the problem: the hypergradient at its weights tends to 0 as "
            "n = m grows, with the exponent -1/2 of sampling errors.",
            "dnu/dmu is a global solution (population)",
            f"slopes {slopes}",
            all(abs(x + 0.5) <= 0.15 for x in slopes.values()),
            f"From {ROWS[0]} to {ROWS[-1]} rows, D = {FEW}.",
        ),
        Claim(
            "R8",
            f"A rich model (embedding, D = {most}) recovers the ratio: the rank correlation of the "
            f"learned weights with it is above {GOOD} in every seed.",
            "bilevel optimization recovers importance sampling",
            f"rank correlation {between(rich['runs'])}, effective sample size "
            f"{between(rich['runs'], 'ess', '.0f')}, total variation distance "
            f"{between(rich['runs'], 'total_variation')}",
            min(result["spearman"] for result in rich["runs"]) > GOOD,
        ),
        Claim(
            "R8",
            "It does so as well as a logistic regression on the same features that tells outer "
            "rows from training rows (mean rank correlation, within 0.01).",
            None,
            f"bilevel {mean(rich['runs']):.3f}, classifier {mean(same):.3f}",
            mean(rich["runs"]) >= mean(same) - 0.01,
            "With quadratic features, which are the right ones, the classifier has a rank "
            f"correlation of {between(quadratic)} and a total variation distance of "
            f"{between(quadratic, 'total_variation')} (on the same features "
            f"{between(same, 'total_variation')}).",
        ),
        Claim(
            "R8",
            f"The ratio is not the only solution: with {fewest} feature the problem is solved by "
            "other weights (mean rank correlation below 0.5).",
            None,
            f"rank correlation {between(poor['runs'])}; the excess outer loss is at most "
            f"{max(poor['excess']):.1e} of that of uniform weights",
            mean(poor["runs"]) < 0.5 and max(poor["excess"]) < 1e-3,
            f"The means for D = {list(FEATURES)} are "
            f"{[round(mean(by_features['embedding'][d]['runs']), 2) for d in FEATURES]}.",
        ),
        Claim(
            "R8",
            f"A rich regression (D = {most}) recovers the ratio as well (above {GOOD} in every "
            "seed).",
            "bilevel optimization recovers importance sampling",
            f"rank correlation {between(regression[most]['runs'])}",
            min(result["spearman"] for result in regression[most]["runs"]) > GOOD,
            "A regression that fits the data needs no weights: many weights have the same theta*, "
            "and the proposition says only that the ratio is one of them. The means for the same D "
            f"are {[round(mean(regression[d]['runs']), 2) for d in FEATURES]}; at D = {most} a "
            f"share of {np.mean(regression[most]['excess']):.2f} of the excess outer loss is left.",
        ),
        Claim(
            "R8",
            "More outer rows bring the learned weights closer to the ratio (mean rank "
            "correlation).",
            None,
            f"{[round(c, 3) for c in by_m]} for m = {list(OUTER_ROWS)}",
            bool(np.all(np.diff(by_m) > 0)),
            f"After {EARLY} steps in place of {STEPS} they are {[round(c, 3) for c in early]}: "
            "with few outer rows it is better to stop early.",
        ),
    ]


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
