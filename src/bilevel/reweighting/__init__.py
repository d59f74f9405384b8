"""The product: what training rows are worth, judged by a few that can be trusted."""

from ._audit import audit
from ._baselines import compare_baselines
from ._cross_validated import CrossValidatedWeights, cross_validated_weights
from ._diagnostics import Check, effective_sample_size, entropy
from ._duplicates import find_shared_rows
from ._estimator import ReweightedClassifier, ReweightedRegressor
from ._features import trust_features
from ._methods import clipped_soba, near_exact, soba
from ._report import Report
from ._result import WeightsResult
from ._suggest import suggest
from ._vectorise import load_model
from ._weights import learn_weights

__all__ = [
    "Check",
    "CrossValidatedWeights",
    "Report",
    "ReweightedClassifier",
    "ReweightedRegressor",
    "WeightsResult",
    "audit",
    "clipped_soba",
    "compare_baselines",
    "cross_validated_weights",
    "effective_sample_size",
    "entropy",
    "find_shared_rows",
    "learn_weights",
    "load_model",
    "near_exact",
    "soba",
    "suggest",
    "trust_features",
]
