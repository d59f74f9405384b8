"""Trees of scikit-learn that were saved: their nodes point to nodes and columns that there are.

The compiled code that walks through them believes what they say.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.ensemble._forest import BaseForest
from sklearn.ensemble._gb import BaseGradientBoosting
from sklearn.ensemble._hist_gradient_boosting.gradient_boosting import BaseHistGradientBoosting
from sklearn.tree import BaseDecisionTree

from ..._storage import DamagedFileError


def check_trees(parts: Iterator[Any]) -> None:
    """Refuse trees whose nodes lead astray.

    Args:
        parts: the objects that a model is made of.

    Raises:
        DamagedFileError: with what is wrong.
    """
    for part in parts:
        fitted = vars(part) if isinstance(part, BaseEstimator) else {}
        if isinstance(part, (BaseForest, BaseGradientBoosting)) and "estimators_" in fitted:
            for tree in np.ravel(np.array(part.estimators_, dtype=object)):
                _expect(isinstance(tree, BaseDecisionTree), "something else among its trees")
                _expect(tree.n_features_in_ == fitted["n_features_in_"], "trees of other columns")
        elif isinstance(part, BaseDecisionTree) and "tree_" in fitted:
            tree = part.tree_
            _expect(tree.n_features == part.n_features_in_, "a tree of other columns")
            inner = tree.children_left != -1
            children = tree.children_left[inner], tree.children_right[inner]
            _check_nodes(inner, children, tree.feature[inner], tree.n_features)
        elif isinstance(part, BaseHistGradientBoosting) and "_predictors" in fitted:
            known = part._bin_mapper.is_categorical_
            _expect(len(known) == part.n_features_in_, "bins of other columns")
            for predictor in (p for trees in part._predictors for p in trees):
                nodes = predictor.nodes
                inner = nodes["is_leaf"] == 0
                one = nodes[inner]
                _check_nodes(inner, (one["left"], one["right"]), one["feature_idx"], len(known))
                by_class = one[one["is_categorical"] != 0]
                sets = min(
                    len(predictor.raw_left_cat_bitsets), len(predictor.binned_left_cat_bitsets)
                )
                _expect((by_class["bitset_idx"] < sets).all(), "categories that it does not have")
                _expect(known[by_class["feature_idx"]].all(), "categories of a column of numbers")


def _check_nodes(inner: Any, children: tuple[Any, Any], columns: Any, known: int) -> None:
    """A node is followed by both of its children, so that every walk ends at a leaf."""
    _expect(len(inner) > 0, "a tree without nodes")
    places = np.flatnonzero(inner)
    for child in children:
        child = np.asarray(child, np.int64)
        _expect(((child > places) & (child < len(inner))).all(), "nodes that lead nowhere")
    columns = np.asarray(columns, np.int64)
    _expect(((columns >= 0) & (columns < known)).all(), "columns that it does not have")


def _expect(holds: Any, what: str) -> None:
    if not holds:
        raise DamagedFileError(f"it holds trees that cannot be followed: {what}")
