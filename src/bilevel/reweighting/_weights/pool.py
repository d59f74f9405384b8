"""A pool of label models: what they say together of the true label, and of the given one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, logsumexp
from scipy.stats import t as student

from .calibration import Evidence, log_odds, simulated
from .labels import Classes, Numbers

STRENGTH = 2.0  # of the pull of the coefficients to equal ones, in rows of trusted loss
BACKGROUND = (1e-4, 0.5)  # the range of the background's share
BACKGROUND_PULL = 0.5  # in rows: keeps a share that no trusted row asks for from vanishing
PRIOR_ROWS = 2.0  # rows' worth of belief that targets are right
WRONG_LIKE_ALL = 5.0  # wrong labels' worth of belief that a class goes wrong as often as all do
CONFUSABLE = 0.5  # how far wrong labels are believed to be those that the pool confuses
LABELS_ARE_RIGHT = 0.9  # the share at which it begins
ROUNDS = 60  # of expectation and maximisation
TEMPER = 0.5  # the power of the noise matrix by which rows are ranked
UNKNOWN = -1  # in place of the code of a label
TAILS = 4  # degrees of freedom of a residual's distribution
# A line search that goes too far finds an infinite loss, and turns back.
TOO_FAR = np.errstate(over="ignore", invalid="ignore")

Outputs = Sequence[np.ndarray]  # of each label model, (rows, outputs)


class ClassPool(NamedTuple):
    """A log-linear pool of classifiers, and the noise of the given labels under it.

        log p(y | x) = sum_k c_k log p_k(y | x) - log Z(x),   then  (1 - d) p(y | x) + d prior(y)
        P(true = y | x, given) ~ p(y | x) T[y, given]

    The coefficients `c_k >= 0` and then the background's share `d` minimise the log loss of trusted
    rows that the members have not seen, with `c_k` pulled to `1 / k`:

        sum_j -log p(y_j | x_j) + strength / 2 sum_k log(k c_k)^2

    The background says how often the members are surely wrong; without it their own errors on clean
    labels would be read as noise. The noise matrix `T[true, given]` is estimated from the given labels
    by expectation maximisation, as in Dawid and Skene (1979), "Maximum likelihood estimation of
    observer error-rates using the EM algorithm" [dawid1979][], with the pool in place of the class
    shares.

    Attributes:
        coefficients: `c`, one per member.
        background: `d`.
        shares: the prior, the shares of the classes among the trusted rows.
        noise: `T`; each row sums to 1.
    """

    coefficients: Float[np.ndarray, " members"]
    background: float
    shares: Float[np.ndarray, " classes"]
    noise: Float[np.ndarray, "classes classes"]

    @classmethod
    def fit(
        cls,
        kind: Classes,
        trusted: Outputs,
        y_trusted: Int[np.ndarray, " m"],
        train: Outputs,
        y: Int[np.ndarray, " n"],
        verified: Int[np.ndarray, " m"] | None = None,
        *,
        weight_trusted: Float[np.ndarray, " m"] | None = None,
        weight: Float[np.ndarray, " n"] | None = None,
    ) -> "ClassPool":
        """From out-of-fold outputs of each member on the trusted and on the training rows.

        A row counts as its weight. `verified`: the labels that the trusted rows had before they were
        verified, if they are known; `UNKNOWN` where one is not.

        Cost: some ten passes over the trusted rows, and `ROUNDS` over the training rows.
        """
        weight_trusted, weight = _counts(y_trusted, weight_trusted), _counts(y, weight)
        blank = cls.without_noise(kind.number, np.stack(trusted), y_trusted, weight_trusted)
        pairs = np.zeros((kind.number, kind.number))
        if verified is not None:
            seen = verified != UNKNOWN
            np.add.at(pairs, (y_trusted[seen], verified[seen]), weight_trusted[seen])
        return blank._replace(noise=_noise_matrix(np.exp(blank.outputs(train)), y, pairs, weight))

    @classmethod
    def without_noise(
        cls,
        number: int,
        members: Float[np.ndarray, "members m classes"],
        y: Int[np.ndarray, " m"],
        weight: Float[np.ndarray, " m"],
    ) -> "ClassPool":
        """Coefficients and background from trusted rows; the noise matrix says that there is none."""
        rows, members = np.arange(len(y)), members.astype(float)
        of_label = members[:, rows, y] @ weight

        @TOO_FAR
        def loss(log_c: np.ndarray) -> tuple[float, np.ndarray]:
            c = np.exp(log_c)
            score = np.tensordot(c, members, 1)
            normaliser = np.asarray(logsumexp(score, axis=1))
            p = np.exp(score - normaliser[:, None]) * weight[:, None]
            slope = np.array([np.vdot(p, outputs) for outputs in members]) - of_label
            away = log_c - start
            value = weight @ normaliser - c @ of_label + STRENGTH / 2 * away @ away
            return float(value), slope * c + STRENGTH * away

        start = np.full(len(members), -np.log(len(members)))
        coefficients = np.exp(minimize(loss, start, jac=True, method="L-BFGS-B").x)
        counts = np.bincount(y, weight, number) + 1.0
        shares = counts / counts.sum()
        p, share = np.exp(_log_linear(coefficients, list(members))[rows, y]), shares[y]
        background: Any = minimize_scalar(
            lambda d: -weight @ np.log((1 - d) * p + d * share) - BACKGROUND_PULL * np.log(d),
            bounds=BACKGROUND,
            method="bounded",
        )
        return cls(coefficients, float(background.x), shares, np.eye(number))

    def _without_each(
        self,
        trusted: Outputs,
        y: Int[np.ndarray, " m"],
        weight: Float[np.ndarray, " m"],
        fold: Int[np.ndarray, " m"],
    ) -> dict[int, "ClassPool"]:
        """For each fold, the pool whose coefficients have not seen it, with the same noise matrix."""
        members, found = np.stack(trusted), {}
        for k in np.unique(fold).tolist():
            others = (fold != k) & (weight > 0)
            if others.any():
                of_others = members[:, others], y[others], weight[others]
                pool = self.without_noise(members.shape[2], *of_others)
                found[k] = pool._replace(noise=self.noise)
        return found

    def outputs(self, members: Outputs) -> Float[np.ndarray, "rows classes"]:
        """Log-probabilities of the true label."""
        p = np.exp(_log_linear(self.coefficients, members))
        return np.log((1 - self.background) * p + self.background * self.shares)

    def _by_fold(
        self, pools: dict[int, "ClassPool"], members: Outputs, fold: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows classes"]:
        """Of each row, the log-probabilities by the pool of its fold."""
        found = np.empty(members[0].shape)
        for k in np.unique(fold).tolist():
            here = fold == k
            found[here] = pools.get(k, self).outputs([outputs[here] for outputs in members])
        return found

    def right(self, members: Outputs, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """The probability that the given label is the true one."""
        return _posterior(np.exp(self.outputs(members)), self.noise, y)

    def losses(self, members: Outputs, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """Minus the logarithm of the probability of the given label, right or wrong."""
        return -np.log((np.exp(self.outputs(members)) * self.noise[:, y].T).sum(axis=1))

    def evidence(
        self,
        trusted: Outputs,
        y_trusted: Int[np.ndarray, " m"],
        train: Outputs,
        y: Int[np.ndarray, " n"],
        verified: Int[np.ndarray, " m"] | None = None,
        *,
        fold: Int[np.ndarray, " m"],
        part: Int[np.ndarray, " n"],
        weight_trusted: Float[np.ndarray, " m"] | None = None,
        weight: Float[np.ndarray, " n"] | None = None,
    ) -> Evidence:
        """What the log-odds of wrong labels are on the training and on the trusted rows.

        They are those by which rows are ranked: the rows to look at are the first of the ranking.
        The arguments are those of `fit`, and the fold of each trusted row and the part of each
        training row. Coefficients of the other folds judge both: by coefficients that have seen the
        trusted rows, the models would seem to err less on clean labels than they do on training rows.
        A part that is no fold is judged by the pool itself.
        """
        each, weight = _counts(y_trusted, weight_trusted), _counts(y, weight)
        pools = self._without_each(trusted, y_trusted, each, fold)
        p = np.exp(self._by_fold(pools, trusted, fold))
        training = log_odds(np.exp(self._by_fold(pools, train, part)), self.tempered, y)
        seen = np.zeros(len(y_trusted), bool) if verified is None else verified != UNKNOWN
        given = y_trusted if verified is None else np.where(seen, verified, y_trusted)
        before, bad = log_odds(p, self.tempered, given), given != y_trusted
        if seen.all():
            right, wrong = (before[~bad], each[~bad]), (before[bad], each[bad])
            labels = given[~bad], given[bad]
            return Evidence(training, weight, *right, *wrong, *labels, pairs=len(bad))
        odds = log_odds(p, self.tempered, y_trusted)
        flips, share, label = simulated(p, self.noise, self.tempered, y_trusted)
        share = share * np.repeat(each, len(flips) // len(each))
        known = before[seen], bad[seen], each[seen]
        return Evidence(training, weight, odds, each, flips, share, y_trusted, label, 0, *known)

    def quality(self, members: Outputs, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """What rows are ranked by: the same with the square root of the noise matrix."""
        return _posterior(np.exp(_log_linear(self.coefficients, members)), self.tempered, y)

    @property
    def tempered(self) -> Float[np.ndarray, "classes classes"]:
        """The square root of the noise matrix, scaled: by it rows are ranked, and called wrong.

        People's errors lie on hard rows and are not all explained by the pair of classes: half of
        the evidence of the matrix ranks them better, and errors that it explains hardly worse. Where
        any class may stand for any other, the matrix has the pool's own confusions instead.
        """
        root = self.noise**TEMPER
        return root / root.sum(axis=1, keepdims=True)


class NumberPool(NamedTuple):
    """A non-negative combination of regressions, and how many given targets lie far from it.

        y = sum_k c_k mu_k(x) + s e,   e of Student's distribution with 4 degrees of freedom
        P(right | x, given) = (1 - q) f(r / s) / s / ((1 - q) f(r / s) / s + q f(r / b) / b)

    with `r` the given target minus the combination and `f` the density of e. The coefficients and the
    scale `s` have the greatest likelihood on trusted rows that the members have not seen, with `c_k`
    pulled to `1 / k` as in `ClassPool`; the share `q` of wrong targets and their scale `b >= 2 s` come
    from the given targets, by expectation maximisation.

    Attributes:
        coefficients: `c`, one per member.
        scale: `s`, in units of the targets.
        wrong: `q`.
        wrong_scale: `b`.
    """

    coefficients: Float[np.ndarray, " members"]
    scale: float
    wrong: float
    wrong_scale: float

    @classmethod
    def fit(
        cls,
        kind: Numbers,
        trusted: Outputs,
        y_trusted: Float[np.ndarray, " m"],
        train: Outputs,
        y: Float[np.ndarray, " n"],
        *,
        weight_trusted: Float[np.ndarray, " m"] | None = None,
        weight: Float[np.ndarray, " n"] | None = None,
    ) -> "NumberPool":
        """From out-of-fold outputs of each member on the trusted and on the training rows."""
        pool = cls.of_trusted(np.stack(trusted), y_trusted, _counts(y_trusted, weight_trusted))
        return pool._explain(y - pool.outputs(train)[:, 0], _counts(y, weight))

    @classmethod
    def of_trusted(
        cls,
        outputs: Float[np.ndarray, "members m 1"],
        y: Float[np.ndarray, " m"],
        weight: Float[np.ndarray, " m"],
    ) -> "NumberPool":
        """Coefficients and scale from trusted rows; of the given targets nothing is known."""
        members, y, rows = outputs[:, :, 0].astype(float), y.astype(float), weight.sum()
        start = np.full(len(members), -np.log(len(members)))

        @TOO_FAR
        def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
            c, scale = np.exp(x[:-1]), np.exp(x[-1])
            r = (y - c @ members) / scale
            away = x[:-1] - start
            value = (TAILS + 1) / 2 * weight @ np.log1p(r**2 / TAILS) + rows * x[-1]
            d_r = weight * (TAILS + 1) * r / (TAILS + r**2)
            d_c = -(members @ d_r) / scale * c + STRENGTH * away
            return value + STRENGTH / 2 * away @ away, np.r_[d_c, rows - d_r @ r]

        away = y - members.mean(axis=0)
        centre = np.average(away, weights=weight)
        spread = np.log(np.sqrt(np.average((away - centre) ** 2, weights=weight)) + 1e-6)
        found = minimize(
            loss,
            np.r_[start, spread],
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, None)] * len(start) + [(np.log(1e-6), None)],
        ).x
        return cls(np.exp(found[:-1]), float(np.exp(found[-1])), 0.1, 0.0)

    def _explain(
        self, residuals: Float[np.ndarray, " n"], rows: Float[np.ndarray, " n"]
    ) -> "NumberPool":
        """The share of wrong targets and their scale; each residual counts as `rows`."""
        least = 2 * self.scale
        size = np.sqrt(np.average(residuals**2, weights=rows))
        share, scale = 0.1, max(3 * self.scale, float(size))
        for _ in range(ROUNDS):
            right = _right(residuals, self.scale, share, scale)
            wrong = rows * (1 - right)
            share = (wrong.sum() + PRIOR_ROWS * (1 - LABELS_ARE_RIGHT)) / (rows.sum() + PRIOR_ROWS)
            pull = (TAILS + 1) / (
                TAILS + (residuals / scale) ** 2
            )  # Student's, as reweighted squares
            squares = (wrong * pull) @ residuals**2
            scale = max(np.sqrt(squares / max(wrong.sum(), 1e-12)), least)
        return self._replace(wrong=float(share), wrong_scale=float(scale))

    def outputs(self, members: Outputs) -> Float[np.ndarray, "rows 1"]:
        """Predictions of the true target."""
        return np.tensordot(self.coefficients, np.stack(members), 1)

    def right(self, members: Outputs, y: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """The probability that the given target is right."""
        r = y - self.outputs(members)[:, 0]
        return _right(r, self.scale, self.wrong, self.wrong_scale)

    quality = right  # a function of the residual's size alone, which ranks the rows


def fit_pool(
    kind: Classes | Numbers,
    trusted: Outputs,
    y_trusted: np.ndarray,
    train: Outputs,
    y: np.ndarray,
    verified: np.ndarray | None = None,
    **weights: np.ndarray,
) -> ClassPool | NumberPool:
    """The pool for this kind of label; `weights`: `weight_trusted` and `weight`."""
    if isinstance(kind, Classes):
        return ClassPool.fit(kind, trusted, y_trusted, train, y, verified, **weights)
    return NumberPool.fit(kind, trusted, y_trusted, train, y, **weights)


def _counts(y: np.ndarray, weight: np.ndarray | None) -> Float[np.ndarray, " rows"]:
    """How much each row counts; by default one."""
    return np.ones(len(y)) if weight is None else weight


def _log_linear(coefficients: np.ndarray, members: Outputs) -> np.ndarray:
    score = sum(c * outputs for c, outputs in zip(coefficients, members, strict=True))
    return log_softmax(np.asarray(score), axis=1)


def _noise_matrix(
    p: Float[np.ndarray, "n classes"],
    y: np.ndarray,
    pairs: Float[np.ndarray, "classes classes"],
    weight: Float[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "classes classes"]:
    """`T[true, given]` by expectation maximisation, begun at labels that are mostly right.

    The pool's own errors on clean labels look like noise that it explains: so each class is believed
    to go wrong about as often as all do (5 wrong labels' worth), to labels that are half uniform, half
    those that the pool confuses with it (one label's worth per pair).

    `pairs`: how often each pair was seen among verified rows, which need no expectation. `weight`: how
    much each row counts.
    """
    classes = p.shape[1]
    if classes == 1:
        return np.ones((1, 1))
    off, weight = 1 - np.eye(classes), _counts(y, weight)
    confused = off * (p.T @ (weight[:, None] * p))
    confused /= np.maximum(confused.sum(axis=1, keepdims=True), 1e-12)
    believed = CONFUSABLE * (classes - 1) * confused + (1 - CONFUSABLE) * off
    order = np.argsort(y, kind="stable")
    p, y, weight = p[order], y[order], weight[order]
    present, first = np.unique(y, return_index=True)
    parts = np.split(p, first[1:]), np.split(weight, first[1:])
    given = list(zip(present, *parts, strict=True))  # the rows of each given class
    noise = np.eye(classes) * LABELS_ARE_RIGHT + off * (1 - LABELS_ARE_RIGHT) / (classes - 1)
    for _ in range(ROUNDS):
        counts = pairs.copy()
        for label, rows, each in given:  # sums of p * noise / sum(p * noise), by two products
            column = noise[:, label]
            counts[:, label] += column * ((each / (rows @ column)) @ rows)
        number, wrong = counts.sum(axis=1), (off * counts).sum(axis=1)
        rate = (wrong.sum() + 0.5) / (number.sum() + 1)
        rates = (wrong + WRONG_LIKE_ALL) / (number + WRONG_LIKE_ALL / rate)
        errors = off * counts + believed
        errors /= errors.sum(axis=1, keepdims=True)
        noise = rates[:, None] * errors + np.diag(1 - rates)
    return noise


def _posterior(p: np.ndarray, noise: np.ndarray, y: np.ndarray) -> np.ndarray:
    joint = p * noise[:, y].T
    return joint[np.arange(len(y)), y] / joint.sum(axis=1)


def _right(residuals: np.ndarray, scale: float, share: float, wrong_scale: float) -> np.ndarray:
    fits = (1 - share) * student.pdf(residuals / scale, TAILS) / scale
    far = share * student.pdf(residuals / wrong_scale, TAILS) / wrong_scale
    return fits / (fits + far)
