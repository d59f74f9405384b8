"""What each label model says of the rows that are looked at first."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .label_models import Member

MOST = 200  # rows


class Opinions(NamedTuple):
    """What the label models of the pool say of the rows of lowest label quality.

    No model has learned from the row that it judges.

    Attributes:
        rows: the places of these rows among the training rows, the worst first.
        models: their names.
        said: the label, or the target, that each model says.
        probability: what it gives that label; NaN in a regression.
        given: what it gives the given label; NaN in a regression.
    """

    rows: Int[np.ndarray, " k"]
    models: list[str]
    said: np.ndarray
    probability: Float[np.ndarray, "k models"]
    given: Float[np.ndarray, "k models"]

    @classmethod
    def of(
        cls,
        members: list[Member],
        quality: Float[np.ndarray, " n"],
        y: np.ndarray,
        decode: Callable[[np.ndarray], np.ndarray],
    ) -> "Opinions":
        """Of the members of a search; `y` are the given labels as codes, or targets."""
        rows = np.argsort(quality, kind="stable")[:MOST]
        outputs = [member.train[-1][rows] for member in members]
        said = np.stack([decode(one) for one in outputs], axis=1)
        probability = np.full(said.shape, np.nan)
        given = probability.copy()
        if y.dtype.kind in "iu":
            p = [np.exp(one) for one in outputs]
            probability = np.stack([one.max(axis=1) for one in p], axis=1)
            given = np.stack([one[np.arange(len(rows)), y[rows]] for one in p], axis=1)
        return cls(rows, [member.name for member in members], said, probability, given)
