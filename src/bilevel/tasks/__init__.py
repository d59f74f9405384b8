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
from ._equilibrium import (
    EquilibriumModel,
    FixedPoints,
    contracted,
    equilibrium,
    equilibrium_model,
)
from ._federated import deal_rows, federated
from ._folds import cross_validation, stack_models
from ._hyperparameters import (
    linear_predict,
    log_penalties,
    logistic,
    logistic_loss,
    ridge,
    ridge_solution,
    tensor_penalties,
)
from ._kernel import kernel_ridge, kernel_ridge_solution, rbf_kernel
from ._nonsmooth import (
    SupportCheck,
    check_support,
    elastic_net,
    elastic_net_cv,
    lasso,
    lasso_cv,
    support_hypergradient,
)
from ._poisoning import poisoned_rows, poisoning
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
    "EquilibriumModel",
    "FixedPoints",
    "Model",
    "Reference",
    "SupportCheck",
    "anti_distillation",
    "anti_distillation_limit",
    "augment",
    "augmentation",
    "check_support",
    "contracted",
    "cross_validation",
    "deal_rows",
    "distillation",
    "elastic_net",
    "elastic_net_cv",
    "equilibrium",
    "equilibrium_model",
    "exponential_amplitudes",
    "federated",
    "fourier_features",
    "hard_labels",
    "harmonic_amplitudes",
    "hyper_cleaning",
    "identity_augmentation",
    "kernel_ridge",
    "kernel_ridge_solution",
    "lasso",
    "lasso_cv",
    "linear_model",
    "linear_predict",
    "log_penalties",
    "logistic",
    "logistic_loss",
    "min_norm_fit",
    "mlp_model",
    "poisoned_rows",
    "poisoning",
    "quadratic",
    "rbf_kernel",
    "reference_solution",
    "reweighting",
    "ridge",
    "ridge_solution",
    "soft_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
    "stack_models",
    "support_hypergradient",
    "tensor_penalties",
    "uniform_weights",
    "weight_function",
]
