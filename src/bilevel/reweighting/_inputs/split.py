"""From one table with a mask of the trusted rows to two tables, and back."""

from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing

from .checks import InputError, as_vector, check_aligned
from .containers import as_internal
from .row_facts import RowColumns
from .scalars import settled


def everywhere(trusted: Any, values: Any, mask: np.ndarray) -> np.ndarray:
    """One value per row of X: `trusted` where the mask says so, and `values` elsewhere."""
    values = np.asarray(values)
    full = np.full(len(mask), trusted, values.dtype)
    full[~mask] = values
    return full


def split_beside(
    X: Any,
    mask: np.ndarray,
    groups: Any,
    pred_probs: Any,
    pred_probs_trusted: Any,
    columns: RowColumns,
) -> dict[str, Any]:
    """What is given beside the rows of X, for `learn_weights`: trusted rows have theirs apart."""
    if groups is not None:
        check_aligned(X, groups, "groups")
        groups = as_vector(groups)
        if groups.shape != mask.shape:
            raise InputError(
                f"`groups` must have one entry per row of X ({len(mask)}), got shape {groups.shape}."
            )
        groups = groups[~mask]
    if pred_probs is not None and mask.any():
        check_aligned(X, pred_probs, "pred_probs")
        pred_probs, pred_probs_trusted = _split_probabilities(pred_probs, pred_probs_trusted, mask)
    return {
        "groups": groups,
        "pred_probs": pred_probs,
        "pred_probs_trusted": pred_probs_trusted,
        **_split_columns(columns, X, mask)._asdict(),
    }


def _split_probabilities(values: Any, trusted: Any, mask: np.ndarray) -> tuple[Any, Any]:
    """Of the training rows and of the trusted rows, from one table of all rows."""
    if trusted is not None:
        raise InputError(
            "with `is_trusted`, `pred_probs` has one row per row of X, trusted rows included; leave "
            "`pred_probs_trusted` out."
        )
    values = as_internal(values, "pred_probs")
    if len(values) != len(mask):
        raise InputError(
            f"`pred_probs` must have one row per row of X ({len(mask)}), got {len(values)}."
        )
    return _safe_indexing(values, np.flatnonzero(~mask)), _safe_indexing(
        values, np.flatnonzero(mask)
    )


def _split_columns(columns: RowColumns, X: Any, mask: np.ndarray) -> RowColumns:
    """Of the training and of the trusted rows, from columns of all rows where X has both."""
    if not mask.any():
        return columns
    split: dict[str, Any] = {}
    for name in ("sample_weight", "entities", "times"):
        values = getattr(columns, name)
        if getattr(columns, f"{name}_trusted") is not None:
            raise InputError(
                f"with `is_trusted`, `{name}` has one entry per row of X, trusted rows included; "
                f"leave `{name}_trusted` out."
            )
        if values is None:
            continue
        check_aligned(X, values, name)
        values = as_vector(values)
        if values.shape != mask.shape:
            raise InputError(
                f"`{name}` must have one entry per row of X ({len(mask)}), got shape {values.shape}."
            )
        split |= {name: values[~mask], f"{name}_trusted": values[mask]}
    return RowColumns(**split)


def split(
    X: Any, y: Any, is_trusted: Any, X_trusted: Any, y_trusted: Any
) -> tuple[tuple[Any, Any], tuple[Any, Any], np.ndarray]:
    """(training rows, trusted rows, mask of the trusted rows over X)."""
    separate = X_trusted is not None or y_trusted is not None
    if separate and (X_trusted is None or y_trusted is None):
        raise ValueError("pass both `X_trusted` and `y_trusted`, or neither.")
    if separate and is_trusted is not None:
        raise ValueError(
            "say which rows are trusted in one way: `is_trusted=` (a boolean mask over X), or "
            "`X_trusted=` and `y_trusted=`; got both."
        )
    if separate:
        return (X, y), (X_trusted, y_trusted), np.zeros(np.shape(X)[0], bool)
    check_aligned(X, is_trusted, "is_trusted")
    mask = np.asarray(settled(np.asarray(is_trusted)))
    if mask.dtype != bool or mask.shape != np.shape(X)[:1]:
        raise ValueError(
            f"`is_trusted` must be a boolean mask with one entry per row of X ({np.shape(X)[0]}), got "
            f"{mask.dtype} of shape {mask.shape}."
        )
    if mask.all() or not mask.any():
        raise InputError(
            f"`is_trusted` marks {'all' if mask.all() else 'no'} rows; some rows must be trusted "
            "and some must be in need of a weight."
        )

    train, trusted = np.flatnonzero(~mask), np.flatnonzero(mask)
    return (
        (_safe_indexing(X, train), _safe_indexing(y, train)),
        (_safe_indexing(X, trusted), _safe_indexing(y, trusted)),
        mask,
    )
