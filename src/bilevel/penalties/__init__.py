"""scikit-learn estimators that choose their own penalties by hypergradients."""

from ._elastic_net import ElasticNetBilevelCV
from ._logistic import LogisticRegressionBilevelCV
from ._ridge import RidgeBilevelCV

__all__ = ["ElasticNetBilevelCV", "LogisticRegressionBilevelCV", "RidgeBilevelCV"]
