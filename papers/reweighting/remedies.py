"""R12: what keeps the weights from going sparse, over five decades of outer step sizes.

Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization", end with a
question: warm-started reweighting collapses, what helps? Here every remedy of the library runs beside
plain SOBA on MNIST with a linear model, and on the toy mixture of section 2.4. Rows: 2000, of which
80 % have a wrong label; 1000 clean outer rows; the official test set. (Inner problems that are not
convex, and far more parameters than rows, are in `many_parameters.py`.)

All variants of SOBA share inner step, batches and number of steps; the outer step goes through
seven powers of ten around the one at which a visit moves the log-weight of the steepest row by 0.1
at the start. "Plain, tuned" is the best of the seven *by test accuracy*, which no user could
choose: what a remedy without any tuning has to beat; beside it stands the best on a hold-out, as a
user would choose it. Methods without an outer step run once. Everything is judged by a model
retrained from a fresh start on the final weights. A run has collapsed if its effective sample size
is below a tenth of the number of clean rows.

Full: five seeds of the rows, the noise and the batches. Quick: the first of them, and on MNIST plain
SOBA, the remedies together, and the methods without an outer step.

Needs MNIST; see `bilevel.datasets`.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pandas as pd
import toy_mixture
from hyper_cleaning import train_model
from matplotlib.figure import Figure
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from soba_steps import finite_step

import bilevel
from bilevel import datasets, tasks
from bilevel.reweighting import clipped_soba, soba

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels

N, OUTER, RATE = 2000, 1000, 0.8
SEEDS = range(5)
IMAGES = "MNIST, linear"
BATCH, STEPS, NEAR_EXACT_STEPS, FUNCTION_STEPS = 64, 1500, 60, 20
DECADES = 10.0 ** np.arange(-2, 5)  # times the step of 0.1 a visit
RADIUS, CLIP, PULL, ENTROPY, L2_PENALTY = 0.02, 0.1, 1e-3, 0.2, 0.02
SHUFFLED = bilevel.Shuffled(BATCH)


class Pair(NamedTuple):
    """A problem with a model: its start, the wrong rows, and how a model is judged."""

    name: str
    problem: bilevel.BilevelProblem
    w0: Any
    wrong: np.ndarray
    score: Callable[[Any], float]
    held_out: Callable[[Any], float]  # the same on rows that nothing else sees, for tuning
    features: np.ndarray  # for the weight function

    @property
    def clean_rows(self) -> int:
        return int((~self.wrong).sum())


def mnist(seed: int) -> Pair:
    """A linear model on MNIST."""
    train, test = datasets.mnist("train"), datasets.mnist("test")
    order = np.random.default_rng(seed).permutation(len(train.labels))
    rows, outer, held_out = np.split(order[: N + 2 * OUTER], [N, N + OUTER])
    noisy, wrong = datasets.flip_to_different(train.labels[rows], RATE, seed=seed)

    def pixels(x: np.ndarray) -> np.ndarray:
        return (x.reshape(len(x), -1) / 255).astype(np.float32)

    pictures = train.images[rows], train.images[outer], train.images[held_out], test.images
    parts = [pixels(x) for x in pictures]
    labels = noisy.astype(np.int32), train.labels[outer].astype(np.int32)
    features = bilevel.trust_features(
        make_pipeline(PCA(50, random_state=seed), LogisticRegression(max_iter=1000)),
        *(parts[0], labels[0], parts[1], labels[1]),
    ).astype(np.float32)
    model = tasks.models.linear_model(784, 10, bias=False)
    X, X_outer, X_held_out, X_test = map(jnp.asarray, parts)
    problem = tasks.reweighting(
        X, jnp.asarray(labels[0]), X_outer, jnp.asarray(labels[1]), model.predict, l2=1e-2
    )

    def accuracy_on(X: Any, y: Any) -> Callable[[Any], float]:
        return lambda w: float(np.mean(np.asarray(model.predict(w, X)).argmax(1) == y))

    of_test = accuracy_on(X_test, test.labels)
    of_held_out = accuracy_on(X_held_out, train.labels[held_out])
    return Pair(IMAGES, problem, model.w0, wrong, of_test, of_held_out, features)


def toy(seed: int) -> Pair:
    """The mixture of section 2.4, scored by R^2 on fresh rows of the right cluster."""
    data, *others = (toy_mixture.mixture(seed + more) for more in (0, 500, 1500))
    model = tasks.models.linear_model(2, 1, bias=False)
    arrays = [np.asarray(x, np.float32) for x in (data.d, data.y, data.d_outer, data.y_outer)]
    rows, y, outer, y_outer = arrays
    problem = tasks.reweighting(
        *(jnp.asarray(rows), jnp.asarray(y), jnp.asarray(outer), jnp.asarray(y_outer)),
        model.predict,
        loss=tasks.models.squared_error,
        l2=1e-4,
    )
    features = bilevel.trust_features(Ridge(1e-3), rows, y, outer, y_outer).astype(np.float32)

    def r2_on(other: Any) -> Callable[[Any], float]:
        def r2(w: Any) -> float:
            predicted = np.asarray(model.predict(w, jnp.asarray(other.d_outer, jnp.float32)))[:, 0]
            return float(r2_score(other.y_outer, predicted))

        return r2

    of_test, of_held_out = (r2_on(other) for other in others)
    return Pair("toy", problem, model.w0, ~data.first, of_test, of_held_out, features)


class Scales(NamedTuple):
    """What the step sizes of a pair are made of; arrays, so that all seeds share a compilation."""

    inner: jax.Array
    outer: jax.Array
    steepest: jax.Array


def scales(pair: Pair) -> Scales:
    """1 / 4L, the outer step at which a visit moves the steepest row by 0.1, and its slope."""
    n = len(pair.wrong)
    made = soba(pair.problem, tasks.uniform_weights(n), pair.w0, batch_size=BATCH)
    inner, outer = jnp.asarray(made.inner_step), jnp.asarray(made.outer_step)
    return Scales(inner, outer, 0.1 * BATCH / (n * outer))


Variant = Callable[[bilevel.BilevelProblem, Any, Scales], tuple[Any, Any]]


def _soba(eta: Any, s: Scales, inner: Any = SHUFFLED) -> bilevel.SOBA:
    return bilevel.SOBA(s.inner, s.inner, eta, inner, SHUFFLED)


def _adjusted(*steps: optax.GradientTransformation) -> Variant:
    geometry = bilevel.TransformedGeometry(optax.chain(*steps))
    return lambda p, eta, s: (eqx.tree_at(lambda p: p.geometry, p, geometry), _soba(eta, s))


def _combined(p: Any, eta: Any, s: Scales) -> tuple[Any, Any]:
    p, _ = VARIANTS["+ limit"](p, eta, s)
    _, by_weight = VARIANTS["+ importance"](p, eta, s)
    return p, bilevel.IterateAveraging(by_weight)


VARIANTS: dict[str, Variant] = {
    "plain": lambda p, eta, s: (p, _soba(eta, s)),
    "+ limit": _adjusted(bilevel.limit_log_step(RADIUS)),
    "+ clip": _adjusted(optax.clip(CLIP)),
    "+ KL pull": _adjusted(bilevel.kl_pull(PULL)),
    "+ average": lambda p, eta, s: (p, bilevel.IterateAveraging(_soba(eta, s))),
    "+ importance": lambda p, eta, s: (
        p,
        bilevel.ImportanceSampling(_soba(eta, s, bilevel.WeightedSampler(BATCH))),
    ),
    "+ entropy": lambda p, eta, s: (
        bilevel.penalised(p, bilevel.kl_to_uniform, ENTROPY * s.steepest),
        _soba(eta, s),
    ),
    "+ l2": lambda p, eta, s: (
        bilevel.penalised(p, bilevel.l2_to_uniform, L2_PENALTY * s.steepest),
        _soba(eta, s),
    ),
    "+ limit, importance, average": _combined,
}
SINGLE = ("near-exact", "clipped SOBA", "weight function")
QUICK_MNIST = ("plain", "+ limit, importance, average")


@eqx.filter_jit
def run_variant(
    variant: str, pair_problem: Any, w0: Any, etas: jax.Array, s: Scales, steps: int, key: Any
) -> tuple[jax.Array, Any]:
    """Final weights and parameters for all outer steps at once, in one compiled scan."""
    u0 = tasks.uniform_weights(jax.tree.leaves(pair_problem.inner_data)[0].shape[0])

    def run(eta: jax.Array) -> tuple[jax.Array, Any]:
        problem, algorithm = VARIANTS[variant](pair_problem, eta, s)

        def step(_: Any, state: Any) -> Any:
            return finite_step(algorithm, problem, state)

        state = jax.lax.fori_loop(0, steps, step, algorithm.init(problem, u0, w0, key))
        averaged = isinstance(algorithm, bilevel.IterateAveraging)
        return (algorithm.average(state) if averaged else state.u), state.w

    return jax.vmap(run)(etas)


def run_single(name: str, pair: Pair, seed: int, steps: int) -> tuple[jax.Array, Any]:
    """The methods without an outer step size."""
    problem, start = pair.problem, tasks.uniform_weights(len(pair.wrong))
    z, num_steps = jnp.asarray(pair.features), NEAR_EXACT_STEPS
    if name == "near-exact":
        method = bilevel.near_exact()
    elif name == "clipped SOBA":
        problem, method = clipped_soba(problem, start, pair.w0, batch_size=BATCH)
        num_steps = steps
    else:
        method = bilevel.DoubleLoop(
            bilevel.MinimiserInner(optx.LBFGS(rtol=1e-3, atol=1e-4), max_steps=50),
            bilevel.AID(bilevel.CG(rtol=1e-2, max_steps=50)),
            optax.adam(0.3),
            warm_start=True,
        )
        problem, start = tasks.weight_function(problem, z), jnp.zeros(z.shape[1] + 1)
        num_steps = FUNCTION_STEPS
    run = bilevel.solve(
        *(problem, method, start, pair.w0),
        key=jax.random.key(seed),
        num_steps=num_steps,
        trace_every=20,
    )
    if name == "weight function":
        return jax.nn.softmax(jax.nn.log_sigmoid(run.u[0] + z @ run.u[1:])), run.w
    return run.u, run.w


def judge(pair: Pair, u: jax.Array, w: Any | None) -> dict[str, float]:
    """Everything the table shows of final weights."""
    weights = np.asarray(u, np.float64)
    lowest = np.zeros(len(weights), bool)
    lowest[np.argsort(weights, kind="stable")[: int(pair.wrong.sum())]] = True
    again = train_model(pair.problem, u, pair.w0)
    return {
        "retrained": pair.score(again),
        "held_out": pair.held_out(again),
        "as_left": np.nan if w is None else pair.score(w),
        "ess": bilevel.effective_sample_size(weights),
        "f1": float(f1_score(pair.wrong, lowest)),
        "auroc": float(roc_auc_score(pair.wrong, -weights)),
        "collapsed": bool(bilevel.effective_sample_size(weights) < 0.1 * pair.clean_rows),
    }


def run_pair(
    pair: Pair, seed: int, steps: int, variants: Iterable[str] = VARIANTS
) -> list[dict[str, Any]]:
    """Variants of SOBA and all other methods on one pair."""
    n, rows = len(pair.wrong), []
    uniform = tasks.uniform_weights(n)
    perfect = jnp.asarray(~pair.wrong / pair.clean_rows, jnp.float32)
    for name, u in [("uniform", uniform), ("perfect", perfect)]:
        rows.append({"method": name, "decade": np.nan, "cpu": 0.0} | judge(pair, u, None))
    s = scales(pair)
    etas = jnp.asarray(DECADES * s.outer, jnp.float32)
    key = jax.random.key(seed)
    for name in variants:
        start = time.process_time()
        us, ws = jax.block_until_ready(
            run_variant(name, pair.problem, pair.w0, etas, s, steps, key)
        )
        cpu = (time.process_time() - start) / len(etas)
        for k, decade in enumerate(DECADES):
            w = jax.tree.map(lambda x: x[k], ws)  # noqa: B023
            rows.append(
                {"method": name, "decade": float(decade), "cpu": cpu} | judge(pair, us[k], w)
            )
    for name in SINGLE:
        start = time.process_time()
        u, w = jax.block_until_ready(run_single(name, pair, seed, steps))
        cpu = time.process_time() - start
        rows.append({"method": name, "decade": np.nan, "cpu": cpu} | judge(pair, u, w))
    print(f"{pair.name}, seed {seed}: {time.process_time():.0f} CPU seconds so far")
    return [{"pair": pair.name, "seed": seed} | row for row in rows]


LEVELS = {
    "perfect": ("0.5", ":"),
    "uniform": ("0.5", "--"),
    "near-exact": ("C3", "-."),
    "clipped SOBA": ("C2", "-."),
    "weight function": ("C0", "-."),
}


def summary(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One line per pair and method: the best and the worst over the decades, means over the seeds."""
    frame = pd.DataFrame(rows)
    mean = frame.groupby(["pair", "method", "decade"], dropna=False, sort=False).agg(
        retrained=("retrained", "mean"),
        ess=("ess", "mean"),
        f1=("f1", "mean"),
        auroc=("auroc", "mean"),
        cpu=("cpu", "mean"),
        collapsed=("collapsed", "max"),
    )
    return (
        mean.reset_index()
        .groupby(["pair", "method"], sort=False)
        .agg(
            best=("retrained", "max"),
            worst=("retrained", "min"),
            least_ess=("ess", "min"),
            best_f1=("f1", "max"),
            best_auroc=("auroc", "max"),
            collapsed=("collapsed", "sum"),
            cpu=("cpu", "mean"),
        )
        .reset_index()
    )


def measure(full: bool) -> dict[str, Any]:
    """Both pairs, with five seeds in full and with one in quick."""
    seeds, rows = SEEDS if full else SEEDS[:1], []
    for seed in seeds:
        rows += run_pair(toy(seed), seed, STEPS)
        rows += run_pair(mnist(seed), seed, STEPS, VARIANTS if full else QUICK_MNIST)
    settings = {
        "rows": N,
        "outer": OUTER,
        "rate": RATE,
        "steps": STEPS,
        "batch": BATCH,
        "decades": DECADES,
        "radius": RADIUS,
        "clip": CLIP,
        "pull": PULL,
        "entropy": ENTROPY,
        "l2": L2_PENALTY,
        "near_exact_steps": NEAR_EXACT_STEPS,
    }
    table = summary(rows).to_dict("records")
    return {
        "settings": settings,
        "seeds": list(seeds),
        "table": table,
        "scores": scores_of_seeds(rows),
        "figure": rows,
    }


def scores_of_seeds(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """For each pair the test scores, one per seed: of plain SOBA with the outer step that is best on a
    hold-out, and of the methods without an outer step."""
    frame, found = pd.DataFrame(rows), {}
    for pair, here in frame.groupby("pair", sort=False):
        plain = here[here.method == "plain"]
        best = plain.loc[plain.groupby("seed").held_out.idxmax()]
        found[pair] = {"plain, tuned on a hold-out": best.retrained.tolist()} | {
            name: here[here.method == name].retrained.tolist() for name in SINGLE
        }
    return found


def interval(values: np.ndarray) -> str:
    """The mean, and half the width of a 95 % interval by Student's t; of one seed the value alone."""
    if len(values) == 1:
        return f"{values[0]:.3f} (one seed)"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} +- {half:.3f}"


def draw(measured: dict[str, Any]) -> Figure:
    """Retrained score and effective sample size against the outer step, one column per pair."""
    frame = pd.DataFrame(measured["figure"])
    pairs = list(dict.fromkeys(frame.pair))
    figure, axes = panels(2, len(pairs), (3 * max(len(pairs), 3), 6), sharex=True, squeeze=False)
    for column, pair in enumerate(pairs):
        groups = frame[frame.pair == pair].groupby(["method", "decade"], dropna=False, sort=False)
        here = groups.agg(retrained=("retrained", "mean"), ess=("ess", "mean")).reset_index()
        for axis, what in zip(axes[:, column], ("retrained", "ess"), strict=True):
            for k, method in enumerate(VARIANTS):
                line = here[here.method == method]
                style = {"color": "k", "lw": 2.5} if method == "plain" else {"color": f"C{k}"}
                axis.plot(line.decade, line[what], marker=".", label=method, **style)
            for name, (colour, dashes) in LEVELS.items():
                value = float(np.mean(here[here.method == name][what]))
                axis.axhline(value, ls=dashes, color=colour, lw=1.2, label=name)
            axis.set_xscale("log")
        low = max(here.retrained.min(), 0.0) - 0.03
        axes[0, column].set(title=pair, ylim=(low, here.retrained.max() + 0.03))
        axes[1, column].set(xlabel="outer step, times the default", yscale="log")
    axes[0, 0].set_ylabel("test score, retrained")
    axes[1, 0].set_ylabel("effective sample size")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=8)
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """Our answers to the question of the paper."""

    def of(method: str, what: str) -> dict[str, float]:
        rows = [row for row in measured["table"] if row["method"] == method]
        return {row["pair"]: round(float(row[what]), 4) for row in rows}

    def gains(over: dict[str, float], under: dict[str, float]) -> dict[str, float]:
        return {pair: round(over[pair] - under[pair], 4) for pair in over}

    plain = of("plain", "best")
    collapsed = {pair: int(count) for pair, count in of("plain", "collapsed").items()}
    judged = [
        Claim(
            "R12",
            "Plain SOBA goes sparse at large outer steps, whatever the model.",
            "goes sparse (Figures 5 and 6)",
            f"number of outer steps, of {len(DECADES)}, at which it collapses: {collapsed}",
            min(collapsed.values()) > 0,
        )
    ]
    for name, what in [("near-exact", "the default"), ("clipped SOBA", "the one for minibatches")]:
        best, least = of(name, "best"), of(name, "least_ess")
        gone = [pair for pair, times in of(name, "collapsed").items() if times > 0]
        over = {
            pair: np.subtract(scores[name], scores["plain, tuned on a hold-out"])
            for pair, scores in measured["scores"].items()
        }
        judged += [
            Claim(
                "R12",
                f"{name[0].upper() + name[1:]}, untuned, is no worse than plain SOBA tuned on a "
                "hold-out, on every pair.",
                None,
                "difference of test scores, mean over the seeds and its interval of 95 %: "
                + "; ".join(f"{pair} {interval(x)}" for pair, x in over.items()),
                min(float(np.mean(x)) for x in over.values()) >= -0.005,
            ),
            Claim(
                "R12",
                f"{name[0].upper() + name[1:]}, {what}, collapses nowhere.",
                None,
                f"least effective sample size {least}",
                not gone,
                f"It collapses on {gone}." if gone else "",
            ),
            Claim(
                "R12",
                f"{name[0].upper() + name[1:]}, untuned, beats plain SOBA tuned by test score on "
                "MNIST.",
                None,
                f"score minus that of tuned SOBA {gains(best, plain)}",
                best[IMAGES] > plain[IMAGES],
            ),
        ]
    perfect = of("perfect", "best")
    short = round(perfect[IMAGES] - of("near-exact", "best")[IMAGES], 4)
    judged.append(
        Claim(
            "R12",
            "With the default a retrained model does as well as with weights on the clean rows "
            "alone.",
            None,
            f"test score of the perfect weights minus that of near-exact {short} (MNIST)",
            short <= 0.01,
        )
    )
    return judged


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
