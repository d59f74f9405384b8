"""From what the user passes to checked numbers, for every method."""

import contextlib
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.validation import has_fit_parameter

from .alike import alike
from .checks import (
    InputError,
    as_features,
    as_targets,
    as_vector,
    check_aligned,
    check_estimator_fits,
    check_groups,
    check_ids,
    check_known,
    check_labels,
    check_same_columns,
    check_trusted_count,
    check_varies,
    densify,
    find_classes,
)
from .columns import describe, in_order, is_messy, read_by, tidy, vectorise
from .compact import compact_frame, compact_pipeline, takes_categories, takes_gaps
from .containers import as_pairs, feature_rows
from .dates import describe_dates
from .estimators import takes_tables
from .row_facts import RowColumns, RowFacts, check_sample_weight, row_facts
from .scalars import check_scalars, check_spelling, settled
from .scales import warn_of_other_scales
from .strange import beyond, mostly_unknown, strange

MIN_MAX = object()
DOUBLE = 1_000_000  # numbers that are taken in double precision: features, or outputs, of a table


class Encoding(NamedTuple):
    """How features and labels become numbers.

    Attributes:
        pipeline: fitted by `vectorise` on a table that has more than numbers, or None.
        scaler: a fitted transformer, or None.
        classes: the labels that the codes 0, 1, ... stand for; None in a regression.
        centre, spread: of a regression's targets.
        compact: for an estimator that takes gaps: what `compact_pipeline` made of the table.
        categories: whether the estimator takes categories too.
        names: of the columns, where a data frame was given.
    """

    pipeline: Pipeline | None
    scaler: Any
    classes: np.ndarray | None
    centre: float = 0.0
    spread: float = 1.0
    compact: Pipeline | None = None
    categories: bool = False
    names: tuple[Any, ...] | None = None

    def features(self, X: Any, name: str) -> np.ndarray:
        """Scaled, in the precision for their number."""
        values = as_features(self._replace(compact=None).encode(X, name), name)
        scaled = values if self.scaler is None else self.scaler.transform(values)
        return np.asarray(scaled, precision(values))

    def encode(self, X: Any, name: str) -> Any:
        """Rows of any kind as the estimator takes them.

        An array, a sparse matrix, or a data frame of numbers, with gaps and categories if it is one
        that takes them. Columns of a data frame go by their names, in whatever order.
        """
        X = feature_rows(X, name)
        if self.pipeline is None:
            if self.names is None or not isinstance(X, pd.DataFrame):
                return X
            return in_order(X, self.names)
        tidied = tidy(_as_frame(X, [*read_by(self.pipeline)]), like=self.pipeline)
        if self.compact is not None:
            return compact_frame(self.compact, tidied, categories=self.categories)
        return pd.DataFrame(self.pipeline.transform(tidied), tidied.index)

    def warn_of_strange(self, X: Any, name: str) -> None:
        """Say what new rows have that no training row had, see `strange`."""
        rows, said = feature_rows(X, name), []
        if self.pipeline is not None:
            frame = _as_frame(rows, [*read_by(self.pipeline)])
            said = strange(tidy(frame, like=self.pipeline), self.pipeline)
        elif isinstance(self.scaler, MinMaxScaler):
            frame = _as_frame(self.encode(rows, name), None)
            said = beyond(frame, self.scaler.data_min_, self.scaler.data_max_)
        for sentence in said:
            warnings.warn(f"`{name}`: {sentence}.", UserWarning, stacklevel=3)

    def labels(self, y: Any, name: str) -> np.ndarray:
        """Class codes, or standardised targets.

        Raises:
            InputError: a label that is none of the classes.
        """
        values = np.asarray(y)
        if self.classes is None:
            return (as_targets(values, name) - self.centre) / self.spread
        check_known(values, self.classes, name)
        return np.searchsorted(self.classes, values).astype(np.int32)

    def decode(self, outputs: np.ndarray) -> np.ndarray:
        """Labels or targets from a model's outputs."""
        if self.classes is None:
            return self.centre + self.spread * outputs[:, 0]
        return self.classes[outputs.argmax(1)]


class PreparedTable(NamedTuple):
    """One of the three tables.

    Attributes:
        X, y: an array, a data frame or a sparse matrix for the final estimator, and the labels.
        features: X as numbers, scaled.
        targets: y as class codes (integers), or standardised by the mean and the standard deviation
            of the trusted rows' targets.
        facts: which rows belong together, and how much they count.
    """

    X: Any
    y: Any
    features: np.ndarray
    targets: np.ndarray
    facts: RowFacts

    @property
    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """(features, targets)."""
        return self.features, self.targets

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.targets)


class Prepared(NamedTuple):
    """The three tables, checked, as they were given and as numbers.

    Attributes:
        given: the training rows as the user gave them.
        train, trusted, holdout: the tables; `holdout` may be None.
        encoding: how features and labels became numbers.
        groups: a group for each training row, or None.
    """

    given: Any
    train: PreparedTable
    trusted: PreparedTable
    holdout: PreparedTable | None
    encoding: Encoding
    groups: np.ndarray | None

    @property
    def classes(self) -> np.ndarray | None:
        """The labels that the codes stand for; None in a regression."""
        return self.encoding.classes

    @property
    def num_outputs(self) -> int:
        """The number of classes, or 1."""
        return 1 if self.classes is None else len(self.classes)


# The arguments that hold a table end in this.
_ENDINGS = {"train": "", "trusted": "_trusted", "holdout": "_holdout"}


def prepare(
    X: Any,
    y: Any,
    X_trusted: Any,
    y_trusted: Any,
    *,
    task: str,
    scaler: Any,
    holdout: tuple[Any, Any] | None,
    groups: Any = None,
    columns: RowColumns = RowColumns(),
    estimator: Any = None,
    folds: int | None = None,
) -> Prepared:
    """Check everything that can be checked without computing, scale the features, code the labels.

    Rows of every kind that `as_internal` knows. Tables with text, dates or gaps, and arrays with gaps,
    become numbers by `vectorise`; an `estimator` that is a pipeline gets the tables themselves, with
    columns of the same types (`alike`), and one that takes gaps (trees) gets its categories and gaps
    as they are, see `compact_pipeline`.

    Args:
        X, y, X_trusted, y_trusted, task, scaler, holdout, groups, estimator: see `learn_weights`.
        columns: what else was given of each row.
        folds: on how many folds of the trusted rows the weights are judged. With `None`, every class
            must have a trusted row.

    Raises:
        InputError: with the rows or columns at fault.
        ValueError: an unknown `task`, or an `estimator` that cannot be used.
    """
    tables, labels = {}, {}
    pairs = {"train": (X, y), "trusted": (X_trusted, y_trusted)}
    pairs |= {} if holdout is None else {"holdout": holdout}
    x_names, y_names = ({name: a + _ENDINGS[name] for name in pairs} for a in "Xy")
    found = as_pairs({_ENDINGS[name]: pair for name, pair in pairs.items()})
    for name in pairs:
        tables[name], labels[name] = found[_ENDINGS[name]]
        if estimator is None:  # the default takes no sparse rows
            tables[name] = densify(tables[name], x_names[name])
    for name in tables:
        check_scalars(labels[name], f"`{y_names[name]}`")
    regression = is_regression(task, labels["train"])
    for name in list(tables)[1:]:
        check_same_columns(tables["train"], tables[name], "X", x_names[name])
    checked = {name: check_labels(labels[name], tables[name], y_names[name]) for name in tables}
    check_aligned(tables["train"], groups, "groups")
    check_ids(tables)

    pipeline, encoded, arrays = None, tables, tables
    names = next((list(t.columns) for t in tables.values() if isinstance(t, pd.DataFrame)), None)
    tables = {name: _gaps_as_frame(table, names) for name, table in tables.items()}
    if any(isinstance(table, pd.DataFrame) and is_messy(table) for table in tables.values()):
        frames = {x_names[name]: _as_frame(table, names) for name, table in tables.items()}
        counts = columns.sample_weight
        if counts is not None:
            counts = check_sample_weight(counts, len(tables["train"]), "sample_weight") > 0
        of_dates = describe_dates({f"`{name}`": frame for name, frame in frames.items()})
        pipeline, tidied, matrices = vectorise(frames, counts)
        tables = {name: tidied[x_names[name]] for name in tables}
        unknown = [
            f"`{x_names[name]}`: {said}"
            for name, table in tables.items()
            if name != "train"
            for said in mostly_unknown(table, pipeline)
        ]
        for said in [*describe(tables["train"]), *of_dates, *unknown]:
            warnings.warn(f"{said}.", UserWarning, stacklevel=3)
        encoded = {
            name: pd.DataFrame(matrices[x_names[name]], table.index)
            for name, table in tables.items()
        }
        scaler = None if scaler is MIN_MAX else scaler
    numbers = {name: as_features(table, x_names[name]) for name, table in encoded.items()}
    for name in list(numbers)[1:]:
        warn_of_other_scales(numbers["train"], numbers[name], x_names[name], names)
    facts = row_facts(columns, numbers["train"], numbers["trusted"])

    if scaler is not None:
        scaler = _fit_scaler(scaler, numbers["train"], facts[0].weight)
    if regression:
        target, counts = as_targets(checked["trusted"], "y_trusted"), facts[1].weight
        check_varies(as_targets(checked["train"], "y"), facts[0].weight, "y")
        encoding = Encoding(pipeline, scaler, None, *check_varies(target, counts, "y_trusted"))
    else:
        every = folds is None
        check_spelling(*labels.values(), what="the labels")
        weights = facts[0].weight, facts[1].weight
        of_both = checked["train"], checked["trusted"]
        classes = find_classes(*of_both, judge_all=every, weights=weights)
        encoding = Encoding(pipeline, scaler, classes)
    encoding = encoding._replace(names=None if names is None else tuple(names))

    if estimator is not None:
        check_estimator_fits(estimator, regression)
    if folds is not None:
        check_trusted_count(int(np.sum(facts[1].weight > 0)), folds)
    if groups is not None:
        check_scalars(groups, "`groups`")
        check_spelling(groups, what="the groups")
        groups = check_groups(groups, len(checked["train"]))
    floating = precision(numbers["train"], 1 if encoding.classes is None else len(encoding.classes))
    scaled = {
        name: (
            np.asarray(a if scaler is None else scaler.transform(a), floating),
            encoding.labels(checked[name], y_names[name]),
        )
        for name, a in numbers.items()
    }
    if takes_tables(estimator):
        tables = arrays if names is None else {n: _as_frame(t, names) for n, t in arrays.items()}
        tables = alike(tables)
    elif pipeline is not None:
        if takes_gaps(estimator):
            encoding = encoding._replace(
                compact=compact_pipeline(tables["train"], estimator).fit(tables["train"]),
                categories=takes_categories(estimator),
            )
        tables = {name: encoding.encode(table, x_names[name]) for name, table in tables.items()}
    known = dict(zip(("train", "trusted"), facts, strict=True))
    whole = {
        name: PreparedTable(
            tables[name],
            labels[name],
            *scaled[name],
            known[name] if name in known else RowFacts.distinct(len(numbers[name])),
        )
        for name in tables
    }
    return Prepared(X, whole["train"], whole["trusted"], whole.get("holdout"), encoding, groups)


def _gaps_as_frame(table: Any, names: list[Any] | None) -> Any:
    """A data frame of an array of dates, or of numbers with gaps; anything else as it is."""
    if not isinstance(table, np.ndarray) or table.dtype.kind not in "fOmM":
        return table
    if table.dtype.kind in "mM":
        return _as_frame(table, names)
    with contextlib.suppress(TypeError, ValueError):  # texts, which `as_features` refuses
        numbers = table if table.dtype.kind == "f" else table.astype(np.float64)
        return _as_frame(numbers, names) if np.isnan(numbers).any() else table
    return table


def _as_frame(table: Any, names: list[Any] | None) -> pd.DataFrame:
    """A data frame of any table; an array gets the names if it has as many columns."""
    if isinstance(table, pd.DataFrame):
        return table
    fits = names is not None and len(names) == table.shape[1]
    return pd.DataFrame(densify(table, "X"), columns=names if fits else None)


def precision(X: Any, outputs: int = 1) -> type:
    """The floating type for the features of a table, of which a model makes this many outputs.

    On a small table a solver that stops early then stops at the same place on every machine; a large
    one takes half the memory.
    """
    return np.float64 if X.shape[0] * max(X.shape[1], outputs) <= DOUBLE else np.float32


def _fit_scaler(scaler: Any, X: np.ndarray, weight: np.ndarray) -> Any:
    """Fitted on the rows that have weight, and with the weights if it takes them."""
    fresh: Any = MinMaxScaler() if scaler is MIN_MAX else clone(scaler)
    rows = slice(None) if weight.all() else weight > 0
    if np.ptp(weight[rows]) and has_fit_parameter(fresh, "sample_weight"):
        return fresh.fit(X[rows], sample_weight=weight[rows])
    return fresh.fit(X[rows])


def check_verified(labels: Any, tables: Prepared) -> np.ndarray | None:
    """Codes of the labels that the trusted rows had before they were verified; -1 if one is missing.

    Raises:
        InputError: a regression, another number of labels than trusted rows, or unknown labels.
    """
    if labels is None:
        return None
    name = "given_labels_trusted"
    if tables.classes is None:
        raise InputError(f"`{name}` are class labels, and this task is a regression.")
    values = as_vector(labels)
    if values.shape != (len(tables.trusted),):
        raise InputError(
            f"`{name}` must have one label per trusted row ({len(tables.trusted)}), got shape "
            f"{values.shape}."
        )
    missing = pd.isna(values)
    if not missing.any():
        return tables.encoding.labels(values, name)
    codes = np.full(len(values), -1)
    if missing.all():
        return codes
    codes[~missing] = tables.encoding.labels(np.asarray(values[~missing].tolist()), name)
    return codes


def is_regression(task: str, y: Any) -> bool:
    """Whether the labels are numbers to predict; see `task` of `learn_weights`."""
    if task not in ("auto", "classification", "regression"):
        raise ValueError(f"`task` must be 'auto', 'classification' or 'regression', got {task!r}.")
    if task != "auto":
        return task == "regression"
    if isinstance(getattr(y, "dtype", None), pd.CategoricalDtype):
        return False
    values = settled(np.asarray(y))
    if not np.issubdtype(values.dtype, np.number):
        return False
    values = values[np.isfinite(values)]
    return bool(np.any(values != np.floor(values))) or len(np.unique(values)) > max(
        50, len(values) / 10
    )
