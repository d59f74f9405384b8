"""The Hessian of penalised logistic regression: its products and its linear systems."""

from collections.abc import Callable

import numpy as np
from scipy.linalg import get_lapack_funcs
from scipy.sparse import issparse

from ._parts import Part

Operator = Callable[[np.ndarray], np.ndarray]

LINEAR_TOL = 1e-8  # the least relative residual of a linear system
LARGEST = 1000  # coefficients of which a Hessian is factorised, as a preconditioner
FACTOR, BACK = get_lapack_funcs(("potrf", "potrs"), dtype=np.float32)
# Relative residuals: what single precision can reach, and what is not checked.
ROUNDING, UNCHECKED = 1e-4, 1e-2
# Products with a Hessian, or a quarter of its size, after which the preconditioner is renewed.
MANY = 40


class Model:
    """The rows of one fold, in the layouts that are needed, and its preconditioner.

    Parameters are `(outputs, features + 1)`; the last column is the intercept, which stays zero if
    there is none.
    """

    def __init__(self, part: Part, intercept: bool, classes: int):
        self.part = part
        self.intercept = float(intercept)
        self.outputs = 1 if classes == 2 else classes
        self.shape = self.outputs, len(part.X_mean) + 1
        self.earlier = Preconditioner()
        ones = np.ones((len(part.y), 1))  # for the intercept
        dense = not issparse(part.X.X)
        self.rows = np.hstack([part.X.X, ones], dtype=np.float32) if dense else None
        # Each of the two products with the rows is fastest in a layout of its own.
        self.columns_first = np.ascontiguousarray(self.rows.T) if self.rows is not None else None


class Hessian:
    """The Hessian of the inner objective of one fold in z.

    `p` are the probabilities of the classes with a free logit, a row per class.
    """

    def __init__(self, model: Model, p: np.ndarray, e: np.ndarray):
        self.model, self.p, self.e = model, p, e
        self.weighted = p * model.part.weight
        self.single: tuple[np.ndarray, ...] | None = None  # what products in single precision need

    def back(self, change: np.ndarray) -> np.ndarray:
        """From the logits to the parameters."""
        model, found = self.model, np.empty(self.model.shape)
        found[:, :-1] = model.part.X.back(change.T).T * self.e
        found[:, -1] = model.intercept * change.sum(axis=1)
        return found

    def product(self, flat: np.ndarray) -> np.ndarray:
        """The product with parameters as one vector."""
        model = self.model
        x = flat.reshape(model.shape)
        change = model.part.X.times((x[:, :-1] * self.e).T).T + model.intercept * x[:, -1:]
        # The first class of two has a logit that does not move, and a share all the same.
        change = change - np.einsum("ij,ij->j", self.p, change)
        change *= self.weighted
        found = self.back(change)
        found[:, :-1] += x[:, :-1]
        found[:, -1] += (1 - model.intercept) * x[:, -1]
        return found.ravel()

    def single_product(self, flat: np.ndarray) -> np.ndarray:
        """The same in single precision, in the layout in which it is fastest: a row per class."""
        model = self.model
        if self.single is None:
            e = np.append(self.e, model.intercept)
            self.single = tuple(x.astype(np.float32) for x in (self.p, self.weighted, e))
        p, weighted, e = self.single
        x = flat.reshape(model.shape)
        change = (x * e) @ model.columns_first
        change -= np.einsum("ij,ij->j", p, change)
        change *= weighted
        found = (change @ model.rows) * e
        found[:, :-1] += x[:, :-1]
        found[:, -1] += np.float32(1 - model.intercept) * x[:, -1]
        return found.ravel()

    def solve(self, right: np.ndarray, rtol: float, start: np.ndarray | None = None) -> np.ndarray:
        """The solution of a linear system by preconditioned conjugate gradients.

        Of dense rows, they work in single precision, on what the solution so far leaves; where that
        does not help any more, in double precision.
        """
        flat = right.ravel()
        found, left, target = np.zeros_like(flat), flat, rtol * np.linalg.norm(flat)
        with np.errstate(all="ignore"):  # of what the caller finds to be no help
            size = np.linalg.norm(left)
            if start is not None and start.any():
                rest = flat - self.product(start.ravel())
                if np.linalg.norm(rest) < size:
                    found, left, size = start.ravel(), rest, np.linalg.norm(rest)
            while self.model.rows is not None and size > target:
                part, unit = max(float(0.5 * target / size), ROUNDING), left / size
                step, solved = self._descend(self.single_product, unit.astype(np.float32), part, 0)
                new = found + size * step.astype(np.float64)
                if solved and rtol >= UNCHECKED:
                    return new.reshape(right.shape)
                left = flat - self.product(new)
                before, size = size, np.linalg.norm(left)
                if not size < before / 2:
                    break
                found = new
            if not size <= target:
                left = flat - self.product(found)
                rest = float(target / np.linalg.norm(left))
                found = found + self._descend(self.product, left, rest, 10 * flat.size)[0]
        return found.reshape(right.shape)

    def _descend(
        self, product: Operator, right: np.ndarray, rtol: float, more: int
    ) -> tuple[np.ndarray, bool]:
        """Conjugate gradients, with a new preconditioner where they take long; and whether they end.

        `more` is how many products there may be beyond those that a new one would take.
        """
        size, earlier = right.size, self.model.earlier
        renewable = size <= LARGEST and np.all(np.isfinite(self.p))
        many = max(MANY, size // 4)
        first = many if renewable else many + more
        found, solved = _conjugate_gradients(
            product, right, np.zeros_like(right), rtol, first, earlier.inverse(self)
        )
        if not solved and renewable:
            earlier.renew(self)
            found, solved = _conjugate_gradients(
                product, right, found, rtol, many + more, earlier.inverse(self)
            )
        return found, solved

    def loss(self) -> np.ndarray:
        """The Hessian of the loss alone, in w, dense, in single precision."""
        part, outputs = self.model.part, self.model.outputs
        width = len(self.e) + 1
        found = np.zeros((outputs, width, outputs, width), np.float32)
        rows = self.model.rows
        for a in range(outputs):
            for b in range(a, outputs):
                weight = self.weighted[a] * ((a == b) - self.p[b])
                block = found[a, :, b]
                if rows is not None:  # A matrix times its own transpose takes half of the work.
                    rooted = rows * np.sqrt(np.abs(weight)).astype(np.float32)[:, None]
                    block[:] = rooted.T @ rooted if a == b else -(rooted.T @ rooted)
                    block[-1] *= self.model.intercept
                    block[:-1, -1] *= self.model.intercept
                else:
                    block[:-1, :-1] = part.X.gram(weight)
                    if self.model.intercept:
                        block[-1, :-1] = block[:-1, -1] = part.X.back(weight)
                        block[-1, -1] = weight.sum()
                found[b, :, a] = block
        return found.reshape(outputs * width, -1)


def _conjugate_gradients(
    product: Operator,
    right: np.ndarray,
    x: np.ndarray,
    rtol: float,
    most: int,
    inverse: Operator | None,
) -> tuple[np.ndarray, bool]:
    """Preconditioned conjugate gradients, and whether they met `rtol` in at most so many products.

    At a few thousand unknowns those of SciPy take a quarter of the time for their own bookkeeping.
    """
    r = right - product(x) if x.any() else right.copy()
    target = rtol * np.linalg.norm(right)
    z = r if inverse is None else inverse(r)
    p, rz = z.copy(), np.vdot(r, z)
    for _ in range(most):
        if not np.linalg.norm(r) > target:
            break
        hp = product(p)
        a = rz / np.vdot(p, hp)
        x = x + a * p
        r -= a * hp
        z = r if inverse is None else inverse(r)
        rz, before = np.vdot(r, z), rz
        p *= rz / before
        p += z
    return x, bool(np.linalg.norm(r) <= target)


class Preconditioner:
    """The inverse of a fold's Hessian at an earlier solution; `renew` takes the one of today.

    Single precision is enough for that. It is not shared: the rows that another fold learns from
    have too much of an influence on its smallest eigenvalues.
    """

    def __init__(self):
        self.loss: np.ndarray | None = None
        self.made: tuple[np.ndarray, Operator | None] | None = None  # for which penalties

    def renew(self, hessian: Hessian) -> None:
        self.loss, self.made = hessian.loss(), None

    def inverse(self, hessian: Hessian) -> Operator | None:
        """For the penalties of `hessian`; None where there is none."""
        if self.made is None or not np.array_equal(self.made[0], hessian.e):
            self.made = hessian.e, self._factorised(hessian)
        return self.made[1]

    def _factorised(self, hessian: Hessian) -> Operator | None:
        if self.loss is None:
            return None
        model, e = hessian.model, hessian.e
        scale = np.tile(np.append(e, 1.0), model.outputs).astype(np.float32)
        matrix = self.loss * scale
        matrix *= scale[:, None]
        penalised = np.append(np.ones(len(e)), 1 - model.intercept)
        matrix.flat[:: len(matrix) + 1] += np.tile(penalised, model.outputs)
        if (
            model.outputs > 1 and model.intercept
        ):  # A constant that all logits share changes nothing.
            last = slice(len(e), None, len(e) + 1)
            matrix[last, last] += model.part.weight.sum() / model.outputs
        factor, failed = FACTOR(matrix.T, overwrite_a=True, clean=False)
        if failed or not np.all(np.isfinite(factor.diagonal())):  # by rounding
            return None

        def inverse(x: np.ndarray) -> np.ndarray:
            return BACK(factor, x.astype(np.float32))[0].astype(x.dtype)

        return inverse
