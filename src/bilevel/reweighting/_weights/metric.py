"""The user's metric: any scorer of scikit-learn, on held-out predictions, with its standard error."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.utils import _safe_indexing
from sklearn.utils.metaestimators import available_if

from .._inputs.checks import InputError
from .._inputs.files import suggest
from .._inputs.prepare import Encoding, PreparedTable

GROUPS = 20  # of rows, each of which is left out once for the standard error
_RESPONSES = ("predict", "predict_proba", "decision_function")


class Metric(NamedTuple):
    """A score of predictions, the higher the better.

    Attributes:
        name: what tables call it.
        scorer: called as `scorer(estimator, X, y)`; with `sample_weight` where rows count unequally.
        coded: whether it gets class codes 0, 1, ... in place of labels, so that the last class in
            sorted order is the positive one, whatever it is called.
    """

    name: str
    scorer: Callable[..., Any]
    coded: bool

    @classmethod
    def of(cls, scoring: Any) -> "Metric | None":
        """From the name of a scorer or a callable; None, and what is one already, as they are.

        Raises:
            ValueError: no such scorer, or a metric that is no scorer.
        """
        if scoring is None or isinstance(scoring, Metric):
            return scoring
        if isinstance(scoring, str):
            if scoring not in get_scorer_names():
                raise InputError(
                    f"`scoring` must name a scorer of scikit-learn, got {scoring!r}; "
                    f"{suggest(scoring, get_scorer_names()).replace('columns are', 'scorers are')}."
                )
            return cls(scoring, get_scorer(scoring), coded=True)
        if not callable(scoring):
            raise InputError(
                "`scoring` must be the name of a scorer or a callable (estimator, X, y), got "
                f"{scoring!r}."
            )
        module = getattr(scoring, "__module__", None) or ""
        if module.startswith("sklearn.metrics.") and not module.endswith("_scorer"):
            raise InputError(
                f"`scoring` is the metric {scoring!r}, which compares labels; a scorer is wanted: "
                "`sklearn.metrics.make_scorer(...)` makes one of it."
            )
        name = getattr(scoring, "__name__", None) or str(scoring)
        return cls(name, scoring, coded=False)

    def __call__(self, said: "Said", X: Any, y: np.ndarray, weight: np.ndarray) -> float:
        """The score of what a model said of rows.

        Raises:
            InputError: it cannot be computed.
        """
        options = {"sample_weight": weight} if np.ptp(weight) else {}
        try:
            score = float(self.scorer(said.estimator(), X, y, **options))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"the metric {self.name!r} cannot be computed on held-out rows: {error}"
            ) from error
        if not np.isfinite(score):
            raise InputError(
                f"the metric {self.name!r} is not a number on held-out rows: some class may have too "
                "few of them. Give more trusted (or hold-out) rows of every class, or another metric."
            )
        return score

    def judge(
        self,
        said: "Said",
        X: Any,
        y: np.ndarray,
        weight: Float[np.ndarray, " rows"],
        unit: Int[np.ndarray, " rows"],
    ) -> tuple[Float[np.ndarray, " groups"], float]:
        """(one loss per group of rows, score): the score's jackknife pseudo-values, with a minus.

            loss_g = -(s + (G - 1) (mean_h s_(-h) - s_(-g)))

        with `s` the score of all rows and `s_(-g)` without group g. Their mean is `-s`, and the
        standard error of the mean, of a difference too, is the jackknife's. Each of the `G` = 20
        groups has its share of each class, and rows of one `unit` are in one group.
        """
        score = self(said, X, y, weight)
        units, first, code = np.unique(unit, return_index=True, return_inverse=True)
        number = min(GROUPS, len(units))
        group = np.empty(len(units), int)
        group[np.lexsort((units, y[first]))] = np.arange(len(units)) % number
        without = np.empty(number)
        for g in range(number):
            rows = np.flatnonzero(group[code] != g)
            part = said.take(rows), _safe_indexing(X, rows), y[rows], weight[rows]
            without[g] = self(*part)
        return -(score + (number - 1) * (without.mean() - without)), score


class Said(NamedTuple):
    """What a fitted model says of some rows, as scorers ask for it.

    Attributes:
        classes: in the order of the columns of probabilities; None in a regression.
        responses: by the name of the method.
    """

    classes: np.ndarray | None
    responses: dict[str, np.ndarray]

    @classmethod
    def of_log(cls, outputs: Float[np.ndarray, "rows classes"], classes: np.ndarray) -> "Said":
        """From log-probabilities."""
        p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return cls(classes, {"predict": classes[p.argmax(axis=1)], "predict_proba": p})

    @classmethod
    def of_model(cls, model: Any, X: Any, classes: np.ndarray | None, coded: bool) -> "Said":
        """From a fitted estimator; `classes` are all there are, of which it may know some."""
        said = {
            name: np.asarray(getattr(model, name)(X)) for name in _RESPONSES if hasattr(model, name)
        }
        if classes is None:
            return cls(None, {"predict": said["predict"]})
        known = np.searchsorted(classes, model.classes_)
        if len(known) < len(classes):
            said.pop("decision_function", None)
        if "predict_proba" in said:
            p = np.zeros((len(said["predict"]), len(classes)))
            p[:, known] = said["predict_proba"]
            said["predict_proba"] = p
        return cls(classes, said).coded() if coded else cls(classes, said)

    def coded(self) -> "Said":
        """With codes 0, 1, ... in the place of labels."""
        assert self.classes is not None
        told = np.searchsorted(self.classes, self.responses["predict"])
        return Said(np.arange(len(self.classes)), {**self.responses, "predict": told})

    def take(self, rows: np.ndarray) -> "Said":
        """Of these rows."""
        return self._replace(responses={name: a[rows] for name, a in self.responses.items()})

    def estimator(self) -> Any:
        """A fitted estimator that says so, whatever rows it is asked about."""
        if self.classes is None:
            return _Number(self.responses)
        return _Class(self.responses, self.classes)


class Scoring(NamedTuple):
    """A metric, and the rows that it is computed on.

    Attributes:
        metric: the user's.
        X, y: the rows as the final estimator takes them, and the labels as the metric takes them.
        encoding: how labels became numbers.
    """

    metric: Metric
    X: Any
    y: np.ndarray
    encoding: Encoding

    @classmethod
    def of(cls, metric: Metric, table: PreparedTable, encoding: Encoding) -> "Scoring":
        """On all rows of a table."""
        coded = metric.coded and encoding.classes is not None
        return cls(metric, table.X, table.targets if coded else np.asarray(table.y), encoding)

    def judge(
        self,
        outputs: Float[np.ndarray, "rows outputs"],
        rows: Int[np.ndarray, " rows"],
        weight: Float[np.ndarray, " rows"],
        unit: Int[np.ndarray, " rows"],
    ) -> tuple[Float[np.ndarray, " groups"], float]:
        """`Metric.judge` of outputs for these rows."""
        classes = self.encoding.classes
        if classes is None:
            said = Said(None, {"predict": self.encoding.decode(outputs)})
        else:
            said = Said.of_log(outputs, np.arange(len(classes)) if self.metric.coded else classes)
        return self.metric.judge(said, _safe_indexing(self.X, rows), self.y[rows], weight, unit)


def _has(name: str) -> Any:
    return available_if(lambda self: name in self.responses)


class _Class(ClassifierMixin, BaseEstimator):
    def __init__(self, responses: Any = None, classes_: Any = None):
        self.responses = responses
        self.classes_ = classes_

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, X: Any) -> np.ndarray:
        return self.responses["predict"]

    @_has("predict_proba")
    def predict_proba(self, X: Any) -> np.ndarray:
        return self.responses["predict_proba"]

    @_has("decision_function")
    def decision_function(self, X: Any) -> np.ndarray:
        return self.responses["decision_function"]


class _Number(RegressorMixin, BaseEstimator):
    def __init__(self, responses: Any = None):
        self.responses = responses

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, X: Any) -> np.ndarray:
        return self.responses["predict"]
