"""Builders that turn a task into a `BilevelProblem`, with their data and their starting points.

Models and losses are in `bilevel.tasks.models`, closed forms and other solutions to compare with in
`bilevel.tasks.reference`.
"""

import warnings
from typing import Any

from . import models, reference
from ._anti_distillation import (
    anti_distillation,
    exponential_amplitudes,
    fourier_features,
    harmonic_amplitudes,
)
from ._cleaning import hyper_cleaning
from ._distillation import augmentation, distillation, hard_labels, identity_augmentation
from ._equilibrium import equilibrium
from ._federated import deal_rows, federated
from ._folds import cross_validation, stack_models
from ._forms import compositional, minimax
from ._hyperparameters import log_penalties, logistic, ridge, tensor_penalties
from ._kernel import kernel_ridge
from ._meta import Episodes, episodes, meta_accuracy, meta_learning, rotated_classes
from ._mixture import draw_by_source, draw_mixture, mixture
from ._nonsmooth import elastic_net, elastic_net_cv, lasso, lasso_cv
from ._penalties import group_lasso, power_penalty, support_vectors
from ._poisoning import poisoned_rows, poisoning
from ._quadratic import quadratic
from ._reweighting import reweighting, uniform_weights, weight_function
from ._training import Descent, DescentSettings, initialisation, learning_rate

__all__ = [
    "Descent",
    "DescentSettings",
    "Episodes",
    "anti_distillation",
    "augmentation",
    "compositional",
    "cross_validation",
    "deal_rows",
    "distillation",
    "draw_by_source",
    "draw_mixture",
    "elastic_net",
    "elastic_net_cv",
    "episodes",
    "equilibrium",
    "exponential_amplitudes",
    "federated",
    "fourier_features",
    "group_lasso",
    "hard_labels",
    "harmonic_amplitudes",
    "hyper_cleaning",
    "identity_augmentation",
    "initialisation",
    "kernel_ridge",
    "lasso",
    "lasso_cv",
    "learning_rate",
    "log_penalties",
    "logistic",
    "meta_accuracy",
    "meta_learning",
    "minimax",
    "mixture",
    "models",
    "poisoned_rows",
    "poisoning",
    "power_penalty",
    "quadratic",
    "reference",
    "reweighting",
    "ridge",
    "rotated_classes",
    "stack_models",
    "support_vectors",
    "tensor_penalties",
    "uniform_weights",
    "weight_function",
]


def __getattr__(name: str) -> Any:
    """Find the old names of functions that are in `models` and `reference` now, and warn."""
    for module in (models, reference):
        if name in module.__all__:
            warnings.warn(
                f"`bilevel.tasks.{name}` is `{module.__name__}.{name}` now; the old name goes with "
                "version 0.2.",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
