"""What is known of rows beside features and labels: which belong together, and how much they count."""

import datetime
import decimal
import warnings
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt64

from ..._text import seen
from .checks import InputError, as_vector, named
from .dates import read_times

FAR = 10.0  # times more, or less, than one row, from which weights are taken for relative ones
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class RowColumns(NamedTuple):
    """What the user gives of each row of the two tables beside features and labels.

    Attributes:
        sample_weight, entities, times: of the training rows, or None.
        sample_weight_trusted, entities_trusted, times_trusted: of the trusted rows.
    """

    sample_weight: Any = None
    sample_weight_trusted: Any = None
    entities: Any = None
    entities_trusted: Any = None
    times: Any = None
    times_trusted: Any = None


class RowFacts(NamedTuple):
    """Of the rows of one table.

    Attributes:
        block: equal for rows that belong together: those of one entity, or, where no entities are
            given, those with equal features. The same in both tables.
        weight: the weight that the user gave the row; 0 as if it were absent.
        time: when the row was made, or None.
        by_entity: whether `block` is an entity.
    """

    block: UInt64[np.ndarray, " rows"]
    weight: Float[np.ndarray, " rows"]
    time: np.ndarray | None = None
    by_entity: bool = False

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.weight)

    @classmethod
    def plain(cls, features: Float[np.ndarray, "rows features"]) -> "RowFacts":
        """Of rows that have features and nothing else."""
        return cls(content_hash(features), np.ones(len(features)))

    @classmethod
    def distinct(cls, rows: int, first: int = 0) -> "RowFacts":
        """Of rows that have nothing in common, with the numbers from `first` on."""
        return cls(mix(np.arange(first, first + rows, dtype=np.uint64)), np.ones(rows))


def mix(values: UInt64[np.ndarray, " rows"], seed: int = 0) -> UInt64[np.ndarray, " rows"]:
    """A hash of each number: the finalizer of the generator SplitMix64."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(seed % 2**64) * _GOLDEN + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def content_hash(features: Float[np.ndarray, "rows features"]) -> UInt64[np.ndarray, " rows"]:
    """A number per row that equal rows share, in whatever table and order.

    Two different rows among n share it with a probability of about `n^2 / 2^65`.

    >>> import numpy as np
    >>> a, b, c = content_hash(np.array([[0.0, 1.0], [1.0, 0.0], [-0.0, 1.0]]))
    >>> bool(a == c), bool(a == b)
    (True, False)
    """
    total = np.zeros(len(features), np.uint64)
    for j in range(features.shape[1]):
        column = np.ascontiguousarray(features[:, j], np.float64) + 0.0  # no -0.0
        total += mix(column.view(np.uint64), j + 1)
    return mix(total)


def row_facts(
    columns: RowColumns,
    features: Float[np.ndarray, "n features"],
    features_trusted: Float[np.ndarray, "m features"],
) -> tuple[RowFacts, RowFacts]:
    """Of the training and of the trusted rows, checked.

    Raises:
        InputError: a column of another length than its table, of only one table, with missing or
            useless entries.
    """
    n, m = len(features), len(features_trusted)
    weights = (
        check_sample_weight(columns.sample_weight, n, "sample_weight"),
        check_sample_weight(columns.sample_weight_trusted, m, "sample_weight_trusted"),
    )
    for given, weight, name in (
        (columns.sample_weight, weights[0], "sample_weight"),
        (columns.sample_weight_trusted, weights[1], "sample_weight_trusted"),
    ):
        if given is not None:
            _warn_of_relative_weights(weight, name)
    times = _pair(columns.times, columns.times_trusted, n, m, "times")
    moments = (None, None) if times is None else _moments(times)
    entities = _pair(columns.entities, columns.entities_trusted, n, m, "entities")
    if entities is None:
        blocks = content_hash(features), content_hash(features_trusted)
    else:
        blocks = hash_names(entities[0]), hash_names(entities[1])
    return (
        RowFacts(blocks[0], weights[0], moments[0], entities is not None),
        RowFacts(blocks[1], weights[1], moments[1], entities is not None),
    )


def check_sample_weight(values: Any, rows: int, name: str) -> Float[np.ndarray, " rows"]:
    """Sample weights, finite and not negative, of some rows; ones for None.

    Raises:
        InputError: with the rows at fault.
    """
    if values is None:
        return np.ones(rows)
    given = _column(values, rows, name)
    try:
        weight = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"`{name}` must hold numbers: {error}.") from error
    wrong = ~np.isfinite(weight) | (weight < 0)
    if wrong.any():
        raise InputError(
            f"`{name}` must hold finite weights >= 0; those of the rows "
            f"{named(np.flatnonzero(wrong))} are not: {named(weight[wrong])}. A row of weight 0 "
            "counts as absent."
        )
    if not weight.any():
        raise InputError(f"`{name}` is zero for all rows: nothing is left to learn from.")
    return weight


def _warn_of_relative_weights(weight: Float[np.ndarray, " rows"], name: str) -> None:
    """Say so if rows count far less, or far more, than one row each, on average."""
    mean = float(weight[weight > 0].mean())
    if not 1 / FAR <= mean <= FAR:
        warnings.warn(
            f"`{name}` has a mean of {mean:.3g}, and a row of weight 2 is the row twice: these "
            f"{int(np.sum(weight > 0))} rows count as {weight.sum():.3g}, in every estimate and "
            "beside the rows of the other table. If the weights are relative, as those that sum to 1 "
            "or to a population, divide them by their mean.",
            UserWarning,
            stacklevel=5,
        )


def _pair(
    values: Any, trusted: Any, n: int, m: int, name: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """The columns of both tables, or None."""
    if values is None and trusted is None:
        return None
    if values is None or trusted is None:
        missing = name if values is None else f"{name}_trusted"
        raise InputError(
            f"`{missing}` is missing: give it for both the training and the trusted rows, or for "
            "neither."
        )
    columns = _column(values, n, name), _column(trusted, m, f"{name}_trusted")
    for column, which in zip(columns, (name, f"{name}_trusted"), strict=True):
        missing = np.asarray(pd.isna(pd.Series(column)))
        if missing.any():
            raise InputError(
                f"`{which}` has {int(missing.sum())} missing entries, in the rows "
                f"{named(np.flatnonzero(missing))}. Fill them, or drop these rows."
            )
    return columns


def _column(values: Any, rows: int, name: str) -> np.ndarray:
    column = as_vector(values)
    if column.shape != (rows,):
        raise InputError(
            f"`{name}` must be a vector with one entry per row ({rows}), got shape {column.shape}."
        )
    return column


def hash_names(values: np.ndarray) -> UInt64[np.ndarray, " rows"]:
    """Equal for equal names; the numbers 7 and 7.0 and the text "7" are one name.

    So are texts that look alike (see `seen`), and a day, midnight of it and its text "2024-03-30".
    """
    objects = pd.Series(values).astype(object)  # `tolist` makes numbers of nanoseconds
    code, names = pd.factorize(np.array([_name(value) for value in objects], object))
    digests = [blake2b(seen(name).encode(), digest_size=8).digest() for name in names]
    return np.frombuffer(b"".join(digests), np.uint64)[code]


def _name(value: Any) -> str:
    if isinstance(value, (float, decimal.Decimal)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return str(value.date())
    return str(value)


def _moments(columns: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Times as numbers that can be compared: as they are, or those of dates in one unit."""
    one, other = read_times({"times": columns[0], "times_trusted": columns[1]}, "times").values()
    if not pd.api.types.is_numeric_dtype(one):
        one, other = one.astype("int64"), other.astype("int64")
    for found in (one.to_numpy(), other.to_numpy()):
        if not np.isfinite(found).all():
            raise InputError(
                f"`times` has infinite entries: {named(found[~np.isfinite(found)])}. Give times that "
                "are known."
            )
    return one.to_numpy(), other.to_numpy()
