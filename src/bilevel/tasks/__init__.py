"""Builders that turn a task into a `BilevelProblem`."""

from ._reweighting import (
    Model,
    linear_model,
    mlp_model,
    reweighting,
    softmax_cross_entropy,
    squared_error,
    uniform_weights,
)

__all__ = [
    "Model",
    "linear_model",
    "mlp_model",
    "reweighting",
    "softmax_cross_entropy",
    "squared_error",
    "uniform_weights",
]
