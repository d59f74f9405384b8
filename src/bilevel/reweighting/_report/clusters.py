"""Where the suspect rows are: a shallow tree over all columns, in words, with a test."""

import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.tree import DecisionTreeClassifier

from .._audit.duplicates import is_number

ROWS, SHUFFLES, DEPTH = 2000, 39, 3
MOST = 100  # numbers and categories that the tree may ask about
LEVELS = 50  # of a column of texts that are categories
LEAST = 1.5  # lift
UNLIKELY = 0.05  # p-value
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2}.*)?")


class Test(NamedTuple):
    """A column as the tree sees it, and the words for its two sides.

    Attributes:
        column: the name.
        values: numbers; for a category 1 where the row has it.
        category: its value, or None.
        kind: "number", "category", "month" or "length".
    """

    column: str
    values: Float[np.ndarray, " rows"]
    category: str | None = None
    kind: str = "number"


def find_clusters(
    table: pd.DataFrame, suspect: Bool[np.ndarray, " rows"], seed: int
) -> dict[str, Any] | None:
    """Parts of the rows that hold more of the suspects than chance gives, described by columns.

    A decision tree of depth 3 is fitted to the marks of suspect rows. Of each leaf with q of Q
    suspects and r of R rows, `lift = (q / Q) / (r / R)`, and

        z = (q - r Q / R) / sqrt(r Q / R (1 - Q / R))

    The p-value is the share of 39 shuffles of the marks whose tree, fitted anew, has a leaf of a
    larger z: so the search over columns and splits is accounted for. Leaves with a lift of 1.5 or
    more and p <= 0.05 are named. Columns: numbers; categories of at most 50 values; dates by month;
    texts by their length; of more than 100 numbers and categories the categories with the most rows.
    The tree sees at most 2000 rows, drawn at random; all are counted.

    Returns:
        `clusters`: `words`, `rows`, `suspects`, `share_of_rows`, `share_of_suspects`, `lift`, `p`,
        the largest z first; `tested`: how many columns. None if there are fewer than 10 suspect
        rows, or fewer than 10 others.
    """
    tests = [test for name in table.columns for test in _tests(table[name])]
    tests = _most_telling(tests)
    if min(suspect.sum(), (~suspect).sum()) < 10 or not tests:
        return None
    x = np.column_stack([test.values for test in tests]).astype(np.float32)
    x = np.clip(np.where(np.isnan(x), np.nan, x), -1e30, 1e30)
    rng = np.random.default_rng(seed)
    some = rng.permutation(len(x))[:ROWS]
    leaf = max(5, len(some) // 200)
    kind = DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=leaf, random_state=0)

    def fit(marks: np.ndarray) -> tuple[Any, Float[np.ndarray, " leaves"], np.ndarray]:
        tree = kind.fit(x[some], marks)
        ids, at = np.unique(tree.apply(x[some]), return_inverse=True)
        rows, inside = np.bincount(at), np.bincount(at, weights=marks)
        return tree.tree_, _score(inside, rows, float(marks.mean())), ids

    tree, z, ids = fit(suspect[some])
    paths = _paths(tree, x)
    by_chance = np.array([fit(rng.permutation(suspect[some]))[1].max() for _ in range(SHUFFLES)])
    share, found = float(suspect.mean()), {}
    for k in np.argsort(-z):
        sides = _simplest(paths[int(ids[k])], suspect)
        inside = _all_of(sides, len(x))
        q, r = int(suspect[inside].sum()), int(inside.sum())
        p = float((1 + (by_chance >= z[k]).sum()) / (1 + SHUFFLES))
        words = " and ".join(_in_words(sides, tests))
        if sides and q / r >= LEAST * share and p <= UNLIKELY:
            found.setdefault(
                words,
                {
                    "words": words,
                    "rows": r,
                    "suspects": q,
                    "share_of_rows": r / len(x),
                    "share_of_suspects": q / int(suspect.sum()),
                    "lift": q / r / share,
                    "p": p,
                },
            )
    return {"clusters": list(found.values()), "tested": table.shape[1], "shuffles": SHUFFLES}


def _score(suspects: Any, rows: Any, share: float) -> Any:
    """By how many standard deviations there are more suspects among some rows than by chance."""
    return (suspects - rows * share) / np.sqrt(np.maximum(rows * share * (1 - share), 1e-12))


class Side(NamedTuple):
    """A condition of the tree: on one side of a cut; `holds` says for which rows."""

    feature: int
    cut: float
    above: bool
    holds: Bool[np.ndarray, " rows"]


def _all_of(sides: list[Side], rows: int) -> Bool[np.ndarray, " rows"]:
    return np.all([side.holds for side in sides], axis=0) if sides else np.ones(rows, bool)


def _simplest(sides: list[Side], suspect: Bool[np.ndarray, " rows"]) -> list[Side]:
    """Without the conditions that can go without a smaller z, the later ones first."""

    def score(sides: list[Side]) -> float:
        inside = _all_of(sides, len(suspect))
        return float(_score(suspect[inside].sum(), inside.sum(), float(suspect.mean())))

    for side in reversed(sides):
        rest = [other for other in sides if other is not side]
        if rest and score(rest) >= score(sides):
            sides = rest
    return sides


def _most_telling(tests: list[Test]) -> list[Test]:
    """At most `MOST`: all that are no categories first, then the categories with the most rows."""
    if len(tests) <= MOST:
        return tests
    rows = [-np.inf if t.category is None else -float(t.values.sum()) for t in tests]
    kept = np.sort(np.argsort(rows, kind="stable")[:MOST])
    return [tests[k] for k in kept.tolist()]


def _tests(column: Any) -> list[Test]:
    """How the tree may ask about a column."""
    name = str(column.name)
    if pd.api.types.is_datetime64_any_dtype(column):
        return [_months(name, column)]
    if pd.api.types.is_bool_dtype(column) or not is_number(column):
        texts = column.astype(object).where(column.notna(), None)
        text = texts.map(lambda v: None if v is None else str(v))
        levels = text.value_counts()
        if 2 <= len(levels) <= LEVELS:
            return [
                Test(name, (text == level).to_numpy(float), str(level), "category")
                for level in levels.index
            ]
        some = text.dropna().head(200)
        if len(some) and some.map(lambda v: _DATE.fullmatch(v) is not None).all():
            return [_months(name, pd.to_datetime(text, errors="coerce", format="mixed", utc=True))]
        if len(levels) > LEVELS:
            return [Test(name, text.str.len().to_numpy(float, na_value=np.nan), None, "length")]
        return []
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return [Test(name, np.where(np.isfinite(values), values, np.nan))]


def _months(name: str, column: Any) -> Test:
    """Months since the year 0."""
    column = pd.Series(column)
    months = 12.0 * column.dt.year + column.dt.month - 1
    return Test(name, months.to_numpy(float, na_value=np.nan), None, "month")


def _paths(tree: Any, x: Float[np.ndarray, "rows tests"]) -> dict[int, list[Side]]:
    """The conditions on the way to each leaf."""
    found: dict[int, list[Side]] = {}

    def walk(node: int, sides: list[Side]) -> None:
        if tree.children_left[node] < 0:
            found[node] = sides
            return
        feature, cut = int(tree.feature[node]), float(tree.threshold[node])
        gap = np.isnan(x[:, feature])
        left = np.where(gap, bool(tree.missing_go_to_left[node]), x[:, feature] <= cut)
        walk(int(tree.children_left[node]), [*sides, Side(feature, cut, False, left)])
        walk(int(tree.children_right[node]), [*sides, Side(feature, cut, True, ~left)])

    walk(0, [])
    return found


def _in_words(sides: list[Side], tests: list[Test]) -> list[str]:
    """One part of the sentence per column."""
    words = []
    for feature in dict.fromkeys(side.feature for side in sides):
        test = tests[feature]
        lows = [side.cut for side in sides if side.feature == feature and side.above]
        highs = [side.cut for side in sides if side.feature == feature and not side.above]
        if test.kind == "category":
            words.append(f"{test.column} {'=' if lows else 'is not'} {test.category}")
            continue
        what = {"length": "the length of ", "month": "the month of "}.get(test.kind, "")
        said = f"{what}{test.column}"
        monthly = test.kind == "month"
        if monthly and lows and highs and np.ceil(min(highs)) - np.ceil(max(lows)) == 1:
            words.append(f"{said} = {_as_month(max(lows))}")
            continue
        if lows:
            said += f" from {_as_month(max(lows)) if monthly else format(max(lows), '.4g')}"
        if highs:
            least = min(highs)
            said += f" before {_as_month(least)}" if monthly else f" up to {least:.4g}"
        words.append(said)
    return words


def _as_month(cut: float) -> str:
    month = int(np.ceil(cut))
    return f"{month // 12:04d}-{month % 12 + 1:02d}"
