"""Numbers of any column: checks, what a column is read as, and the pipeline that encodes it."""

import contextlib
import datetime
import decimal
import numbers
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder

from .checks import LARGEST, InputError, named
from .csv import as_texts
from .dates import dates_in, read_dates, without_zone
from .files import check_unique
from .number_texts import FATE, looks_like_numbers

# skrub and skops take a second to import each: they are imported where they are needed.

_MAX_CATEGORIES = 50  # a text column of more distinct values is encoded by its character n-grams
_TEXT_COMPONENTS = 30
_NGRAMS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (3, 4)}


def check_values(features: pd.DataFrame, name: str) -> None:
    """Refuse columns that the pipeline cannot make numbers of.

    Raises:
        InputError: repeated column names, infinite or far too large numbers (with columns and row
            ids), columns of objects, vectors of unequal length, or texts that are a different word in
            every row.
    """
    check_unique(features, f"the {name} table")
    kinds = {c: _kind(pd.Series(features[c])) for c in features.columns}
    bad = [c for c, kind in kinds.items() if kind is None]
    if bad:
        raise InputError(
            f"the {name} columns {named(bad)} are neither numbers, booleans, dates nor text: "
            "convert them (a duration to seconds, a record to several columns) or leave them out "
            "(--drop)."
        )
    numeric = features.select_dtypes("number")
    values = np.abs(numeric.to_numpy(dtype=np.float64, na_value=np.nan))
    if (large := np.isfinite(values) & (values > LARGEST)).any():
        raise InputError(
            f"the {name} columns {named(np.asarray(numeric.columns)[large.any(axis=0)].tolist())} "
            f"hold numbers beyond {LARGEST:g}, whose squares are not finite, in the rows with ids "
            f"{named(np.asarray(features.index)[large.any(axis=1)])}. Give them in another unit, or "
            "leave them empty if they stand for a missing value."
        )
    infinite = np.asarray(np.isinf(values))
    rows = infinite.any(axis=1)
    at_fault = np.asarray(numeric.columns)[infinite.any(axis=0)].tolist()
    for c in (c for c, kind in kinds.items() if kind == "vector"):
        infinite = np.asarray(np.isinf(as_matrix(pd.Series(features[c]), name))).any(axis=1)
        at_fault += [c] * bool(infinite.any())
        rows = rows | infinite
    if at_fault:
        raise InputError(
            f"the {name} rows have infinite values in the columns {named(at_fault)}, rows with ids "
            f"{named(np.asarray(features.index)[rows])}. Replace them; a missing value may be left "
            "empty."
        )
    identifiers = [
        c
        for c, kind in kinds.items()
        if name in ("train", "X") and len(features) > 50 and kind == "text"
        if pd.Series(features[c]).nunique() == len(features)
        if not any(len(str(text).split()) > 1 for text in features[c])
    ]
    shown = {c: looks_like_numbers(features[c]) for c in identifiers}
    if written := [c for c, texts in shown.items() if texts is not None]:
        raise InputError(
            f"the {name} columns {named(written)} hold numbers as texts, a different one in every "
            f"row, such as {shown[written[0]]}. Write the numbers alone, without units or other "
            "marks, and as numbers where the file has types; or leave the columns out (--drop)."
        )
    if identifiers:
        raise InputError(
            f"the {name} columns {named(identifiers)} have a different word in every row, from which "
            "nothing can be learned. If they are the rows' ids, name them with --id (a data frame: "
            "`X.set_index(...)`); else leave them out with --drop."
        )


def describe(frame: pd.DataFrame) -> list[str]:
    """A sentence per column of texts that look like numbers."""
    return [
        f"the column {str(name)!r} holds texts that look like numbers, such as {example}, and {FATE}"
        for name, example in number_texts(frame).items()
    ]


def number_texts(frame: pd.DataFrame) -> dict[Any, str]:
    """The columns of texts that look like numbers, each with one of its texts."""
    found = {}
    for name in frame.columns:
        column = pd.Series(frame[name])
        if pd.api.types.is_numeric_dtype(column) or column.dtype.kind in "mM":
            continue
        with contextlib.suppress(TypeError):  # of lists and maps
            example = looks_like_numbers(column)
            if example is not None and _kind(column) == "text":  # dates may look like numbers
                found[name] = example
    return found


def is_messy(features: pd.DataFrame) -> bool:
    """Whether some column is not numeric or has gaps, so that `vectorise` is needed."""
    return bool(features.isna().any(axis=None)) or any(
        not pd.api.types.is_numeric_dtype(dtype) for dtype in features.dtypes
    )


def _kind(column: pd.Series) -> str | None:
    """`"number"` (booleans too), `"date"`, `"text"`, `"vector"`, or nothing we can use."""
    if pd.api.types.is_numeric_dtype(column):
        return None if pd.api.types.is_complex_dtype(column) else "number"
    if pd.api.types.is_datetime64_any_dtype(column):
        return "date"
    present = pd.Series(column.dropna().astype(object))
    types = set(map(type, present))

    def all_are(*kinds: type) -> bool:
        return all(issubclass(t, kinds) for t in types)

    if all_are(str):
        return "date" if dates_in(present) else "text"
    if all_are(bool, np.bool_):  # with gaps, or as categories
        return "number"
    if all_are(bool, np.bool_, numbers.Real, decimal.Decimal):  # objects: with gaps, or decimals
        return "text" if isinstance(column.dtype, pd.CategoricalDtype) else "number"
    if all_are(datetime.date, np.datetime64):
        return "date"
    if all_are(str, bool, np.bool_, numbers.Real, decimal.Decimal):
        return "text"
    if all_are(list, tuple, np.ndarray):
        try:
            first = np.asarray(present.iloc[0])
        except ValueError:  # lists of lists of unequal length
            return None
        return "vector" if first.size and first.dtype.kind in "fiu" else None
    return None


def as_matrix(vectors: pd.Series, name: str) -> np.ndarray:
    """A column of vectors (or arrays of one shape, then flattened) as a matrix.

    Raises:
        InputError: not all of one length, or some missing or not of numbers; with the row ids.
    """

    def flat(value: Any) -> np.ndarray:
        try:
            array = np.ravel([] if value is None or np.isscalar(value) else value)
            return array if array.dtype.kind in "fiu" else array.astype(np.float64)
        except (TypeError, ValueError):
            return np.empty(0)

    rows = [flat(value) for value in vectors]
    lengths = np.array([len(row) for row in rows])
    usual = int(np.bincount(lengths[lengths > 0]).argmax())
    bad = lengths != usual
    if bad.any():
        found = [str(n or "none") for n in np.unique(lengths[bad])]
        raise InputError(
            f"the {name} column {vectors.name!r} holds vectors of {usual} numbers, but the rows "
            f"with ids {named(np.asarray(vectors.index)[bad])} have {', '.join(found)}. Mend or "
            "drop these rows."
        )
    return np.stack(rows)


def tidy(features: pd.DataFrame, like: "pd.DataFrame | Pipeline | None" = None) -> pd.DataFrame:
    """The columns as the pipeline wants them.

    Numbers are float64 (booleans are 0 and 1); text is text, with gaps; dates are datetime64
    without a zone (in UTC where there was one), or text that the pipeline parses; a vector of k
    numbers (an embedding) is k columns `name_0`, ..., `name_{k-1}`.

    With `like`, a table or a fitted pipeline, columns are read as they are there: an all-integer
    hold-out column fits a training column of text. Of a pipeline, its columns are taken, in order.

    Raises:
        InputError: a column or value that does not fit its column in `like`.
    """
    features = _expand(features)
    if isinstance(like, Pipeline):
        expected = read_by(like)
        features = in_order(features, expected)
    else:
        like = features if like is None else _expand(like)
        for c in like.columns.symmetric_difference(features.columns):
            raise InputError(
                f"the column {c!r} is in one table and not in the other; a vector must have as many "
                "numbers everywhere as in the training rows."
            )
        expected = {c: _expected(pd.Series(like[c])) for c in features.columns}
    columns = {c: _read_as(pd.Series(features[c]), expected[c]) for c in features.columns}
    return pd.DataFrame(columns, index=features.index)


def in_order(features: pd.DataFrame, names: Iterable[Any]) -> pd.DataFrame:
    """These columns of the table.

    Raises:
        InputError: it lacks some.
    """
    wanted = list(names)
    if list(features.columns) == wanted:
        return features
    if missing := [c for c in wanted if c not in features.columns]:
        raise InputError(
            f"the rows lack columns that the model was fitted on: {named(missing)}; their "
            f"columns are {named(list(features.columns), 20)}."
        )
    return features.loc[:, wanted]


def _expand(features: pd.DataFrame) -> pd.DataFrame:
    """Columns named by text; those that hold vectors are replaced by one column per number."""
    if isinstance(features.columns, pd.MultiIndex):  # as pivot_table makes: ("price", "mean")
        names = ["_".join(str(x) for x in c if str(x)) for c in features.columns]
        features = features.set_axis(names, axis=1)
    features = features.rename(columns=str)
    check_unique(features, "the table")
    parts = []
    for c in features.columns:
        column = pd.Series(features[c])
        if _kind(column) != "vector":
            parts.append(column)
            continue
        matrix = as_matrix(column, "table's")
        names = [f"{c}_{i}" for i in range(matrix.shape[1])]
        parts.append(pd.DataFrame(matrix, index=features.index, columns=names))
    if not any(isinstance(part, pd.DataFrame) for part in parts):
        return features
    expanded = pd.concat(parts, axis=1)
    check_unique(expanded, "the table, with a column for each of a vector's numbers,")
    return expanded


def _expected(column: pd.Series) -> Any:
    """How a column is read: `"number"`, `"text"`, or the `ToDatetime` that reads its dates."""
    kind = _kind(column)
    if kind != "date":
        return "number" if kind == "number" else "text"
    from skrub import ToDatetime

    return ToDatetime().fit(without_zone(column))


def _first_step(pipeline: Pipeline) -> Any:
    step: Any = pipeline
    while isinstance(step, Pipeline):
        step = step.steps[0][1]
    return step


def encoders_of(pipeline: Pipeline) -> dict[str, tuple[Any, list[str]]]:
    """What encodes each of the `column_groups` in a fitted pipeline of ours, and its columns."""
    parts = _first_step(pipeline).transformers_
    return {name: (transformer, list(columns)) for name, transformer, columns in parts}


def read_by(pipeline: Pipeline) -> dict[str, Any]:
    """The columns that a pipeline of ours was fitted on, and how it reads them."""
    how = {}
    for name, (transformer, columns) in encoders_of(pipeline).items():
        parsers = transformer.steps[0][1].transformers_ if name == "dates" else {}
        how |= {c: parsers.get(c, "number" if name == "numbers" else "text") for c in columns}
    return {c: how[c] for c in _first_step(pipeline).feature_names_in_}


def _composed(text: Any) -> Any:
    """One form of a text that Unicode can compose in several: none is another category."""
    plain = not isinstance(text, str) or text.isascii()
    return text if plain else unicodedata.normalize("NFC", text)


def _read_as(column: pd.Series, expected: Any) -> pd.Series:
    if expected == "text":
        texts = as_texts(column)
        return pd.Series([_composed(x) for x in texts], texts.index, dtype=object, name=texts.name)
    if expected == "number":
        plain = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
        values = pd.Series(pd.to_numeric(plain, errors="coerce")).astype("float64")
    elif _kind(column) == "number" and column.notna().any():
        values = pd.Series(np.nan, column.index)
    else:
        values = read_dates(column, expected)
    unread = np.asarray(values.isna() & column.notna())
    if unread.any():
        raise InputError(
            f"the column {column.name!r} holds {'numbers' if expected == 'number' else 'dates'} in "
            "the training rows, and something else in the rows with ids "
            f"{named(np.asarray(column.index)[unread])}: {named(list(column[unread]))}. Mend or "
            "empty these values."
        )
    return values


def table_pipeline(features: pd.DataFrame) -> Pipeline:
    """A transformer for the columns of `features` (after `tidy`), not yet fitted.

    Numbers: the median for missing values with a flag beside it (in columns without gaps: the mean
    for gaps that new rows have, and no flag). Text of at most 50 values and
    categories: one column per value, also for missing ones; a value never seen in fitting counts
    as infrequent. Other text: 30 components of its tf-idf weighted character n-grams. Dates: year,
    month, day, weekday, hour where there is one, and seconds since 1970, then as numbers. All but
    the columns of categories is then scaled to [0, 1].

    Fit it on at least the rows of `features`: 30 components need more than 30 rows.
    """
    parts = [
        (group, encoder(group, features[columns]), columns)
        for group, columns in column_groups(features).items()
    ]
    return Pipeline([("columns", ColumnTransformer(parts))])


def column_groups(features: pd.DataFrame) -> dict[str, list[str]]:
    """The columns that are encoded in one way: numbers, categories, text, dates; none is empty."""
    groups: dict[str, list[str]] = {"numbers": [], "categories": [], "text": [], "dates": []}
    for c in features.columns:
        groups[_group(pd.Series(features[c]))].append(c)
    return {group: columns for group, columns in groups.items() if columns}


def _group(column: pd.Series) -> str:
    if column.dtype == np.float64:
        return "numbers"
    if _kind(column) == "date":
        return "dates"
    values = column.dropna().unique()
    if len(values) <= _MAX_CATEGORIES:
        return "categories"
    ngrams: set[str] = set()
    analyse = TfidfVectorizer(**_NGRAMS).build_analyzer()
    for text in values:
        ngrams.update(analyse(text))
        if len(ngrams) > _TEXT_COMPONENTS:
            return "text"
    return "categories"  # "I", "II", "III", ...: fewer n-grams than components


def encoder(group: str, features: Any) -> Any:
    """The transformer of one of the `column_groups`, not yet fitted."""
    if group == "categories":
        return OneHotEncoder(
            max_categories=_MAX_CATEGORIES,
            handle_unknown="infrequent_if_exist",
            sparse_output=False,
        )
    median = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    scaler = MinMaxScaler(copy=False)  # what the imputer made
    if group == "numbers":
        gaps = features.isna().any()  # medians take most of the time
        parts = [("gaps", median, [*gaps.index[gaps]])] * bool(gaps.any())
        parts += [("full", SimpleImputer(), [*gaps.index[~gaps]])] * (not gaps.all())
        return make_pipeline(ColumnTransformer(parts, verbose_feature_names_out=False), scaler)
    from skrub import ApplyToCols, DatetimeEncoder, StringEncoder, ToDatetime

    if group == "dates":
        parsed = ApplyToCols(ToDatetime()), ApplyToCols(DatetimeEncoder(add_weekday=True))
        return make_pipeline(*parsed, median, scaler)
    encoder = StringEncoder(n_components=_TEXT_COMPONENTS, random_state=0, **_NGRAMS)
    return make_pipeline(ApplyToCols(encoder), MinMaxScaler())


def vectorise(
    tables: Mapping[str, pd.DataFrame],
    present: np.ndarray | None = None,
) -> tuple[Pipeline, dict[str, pd.DataFrame], dict[str, np.ndarray]]:
    """(fitted pipeline, tidied tables, matrices): numbers for the columns of every table.

    The first table is that of the training rows: it alone decides how a column is read, and its rows
    (or those that are `present`) how it is encoded, each row once: a row of weight 2 and two
    equal rows are encoded in one way, and get the same folds.

    Raises:
        InputError: see `check_values` and `tidy`.
    """
    train = next(iter(tables.values()))
    for name, table in tables.items():
        check_values(table, name)
    tidied = {name: tidy(table, like=train) for name, table in tables.items()}
    rows = next(iter(tidied.values()))
    rows = rows if present is None or present.all() else rows.loc[present]
    rows = _distinct(rows)
    pipeline = table_pipeline(rows).fit(rows)
    return pipeline, tidied, {name: pipeline.transform(table) for name, table in tidied.items()}


def _distinct(rows: pd.DataFrame) -> pd.DataFrame:
    """Each of the rows once, if the encoding depends on how often it is there.

    It does not where all are numbers without gaps; and for components of texts more than 30 rows are
    needed.
    """
    if (rows.dtypes == np.float64).all() and not rows.isna().any(axis=None):
        return rows
    again = rows.duplicated()
    few = len(rows) - again.sum() <= _TEXT_COMPONENTS
    return rows if few or not again.any() else rows.loc[~again.to_numpy()]
