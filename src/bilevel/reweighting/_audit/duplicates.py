"""Tables as numbers, and the rows that are equal or nearly equal in one table or in two."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from sklearn.neighbors import NearestNeighbors

from .._inputs.checks import InputError, as_vector, check_aligned
from .._inputs.prepare import is_regression
from .._inputs.scalars import settled
from .finding import listed

SAMPLE = 1000  # rows from which the usual distance is estimated
LIMIT = 2000  # rows whose neighbourhood is looked at closely
NEIGHBOURS = 10
CHANCE = 0.01  # expected number of near duplicates where there are none
COMMON = 5  # other rows that are equal, from which chance may be why (by judgement)


class Table(NamedTuple):
    """Rows as numbers: the numeric columns, and codes of the text columns (-1: missing)."""

    ids: np.ndarray
    numbers: Float[np.ndarray, "rows numbers"]
    codes: Int[np.ndarray, "rows texts"]
    number_names: list[Any]
    text_names: list[Any]

    def take(self, rows: np.ndarray) -> "Table":
        return self._replace(ids=self.ids[rows], numbers=self.numbers[rows], codes=self.codes[rows])


# --- tables as numbers


def as_frame(rows: Any) -> pd.DataFrame:
    """Rows of any kind as a data frame, whose index are the ids.

    Raises:
        InputError: no table or matrix, or repeated column names.
    """
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
        raise InputError(f"a table has repeated column names: {listed(repeated)}.")
    return rows


def is_number(column: pd.Series) -> bool | None:
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


def encode(*frames: pd.DataFrame) -> list[Table]:
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
            raise InputError(f"the tables do not share the columns {listed(different)}.")
    numbers, texts = [], []
    for name in first.columns:
        kinds = [is_number(pd.Series(frame[name])) for frame in frames]
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
        tables.append(Table(np.asarray(frame.index.astype(object)), values, code, numbers, texts))
    return tables


def _codes(*blocks: np.ndarray) -> Int[np.ndarray, " rows"]:
    """A number for each distinct row of the blocks side by side.

    Column by column: rows that one column has told apart stay so, and where all are, the others need
    not be looked at.
    """
    codes, distinct = np.zeros(len(blocks[0]), np.int64), min(1, len(blocks[0]))
    for column in (block[:, j] for block in blocks for j in range(block.shape[1])):
        if distinct == len(codes):
            break
        found, values = pd.factorize(column, use_na_sentinel=False)
        codes, pairs = pd.factorize(codes * len(values) + found)
        distinct = len(pairs)
    return codes


def row_codes(*tables: Table) -> list[Int[np.ndarray, " rows"]]:
    """A number for each distinct row of the tables, the same in all of them."""
    both = [np.concatenate([getattr(t, name) for t in tables]) for name in ("numbers", "codes")]
    return np.split(_codes(*both), np.cumsum([len(t.ids) for t in tables])[:-1])


def _firsts(codes: np.ndarray) -> np.ndarray:
    """The first row of each code."""
    return np.unique(codes, return_index=True)[1]


def as_labels(values: Any, rows: pd.DataFrame, name: str) -> pd.Series:
    """Without an index; what is missing or infinite is missing."""
    if np.ndim(values) != 1 or len(values) != len(rows):
        raise InputError(
            f"`{name}` must be a vector with one label per row, got shape {np.shape(values)} for "
            f"{len(rows)} rows."
        )
    check_aligned(rows, values, name)
    labels = pd.Series(settled(as_vector(values))).infer_objects()
    labels = labels.where(labels.notna(), np.nan)
    if pd.api.types.infer_dtype(labels, skipna=True) == "boolean":
        return labels
    if is_number(labels) and not pd.api.types.is_integer_dtype(labels):
        numbers = labels.to_numpy(dtype=np.float64, na_value=np.nan)
        return pd.Series(np.where(np.isfinite(numbers), numbers, np.nan))
    return labels


# --- rows that two tables share


def shared_rows(tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each pair of tables, how many rows of the second are in the first, and some of their ids.

    Without those that are as common as chance makes them.
    """
    found = {}
    for one, other in itertools.combinations(tables, 2):
        pairs = find_shared_rows(tables[other], tables[one])
        pairs = pairs[pairs["kind"] != "common"]
        exact = int(np.sum(np.asarray(pairs["kind"]) == "exact"))
        found[f"{one}/{other}"] = {
            "exact": exact,
            "near": len(pairs) - exact,
            "ids": [str(i) for i in pairs.iloc[:20, 0]],
        }
    return found


def find_shared_rows(rows: Any, among: Any, *, near: bool = True) -> pd.DataFrame:
    """The rows of one table that occur in another, exactly or nearly.

    Exactly: all values equal, whatever the order of the columns; -0.0 = 0.0, NaN = NaN. Where columns
    are few and coarse many rows are equal, and no copies: an equal row is called common where its
    values stand in 5 or more further rows of both tables, and values that are so frequent are more
    likely than not in the second table by chance:

        1 - (1 - others / (rows of both - 2))^(rows of the second) > 1/2

    Nearly: the text columns and the gaps are equal, and the numeric ones closer than chance
    explains. Distances are Euclidean between

        z = arcsinh((x - median) / IQR)     (the standard deviation where the IQR is 0)

    With d1 <= d2 the distances of a row to its two nearest others, P(d1 < c d2) = c^D where the
    data have D dimensions and the density is level [facco2017][]. So D is
    log 2 / median log(d2 / d1), estimated from 1000 of the rows `among`; and a row is suspected
    when its distance is below

        c median(d1),     c = min(0.01, (0.01 / rows)^(1/D))

    and reported when it is also below c' times the distance to its 10th nearest, with
    c' = min(0.01, (0.001 / rows)^(1/D')), and D' the dimension around it [levina2004][]: in
    dense regions too, fewer than 0.01 rows are expected by chance; only where nearly all values of a
    row are zero are there a few more. Copies that were changed by more, a picture compressed anew,
    say, are not found; nor is anything in tables with one or two numeric columns, unless it is much
    nearer.

    Cost: suspects come from a k-d tree over 8 random orthogonal projections, which lengthen no
    distance, so that none is missed; seconds for 100 000 x 100. At most 2000 suspects are looked
    at.

    Source: Facco, d'Errico, Rodriguez and Laio (2017), "Estimating the intrinsic dimension of
    datasets by a minimal neighborhood information", and Levina and Bickel (2004), "Maximum
    likelihood estimation of intrinsic dimension", for the dimension; the thresholds are ours.

    Args:
        rows, among: data frames (ids are their index), or matrices (ids are row numbers).
        near: whether to look for near duplicates too.

    Returns:
        One line per row that occurs, in order: `id`, `other_id` (of the first equal, or the nearest
        row), `kind` ("exact", "common" or "near"), `distance`. `attrs["note"]` says how near ones were
        searched.

    Raises:
        InputError: the tables' columns are not the same.

    >>> import numpy as np
    >>> find_shared_rows(np.array([[1.0, 2], [3, 4]]), np.array([[5.0, 6], [3, 4]]))
       id  other_id   kind  distance
    0   1         1  exact       0.0
    """
    one, other = encode(as_frame(rows), as_frame(among))
    codes, others = row_codes(one, other)
    found = match_rows(one, other, codes, others, near=near)
    columns = {"id": one.ids[found["row"]], "other_id": other.ids[found["other"]]}
    table = pd.DataFrame(columns | {c: found[c] for c in ("kind", "distance")}).infer_objects()
    table.attrs = found.attrs
    return table


def match_rows(
    rows: Table, among: Table, codes: np.ndarray, others: np.ndarray, *, near: bool = True
) -> pd.DataFrame:
    """`find_shared_rows` by position: row, other, distance, kind."""
    unique = _firsts(others)
    place = np.minimum(np.searchsorted(others[unique], codes), len(unique) - 1)
    same = others[unique][place] == codes if len(unique) else np.zeros(len(codes), bool)
    exact, rest = np.flatnonzero(same), np.flatnonzero(~same)
    table = pairs_of(exact, unique[place[exact]], np.zeros(len(exact)))
    table["kind"] = np.where(_common(codes, others)[exact], "common", "exact")
    note = "near duplicates were not searched"
    if near:
        unique = np.sort(unique)
        found, note = find_near(rows.take(rest), among.take(unique))
        found = pairs_of(rest[found["row"]], unique[found["other"]], found["distance"])
        table = pd.concat([table, found.assign(kind="near")]).sort_values("row", ignore_index=True)
    table.attrs["note"] = note
    return table


def _common(
    codes: Int[np.ndarray, " rows"], others: Int[np.ndarray, " others"]
) -> Bool[np.ndarray, " rows"]:
    """Whether chance explains that a row of the first table is equal to one of the second."""
    both = np.concatenate([codes, others])
    count = np.bincount(both)[codes] - 2  # the row, and the one that it was found in
    by_chance = 1 - (1 - count.clip(0) / max(len(both) - 2, 1)) ** len(others)
    return (count >= COMMON) & (by_chance > 0.5)


def pairs_of(row: Any, other: Any, distance: Any) -> pd.DataFrame:
    """Positions of rows in two tables, and how far these are apart."""
    return pd.DataFrame(
        {"row": np.asarray(row, int), "other": np.asarray(other, int), "distance": distance}
    )


def scale(tables: Sequence[Table], rng: np.random.Generator) -> list[np.ndarray]:
    """`arcsinh((x - median) / spread)` with 0 for what is not finite; no constant columns."""
    numbers = [t.numbers for t in tables]
    drawn = np.sort(rng.permutation(sum(map(len, numbers)))[:10_000])
    ends = np.cumsum([len(x) for x in numbers])
    here = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    some = np.concatenate(
        [x[at - end + len(x)] for x, at, end in zip(numbers, here, ends, strict=True)]
    )
    keep, centre, spread = [], [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for j in range(some.shape[1]):
            for whole in (False, True):  # all rows where the sample is constant
                x = np.concatenate([x[:, j] for x in numbers]) if whole else some[:, j]
                x = x[np.isfinite(x)]
                low, middle, high = np.percentile(x, [25, 50, 75]) if len(x) else (0.0, 0.0, 0.0)
                width = high - low or (np.std(x) if len(x) else 0.0)
                if width > 0:
                    break
            if 0 < width < np.inf:
                keep.append(j)
                centre.append(middle)
                spread.append(width)
        scaled = [x[:, keep] for x in numbers]
        for z in scaled:  # in place: these are the largest arrays
            z -= centre
            z /= spread
            np.arcsinh(z, out=z)
            z[~np.isfinite(z)] = 0.0
    return scaled


def _gaps(columns: Sequence[np.ndarray]) -> Int[np.ndarray, " rows"]:
    """0 for a finite number, 2 for a gap, 1 and -1 for the infinite ones."""
    x = np.concatenate(columns)
    kinds = np.zeros(len(x), np.int8)
    kinds[np.isnan(x)], kinds[x == np.inf], kinds[x == -np.inf] = 2, 1, -1
    return kinds


def find_near(rows: Table, among: Table, *, within: bool = False) -> tuple[pd.DataFrame, str]:
    """(pairs, how they were searched), for two tables without equal rows in or between them.

    `within`: both are one table, and no row is near itself.
    """
    rng = np.random.default_rng(0)
    a, b = scale([rows, among], rng)
    unique = _firsts(_codes(b))  # text does not count here
    if len(a) == 0 or b.shape[1] == 0 or len(unique) <= NEIGHBOURS + 1:
        return pairs_of([], [], []), "near duplicates were not searched: too few different numbers"

    search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(b[unique])
    sample = b[rng.permutation(unique)[:SAMPLE]]
    nearest = np.maximum(np.asarray(search.kneighbors(sample, n_neighbors=3)[0]), 1e-300)
    first, second = nearest[:, 1], nearest[:, 2]
    usual = float(np.median(first))
    dimension = np.log(2) / max(np.median(np.log(second / first)), np.log(2) / b.shape[1])
    near = usual * min(0.01, (CHANCE / len(a)) ** (1 / dimension))

    # Rows whose text or gaps differ are kept apart by one more coordinate.
    gaps = [_gaps(x) for x in zip(rows.numbers.T, among.numbers.T, strict=True)]
    kinds = np.stack([x for x in gaps if x.any()] or [np.zeros(len(a) + len(b), np.int8)], axis=1)
    key_a, key_b = np.split(_codes(kinds, np.concatenate([rows.codes, among.codes])), [len(a)])
    directions = np.linalg.qr(rng.normal(size=(b.shape[1], min(8, b.shape[1]))))[0]
    tree = KDTree(np.column_stack([b @ directions, 3 * near * key_b]))
    points = np.column_stack([a @ directions, 3 * near * key_a])
    slack = near * (1 + 1e-6) + 1e-12
    others = np.asarray(tree.query(points, k=NEIGHBOURS, distance_upper_bound=slack)[1])
    row, k = np.nonzero(others < len(b))
    other = others[row, k]
    row, other = (x[row != other] if within else x for x in (row, other))
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
        around = np.maximum(np.asarray(search.kneighbors(a[row])[0])[:, 1 + within :], 1e-300)
        ratios = np.log(around[:, -1:] / around[:, :-1]).mean(axis=1)
        power = np.maximum(ratios, 1 / b.shape[1])  # 1 / dimension
        c = np.minimum(0.01, (CHANCE / NEIGHBOURS / len(a)) ** power)
        close = distance < c * around[:, -1]
        row, other, distance = row[close], other[close], distance[close]
    return pairs_of(row, other, distance), note


# --- one table


def find_duplicates(rows: Any) -> pd.DataFrame:
    """The rows that occur more than once in a table, whatever their labels.

    Returns:
        One line per row that has an equal one: `group` (0, 1, ...; equal rows share it) and `id`,
        group by group, in the order of the table.

    >>> import numpy as np
    >>> find_duplicates(np.array([[1.0, 2], [3, 4], [1, 2]]))
       group  id
    0      0   0
    1      0   2
    """
    (table,) = encode(as_frame(rows))
    return group_equal(table.ids, *row_codes(table))


def group_equal(ids: np.ndarray, codes: np.ndarray) -> pd.DataFrame:
    """`find_duplicates` of rows with these ids and `row_codes`."""
    again = np.flatnonzero(pd.Series(codes).duplicated(keep=False))
    group = pd.factorize(codes[again])[0]
    order = np.argsort(group, kind="stable")
    return pd.DataFrame({"group": group[order], "id": ids[again[order]]}).infer_objects()


def find_conflicting_labels(rows: Any, labels: Any, *, task: str = "auto") -> pd.DataFrame:
    """Rows with equal features and different labels, or targets: one at least must be wrong.

    Args:
        rows: a data frame or a matrix.
        labels: one per row; missing ones are left out.
        task: "classification", "regression", or "auto", which looks at the labels.

    Returns:
        One line per group of equal rows: `ids` and their `labels`, two tuples of the same length; for
        regression also `spread`, the largest target less the smallest, and the widest come first.

    >>> import numpy as np
    >>> find_conflicting_labels(np.array([[1.0, 2], [3, 4], [1, 2]]), ["a", "b", "c"])
          ids  labels
    0  (0, 2)  (a, c)
    """
    frame = as_frame(rows)
    (table,) = encode(frame)
    (codes,) = row_codes(table)
    given = as_labels(labels, frame, "labels")
    return group_conflicts(table.ids, codes, given, is_regression(task, given.dropna()))


def group_conflicts(
    ids: np.ndarray, codes: np.ndarray, labels: pd.Series, regression: bool
) -> pd.DataFrame:
    """`find_conflicting_labels` of rows with these ids and `row_codes`."""
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
