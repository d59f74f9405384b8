"""`learn_multilabel_weights`: several labels per row, each right or wrong on its own."""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ._inputs.checks import InputError, check_aligned, densify, named
from ._inputs.containers import as_internal, like
from ._inputs.prepare import MIN_MAX
from ._learn import learn_weights
from ._weights.baselines import SIMPLEST
from ._weights.diagnostics import Check
from ._weights.result import WeightsResult

if TYPE_CHECKING:
    from ._report.labels_page import LabelsReport


@dataclasses.dataclass(frozen=True)
class MultilabelResult:
    """What `learn_multilabel_weights` returns.

    Attributes:
        label_quality: for each training row (line) and label (column), in [0, 1]: the lowest are most
            likely to be wrong, whether the label is there or not. The rows have the index of X.
        row_quality: the lowest of each row: what rows are ranked by.
        keep: False for the labels to look at, see `WeightsResult`; like `label_quality`.
        label_weights: one weight for each row and label, for an estimator that is one model per label.
        trusted_weights: what a trusted row weighs beside them, for each label.
        weights: one per training row, mean 1, for one estimator of all labels: the mean over the
            labels. All are zero if the trusted rows alone are best for every label.
        trusted_weight: what a trusted row weighs beside `weights`.
        scale: fit a final model with `scale * weights` and `scale * trusted_weight`.
        labels: one line per label: its `share` among the training rows, the estimated share of `wrong`
            ones, how many are `flagged`, and the `winner`, whose held-out loss is `difference`
            (`standard_error`) against all rows + trusted.
        results: of each label, all that `learn_weights` returns.
        given: the training labels as they were given, like `label_quality`.
        trusted_rows: how many trusted rows there were.
    """

    label_quality: pd.DataFrame
    row_quality: Any
    keep: pd.DataFrame
    label_weights: pd.DataFrame
    trusted_weights: pd.Series
    weights: Any
    trusted_weight: float
    scale: float
    labels: pd.DataFrame
    results: dict[Any, WeightsResult]
    given: pd.DataFrame
    trusted_rows: int

    def report(self) -> "LabelsReport":
        """A page for people and the same content as JSON: `result.report().save("report.html")`."""
        from ._report.labels_page import gather_labels

        return gather_labels(
            self.given,
            self.keep,
            self.row_quality,
            self.weights,
            self.labels,
            self.results,
            self.checks,
            self.trusted_rows,
        )

    def sample_weight(self, num_trusted: int) -> Float[np.ndarray, " rows"]:
        """For the final fit of one estimator: of the training rows, then of the trusted rows."""
        trusted = np.full(num_trusted, self.trusted_weight)
        return self.scale * np.concatenate([np.asarray(self.weights), trusted])

    def sample_weights(self, num_trusted: int) -> Float[np.ndarray, "rows labels"]:
        """The same for each label, for an estimator that is one model per label."""
        trusted = np.tile(np.asarray(self.trusted_weights), (num_trusted, 1))
        return np.concatenate([np.asarray(self.label_weights), trusted])

    @property
    def checks(self) -> list[Check]:
        """Those of every label, with its name."""
        return [
            check._replace(name=f"{label}: {check.name}")
            for label, result in self.results.items()
            for check in result.checks
        ]

    def __str__(self) -> str:
        """A summary in a few lines."""
        flagged = ~np.asarray(self.keep)
        return (
            f"{len(self.keep)} rows with {self.keep.shape[1]} labels each: "
            f"{int(flagged.any(axis=1).sum())} rows to look at, "
            f"with {int(flagged.sum())} labels that are probably wrong\n"
            f"{self.labels.round(4).to_string()}"
        )


def learn_multilabel_weights(
    X: Any,
    Y: Any,
    X_trusted: Any,
    Y_trusted: Any,
    *,
    estimator: Any = None,
    groups: Any = None,
    scaler: Any = MIN_MAX,
    seed: int = 0,
) -> MultilabelResult:
    """Which of a row's labels are wrong, and weights for it, where a row may have any of k labels.

    Each label is a question of its own, yes or no: a pool of label models, its noise and its
    candidates are found by `learn_weights` for each column of the indicator matrix. A row is ranked by
    the *lowest* quality of its labels, because one wrong label is a reason to look at it; it weighs
    the *mean* of their weights, because a loss that sums over the labels loses only that part of it.

    Args:
        X: the training rows, as for `learn_weights`.
        Y: their labels, an indicator matrix `(rows, labels)` of 0 and 1 (or False and True), as an
            array or a table whose columns name the labels.
        X_trusted, Y_trusted: the trusted rows, whose labels are all right.
        estimator: a classifier of *one* label, which the weights are for; see `learn_weights`.
        groups, scaler, seed: as for `learn_weights`; the seed is the same for each label, so that
            neither the order of the labels nor a label that is added changes what is found.

    Returns:
        A `MultilabelResult`. Labels that are the same in all training rows, or in all trusted rows,
        cannot be judged: their quality and their weights are 1, and a `UserWarning` names them.

    Raises:
        ValueError: about the data (an `InputError`), or about an argument.

    Cost: that of `learn_weights` with two classes, for each label.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 2)); Y = (X > 0).astype(int)
    >>> noisy = Y.copy(); noisy[:20, 1] = 1 - noisy[:20, 1]  # the second label of twenty rows
    >>> found = learn_multilabel_weights(X[:200], noisy[:200], X[200:], Y[200:])
    >>> quality = found.label_quality[1]
    >>> bool(quality[:20].median() < 0.5 < quality[20:].median()), found.labels.index.tolist()
    (True, [0, 1])
    """
    indicators, names = _indicators(X, Y, "Y")
    trusted, trusted_names = _indicators(X_trusted, Y_trusted, "Y_trusted")
    if list(names) != list(trusted_names):
        raise InputError(
            f"`Y` has the labels {named(list(names), 20)}, `Y_trusted` "
            f"{named(list(trusted_names), 20)}; give the same columns in the same order."
        )
    judged = [np.ptp(indicators[:, j]) > 0 < np.ptp(trusted[:, j]) for j in range(len(names))]
    unjudged = [name for name, there in zip(names, judged, strict=True) if not there]
    if len(unjudged) == len(names):
        raise InputError(
            "every label is the same in all training rows or in all trusted rows, so none can be "
            "judged; verify rows with and without each label."
        )
    if unjudged:
        warnings.warn(
            f"the labels {named(unjudged)} are the same in all training rows or in all trusted rows, "
            "and cannot be judged: verify a few rows that differ in them.",
            UserWarning,
            stacklevel=2,
        )
    results = {
        name: learn_weights(
            X,
            indicators[:, j],
            X_trusted,
            trusted[:, j],
            task="classification",
            groups=groups,
            estimator=estimator,
            scaler=scaler,
            seed=seed,
        )
        for j, name in enumerate(names)
        if judged[j]
    }
    return _together(results, X, indicators, names, len(trusted))


def _indicators(X: Any, Y: Any, name: str) -> tuple[Int[np.ndarray, "rows labels"], pd.Index]:
    """0 and 1, and the names of the columns.

    Raises:
        InputError: not a matrix, its rows in another order than those of `X`, or other values.
    """
    table = as_internal(Y, name)
    check_aligned(X, table, name)
    names = None
    if isinstance(table, pd.DataFrame):
        names = table.columns
        table = table.astype(object).where(table.notna(), np.nan)  # pd.NA cannot be compared
    values = np.asarray(densify(table, name))
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(
            f"`{name}` must be an indicator matrix (rows, labels), got shape {values.shape}; "
            "`sklearn.preprocessing.MultiLabelBinarizer` makes one of lists of labels."
        )
    names = pd.RangeIndex(values.shape[1]) if names is None else names
    if names.nlevels > 1:
        raise InputError(
            f"the columns of `{name}` have names of {names.nlevels} levels; give each label one name: "
            f"`{name}.columns = ['/'.join(map(str, c)) for c in {name}.columns]`."
        )
    if not names.is_unique:
        raise InputError(
            f"`{name}` has two columns of the name {named(names[np.asarray(names.duplicated())])}."
        )
    good = np.asarray(np.isin(values.astype(object), [0, 1]))
    if not good.all():
        absent = ~good.all(axis=0)
        columns, rows = np.asarray(names)[absent], np.flatnonzero(~good.all(axis=1))
        raise InputError(
            f"`{name}` must hold 0 and 1 (or False and True) only; the columns {named(list(columns))} "
            f"hold other values, in the rows {named(rows)}: "
            f"{named(list(dict.fromkeys(values[~good].tolist())))}."
        )
    return values.astype(int), names


def _together(
    results: dict[Any, WeightsResult],
    X: Any,
    indicators: np.ndarray,
    names: pd.Index,
    trusted_rows: int,
) -> MultilabelResult:
    """The tables of all labels."""
    n = len(indicators)
    index = X.index if isinstance(X, pd.DataFrame) else pd.RangeIndex(n)

    def table(column: Any, missing: Any) -> pd.DataFrame:
        columns = {
            name: np.asarray(column(results[name])) if name in results else np.full(n, missing)
            for name in names
        }
        return pd.DataFrame(columns, index, columns=names)

    quality = table(lambda r: r.label_quality, 1.0)
    keep = table(lambda r: r.keep, True)
    weights = table(lambda r: r.scale * np.asarray(r.weights), 1.0)
    trusted = pd.Series(
        {k: results[k].scale * results[k].trusted_weight if k in results else 1.0 for k in names}
    )
    row_weights, trusted_weight = weights.mean(axis=1).to_numpy(), float(trusted.mean())
    scale = float(row_weights.mean()) or 1.0
    lines = {}
    for j, name in enumerate(names):
        result = results.get(name)
        line = {"share": indicators[:, j].mean(), "wrong": None, "flagged": 0, "winner": SIMPLEST}
        if result is not None and result.candidates is not None:
            chosen = result.candidates.loc[result.winner]
            line |= {
                "wrong": float(result.history["wrong"].iloc[-1]),
                "flagged": int(np.sum(~result.keep)),
                "winner": result.winner,
                "difference": chosen["difference"],
                "standard_error": chosen["standard_error"],
            }
        lines[name] = line
    return MultilabelResult(
        label_quality=quality,
        row_quality=like(quality.min(axis=1).to_numpy(), X, "row_quality"),
        keep=keep,
        label_weights=weights,
        trusted_weights=trusted,
        weights=like(row_weights / scale, X, "weight"),
        trusted_weight=trusted_weight / scale,
        scale=scale,
        labels=pd.DataFrame.from_dict(lines, orient="index").rename_axis("label"),
        results=results,
        given=pd.DataFrame(indicators, index, columns=names),
        trusted_rows=trusted_rows,
    )
