"""Several annotators per row, against sums written out and against simulated annotators."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from annotated import simulated
from bilevel.reweighting import InputError, learn_from_annotations
from bilevel.reweighting._weights.annotators import (
    Annotations,
    Annotators,
    Labels,
    _matrices,
    vote,
)

NONE = Labels(*(np.zeros(0, int) for _ in range(3)))


def matrices(counts, believed):
    """What each annotator makes of each class, cell by cell."""
    annotators, classes, _ = counts.shape
    together = counts.sum(axis=0) + 2 * believed
    everyone = together / together.sum(axis=1, keepdims=True)
    accuracy = sum(together[y, y] for y in range(classes)) / together.sum()
    found = np.zeros_like(counts)
    for a in range(annotators):
        hits = sum(counts[a, y, y] for y in range(classes))
        own = (hits + 5 * accuracy) / (counts[a].sum() + 5)
        for y in range(classes):
            ratio = (own / (1 - own)) / (accuracy / (1 - accuracy))
            odds = everyone[y, y] / (1 - everyone[y, y]) * ratio
            right = odds / (1 + odds)
            for label in range(classes):
                share = everyone[y, label] / (1 - everyone[y, y])
                expected = right if label == y else (1 - right) * share
                found[a, y, label] = counts[a, y, label] + 5 * expected
            found[a, y] /= found[a, y].sum()
    return found


@pytest.mark.parametrize("power", [1.0, 0.7])
def test_expectation_maximisation_label_by_label(power):
    rng = np.random.default_rng(0)
    n, classes, annotators = 25, 3, 4
    p = rng.dirichlet(np.ones(classes), n)
    labels = Labels(
        np.repeat(np.arange(n), 2), rng.integers(0, annotators, 2 * n), rng.integers(0, 3, 2 * n)
    )
    y_trusted, known = np.array([0, 1, 2, 1]), np.array([True, True, False, True])
    trusted = Labels(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 3]), np.array([0, 2, 2, 1]))
    found = Annotators.fit(p, Annotations(labels, trusted, annotators), y_trusted, known, power)

    believed = np.full((3, 3), 0.05) + np.diag([0.85] * 3)
    noise, posterior = np.stack([believed] * annotators), p
    for _ in range(40):
        posterior = p.copy()
        for i, a, label in zip(*labels, strict=True):
            posterior[i] *= noise[a, :, label] ** power
        posterior /= posterior.sum(axis=1, keepdims=True)
        counts = np.zeros((annotators, classes, classes))
        for i, a, label in zip(*labels, strict=True):
            counts[a, :, label] += posterior[i]
        for a, y, label in [(0, 0, 0), (0, 1, 2), (3, 1, 1)]:  # not of the row that is held out
            counts[a, y, label] += 1
        noise = matrices(counts, believed)
    np.testing.assert_allclose(found.posterior, posterior, rtol=1e-8)
    np.testing.assert_allclose(found.noise, noise, rtol=1e-8)


def test_few_labels_tell_a_careful_annotator_from_a_careless_one():
    """One with many labels has a matrix of his own; without labels, it is that of all together."""
    counts = np.zeros((4, 2, 2))
    counts[0] = [[900, 100], [300, 700]]
    counts[1] = [[5, 0], [0, 5]]
    counts[2] = [[1, 4], [4, 1]]
    believed = np.array([[0.9, 0.1], [0.1, 0.9]])
    noise = _matrices(counts, believed)
    np.testing.assert_allclose(noise.sum(axis=2), 1)
    np.testing.assert_allclose(noise[0], counts[0] / 1000, atol=0.01)
    careful, careless, nothing = (np.diag(noise[a]) for a in (1, 2, 3))
    assert (careless + 0.1 < nothing).all()
    assert (nothing + 0.05 < careful).all()
    np.testing.assert_allclose(nothing, [0.9, 0.7], atol=0.01)


def test_a_vote_without_features_trusts_those_who_agree():
    """Three careful annotators against one who is always wrong, on rows with two labels each."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 300)
    row = np.repeat(np.arange(300), 2)
    who = np.concatenate([rng.choice(4, 2, replace=False) for _ in range(300)])
    label = np.where(who == 3, (y[row] + 1) % 3, y[row])
    assert (vote(Annotations(Labels(row, who, label), NONE, 4), 300, 3) == y).mean() > 0.99


@pytest.mark.slow
def test_simulated_annotators_are_seen_through():
    X, y, table, first, skill, right = simulated()
    columns = ("id", "by", "label")
    found = learn_from_annotations(
        X[:400],
        table[first],
        X[400:],
        y[400:],
        columns=columns,
        annotations_trusted=table[~first],
    )
    majority = table[first].groupby("id")["label"].agg(lambda s: s.mode()[0])[X.index[:400]]
    assert found.rows.index.tolist() == X.index[:400].tolist()
    ours = np.mean(found.rows["consensus"] == y[:400])
    assert ours > 0.94 > (np.asarray(majority) == y[:400]).mean() + 0.05
    known = found.annotators["quality"].sort_index()
    assert np.corrcoef(rankdata(known), rankdata(skill))[0, 1] > 0.95
    assert found.annotators["quality"].is_monotonic_increasing
    np.testing.assert_allclose(known, skill, atol=0.12)
    assert roc_auc_score(right[first], found.labels["quality"]) > 0.97
    assert found.labels[list(columns)].equals(
        table.loc[first, list(columns)].reset_index(drop=True)
    )
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    label_quality = found.rows["label_quality"]
    np.testing.assert_allclose(
        label_quality, found.probabilities.to_numpy()[np.arange(400), found.rows["consensus"]]
    )
    assert found.result.label_quality.index.tolist() == X.index[:400].tolist()
    np.testing.assert_allclose(found.result.label_quality, label_quality)
    assert abs(float(np.mean(found.result.weights)) - 1) < 1e-9 or not found.result.weights.any()
    assert "9 annotators gave 1200 labels to 400 rows" in str(found)
    assert np.mean(found.result.score_rows(X[400:], y[400:])["keep"]) > 0.8


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: t.rename(columns={"by": "who"}),
            r"has no column 'by'; it has 'id', 'who', 'label'",
        ),
        (
            lambda t: t.assign(id=t["id"].replace("r7", "r9999")),
            r"labels the rows 'r9999', which are",
        ),
        (
            lambda t: pd.concat([t, t[:1]]),
            r"more than one label of one annotator for the rows 'r0'",
        ),
        (
            lambda t: t.assign(label=t["label"].where(t["id"] != "r3")),
            r"gaps in the lines 9, 10, 11;",
        ),
        (lambda t: t[~t["id"].isin(["r5", "r6"])], r"the rows 'r5', 'r6' have no line in"),
        (lambda t: t.to_numpy(), r"must be a table with one line per label"),
        (
            lambda t: t.assign(by=[f"{x} " if k % 2 else x for k, x in enumerate(t["by"])]),
            r"the annotators are written in several ways that look alike",
        ),
        (
            lambda t: t.assign(by=[1 if k == 0 else x for k, x in enumerate(t["by"])]),
            r"the annotators are texts in some lines .* no texts in others \(1\)",
        ),
        (
            lambda t: t.assign(label=["0" if k == 0 else x for k, x in enumerate(t["label"])]),
            r"the labels of the annotators are texts in some lines \('0'\)",
        ),
    ],
)
def test_bad_annotations_are_refused(spoil, message):
    X, y, table, first, *_ = simulated(n=60, m=30)
    with pytest.raises(InputError, match=message):
        learn_from_annotations(
            X[:60], spoil(table[first]), X[60:], y[60:], columns=("id", "by", "label")
        )


def test_rows_that_cannot_be_told_apart_and_groups_in_another_order_are_refused():
    X, y, table, first, *_ = simulated(n=60, m=30)
    train, rest = X[:60], (X[60:], y[60:])
    names: Any = {"columns": ("id", "by", "label")}
    twice = train.set_axis(["r0", *train.index[:-1]], axis=0)
    with pytest.raises(InputError, match=r"in which 'r0' repeat; give each row a name of its own"):
        learn_from_annotations(twice, table[first], *rest, **names)
    with pytest.raises(InputError, match=r"three different columns .*got 'id', 'id', 'label'"):
        learn_from_annotations(train, table[first], *rest, columns=("id", "id", "label"))
    groups = pd.Series(np.arange(60) % 3, train.index)[::-1]
    with pytest.raises(InputError, match=r"`groups` has the index of its rows in another order"):
        learn_from_annotations(train, table[first], *rest, groups=groups, **names)
    with pytest.raises(ValueError, match=r"`seed` must be an integer from 0"):
        learn_from_annotations(train, table[first], *rest, seed=-1, **names)
