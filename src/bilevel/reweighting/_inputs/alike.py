"""Tables whose columns have the types of those of the first one."""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def alike(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Data frames with the same columns, of the first one's types, where that loses nothing.

    A pipeline may pick columns by their types, and of categories that differ between two tables,
    or of truth values beside 0 and 1, pandas makes objects, which are picked no more. Categories
    are those of the first table, then those of the others. What is no data frame stays.

    >>> one, other = (pd.DataFrame({"c": pd.Categorical(list(x))}) for x in ("ab", "bz"))
    >>> [table["c"].cat.categories.tolist() for table in alike({"a": one, "b": other}).values()]
    [['a', 'b', 'z'], ['a', 'b', 'z']]
    """
    first = next(iter(tables.values()))
    frames = {name: table for name, table in tables.items() if isinstance(table, pd.DataFrame)}
    if not isinstance(first, pd.DataFrame):
        return dict(tables)
    for i, kind in enumerate(first.dtypes):
        columns = {name: pd.Series(table.iloc[:, i]) for name, table in frames.items()}
        if all(column.dtype == kind for column in columns.values()):
            continue
        for name, column in _of_type(columns, kind).items():
            frames[name] = frames[name].copy(deep=False)
            frames[name].isetitem(i, column)
    return dict(tables) | frames


def _of_type(columns: Mapping[str, pd.Series], kind: Any) -> dict[str, pd.Series]:
    """Those of the columns that have another type, as this one; the first column has it already."""
    if isinstance(kind, pd.CategoricalDtype):
        known = list(kind.categories)
        for column in columns.values():
            known += [x for x in column.dropna().unique() if x not in known]
        union = pd.CategoricalDtype(known, kind.ordered)
        return {name: column.astype(union) for name, column in columns.items()}
    changed = {}
    for name, column in columns.items():
        if column.dtype == kind:
            continue
        try:
            cast = column.astype(kind)
        except (TypeError, ValueError):
            continue
        if cast.astype(object).equals(column.astype(object)):
            changed[name] = cast
    return changed
