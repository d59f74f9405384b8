"""Hundreds of hostile texts in every field of every page, in a browser; `torture.py` has them all."""

import contextlib

import pytest
from hostile_pages import Pages

from browser import CHROMIUM, DRIVER

pytest.importorskip("selenium.webdriver")
pytestmark = [
    pytest.mark.slow,  # quick: the pages of tests/reweighting/test_report_browser.py
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"
    ),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        yield Pages(tmp_path_factory.mktemp("pages"), stack)


@pytest.mark.parametrize("k", [0, 8])
@pytest.mark.parametrize(
    "name",
    ["report.html", "a report in a notebook", "labels.html", "an estimator in a notebook"],
)
def test_texts_stay_texts(pages, name, k):
    assert name in pages.goals
    assert pages.case(name, k) == ("opened", [])
