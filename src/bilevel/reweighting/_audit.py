"""What is wrong with tables before anything is learned: leaks, duplicates, conflicts, shifts."""

import dataclasses
import json
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from scipy.stats import chi2_contingency, ks_2samp, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from ._data import InputError, check_aligned
from ._prepare import is_regression

SAMPLE = 1000  # rows from which the usual distance is estimated
LIMIT = 2000  # rows whose neighbourhood is looked at closely
CAP = 4000  # rows of the checks that fit a model a column
NEIGHBOURS = 10
CHANCE = 0.01  # expected number of near duplicates where there are none
FEW = 5  # trusted rows of a class
ALONE, SHIFTED, UNLIKELY = 0.99, 0.6, 1e-3  # accuracy, AUC, p-value


Severity = Literal["problem", "warning", "ok"]


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        severity: "problem" (mend it before learning), "warning" (look at it) or "ok".
        title: the check.
        detail: what was found, in numbers, and what to do.
        ids: the rows at fault, or the columns or labels where the detail speaks of these.
    """

    severity: Severity
    title: str
    detail: str
    ids: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Audit:
    """What `audit` found; print it for a line a check.

    Attributes:
        findings: one or more a check, in the order in which the checks were made.
    """

    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """Whether there is no problem; warnings are allowed."""
        return all(f.severity != "problem" for f in self.findings)

    def to_dict(self, at_most: int = 100) -> dict[str, Any]:
        """Ready for `json.dumps`: the findings with their number of ids and the first `at_most`."""
        return {
            "passed": self.passed,
            "findings": [
                f._asdict() | {"num_ids": len(f.ids), "ids": [_plain(x) for x in f.ids[:at_most]]}
                for f in self.findings
            ],
        }

    def __str__(self) -> str:
        """The number of problems and warnings, then a line a finding."""
        count = {s: sum(f.severity == s for f in self.findings) for s in ("problem", "warning")}
        lines = [f"{count['problem']} problems, {count['warning']} warnings"]
        return "\n".join(lines + [f"[{f.severity}] {f.title}: {f.detail}" for f in self.findings])


class _Table(NamedTuple):
    """Rows as numbers: the numeric columns, and codes of the text columns (-1: missing)."""

    ids: np.ndarray
    numbers: Float[np.ndarray, "rows numbers"]
    codes: Int[np.ndarray, "rows texts"]
    number_names: list[Any]
    text_names: list[Any]

    def take(self, rows: np.ndarray) -> "_Table":
        return self._replace(ids=self.ids[rows], numbers=self.numbers[rows], codes=self.codes[rows])


# --- tables as numbers


def _frame(rows: Any) -> pd.DataFrame:
    if scipy.sparse.issparse(rows):
        rows = rows.toarray()
    elif not isinstance(rows, pd.DataFrame) and hasattr(rows, "to_pandas"):
        rows = rows.to_pandas()
    if not isinstance(rows, pd.DataFrame):
        values = np.asarray(rows)
        if values.ndim < 2:
            raise InputError(f"rows must be a table or a matrix, got an array {values.shape}.")
        rows = pd.DataFrame(values.reshape(len(values), int(np.prod(values.shape[1:]))))
    if not rows.columns.is_unique:
        repeated = rows.columns[rows.columns.duplicated()].unique()
        raise InputError(f"a table has repeated column names: {_list(repeated)}.")
    return rows


def _is_number(column: pd.Series) -> bool | None:
    """Whether float64 holds the column exactly; `None` if nothing is there."""
    if column.dtype == object:
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if kind == "empty":
            return None
        if kind not in ("integer", "floating", "mixed-integer-float", "boolean"):
            return False
    elif not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_complex_dtype(column):
        return None if len(column) == 0 or bool(column.isna().all()) else False
    if pd.api.types.is_float_dtype(column):
        return True
    present = column.dropna()
    return len(present) == 0 or bool(present.max() <= 2**53 and present.min() >= -(2**53))


def _text(column: pd.Series) -> np.ndarray:
    """Texts with gaps; the codes 1, 2 that a gap makes 1.0, 2.0 are still "1", "2"."""
    texts = np.empty(len(column), dtype=object)
    for i, (x, missing) in enumerate(zip(column.astype(object), column.isna(), strict=True)):
        whole = isinstance(x, float) and x.is_integer()
        texts[i] = np.nan if missing else str(int(x) if whole else x)
    return texts


def _encode(*frames: pd.DataFrame) -> list[_Table]:
    """Tables with the columns of the first, so that equal values have equal numbers in all.

    A column is text where one table holds anything but numbers in it; 1, 1.0 and True are equal to
    each other, and so are -0.0 and 0.0, and two gaps. Whole numbers beyond 2^53 are texts.

    Raises:
        InputError: other columns (in any order) than the first has.
    """
    first = frames[0]
    for other in frames[1:]:
        different = first.columns.symmetric_difference(other.columns, sort=False)
        if len(different):
            raise InputError(f"the tables do not share the columns {_list(different)}.")
    numbers, texts = [], []
    for name in first.columns:
        kinds = [_is_number(pd.Series(frame[name])) for frame in frames]
        (texts if False in kinds else numbers).append(name)
    sizes = np.cumsum([len(frame) for frame in frames])[:-1]
    codes = [
        np.split(
            pd.factorize(np.concatenate([_text(pd.Series(frame[c])) for frame in frames]))[0], sizes
        )
        for c in texts
    ]
    tables = []
    for k, frame in enumerate(frames):
        values = np.empty((len(frame), len(numbers)))
        for j, name in enumerate(numbers):
            values[:, j] = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
        values += 0.0  # no -0.0
        values[np.isnan(values)] = np.nan  # one NaN
        code = np.stack([c[k] for c in codes], axis=1) if texts else np.empty((len(frame), 0), int)
        tables.append(_Table(np.asarray(frame.index.astype(object)), values, code, numbers, texts))
    return tables


def _codes(*blocks: np.ndarray) -> Int[np.ndarray, " rows"]:
    """A number for each distinct row of the blocks side by side, by their bytes."""
    rows = np.hstack([block.astype(np.float64) for block in blocks])
    values = np.empty(len(rows), dtype=object)
    values[:] = [row.tobytes() for row in rows]
    return pd.factorize(values)[0]


def _row_codes(*tables: _Table) -> list[Int[np.ndarray, " rows"]]:
    both = [np.concatenate([getattr(t, name) for t in tables]) for name in ("numbers", "codes")]
    return np.split(_codes(*both), np.cumsum([len(t.ids) for t in tables])[:-1])


def _firsts(codes: np.ndarray) -> np.ndarray:
    """The first row of each code."""
    return np.unique(codes, return_index=True)[1]


# --- rows that two tables share


def find_shared_rows(rows: Any, among: Any, *, near: bool = True) -> pd.DataFrame:
    """The rows of one table that occur in another, exactly or nearly.

    Exactly: all values equal, whatever the order of the columns; -0.0 = 0.0, NaN = NaN.

    Nearly: the text columns and the gaps are equal, and the numeric ones closer than chance
    explains. Distances are Euclidean between

        z = arcsinh((x - median) / IQR)     (the standard deviation where the IQR is 0)

    With d1 <= d2 the distances of a row to its two nearest others, P(d1 < c d2) = c^D where the
    data have D dimensions and the density is level (Facco et al., Sci. Rep. 7:12140, 2017). So D is
    log 2 / median log(d2 / d1), estimated from 1000 of the rows `among`; and a row is suspected
    when its distance is below

        c median(d1),     c = min(.01, (.01 / rows)^(1/D))

    and reported when it is also below c' times the distance to its 10th nearest, with
    c' = min(.01, (.001 / rows)^(1/D')), and D' the dimension around it (Levina and Bickel, 2004): in
    dense regions too, fewer than .01 rows are expected by chance; only where nearly all values of a
    row are zero are there a few more. Copies that were changed by more, a picture compressed anew,
    say, are not found; nor is anything in tables with one or two numeric columns, unless it is much
    nearer.

    Cost: suspects come from a k-d tree over 8 random orthogonal projections, which lengthen no
    distance, so that none is missed; seconds for 100 000 x 100. At most 2000 suspects are looked at.

    Args:
        rows, among: data frames (ids are their index), or matrices (ids are row numbers).
        near: whether to look for near duplicates too.

    Returns:
        A line a row that occurs, in order: `id`, `other_id` (of the first equal, or the nearest
        row), `kind` ("exact" or "near"), `distance`. `attrs["note"]` says how near ones were searched.

    Raises:
        InputError: the tables' columns are not the same.

    >>> import numpy as np
    >>> find_shared_rows(np.array([[1.0, 2], [3, 4]]), np.array([[5.0, 6], [3, 4]]))
       id  other_id   kind  distance
    0   1         1  exact       0.0
    """
    one, other = _encode(_frame(rows), _frame(among))
    codes, others = _row_codes(one, other)
    found = _shared(one, other, codes, others, near=near)
    columns = {"id": one.ids[found["row"]], "other_id": other.ids[found["other"]]}
    table = pd.DataFrame(columns | {c: found[c] for c in ("kind", "distance")}).infer_objects()
    table.attrs = found.attrs
    return table


def _shared(
    rows: _Table, among: _Table, codes: np.ndarray, others: np.ndarray, *, near: bool = True
) -> pd.DataFrame:
    """The same by position: row, other, distance, kind."""
    unique = _firsts(others)
    place = np.minimum(np.searchsorted(others[unique], codes), len(unique) - 1)
    same = others[unique][place] == codes if len(unique) else np.zeros(len(codes), bool)
    exact, rest = np.flatnonzero(same), np.flatnonzero(~same)
    table = _pairs(exact, unique[place[exact]], np.zeros(len(exact))).assign(kind="exact")
    note = "near duplicates were not searched"
    if near:
        unique = np.sort(unique)
        found, note = _near(rows.take(rest), among.take(unique))
        found = _pairs(rest[found["row"]], unique[found["other"]], found["distance"])
        table = pd.concat([table, found.assign(kind="near")]).sort_values("row", ignore_index=True)
    table.attrs["note"] = note
    return table


def _pairs(row: Any, other: Any, distance: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"row": np.asarray(row, int), "other": np.asarray(other, int), "distance": distance}
    )


def _scaled(tables: Sequence[_Table], rng: np.random.Generator) -> list[np.ndarray]:
    """`arcsinh((x - median) / spread)` with 0 for what is not finite; no constant columns."""
    pool = np.concatenate([t.numbers for t in tables])
    some = pool[rng.permutation(len(pool))[:10_000]]
    keep, centre, spread = [], [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for j in range(pool.shape[1]):
            for x in (some[:, j], pool[:, j]):  # all rows where the sample is constant
                x = x[np.isfinite(x)]
                low, middle, high = np.percentile(x, [25, 50, 75]) if len(x) else (0.0, 0.0, 0.0)
                width = high - low or (np.std(x) if len(x) else 0.0)
                if width > 0:
                    break
            if 0 < width < np.inf:
                keep.append(j)
                centre.append(middle)
                spread.append(width)
        z = [np.arcsinh((t.numbers[:, keep] - centre) / spread) for t in tables]
    return [np.where(np.isfinite(a), a, 0.0) for a in z]


def _near(rows: _Table, among: _Table) -> tuple[pd.DataFrame, str]:
    """(pairs, how they were searched), for two tables without equal rows in or between them."""
    rng = np.random.default_rng(0)
    a, b = _scaled([rows, among], rng)
    unique = _firsts(_codes(b))  # text does not count here
    if len(a) == 0 or b.shape[1] == 0 or len(unique) <= NEIGHBOURS + 1:
        return _pairs([], [], []), "near duplicates were not searched: too few different numbers"

    search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(b[unique])
    sample = b[rng.permutation(unique)[:SAMPLE]]
    nearest = np.maximum(np.asarray(search.kneighbors(sample, n_neighbors=3)[0]), 1e-300)
    first, second = nearest[:, 1], nearest[:, 2]
    usual = float(np.median(first))
    dimension = np.log(2) / max(np.median(np.log(second / first)), np.log(2) / b.shape[1])
    near = usual * min(0.01, (CHANCE / len(a)) ** (1 / dimension))

    # Rows whose text or gaps differ are kept apart by one more coordinate.
    numbers = np.concatenate([rows.numbers, among.numbers])
    gaps = np.where(np.isfinite(numbers), 0, np.where(np.isnan(numbers), 2, np.sign(numbers)))
    key_a, key_b = np.split(_codes(gaps, np.concatenate([rows.codes, among.codes])), [len(a)])
    directions = np.linalg.qr(rng.normal(size=(b.shape[1], min(8, b.shape[1]))))[0]
    tree = KDTree(np.column_stack([b @ directions, 3 * near * key_b]))
    points = np.column_stack([a @ directions, 3 * near * key_a])
    slack = near * (1 + 1e-6) + 1e-12
    others = np.asarray(tree.query(points, k=NEIGHBOURS, distance_upper_bound=slack)[1])
    row, k = np.nonzero(others < len(b))
    other = others[row, k]
    distance = np.sqrt(((a[row] - b[other]) ** 2).sum(axis=1))
    order = np.lexsort((other, distance, row))
    order = order[((distance < near) & (key_a[row] == key_b[other]))[order]]
    order = order[_firsts(row[order])]  # the nearest of each row

    note = f"near: at a distance below {near:.3g}, where {usual:.3g} is usual"
    if len(order) > LIMIT:
        note += f"; {len(order)} rows were suspected, and a random {LIMIT} of them looked at"
        order = np.sort(rng.permutation(order)[:LIMIT])
    row, other, distance = row[order], other[order], distance[order]
    if len(row):
        around = np.maximum(np.asarray(search.kneighbors(a[row])[0])[:, 1:], 1e-300)
        ratios = np.log(around[:, -1:] / around[:, :-1]).mean(axis=1)
        power = np.maximum(ratios, 1 / b.shape[1])  # 1 / dimension
        c = np.minimum(0.01, (CHANCE / NEIGHBOURS / len(a)) ** power)
        close = distance < c * around[:, -1]
        row, other, distance = row[close], other[close], distance[close]
    return _pairs(row, other, distance), note


# --- one table


def find_duplicates(rows: Any) -> pd.DataFrame:
    """The rows that occur more than once in a table, whatever their labels.

    Returns:
        A line a row that has an equal one: `group` (0, 1, ...; equal rows share it) and `id`,
        group by group, in the order of the table.

    >>> import numpy as np
    >>> find_duplicates(np.array([[1.0, 2], [3, 4], [1, 2]]))
       group  id
    0      0   0
    1      0   2
    """
    (table,) = _encode(_frame(rows))
    return _duplicates(table.ids, *_row_codes(table))


def _duplicates(ids: np.ndarray, codes: np.ndarray) -> pd.DataFrame:
    again = np.flatnonzero(pd.Series(codes).duplicated(keep=False))
    group = pd.factorize(codes[again])[0]
    order = np.argsort(group, kind="stable")
    return pd.DataFrame({"group": group[order], "id": ids[again[order]]}).infer_objects()


def find_conflicting_labels(rows: Any, labels: Any, *, task: str = "auto") -> pd.DataFrame:
    """Rows with equal features and different labels, or targets: one at least must be wrong.

    Args:
        rows: a data frame or a matrix.
        labels: one a row; missing ones are left out.
        task: "classification", "regression", or "auto", which looks at the labels.

    Returns:
        A line a group of equal rows: `ids` and their `labels`, two tuples of the same length; for
        regression also `spread`, the largest target less the smallest, and the widest come first.

    >>> import numpy as np
    >>> find_conflicting_labels(np.array([[1.0, 2], [3, 4], [1, 2]]), ["a", "b", "c"])
          ids  labels
    0  (0, 2)  (a, c)
    """
    frame = _frame(rows)
    (table,) = _encode(frame)
    (codes,) = _row_codes(table)
    given = _labels(labels, frame, "labels")
    return _conflicts(table.ids, codes, given, is_regression(task, given.dropna()))


def _conflicts(
    ids: np.ndarray, codes: np.ndarray, labels: pd.Series, regression: bool
) -> pd.DataFrame:
    known = np.flatnonzero(labels.notna())
    code, values = codes[known], labels.to_numpy()[known]
    label = pd.factorize(values)[0]
    distinct = pd.DataFrame({"code": code, "label": label}).drop_duplicates()["code"]
    at_odds = np.unique(distinct[distinct.duplicated()])
    members = np.flatnonzero(np.isin(code, at_odds))
    groups = pd.Series(members).groupby(code[members], sort=False).agg(list)
    table = pd.DataFrame(
        {
            "ids": [tuple(ids[known[m]].tolist()) for m in groups],
            "labels": [tuple(values[m].tolist()) for m in groups],
        }
    )
    if regression:
        table["spread"] = [float(max(x) - min(x)) for x in table["labels"]]
        table = table.sort_values("spread", ascending=False, kind="stable", ignore_index=True)
    return table


# --- the audit


def audit(
    train: Any,
    y: Any,
    trusted: Any,
    y_trusted: Any,
    holdout: Any = None,
    y_holdout: Any = None,
    *,
    task: str = "auto",
    seed: int = 0,
) -> Audit:
    """Everything about the tables that would make weights, or their proof, worthless; in seconds.

    Checks: columns that differ between the tables; rows and ids that two tables share, exactly or
    nearly (`find_shared_rows`); repeated rows; equal rows with different labels; missing labels,
    and labels that differ only in case or spaces; constant columns; a single column that determines
    the label, of the training or of the trusted rows (a decision tree of depth log2(classes) + 2, 5
    folds, accuracy .99 or more where the largest class has less than .9; for regression, a rank
    correlation of .999); class shares, trusted against training rows (chi-squared, p < .001; targets
    by Kolmogorov and Smirnov); classes with fewer than 5 trusted rows; and a logistic model that
    tells two tables apart (5 folds, AUC of .6, and 4 standard errors above .5). Checks that fit
    models see at most 4000 rows, drawn with the seed.

    Args:
        train, y: training rows, a data frame or a matrix, and their labels.
        trusted, y_trusted: the trusted rows.
        holdout, y_holdout: rows that the result is to be judged on, if there are any.
        task: "classification", "regression", or "auto", which looks at `y`.
        seed: of the folds and of the rows drawn.

    Raises:
        InputError: a table without rows or with repeated column names, no column that all tables
            share, or not one label a row.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(300, 4)); y = (X @ [1, 1, 1, 1] > 0).astype(int)
    >>> found = audit(X[:200], y[:200], np.vstack([X[200:], X[7:8]]), np.append(y[200:], y[7]))
    >>> print([(f.title, f.ids) for f in found.findings if f.severity == "problem"])
    [('training rows among the trusted rows', (7,))]
    """
    given = {"training": (train, y), "trusted": (trusted, y_trusted)}
    if holdout is not None:
        given["hold-out"] = holdout, y_holdout
    frames = {name: _frame(rows) for name, (rows, _) in given.items()}
    for name, frame in frames.items():
        if len(frame) == 0:
            raise InputError(f"there are zero {name} rows; nothing can be learned from them.")
    labels = {
        name: _labels(values, frames[name], f"{name} labels") for name, (_, values) in given.items()
    }
    regression = is_regression(task, labels["training"].dropna())
    findings = _columns(frames)
    common = [c for c in frames["training"].columns if all(c in f.columns for f in frames.values())]
    if not common:
        raise InputError("the tables have no column in common; check that they belong together.")
    tables = dict(
        zip(frames, _encode(*(pd.DataFrame(f[common]) for f in frames.values())), strict=True)
    )
    codes = dict(zip(tables, _row_codes(*tables.values()), strict=True))
    rng = np.random.default_rng(seed)

    for one, other in (("training", "trusted"), ("training", "hold-out"), ("trusted", "hold-out")):
        if other in tables:
            shared = _shared(tables[one], tables[other], codes[one], codes[other])
            findings += _overlap(shared, tables, labels, one, other)
            findings += _shared_ids(frames[one].index, frames[other].index, one, other)
    for name, table in tables.items():
        findings += _repeated_ids(frames[name].index, name)
        findings += _repeated(_duplicates(table.ids, codes[name]), name, len(table.ids))
        conflicts = _conflicts(table.ids, codes[name], labels[name], regression)
        findings += _at_odds(conflicts, name)
        findings += _missing_labels(labels[name], table.ids, name)
    findings += _constant(tables["training"])
    for name in ("training", "trusted"):  # wrong labels hide the leak of right ones
        findings += _leaks(tables[name], labels[name], name, regression, rng)
    if regression:
        findings += _target_shift(labels)
    else:
        findings += [*_spelling(labels), *_class_shares(labels)]
    for one, other in (("training", "trusted"), ("hold-out", "trusted")):
        if one in tables:
            findings += _shift(tables[one], tables[other], one, other, rng)
    return Audit(findings)


def _labels(values: Any, rows: pd.DataFrame, name: str) -> pd.Series:
    """Without an index; what is missing or infinite is missing."""
    if np.ndim(values) != 1 or len(values) != len(rows):
        raise InputError(
            f"`{name}` must be a vector with one label per row, got shape {np.shape(values)} for "
            f"{len(rows)} rows."
        )
    check_aligned(rows, values, name)
    labels = pd.Series(np.asarray(values)).infer_objects()
    labels = labels.where(labels.notna(), np.nan)
    if _is_number(labels) and not pd.api.types.is_integer_dtype(labels):
        numbers = labels.to_numpy(dtype=np.float64, na_value=np.nan)
        return pd.Series(np.where(np.isfinite(numbers), numbers, np.nan))
    return labels


def _columns(frames: dict[str, pd.DataFrame]) -> list[Finding]:
    train, title = frames["training"], "columns"
    found = []
    for name, frame in list(frames.items())[1:]:
        missing = [c for c in train.columns if c not in frame.columns]
        extra = [c for c in frame.columns if c not in train.columns]
        if missing or extra:
            parts = [f"the {name} rows lack {_list(missing)}"] * bool(missing)
            parts += [f"only the {name} rows have {_list(extra)}"] * bool(extra)
            detail = "; ".join(parts) + ". Mend the names, or drop these columns."
            found.append(Finding("problem", title, detail, (*missing, *extra)))
        common = [c for c in train.columns if c in frame.columns]
        mixed = [
            c
            for c in common
            if {_is_number(pd.Series(f[c])) for f in (train, frame)} == {True, False}
        ]
        if mixed:
            detail = (
                f"{_count(mixed, 'column')} of numbers in one and text in the other of training and "
                f"{name} rows: {_list(mixed)}. Look for stray text (a decimal comma, 'n/a')."
            )
            found.append(Finding("warning", title, detail, tuple(mixed)))
    detail = f"all tables have the same {train.shape[1]} columns, of the same kinds."
    return found or [Finding("ok", title, detail)]


def _overlap(
    shared: pd.DataFrame,
    tables: dict[str, _Table],
    labels: dict[str, pd.Series],
    one: str,
    other: str,
) -> list[Finding]:
    title = f"{one} rows among the {other} rows"
    row, place = shared["row"].to_numpy(), shared["other"].to_numpy()
    given, verified = (labels[name].to_numpy(dtype=object) for name in (one, other))
    differ = given[row] != verified[place]
    exact = (shared["kind"] == "exact").to_numpy()
    kinds: list[tuple[np.ndarray, Severity, str, str]] = [
        (exact, "problem", "equal", "a row must not judge itself"),
        (~exact, "warning", "nearly equal", f"perhaps copies; {shared.attrs['note']}"),
    ]
    found = []
    for lines, severity, what, why in kinds:
        ids = tuple(tables[one].ids[row[lines]])
        if ids:
            detail = (
                f"{_count(ids, one + ' row')} {what} to a {other} row ({why}), "
                f"{int(differ[lines].sum())} with another label: {_list(ids)} (there: "
                f"{_list(tables[other].ids[place[lines]])}). Remove them from the {one} rows, unless "
                "distinct rows can be so alike."
            )
            found.append(Finding(severity, title, detail, ids))
    return found or [Finding("ok", title, f"none ({shared.attrs['note']}).")]


def _shared_ids(index: pd.Index, others: pd.Index, one: str, other: str) -> list[Finding]:
    if isinstance(index, pd.RangeIndex) or isinstance(others, pd.RangeIndex):
        return []  # they were counted, not given
    title = f"ids of {one} and {other} rows"
    ids = tuple(index[index.isin(others)].unique())
    if not ids:
        return [Finding("ok", title, "no id occurs in both.")]
    detail = (
        f"{_count(ids, 'id')} in both tables: {_list(ids)}. If they name the same thing, remove it "
        f"from the {one} rows; if not, give the tables distinct ids."
    )
    return [Finding("warning", title, detail, ids)]


def _repeated_ids(index: pd.Index, name: str) -> list[Finding]:
    ids = tuple(index[index.duplicated()].unique())
    detail = f"{_count(ids, 'id')} of several rows: {_list(ids)}. Give each row its own."
    return [Finding("warning", f"ids of the {name} rows", detail, ids)] if ids else []


def _repeated(duplicates: pd.DataFrame, name: str, n: int) -> list[Finding]:
    title = f"repeated {name} rows"
    later = tuple(duplicates.loc[duplicates["group"].duplicated(), "id"])
    if not later:
        return [Finding("ok", title, f"the {n} rows differ from each other.")]
    detail = (
        f"{_count(later, 'row')} ({len(later) / n:.1%}) equal to an earlier one: {_list(later)}. "
        "Each counts again; remove them unless they were measured anew."
    )
    return [Finding("warning", title, detail, later)]


def _at_odds(conflicts: pd.DataFrame, name: str) -> list[Finding]:
    title = f"equal {name} rows with different labels"
    if len(conflicts) == 0:
        return [Finding("ok", title, "none.")]
    ids = tuple(i for group in conflicts["ids"] for i in group)
    first = conflicts.iloc[0]
    detail = (
        f"{_count(conflicts, 'group')} of together {len(ids)} rows; the rows {_list(first['ids'])} "
        f"are labelled {_list(first['labels'])}. "
    )
    if "spread" in conflicts:
        detail += f"The targets of equal rows differ by up to {first['spread']:.4g}. "
    severity = "warning" if name == "training" else "problem"
    detail += (
        "One label at least is wrong: weights will tell which."
        if severity == "warning"
        else "One label at least is wrong, and these are to be right: verify them."
    )
    return [Finding(severity, title, detail, ids)]


def _missing_labels(labels: pd.Series, ids: np.ndarray, name: str) -> list[Finding]:
    missing = tuple(ids[np.asarray(labels.isna())])
    detail = f"{_count(missing, 'row')} without one: {_list(missing)}. Label or drop them."
    return [Finding("problem", f"labels of the {name} rows", detail, missing)] if missing else []


def _constant(table: _Table) -> list[Finding]:
    names = [*table.number_names, *table.text_names]
    values = np.hstack([table.numbers, table.codes])
    same = ((values == values[:1]) | (np.isnan(values) & np.isnan(values[:1]))).all(axis=0)
    columns = tuple(name for name, s in zip(names, same, strict=True) if s)
    if not columns:
        return [Finding("ok", "constant columns", "none.")]
    detail = (
        f"{_count(columns, 'column')} with one value in all training rows: {_list(columns)}. Nothing "
        "can be learned from them: drop them, or look why they are empty."
    )
    return [Finding("warning", "constant columns", detail, columns)]


def _leaks(
    table: _Table, labels: pd.Series, name: str, regression: bool, rng: np.random.Generator
) -> list[Finding]:
    """Columns that determine the label alone."""
    title = f"columns that give the label away, {name} rows"
    known = rng.permutation(np.flatnonzero(labels.notna()))[:CAP]
    if len(known) < 50:
        return []
    table, y = table.take(known), labels.to_numpy()[known]
    if regression:
        score = [_rank_correlation(x, y) for x in table.numbers.T]
        alone, measure, names = 0.999, "rank correlation", table.number_names
    else:
        y = pd.factorize(y)[0]
        if np.bincount(y).max() >= 0.9 * len(y) or y.max() > len(y) / 10:
            return []  # one class, or hardly two rows of any
        fold = np.arange(len(y)) % 5  # the rows are in random order
        score = [_tree_accuracy(x, y, fold) for x in table.numbers.T]
        score += [_value_accuracy(x, y, fold) for x in table.codes.T]
        alone, measure, names = ALONE, "accuracy", [*table.number_names, *table.text_names]
    columns = {n: s for n, s in zip(names, score, strict=True) if s >= alone}
    if not columns:
        return [Finding("ok", title, f"no single column reaches {measure} {alone}.")]
    best = max(columns.values())
    detail = (
        f"{_count(columns, 'column')} from which alone the label is known ({measure} up to "
        f"{best:.4f}): {_list(columns)}. If they are made from the label, or known only after it, "
        "drop them; if the task is that easy, keep them."
    )
    return [Finding("problem", title, detail, tuple(columns))]


def _tree_accuracy(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """5-fold accuracy of a tree on one column; 0 where it cannot be high.

    A tree of L leaves with e errors leaves at most L + 2 e changes of the label along the column.
    """
    depth = int(np.ceil(np.log2(y.max() + 1))) + 2
    changes = np.count_nonzero(np.diff(y[np.lexsort((y, x))]))
    if changes > 2**depth + 4 * (1 - ALONE) * len(y) or not np.isfinite(x).any():
        return 0.0
    x = np.clip(x - np.median(x[np.isfinite(x)]), -1e38, 1e38)  # trees think in float32
    tree = DecisionTreeClassifier(max_depth=depth, random_state=0)
    right = 0
    for k in range(5):
        train = fold != k
        tree.fit(x[train, None], y[train])
        right += int((tree.predict(x[~train, None]) == y[~train]).sum())
    return right / len(y)


def _value_accuracy(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """5-fold accuracy of the most frequent label of each text."""
    labels, cells = y.max() + 1, (x + 1) * (y.max() + 1) + y
    right = 0
    for k in range(5):
        train = fold != k
        count = np.bincount(cells[train], minlength=(x.max() + 2) * labels).reshape(-1, labels)
        count = count + np.bincount(y[train], minlength=labels) / (len(y) + 1)  # for unseen texts
        right += int((count.argmax(axis=1)[x[~train] + 1] == y[~train]).sum())
    return right / len(y)


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, without sign, of the rows without gaps; 0 for a constant or nearly empty column."""
    known = ~np.isnan(x)
    if known.sum() < 50 or np.ptp(x[known]) == 0:
        return 0.0
    return float(abs(np.corrcoef(rankdata(x[known]), rankdata(y[known]))[0, 1]))


def _spelling(labels: dict[str, pd.Series]) -> list[Finding]:
    texts = {x for s in labels.values() for x in s.dropna().unique() if isinstance(x, str)}
    same: dict[str, list[str]] = {}
    for text in sorted(texts):
        same.setdefault(" ".join(text.casefold().split()), []).append(text)
    alike = tuple(x for group in same.values() if len(group) > 1 for x in group)
    detail = f"labels that differ only in case or spaces: {_list(alike)}. Make them one."
    return [Finding("warning", "spelling of the labels", detail, alike)] if alike else []


def _class_shares(labels: dict[str, pd.Series]) -> list[Finding]:
    title = "classes"
    known = {name: y.dropna().astype(object) for name, y in labels.items()}
    classes = list(pd.unique(pd.concat(list(known.values()))))
    counts = {
        name: y.value_counts().reindex(pd.Index(classes, dtype=object), fill_value=0).to_numpy()
        for name, y in known.items()
    }
    found = []

    def report(severity: Severity, which: np.ndarray, detail: str) -> None:
        rows = tuple(classes[k] for k in np.flatnonzero(which))
        if rows:
            detail = f"{_count(rows, 'class', 'classes')} {detail.format(_list(rows))}"
            found.append(Finding(severity, title, detail, rows))

    mend = "Add rows, mend the spelling of the labels, or remove the class."
    for name in list(counts)[1:]:
        severity = "problem" if name == "trusted" else "warning"
        here, train = counts[name] > 0, counts["training"] > 0
        report(severity, train & ~here, f"in the training but not in the {name} rows: {{}}. {mend}")
        report(
            "problem", here & ~train, f"in the {name} but not in the training rows: {{}}. {mend}"
        )
    few = (counts["trusted"] > 0) & (counts["trusted"] < FEW)
    detail = f"with fewer than {FEW} trusted rows: {{}}. Verify more; `bilevel suggest` names some."
    report("warning", few, detail)

    both = (counts["training"] > 0) & (counts["trusted"] > 0)
    if both.sum() < 2:
        return found
    pair = np.stack([counts["training"][both], counts["trusted"][both]])
    test: Any = chi2_contingency(pair, correction=False)
    p = float(test.pvalue)
    train, trusted = pair / pair.sum(axis=1, keepdims=True)
    most = int(np.abs(trusted - train).argmax())
    label = classes[np.flatnonzero(both)[most]]
    detail = (
        f"shares of training and trusted rows differ most for {_list([label])}: {train[most]:.1%} "
        f"against {trusted[most]:.1%} (chi-squared p = {p:.2g})."
    )
    if p < UNLIKELY:
        detail += (
            " Label noise does this, and so does a trusted set that was not drawn at random: which "
            "one is yours?"
        )
    elif found:
        return found
    return [
        *found,
        Finding("warning" if p < UNLIKELY else "ok", title, detail, (label,) * (p < UNLIKELY)),
    ]


def _target_shift(labels: dict[str, pd.Series]) -> list[Finding]:
    y, y_trusted = (labels[name].dropna().to_numpy(float) for name in ("training", "trusted"))
    if not (len(y) and len(y_trusted)):
        return []
    test: Any = ks_2samp(y, y_trusted)
    p = float(test.pvalue)
    detail = (
        f"median {np.median(y):.4g} in the training and {np.median(y_trusted):.4g} in the trusted "
        f"rows (Kolmogorov-Smirnov p = {p:.2g})"
    )
    if p >= UNLIKELY:
        return [Finding("ok", "targets", f"distributed alike: {detail}.")]
    detail = (
        f"distributed differently: {detail}. Wrong targets do this, and so does a trusted set that "
        "was not drawn at random: which one is yours?"
    )
    return [Finding("warning", "targets", detail)]


def _shift(
    one: _Table, other: _Table, name: str, other_name: str, rng: np.random.Generator
) -> list[Finding]:
    """Whether a logistic model tells the rows of two tables apart."""
    title = f"distribution of {name} and {other_name} rows"
    one, other = (t.take(rng.permutation(len(t.ids))[:CAP]) for t in (one, other))
    n, m = len(one.ids), len(other.ids)
    if min(n, m) < 10:
        return []
    gaps = np.concatenate([~np.isfinite(t.numbers) for t in (one, other)]).astype(float)
    x = [np.concatenate(_scaled([one, other], rng)), gaps[:, np.ptp(gaps, axis=0) > 0]]
    for column in np.concatenate([one.codes, other.codes]).T:
        value, count = np.unique(column, return_counts=True)
        x.append(column[:, None] == value[np.argsort(-count)[:20]])
    x = np.hstack(x)
    if x.shape[1] == 0:
        return []
    model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200, tol=1e-3))
    side = np.repeat([0, 1], [n, m])
    folds = StratifiedKFold(5, shuffle=True, random_state=int(rng.integers(2**31)))
    areas = []
    for train, test in folds.split(x, side):
        model.fit(x[train], side[train])
        areas.append(roc_auc_score(side[test], model.decision_function(x[test])))
    area, error = float(np.mean(areas)), float(np.sqrt((n + m + 1) / (12 * n * m)))
    detail = (
        f"a logistic model tells them apart with an AUC of {area:.3f} (standard error {error:.3f})"
    )
    if area < max(SHIFTED, 0.5 + 4 * error):
        return [Finding("ok", title, f"{detail}; .5 is by chance.")]
    detail += (
        "; .5 is by chance. Weights will prefer rows that look like the trusted ones: right if those "
        "are what the model will meet, wrong if they were picked for being easy to verify."
    )
    return [Finding("warning", title, detail)]


# --- words


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 40


def _short(x: Any) -> str:
    return _SHORT.repr(x.item() if isinstance(x, np.generic) else x)


def _list(items: Iterable[Any], at_most: int = 5) -> str:
    """The first few, each cut at 40 characters, with control characters escaped."""
    items = list(items)
    shown = ", ".join(_short(x) for x in items[:at_most])
    return f"{shown} and {len(items) - at_most} more" if len(items) > at_most else shown


def _count(items: Any, noun: str, plural: str | None = None) -> str:
    return f"{len(items)} {noun if len(items) == 1 else plural or noun + 's'}"


def _plain(x: Any) -> Any:
    x = x.item() if isinstance(x, np.generic) else x
    try:
        json.dumps(x, allow_nan=False)
    except (TypeError, ValueError):
        return str(x)
    return x
