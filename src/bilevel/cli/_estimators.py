"""`--estimator`: short names for the models that people use, and objects of their own code."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.base import clone, is_classifier, is_regressor
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from ..reweighting._inputs.checks import InputError, named
from ..reweighting._inputs.compact import CATEGORIES, category_columns, takes_gaps
from ..reweighting._inputs.estimators import by_name
from ..reweighting._weights.coded_labels import CodedLabels

_TREES = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"


class Short(NamedTuple):
    """What a short name stands for.

    Attributes:
        module: where the classes are.
        classifier, regressor: their names; None where there is none.
        settings: their arguments; `seed` is the name of that of the seed.
        types: what a saved one holds beside the types that skops trusts of its own accord.
        install: what to install.
    """

    module: str
    classifier: str | None
    regressor: str | None
    settings: dict[str, Any]
    seed: str | None
    types: tuple[str, ...] = ()
    install: str | None = None


_SILENT_CATBOOST = {"verbose": 0, "allow_writing_files": False, "thread_count": 1}
SHORT = {
    "logistic": Short("sklearn.linear_model", "LogisticRegression", None, {"max_iter": 1000}, None),
    "ridge": Short("sklearn.linear_model", None, "Ridge", {}, None),
    "trees": Short(
        "sklearn.ensemble",
        "HistGradientBoostingClassifier",
        "HistGradientBoostingRegressor",
        {},
        "random_state",
        (_TREES, "functools.partial", "sklearn.utils.validation.check_array"),  # of categories
    ),
    "random-forest": Short(
        "sklearn.ensemble",
        "RandomForestClassifier",
        "RandomForestRegressor",
        {},
        "random_state",
        ("sklearn.tree._tree.Tree",),
    ),
    "lightgbm": Short(
        "lightgbm",
        "LGBMClassifier",
        "LGBMRegressor",
        {"verbose": -1, "n_jobs": 1},
        "random_state",
        (
            "collections.OrderedDict",
            "lightgbm.basic.Booster",
            "lightgbm.sklearn.LGBMClassifier",
            "lightgbm.sklearn.LGBMRegressor",
        ),
        "lightgbm",
    ),
    "xgboost": Short(
        "xgboost",
        "XGBClassifier",
        "XGBRegressor",
        {"n_jobs": 1},
        "random_state",
        (
            "xgboost.core.Booster",
            "xgboost.sklearn.XGBClassifier",
            "xgboost.sklearn.XGBRegressor",
        ),
        "xgboost",
    ),
    "catboost": Short(
        "catboost",
        "CatBoostClassifier",
        "CatBoostRegressor",
        _SILENT_CATBOOST,
        "random_seed",
        ("catboost.core.CatBoostClassifier", "catboost.core.CatBoostRegressor"),
        "catboost",
    ),
}
_CODED = f"{CodedLabels.__module__}.{CodedLabels.__name__}"
SAVED_TYPES = sorted({_CODED, *(name for short in SHORT.values() for name in short.types)})


def check_name(name: str, allow_code: bool) -> None:
    """Refuse what is no short name, and code that was not allowed.

    Raises:
        InputError: with what to write instead.
    """
    if name in SHORT:
        return
    if ":" not in name:
        raise InputError(
            f"--estimator {name!r} is not one of {named(list(SHORT))}. An estimator of your own is "
            "written module:object, with --allow-code."
        )
    if not allow_code:
        raise InputError(
            f"--estimator {name} runs the code of a module. If you trust it, say so with "
            f"--allow-code; without it the estimators are {named(list(SHORT))}."
        )


def make_estimator(name: str, regression: bool, seed: int, *, allow_code: bool = False) -> Any:
    """The estimator that a name stands for, not fitted.

    Args:
        name: one of `SHORT`, or `module:object` of an estimator, or of a class or function that
            makes one when called without arguments. Modules of the working directory are found too.
        regression: whether labels are numbers to predict.
        seed: of its random choices.
        allow_code: whether `module:object` may be imported.

    Raises:
        InputError: unknown, not installed, not allowed, or for the other task.
    """
    check_name(name, allow_code)
    if name not in SHORT:
        return _of_own_code(name, regression)
    short = SHORT[name]
    kind = short.regressor if regression else short.classifier
    if kind is None:
        instead = [n for n, s in SHORT.items() if (s.regressor if regression else s.classifier)]
        raise InputError(
            f"--estimator {name} is for {'classification' if regression else 'regression'}, and "
            f"this task is a {'regression' if regression else 'classification'}; take one of "
            f"{named(instead)}, or say what the label is with --task."
        )
    try:
        made = getattr(importlib.import_module(short.module), kind)
    except ImportError as error:
        raise InputError(
            f"--estimator {name} needs the package {short.install}, which cannot be imported "
            f"({error}): pip install {short.install}."
        ) from error
    settings = short.settings | ({} if short.seed is None else {short.seed: seed})
    estimator = made(**settings)
    # XGBoost takes no labels but codes, and CatBoost's predictions are a column.
    return (
        CodedLabels(estimator) if name in ("xgboost", "catboost") and not regression else estimator
    )


def _of_own_code(name: str, regression: bool) -> Any:
    module, _, path = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        made = found() if isinstance(found, type) or not hasattr(found, "fit") else found
        estimator: Any = clone(made)
    except Exception as error:  # the module's own code may raise anything
        raise InputError(
            f"--estimator {name} cannot be loaded ({type(error).__name__}: {error}). It is "
            f"module:object, and modules are looked for in {here} too."
        ) from error
    finally:
        sys.path.remove(here)
    sys.path.append(here)  # for --processes, which import the module too; after all other places
    right = is_regressor if regression else is_classifier
    if not right(estimator):
        raise InputError(
            f"--estimator {name} is {type(estimator).__name__}, which is not a "
            f"{'regressor' if regression else 'classifier'} of scikit-learn's kind."
        )
    told = type(estimator).__name__.startswith(_TOLD)  # which columns hold categories
    if (columns := by_name(estimator)) and not told:
        raise InputError(
            f"--estimator {name} picks columns by name ({named(columns)}), and on the command line an "
            "estimator of your own gets the columns as numbers, encoded already. Leave the encoding "
            "out of it, or use it in Python: bilevel.Reweighted"
            f"{'Regressor' if regression else 'Classifier'} gives it the table itself."
        )
    return estimator


def inner(estimator: Any) -> Any:
    """The estimator itself, without what codes its labels."""
    return estimator.estimator if isinstance(estimator, CodedLabels) else estimator


def takes_gaps_inside(estimator: Any) -> bool:
    """`takes_gaps` of the estimator itself."""
    return takes_gaps(inner(estimator))


_TOLD = "HistGradientBoosting"
_SAY_CATEGORIES: dict[str, Callable[[dict[int, int], int], dict[str, Any]]] = {
    _TOLD: lambda found, _: {"categorical_features": list(found)},
    "XGB": lambda found, width: {
        "enable_categorical": True,
        "feature_types": ["c" if i in found else "q" for i in range(width)],
    },
}


def with_columns(compact: Pipeline, estimator: Any) -> Pipeline:
    """A pipeline that takes tables: the fitted `compact_pipeline`, then the estimator.

    Trees that can be told which columns hold categories are told.

    Raises:
        InputError: they were told by name of a column that holds numbers.
    """
    found = category_columns(compact)
    fitted = compact.steps[0][1]
    texts = next((list(c) for name, _, c in fitted.transformers_ if name == CATEGORIES), [])
    if others := [c for c in by_name(inner(estimator)) if c not in texts]:
        raise InputError(
            f"the estimator takes {named(others)} for categories (categorical_features), and they are "
            f"no columns of texts with few values; those are {named(texts) or 'none'}. Write "
            "categories as texts, or leave the setting out."
        )
    width = max(span.stop for span in compact.steps[0][1].output_indices_.values())
    for beginning, say in _SAY_CATEGORIES.items():
        if found and type(inner(estimator)).__name__.startswith(beginning):
            inner(estimator).set_params(**say(found, width))
    return Pipeline([("columns", FrozenEstimator(compact)), ("final", estimator)])
