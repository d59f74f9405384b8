"""How many labels are wrong: against closed forms, and coverage of the intervals."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import beta

from bilevel import learn_weights
from bilevel.reweighting._weights.calibration import (
    CENTRES,
    Calibration,
    Draw,
    Evidence,
    log_odds,
    simulated,
)
from bilevel.reweighting._weights.noise import Estimate, flag, how_many, suspects
from digits import digits

SPREAD = 2.0  # of log-odds around -2 (right) and 2 (wrong): their log-likelihood ratio is 4 s / 4


def scores(wrong: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(wrong, 2.0, -2.0) + SPREAD * rng.normal(size=len(wrong))


def evidence(s: np.ndarray, m: int, rng: np.random.Generator) -> Evidence:
    right, wrong = scores(np.zeros(m, bool), rng), scores(np.ones(m, bool), rng)
    labels = np.zeros(m, int)
    return Evidence(s, np.ones(len(s)), right, np.ones(m), wrong, np.ones(m), labels, labels, 0)


def pairs(s: np.ndarray, s_pairs: np.ndarray, wrong: np.ndarray) -> Evidence:
    a, b = s_pairs[~wrong], s_pairs[wrong]
    none = np.zeros(len(a), int), np.zeros(len(b), int)
    ones = np.ones(len(a)), np.ones(len(b))
    return Evidence(s, np.ones(len(s)), a, ones[0], b, ones[1], *none, pairs=len(wrong))


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def test_log_odds_are_those_of_the_posterior():
    p = np.array([[0.7, 0.2, 0.1]])
    noise = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.0, 0.5, 0.5]])
    right, wrong = 0.2 * 0.6, 0.7 * 0.1 + 0.1 * 0.5
    assert log_odds(p, noise, np.array([1]))[0] == pytest.approx(np.log(wrong / right))


def test_simulated_labels_are_wrong_and_follow_the_matrix():
    noise = np.array([[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.0, 0.5, 0.5]])
    y = np.array([0, 1, 2])
    odds, weight, label = simulated(np.full((3, 3), 1 / 3), noise, noise, y)
    table = np.zeros((3, 3))
    np.add.at(table, (np.repeat(y, 2), label), weight)
    np.testing.assert_allclose(table, [[0, 0.75, 0.25], [0.75, 0, 0.25], [0, 1, 0]])
    np.testing.assert_allclose(odds, log_odds(np.full((6, 3), 1 / 3), noise, label), rtol=1e-12)


def test_probabilities_are_those_of_the_mixture():
    rng = np.random.default_rng(0)
    truth = rng.random(20_000) < 0.1
    s = scores(truth, rng)
    wrong, _, noise = how_many(evidence(s, 20_000, rng), np.zeros(20_000, int))
    exact = expit(s + np.log(0.1 / 0.9))
    np.testing.assert_allclose(wrong, exact, atol=0.02)
    assert noise.rate.value == pytest.approx(truth.mean(), abs=0.008)
    assert covers(noise.rate, truth.mean())


@pytest.mark.parametrize("seen", [0, 3, 40])
def test_pairs_that_say_nothing_else_give_jeffreys_interval(seen):
    """With log-odds that are all alike, the interval is the binomial one of Jeffreys' prior."""
    wrong = np.arange(200) < seen
    _, _, noise = how_many(
        pairs(np.zeros(1_000_000), np.zeros(200), wrong), np.zeros(1_000_000, int)
    )
    low, high = beta(seen + 0.5, 200.5 - seen).ppf([0.025, 0.975])
    assert noise.rate.low == pytest.approx(low, abs=0.006)
    assert noise.rate.high == pytest.approx(high, abs=0.012)
    assert noise.verified_pairs == 200


def test_pairs_and_a_good_pool_give_less_width():
    rng = np.random.default_rng(1)
    truth, checked = rng.random(5000) < 0.2, rng.random(200) < 0.2
    zeros = np.zeros(5000, int)
    blind = how_many(pairs(np.zeros(5000), np.zeros(200), checked), zeros)[2].rate
    seeing = how_many(pairs(scores(truth, rng), scores(checked, rng), checked), zeros)[2].rate
    assert seeing.high - seeing.low < 0.85 * (blind.high - blind.low)
    assert covers(seeing, truth.mean())


def test_the_list_has_the_greatest_expected_f1():
    p = np.random.default_rng(2).random(12) ** 3
    best = max(
        2 * np.sort(p)[::-1][:k].sum() / (k + p.sum()) for k in range(1, 13)
    )  # the best list of k rows holds the k most probable
    flagged = flag(p)
    assert 2 * p[flagged].sum() / (flagged.sum() + p.sum()) == pytest.approx(best)
    assert p[flagged].min() > best / 2 > p[~flagged].max()
    assert best / 2 <= 0.5


def test_the_list_has_the_wanted_precision_and_is_as_long_as_can_be():
    p = np.random.default_rng(3).random(50)
    flagged = flag(p, 0.8)
    assert p[flagged].mean() >= 0.8
    longer = np.sort(p)[::-1][: flagged.sum() + 1]
    assert longer.mean() < 0.8
    assert not flag(np.full(5, 0.3), 0.8).any()
    assert not flag(np.full(40, 0.01)).any()  # not even half a wrong label is expected


def test_where_the_models_cannot_tell_no_row_is_flagged():
    rng = np.random.default_rng(5)
    s, ones = rng.normal(size=(3, 400)), np.ones(400)  # the same of right and of wrong labels
    labels = rng.integers(0, 2, 400)
    blind = Evidence(s[0], ones, s[1], ones, s[2], ones, labels, labels, 0)
    _, flagged, noise = how_many(blind, labels)
    assert not flagged.any()
    assert noise.rate.high > 0.9
    assert "No row is flagged: the models cannot tell which labels are wrong." in str(noise)
    truth = rng.random(400) < 0.1
    assert how_many(evidence(scores(truth, rng), 400, rng), labels)[1].any()


def test_one_bad_group_and_one_bad_class_are_found():
    rng = np.random.default_rng(4)
    group, label = np.repeat([0, 1, 2, 3], 1000), np.arange(4000) % 2
    truth = rng.random(4000) < np.where(group == 2, 0.3, 0.02)
    s = scores(truth, rng)
    m = 2000
    found = evidence(s, m, rng)._replace(right_label=np.arange(m) % 2, wrong_label=np.arange(m) % 2)
    _, flagged, noise = how_many(found, label, group)
    table: Any = noise.by_group
    for k in range(4):
        line, true = table.loc[k], truth[group == k].mean()
        assert float(line["low"]) - 0.01 <= true <= float(line["high"]) + 0.01
        assert int(line["rows"]) == 1000
    assert table["value"].idxmax() == 2
    assert table.loc[2, "low"] > table.drop(index=2)["high"].max()
    classes: Any = noise.by_class
    assert classes["rows"] @ classes["value"] / 4000 == pytest.approx(noise.rate.value, abs=0.01)
    assert classes["flagged"].sum() == noise.flagged
    assert noise.precision is not None
    for lines, code in ((table, group), (classes, label)):
        hit = [truth[flagged & (code == k)].mean() for k in lines.index]
        assert (lines["precision_low"] - 0.01 <= hit).all()
        assert (hit <= lines["precision_high"] + 0.01).all()
        mean = lines["flagged"] @ lines["precision"] / noise.flagged
        assert mean == pytest.approx(noise.precision.value, abs=0.02)


def test_an_interval_holds_its_estimate():
    """In a small class nearly all draws have one whole number, and the mean is beside it."""
    rng = np.random.default_rng(0)
    label = np.arange(1800) // 18
    truth = rng.random(1800) < 0.15
    s = 3 * scores(truth, rng)
    lines: Any = how_many(evidence(s, 500, rng), label)[2].by_class
    for value, low, high in (
        ("value", "low", "high"),
        ("precision", "precision_low", "precision_high"),
    ):
        known = lines[lines[value].notna()]
        assert (known[low] <= known[value]).all()
        assert (known[value] <= known[high]).all()


def test_a_class_without_flagged_rows_has_no_precision():
    rng = np.random.default_rng(4)
    label = np.arange(1000) % 2
    truth = (label == 1) & (rng.random(1000) < 0.2)
    found = evidence(np.where(label == 1, scores(truth, rng), -9.0), 500, rng)
    _, flagged, noise = how_many(found, label)
    assert flagged.any()
    assert not flagged[label == 0].any()
    assert noise.by_class.loc[0, ["precision", "precision_low", "precision_high"]].isna().all()
    lines = noise.to_dict()["by_class"]
    assert lines[0]["precision"] is None
    assert lines[1]["precision_low"] < lines[1]["precision"] < lines[1]["precision_high"]


def test_what_is_not_known_is_said_with_a_wide_interval():
    """Ten trusted rows say little of how often the models err."""
    rng = np.random.default_rng(5)
    s = scores(rng.random(3000) < 0.05, rng)
    few = how_many(evidence(s, 10, rng), np.zeros(3000, int))[2].rate
    many = how_many(evidence(s, 1000, rng), np.zeros(3000, int))[2].rate
    assert few.high - few.low > 2 * (many.high - many.low)


@pytest.mark.slow
def test_digits():
    """With every label's truth known: the interval covers, and pairs make it narrow."""
    data = digits()
    X, y, X_trusted, y_trusted = data.learnable
    alone = learn_weights(X, y, X_trusted, y_trusted)
    assert alone.noise is not None
    assert alone.wrong is not None
    truth = np.asarray(data.wrong)
    assert covers(alone.noise.rate, truth.mean())
    assert alone.noise.precision is not None
    assert covers(alone.noise.precision, truth[~alone.keep].mean())
    assert alone.noise.flagged == (~alone.keep).sum()
    assert str(alone.noise) in alone.advice
    assert alone.wrong[~alone.keep].min() >= alone.wrong[alone.keep].max()
    assert alone.wrong.max() <= 1
    strict = learn_weights(X, y, X_trusted, y_trusted, precision=0.99)
    assert (~strict.keep).sum() < (~alone.keep).sum()
    assert strict.wrong is not None
    assert strict.wrong[~strict.keep].mean() >= 0.99


def test_a_precision_that_is_none():
    data = digits()
    with pytest.raises(ValueError, match="above 0 and at most 1, got 90"):
        learn_weights(*data.learnable, precision=90.0)
    with pytest.raises(ValueError, match="`precision` needs method='auto'"):
        learn_weights(*data.learnable, precision=0.9, method="near-exact")


@pytest.mark.slow
@pytest.mark.parametrize("seen", [False, True])
def test_intervals_cover(seen):
    """In 93 to 97 of 100 simulated tables, give or take two standard errors of 300 of them.

    Without pairs the interval of the recall is wider than it need be; the method's page says so.
    """
    hits = np.zeros((300, 3))
    for i in range(300):
        rng = np.random.default_rng([6, i])
        truth, checked = rng.random(1500) < 0.05, rng.random(150) < 0.05
        s = scores(truth, rng)
        found = pairs(s, scores(checked, rng), checked) if seen else evidence(s, 150, rng)
        _, flagged, noise = how_many(found, np.zeros(1500, int), seed=i)
        assert noise.precision is not None
        hits[i] = (
            covers(noise.rate, truth.mean()),
            covers(noise.precision, truth[flagged].mean()),
            covers(noise.recall, truth[flagged].sum() / truth.sum()),
        )
    share = hits.mean(axis=0)
    assert (share > 0.93 - 0.025).all(), share
    assert (share[: 3 if seen else 2] < 0.97 + 0.02).all(), share


def test_the_bins_hold_what_matters():
    assert CENTRES[0] < -15
    assert CENTRES[-1] > 13


def verified(found: Evidence, truth: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, Evidence]:
    """(the rows that are left, the evidence once these rows are trusted ones)."""
    left, ones = np.setdiff1d(np.arange(len(truth)), rows), np.ones(len(rows))
    checked = {
        "checked": found.training[rows],
        "checked_wrong": truth[rows],
        "checked_weight": ones,
    }
    rest = {"training": found.training[left], "weight": np.ones(len(left))}
    return left, found._replace(**checked, **rest)


@pytest.mark.slow
def test_the_rows_to_verify_halve_the_interval_as_announced():
    """Learn the truth of the rows that are named, and of as many others: the former tell more."""
    widths = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth = rng.random(3000) < 0.05
        found = evidence(scores(truth, rng), 60, rng)
        noise = how_many(found, np.zeros(3000, int), seed=seed)[2]
        plan = noise.verify
        assert plan is not None
        assert len(set(plan.rows.tolist())) == len(plan.rows) <= 100
        assert plan.width == pytest.approx(noise.rate.high - noise.rate.low)
        assert plan.expected_width <= plan.width / 2
        line = [plan.width, plan.expected_width]
        for rows in (plan.rows, rng.permutation(3000)[: len(plan.rows)]):
            left, after = verified(found, truth, rows)
            rate = how_many(after, np.zeros(len(left), int), seed=seed)[2].rate
            assert covers(rate, truth[left].mean())
            line.append(rate.high - rate.low)
        widths.append(line)
    now, announced, named, others = np.mean(widths, axis=0)
    assert named == pytest.approx(announced, rel=0.25)
    assert named < 0.55 * now
    assert others > 0.65 * now


def test_one_pair_more_changes_the_mixture_by_its_likelihood():
    """Against Bayes' rule on draws without the pairs."""
    rng = np.random.default_rng(6)
    found = evidence(scores(rng.random(400) < 0.1, rng), 50, rng)
    s, wrong = np.array([0.05, 1.05, -1.95]), np.array([True, False, False])
    pairs_too = found._replace(checked=s, checked_wrong=wrong, checked_weight=np.ones(3))
    before = [d for seed in range(20) for d in Calibration.fit(found).draws(seed)]
    after = [d.rate for seed in range(20) for d in Calibration.fit(pairs_too).draws(seed)]
    odds = [np.interp(s, CENTRES, d.ratio) + np.log(d.rate / (1 - d.rate)) for d in before]
    likelihood = np.prod(expit(np.where(wrong, odds, -np.array(odds))), axis=1)
    expected = np.average([d.rate for d in before], weights=likelihood)
    assert np.mean(after) == pytest.approx(expected, rel=0.03)
    assert np.mean([d.rate for d in before]) != pytest.approx(expected, rel=0.05)


def test_a_few_draws_in_which_most_labels_are_wrong_do_not_fill_the_list(monkeypatch):
    """Nine of ten draws are alike: the list is theirs; the probability is the mean of all."""
    rng = np.random.default_rng(7)
    s = rng.normal(-3, 1.5, 2000)
    found = evidence(s, 20, rng)
    usual, odd = Draw(0.02, CENTRES), Draw(0.97, CENTRES)
    monkeypatch.setattr(Calibration, "draws", lambda self, seed: [usual] * 9 + [odd])
    wrong, flagged, _ = suspects(found)
    p, q = expit(CENTRES + logit(0.02)), expit(CENTRES + logit(0.97))
    np.testing.assert_allclose(wrong, np.interp(s, CENTRES, 0.9 * p + 0.1 * q))
    np.testing.assert_array_equal(flagged, flag(np.interp(s, CENTRES, p)))
    assert flag(wrong).sum() > 10 * flagged.sum() > 0
    asked = suspects(found, precision=0.1)[1]
    np.testing.assert_array_equal(asked, flag(wrong, 0.1))
