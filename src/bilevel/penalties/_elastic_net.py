"""The elastic net and the lasso, with both penalties chosen by hypergradients."""

import warnings
from typing import Any

import numpy as np
from scipy.sparse import csc_array, issparse
from sklearn import config_context
from sklearn.base import RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import enet_path

from ._parts import Part
from ._search import tune
from ._tuning import AbstractTunedLinear

SHORTEST_PATH = 1e-4  # the least l1 penalty, as a part of the one that leaves no feature
RIDGE = (1e-8, 1e2)  # bounds of the l2 penalty, as multiples of the mean of x^2
RATIOS = (0.1, 0.5, 0.9, 0.99)  # of the grid that the search starts from
GRID, SHORTEST_START = 25, 1e-3  # strengths of that grid, and the least of them
PIECES, WORSE = 5, 1.02  # of the grid; a piece whose losses are worse by this factor is the last
SAME = 1 + 1e-9  # losses that differ by less do so by rounding
DOWN = 10  # strengths on the way to the last fit
ROUGH, EXACT = 1e-4, (1e-4, 1e-7, 1e-10)  # tolerances of coordinate descent
ROUNDS = 10  # of guessing a support from the last one, before coordinate descent finds it
LARGEST_GRAM = 1000  # features of which all products are kept


class ElasticNetBilevelCV(RegressorMixin, AbstractTunedLinear):
    """The elastic net, with the strengths of both penalties chosen by gradients.

        w_k(u) = argmin_w  1/2 sum_{i not in k} s_i (x_i'w - y_i)^2 / sum_{i not in k} s_i
                           + exp(u_1) ||w||_1 + 1/2 exp(u_2) ||w||^2
        Phi(u) = sum_k sum_{i in fold k} s_i (x_i'w_k(u) - y_i)^2  /  sum_i s_i

    w_k is not differentiable in u where its support S changes. Everywhere else S is constant in a
    neighbourhood, and the implicit function theorem holds for the coordinates in S:

        (X_S'X_S + exp(u_2) I) v_S = grad_S F,    v = 0 outside of S
        dPhi/du_1 = -exp(u_1) sign(w_S)'v_S,      dPhi/du_2 = -exp(u_2) w_S'v_S

    Args:
        l1_ratio: `None` chooses both penalties. A number in (0, 1] chooses only their sum, with the
            ratio `exp(u_1) / (exp(u_1) + exp(u_2))` fixed; 1 is the lasso, whose optimum is the one
            that `sklearn.linear_model.LassoCV` approaches as its grid becomes finer, if all folds
            have the same number of rows: here each *row* has the same weight.
        cv: number of folds, a scikit-learn splitter, or an iterable of splits.
        fit_intercept: whether there is an intercept, which is not penalised.
        max_iter: the largest number of steps of the outer solver (L-BFGS-B on `u`, within bounds).
        tol: the outer solver stops where no entry of the hypergradient is above `tol` times the
            variance of y.

    Attributes:
        alpha_, l1_ratio_: in scikit-learn's units, `exp(u_1) = alpha l1_ratio` and
            `exp(u_2) = alpha (1 - l1_ratio)`.
        coef_, intercept_: the model fitted on all rows.
        cv_loss_: `Phi` at the end, the mean squared error on the held-out rows.
        grid_cv_loss_: the smallest `Phi` on the coarse grid that the search starts from.
        hypergradient_norm_: the largest entry of the hypergradient at the end. It is not small if
            the minimum is at a kink of Phi.
        tuned_: the result of the outer solver; `tuned_.values` is its history.
        n_iter_: the number of outer steps, the choice of a start included.

    Phi is neither convex nor smooth: the search starts from the best point of a grid of 25 strengths
    (and 4 ratios), whose inner problems scikit-learn's coordinate descent solves roughly, along a
    path per fold. A path ends after five strengths in a row that are worse by 2 %. Two minima whose
    losses are closer than that to each other may be told apart wrongly. From there on problems are
    solved exactly: the support and the signs of the last solution are corrected until they meet the
    conditions of optimality, which takes one or two linear systems of the size of the support; where
    that fails, coordinate descent finds them. Cost: the paths, and a few such systems per fold and
    evaluation. Sparse rows are never made dense, and no copy of them is centred.

    Source: Bertrand, Klopfenstein, Massias, Blondel, Vaiter, Gramfort and Salmon (2022), "Implicit
    differentiation for fast hyperparameter selection in non-smooth convex learning", Theorem 1
    [bertrand2022][]; Grazzi and Pontil, "Principled and efficient bilevel optimization for machine
    learning", section "Recent Advances" [grazzi2023][].

    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = ElasticNetBilevelCV(l1_ratio=1.0).fit(X, y)
    >>> bool(model.cv_loss_ <= model.grid_cv_loss_), model.l1_ratio_
    (True, 1.0)
    """

    def __init__(
        self,
        *,
        l1_ratio: float | None = None,
        cv: Any = 5,
        fit_intercept: bool = True,
        max_iter: int = 100,
        tol: float = 1e-6,
    ):
        self.l1_ratio = l1_ratio
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol

    def _targets(self, y: np.ndarray) -> np.ndarray:
        return y.astype(np.float64)

    def _fit(self, whole: Part, folds: list[Part]) -> None:
        ratio = self.l1_ratio
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(
                f"`l1_ratio` must be None or in (0, 1], got {ratio!r}; for 0, which is ridge "
                "regression, use RidgeBilevelCV(penalties='shared')."
            )
        lassos = [_Fold(fold) for fold in folds]
        everything = _Fold(whole)
        variance = float(np.average(whole.y**2, weights=whole.weight)) or 1.0
        most = max(everything.most, 1e-12 * np.sqrt(variance))
        square = everything.square or 1.0

        def penalties(u: np.ndarray) -> np.ndarray:
            """`(l1, l2)`."""
            return np.exp(u) if ratio is None else np.exp(u[0]) * np.array([ratio, 1 - ratio])

        def phi(u: np.ndarray) -> tuple[float, np.ndarray]:
            pairs = [lasso.value_and_hypergradient(*penalties(u)) for lasso in lassos]
            values, grads = zip(*pairs, strict=True)
            grad = np.sum(grads, axis=0)
            return sum(values), grad if ratio is None else grad.sum(keepdims=True)

        strengths = most * np.geomspace(1, SHORTEST_START, GRID)
        ratios = RATIOS if ratio is None else (ratio,)
        least, alpha, r = np.inf, 1.0, 1.0
        for each in ratios:
            for lasso in lassos:
                lasso.restart()
            lowest = np.inf  # of this ratio
            for piece in np.array_split(strengths, PIECES):  # from strong to weak
                losses = np.sum([lasso.rough(piece, each) for lasso in lassos], axis=0)
                # A solution that is good enough for weaker penalties too is that of the strongest.
                at = int(np.argmax(losses <= SAME * losses.min()))
                if not losses[at] <= WORSE * lowest:  # weaker penalties take longer, and lead away
                    break
                lowest = min(losses[at], lowest)
                if SAME * losses[at] < least:
                    least, alpha, r = losses[at], piece[at] / each, each
                    for lasso in lassos:
                        lasso.keep(at)
        if ratio is None:
            lower = np.log([SHORTEST_PATH * most, RIDGE[0] * square])
            upper = np.log([most, RIDGE[1] * square])
            start = np.log([alpha * r, alpha * (1 - r)])
        else:
            lower, upper = np.log([SHORTEST_PATH * most / r]), np.log([most / r])
            start = np.log([alpha])
        self.tuned_ = tune(phi, start, lower, upper, self.max_iter, self.tol, variance)
        self.grid_cv_loss_ = self.tuned_.values[0]
        l1, l2 = penalties(self.tuned_.u)
        self.alpha_, self.l1_ratio_ = float(l1 + l2), float(l1 / (l1 + l2))
        everything.rough(np.geomspace(max(everything.most, l1), l1, DOWN), self.l1_ratio_)
        everything.keep(-1)
        self.coef_ = everything.solution(l1, l2)
        self.intercept_ = float(whole.y_mean - whole.X_mean @ self.coef_)

    def predict(self, X: Any) -> np.ndarray:
        """`X coef_ + intercept_`."""
        return self._decide(X)


class _Fold:
    """The inner problem of one fold, `1/2 mean_i s_i (x_i'w - y_i)^2 + l1 |w|_1 + l2 |w|^2 / 2`.

    The weights s are given mean 1.
    """

    def __init__(self, part: Part):
        self.part, self.rows = part, len(part.weight)
        self.weight = part.weight * (self.rows / part.weight.sum())
        self.right = part.X.back(self.weight * part.y) / self.rows
        self.w = np.zeros(len(self.right))  # the last solution
        self.path = np.zeros((len(self.right), 1))  # rough ones, a column for each strength
        small = len(self.right) <= LARGEST_GRAM
        self.gram = part.X.gram(self.weight) / self.rows if small else None
        self.settings: dict[str, Any] = {"check_input": False, "max_iter": 10_000}
        if issparse(part.X.X):
            self.X, self.y = csc_array(part.X.X), part.y
            # Coordinate descent takes short row numbers only.
            self.X.indices, self.X.indptr = (
                each.astype(np.int32) for each in (self.X.indices, self.X.indptr)
            )
            shift = np.zeros(len(self.right)) if part.X.shift is None else part.X.shift
            self.settings |= {"sample_weight": self.weight, "X_offset": shift}
            self.settings |= {"X_scale": np.ones(len(shift)), "precompute": False}
        else:
            root = np.sqrt(self.weight)
            self.X, self.y = np.asfortranarray(root[:, None] * part.X.X), root * part.y
            self.settings |= {"precompute": False}
            if self.gram is not None and len(self.right) <= self.rows:
                products = {"precompute": self.rows * self.gram, "Xy": self.rows * self.right}
                self.settings |= products

    @property
    def most(self) -> float:
        """The smallest l1 penalty at which no feature is used."""
        return float(np.max(np.abs(self.right)))

    @property
    def square(self) -> float:
        """The mean of the features' squares."""
        return float(np.mean(self.part.X.squares(self.weight)) / self.rows)

    def restart(self) -> None:
        """The next strengths are the strongest."""
        self.path = np.zeros((len(self.w), 1))

    def rough(self, l1: np.ndarray, ratio: float) -> np.ndarray:
        """The losses on the held-out rows, roughly, for falling l1 penalties below the last ones."""
        self.path = self._descend(l1 / ratio, ratio, self.path[:, -1].copy(), ROUGH)
        error = self.part.X_held.times(self.path) - self.part.y_held[:, None]
        return self.part.weight_held @ error**2

    def keep(self, column: int) -> None:
        """The rough solution of one of the last strengths is where the search starts."""
        self.w = self.path[:, column].copy()

    def _descend(self, alphas: np.ndarray, ratio: float, w: np.ndarray, tol: float) -> np.ndarray:
        """A column of coefficients for each strength, by scikit-learn's coordinate descent."""
        # The parameters are this module's own, and checking them takes as long as the descent.
        with config_context(skip_parameter_validation=True), warnings.catch_warnings():
            # A dual gap that is not closed is closed afterwards, or was of no account.
            warnings.simplefilter("ignore", ConvergenceWarning)
            options: Any = {"alphas": alphas, "l1_ratio": ratio, "coef_init": w, "tol": tol}
            return enet_path(self.X, self.y, **options, **self.settings)[1]

    def solution(self, l1: float, l2: float) -> np.ndarray:
        """`w*`: exactly, on the support of the last one or on that of coordinate descent."""
        found, met = self._on_support(self.w, l1, l2, ROUNDS)
        for tol in EXACT:
            if met:
                break
            self.w = self._descend(np.array([l1 + l2]), l1 / (l1 + l2), self.w, tol)[:, 0]
            found, met = self._on_support(self.w, l1, l2, 1 if tol == EXACT[-1] else ROUNDS)
        # Where a condition is met up to rounding only, the signs decide.
        if met or np.all(np.sign(found) == np.sign(self.w)):
            self.w = found
        return self.w.copy()

    def _on_support(
        self, w: np.ndarray, l1: float, l2: float, rounds: int
    ) -> tuple[np.ndarray, bool]:
        """The solution with the support and signs of `w`, and whether it solves the whole problem.

        Each further round drops the features whose sign is wrong, and takes up those whose
        correlation is above `l1`.
        """
        sign = np.sign(w)
        for left in reversed(range(rounds)):
            support = np.flatnonzero(sign)
            if l2 == 0 and len(support) > self.rows:  # far from any solution
                break
            w = np.zeros_like(w)
            w[support] = self._solve(support, self.right[support] - l1 * sign[support], l2)
            slope = self._slope(w, support) - l2 * w
            wrong = np.sign(w) != sign
            missing = (sign == 0) & (np.abs(slope) > l1 * (1 + 1e-12))
            solved = np.abs(slope - l1 * sign)[support] <= 1e-9 * l1
            if not wrong.any() and not missing.any() and solved.all():
                return w, True
            if left:
                sign[wrong] = 0.0
                sign[missing] = np.sign(slope[missing])
        return w, False

    def _slope(self, w: np.ndarray, support: np.ndarray) -> np.ndarray:
        """`X'S(y - Xw) / rows`, for w that is zero outside of the support."""
        if self.gram is not None:
            return self.right - self.gram[:, support] @ w[support]
        return self.right - self.part.X.back(self.weight * self.part.X.times(w)) / self.rows

    def _solve(self, support: np.ndarray, right: np.ndarray, l2: float) -> np.ndarray:
        """`(X_S'X_S / rows + l2 I)^-1 right`; among several solutions the one of minimum norm."""
        if self.gram is not None:
            matrix = self.gram[np.ix_(support, support)]
        else:
            columns = self.part.X.columns(support)
            matrix = (columns.T * self.weight) @ columns / self.rows
        matrix.flat[:: len(matrix) + 1] += l2
        try:
            x = np.linalg.solve(matrix, right)
            worst = np.abs(matrix @ x - right).max(initial=0.0)
            if worst <= 1e-10 * np.abs(right).max(initial=0.0):
                return x
        except np.linalg.LinAlgError:
            pass
        return np.linalg.lstsq(matrix, right, rcond=None)[0]

    def value_and_hypergradient(self, l1: float, l2: float) -> tuple[float, np.ndarray]:
        """The loss on the held-out rows, and its derivative in `(log l1, log l2)`."""
        w, part = self.solution(l1, l2), self.part
        support = np.flatnonzero(w)
        error = part.X_held.times(w) - part.y_held
        right = 2 * part.X_held.back(part.weight_held * error)[support]
        v = self._solve(support, right, l2)
        grad = -np.array([l1 * np.sign(w[support]) @ v, l2 * w[support] @ v])
        return float(part.weight_held @ error**2), grad
