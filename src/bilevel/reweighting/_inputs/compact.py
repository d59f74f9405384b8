"""Tables as tree models take them: gaps stay gaps, and a category is one column."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder
from sklearn.utils import get_tags

from .checks import InputError, named
from .columns import column_groups, encoder
from .estimators import by_place, given_the_rows

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


def compact_pipeline(features: pd.DataFrame, estimator: Any = None) -> Pipeline:
    """A transformer for the columns of `features` (after `tidy`), not yet fitted, for trees.

    Numbers stay as they are, with their gaps. Text of at most 50 values and categories: one column of
    codes, in which a gap and a value never seen in fitting are missing. These are in the order of the
    table, by which an estimator may know them (`monotonic_cst`). Other text and dates become numbers
    as in `table_pipeline`, which come last.

    Raises:
        InputError: the estimator knows columns by their places, and some have none.
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
    single = [c for group in special for c in groups.get(group, [])]  # the first of the outputs
    several = [c for c in features.columns if c not in single]
    if several and (settings := by_place(estimator)):
        raise InputError(
            f"the estimator knows columns by their places ({', '.join(settings)}), and each of the "
            f"columns {named(several)} (texts or dates) becomes several. Leave the setting or the "
            "columns out, or give a pipeline that takes the table."
        )
    order = [single.index(c) for c in features.columns if c in single]
    steps = [("columns", ColumnTransformer(parts))]
    if order != sorted(order):
        ordered = ColumnTransformer([("order", "passthrough", order)], remainder="passthrough")
        steps.append(("order", ordered))
    return Pipeline(steps)


def _places(pipeline: Pipeline, group: str) -> list[int]:
    """Where the columns of one of the groups are in what a fitted `compact_pipeline` makes."""
    columns = pipeline.steps[0][1]
    span = columns.output_indices_.get(group, slice(0, 0))
    places = list(range(span.start, span.stop))
    if len(pipeline.steps) == 1:
        return places
    order = list(pipeline.steps[1][1].transformers[0][2])  # the others stay
    return [order.index(place) if place < len(order) else place for place in places]


def category_columns(pipeline: Pipeline) -> dict[int, int]:
    """Of a fitted `compact_pipeline`: the columns of codes, and how many values each has."""
    places = _places(pipeline, CATEGORIES)
    if not places:
        return {}
    fitted = pipeline.steps[0][1].named_transformers_[CATEGORIES]
    sizes = [sum(not _is_gap(value) for value in values) for values in fitted.categories_]
    return dict(sorted(zip(places, sizes, strict=True)))


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
        places = _places(pipeline, group)
        own = (
            list(given)
            if len(given) == len(places)
            else [f"{group}_{i}" for i in range(len(places))]
        )
        names |= dict(zip(places, own, strict=True))
    ordered = [names[i] for i in range(len(names))]
    plain = all(isinstance(x, str) and not set(x) & set('[]<>{}":,') for x in ordered)
    return ordered if plain and len({*ordered}) == len(ordered) else list(range(len(ordered)))


def _is_gap(value: Any) -> bool:
    return isinstance(value, float) and bool(np.isnan(value))
