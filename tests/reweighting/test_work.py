"""What checking rows costs, and the simulated curve, against fits by hand."""

import numpy as np
import pytest
from sklearn.naive_bayes import GaussianNB

from bilevel.reweighting._report.refits import Rows
from bilevel.reweighting._report.work import verified_curve, work
from reports import made_result


def made(trusted: int = 80) -> tuple[Rows, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    X = rng.normal(size=(200, 3)) + 1.5 * y[:, None]
    given = np.where(rng.random(200) < 0.4, 1 - y, y)
    y_trusted, held = np.arange(trusted) % 2, np.arange(300) % 2
    X_trusted, X_held = (rng.normal(size=(len(t), 3)) + 1.5 * t[:, None] for t in (y_trusted, held))
    result = made_result(np.where(np.arange(200) < 30, 0.1, 1.0), trusted)
    return Rows(GaussianNB(), X, given, X_trusted, y_trusted, result), (X_held, held)


def test_hours_and_minutes():
    rows, holdout = made()
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    noise = {"precision": share, "rate": share | {"value": 0.1}, "verify": {"rows": ["a"] * 45}}
    found = work(rows, noise, 2, holdout, 0)
    assert found is not None
    assert (found["flagged"], found["hours"], found["hours_of_all"]) == (30, 1.0, 200 / 30)
    assert found["minutes_per_wrong_label"] == 4
    assert found["minutes_per_wrong_label_at_random"] == pytest.approx(20)
    assert (found["verify_rows"], found["verify_hours"]) == (45, 1.5)
    assert work(rows, noise, None, holdout, 0) is None


def test_the_curve_ends_with_all_trusted_rows_and_is_that_of_fits_by_hand():
    rows, (X_held, held) = made()
    found = verified_curve(rows, 3, (X_held, held), 0)
    assert found is not None
    assert found["judged_on"] == "hold-out"
    assert [line["verified"] for line in found["lines"]] == [10, 20, 40, 80]
    last = found["lines"][-1]
    alone = GaussianNB().fit(rows.X_trusted, rows.y_trusted)
    agree = alone.predict(rows.X) == rows.y
    both = GaussianNB().fit(
        np.r_[rows.X[agree], rows.X_trusted], np.r_[rows.y[agree], rows.y_trusted]
    )
    # All orders of all rows are one set of rows.
    for name, model in (("trusted_only", alone), ("filter", both)):
        assert last[name] == pytest.approx(model.score(X_held, held))
        assert last[f"{name}_low"] == pytest.approx(last[f"{name}_high"])
    first = found["lines"][0]
    assert first["trusted_only_low"] < first["trusted_only_high"]
    assert first["hours"] == 0.5


def test_without_a_holdout_half_of_the_trusted_rows_judges():
    found = verified_curve(made()[0], 3, None, 0)
    assert found is not None
    assert found["judged_on"] == "half of the trusted rows"
    assert [line["verified"] for line in found["lines"]] == [10, 20, 40]
    assert verified_curve(made(trusted=38)[0], 3, None, 0) is None  # 19 to draw from
