"""The page in a real browser: drawn, quiet, sortable, and deaf to what the data say."""

import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bilevel.reweighting._report.page import Report
from browser import CHROMIUM, DRIVER, open_page, open_top, requests_beside, start_browser
from reports import HARMLESS, HOSTILE, iris_evidence

selenium = pytest.importorskip("selenium.webdriver")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(
    scope="module", params=[pytest.param("harmless", marks=pytest.mark.slow), "hostile"]
)
def opened(request, browser, tmp_path_factory) -> Any:
    """The page of one kind, opened, with all its charts made interactive."""
    words = {"harmless": HARMLESS, "hostile": HOSTILE}[request.param]
    evidence = iris_evidence(words)
    path = Report(evidence).save(tmp_path_factory.mktemp("page") / "report.html")
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # forget what the last page said
    open_page(browser, path)
    return browser, evidence, path


def column(browser: Any, title: str) -> list[str]:
    """The cells of a column of the worst rows, from top to bottom, as they are shown."""
    return browser.execute_script(
        """
        const table = document.getElementById("worst-table");
        const k = [...table.tHead.rows[0].cells].findIndex(c => c.innerText.startsWith(arguments[0]));
        return [...table.tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[k].innerText.trim());
        """,
        title,
    )


def header(browser: Any, title: str) -> Any:
    return browser.find_element("xpath", f"//table[@id='worst-table']//th[contains(., '{title}')]")


def press(browser: Any, *keys: str) -> None:
    actions = selenium.ActionChains(browser)
    for key in keys:
        actions.send_keys(key)
    actions.perform()


def test_it_is_drawn_without_a_word_on_the_console_or_a_request(opened):
    browser, _, path = opened
    assert browser.get_log("browser") == []
    assert requests_beside(browser, path) == []
    assert browser.title == "Weighting paid: weights report"
    shown = browser.execute_script("return document.querySelector('.verdict').innerText")
    assert shown.startswith("Weighting paid\n")
    assert "95% interval +0.011 to +0.089" in shown


def test_every_chart_holds_a_drawing_with_marks_in_it(opened):
    browser, _, _ = opened
    sizes = browser.execute_script(
        """
        return [...document.querySelectorAll(".chart")].map(chart => {
          const svg = chart.querySelector(".live svg"), box = svg.getBoundingClientRect();
          const still = chart.querySelector(".static");
          return [chart.dataset.chart, box.width, box.height, svg.querySelectorAll("path").length,
                  getComputedStyle(still).display, chart.getBoundingClientRect().width];
        });
        """
    )
    assert len(sizes) == 16
    for name, width, height, paths, still, room in sizes:
        assert 150 < width <= room + 1, name
        assert height > 60, name
        assert paths > 3, name
        assert still == "none", name


@pytest.mark.slow
def test_charts_far_from_the_window_wait_until_it_comes_near(opened):
    browser, _, path = opened
    count = "return document.querySelectorAll('.chart.interactive').length"
    open_top(browser, path)
    at_first = browser.execute_script(count)
    assert at_first < 4
    assert browser.execute_script(
        "return [...document.querySelectorAll('.chart:not(.interactive) .static svg')]"
        ".every(svg => svg.getBoundingClientRect().height > 60)"
    )
    browser.execute_script("document.querySelector('#removal .chart').scrollIntoView()")
    drawn = "return document.querySelector('#removal .chart').classList.contains('interactive')"
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(drawn))
    assert at_first < browser.execute_script(count) < 16


def test_nothing_in_the_data_was_executed(opened):
    browser, evidence, _ = opened
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert column(browser, "Id")[:5] == [row["id"] for row in evidence["worst"]["rows"][:5]]
    assert browser.execute_script("return document.querySelectorAll('iframe').length") == 0
    # Nor can it be: the policy refuses even a script that is put there.
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 9';"
        "document.body.append(s); document.body.insertAdjacentHTML('beforeend',"
        "'<img src=x onerror=\"window.hacked = 10\">'); s.remove()"
    )
    time.sleep(0.2)
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in line["message"] for line in browser.get_log("browser"))


def test_a_click_on_a_header_sorts_and_another_one_turns_round(opened):
    browser, evidence, _ = opened
    assert header(browser, "Label quality").get_attribute("aria-sort") == "ascending"
    weights = sorted(row["weight"] for row in evidence["worst"]["rows"])
    for order, wanted in [("ascending", weights), ("descending", weights[::-1])]:
        header(browser, "Weight").find_element("tag name", "button").click()
        assert header(browser, "Weight").get_attribute("aria-sort") == order
        assert header(browser, "Label quality").get_attribute("aria-sort") is None
        assert column(browser, "Weight") == [f"{weight:.3f}" for weight in wanted]
    header(browser, "Given").find_element("tag name", "button").click()
    given = column(browser, "Given")
    assert given != [row["given"] for row in evidence["worst"]["rows"]]
    assert sum(a != b for a, b in itertools.pairwise(given)) == 2  # three runs of labels


def test_the_keyboard_sorts_and_filters_too(opened):
    browser, evidence, path = opened
    open_page(browser, path)
    rows = evidence["worst"]["rows"]
    qualities = [f"{row['label_quality']:.3f}" for row in rows]
    before, button = (
        header(browser, title).find_element("tag name", "button")
        for title in ("Group", "Label quality")
    )
    browser.execute_script("arguments[0].focus()", before)
    press(browser, selenium.Keys.TAB)
    assert browser.switch_to.active_element == button
    press(browser, selenium.Keys.ENTER)
    assert header(browser, "Label quality").get_attribute("aria-sort") == "descending"
    assert column(browser, "Label quality") == qualities[::-1]
    press(browser, selenium.Keys.SPACE)
    assert column(browser, "Label quality") == qualities
    browser.execute_script("document.getElementById('filter-text').focus()")
    press(browser, *rows[0]["id"])
    assert column(browser, "Id") == [rows[0]["id"]]
    count = "return document.getElementById('filter-count').innerText"
    assert browser.execute_script(count) == "1 of 96 rows"
    press(browser, *[selenium.Keys.BACKSPACE] * len(rows[0]["id"]), selenium.Keys.TAB)
    press(browser, selenium.Keys.SPACE)
    doubtful = sum(r["given"] != r["suggested"] for r in rows)
    assert 10 <= doubtful <= 30
    assert browser.execute_script(count) == f"{doubtful} of 96 rows"
    press(browser, selenium.Keys.SPACE)
    assert browser.execute_script(count) == "96 of 96 rows"


def test_the_first_stop_of_the_keyboard_skips_to_the_report(opened):
    browser, _, path = opened
    open_page(browser, path)
    press(browser, selenium.Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.text == "Skip to the report"
    assert browser.execute_script("return arguments[0].getBoundingClientRect().left >= 0", focused)
    outline = browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused)
    assert outline == "solid"
    press(browser, selenium.Keys.ENTER)
    assert browser.current_url.endswith("#main")


@pytest.mark.slow
def test_a_phone_scrolls_in_one_direction_only_and_the_dark_is_dark(opened):
    browser, _, path = opened
    colours = {}
    for scheme in ("light", "dark"):
        medium = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", medium)
        screen = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        open_page(browser, path)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        colours[scheme] = browser.execute_script(
            "const c = q => getComputedStyle(document.querySelector(q));"
            "return [c('body').backgroundColor, c('body').color, c('.live svg text').fill]"
        )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colours["light"][0] == "rgb(255, 255, 255)"
    assert brightness(colours["dark"][0]) < 40
    for background, ink, label in colours.values():
        assert abs(brightness(background) - brightness(ink)) > 180
        assert abs(brightness(background) - brightness(label)) > 120


def brightness(colour: str) -> float:
    red, green, blue = (int(part) for part in colour[4:-1].split(","))
    return 0.299 * red + 0.587 * green + 0.114 * blue


@pytest.mark.slow
def test_axe_finds_no_fault(opened):
    """With axe-core (npm pack axe-core), whose axe.min.js BILEVEL_AXE names."""
    script = os.environ.get("BILEVEL_AXE")
    if not script:
        pytest.skip("needs axe-core, see BILEVEL_AXE")
    browser, _, _ = opened
    browser.execute_script(Path(script).read_text())
    found = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        axe.run(document, {resultTypes: ["violations"]}).then(
          r => done(r.violations.map(v => `${v.impact}: ${v.id}, ${v.nodes[0].target}`)));
        """
    )
    assert found == []


def test_without_javascript_the_drawings_and_all_rows_are_there(opened):
    browser, evidence, path = opened
    count = (
        "return [...document.querySelectorAll('.chart .static svg')]"
        ".filter(svg => svg.getBoundingClientRect().height > 60).length"
    )

    def load_without_scripts(browser) -> bool:
        """On a busy machine the page is now and then in a new process, whose scripts do run."""
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        browser.get(path.as_uri())
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        return browser.execute_script(count) == 16

    WebDriverWait(browser, 60, poll_frequency=2).until(load_without_scripts)
    assert len(column(browser, "Id")) == len(evidence["worst"]["rows"])
    shown = "return getComputedStyle(document.getElementById('filter')).display"
    assert browser.execute_script(shown) == "none"
