"""How the user's estimator takes weights and tables, whatever it is made of."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import TunedThresholdClassifierCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.metadata_routing import MetadataRouter
from sklearn.utils.validation import has_fit_parameter

WEIGHT = "sample_weight"
# Their `fit` hands every keyword to all members.
_ENSEMBLES = (VotingClassifier, VotingRegressor, StackingClassifier, StackingRegressor)

# They fit their estimator on the rows as they were given.
_HANDING_ON = (CalibratedClassifierCV, OneVsRestClassifier, OneVsOneClassifier)

_DRAWING = (BaggingClassifier, BaggingRegressor)  # draw rows by their weights, for any member


def _draws_all(part: Any) -> bool:
    """Whether it draws without replacement: all rows, each once, whatever their weights."""
    return isinstance(part, _DRAWING) and not part.bootstrap


def weight_keyword(estimator: Any) -> str | None:
    """The keyword by which `fit` takes weights that reach the model inside; None if there is none.

    A pipeline passes weights to its last step; a search or a `TransformedTargetRegressor`, whose fits
    take any keyword, to the estimator that they hold; an ensemble to all members.
    """
    # The scorer of the first refuses weights that it did not ask for; the second learns nothing.
    if isinstance(estimator, (TunedThresholdClassifierCV, FrozenEstimator)) or _draws_all(
        estimator
    ):
        return None
    if isinstance(estimator, Pipeline):
        step, last = estimator.steps[-1]
        inner = weight_keyword(last)
        return inner and f"{step}__{inner}"
    if (held := _held(estimator)) is not None:
        return weight_keyword(held)
    if isinstance(estimator, _ENSEMBLES):
        members: Any = estimator.estimators  # pyright: ignore[reportAttributeAccessIssue]
        takes = [weight_keyword(m) for _, m in members if m != "drop"]
        final = getattr(estimator, "final_estimator", None)
        takes += [] if final is None else [weight_keyword(final)]
        return WEIGHT if all(takes) else None
    inner = [part for part in _parts(estimator) if part is not estimator and _predicts(part)]
    if inner and not isinstance(estimator, _DRAWING):
        return WEIGHT if all(weight_keyword(part) for part in inner) else None
    return WEIGHT if has_fit_parameter(estimator, WEIGHT) else None


def without_weights(estimator: Any) -> str:
    """The name of what does not take weights: a part of the estimator, or itself."""
    for part in _parts(estimator):
        if _draws_all(part):
            return f"{type(part).__name__}(bootstrap=False)"
    inner = [part for part in _parts(estimator) if _predicts(part) and part is not estimator]
    at_fault = [p for p in inner if weight_keyword(p) is None and not isinstance(p, Pipeline)]
    return type(at_fault[0] if at_fault else estimator).__name__


def fit_with_weights(estimator: Any, X: Any, y: Any, weights: Any) -> Any:
    """A clone of `estimator`, fitted with weights by whatever way it takes them.

    A pipeline within another estimator takes weights by scikit-learn's metadata routing only. There,
    every predictor that takes weights is made to ask for them, unless the user has said otherwise.
    `None`: no weights.
    """
    with warnings.catch_warnings():
        # scikit-learn asks whether few rows of many classes are a regression.
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
        return _fit(estimator, X, y, weights)


def _fit(estimator: Any, X: Any, y: Any, weights: Any) -> Any:
    fresh: Any = clone(estimator)
    if weights is None:
        return fresh.fit(X, y)
    if not _needs_routing(estimator):
        with config_context(enable_metadata_routing=False):  # which wants pipelines to be asked
            return fresh.fit(X, y, **dict.fromkeys(_weight_keywords(estimator), weights))
    with config_context(enable_metadata_routing=True):
        fresh = clone(estimator)
        for part in _parts(fresh):
            _ask_for_weights(part)
        return fresh.fit(X, y, sample_weight=weights)


def _weight_keywords(estimator: Any) -> list[str]:
    """`weight_keyword`, and those of the steps that take the mean from each column, and no more.

    Weighted means keep the promise that a row of weight 2 is the row twice. To a predictor with an
    intercept the mean makes no difference; scalers that also divide are the user's, who gives weights
    to none of them.
    """
    steps = estimator.steps if isinstance(estimator, Pipeline) else []
    centring = [s for s, step in steps if isinstance(step, StandardScaler) and not step.with_std]
    return [str(weight_keyword(estimator)), *(f"{name}__{WEIGHT}" for name in centring)]


def takes_tables(estimator: Any) -> bool:
    """Whether it has its own way with the columns of a table: a pipeline, or one within it."""
    return any(isinstance(part, (Pipeline, ColumnTransformer)) for part in _parts(estimator))


def by_name(estimator: Any) -> list[str]:
    """The columns that it, or an estimator within it, picks by name; or by type, from a data frame."""
    picked: list[Any] = []
    for part in _parts(estimator):
        if isinstance(part, ColumnTransformer):
            picked += [columns for *_, columns in part.transformers]
        elif hasattr(part, "get_params"):
            picked.append(part.get_params(deep=False).get("categorical_features"))
    picked = [[x.start, x.stop] if isinstance(x, slice) else x for x in picked]
    flat = [c for x in picked for c in (x if np.ndim(x) else [x])]
    names = [c for c in flat if isinstance(c, str) and c != "from_dtype"]
    names += ["make_column_selector"] * any(isinstance(c, make_column_selector) for c in flat)
    return [*dict.fromkeys(names)]


# Settings by which trees of scikit-learn, LightGBM, XGBoost and CatBoost know columns.
_OF_COLUMNS = (
    *("categorical_features", "monotonic_cst", "interaction_cst", "categorical_feature"),
    *("monotone_constraints", "interaction_constraints", "feature_types", "feature_weights"),
    "cat_features",
)


def by_place(estimator: Any) -> list[str]:
    """The settings in which it, or an estimator within it, knows columns by numbers, not by names."""
    found = []
    for part in _parts(estimator):
        given = part.get_params(deep=False) if hasattr(part, "get_params") else {}
        found += [name for name in _OF_COLUMNS if _has_places(given.get(name))]
    return [*dict.fromkeys(found)]


def _has_places(setting: Any) -> bool:
    """Whether it is a sequence (of sequences) that holds a number; in a dict the names are keys."""
    if isinstance(setting, (str, Mapping)) or setting is None or not np.iterable(setting):
        return False
    return any(_has_places(x) or (not isinstance(x, str) and not np.iterable(x)) for x in setting)


def given_the_rows(estimator: Any) -> Any:
    """The estimator that takes the rows: the one within a search or a calibration, or itself."""
    while isinstance(estimator, _HANDING_ON) or _held(estimator) is not None:
        held = _held(estimator)
        inside = getattr(estimator, "estimator", None) if held is None else held
        if inside is None:  # a calibration of its default
            break
        estimator = inside
    return estimator


def _held(estimator: Any) -> Any:
    """The estimator to which a search or a `TransformedTargetRegressor` passes its fit's keywords."""
    given = estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}
    if "regressor" in given:
        return LinearRegression() if given["regressor"] is None else given["regressor"]
    return given.get("estimator") if "refit" in given else None


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator, and every estimator within it."""
    yield estimator
    if hasattr(estimator, "get_params"):
        inner = estimator.get_params(deep=True).values()
        yield from (x for x in inner if hasattr(x, "fit") and not isinstance(x, type))


def _predicts(part: Any) -> bool:
    return is_classifier(part) or is_regressor(part)


def _needs_routing(estimator: Any) -> bool:
    """Whether no keyword of `fit` reaches every predictor inside."""
    while isinstance(estimator, Pipeline) or _held(estimator) is not None:
        held = _held(estimator)
        estimator = estimator.steps[-1][1] if held is None else held
    if isinstance(estimator, _DRAWING):
        return False
    plain = isinstance(estimator, _ENSEMBLES) or has_fit_parameter(estimator, WEIGHT)
    return not plain or any(isinstance(part, Pipeline) for part in _parts(estimator))


def _ask_for_weights(part: Any) -> None:
    """Fits of predictors ask for weights; transformers and scores do not."""
    for method, asks in (("fit", _predicts(part)), ("score", False)):
        request = getattr(part, f"set_{method}_request", None)  # scikit-learn makes it as needed
        if request is not None and WEIGHT in _unset(part, method):
            request(**{WEIGHT: asks})


def _unset(part: Any, method: str) -> list[str]:
    """What it takes of weights without the user having said whether to pass them."""
    routing = part.get_metadata_routing()
    if isinstance(routing, MetadataRouter):  # it takes some, and passes some on
        if method == "fit":
            return [WEIGHT] * has_fit_parameter(part, WEIGHT)
        routing = vars(part).get("_metadata_request")  # what the user has said of its own methods
        if routing is None:
            return [WEIGHT]
    requests = getattr(routing, method, None)
    return [] if requests is None else [k for k, v in requests.requests.items() if v is None]
