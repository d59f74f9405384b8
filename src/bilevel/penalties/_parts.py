"""The rows of one fold: features minus their means, dense or sparse, and targets."""

from typing import Any, NamedTuple, Self

import numpy as np
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator


class Rows(NamedTuple):
    """`X - 1 shift'`: rows of features from which means are subtracted.

    Sparse rows are never made dense: their shift enters the products.

    Attributes:
        X: `(rows, features)`, an array, or in compressed sparse rows.
        shift: `(features,)`, or None where nothing is left to subtract: an array is shifted at once.
    """

    X: Any
    shift: np.ndarray | None

    @classmethod
    def of(cls, X: Any, mean: np.ndarray) -> Self:
        """The rows of `X`, minus `mean`."""
        return cls(X, mean if mean.any() else None) if issparse(X) else cls(X - mean, None)

    def times(self, w: np.ndarray) -> np.ndarray:
        """`(X - 1 shift') w`, for one vector or a matrix of columns."""
        found = self.X @ w
        return found if self.shift is None else found - self.shift @ w

    def back(self, c: np.ndarray) -> np.ndarray:
        """`(X - 1 shift')' c`, for one vector or a matrix of columns."""
        found = self.X.T @ c
        return found if self.shift is None else found - np.multiply.outer(self.shift, c.sum(axis=0))

    def gram(self, weight: np.ndarray) -> np.ndarray:
        """`(X - 1 shift')' diag(weight) (X - 1 shift')`, `(features, features)`, dense."""
        if not issparse(self.X):
            return (self.X * weight[:, None]).T @ self.X
        found = (self.X.multiply(weight[:, None]).T @ self.X).toarray()
        if self.shift is None:
            return found
        cross = np.outer(self.shift, self.X.T @ weight)
        return found - cross - cross.T + weight.sum() * np.outer(self.shift, self.shift)

    def kernel(self, scale: np.ndarray) -> np.ndarray:
        """`(X - 1 shift') diag(scale) (X - 1 shift')'`, `(rows, rows)`, dense."""
        if not issparse(self.X):
            return (self.X * scale) @ self.X.T
        found = (self.X.multiply(scale) @ self.X.T).toarray()
        if self.shift is None:
            return found
        cross = (self.X @ (scale * self.shift))[:, None]
        return found - cross - cross.T + scale @ self.shift**2

    def columns(self, chosen: np.ndarray) -> np.ndarray:
        """The chosen columns of `X - 1 shift'`, dense."""
        if not issparse(self.X):
            return self.X[:, chosen]
        found = self.X[:, chosen].toarray()
        return found if self.shift is None else found - self.shift[chosen]

    def squares(self, weight: np.ndarray) -> np.ndarray:
        """`(features,)`, the weighted sums of squares around the weighted means."""
        mean = _mean(self.X, weight)
        if issparse(self.X):
            found = self.X.multiply(self.X).T @ weight - weight.sum() * mean**2
            return np.maximum(found, 0.0)
        return weight @ (self.X - mean) ** 2


def _mean(X: Any, weight: np.ndarray) -> np.ndarray:
    return X.T @ weight / weight.sum() if issparse(X) else np.average(X, axis=0, weights=weight)


class Source(NamedTuple):
    """All rows: features (an array or sparse rows), targets as numbers, and weights.

    Attributes:
        centre: whether each part subtracts the means of its training rows.
        unit: what the weights are given in, a power of two: solvers stop at absolute errors.
    """

    X: Any
    y: np.ndarray
    weight: np.ndarray
    centre: bool
    unit: float = 1.0


class Part(NamedTuple):
    """The training rows and the held-out rows of one fold, with their weights.

    Attributes:
        X, y, weight: the training rows, centred if there is an intercept (y only if it is numeric).
        X_held, y_held, weight_held: the held-out rows, from which the same means are subtracted.
            The weights of the held-out rows of all folds add up to 1.
        X_mean, y_mean: the means that were subtracted; zero without an intercept, and for classes.
        source, kept, held: the rows it was made from, and the numbers of both kinds.
        total: the sum of the weights of all rows that judge, of all folds.
    """

    X: Rows
    y: np.ndarray
    weight: np.ndarray
    X_held: Rows
    y_held: np.ndarray
    weight_held: np.ndarray
    X_mean: np.ndarray
    y_mean: np.ndarray
    source: Source
    kept: np.ndarray
    held: np.ndarray
    total: float

    def without(self, other: "Part") -> "Part":
        """The same without the rows that another part judges by."""
        kept, held = (rows[~np.isin(rows, other.held)] for rows in (self.kept, self.held))
        return make_part(self.source, kept, held, self.total)


def make_part(source: Source, kept: np.ndarray, held: np.ndarray, total: float) -> Part:
    """Split; `total` is the sum of the weights of all rows that judge, of all folds.

    Raises:
        ValueError: no row that the part learns from has a weight above 0.
    """
    X, y, weight = source.X[kept], source.y[kept], source.weight[kept]
    if not weight.sum() > 0:
        raise ValueError(
            "`sample_weight` is zero for all rows that one fold learns from; use fewer folds or give "
            "more rows a positive weight."
        )
    X_mean, y_mean = np.zeros(X.shape[1]), np.zeros((), y.dtype)
    if source.centre:
        X_mean = _mean(X, weight)
        if y.dtype.kind == "f":
            y_mean = np.average(y, weights=weight)
    return Part(
        Rows.of(X, X_mean),
        y - y_mean,
        weight,
        Rows.of(source.X[held], X_mean),
        source.y[held] - y_mean,
        source.weight[held] / total,
        X_mean,
        np.asarray(y_mean),
        source,
        kept,
        held,
        total,
    )


def operator(size: int, product: Any) -> LinearOperator:
    """A square matrix that is known by its products."""
    return LinearOperator((size, size), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
