"""How long a report takes to be drawn and to be opened: of 300 classes, and of a run that is given.

    python benchmarks/opening.py run/    # a folder of `bilevel weigh`, such as one of 1e6 rows

Of 300 classes: 5000 training rows of 300 Gaussian clusters in 12 columns, a tenth of the labels
redrawn, 1000 trusted and 1500 hold-out rows. The page is drawn in a fresh process, whose CPU seconds
count but for the imports. Chromium without a window (Debian's, 1200 x 1000 pixels) then opens it:
"opened" is the time from the start of the navigation until the page has loaded, its tables can be
sorted and the charts near the window are interactive; "all charts" is that of scrolling through the
whole page until each chart is. CPU seconds are those of the page's process. Medians of seven openings,
each in a fresh browser.

Results: `results/opening.json`.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _measure import in_a_process, write

from bilevel import ReweightedClassifier
from bilevel.reweighting._report.bundle import BUILT
from bilevel.reweighting._report.page import Report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import open_page, open_top, start_browser  # pyright: ignore[reportMissingImports]

OPENINGS = 7
DRAW = """
import time
from pathlib import Path
from bilevel.reweighting._report.page import Report
import bilevel.reweighting._report.charts
start = time.process_time()
Report.load({source!r}).save({target!r})
print(time.process_time() - start)
"""
OPENED = """
const [page] = performance.getEntriesByType("navigation");
const [mark] = performance.getEntriesByName("charts");
return Math.max(page.loadEventEnd, mark.startTime) / 1000;
"""


def many_classes() -> Report:
    """Of 300 classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 300, 7500)
    X = (3 * rng.normal(size=(300, 12)))[y] + rng.normal(size=(7500, 12))
    names = np.array([f"species {k:03d}" for k in range(300)])
    given = np.where(rng.random(7500) < 0.1, rng.integers(0, 300, 7500), y)
    fitted = ReweightedClassifier(random_state=0).fit(
        X[:5000], names[given[:5000]], X_trusted=X[5000:6000], y_trusted=names[y[5000:6000]]
    )
    return fitted.report(X[6000:], names[y[6000:]])


def opened(page: Path) -> dict[str, float]:
    """Seconds until it is opened and until all charts are interactive, CPU seconds, elements."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = start_browser(Path(profile))
        try:
            browser.set_window_size(1200, 1000)
            browser.execute_cdp_cmd("Performance.enable", {})
            open_top(browser, page)
            seconds = browser.execute_script(OPENED)
            cpu = _cpu_seconds(browser)
            elements = browser.execute_script("return document.querySelectorAll('*').length")
            open_page(browser, page)
            all_charts = browser.execute_script("return performance.now() / 1000")
        finally:
            browser.quit()
    return {
        "opened_seconds": seconds,
        "cpu_seconds": cpu,
        "elements": elements,
        "all_charts_seconds": all_charts,
    }


def _cpu_seconds(browser: Any) -> float:
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(m["value"] for m in metrics if m["name"] == "ProcessTime")


def measure(evidence: Path, folder: Path) -> dict[str, Any]:
    """Of a report saved as JSON."""
    page, report = folder / "report.html", Report.load(evidence).evidence
    drawn = in_a_process(DRAW.format(source=str(evidence), target=str(page)))
    found = [opened(page) for _ in range(OPENINGS)]
    return {
        "rows": report["provenance"]["table_rows"] or report["train_rows"],
        "classes": len(report["effects"]["classes"] or ()),
        "bytes": page.stat().st_size,
        "drawing_cpu_seconds": float(drawn.said),
        **{key: statistics.median(one[key] for one in found) for key in found[0]},
        "opened_each": [one["opened_seconds"] for one in found],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [measure(many_classes().save(folder / "report.json"), folder)]
        lines += [measure(Path(run) / "report.json", folder) for run in sys.argv[1:]]
    print(*lines, sep="\n")
    settings = {"openings": OPENINGS, "window": [1200, 1000], "built": BUILT.is_file()}
    write(__file__, {"settings": settings, "reports": lines}, full=len(lines) > 1)
