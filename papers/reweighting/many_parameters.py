"""R7, R12: far more parameters than rows: do warm-started weights still go sparse?

Ivanova and Ablin (2023), "A challenge in reweighting data with bilevel optimization", bound the number
of rows that keep weight by p, the number of parameters (Proposition 8), and prove it for convex inner
problems. A bound of p says nothing once p >= n, and a summary of the paper therefore asks for three
checks: an inner problem that is not convex, regularisers on the simplex, and p much larger than n.

**Frozen parameters.** For least squares, f = sum_i u_i ((w'z_i - y_i)^2 / 2 + l |w|^2 / 2), the field
of equation (10) is `phi_i = -r_i z_i' (Z' diag(u) Z + l I)^-1 g` with residuals r and g = grad F. If
n <= p and the rows z_i are independent, then for l -> 0, on the rows S that have weight,

    -u_i phi_i = b_i,   b = r_S * (Z_S Z_S')^-1 Z_S g,      du_i/dt = b_i - u_i sum_j b_j

The flow is *linear*: rows with b_i > 0 tend to shares in proportion to b_i, and rows with b_i < 0
lose their weight in finite time. (By Frisch and Waugh, b_i has the sign of r_i times the inner product
of z_i with the part of g that the other rows of S do not span, which over l is the rate at which a
row without weight would come back.) A point at which all of S has b > 0 and nothing comes back is
the solution of non-negative least squares,

    a = argmin_{a >= 0} |g - sum_i a_i r_i z_i|^2,      u_i = r_i^2 a_i / sum_j r_j^2 a_j,

the projection of g on the cone of the gradients of the rows: it is unique, whatever the start. So no
bound below n holds, and yet the rows that leave the cone's face go: about half, if g has nothing to
do with the rows. We integrate the flow with a ridge and compare its end with this.

**Warm start.** SOBA on all rows (scikit-learn's digits, odd against even, 40 % wrong labels), with an
outer step that goes through five powers of ten: a linear model on random features with p = n / 10 and
p = 10 n, and a perceptron with p = 10 n, which is not convex, on all rows per step and on batches of a
fifth of them; without a penalty, and with the KL divergence and the l2 distance from uniform weights
as penalties on F. A run has collapsed if its effective sample size is below a tenth of the number of
right rows. All weights are judged by a model that is trained anew on them. (`remedies.py` has more
remedies, on MNIST.)
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hyper_cleaning import train_model
from matplotlib.figure import Figure
from scipy.optimize import nnls
from sklearn.datasets import load_digits
from soba_steps import finite_step

import bilevel
from bilevel import datasets, dynamics, reweighting, tasks

sys.path.insert(0, str(Path(__file__).parents[1]))
import _frame
from _frame import Claim, panels, slope, span

N, OUTER, RATE, BATCH = 150, 300, 0.4, 30
DECADES = 10.0 ** np.arange(-2, 3)  # times 0.1 per step of the steepest row
LIMIT = 0.1 * (1 - RATE) * N  # a run has collapsed below a tenth of the right rows
STRENGTH = 0.2  # of the penalties, in units of the steepest slope, as in `remedies.py`
FLOW_ROWS, FLOW_SIZES = 12, {"p = n / 3": 4, "p = n": 12, "p = 10 n": 120}
RIDGES = 1e-2, 1e-3, 1e-4
TOL, LONG, ON, MAX_STEPS = 1e-6, 1e4, 1e-3, 20_000


# -- frozen parameters -----------------------------------------------------------------------------


class _LeastSquares(eqx.Module):
    """The field at parameters where the residuals are r and the outer gradient is g."""

    z: jax.Array
    r: jax.Array
    g: jax.Array
    ridge: jax.Array

    def __call__(self, u: jax.Array) -> jax.Array:
        # (Z' U Z + l I)^-1 g by the matrix identity on the smaller side.
        root = jnp.sqrt(u)[:, None] * self.z
        n, p = root.shape
        if p <= n:
            v = jnp.linalg.solve(root.T @ root + self.ridge * jnp.eye(p), self.g)
        else:
            small = root @ root.T + self.ridge * jnp.eye(n)
            v = (self.g - root.T @ jnp.linalg.solve(small, root @ self.g)) / self.ridge
        return -self.r * (self.z @ v)


def field(p: int, seed: int, ridge: float = RIDGES[1]) -> _LeastSquares:
    """Gaussian rows and residuals; the outer gradient is that of as many rows without noise."""
    rng = np.random.default_rng(seed)
    z, outer = (rng.normal(size=(FLOW_ROWS, p)) / p**0.5 for _ in range(2))
    away = rng.normal(size=p)  # from the parameters that are right
    r, g = z @ away + rng.normal(size=FLOW_ROWS), outer.T @ (outer @ away) / FLOW_ROWS
    return _LeastSquares(*map(jnp.asarray, (z, r, g, ridge)))


@eqx.filter_jit
def ends(fields: _LeastSquares) -> tuple[jax.Array, jax.Array]:
    """Where the flows of stacked fields end from uniform weights, and whether they are at rest."""

    def one(field: _LeastSquares) -> tuple[jax.Array, jax.Array]:
        start, times = jnp.full(FLOW_ROWS, 1 / FLOW_ROWS), jnp.array([LONG])
        options = {"tol": TOL, "rtol": 1e-8, "atol": 1e-8, "max_steps": MAX_STEPS}
        flow = dynamics.mirror_flow(field, start, times, **options)
        return flow.u[-1], flow.converged

    return eqx.filter_vmap(one)(fields)


def projected(field: _LeastSquares) -> np.ndarray:
    """The shares at which the flow ends without a ridge, for independent rows."""
    z, r, g = (np.asarray(x, float) for x in (field.z, field.r, field.g))
    a = nnls((r[:, None] * z).T, g)[0]
    return r**2 * a / np.sum(r**2 * a)


def frozen(p: int, seeds: range, ridge: float = RIDGES[1]) -> dict[str, Any]:
    """Where flows with p parameters end, and how far that is from the projection."""
    fields = [field(p, seed, ridge) for seed in seeds]
    u, rest = (np.asarray(x) for x in ends(jax.tree.map(lambda *x: jnp.stack(x), *fields)))
    there = np.array([projected(one) for one in fields]) if p >= FLOW_ROWS else u
    return {
        "p": p,
        "ridge": ridge,
        "sizes": (u[rest] > ON).sum(1),
        "projected": (there[rest] > ON).sum(1),
        "distances": np.abs(u - there)[rest].max(1),
        "unsettled": int((~rest).sum()),
    }


# -- the warm start --------------------------------------------------------------------------------


class Case(NamedTuple):
    """A problem with a model, and test rows as the model takes them."""

    problem: bilevel.BilevelProblem
    batch: int
    model: tasks.models.Model
    fresh: Any
    wrong: np.ndarray
    test: tuple[jax.Array, Any]
    parameters: int


def cases(seed: int) -> dict[str, Case]:
    """Models and batches on one draw of the digits."""
    x, digit = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), (digit % 2).astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(y))
    parts = np.split(order, [N, N + OUTER])
    noisy, wrong = datasets.flip_to_different(y[parts[0]], RATE, seed=seed)
    rng = np.random.default_rng(seed + 1000)

    def random_features(count: int) -> Any:
        directions, phase = rng.normal(size=(64, count)) / 2, rng.uniform(0, 2 * np.pi, count)
        return lambda x: (np.sqrt(2 / count) * np.cos(x @ directions + phase)).astype(np.float32)

    def mlp(key: int) -> tasks.models.Model:
        return tasks.models.mlp_model(64, 1, key=jax.random.key(key), width=10 * N // 66)

    def linear(count: int) -> tasks.models.Model:
        return tasks.models.linear_model(count, 1, bias=False)

    few, many = random_features(N // 10), random_features(10 * N)
    nets = mlp(seed), mlp(seed + 1).w0, lambda x: x
    kinds = {
        "linear, p = n / 10": (N, linear(N // 10), linear(N // 10).w0, few),
        "linear, p = 10 n": (N, linear(10 * N), linear(10 * N).w0, many),
        "perceptron, p = 10 n": (N, *nets),
        "perceptron, p = 10 n, batches": (BATCH, *nets),
    }
    found = {}
    for name, (batch, model, fresh, transform) in kinds.items():
        rows, outer, test = (jnp.asarray(transform(x[part])) for part in parts)
        problem = tasks.reweighting(
            *(rows, jnp.asarray(noisy), outer, jnp.asarray(y[parts[1]]), model.predict),
            loss=_logistic,
            l2=1e-3,
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(model.w0))
        found[name] = Case(problem, batch, model, fresh, wrong, (test, y[parts[2]]), count)
    return found


def _logistic(prediction: jax.Array, y: jax.Array) -> jax.Array:
    return tasks.models.logistic_loss(prediction, (2 * y - 1).astype(prediction.dtype))


PENALTIES: dict[str, Any] = {
    "none": None,
    "KL": bilevel.kl_to_uniform,
    "l2": bilevel.l2_to_uniform,
}


@eqx.filter_jit
def _run(problem: Any, w0: Any, made: Any, etas: Any, steps: int) -> Any:
    u0 = tasks.uniform_weights(N)

    def one(eta: Any) -> Any:
        method = eqx.tree_at(lambda soba: soba.outer_step, made, eta)
        state = method.init(problem, u0, w0, jax.random.key(0))
        state = jax.lax.fori_loop(0, steps, lambda _, s: finite_step(method, problem, s), state)
        return state.u, state.w, state.step

    return jax.vmap(one)(etas)


def unstack(tree: Any) -> list[Any]:
    """The entries along axis 0."""
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, row) for row in zip(*leaves, strict=True)]


def warm(case: Case, steps: int) -> dict[str, Any]:
    """All penalties and outer steps, and the two baselines."""
    u0 = tasks.uniform_weights(N)
    made = reweighting.soba(case.problem, u0, case.model.w0, batch_size=case.batch)
    eta: Any = made.outer_step
    steepest = 0.1 * case.batch / N / eta

    def accuracy(w: Any) -> float:
        said = np.asarray(case.model.predict(w, case.test[0]))[:, 0] > 0
        return float(np.mean(said == case.test[1]))

    def retrained(u: Any) -> float:
        return accuracy(train_model(case.problem, u, case.fresh))

    right = jnp.asarray(~case.wrong / (~case.wrong).sum(), jnp.float32)
    found: dict[str, Any] = {"parameters": case.parameters, "uniform": retrained(u0)}
    found["right rows"] = retrained(right)
    for name, penalty in PENALTIES.items():
        problem = case.problem
        if penalty is not None:
            problem = bilevel.penalised(problem, penalty, STRENGTH * steepest)
        etas = jnp.asarray(DECADES * eta, jnp.float32)
        us, ws, made_steps = _run(problem, case.model.w0, made, etas, steps)
        found[name] = {
            "ess": [bilevel.effective_sample_size(np.asarray(u, np.float64)) for u in us],
            "rows": [int(np.sum(np.asarray(u) > 1e-3 / N)) for u in us],
            "as left": [accuracy(w) for w in unstack(ws)],
            "retrained": [retrained(u) for u in us],
            "steps": np.asarray(made_steps),
        }
    return found


def measure(full: bool) -> dict[str, Any]:
    """Frozen flows, and the warm start with three seeds in full, one in quick."""
    fields, seeds = range(100 if full else 30), range(3 if full else 1)
    many, steps = FLOW_SIZES["p = 10 n"], 3000 if full else 1000
    with jax.enable_x64(True):
        flows = {name: frozen(p, fields) for name, p in FLOW_SIZES.items()}
        ridges = [frozen(many, fields, ridge) for ridge in RIDGES]
    with jax.enable_x64(False):
        runs = [{name: warm(case, steps) for name, case in cases(seed).items()} for seed in seeds]
    return {
        "settings": {
            "flows": {"rows": FLOW_ROWS, "parameters": FLOW_SIZES, "fields": len(fields)},
            "warm": {"rows": N, "outer": OUTER, "rate": RATE, "steps": steps, "batch": BATCH},
            "outer_steps": DECADES,
            "strength": STRENGTH,
        },
        "seeds": list(seeds),
        "flows": flows,
        "ridges": ridges,
        "runs": runs,
    }


def draw(measured: dict[str, Any]) -> Figure:
    """How many rows frozen flows end on, and how near the projection; the warm start."""
    figure, axes = panels(2, 3, (13.5, 8.0))
    flows, (one, two, *others) = measured["flows"], axes.ravel()
    for k, (name, found) in enumerate(flows.items()):
        counts = np.bincount(found["sizes"], minlength=FLOW_ROWS + 1) / len(found["sizes"])
        one.bar(np.arange(FLOW_ROWS + 1) + 0.27 * (k - 1), counts, 0.27, label=name)
    one.set(title=f"frozen parameters, n = {FLOW_ROWS}", ylabel="share of the flows")
    one.set(xlabel="rows with weight at the end", xticks=range(0, FLOW_ROWS + 1, 2))
    one.legend(frameon=False)
    distances = [found["distances"] for found in measured["ridges"]]
    low, middle, high = np.array([np.percentile(x, [0, 50, 100]) for x in distances]).T
    two.loglog(RIDGES, middle, "o-", label="median")
    two.fill_between(RIDGES, low, high, alpha=0.2, label="all flows")
    two.loglog(RIDGES, 2 * np.array(RIDGES), "k:", label="in proportion to the ridge")
    two.set(title="frozen parameters, p = 10 n", xlabel="ridge")
    two.set_ylabel("distance from the projection")
    two.legend(frameon=False)
    for axis, (name, found) in zip(others, measured["runs"][0].items(), strict=True):
        score = axis.twinx()
        for k, penalty in enumerate(PENALTIES):
            axis.loglog(DECADES, found[penalty]["ess"], "o-", color=f"C{k}", label=penalty)
            score.plot(DECADES, found[penalty]["retrained"], "--", color=f"C{k}", lw=1)
        axis.axhline(LIMIT, color="k", ls=":", label="collapsed below")
        axis.set(title=name, xlabel="outer step, times the default")
        axis.set_ylabel("effective sample size")
        score.set_ylabel("test accuracy, retrained (dashed)")
    others[0].legend(frameon=False, title="penalty")
    return figure


def claims(measured: dict[str, Any]) -> list[Claim]:
    """What is true of frozen parameters in place of the bound, and the three checks."""
    flows, ridges, runs = measured["flows"], measured["ridges"], measured["runs"]
    many, few = flows["p = 10 n"], flows["p = n / 3"]
    rate = slope(RIDGES, [np.median(found["distances"]) for found in ridges])
    same = [np.mean(found["sizes"] == found["projected"]) for found in ridges]
    steps = f"number of outer steps, of {len(DECADES)}, at which they collapse"

    def collapsed(model: str, penalty: str) -> list[int]:
        return [sum(ess < LIMIT for ess in run[model][penalty]["ess"]) for run in runs]

    def last(model: str, what: str, style: str) -> str:
        return span([run[model]["none"][what][-1] for run in runs], style)

    judged = [
        Claim(
            "R7",
            "With p = 10 n and frozen parameters more than n / 3 rows keep weight in most flows; "
            "with p = n / 3 at most p rows do.",
            "at most p rows, which says nothing for p >= n",
            f"p = 10 n: median {np.median(many['sizes']):.0f} of {FLOW_ROWS} rows "
            f"({span(many['sizes'], 'd')}); p = n / 3: median {np.median(few['sizes']):.0f} "
            f"({span(few['sizes'], 'd')})",
            bool(np.median(many["sizes"]) > FLOW_ROWS / 3 and max(few["sizes"]) <= few["p"]),
            f"{many['unsettled']} and {few['unsettled']} flows did not come to rest.",
        ),
        Claim(
            "R7",
            "With p = 10 n and frozen parameters flows end at the projection of the outer gradient "
            "on the cone of the rows' gradients, as the ridge vanishes.",
            "(not in the paper)",
            "median distance of the weights "
            + ", ".join(f"{np.median(x['distances']):.1e}" for x in ridges)
            + f" for a ridge of {list(RIDGES)}, exponent {rate:.2f}; the same number of rows in "
            f"{100 * same[-1]:.0f} % of the flows",
            bool(0.8 < rate < 1.2 and same[-1] > 0.95),
            "The formula stands at the head of the script; rows below a weight of "
            f"{ON:.0e} do not count.",
        ),
    ]
    for model in runs[0]:
        judged.append(
            Claim(
                "R12",
                f"{model[0].upper() + model[1:]}: warm-started weights go sparse at large outer "
                "steps.",
                "sparse where the weights are much faster than the model",
                f"{steps}: {collapsed(model, 'none')}; effective sample size at the largest "
                f"{last(model, 'ess', '.1f')} of {N}",
                min(collapsed(model, "none")) > 0,
            )
        )
    for model in list(runs[0])[1:]:
        uniform = [run[model]["uniform"] for run in runs]
        sparse = [run[model]["none"] for run in runs]
        pairs = [
            (left - base, anew - base)
            for found, base in zip(sparse, uniform, strict=True)
            for ess, left, anew in zip(
                *(found[x] for x in ("ess", "as left", "retrained")), strict=True
            )
            if ess < LIMIT
        ]
        left, anew = zip(*pairs, strict=True) if pairs else ((np.nan,), (np.nan,))
        judged.append(
            Claim(
                "R12",
                f"{model[0].upper() + model[1:]}: a run that collapsed leaves a model that is better "
                "than that of uniform weights, but one retrained on its weights is worse.",
                "(not in the paper)",
                f"test accuracy minus that of uniform weights: as left {span(left, '+.3f')}, "
                f"retrained {span(anew, '+.3f')}, in {len(pairs)} runs",
                bool(min(left) > 0 > max(anew)),
                "What the weights have taught the model on the way stays in it: a warm-started run "
                "has to be judged by retraining.",
            )
        )
    for penalty in ("KL", "l2"):
        counts = {model: collapsed(model, penalty) for model in runs[0]}
        judged.append(
            Claim(
                "R12",
                f"A penalty by {penalty} on the simplex prevents the collapse at every outer step, "
                "for every model.",
                "asked, not published",
                f"{steps}: {counts}; without a penalty "
                f"{ {model: collapsed(model, 'none') for model in runs[0]} }",
                max(max(x) for x in counts.values()) == 0,
                "One strength for all, in units of the steepest slope at the start.",
            )
        )
    return judged


if __name__ == "__main__":
    _frame.run(__file__, measure, draw, claims)
