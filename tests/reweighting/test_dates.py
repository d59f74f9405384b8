"""Dates: what comes first, day or month; times with and without a zone; times of several tables."""

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bilevel.cli._audit_work import _dates
from bilevel.reweighting import InputError, audit
from bilevel.reweighting._inputs.columns import tidy, vectorise
from bilevel.reweighting._inputs.dates import describe_dates
from bilevel.reweighting._inputs.prepare import prepare
from bilevel.reweighting._inputs.row_facts import RowColumns

RNG = np.random.default_rng(0)


def table(format: str, last: int, rows: int = 40) -> pd.DataFrame:
    """Dates of 2024 up to this day of the month, as texts."""
    days = [datetime.date(2024, 1 + k % 12, 1 + 5 * k % last) for k in range(rows)]
    return pd.DataFrame({"when": [d.strftime(format) for d in days], "x": RNG.normal(size=rows)})


DAY_FIRST, MONTH_FIRST, ISO = "%d/%m/%Y", "%m/%d/%Y", "%Y-%m-%d"


def test_dates_that_could_be_two_are_told_unless_a_table_tells_them():
    (said,) = describe_dates({"train": table(DAY_FIRST, 12), "trusted": table(DAY_FIRST, 9)})
    assert "'when' holds dates such as '06/02/2024': the month is taken to come first" in said
    for other in (table(MONTH_FIRST, 28), table(ISO, 9)):
        found = describe_dates({"train": table(MONTH_FIRST, 28), "trusted": other})
        assert found == []
    assert (
        describe_dates({"train": table(MONTH_FIRST, 12), "trusted": table(MONTH_FIRST, 28)}) == []
    )
    with pytest.raises(
        InputError, match="in train, and in trusted day and month stand in the other"
    ):
        describe_dates({"train": table(DAY_FIRST, 12), "trusted": table(DAY_FIRST, 28)})
    for plain in (ISO, "%d %b %Y", "%Y%m%d"):
        assert describe_dates({"train": table(plain, 12), "trusted": table(plain, 28)}) == []


@pytest.mark.parametrize("typed", [False, True])
def test_new_dates_in_a_format_of_their_own_must_tell_day_and_month(typed):
    train = table(ISO, 28)
    if typed:
        train["when"] = pd.to_datetime(train["when"])
    pipeline, _, _ = vectorise({"train": train})
    expected = pipeline.transform(tidy(train, like=pipeline))
    for format in (DAY_FIRST, MONTH_FIRST, "%d.%m.%Y"):
        new = train.assign(when=table(format, 28)["when"])
        np.testing.assert_array_equal(pipeline.transform(tidy(new, like=pipeline)), expected)
        with pytest.raises(InputError, match=r"'when' holds dates such as .*cannot be told"):
            tidy(new.iloc[1:3], like=pipeline)


def test_times_with_and_without_a_zone_are_told():
    train = table("%Y-%m-%dT%H:%M:%S+02:00", 28)
    (said,) = describe_dates({"train": table(ISO, 28), "trusted": train})
    assert (
        "a time zone in trusted and without one in train: those without are taken for UTC" in said
    )
    utc = pd.to_datetime(train["when"], utc=True)
    zoned = utc.dt.tz_convert("Europe/Berlin")
    (again,) = describe_dates(
        {
            "train": train.assign(when=zoned),
            "trusted": train.assign(when=zoned.dt.tz_localize(None)),
        }
    )
    assert "with a time zone in train and without one in trusted" in again
    assert describe_dates({"train": train, "trusted": train.assign(when=zoned)}) == []
    assert describe_dates({"train": train, "trusted": train.assign(when=None)}) == []
    for other in (table(ISO, 9), train, train.assign(when=zoned)):
        assert describe_dates({"train": other, "trusted": train.assign(when=utc)}) == []


def test_estimators_are_told_too():
    y = np.arange(40) % 2
    with pytest.warns(UserWarning, match="the column 'when' holds dates such as"):
        prepare(
            table(DAY_FIRST, 12), y, table(DAY_FIRST, 9), y,
            task="auto", scaler=None, holdout=None, folds=3,
        )  # fmt: skip


def test_an_audit_tells_dates_that_could_be_two():
    def found(other: pd.DataFrame) -> list[tuple[str, tuple[str, ...]]]:
        findings = _dates({"train": table(DAY_FIRST, 12), "holdout": other})
        return [(f.severity, f.ids) for f in findings]

    assert found(table(DAY_FIRST, 9)) == [("warning", ("when",))]
    assert found(table(DAY_FIRST, 28)) == [("problem", ("when",))]
    assert found(table(MONTH_FIRST, 28)) == []


def times(values: Any, trusted: Any) -> list[np.ndarray]:
    from bilevel.reweighting._inputs.row_facts import row_facts

    columns = RowColumns(times=np.asarray(values), times_trusted=np.asarray(trusted))
    facts = row_facts(
        columns, RNG.normal(size=(len(values), 2)), RNG.normal(size=(len(trusted), 2))
    )
    return [np.asarray(fact.time) for fact in facts]


def test_a_time_that_never_comes_is_a_time():
    """9999-12-31 is how an open end is often written; nanoseconds end in 2262."""
    one, other = times(["9999-12-31", "2024-01-02"], ["2024-01-01", "2024-01-03"])
    assert np.argsort([*one, *other]).tolist() == [2, 1, 3, 0]
    one, other = times(["2024-01-01", "2024-01-02 12:00"], ["2024-01-02", "2024-01-03T06:00"])
    assert np.argsort([*one, *other]).tolist() == [0, 2, 1, 3]
    with pytest.warns(UserWarning, match="`times` holds dates such as '02/01/2024': the month"):
        times(["02/01/2024"] * 3, ["03/02/2024"] * 3)


def test_an_audit_reads_times_of_all_tables_in_one_way():
    """With each cell read for itself, 03/02/2024 was March 2 and 13/02/2024 February 13."""
    y = np.arange(40) % 2
    days = [datetime.date(2024, 1, 1) + datetime.timedelta(int(k)) for k in range(80)]
    texts = np.array([d.strftime(DAY_FIRST) for d in days])
    rows = [pd.DataFrame({"x": RNG.normal(size=40), "t": texts[k : k + 40]}) for k in (0, 40)]
    found = audit(rows[0], y, None, None, rows[1], y, time="t")
    (one,) = (f for f in found.findings if f.check == "leak/time")
    assert one.severity == "ok"
    found = audit(rows[1], y, None, None, rows[0], y, time="t")
    (one,) = (f for f in found.findings if f.check == "leak/time")
    assert len(one.ids) == 40
