"""The product: what training rows are worth, judged by a few that can be trusted."""

from ._baselines import compare_baselines
from ._cross_validated import CrossValidatedWeights, cross_validated_weights
from ._diagnostics import Check, effective_sample_size, entropy
from ._estimator import ReweightedClassifier, ReweightedRegressor
from ._features import trust_features
from ._methods import clipped_soba, near_exact, soba
from ._result import WeightsResult
from ._weights import learn_weights

__all__ = [
    "Check",
    "CrossValidatedWeights",
    "ReweightedClassifier",
    "ReweightedRegressor",
    "WeightsResult",
    "clipped_soba",
    "compare_baselines",
    "cross_validated_weights",
    "effective_sample_size",
    "entropy",
    "learn_weights",
    "near_exact",
    "soba",
    "trust_features",
]
