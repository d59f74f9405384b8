"""Labels that the other rows contradict, where nobody has verified a row."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_blobs, make_classification

from bilevel.reweighting import audit
from bilevel.reweighting._audit import wrong_labels
from bilevel.reweighting._audit.audit import IN_ORDER
from bilevel.reweighting._audit.wrong_labels import doubt_labels, number_listed


def blobs(n: int = 240, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    made: Any = make_blobs(n, centers=[[0, 0, 0], [7, 0, 0], [0, 7, 0]], random_state=seed)
    X, y = made[:2]
    table = pd.DataFrame(X, columns=["a", "b", "c"], index=[f"r{i}" for i in range(n)])
    return table, np.array(["ant", "bee", "cow"])[y]


def contradicted(X: pd.DataFrame, y: np.ndarray) -> tuple[str, set[str], str]:
    (found,) = (f for f in audit(X, y).findings if f.check == "labels/wrong")
    return found.severity, set(found.ids), found.detail


def test_flipped_labels_are_listed_and_right_ones_are_not():
    X, y = blobs()
    assert contradicted(X, y)[:2] == ("ok", set())
    flipped = np.arange(5, 240, 24)
    given = y.copy()
    given[flipped] = np.where(y[flipped] == "ant", "bee", "ant")
    severity, ids, detail = contradicted(X, given)
    assert severity == "warning"
    planted = {f"r{i}" for i in flipped}
    assert len(ids & planted) >= 7
    assert len(ids - planted) <= 1
    assert "of the labels seem to be wrong" in detail
    assert f"{len(ids)} rows, the most certain first: 'r" in detail


def test_a_leaking_column_does_not_hide_them():
    X, y = blobs()
    given = y.copy()
    given[::24] = np.where(y[::24] == "cow", "bee", "cow")
    leaking = X.assign(code=pd.factorize(given, sort=True)[0] * 2.0)
    assert len(contradicted(leaking, given)[1] & {f"r{i}" for i in range(0, 240, 24)}) >= 7


def test_the_rate_and_the_probabilities_are_calibrated():
    made: Any = make_classification(
        600, 6, n_informative=4, class_sep=2.0, flip_y=0, random_state=1
    )
    X, y = made
    rng = np.random.default_rng(0)
    wrong = rng.random(600) < 0.1
    found = doubt_labels((X - X.mean(0)) / X.std(0), X, np.where(wrong, 1 - y, y), 0)
    assert found.rate == pytest.approx(wrong.mean(), abs=0.03)
    assert found.wrong.sum() == pytest.approx(wrong.sum(), rel=0.25)
    sure = found.wrong > 0.5
    assert wrong[sure].mean() > 0.85
    assert (found.suggested[sure & wrong] == y[sure & wrong]).mean() > 0.9


def test_of_two_maxima_the_greater_is_taken(monkeypatch):
    # On a table of coarse scores, the search from one start ended where half of all labels are wrong.
    ends = [SimpleNamespace(x=np.array([-2.9, -6, 0.4, 12]), fun=803.7)]
    ends += [SimpleNamespace(x=np.array([-6, -2.6, -0.6, -2.8]), fun=786.7)]
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 2)), rng.integers(0, 2, 60)
    for order in (ends, ends[::-1]):
        turn = iter(order)
        monkeypatch.setattr(wrong_labels, "minimize", lambda *_, turn=turn, **__: next(turn))
        assert doubt_labels(X, X, y, 0).rate == pytest.approx(0.5 / (1 + np.exp(2.8)))


def test_trusted_rows_teach_and_are_never_listed():
    X, y = blobs(300)
    given = y.copy()
    given[:240:24] = np.where(y[:240:24] == "ant", "bee", "ant")
    given[252::12] = "cow"  # a trusted row is right, whatever the others say
    (found,) = (
        f
        for f in audit(X[:240], given[:240], X[240:], given[240:]).findings
        if f.check == "labels/wrong"
    )
    assert len({f"r{i}" for i in range(0, 240, 24)} & set(found.ids)) >= 7
    assert set(found.ids) <= {f"r{i}" for i in range(240)}
    assert "`bilevel weigh` says how sure this is" in found.detail


def test_rows_that_are_right_say_nothing_of_the_rate():
    """With nothing but right labels, the rate is the mode of its prior, r exp(-r / 0.025)."""
    X, y = blobs(60)
    codes = (np.unique(y, return_inverse=True)[1] + (np.arange(60) < 5)) % 3
    found = doubt_labels(X.to_numpy(), X.to_numpy(), codes, 0, np.ones(60, bool))
    assert found.rate == pytest.approx(0.025, rel=1e-3)
    assert (found.wrong == 0).all()


def test_labels_of_nothing_are_not_called_wrong():
    """Where the columns say nothing of the labels, every label is contradicted, and none is wrong."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(200, 4)), columns=list("abcd"))
    severity, ids, _ = contradicted(X, rng.choice(["x", "y"], 200))
    assert (severity, ids) == ("ok", set())


def test_the_list_has_the_greatest_expected_f1_and_no_row_below_a_fifth():
    wrong = np.array([0.95, 0.9, 0.6, 0.3, 0.25, 0.1, 0.01])
    expected = [2 * wrong[:k].sum() / (k + wrong.sum()) for k in range(1, 8)]
    assert number_listed(wrong) == int(np.argmax(expected)) + 1 == 3
    assert number_listed(np.array([0.15, 0.1, 0.1])) == 0


def test_without_trusted_rows_all_other_checks_are_made():
    X, y = blobs(120)
    late = X.assign(who=[f"p{i // 3}" for i in range(120)], day=np.arange(120.0))
    both = audit(late[:90], y[:90], None, None, late[90:], y[90:], entity="who", time="day")
    assert "trusted" not in str([f.title for f in both.findings])
    assert {f.table for f in both.findings} <= {"train", "holdout"}
    alone = {f.check for f in audit(late[:90], y[:90]).findings}
    assert {"labels/wrong", "duplicates/rows", "conflicts/near"} <= alone
    assert alone <= {*IN_ORDER, "labels/wrong"}


def test_regressions_and_few_rows_are_left_alone():
    X, y = blobs(40)
    assert "labels/wrong" not in {f.check for f in audit(X, y).findings}
    rng = np.random.default_rng(0)
    assert "labels/wrong" not in {f.check for f in audit(blobs()[0], rng.normal(size=240)).findings}
