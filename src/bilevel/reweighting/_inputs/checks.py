"""Checks of what comes in, each with the rows or columns at fault in its message."""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float, Shaped
from sklearn.base import is_classifier

from ..._text import named, seen
from .estimators import weight_keyword, without_weights

LARGEST = 1e150  # of numbers: the square of a larger one is not finite
# What prose calls the rows of the three tables.
PROSE = {"train": "training", "trusted": "trusted", "holdout": "hold-out"}


class InputError(ValueError):
    """The data given cannot be used; the message says which rows or columns, and what to do."""


def row_ids(X: Any) -> np.ndarray:
    """The index of a data frame, or row numbers."""
    return np.asarray(X.index) if isinstance(X, pd.DataFrame) else np.arange(np.shape(X)[0])


def densify(a: Any, name: str, limit_bytes: int = 2 * 10**9) -> np.ndarray | Any:
    """A sparse matrix as a dense array of its dtype; anything else as it is.

    Raises:
        InputError: the dense matrix would take more than `limit_bytes`.
    """
    if not scipy.sparse.issparse(a):
        return a
    size = a.shape[0] * a.shape[1] * a.dtype.itemsize
    if size > limit_bytes:
        raise InputError(
            f"`{name}` is a sparse matrix of shape {a.shape}, which takes {size / 1e9:.1f} GB when "
            f"dense, more than {limit_bytes / 1e9:g} GB. Reduce it first: "
            "`sklearn.decomposition.TruncatedSVD(100).fit_transform(X)`, fitted on the training rows."
        )
    return a.toarray()


def as_features(X: Any, name: str) -> Float[np.ndarray, "rows features"]:
    """`X` as a finite float matrix, dense.

    Raises:
        InputError: too large to be made dense, not two-dimensional, zero rows, a column that is not
            numeric, NaN or infinity.
    """
    if isinstance(X, pd.DataFrame):
        bad = [c for c in X.columns if not _is_real(X[c])]
        if bad:
            raise InputError(
                f"`{name}` has non-numeric columns: {named(bad)}. Encode them (one-hot, ordinal) or "
                "drop them; `bilevel weigh` does this for tables."
            )
        values = X.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        X = densify(X, name)
        if getattr(X, "dtype", np.dtype(float)).kind == "c":
            raise InputError(
                f"`{name}` holds complex numbers; give their real and imaginary parts as columns."
            )
        try:
            values = np.asarray(X, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"`{name}` must be a numeric matrix, and cannot be read as numbers: {error}. "
                "Encode text and categories first; `bilevel weigh` does this for tables."
            ) from error
    if values.ndim != 2:
        raise InputError(
            f"`{name}` must be two-dimensional (rows, features), got shape {values.shape}; "
            "use `X.reshape(len(X), -1)`."
        )
    if values.shape[0] == 0:
        raise InputError(f"`{name}` has zero rows; nothing can be learned from it.")
    bad_rows, bad_columns = np.nonzero(~np.isfinite(values))
    if len(bad_rows):
        columns = X.columns if isinstance(X, pd.DataFrame) else np.arange(values.shape[1])
        infinite = not np.isnan(values).any()
        what, way = (
            ("infinite values", "Make gaps or finite numbers of them")
            if infinite
            else ("NaN or infinite values", "Impute or drop them")
        )
        raise InputError(
            f"`{name}` has {what} in {len(np.unique(bad_rows))} rows (ids "
            f"{named(row_ids(X)[np.unique(bad_rows)])}), columns "
            f"{named(list(np.asarray(columns)[np.unique(bad_columns)]))}. {way}; "
            "`bilevel weigh` imputes missing values in tables."
        )
    return values


def _is_real(column: Any) -> bool:
    kinds = pd.api.types
    return kinds.is_numeric_dtype(column) and not kinds.is_complex_dtype(column)


def check_same_columns(X: Any, other: Any, name: str, other_name: str) -> None:
    """Refuse two matrices whose columns differ.

    Raises:
        InputError: different names (data frames), or different numbers of columns.
    """
    if isinstance(X, pd.DataFrame) and isinstance(other, pd.DataFrame):
        missing = [c for c in X.columns if c not in other.columns]
        extra = [c for c in other.columns if c not in X.columns]
        if missing or extra:
            parts = [f"it lacks {named(missing)}"] * bool(missing)
            parts += [f"it has {named(extra)}, which `{name}` does not have"] * bool(extra)
            raise InputError(
                f"`{other_name}` must have the same columns as `{name}`: {'; '.join(parts)}."
            )
        if list(X.columns) != list(other.columns):
            raise InputError(
                f"`{other_name}` has the columns of `{name}` in another order; reorder it with "
                f"`{other_name}[{name}.columns]`."
            )
    elif np.shape(X)[1:] != np.shape(other)[1:]:
        raise InputError(
            f"`{other_name}` must have the same columns as `{name}`, got shapes {np.shape(other)} "
            f"and {np.shape(X)}."
        )


def as_vector(values: Any) -> np.ndarray:
    """The values of a list as they are; an array of anything else.

    Of a list that holds some texts `np.asarray` makes texts of all values: of a gap the text "nan".

    >>> as_vector(["a", float("nan")])
    array(['a', nan], dtype=object)
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "US" or not isinstance(values, (list, tuple)):
        return array
    return array if all(isinstance(x, str) for x in values) else np.array([*values], object)


def check_labels(y: Any, X: Any, name: str) -> np.ndarray:
    """`y` as a vector with one known label per row of `X`.

    Raises:
        InputError: another length than `X`, more than one column, missing labels.
    """
    values = as_vector(y)
    if values.ndim == 2 and values.shape[1] > 1:
        raise InputError(
            f"`{name}` has {values.shape[1]} columns, shape {values.shape}, and must be a vector with "
            "one label per row. Rows that may have several labels are for "
            "`learn_multilabel_weights` (`bilevel multilabel`)."
        )
    if values.ndim != 1 or len(values) != np.shape(X)[0]:
        raise InputError(
            f"`{name}` must be a vector with one label per row, got shape {values.shape} for "
            f"{np.shape(X)[0]} rows; a single column is made one by `.ravel()` or `.squeeze()`."
        )
    check_aligned(X, y, name)
    if values.dtype == object:
        values = np.asarray(pd.Series(values).infer_objects())
    missing = np.asarray(pd.isna(pd.Series(values)))
    if missing.any():
        raise InputError(
            f"`{name}` has {int(missing.sum())} missing labels, in the rows with ids "
            f"{named(row_ids(X)[missing])}. Drop these rows or label them."
        )
    return values


def check_seed(seed: Any) -> None:
    """Refuse what is no seed.

    Raises:
        ValueError: with what was given.
    """
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be an integer from 0 to {2**32 - 1}, got {seed!r}.")


def check_aligned(X: Any, y: Any, name: str) -> None:
    """Refuse a series or a table whose index is that of the rows in another order.

    Rows pair by position, and would get each other's labels.

    Raises:
        InputError: the two indices differ in their order only.
    """
    indexed = isinstance(X, pd.DataFrame) and isinstance(y, (pd.Series, pd.DataFrame))
    if not indexed or X.index.equals(y.index):
        return
    if len(X.index) == len(y.index) and Counter(X.index) == Counter(y.index):
        way = f"reorder it with `{name}.loc[X.index]`"
        if not X.index.is_unique:
            way = "give each row an entry of its own in the index, and reorder it by that"
        raise InputError(
            f"`{name}` has the index of its rows in another order, and rows are paired by position; "
            f"{way}."
        )


_PERHAPS_NUMBERS = (
    "If the label is a number to be predicted, this is a regression, not a classification."
)


def find_classes(
    y: np.ndarray,
    y_trusted: np.ndarray,
    *,
    judge_all: bool,
    weights: tuple[np.ndarray, np.ndarray] | None = None,
) -> Shaped[np.ndarray, " classes"]:
    """The class labels, sorted.

    `weights`: of the rows of both tables; rows of weight 0 are as absent, but keep their label.

    Raises:
        InputError: only one class, on either side; fewer trusted rows than classes; or a label that
            occurs among the trusted rows only; with `judge_all` also one that never occurs there, of
            which a warning is given otherwise.
    """
    try:
        labels = np.unique(np.concatenate([y, y_trusted]))
    except TypeError as error:
        kinds = sorted({type(x).__name__ for x in [*y, *y_trusted]})
        raise InputError(
            f"the labels mix types ({', '.join(kinds)}) and cannot be compared; convert them all to "
            "text, or all to numbers."
        ) from error
    labels = np.unique(y)
    counted = y if weights is None else y[weights[0] > 0]
    counted_trusted = y_trusted if weights is None else y_trusted[weights[1] > 0]
    present = np.unique(counted)
    if len(present) == 1:
        but = "" if len(labels) == 1 else " of a weight above 0"
        raise InputError(
            f"`y` has only one class{but} ({present.tolist()[0]!r}); there is nothing to classify. "
            "Check that the label column is the right one."
        )
    if len(y_trusted) < len(labels):
        raise InputError(
            f"there are {len(y_trusted)} trusted rows for {len(labels)} classes; weights need at "
            "least one trusted row per class, and 50 to 1000 in all to be worth much. "
            f"{_PERHAPS_NUMBERS}"
        )
    unknown = np.setdiff1d(y_trusted, labels)
    if len(unknown):
        raise InputError(
            f"the trusted rows have labels that the training rows lack: {named(unknown.tolist())}. "
            "No weight can teach a class that is not there: add training rows of it, remove it "
            f"from the trusted rows, or mend the spelling of the labels. {_PERHAPS_NUMBERS}"
        )
    unseen = np.setdiff1d(present, counted_trusted)
    message = f"the training rows have labels that no trusted row has: {named(unseen.tolist())}. "
    if len(unseen) and (judge_all or len(unseen) == len(present) - 1):
        raise InputError(
            f"{message}Every row of such a class would get a low weight: verify a few rows "
            "of it, or remove the class from the training rows."
        )
    if len(unseen):
        warnings.warn(
            f"{message}These rows are judged by models of the training rows alone: verify a few of "
            "them.",
            UserWarning,
            stacklevel=4,
        )
    return labels


def check_known(labels: np.ndarray, known: np.ndarray, name: str) -> None:
    """Refuse labels that no model can predict, as no row to learn from has them.

    Raises:
        InputError: with the labels.
    """
    unknown = np.setdiff1d(labels, known)
    if len(unknown):
        rows = int(np.isin(labels, unknown).sum())
        raise InputError(
            f"`{name}` has labels that the training rows lack: {named(list(unknown))}, in {rows} of "
            f"{len(labels)} rows. No model can predict them; remove these rows or mend the labels."
        )


def as_targets(y: np.ndarray, name: str) -> Float[np.ndarray, " rows"]:
    """Regression targets as finite floats.

    Raises:
        InputError: not numbers, infinite, or too large to be squared.
    """
    if y.dtype.kind == "c":
        raise InputError(f"`{name}` holds complex numbers, and must hold real ones.")
    try:
        values = y.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"`{name}` must hold numbers for a regression: {error}.") from error
    if not np.isfinite(values).all():
        raise InputError(
            f"`{name}` has infinite targets in rows {named(np.flatnonzero(~np.isfinite(values)))}."
        )
    if (large := np.abs(values) > LARGEST).any():
        raise InputError(
            f"`{name}` has targets beyond {LARGEST:g}, whose squares are not finite, in rows "
            f"{named(np.flatnonzero(large))}. Give them in another unit."
        )
    return values


def check_varies(
    targets: Float[np.ndarray, " rows"], weight: Float[np.ndarray, " rows"], name: str
) -> tuple[float, float]:
    """(mean, standard deviation) of targets, which are not all the same.

    Raises:
        InputError: they are, among rows that have weight; or squares of what they differ by are 0.
    """
    present = targets[weight > 0]
    if np.ptp(present) == 0:
        raise InputError(
            f"all targets of `{name}` are {present[0]:g}; nothing can be learned from them, or judged "
            "by them. Check that the label column is the right one."
        )
    mean = float(np.average(targets, weights=weight))
    largest = float(np.abs(present - mean).max())
    if largest < 1 / LARGEST:
        raise InputError(
            f"the targets of `{name}` differ by less than {1 / LARGEST:g}, whose square is 0. Give "
            "them in another unit."
        )
    return mean, float(np.sqrt(np.average((targets - mean) ** 2, weights=weight)))


def check_ids(tables: Mapping[str, Any]) -> None:
    """Refuse rows whose id occurs in two of the tables `train`, `trusted` and `holdout`.

    The ids are the index of a data frame, if it has a name or holds text, and no entry repeats. Row
    numbers, which pandas leaves behind after a selection, are no ids: those of two files say nothing
    of each other. Nor are dates, which different things may share.

    Raises:
        InputError: with the ids of the rows.
    """
    ids = {name: table.index for name, table in tables.items() if _has_ids(table)}
    for name, other in (("train", "trusted"), ("holdout", "trusted"), ("holdout", "train")):
        if name not in ids or other not in ids:
            continue
        if shared := shared_ids(ids[name], ids[other]):
            raise InputError(
                f"{len(shared)} {PROSE[name]} rows have the id of {PROSE[other]} rows "
                f"({named(shared)}): a row must not judge itself. Remove them from the "
                f"{PROSE[name]} rows; if they are other rows, give them other ids, or none "
                "(`X.reset_index(drop=True)`)."
            )


def shared_ids(ids: pd.Index, others: pd.Index) -> list[Any]:
    """Those of `ids` that are among `others`; 7 is the id "7" that another kind of file has.

    Texts are equal if they are seen to be: however Unicode composes them, with blanks at their ends.

    >>> shared_ids(pd.Index([7.0, 8.0]), pd.Index(["7", "007"]))
    [7.0]
    """
    if ids.nlevels != others.nlevels:
        return []
    if all(pd.api.types.is_numeric_dtype(index.dtype) for index in (ids, others)):
        return ids[ids.isin(others)].tolist()
    texts, other_texts = (
        [seen(str(int(x) if isinstance(x, float) and x.is_integer() else x)) for x in index]
        for index in (ids, others)
    )
    return ids[pd.Index(texts).isin(other_texts)].tolist()


def _has_ids(table: Any) -> bool:
    if not isinstance(table, pd.DataFrame) or isinstance(table.index, pd.DatetimeIndex):
        return False
    named = table.index.names != [None]
    return (named or not pd.api.types.is_numeric_dtype(table.index.dtype)) and table.index.is_unique


def check_trusted_count(trusted: int, folds: int) -> None:
    """Refuse fewer trusted rows than two per fold.

    Raises:
        InputError: with the number.
    """
    if trusted < 2 * folds:
        raise InputError(
            f"weights are judged on {folds} folds of the trusted rows: got {trusted} trusted "
            f"rows, at least {2 * folds} are needed."
        )


def check_groups(groups: Any, n: int) -> np.ndarray:
    """`groups` as a vector with one known entry per training row, of at least two groups.

    Raises:
        InputError: of another length, with missing entries, or of too few or too many groups.
    """
    values = as_vector(groups)
    if values.shape != (n,):
        raise InputError(
            f"`groups` must have one entry per training row ({n}), got shape {values.shape}."
        )
    if pd.isna(values).any():
        raise InputError(
            f"`groups` has {int(pd.isna(values).sum())} missing entries; give these rows a group "
            "of their own, such as 'unknown'."
        )
    values = values.astype(str) if values.dtype == object else values
    number = len(np.unique(values))
    if not 2 <= number <= n / 2:
        raise InputError(
            f"`groups` has {number} distinct values for {n} rows; weights of groups need at least "
            "2 groups, and on average at least two rows per group."
        )
    return values


def check_estimator_fits(estimator: Any, regression: bool) -> None:
    """Refuse an estimator of the other kind, or one that cannot be fitted with weights."""
    if is_classifier(estimator) == regression:
        wanted = "regressor" if regression else "classifier"
        raise ValueError(f"`estimator` must be a {wanted} here, got {type(estimator).__name__}.")
    if weight_keyword(estimator) is None:
        raise ValueError(
            f"`estimator` must accept sample_weight, and {without_weights(estimator)} does not: its "
            "fit would ignore the weights. Choose one that does, such as LogisticRegression, Ridge, "
            "RandomForestClassifier or HistGradientBoostingClassifier."
        )
