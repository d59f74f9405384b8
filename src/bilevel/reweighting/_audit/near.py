"""Rows that are nearly equal in ways that no distance between numbers shows."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, UInt64
from sklearn.feature_extraction.text import HashingVectorizer

from .._inputs.row_facts import mix
from .duplicates import Table, find_near, pairs_of

FEWEST_COLUMNS = 5  # of a row: with fewer, rows that agree in all but one are no wonder
CELLS = 5_000_000  # that are compared one column after the other
PAIRS = 100_000  # of rows that are listed to see what chance makes
UNUSUAL = 3.1  # standard deviations above what chance makes: p < 0.001
LONG = 25  # characters of a text that is more than a name
TEXTS = 20_000  # rows whose texts are compared
BLOCK = 500  # rows whose texts are compared at a time
OVERLAP = 0.6  # of the rare parts of two texts


def near_within(table: Table, codes: Int[np.ndarray, " rows"]) -> pd.DataFrame:
    """`match_rows` of a table and itself: of each row the nearest other one, if it is near.

    Equal rows are taken once.
    """
    first = np.sort(np.unique(codes, return_index=True)[1])
    some = table.take(first)
    found, note = find_near(some, some, within=True)
    table_of = pairs_of(first[found["row"]], first[found["other"]], found["distance"])
    table_of = table_of[table_of["row"] > table_of["other"]].assign(kind="near")
    table_of.attrs["note"] = note
    return table_of


def altered_rows(
    one: Table, other: Table | None, frame: pd.DataFrame, other_frame: pd.DataFrame | None
) -> pd.DataFrame:
    """The rows of one table that are rows of another with one cell, or a part of a text, changed.

    Without another table, of one table, with rows that stand before.
    """
    found = [*_one_cell(one, other)]
    for name in one.text_names:
        texts = _long_texts(pd.Series(frame[name]))
        others = texts if other_frame is None else _long_texts(pd.Series(other_frame[name]))
        if texts is not None and others is not None:
            pairs = near_texts(texts, None if other is None else others)
            found.append(pairs_of(*pairs, np.nan).assign(kind="text"))
    table = pd.concat(found, ignore_index=True) if found else pairs_of([], [], []).assign(kind="")
    table = table.drop_duplicates("row")
    table.attrs["by_chance"] = max((t.attrs.get("by_chance", 0.0) for t in found), default=0.0)
    return table


def _one_cell(one: Table, other: Table | None) -> list[pd.DataFrame]:
    """Pairs of rows that agree in all columns but one, unless chance makes such pairs.

    Chance makes more pairs that differ in two columns than in one, and copies with one cell changed
    do not: so pairs count where fewer rows differ from one of the other table in two columns. Of two
    tables they also count where there are more of them than chance deals out, see `_more_than_chance`;
    `attrs["by_chance"]` says how many it explains.
    """
    hashes = _cell_hashes(one, other)
    d = hashes[0].shape[1]
    if d < FEWEST_COLUMNS:
        return []
    rng = np.random.default_rng(0)
    rows = np.arange(len(one.ids))
    if len(rows) * d > CELLS:
        rows = np.sort(rng.permutation(rows)[: CELLS // d])
    a, b = hashes[0][rows], hashes[-1]
    total_a, total_b = a.sum(axis=1), b.sum(axis=1)
    within = other is None
    found: dict[int, int] = {}
    for j in range(d):
        for i, k in _meet(total_a - a[:, j], total_b - b[:, j], within):
            if a[i, j] != b[k, j]:
                found.setdefault(int(rows[i]), k)
    if not found:
        return []
    two = list({tuple(sorted(rng.choice(d, 2, replace=False).tolist())) for _ in range(40)})
    further: set[int] = set()
    for j, k in two:
        pairs = _meet(total_a - a[:, j] - a[:, k], total_b - b[:, j] - b[:, k], within)
        further |= {i for i, m in pairs if a[i, j] != b[m, j] and a[i, k] != b[m, k]}
    if len(further) * (d * (d - 1) / 2) / len(two) > len(found):
        return [] if within else _more_than_chance(hashes)
    row = np.array(sorted(found))
    return [pairs_of(row, [found[i] for i in row.tolist()], np.nan).assign(kind="cell")]


def _more_than_chance(hashes: list[np.ndarray]) -> list[pd.DataFrame]:
    """The pairs of rows of two tables that differ in one column, if there are more than chance makes.

    All rows of both are dealt anew at random, 100 times, into two tables of these sizes. If the tables
    were dealt from one population, the number of rows of the first with a pair in the second is one
    of the numbers that this gives; it counts as more if it is 3.1 standard deviations above their
    mean. Nothing is said where the pairs are too many to be listed.
    """
    both, n = np.concatenate(hashes), len(hashes[0])
    if both.size > CELLS:
        return []
    total, pairs = both.sum(axis=1), []
    for j in range(both.shape[1]):
        key = total - both[:, j]
        order = np.argsort(key, kind="stable")
        key = key[order]
        for step in range(1, len(key)):
            at = np.flatnonzero(key[step:] == key[:-step])
            if not len(at):
                break
            i, k = order[at], order[at + step]
            pairs.append(np.stack([i, k])[:, both[i, j] != both[k, j]])
            if sum(p.shape[1] for p in pairs) > PAIRS or step > PAIRS // len(key) + 100:
                return []
    if not pairs:
        return []
    one, other = np.sort(np.concatenate(pairs, axis=1), axis=0)

    def with_pair(first: Bool[np.ndarray, " rows"]) -> np.ndarray:
        across = first[one] != first[other]
        return np.unique(np.where(first[one], one, other)[across])

    rng, found = np.random.default_rng(0), with_pair(np.arange(len(both)) < n)
    counts = [len(with_pair(rng.permutation(len(both)) < n)) for _ in range(100)]
    if len(found) < np.mean(counts) + UNUSUAL * max(float(np.std(counts)), 1.0):
        return []
    across = (one < n) & (other >= n)
    place = {i: k - n for i, k in zip(one[across].tolist(), other[across].tolist(), strict=True)}
    table = pairs_of(found, [place[i] for i in found.tolist()], np.nan).assign(kind="cell")
    table.attrs["by_chance"] = float(np.mean(counts))
    return [table]


def _meet(a: np.ndarray, b: np.ndarray, within: bool) -> list[tuple[int, int]]:
    """(i, k) with a[i] == b[k], for each i the first such k; within one table, k before i."""
    order = np.argsort(b, kind="stable")
    place = np.searchsorted(b[order], a)
    place = np.minimum(place, len(b) - 1)
    k = order[place]
    same = (b[k] == a) & (k < np.arange(len(a)) if within else np.True_)
    i = np.flatnonzero(same)
    return list(zip(i.tolist(), k[i].tolist(), strict=True))


def _cell_hashes(one: Table, other: Table | None) -> list[UInt64[np.ndarray, "rows columns"]]:
    tables = [one] if other is None else [one, other]
    hashed = []
    for table in tables:
        columns = [*(table.numbers + 0.0).T, *table.codes.astype(np.float64).T]
        parts = [
            mix(np.ascontiguousarray(column).view(np.uint64), j + 1)
            for j, column in enumerate(columns)
        ]
        hashed.append(
            np.stack(parts, axis=1) if parts else np.empty((len(table.ids), 0), np.uint64)
        )
    return hashed


def _long_texts(column: pd.Series) -> np.ndarray | None:
    """Texts that are more than names, and mostly distinct; None for any other column."""
    if pd.api.types.infer_dtype(column, skipna=True) == "bytes":
        return None
    texts = column.astype(object).where(column.notna(), "").astype(str).to_numpy(dtype=object)
    if len(texts) == 0 or np.median([len(x) for x in texts[:1000]]) < LONG:
        return None
    return texts if len(set(texts.tolist())) >= 0.5 * len(texts) else None


def near_texts(texts: np.ndarray, others: np.ndarray | None) -> tuple[Any, Any]:
    """(positions, positions in `others`) of texts that share most of their rare parts.

    The parts are runs of five characters within words, in lower case; those that are in more than
    20 texts, or in one per cent, do not count. Two texts are near if the rare parts that both have are
    at least 0.6 of those that either has, and five or more. Equal texts count as near, but where a
    table is compared with itself.
    """
    within = others is None
    kind: Any = HashingVectorizer  # its stubs do not know `norm=None`
    read = kind(
        analyzer="char_wb", ngram_range=(5, 5), n_features=2**20, binary=True, norm=None,
        alternate_sign=False,
    )  # fmt: skip
    a: Any = read.transform(texts[:TEXTS])
    b: Any = a if others is None else read.transform(others[:TEXTS])
    count = np.asarray(a.sum(axis=0)).ravel()
    count += 0 if within else np.asarray(b.sum(axis=0)).ravel()
    rare = (count > 0) & (count <= max(20, 0.01 * (a.shape[0] + (0 if within else b.shape[0]))))
    a, b = a[:, np.flatnonzero(rare)], b[:, np.flatnonzero(rare)]
    size_a, size_b = (np.asarray(x.sum(axis=1)).ravel() for x in (a, b))
    found: list[np.ndarray] = []
    for start in range(0, a.shape[0], BLOCK):  # the product of all at once may need much memory
        shared = (a[start : start + BLOCK] @ b.T).tocoo()
        i, k, both = shared.row + start, shared.col, shared.data
        near = (both >= 5) & (both >= OVERLAP * (size_a[i] + size_b[k] - both))
        if within:
            near &= k < i
            near[near] = texts[i[near]] != texts[k[near]]
        found.append(np.stack([i[near], k[near]]))
    i, k = np.concatenate(found, axis=1) if found else np.empty((2, 0), int)
    order = np.lexsort((k, i))
    first = order[np.unique(i[order], return_index=True)[1]]
    return i[first], k[first]
