"""The product: what training rows are worth, judged by a few that can be trusted.

Nothing here imports JAX except the algorithms for free weights, which are imported on first use.
"""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

from .._analysis.weight_statistics import effective_sample_size, entropy
from ._annotations import AnnotationsResult, learn_from_annotations
from ._audit.audit import audit
from ._audit.duplicates import find_shared_rows
from ._audit.finding import Audit, Finding
from ._audit.suggest import suggest
from ._estimator import ReweightedClassifier, ReweightedRegressor
from ._inputs.checks import InputError
from ._inputs.prepare import Encoding
from ._inputs.saved import load_model
from ._learn import learn_weights
from ._multilabel import MultilabelResult, learn_multilabel_weights
from ._report.displays import (
    BeforeAfterDisplay,
    GainsDisplay,
    WeightsDisplay,
    WrongLabelsDisplay,
)
from ._report.page import Report
from ._weights.baselines import compare_baselines
from ._weights.cross_validated import cross_validated_weights
from ._weights.diagnostics import Check
from ._weights.features import trust_features
from ._weights.result import CrossValidatedWeights, WeightsResult
from ._weights.scorer import RowScorer

if TYPE_CHECKING:
    from ._report.labels_page import LabelsReport
    from ._weights.methods import clipped_soba, near_exact, soba

__getattr__, _, _ = _lazy.attach(
    __name__,
    submod_attrs={
        "_report.labels_page": ["LabelsReport"],
        "_weights.methods": ["clipped_soba", "near_exact", "soba"],
    },
)

__all__ = [
    "AnnotationsResult",
    "Audit",
    "BeforeAfterDisplay",
    "Check",
    "CrossValidatedWeights",
    "Encoding",
    "Finding",
    "GainsDisplay",
    "InputError",
    "LabelsReport",
    "MultilabelResult",
    "Report",
    "ReweightedClassifier",
    "ReweightedRegressor",
    "RowScorer",
    "WeightsDisplay",
    "WeightsResult",
    "WrongLabelsDisplay",
    "audit",
    "clipped_soba",
    "compare_baselines",
    "cross_validated_weights",
    "effective_sample_size",
    "entropy",
    "find_shared_rows",
    "learn_from_annotations",
    "learn_multilabel_weights",
    "learn_weights",
    "load_model",
    "near_exact",
    "soba",
    "suggest",
    "trust_features",
]
