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
FOREST_CONFIRMED = 2.0  # those that are enough for forests if the given labels agree
FEW_WRONG = 0.1  # the share of wrong labels below which the given labels alone say who joins


class Offer(NamedTuple):
    """Models of one kind that may join the pool.

    Attributes:
        members: of all rows, and of the trusted rows alone if these suffice.
        bar: standard errors by which they must lower the loss of the trusted rows.
        again: the kind of model that learns from the weighted rows too, if it joins.
        confirmed: standard errors that are enough if the loss of the given labels falls by as many.
    """

    members: list[Member]
    bar: float
    again: LabelModel | None = None
    confirmed: float = np.inf


def offers_of(folds: Folds, X: np.ndarray, X_trusted: np.ndarray, *, trees: bool) -> list[Offer]:
    """Forests, kernel models and boosted trees, where there is enough to fit them on.

    `trees`: whether the user's own kind of model are trees. Then a smaller forest joins in any case,
    and there are boosted trees already.
    """
    offers = []
    forests = forest_label_models(folds, X, X_trusted, beside_trees=trees)
    if forests is not None:
        of_all, of_trusted = cross_fitted(forests[0]), trusted_only(forests[1])
        bar = -np.inf if trees else FOREST_JOINS
        offers.append(Offer([of_all, of_trusted], bar, confirmed=FOREST_CONFIRMED))
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

    An offer joins if it lowers the loss of the trusted rows by `bar` standard errors, or by
    `confirmed` ones if it lowers the loss of the given labels as clearly, or if it lowers that of the
    given labels where the pool says that less than a tenth of them are wrong. It must still do so
    beside those that join after it, which see more. A pool that follows few trusted rows gives every
    member some weight.

    Where linear models suffice, trees lower the loss of the trusted rows a little and learn more of
    the noise: real label errors are then ranked worse. Where they do not suffice, the given labels say
    so too, which are many. Where many of them are wrong they say nothing alone: wrong labels that
    follow from the features are learned, too. What models say of the training rows is not asked for
    before it matters.
    """

    def with_those(joined: list[Offer]) -> list[Member]:
        return [*members, *(member for offer in joined for member in offer.members)]

    def helps(offer: Offer, others: list[Offer]) -> bool:
        if offer.bar == -np.inf:
            return True
        pools = with_those(others), with_those([*others, offer])
        before, after = (_losses(folds, pool) for pool in pools)
        known = in_standard_errors(before - after)
        if known > offer.bar or not isinstance(folds.kind, Classes):
            return known > offer.bar
        without = _judge_given(folds, pools[0])
        few = without.wrong < FEW_WRONG
        if not few and known <= offer.confirmed:
            return False
        given = in_standard_errors(without.losses - _judge_given(folds, pools[1]).losses)
        return given > (0 if few else offer.confirmed)

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


class _Given(NamedTuple):
    """What a pool says of the given labels.

    Attributes:
        losses: of the given labels, right or wrong.
        wrong: the share of them that are wrong.
    """

    losses: Float[np.ndarray, " units"]
    wrong: float


def _judge_given(folds: Folds, members: list[Member]) -> _Given:
    """The given labels under a pool of these members and its noise matrix.

    Of a class that no trusted row has, models of the trusted rows know nothing: it judges nobody.
    """
    rows, sub = np.flatnonzero(folds.known(FOLDS)), folds.sub
    train = [member.train[FOLDS][sub] for member in members]
    y, weight = folds.y[sub], folds.weight[sub]
    pool = ClassPool.fit(
        Classes(folds.kind.number),
        [member.trusted[FOLDS][rows] for member in members],
        folds.y_trusted[rows],
        train,
        y,
        weight_trusted=folds.weight_trusted[rows],
        weight=weight,
    )
    judging = ~folds.unjudged[sub]
    losses = folds.of_units(pool.losses(train, y)[judging], sub[judging])
    return _Given(losses, 1 - float(np.average(pool.right(train, y), weights=weight)))


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


def in_standard_errors(gains: Float[np.ndarray, " units"]) -> float:
    """The mean of the gains in its standard errors; 0 where there are not two, or nothing changes."""
    if len(gains) < 2 or not gains.any():
        return 0.0
    return float(gains.mean()) / max(standard_error(gains), 1e-300)
