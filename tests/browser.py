"""Debian's chromium without a window, for the tests that open pages."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def start_browser(profile: Path) -> Any:
    """A browser that keeps what is said on its console, and what it asks for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER, log_output=os.devnull)
    return webdriver.Chrome(options=options, service=service)


def open_page(browser: Any, path: Path) -> None:
    """Open a report, and scroll through it until each of its charts is interactive."""
    open_top(browser, path)
    _wait(
        browser,
        """
        const waiting = document.querySelector(".chart:not(.interactive, .still)");
        if (waiting) waiting.scrollIntoView({behavior: "instant"});
        else scrollTo({top: 0, behavior: "instant"});
        return !waiting;
        """,
    )


def open_top(browser: Any, path: Path) -> None:
    """Open a report, and wait until the charts near its top are interactive."""
    browser.get(path.as_uri())
    _wait(browser, "return performance.getEntriesByName('charts').length > 0")


def _wait(browser: Any, condition: str) -> None:
    """Until a script returns true."""
    end = time.monotonic() + 60
    while not browser.execute_script(condition):
        assert time.monotonic() < end, browser.get_log("browser")
        time.sleep(0.05)


def requests_beside(browser: Any, path: Path) -> list[str]:
    """What the browser has asked for since this was last called, but for the page itself."""
    messages = [m["message"] for m in browser.get_log("performance")]
    return [
        m
        for m in messages
        if '"Network.requestWillBeSent"' in m
        and '"documentURL":"chrome://' not in m  # the browser's own first page
        and path.as_uri() not in m
        and '"url":"data:' not in m
    ]
