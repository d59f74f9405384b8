"""The inner problem of penalised logistic regression on one fold, and its adjoint."""

from typing import ClassVar, NamedTuple

import numpy as np
from scipy.special import expit, log_softmax

from ._logistic_hessian import LINEAR_TOL, UNCHECKED, Hessian, Model
from ._parts import Part
from ._tuning import PenaltyMap

SOLVED, ROUGH = 1e-11, 1e-3  # inner residuals that are small enough, and to choose a start
INNER, LINEAR = 1e-3, 1e-2  # parts of `accuracy` to which problems are solved
NEWTON_STEPS, SHORTEST = 100, 1e-9
UNSOLVED = 1e-6  # an inner residual that is worth a warning
NEAR = 2.4  # how far the nearest log-penalties may be for a prediction by polynomials
POINTS, KEPT = 3, 12  # solutions that a prediction uses, and that are kept for predictions


class Solved(NamedTuple):
    """A solution in z, what v is near, the gradient of the inner objective, and the Hessian."""

    z: np.ndarray
    v: np.ndarray
    grad: np.ndarray
    hessian: Hessian


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Those of the classes with a logit, a row per class, from a column per class."""
    p = np.ascontiguousarray(logits.T)
    if len(p) == 1:
        return expit(p)
    p -= p.max(axis=0)
    np.exp(p, out=p)
    p /= p.sum(axis=0)
    return p


def all_logits(logits: np.ndarray) -> np.ndarray:
    """One logit a class: of two classes the first has 0."""
    return np.c_[np.zeros(len(logits)), logits] if logits.shape[1] == 1 else logits


class Fold:
    """The inner problem of one fold, and its adjoint, in the coordinates `z = exp(u / 2) w`.

    Parameters are `(outputs, features + 1)`; the last column is the intercept, which stays zero if
    there is none.
    """

    exact: ClassVar[bool] = False

    def __init__(self, part: Part, intercept: bool, classes: int):
        self.part, self.model = part, Model(part, intercept, classes)
        self.intercept, self.shape = self.model.intercept, self.model.shape
        # Of the logits that are free.
        self.columns = slice(1, None) if classes == 2 else slice(None)
        chosen = np.arange(classes)[self.columns] == part.y[:, None]
        self.given = (chosen * part.weight[:, None]).T  # the weight of each row, at its class
        # Penalties, and the solution and the adjoint variable found there, in w.
        self.known: list[tuple[np.ndarray, np.ndarray]] = []
        self.before: Fold | None = None  # the fold whose problems are solved before this one's
        self.predicted = np.zeros((2, *self.shape))  # for the last solution, without `before`
        self.residual = np.inf  # of the last solution

    def predict(self, u: np.ndarray) -> np.ndarray:
        """What `w*(u)` and the adjoint variable will be near, `(2, outputs, features + 1)`.

        This is the polynomial through the nearest solutions that are known: along a line on which
        all penalties have the same factor, solutions are smooth in `u`. Elsewhere it is the nearest
        solution. What the fold before missed by the same rule is added.
        """
        found = self._predict_alone(u)
        if self.before is not None and self.before.known:
            where, solved = self.before.known[-1]
            here = any(np.array_equal(each, u) for each, _ in self.known)
            if np.array_equal(where, u) and not here:
                found = found + solved - self.before.predicted
        return found

    def _predict_alone(self, u: np.ndarray) -> np.ndarray:
        found = np.zeros((2, *self.shape))
        if not self.known:
            return found
        shifts = np.array([each - u for each, _ in self.known])
        order = np.argsort(np.linalg.norm(shifts, axis=1))[:POINTS]
        t, nearest = shifts[order, 0], shifts[order]
        if np.ptp(nearest, axis=1).max() > 1e-9 or not 0 < abs(t[0]) <= NEAR:
            order = order[:1]
        for i, one in enumerate(order):
            others = np.delete(t[: len(order)], i)
            found += np.prod(others / (others - t[i])) * self.known[one][1]
        return found

    def solution(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`w*(u)`, `(outputs, features)`, and the intercept, `(outputs,)`."""
        z = self.solve(u, SOLVED).z
        return z[:, :-1] * np.exp(-u / 2), z[:, -1]

    def solve(self, u: np.ndarray, tol: float) -> "Solved":
        """`z*(u)`, where no entry of the mean gradient is above `tol`.

        Newton steps start from what the solutions so far predict, or from zero if they fail from
        there.
        """
        e = np.exp(-u / 2)
        scale = np.append(e, 1.0)
        start, v = self.predict(u) / scale
        self.predicted = self._predict_alone(u)
        z, grad, hessian = self._newton(start, e, tol)
        if self.residual > max(tol, UNSOLVED) and start.any():
            z, grad, hessian = self._newton(np.zeros_like(start), e, tol)
        self._remember(u, z * scale, v * scale)
        return Solved(z, v, grad, hessian)

    def _newton(
        self, z: np.ndarray, e: np.ndarray, tol: float
    ) -> tuple[np.ndarray, np.ndarray, Hessian]:
        """Newton steps, each halved until it lowers the norm of the gradient.

        A step that is small enough always does.
        """
        grad, hessian = self.derivatives(z, e)
        total, t = self.part.weight.sum(), 1.0
        for _ in range(NEWTON_STEPS):
            if np.max(np.abs(grad)) <= tol * total or t < SHORTEST:  # the latter by rounding
                break
            norm = np.linalg.norm(grad)
            with np.errstate(over="ignore", invalid="ignore"):  # of a step that is too long
                # Far from the solution a rough step is as good as an exact one, and close to it a
                # step needs to be little better than the solution.
                rough = max(norm / total, 0.1 * tol * total / norm)
                step, t = hessian.solve(grad, float(np.clip(rough, LINEAR_TOL, 0.1))), 2.0
                while t >= SHORTEST:
                    t /= 2
                    trial_grad, trial_hessian = self.derivatives(z - t * step, e)
                    if np.linalg.norm(trial_grad) < norm:
                        z, grad = z - t * step, trial_grad
                        hessian = trial_hessian
                        break
        self.residual = float(np.max(np.abs(grad)) / total)
        return z, grad, hessian

    def _remember(self, u: np.ndarray, w: np.ndarray, v: np.ndarray) -> None:
        self.known = [each for each in self.known if not np.array_equal(each[0], u)][-KEPT:]
        self.known.append((u, np.stack([w, v])))

    def derivatives(self, z: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, Hessian]:
        """The gradient and the Hessian of the inner objective in z."""
        part = self.part
        p = _probabilities(part.X.times((z[:, :-1] * e).T) + z[:, -1])
        hessian = Hessian(self.model, p, e)
        grad = hessian.back(hessian.weighted - self.given)
        grad[:, :-1] += z[:, :-1]
        return grad, hessian

    def held_out(self, z: np.ndarray, e: np.ndarray) -> tuple[float, np.ndarray]:
        """The log-loss on the held-out rows, and its derivative in the free logits."""
        part, rows = self.part, np.arange(len(self.part.y_held))
        logits = all_logits(part.X_held.times((z[:, :-1] * e).T) + z[:, -1])
        log_p = log_softmax(logits, axis=1)
        error = np.exp(log_p)
        error[rows, part.y_held] -= 1
        value = -part.weight_held @ log_p[rows, part.y_held]
        return float(value), (part.weight_held[:, None] * error)[:, self.columns]

    def value(self, u: np.ndarray, penalties: PenaltyMap) -> float:
        """The log-loss on the held-out rows, roughly."""
        each = u[penalties.codes]
        return self.held_out(self.solve(each, ROUGH).z, np.exp(-each / 2))[0]

    def value_and_hypergradient(
        self, u: np.ndarray, penalties: PenaltyMap, accuracy: float = 0.0
    ) -> tuple[float, np.ndarray]:
        """The log-loss on the held-out rows, and its derivative in the log-penalties.

        The inner problem and the linear system are solved as `accuracy` asks for. The first-order
        part of what the inner error changes in the loss, `<v, grad f>`, is taken off.
        """
        each = u[penalties.codes]
        e = np.exp(-each / 2)
        z, v, grad, hessian = self.solve(each, max(SOLVED, INNER * accuracy))
        value, error = self.held_out(z, e)
        right = np.c_[self.part.X_held.back(error).T * e, self.intercept * error.sum(axis=0)]
        # The Hessian is at least the identity, so that a residual r of v changes <z, v> by |z| |r|.
        most = LINEAR * accuracy / max(np.linalg.norm(z) * np.linalg.norm(right), 1e-300)
        v = hessian.solve(right, float(np.clip(most, LINEAR_TOL, UNCHECKED)), v)
        scale = np.append(e, 1.0)
        self._remember(each, z * scale, v * scale)
        value -= float(np.vdot(v, grad))
        w, v = z[:, :-1] * e, v[:, :-1] * e
        return value, penalties.hypergradient(u, w.T, v.T)
