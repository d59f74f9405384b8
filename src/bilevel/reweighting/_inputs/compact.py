"""Tables as tree models take them: gaps stay gaps, and a category is one column."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder
from sklearn.utils import get_tags

from .columns import column_groups, encoder
from .estimators import given_the_rows

CATEGORIES = "categories"


def takes_gaps(estimator: Any) -> bool:
    """Whether it says of itself (by scikit-learn's tags) that it takes missing values.

    These are trees and their ensembles: scikit-learn's, LightGBM's, XGBoost's and CatBoost's, also
    within a search, a calibration and the like.
    """
    return estimator is not None and bool(get_tags(given_the_rows(estimator)).input_tags.allow_nan)


def with_empty_columns_filled(X: Any) -> Any:
    """The rows, with zeros in columns of floating numbers that hold nothing but gaps.

    Some of the rows of a table, such as the trusted ones, can lack a column altogether. To trees it is
    then a constant either way, but boosted trees of scikit-learn 1.9 refuse it.
    """
    if not isinstance(X, pd.DataFrame) or X.empty:
        return X  # an array has no gaps, see `prepare`
    floating = [i for i, kind in enumerate(X.dtypes) if kind.kind == "f"]
    empty = [i for i in floating if pd.isna(X.iat[0, i]) and X.iloc[:, i].isna().all()]
    if empty:
        X = X.copy(deep=False)
    for i in empty:
        X.isetitem(i, 0.0)
    return X


def takes_categories(estimator: Any) -> bool:
    """Whether it reads the categories of a data frame off the types of the columns."""
    estimator = given_the_rows(estimator)
    settings = estimator.get_params(deep=False)
    lightgbm = type(estimator).__module__.startswith("lightgbm.")
    by_type = settings.get("categorical_features") == "from_dtype"  # scikit-learn's
    return lightgbm or by_type or bool(settings.get("enable_categorical"))  # XGBoost's


def compact_pipeline(features: pd.DataFrame) -> Pipeline:
    """A transformer for the columns of `features` (after `tidy`), not yet fitted, for trees.

    Numbers stay as they are, with their gaps. Text of at most 50 values and categories: one column of
    codes, in which a gap and a value never seen in fitting are missing. Other text and dates become
    numbers as in `table_pipeline`.
    """
    groups = column_groups(features)
    codes = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=np.nan, encoded_missing_value=np.nan
    )
    special = {"numbers": "passthrough", CATEGORIES: codes}
    parts: list[Any] = [
        (group, special.get(group) or encoder(group, features[columns]), columns)
        for group, columns in groups.items()
    ]
    return Pipeline([("columns", ColumnTransformer(parts))])


def category_columns(pipeline: Pipeline) -> dict[int, int]:
    """Of a fitted `compact_pipeline`: the columns of codes, and how many values each has."""
    columns = pipeline.steps[0][1]
    span = columns.output_indices_.get(CATEGORIES, slice(0, 0))
    if span.start == span.stop:
        return {}
    fitted = columns.named_transformers_[CATEGORIES]
    sizes = [sum(not _is_gap(value) for value in values) for values in fitted.categories_]
    return dict(zip(range(span.start, span.stop), sizes, strict=True))


def compact_frame(pipeline: Pipeline, features: pd.DataFrame, *, categories: bool) -> pd.DataFrame:
    """What a fitted `compact_pipeline` makes of rows; columns of codes as a type or as numbers."""
    names = _names(pipeline)
    frame = pd.DataFrame(pipeline.transform(features), features.index, names)
    if categories:
        for position, size in category_columns(pipeline).items():
            column = names[position]
            codes = frame[column].fillna(-1).astype(int)  # XGBoost refuses floating categories
            frame[column] = pd.Categorical.from_codes(codes, categories=np.arange(size))
    return frame


def _names(pipeline: Pipeline) -> list[Any]:
    """The table's names, so that an estimator finds its columns; numbers where a name would not do.

    LightGBM and XGBoost refuse names with signs of JSON in them.
    """
    columns, names = pipeline.steps[0][1], {}
    for group, _, given in columns.transformers_:
        span = columns.output_indices_[group]
        width = span.stop - span.start
        own = list(given) if len(given) == width else [f"{group}_{i}" for i in range(width)]
        names |= dict(zip(range(span.start, span.stop), own, strict=True))
    ordered = [names[i] for i in range(len(names))]
    plain = all(isinstance(x, str) and not set(x) & set('[]<>{}":,') for x in ordered)
    return ordered if plain and len({*ordered}) == len(ordered) else list(range(len(ordered)))


def _is_gap(value: Any) -> bool:
    return isinstance(value, float) and bool(np.isnan(value))
