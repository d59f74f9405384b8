"""Builders that turn a task into a `BilevelProblem`, and reference solutions for them."""

from ._anti_distillation import (
    anti_distillation,
    anti_distillation_limit,
    exponential_amplitudes,
    fourier_features,
    harmonic_amplitudes,
    min_norm_fit,
)
from ._cleaning import hyper_cleaning
from ._distillation import (
    augment,
    augmentation,
    distillation,
    hard_labels,
    identity_augmentation,
    soft_cross_entropy,
)
from ._hyperparameters import log_penalties, logistic, logistic_loss, ridge, tensor_penalties
from ._quadratic import quadratic
from ._reference import Reference, reference_solution
from ._reweighting import (
    Model,
    linear_model,
    mlp_model,
    reweighting,
    softmax_cross_entropy,
    squared_error,
    uniform_weights,
    weight_function,
)

__all__ = [
    "Model",
    "Reference",
    "anti_distillation",
    "anti_distillation_limit",
    "augment",
    "augmentation",
    "distillation",
    "exponential_amplitudes",
    "fourier_features",
    "hard_labels",
    "harmonic_amplitudes",
    "hyper_cleaning",
    "identity_augmentation",
    "linear_model",
    "log_penalties",
    "logistic",
    "logistic_loss",
    "min_norm_fit",
    "mlp_model",
    "quadratic",
    "reference_solution",
    "reweighting",
    "ridge",
    "soft_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
    "tensor_penalties",
    "uniform_weights",
    "weight_function",
]
