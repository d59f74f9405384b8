"""Class probabilities from any framework, checked against the rows that they are for."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from .checks import InputError, densify, named
from .containers import as_internal

SUM_TOLERANCE = 1e-3
LEAST = 1e-6  # below this, probabilities are taken for this
MANY = 200  # rows by which a model that is weak tells itself from one that guesses
CHECK = "the given probabilities are out of fold"
IN_ORDER = "the given probabilities are in the order of the classes and of the rows"


class Probabilities(NamedTuple):
    """Log-probabilities of the classes, in their order, for the training and the trusted rows."""

    train: Float[np.ndarray, "n classes"]
    trusted: Float[np.ndarray, "m classes"]


def check_probabilities(
    train: Any, trusted: Any, classes: np.ndarray | None, n: int, m: int
) -> Probabilities | None:
    """Both tables of probabilities as log-probabilities; None if neither is given.

    Raises:
        InputError: one is missing, the task is a regression, or a shape, an entry, a sum or the order
            of the classes is wrong.
    """
    if train is None and trusted is None:
        return None
    if train is None or trusted is None:
        missing = "pred_probs" if train is None else "pred_probs_trusted"
        raise InputError(
            f"`{missing}` is missing: give the probabilities of both the training and the trusted "
            "rows, or of neither. The model must not have been trained on the rows it judges."
        )
    if classes is None:
        raise InputError("`pred_probs` are class probabilities, and this task is a regression.")
    return Probabilities(
        _check(train, classes, n, "pred_probs"), _check(trusted, classes, m, "pred_probs_trusted")
    )


def check_new_probabilities(
    values: Any, classes: np.ndarray | None, rows: int
) -> Float[np.ndarray, "r c"]:
    """Of rows that were not there when the weights were learned, as log-probabilities.

    Raises:
        InputError: they are missing, or wrong as in `check_probabilities`.
    """
    if values is None or classes is None:
        raise InputError(
            "`pred_probs` is missing: probabilities of your own model had a part in judging the "
            "training rows, so give those of the new rows too, from the same model."
        )
    return _check(values, classes, rows, "pred_probs")


def in_sample_smell(
    probabilities: Probabilities,
    y: Int[np.ndarray, " n"],
    y_trusted: Int[np.ndarray, " m"],
    verified: Int[np.ndarray, " m"] | None,
) -> tuple[bool, str]:
    """Whether probabilities fit the training labels better than they could out of fold; in words.

    A model that has not seen a row agrees with its label at most about as often as it is right on
    trusted rows, whose labels have fewer errors. One that was trained on the row agrees more often.
    With `verified`, the labels that the trusted rows had before (-1 where that is not known), like is
    compared with like.

    They smell if the share is larger on the training rows by 2.5 standard errors and by 0.05.
    """
    likely = probabilities.trusted.argmax(axis=1)
    on_train = float(np.mean(probabilities.train.argmax(axis=1) == y))
    before = y_trusted if verified is None else np.where(verified < 0, y_trusted, verified)
    on_trusted = float(np.mean(likely == before))
    m = len(y_trusted)
    error = np.sqrt((on_trusted * (1 - on_trusted) + 1 / m) / m)
    smells = on_train - on_trusted > max(0.05, 2.5 * error)
    numbers = (
        f"the most likely class is the given label of {on_train:.3f} of the training rows, and of "
        f"{on_trusted:.3f} of the trusted rows"
    )
    if not smells:
        return False, numbers
    return True, (
        f"{numbers}: it looks as if the model was trained on the training rows that it judges. Give "
        "out-of-fold probabilities (`sklearn.model_selection.cross_val_predict` with "
        "method='predict_proba', or a loop over folds)"
    )


def disorder(
    probabilities: Probabilities,
    y: Int[np.ndarray, " n"],
    y_trusted: Int[np.ndarray, " m"],
    classes: np.ndarray,
) -> list[str]:
    """What speaks for columns, or rows, in another order than the classes and the labels; in words.

    With another order of the columns the most likely class is the label of far more rows: by four
    standard errors and by 0.1. Or the labels are no more likely than if the rows were shuffled, by two
    standard errors of 200 or more rows.
    """
    found = []
    both = zip(probabilities, (y, y_trusted), ("pred_probs", "pred_probs_trusted"), strict=True)
    for logs, labels, name in both:
        said = _other_columns(logs.argmax(axis=1), labels, classes) or _other_rows(logs, labels)
        if said:
            found.append(
                f"`{name}`: {said}. The rows are expected in the order of the labels, the columns in "
                f"that of the sorted classes, {named(list(classes))}; a table whose columns are named "
                "by the classes may have any order of them"
            )
    return found


def _other_columns(likely: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> str:
    """In words, if columns in another order would be right far more often; else nothing."""
    column, rows = np.arange(len(classes)), len(labels)
    pairs = np.zeros((2, len(classes), len(classes)))  # in each half of the rows
    np.add.at(pairs, (np.arange(rows) % 2, likely, labels), 1 / rows)
    # The best of many orders fits few rows by chance: each half of them judges that of the other.
    orders = [linear_sum_assignment(half, maximize=True)[1] for half in pairs]
    at_best = float(pairs[0, column, orders[1]].sum() + pairs[1, column, orders[0]].sum())
    as_given = float(np.trace(pairs.sum(axis=0)))
    error = np.sqrt((as_given * (1 - as_given) + 1 / rows) / rows)
    if at_best - as_given <= max(0.1, 4 * error):
        return ""
    moved = np.flatnonzero(orders[0] != column)[0]
    return (
        f"the most likely class is the label of {as_given:.3f} of the rows, and of {at_best:.3f} if "
        f"the columns have another order (that of {classes[moved].item()!r} is that of "
        f"{classes[orders[0][moved]].item()!r})"
    )


def _other_rows(logs: np.ndarray, labels: np.ndarray) -> str:
    """In words, if the labels would be as likely in any other order; else nothing."""
    p, rows = np.exp(logs), len(labels)
    of_label = p[np.arange(rows), labels]
    mean, error = float(of_label.mean()), float(of_label.std()) / np.sqrt(rows)
    shuffled = float(p.mean(axis=0) @ np.bincount(labels, minlength=p.shape[1])) / rows
    if rows < MANY or mean > shuffled + 2 * error:
        return ""
    return (
        f"the labels have a probability of {mean:.3f} in the mean, and would have {shuffled:.3f} if "
        "the rows were shuffled"
    )


def _check(values: Any, classes: np.ndarray, rows: int, name: str) -> Float[np.ndarray, "r c"]:
    logs = np.log(np.maximum(as_probabilities(values, classes, rows, name), LEAST))
    return logs - np.log(np.exp(logs).sum(axis=1, keepdims=True))


def as_probabilities(
    values: Any, classes: np.ndarray, rows: int, name: str
) -> Float[np.ndarray, "rows classes"]:
    """Probabilities in the order of the classes, by the names of the columns if they have names.

    Raises:
        InputError: a shape, a name, an entry or a sum is wrong.
    """
    values = densify(as_internal(values, name), name)
    if isinstance(values, pd.DataFrame) and not _are_unnamed(values.columns):
        order = _order_by_name([_name(c) for c in values.columns], [_name(c) for c in classes])
        if order is None:
            raise InputError(
                f"`{name}` has the columns {named(list(values.columns))}; expected one for each "
                f"class, named by it or by it and one prefix: {named(list(classes))}."
            )
        values = values.iloc[:, order]
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy(dtype=np.float64, na_value=np.nan)
    p = np.asarray(values, np.float64)
    if p.shape != (rows, len(classes)):
        raise InputError(
            f"`{name}` must have one row per row and one column per class, in the order "
            f"{named(list(classes))}: expected shape {(rows, len(classes))}, got {p.shape}."
        )
    wrong = ~np.isfinite(p).all(axis=1) | (p < 0).any(axis=1)
    if wrong.any():
        raise InputError(
            f"`{name}` must hold finite probabilities >= 0; the rows {named(np.flatnonzero(wrong))} "
            "do not. (Pass softmax outputs, not logits.)"
        )
    off = np.abs(p.sum(axis=1) - 1) > SUM_TOLERANCE
    if off.any():
        raise InputError(
            f"each row of `{name}` must sum to 1; the rows {named(np.flatnonzero(off))} do not. "
            "(Pass softmax outputs, not logits; divide by the sums if classes were left out.)"
        )
    return p


def _are_unnamed(columns: pd.Index) -> bool:
    return isinstance(columns, pd.RangeIndex) and columns.equals(pd.RangeIndex(len(columns)))


def _name(value: Any) -> str:
    """Of a class or a column; the numbers 7 and 7.0 are one name."""
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def _order_by_name(given: list[str], wanted: list[str]) -> list[int] | None:
    """Where the column of each class is; all names may begin with one prefix, such as `p_`."""
    for c in wanted:
        prefix = given[0].removesuffix(c) if given and given[0].endswith(c) else None
        if prefix is not None and sorted(given) == sorted(prefix + other for other in wanted):
            return [given.index(prefix + other) for other in wanted]
    return None
