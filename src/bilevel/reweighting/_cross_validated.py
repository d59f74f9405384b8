"""Weights as a function of a few features of the row, judged on held-out folds of the trusted rows."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pandas as pd
from jaxtyping import Array, Bool, Float, Int, PyTree
from scipy.special import log_softmax
from sklearn.preprocessing import PolynomialFeatures

from .._algorithm.double_loop import DoubleLoop
from .._callback import AbstractCallback
from .._hypergradient.implicit import AID
from .._inner import MinimiserInner
from .._linear.cg import CG
from .._problem import BilevelProblem
from .._retrain import Trajectory
from .._solve import solve
from ..tasks import linear_model, softmax_cross_entropy
from ._data import InputError
from ._features import centred_ranks

FOLDS, CROSS_FITS, HALVES, STEPS, EVERY = 3, 5, 2, 25, 5
PULL = 0.1  # of the coefficients to uniform weights, in rows of trusted loss
SIMPLEST = "all rows + trusted"
# One object, so that all runs share one compilation a shape.
METHOD = DoubleLoop(
    inner=MinimiserInner(optx.LBFGS(rtol=1e-2, atol=1e-4), max_steps=20),
    hypergradient=AID(CG(rtol=0.1, max_steps=10)),
    outer_tx=optax.adam(0.3),
    warm_start=True,
)
TO_THE_END = optx.LBFGS(rtol=1e-4, atol=1e-5)
model = linear_model(1, 1).predict  # W x + b; it depends on no shape


class CrossValidatedWeights(NamedTuple):
    """What `cross_validated_weights` returns.

    Attributes:
        weights: one a training row, mean 1; all zero if the trusted rows alone are best.
        trusted_weight: what a trusted row weighs beside them.
        scale: fit the final model with `scale * weights` and `scale * trusted_weight`: then the
            training rows count as their effective sample size, which a penalised model notices.
        winner: the candidate that was chosen.
        candidates: a table with a line a candidate: `loss` and `accuracy` on the trusted rows, each
            judged by models that have not seen it, and the `difference` of the loss to
            "all rows + trusted" with its `standard_error`, paired over the rows.
        coefficients: of the weight function at the step chosen; at the last one if another
            candidate won.
    """

    weights: Float[np.ndarray, " rows"]
    trusted_weight: float
    scale: float
    winner: str
    candidates: pd.DataFrame
    coefficients: dict[str, np.ndarray]

    def __str__(self) -> str:
        row = self.candidates.loc[self.winner]
        return (
            f"{self.winner}: held-out loss {row['loss']:.4g}, {row['difference']:+.4g} (standard "
            f"error {row['standard_error']:.2g}) against {SIMPLEST}"
        )


class _Rows(NamedTuple):
    """Training rows, then trusted rows, with class codes."""

    x: Float[Array, "all features"]
    y: Int[Array, " all"]


def effective_weights(
    coefficients: dict[str, Array], z: Float[Array, "rows features"]
) -> Float[Array, " rows"]:
    """`s_i sum s / sum s^2` with `s_i = sigmoid(x_0 + <x, z_i>)`: summing to their effective size.

    Equal weights are 1 each; weights that are 0 or equal are 0 or 1.
    """
    score = coefficients["offset"] + z @ coefficients["slope"]
    s = jax.nn.softmax(jax.nn.log_sigmoid(score))
    return s * jnp.sum(s) / jnp.vdot(s, s)


def penalised_risk(w: PyTree, rows: _Rows, sample_weight: Float[Array, " all"]) -> Array:
    """`sum_i s_i loss_i + ||W||^2 / 2`, over `sum_i s_i`: scikit-learn's with C = 1."""
    loss = jnp.vdot(sample_weight, softmax_cross_entropy(model(w, rows.x), rows.y))
    return (loss + 0.5 * jnp.sum(w["weight"] ** 2)) / jnp.sum(sample_weight)


def _sample_weights(
    u: dict[str, Array],
    z: Float[Array, "folds rows features"],
    others: Float[Array, "folds trusted"],
) -> Float[Array, "folds all"]:
    weights = jax.vmap(lambda fold: effective_weights(u, fold))(z)
    return jnp.concatenate([weights, jnp.exp(u["log_trusted"]) * others], axis=1)


class _Inner(eqx.Module):
    z: Float[Array, "folds rows features"]
    others: Float[Array, "folds trusted"]
    rows: _Rows

    def __call__(self, u: dict[str, Array], w: PyTree, batch: None) -> Array:
        weights = _sample_weights(u, self.z, self.others)
        return jnp.sum(jax.vmap(lambda w, s: penalised_risk(w, self.rows, s))(w, weights))


class _Outer(eqx.Module):
    held_out: Float[Array, "folds trusted"]
    trusted: _Rows

    def __call__(self, u: dict[str, Array], w: PyTree, batch: None) -> Array:
        def loss(w: PyTree, held_out: Float[Array, " trusted"]) -> Array:
            logits = jnp.exp(u["log_temperature"]) * model(w, self.trusted.x)
            return jnp.vdot(held_out, softmax_cross_entropy(logits, self.trusted.y))

        pull = PULL * jnp.vdot(u["slope"], u["slope"])
        total = jnp.sum(jax.vmap(loss)(w, self.held_out))
        return (total + pull) / jnp.sum(self.held_out)


@eqx.filter_jit
def _fit(rows: _Rows, weights: Float[Array, "fits all"], num_classes: int) -> PyTree[Array]:
    """The penalised linear model, once for each line of weights; parameters on a first axis."""
    start = jax.tree.map(
        lambda a: a.astype(rows.x.dtype), linear_model(rows.x.shape[1], num_classes).w0
    )

    def one(sample_weight: Float[Array, " all"]) -> PyTree[Array]:
        return optx.minimise(
            lambda w, s: penalised_risk(w, rows, s),
            TO_THE_END,
            start,
            args=sample_weight,
            max_steps=200,
            throw=False,
        ).value

    return jax.lax.map(one, weights)


@eqx.filter_jit
def _logits(w: PyTree, x: Float[Array, "rows features"]) -> Float[Array, "fits rows classes"]:
    return jax.lax.map(lambda w: model(w, x), w)


class _Folds:
    """The data with their folds, and everything that is computed once from them."""

    def __init__(
        self,
        rows: _Rows,
        n: int,
        num_classes: int,
        rng: np.random.Generator,
    ):
        self.rows, self.n, self.num_classes = rows, n, num_classes
        self.x, self.y = np.asarray(rows.x), np.asarray(rows.y)
        self.m = len(self.y) - n
        self.fold = rng.permutation(np.arange(self.m) % FOLDS)
        # One line a fold, without its rows, and a last one with all trusted rows.
        self.others = np.stack([self.fold != k for k in range(FOLDS)] + [np.ones(self.m, bool)])
        part = rng.permutation(np.arange(n) % CROSS_FITS)
        self.half = rng.permutation(np.arange(n) % HALVES)
        by_all = self._fits(np.stack([part != k for k in range(CROSS_FITS)]), None)[
            part, np.arange(n)
        ]
        self.features, self.agree = zip(
            *(self._features(by_all, o) for o in self.others), strict=True
        )

    def fit(self, weights: np.ndarray) -> PyTree[Array]:
        """Models for lines of sample weights over training and trusted rows."""
        return _fit(self.rows, jnp.asarray(weights, self.rows.x.dtype), self.num_classes)

    def _fits(self, train: np.ndarray, trusted: np.ndarray | None) -> Float[np.ndarray, "f n c"]:
        """Log-probabilities of the training rows' classes under models of subsets."""
        none = np.zeros((len(train), self.m), bool)
        weights = np.concatenate([train, none if trusted is None else trusted], axis=1)
        return log_softmax(np.asarray(_logits(self.fit(weights), self.rows.x[: self.n])), axis=2)

    def _features(
        self, by_all: np.ndarray, others: Bool[np.ndarray, " trusted"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(features, which rows a model of the trusted rows agrees with), from `others` alone.

        a, b, c = rank of the label's log-probability under models of all rows (cross-fitted), of the
        trusted rows, and of those and the rows that agree with it (cross-fitted in halves);
        features a, b, a^2, ab, b^2, c, c^2, and whether the third model predicts the label.
        """
        n, i, y = self.n, np.arange(self.n), self.y[: self.n]
        by_trusted = self._fits(np.zeros((1, n), bool), others[None])[0]
        agree = by_trusted.argmax(1) == y
        halves = np.stack([agree & (self.half != h) for h in range(HALVES)])
        by_agreeing = self._fits(halves, np.tile(others, (HALVES, 1)))[self.half, i]
        a, b, c = (centred_ranks(p[i, y]) for p in (by_all, by_trusted, by_agreeing))
        squares = PolynomialFeatures(2, include_bias=False).fit_transform(np.stack([a, b], axis=1))
        predicted = np.where(by_agreeing.argmax(1) == y, 1.0, -1.0)
        return np.column_stack([squares, c, c**2, predicted]), agree

    def path(self, folds: list[int], callbacks: list[AbstractCallback]) -> Trajectory:
        """The weight function learned from uniform weights on the held-out losses of some folds."""
        floating = self.rows.x.dtype
        z = jnp.asarray(np.stack([self.features[k] for k in folds]), floating)
        others = jnp.asarray(self.others[folds], floating)
        trusted = _Rows(self.rows.x[self.n :], self.rows.y[self.n :])
        problem = BilevelProblem(_Outer(1 - others, trusted), _Inner(z, others, self.rows))
        zero = jnp.zeros((), floating)
        u0 = {
            "offset": zero,
            "slope": jnp.zeros(z.shape[2], floating),
            "log_trusted": zero,
            "log_temperature": zero,
        }
        w0 = self.fit(np.asarray(_sample_weights(u0, z, others)))
        path = Trajectory()
        solve(
            problem,
            METHOD,
            u0,
            w0,
            num_steps=STEPS,
            chunk_size=EVERY,
            trace_every=EVERY,
            callbacks=[*callbacks, path],
        )
        return path

    def sample_weight(self, u: dict[str, np.ndarray], k: int) -> Float[np.ndarray, " all"]:
        """Of the weight function with the features and trusted rows of fold k."""
        weights = effective_weights(
            jax.tree.map(jnp.asarray, u), jnp.asarray(self.features[k], self.rows.x.dtype)
        )
        return np.concatenate([weights, np.exp(u["log_trusted"]) * self.others[k]])

    def judge(self, weights: np.ndarray) -> tuple[Float[np.ndarray, " trusted"], float]:
        """Held-out loss of each trusted row, and accuracy, of the models of the first K lines.

        The logits are scaled by the temperature that is best for all of them: how sure a model is
        must not decide, since training on wrong labels makes it unsure of right predictions too.
        """
        logits = np.asarray(_logits(self.fit(weights[:FOLDS]), self.rows.x[self.n :]))
        logits, y = logits[self.fold, np.arange(self.m)], self.y[self.n :]

        def losses(log_temperature: float) -> np.ndarray:
            return -log_softmax(np.exp(log_temperature) * logits, axis=1)[np.arange(self.m), y]

        best = min((losses(t) for t in np.linspace(-2, 2, 33)), key=np.mean)
        return best, float(np.mean(logits.argmax(1) == y))


def cross_validated_weights(
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    seed: int = 0,
    callbacks: tuple[AbstractCallback, ...] = (),
) -> CrossValidatedWeights:
    """Weights from eight features of a row, learned and chosen on folds of the trusted rows.

        s_i = sigmoid(x_0 + <x, z_i>),   weights ~ s,   trusted rows weigh e^tau
        f(u, w) = sum_k [ sum_i s_i loss_i(w_k) + e^tau sum_{j not in fold k} loss_j(w_k)
                          + ||w_k||^2 / 2 ]
        F(u, w) = mean over folds k and trusted rows j in k of loss_j(e^t w_k)

    with u = (x_0, x, tau, t): ten numbers and a temperature, learned by near-exact hypergradients
    along a path of 25 Adam steps from uniform weights. The features and the models of a fold have
    not seen its trusted rows. Where on the path to stop, and whether weighting is worth it at all, is
    decided on losses of trusted rows that the coefficients were not fitted to: one more path is made
    without each fold. Candidates are points of the path and the four baselines: uniform, all rows +
    trusted, trusted only, and the filter. "All rows + trusted" is kept unless the best one is better
    by more than a standard error of the paired difference.

    Args:
        X, y: training rows `(rows, features)`, scaled to order one, and class codes 0, 1, ...
        X_trusted, y_trusted: the trusted rows; at least 3 of each class that matters.
        seed: of the folds.
        callbacks: for each of the four runs.

    Cost: four paths of together nine models (of 25 steps with at most 20 gradients and 10
    Hessian-vector products each), and about 60 fits of a linear model.

    Raises:
        InputError: fewer than 6 trusted rows, or codes that are no codes.

    The accuracy of the nested choice is slightly optimistic: the models of the other folds, which
    the coefficients are fitted to, have trained on the fold's rows.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(400, 2)); y = (X[:, 0] > 0).astype(int)
    >>> noisy = np.where(np.arange(300) < 100, 1 - y[:300], y[:300])  # the first hundred are wrong
    >>> found = cross_validated_weights(X[:300], noisy, X[300:], y[300:])
    >>> bool(found.weights[:100].mean() < 0.2), round(float(found.weights.mean()), 6)
    (True, 1.0)
    """
    y, y_trusted = np.asarray(y), np.asarray(y_trusted)
    if len(y_trusted) < 2 * FOLDS:
        raise InputError(
            f"weights are judged on {FOLDS} folds of the trusted rows: got {len(y_trusted)} trusted "
            f"rows, at least {2 * FOLDS} are needed."
        )
    codes = np.concatenate([y, y_trusted])
    if not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0:
        raise InputError(
            f"`y` and `y_trusted` must be class codes 0, 1, ..., got {codes.dtype} from "
            f"{codes.min()}; `sklearn.preprocessing.LabelEncoder` makes them."
        )
    floating = jax.dtypes.canonicalize_dtype(float)
    x = jnp.concatenate([jnp.asarray(X, floating), jnp.asarray(X_trusted, floating)])
    n = len(y)
    data = _Folds(
        _Rows(x, jnp.asarray(codes, jnp.int32)),
        n,
        int(codes.max()) + 1,
        np.random.default_rng(seed),
    )

    ones, zeros = np.ones((FOLDS + 1, n)), np.zeros((FOLDS + 1, data.m))
    candidates: dict[str, np.ndarray] = {
        "uniform": np.concatenate([ones, zeros], axis=1),
        SIMPLEST: np.concatenate([ones, data.others], axis=1),
        "trusted only": np.concatenate([0 * ones, data.others], axis=1),
        "filter": np.concatenate([np.stack(data.agree), data.others], axis=1),
    }
    whole = data.path(list(range(FOLDS)), list(callbacks))
    nested = [data.path([j for j in range(FOLDS) if j != k], list(callbacks)) for k in range(FOLDS)]
    for t, step in enumerate(whole.steps):
        us = [*(path.us[t] for path in nested), whole.us[t]]
        candidates[f"weights, step {step}"] = np.stack(
            [data.sample_weight(u, k) for k, u in enumerate(us)]
        )
    judged = {name: data.judge(weights) for name, weights in candidates.items()}
    table = pd.DataFrame(
        {
            name: {
                "loss": losses.mean(),
                "accuracy": accuracy,
                "difference": (losses - judged[SIMPLEST][0]).mean(),
                "standard_error": (losses - judged[SIMPLEST][0]).std(ddof=1) / np.sqrt(data.m),
            }
            for name, (losses, accuracy) in judged.items()
        }
    ).T
    best = str(table["loss"].idxmin())
    clear = table.loc[best, "difference"] < -table.loc[best, "standard_error"]
    winner = best if clear else SIMPLEST

    final = candidates[winner][FOLDS]
    mean, trusted = final[:n].mean(), final[n:].max()
    chosen = whole.steps.index(int(winner.split()[-1])) if winner.startswith("weights") else -1
    return CrossValidatedWeights(
        weights=final[:n] / (mean or 1.0),
        trusted_weight=float(trusted / (mean or 1.0)),
        scale=float(mean or 1.0),
        winner=winner,
        candidates=table,
        coefficients=whole.us[chosen],
    )
