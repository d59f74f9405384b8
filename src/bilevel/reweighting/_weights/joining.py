"""Which flexible label models join the pool."""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .flexible_models import (
    boosted_label_model,
    forest_label_models,
    kernel_label_model,
)
from .folds import FOLDS, Folds
from .label_models import LabelModel, Member, cross_fitted, trusted_only
from .labels import Classes
from .pool import ClassPool, NumberPool

FOREST_JOINS, KERNEL_JOINS, BOOSTED_JOINS = 4.0, 1.0, 1.5  # standard errors, see `join`


class Offer(NamedTuple):
    """Models of one kind that may join the pool.

    Attributes:
        members: of all rows, and of the trusted rows alone if these suffice.
        bar: standard errors by which they must lower the pool's loss.
        again: the kind of model that learns from the weighted rows too, if it joins.
    """

    members: list[Member]
    bar: float
    again: LabelModel | None = None


def offers_of(folds: Folds, X: np.ndarray, X_trusted: np.ndarray, *, trees: bool) -> list[Offer]:
    """Forests, kernel models and boosted trees, where there is enough to fit them on.

    `trees`: whether the user's own kind of model are trees. Then a smaller forest joins in any case,
    and there are boosted trees already.
    """
    offers = []
    forests = forest_label_models(folds, X, X_trusted, beside_trees=trees)
    if forests is not None:
        of_all, of_trusted = cross_fitted(forests[0]), trusted_only(forests[1])
        offers.append(Offer([of_all, of_trusted], -np.inf if trees else FOREST_JOINS))
    kernel = kernel_label_model(folds, X, X_trusted)
    if kernel is not None:
        offers.append(Offer([cross_fitted(kernel), trusted_only(kernel)], KERNEL_JOINS, kernel))
    boosted = None if trees else boosted_label_model(folds, X, X_trusted)
    if boosted is not None:
        offers.append(Offer([cross_fitted(boosted)], BOOSTED_JOINS, boosted))
    return offers


def join(
    folds: Folds, members: list[Member], offers: list[Offer]
) -> tuple[list[Member], list[LabelModel]]:
    """(the members of the pool with those that help, the kinds among these that learn again).

    An offer joins if it lowers the loss of the trusted rows by `bar` standard errors. It must still do
    so beside those that join after it, which see more. A pool that follows few trusted rows gives
    every member some weight. Where linear models suffice, trees lower its loss a little and learn more
    of the noise: real label errors are then ranked worse. Where they do not suffice, nobody doubts it.
    What models say of the training rows is not asked for before they join.
    """

    def with_those(joined: list[Offer]) -> list[Member]:
        return [*members, *(member for offer in joined for member in offer.members)]

    def helps(offer: Offer, others: list[Offer]) -> bool:
        if offer.bar == -np.inf:
            return True
        losses = [_losses(folds, with_those(joined)) for joined in (others, [*others, offer])]
        gain = losses[0] - losses[1]
        return bool(gain.mean() > offer.bar * standard_error(gain))

    joined: list[Offer] = []
    for offer in offers:
        joined += [offer] if helps(offer, joined) else []
    for offer in joined[:-1]:
        others = [other for other in joined if other is not offer]
        joined = joined if helps(offer, others) else others
    more = [
        spoken_for(folds, [member.with_small_models() for member in offer.members])
        for offer in joined
    ]
    again = [offer.again for offer in joined if offer.again is not None]
    return [*members, *(member for pair in more for member in pair)], again


def _losses(folds: Folds, members: list[Member]) -> Float[np.ndarray, " judged"]:
    """Of the trusted rows, under a pool of these members."""
    rows = np.flatnonzero(folds.known(FOLDS))
    trusted = [member.trusted[FOLDS] for member in members]
    of_known = np.stack([outputs[rows] for outputs in trusted])
    known = folds.y_trusted[rows], folds.weight_trusted[rows]
    kind = folds.kind
    pool = (
        ClassPool.without_noise(kind.number, of_known, *known)
        if isinstance(kind, Classes)
        else NumberPool.of_trusted(of_known, *known)
    )
    return folds.judge(pool.outputs(trusted))[0]


def spoken_for(folds: Folds, members: list[Member]) -> list[Member]:
    """The members, where each of trusted rows alone follows the one of all rows of the same kind.

    Of a row whose class no trusted row has, models of the trusted rows alone know nothing. There the
    model of all rows speaks in their place.
    """
    strange = np.flatnonzero(folds.unjudged)
    if not len(strange):
        return members
    spoken = [members[0]]
    for before, member in itertools.pairwise(members):
        train = [outputs.copy() for outputs in member.train] if member.alone else member.train
        for outputs, known in zip(train, before.train, strict=True):
            if member.alone:
                outputs[strange] = known[strange]
        spoken.append(dataclasses.replace(member, train=train))
    return spoken


def standard_error(difference: Float[np.ndarray, " m"]) -> float:
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))
