"""Tables on disk: reading them, checking them, and a pipeline that makes numbers of any column."""

import difflib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder

from ._data import InputError, named

_READERS = {
    ".csv": partial(pd.read_csv, low_memory=False),
    ".parquet": pd.read_parquet,
    ".pq": pd.read_parquet,
}


def read_table(path: Path, name: str) -> pd.DataFrame:
    """A CSV or Parquet file as a data frame.

    Raises:
        InputError: no such file, an unknown ending, a file that cannot be parsed, or no rows.
    """
    if not path.is_file():
        raise InputError(f"the {name} file {path} does not exist; check the path.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"the {name} file {path} ends in {path.suffix or 'nothing'!r}; the formats read are "
            f"{', '.join(_READERS)}. Convert it, or rename it if it is one of these."
        )
    if path.stat().st_size == 0:
        raise InputError(f"the {name} file {path} is empty (0 bytes).")
    try:
        table = reader(path)
    except Exception as error:  # parsers raise many kinds; each means the same to the user
        raise InputError(
            f"the {name} file {path} cannot be read as {path.suffix[1:]}: {error}"
        ) from error
    if len(table) == 0:
        raise InputError(f"the {name} file {path} has a header and zero rows.")
    repeated = table.columns[table.columns.duplicated()].unique()
    if len(repeated):
        raise InputError(f"the {name} file {path} has repeated column names: {named(repeated)}.")
    table.columns = table.columns.astype(str)
    return table


def split_label(
    table: pd.DataFrame, label: str, identifier: str | None, name: str
) -> tuple[pd.DataFrame, pd.Series]:
    """(features with the row ids as index, labels).

    Raises:
        InputError: the label or id column is unknown, ids repeat, or nothing else is left.
    """
    for column, option in [(label, "--label"), (identifier, "--id")]:
        if column is not None and column not in table.columns:
            close = difflib.get_close_matches(column, table.columns, n=1)
            hint = f"did you mean {close[0]!r}? Its" if close else "its"
            raise InputError(
                f"the {name} file has no column {column!r} ({option}); {hint} columns are "
                f"{named(list(table.columns), 20)}."
            )
    if identifier is not None:
        repeated = pd.unique(table.loc[table[identifier].duplicated(), identifier])
        if len(repeated):
            raise InputError(f"the {name} file's ids in {identifier!r} repeat: {named(repeated)}.")
        table = table.set_index(identifier)
    features = table.drop(columns=label)
    if features.shape[1] == 0:
        raise InputError(f"the {name} file has no column besides the label {label!r}.")
    return features, pd.Series(table[label])


def check_values(features: pd.DataFrame, name: str) -> None:
    """Refuse columns that the pipeline cannot make numbers of.

    Raises:
        InputError: infinite numbers (with columns and row ids), or columns of dates or objects that
            are neither text nor categories.
    """
    numbers = features.select_dtypes("number")
    infinite = np.asarray(np.isinf(numbers.to_numpy(dtype=np.float64, na_value=np.nan)))
    if infinite.any():
        raise InputError(
            f"the {name} rows have infinite values in the columns "
            f"{named(np.asarray(numbers.columns)[infinite.any(axis=0)].tolist())}, rows with ids "
            f"{named(np.asarray(features.index)[infinite.any(axis=1)])}. Replace them; a missing "
            "value may be left empty."
        )
    bad = [c for c in features.columns if _kind(pd.Series(features[c])) is None]
    if bad:
        raise InputError(
            f"the {name} columns {named(bad)} are neither numbers, booleans nor text: convert them "
            "(a date to a number of days, a list to several columns) or leave them out with --drop."
        )
    identifiers = [
        c
        for c in features.columns
        if name == "train"
        and len(features) > 50
        and _kind(pd.Series(features[c])) == "category"
        and pd.Series(features[c]).nunique() == len(features)
    ]
    if identifiers:
        raise InputError(
            f"the {name} columns {named(identifiers)} have another text in every row, from which "
            "nothing can be learned: name the rows' ids with --id, or leave a column out with --drop."
        )


def _kind(column: pd.Series) -> str | None:
    if pd.api.types.is_numeric_dtype(column):  # booleans too
        return "number"
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column):
        return "category"
    if column.dtype == object:
        present = column.dropna()
        if len(present) and present.map(lambda x: isinstance(x, bool)).all():
            return "number"  # booleans with gaps
        if present.map(lambda x: isinstance(x, (str, bool))).all():
            return "category"
    return None


def tidy(features: pd.DataFrame, like: pd.DataFrame | None = None) -> pd.DataFrame:
    """The columns as the pipeline wants them: float64 (booleans are 0 and 1), or text with gaps.

    With `like`, a column is read as it is there, so that an all-integer hold-out column fits a
    training column of text.

    Raises:
        InputError: text in a column that holds numbers in `like`.
    """
    like = features if like is None else like
    columns = {}
    for name in features.columns:
        column = pd.Series(features[name])
        if _kind(pd.Series(like[name])) == "number":
            numbers = pd.Series(pd.to_numeric(column, errors="coerce")).astype("float64")
            unread = np.asarray(numbers.isna() & column.notna())
            if unread.any():
                raise InputError(
                    f"the column {name!r} holds numbers in the training rows, and something else "
                    f"in the rows with ids {named(np.asarray(features.index)[unread])}: "
                    f"{named(list(column[unread]))}. Mend or empty these values."
                )
            columns[name] = numbers
        else:
            text = [_as_text(x) for x in column.astype(object).where(column.notna(), np.nan)]
            columns[name] = pd.Series(text, features.index, dtype=object)
    return pd.DataFrame(columns, index=features.index)


def _as_text(value: Any) -> Any:
    # A gap makes pandas read the codes 1, 2 as 1.0, 2.0: they are still the texts "1", "2".
    if isinstance(value, float):
        return value if np.isnan(value) else str(int(value) if value.is_integer() else value)
    return str(value)


def table_pipeline(features: pd.DataFrame) -> Pipeline:
    """A transformer for the columns of `features` (after `tidy`), not yet fitted.

    Numbers: the median for missing values with a flag beside it, then scaled to [0, 1]. Text
    and categories: one column a value (the 50 most frequent), missing values among them;
    a value never seen in fitting counts as infrequent.
    """
    numbers = [c for c in features.columns if features[c].dtype == np.float64]
    others = [c for c in features.columns if c not in numbers]
    parts: list[tuple[str, Any, list[str]]] = []
    if numbers:
        parts.append(
            (
                "numbers",
                make_pipeline(
                    SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
                    MinMaxScaler(),
                ),
                numbers,
            )
        )
    if others:
        encoder = OneHotEncoder(
            max_categories=50, handle_unknown="infrequent_if_exist", sparse_output=False
        )
        parts.append(("categories", encoder, others))
    return Pipeline([("columns", ColumnTransformer(parts))])
