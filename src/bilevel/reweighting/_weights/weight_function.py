"""A weight function of a few features of a row: the bilevel problem on folds of the trusted rows."""

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pandas as pd
from jaxtyping import Array, Bool, Float, Int, PyTree
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import PolynomialFeatures

from ..._algorithm.double_loop import DoubleLoop
from ..._analysis.retrain import Trajectory
from ..._callback import AbstractCallback
from ..._hypergradient.implicit import AID
from ..._inner.minimiser import MinimiserInner
from ..._linear.cg import CG
from ..._problem import BilevelProblem
from ..._solve import solve
from ...tasks.models import linear_model, softmax_cross_entropy, squared_error
from .._inputs.checks import InputError, check_trusted_count
from .features import centred_ranks
from .labels import Classes, Numbers, RowScorer, dispute_spread

FOLDS, CROSS_FITS, HALVES, STEPS, EVERY = 3, 5, 2, 25, 5
PULL = 0.1  # of the coefficients to uniform weights, in rows of trusted loss
MAX_ROWS = 20_000  # training rows that models are fitted on; the weight function is for all
STEEPEST = 4.0  # log density ratios are clipped here
# One object, so that all runs share one compilation a shape.
METHOD = DoubleLoop(
    inner=MinimiserInner(optx.LBFGS(rtol=1e-2, atol=1e-4), max_steps=20),
    hypergradient=AID(CG(rtol=0.1, max_steps=10)),
    outer_tx=optax.adam(0.3),
    warm_start=True,
)
TO_THE_END = optx.LBFGS(rtol=1e-4, atol=1e-5)
model = linear_model(1, 1).predict  # W x + b; it depends on no shape
Coefficients = dict[str, Any]  # offset, slope, log_trusted, log_temperature


class Rows(NamedTuple):
    """Training rows, then trusted rows, with class codes (integers) or targets (floating)."""

    x: Float[Array, "all features"]
    y: Int[Array, " all"] | Float[Array, " all"]


def row_losses(outputs: Float[Array, "rows outputs"], y: Array) -> Float[Array, " rows"]:
    """Cross-entropy of class codes, half the squared residual of targets."""
    integers = jnp.issubdtype(y.dtype, jnp.integer)
    return (softmax_cross_entropy if integers else squared_error)(outputs, y)


def effective_weights(
    coefficients: Coefficients, z: Float[Array, "rows features"]
) -> Float[Array, " rows"]:
    """`s_i sum s / sum s^2` with `s_i = sigmoid(x_0 + <x, z_i>)`: summing to their effective size.

    Equal weights are 1 each; weights that are 0 or equal are 0 or 1.
    """
    score = coefficients["offset"] + z @ coefficients["slope"]
    s = jax.nn.softmax(jax.nn.log_sigmoid(score))
    return s * jnp.sum(s) / jnp.vdot(s, s)


def penalised_risk(w: PyTree, rows: Rows, sample_weight: Float[Array, " all"]) -> Array:
    """`sum_i s_i loss_i + ||W||^2 / 2`, over `sum_i s_i`: scikit-learn's with C = 1, alpha = 1.

    Two classes have one vector W_1 - W_0 there; half of its square is `||W||^2` at the best W_0 + W_1.
    """
    loss = jnp.vdot(sample_weight, row_losses(model(w, rows.x), rows.y))
    penalty = (1.0 if len(w["weight"]) == 2 else 0.5) * jnp.sum(w["weight"] ** 2)
    return (loss + penalty) / jnp.sum(sample_weight)


def sample_weights(
    u: Coefficients,
    z: Float[Array, "folds rows features"],
    others: Float[Array, "folds trusted"],
    inflate: Float[Array, ""],
) -> Float[Array, "folds all"]:
    """Of training rows, `inflate` times their effective weights, and of trusted rows, e^tau."""
    weights = inflate * jax.vmap(lambda fold: effective_weights(u, fold))(z)
    return jnp.concatenate([weights, jnp.exp(u["log_trusted"]) * others], axis=1)


class Inner(eqx.Module):
    """The penalised risks of the folds' models, summed."""

    z: Float[Array, "folds rows features"]
    others: Float[Array, "folds trusted"]
    inflate: Float[Array, ""]
    rows: Rows

    def __call__(self, u: Coefficients, w: PyTree, batch: None) -> Array:
        weights = sample_weights(u, self.z, self.others, self.inflate)
        return jnp.sum(jax.vmap(lambda w, s: penalised_risk(w, self.rows, s))(w, weights))


class Outer(eqx.Module):
    """The mean loss of trusted rows held out, and the pull of the coefficients to zero."""

    held_out: Float[Array, "folds trusted"]
    trusted: Rows

    def __call__(self, u: Coefficients, w: PyTree, batch: None) -> Array:
        def loss(w: PyTree, held_out: Float[Array, " trusted"]) -> Array:
            outputs = jnp.exp(u["log_temperature"]) * model(w, self.trusted.x)
            return jnp.vdot(held_out, row_losses(outputs, self.trusted.y))

        pull = PULL * jnp.vdot(u["slope"], u["slope"])
        total = jnp.sum(jax.vmap(loss)(w, self.held_out))
        return (total + pull) / jnp.sum(self.held_out)


@eqx.filter_jit
def fit_model(rows: Rows, sample_weight: Float[Array, " all"], num_outputs: int) -> PyTree[Array]:
    """The penalised linear model, from zero."""
    start = jax.tree.map(
        lambda a: a.astype(rows.x.dtype), linear_model(rows.x.shape[1], num_outputs).w0
    )
    return optx.minimise(
        lambda w, s: penalised_risk(w, rows, s),
        TO_THE_END,
        start,
        args=sample_weight,
        max_steps=200,
        throw=False,
    ).value


class Path(NamedTuple):
    """One run of the weight function, from its start, at the recorded steps."""

    steps: list[int]
    us: list[Coefficients]
    trace: pd.DataFrame
    w: PyTree

    def save(self, file: FilePath) -> None:
        """Write an `.npz`, whole or not at all."""
        us = {f"u {name}": np.stack([u[name] for u in self.us]) for name in self.us[0]}
        trace = {f"trace {name}": np.asarray(self.trace[name]) for name in self.trace}
        w = {f"w {name}": value for name, value in self.w.items()}
        partial = file.with_suffix(".part.npz")
        np.savez(partial, steps=self.steps, **us, **trace, **w)
        partial.replace(file)

    @classmethod
    def load(cls, file: FilePath) -> "Path":
        """Read what `save` wrote."""
        parts: dict[str, dict[str, np.ndarray]] = {"u": {}, "trace": {}, "w": {}}
        with np.load(file, allow_pickle=False) as saved:
            steps = saved["steps"].tolist()
            for name in saved.files:
                if name != "steps":
                    part, key = name.split(" ", 1)
                    parts[part][key] = saved[name]
        us = [{key: value[t] for key, value in parts["u"].items()} for t in range(len(steps))]
        return cls(steps, us, pd.DataFrame(parts["trace"]), parts["w"])


class Description(NamedTuple):
    """What models say of the training rows' labels; see `Folds._describe`."""

    features: Float[np.ndarray, "n features"]
    agree: Bool[np.ndarray, " n"]
    fits: Float[np.ndarray, "4 n"]
    quality: Float[np.ndarray, " n"]
    scorer: RowScorer
    outputs: Float[np.ndarray, "n outputs"]


class Folds:
    """The data with their folds, and everything that is computed once from them.

    `rows` hold the training rows that models are fitted on (at most `MAX_ROWS` of the `n`), then the
    trusted rows; `x`, `y` all `n` training rows. Sample weights are over `rows` and come in fours: for
    each fold, without its trusted rows, and for all trusted rows.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        x_trusted: np.ndarray,
        y_trusted: np.ndarray,
        kind: Classes | Numbers,
        groups: Int[np.ndarray, " n"] | None,
        rng: np.random.Generator,
    ):
        self.x, self.y, self.kind = x, y, kind
        self.x_trusted, self.y_trusted = x_trusted, y_trusted
        self.n, self.m = len(y), len(y_trusted)
        classes = isinstance(kind, Classes)
        self.unjudged = ~np.isin(y, y_trusted) if classes else np.zeros(self.n, bool)
        # Folds in which every class, or every range of the target, has its share.
        self.fold = np.empty(self.m, int)
        self.fold[np.lexsort((rng.random(self.m), y_trusted))] = np.arange(self.m) % FOLDS
        self.others = np.stack([self.fold != k for k in range(FOLDS)] + [np.ones(self.m, bool)])
        part = rng.permutation(np.arange(self.n) % CROSS_FITS)
        half = rng.permutation(np.arange(self.n) % HALVES)
        self.sub = np.sort(rng.permutation(self.n)[:MAX_ROWS])
        # Models are fitted to centred features, which is the same model and takes a quarter of the
        # steps; the offset that they have without centring is in every `bias` outside of `rows`.
        self.centre = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
        self.size, self.inflate = len(self.sub), self.n / len(self.sub)
        labels = jnp.int32 if classes else x.dtype
        self.rows = Rows(
            jnp.asarray(np.concatenate([x[self.sub], x_trusted]) - self.centre),
            jnp.asarray(np.concatenate([y[self.sub], y_trusted]), labels),
        )
        self.groups = groups
        self.of_all, by_all = self._cross_fit(np.zeros(self.m), part)
        self.shift = self._density_ratio(part)
        self.described = [self._describe(k, by_all, half) for k in range(FOLDS + 1)]

    def fit(self, weights: np.ndarray, rows: Rows | None = None, outputs: int = 0) -> PyTree:
        """A model for each row of `weights`; their parameters are stacked on a first axis."""
        rows = self.rows if rows is None else rows
        models = []
        for (
            sample_weight
        ) in weights:  # one after the other, so that all of them share one compilation
            w = fit_model(
                rows, jnp.asarray(sample_weight, rows.x.dtype), outputs or self.kind.number
            )
            models.append(jax.tree.map(np.asarray, w))
        return self.centred(jax.tree.map(lambda *leaves: np.stack(leaves), *models), back=True)

    def centred(self, w: PyTree, *, back: bool = False) -> PyTree:
        """The same models for centred features, or back."""
        offset = w["weight"] @ self.centre
        return {"weight": w["weight"], "bias": w["bias"] + (-offset if back else offset)}

    def _cross_fit(self, trusted: np.ndarray, part: np.ndarray) -> tuple[PyTree, np.ndarray]:
        """Models of all parts but one, and what each says of the training rows of that one."""
        parts = range(part.max() + 1)
        w = self.fit(np.stack([np.r_[part[self.sub] != p, trusted] for p in parts]))
        return w, self._outputs(w, part)

    def _outputs(self, w: PyTree, which: np.ndarray) -> Float[np.ndarray, "n outputs"]:
        """Of the training rows, each under the model that `which` says."""
        outputs = np.empty((self.n, w["weight"].shape[1]), self.x.dtype)
        for p in range(len(w["weight"])):
            outputs[which == p] = self.x[which == p] @ w["weight"][p].T + w["bias"][p]
        return outputs

    def _describe(self, k: int, by_all: np.ndarray, half: np.ndarray) -> Description:
        """What models that have not seen fold k's trusted rows, nor a row itself, say of its label.

        a, b, c, d = rank of the label's fit under models of all rows (cross-fitted), of the trusted
        rows, of those and the rows that agree with it, and of those and the half of the rows with the
        largest a + c (c and d cross-fitted in halves).

        Features of the weight function: a, b, a^2, ab, b^2, c, c^2, d, d^2, whether the model of c
        predicts the label, and, where the trusted rows are distributed otherwise than the training
        rows, half the log density ratio.
        """
        others, y = self.others[k], self.y
        trusted_only = self.fit(np.r_[np.zeros(self.size), others][None])
        by_trusted = self._outputs(trusted_only, np.zeros(self.n, int))
        agree = self.kind.agrees(by_trusted, y) | self.unjudged

        def by_halves(keep: Bool[np.ndarray, " n"]) -> tuple[PyTree, np.ndarray]:
            weights = [np.r_[(keep & (half != h))[self.sub], others] for h in range(HALVES)]
            w = self.fit(np.stack(weights))
            return w, self._outputs(w, half)

        agreeing, by_agreeing = by_halves(agree)
        a, b, c = (self._ranks(outputs) for outputs in (by_all, by_trusted, by_agreeing))
        fits = a + c
        best, by_best = by_halves(fits >= np.median(fits))
        d = self._ranks(by_best)
        squares = PolynomialFeatures(2, include_bias=False).fit_transform(np.stack([a, b], axis=1))
        predicted = np.where(self.kind.agrees(by_agreeing, y) | self.unjudged, 1.0, -1.0)
        columns = [squares, c, c**2, d, d**2, predicted]
        if self.shift is not None:
            columns.append(self.shift[k])
        # Where the trusted rows come from elsewhere, their models say little of the rows here.
        early = self.shift is not None
        first = (self.of_all, by_all, a) if early else (agreeing, by_agreeing, c)
        return Description(
            features=np.column_stack(columns),
            agree=agree,
            fits=np.stack([a, b, c, d]),
            quality=(centred_ranks(first[2] + d) + 1) / 2,
            scorer=RowScorer(
                self.kind,
                (first[0], best),
                (np.sort(self.kind.fit(first[1], y)), np.sort(self.kind.fit(by_best, y))),
                np.sort(first[2] + d),
                dispute_spread(self.kind, by_best, y),
            ),
            outputs=by_best,
        )

    def _ranks(self, outputs: Float[np.ndarray, "n outputs"]) -> Float[np.ndarray, " n"]:
        """Of the labels' fit, from -1 to 1; 0, the middle, for labels that no trusted row has."""
        return np.where(self.unjudged, 0.0, centred_ranks(self.kind.fit(outputs, self.y)))

    def _density_ratio(self, part: np.ndarray) -> list[np.ndarray] | None:
        """Half the log density ratio of trusted to training rows, for each fold, if they differ.

        Of a logistic classifier that tells one from the other, cross-fitted. They differ if it ranks
        trusted rows of the fold it has not seen above training rows, by three standard errors
        (of the AUROC of a coin).
        """
        domain = np.r_[np.zeros(self.size, int), np.ones(self.m, int)]
        rows = Rows(self.rows.x, jnp.asarray(domain, jnp.int32))
        ratios, areas = [], []
        for k, others in enumerate(self.others):
            share = others.sum() / self.size  # both sides weigh the same
            parts = range(CROSS_FITS)
            weights = np.stack([np.r_[share * (part[self.sub] != p), others] for p in parts])
            w = self.fit(weights, rows, 2)
            ratio = np.diff(self._outputs(w, part))[:, 0]
            ratios.append(np.clip(ratio, -STEEPEST, STEEPEST) / 2)
            if k < FOLDS:
                held = np.mean(
                    [
                        np.diff(self.x_trusted @ w["weight"][p].T + w["bias"][p])[:, 0]
                        for p in parts
                    ],
                    axis=0,
                )[~others]
                labels = np.r_[np.zeros(self.n), np.ones(len(held))]
                areas.append(roc_auc_score(labels, np.r_[ratio, held]))
        error = np.sqrt((self.n + self.m + 1) / (12 * self.n * self.m))
        return ratios if np.mean(areas) > 0.5 + 3 * error else None

    def start(self, width: int | None = None, *, ratio: bool = False) -> Coefficients:
        """Uniform weights; or those of the density ratio, which is the last feature."""
        slope = np.zeros(width or self.described[0].features.shape[1], self.x.dtype)
        slope[-1] = 2.0 * ratio
        zero = np.zeros((), self.x.dtype)
        # Far below zero, the log-sigmoid is the identity.
        offset = zero - 3 * STEEPEST * ratio
        return {"offset": offset, "slope": slope, "log_trusted": zero, "log_temperature": zero}

    def path(
        self,
        features: Sequence[np.ndarray],
        without: int | None,
        start: Coefficients,
        callbacks: Sequence[AbstractCallback] = (),
    ) -> Path:
        """The weight function learned on the held-out losses of the folds, but for one."""
        floating = self.rows.x.dtype
        z = jnp.asarray(np.stack([features[k][self.sub] for k in range(FOLDS)]), floating)
        others = jnp.asarray(self.others[:FOLDS], floating)
        # The fold left out keeps its model and loses its losses: one compilation for all runs.
        counts = jnp.asarray([k != without for k in range(FOLDS)], floating)
        inflate = jnp.asarray(self.inflate, floating)
        trusted = Rows(self.rows.x[self.size :], self.rows.y[self.size :])
        problem = BilevelProblem(
            Outer((1 - others) * counts[:, None], trusted), Inner(z, others, inflate, self.rows)
        )
        u0 = jax.tree.map(lambda a: jnp.asarray(a, floating), start)
        fitted = self.fit(np.asarray(sample_weights(u0, z, others, inflate)))
        w0 = jax.tree.map(jnp.asarray, self.centred(fitted))
        trajectory = Trajectory()
        with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes integers and floats
            solution = solve(
                problem,
                METHOD,
                u0,
                w0,
                num_steps=STEPS,
                chunk_size=EVERY,
                trace_every=EVERY,
                callbacks=[*callbacks, trajectory],
            )
        return Path(
            trajectory.steps,
            trajectory.us,
            pd.DataFrame(solution.trace),
            self.centred(jax.tree.map(np.asarray, solution.w), back=True),
        )

    def judge(self, weights: Float[np.ndarray, "folds all"]) -> tuple[np.ndarray, float]:
        """Held-out loss of each trusted row, and accuracy or R2, of the models of the folds."""
        return self.judge_models(self.fit(weights[:FOLDS]))

    def judge_models(self, w: PyTree) -> tuple[np.ndarray, float]:
        """The same for models, one per fold."""
        models = zip(w["weight"][:FOLDS], w["bias"][:FOLDS], strict=True)
        outputs = np.stack([self.x_trusted @ a.T + b for a, b in models])
        return self.kind.judge(outputs[self.fold, np.arange(self.m)], self.y_trusted)


def make_folds(
    X: Any, y: np.ndarray, X_trusted: Any, y_trusted: np.ndarray, groups: Any, seed: int
) -> Folds:
    """Check what only this method needs, and fit the models that describe the rows.

    Raises:
        InputError: fewer than 6 trusted rows, or codes that are no codes.
    """
    check_trusted_count(len(y_trusted), FOLDS)
    kinds = y.dtype.kind + y_trusted.dtype.kind
    if kinds == "ff":
        kind: Classes | Numbers = Numbers()
    elif set(kinds) <= set("iu") and min(y.min(), y_trusted.min()) >= 0:
        kind = Classes(int(max(y.max(), y_trusted.max())) + 1)
    else:
        raise InputError(
            "`y` and `y_trusted` must both be class codes 0, 1, ... or both floating targets, got "
            f"{y.dtype} and {y_trusted.dtype} from {min(y.min(), y_trusted.min())}; "
            "`sklearn.preprocessing.LabelEncoder` makes codes."
        )
    floating = jax.dtypes.canonicalize_dtype(float)
    x, x_trusted = np.asarray(X, floating), np.asarray(X_trusted, floating)
    codes = None if groups is None else np.unique(groups, return_inverse=True)[1]
    return Folds(x, y, x_trusted, y_trusted, kind, codes, np.random.default_rng(seed))
