"""Hostile texts in every field of every page, opened in a real browser: they stay text.

A page with these texts must have the elements, attributes and links of the page with plain words, show
every text that the plain page shows, say nothing on the console, open no dialog and ask for nothing.
"""

import contextlib
import copy
import csv
import functools
import http.server
import io
import math
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cases import Part
from hostile import addressed

from bilevel._summary import preformatted
from bilevel._text import for_spreadsheet, visible
from bilevel.reweighting._report.labels_page import FORMAT, LabelsReport
from bilevel.reweighting._report.page import Report, _is_picture
from browser import open_page, requests_beside, start_browser
from reports import HARMLESS, iris_evidence

JOINED = 12  # texts in a field of which a page has only one
OURS = {"format", "task"}  # fields whose values the page's code tells apart
CENSUS = """
const elements = {}, links = [], drawn = new Set(), picture = /^data:image\\/png;base64,/;
for (const element of document.querySelectorAll("*")) {
  const names = [...element.attributes].map(a => a.name).sort();
  if (element.tagName === "IMG" && picture.test(element.getAttribute("src")) &&
      names.join() === "alt,src") continue;
  if (element.closest("svg")) {
    drawn.add(element.tagName);
    for (const name of names) drawn.add(name);
  } else if (!["OPTION", "SPAN"].includes(element.tagName) || names.length > 1) {
    const key = [element.tagName, ...names].join(" ");
    elements[key] = (elements[key] || 0) + 1;
  }
  for (const name of names)
    if (/^(on|form|http)|href|src|style|action|ping|poster|data$|content|target|id$/.test(name) &&
        !element.closest("svg, .chart, #vg-tooltip-element, details[style]"))
      links.push([element.tagName, name, element.getAttribute(name)].join(" "));
}
const copy = document.body.cloneNode(true);
copy.querySelectorAll("script, style, svg").forEach(x => x.remove());
const live = [...document.querySelectorAll("svg *")].flatMap(x => [...x.attributes]).filter(
  a => /^on|href|^src$/.test(a.name)).map(a => a.name);
return {elements, links, drawn: [...drawn].sort(), text: copy.textContent, live,
        hacked: typeof window.hacked};
"""
DISTURB = """
const tags = new Set();
for (const element of document.querySelectorAll("body *")) {
  for (const kind of ["pointerover", "mouseover", "pointermove", "mousemove", "focus", "focusin"]) {
    const event = kind.startsWith("focus") ? new FocusEvent(kind, {bubbles: true})
      : new PointerEvent(kind, {bubbles: true, clientX: 99, clientY: 99});
    element.dispatchEvent(event);
  }
  const tip = document.getElementById("vg-tooltip-element");
  if (tip) for (const x of tip.querySelectorAll("*"))
    tags.add([x.tagName, ...[...x.attributes].map(a => a.name)].join(" "));
}
return [...tags].sort();
"""
SAVE = """
const done = arguments[arguments.length - 1], button = document.getElementById("save-list");
if (!button) { done(null); return; }
const real = URL.createObjectURL, click = HTMLAnchorElement.prototype.click;
HTMLAnchorElement.prototype.click = () => {};
URL.createObjectURL = blob => { blob.text().then(done); return real.call(URL, blob); };
button.click();
URL.createObjectURL = real;
HTMLAnchorElement.prototype.click = click;
"""
TIPS = {"H2", "TABLE", "TBODY", "TR", "TD class", "DIV class", "DIV", "SPAN"}


def planted(
    value: Any, word: Callable[[str, int], str], kind: str = "", seen: dict | None = None
) -> Any:
    """The same data with another word in the place of each text, and of each name that data gave.

    Args:
        value: plain data.
        word: gives one for a kind of field, and how many of the kind came before.
        kind: of `value`: the names on the way to it.
        seen: how many fields of each kind there were.
    """
    seen = {} if seen is None else seen
    if isinstance(value, str):
        if kind in OURS or value.startswith("data:image/png;base64,"):
            return value
        seen[kind] = seen.get(kind, -1) + 1
        return word(kind, seen[kind])
    if isinstance(value, list):
        return [planted(x, word, kind + "[]", seen) for x in value]
    if not isinstance(value, dict):
        return value
    names = {"rows[].shown": "worst.shown[]", "versions": "versions", "stats": "stats"}
    names = [names[end] for end in names if kind.endswith(end)]  # those that data gave
    return {
        (word(names[0], k) if names else key): planted(x, word, f"{kind}.{key}".lstrip("."), seen)
        for k, (key, x) in enumerate(value.items())
    }


class Pages(Part):
    """Each page, so often that each kind of field has held each text."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack):
        """The stack ends the browser."""
        self._home = folder / "pages"
        self._home.mkdir()
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        self._browser = start_browser(Path(profile))
        stack.callback(self._browser.quit)
        host, self._asked = stack.enter_context(listening())
        self._texts = addressed(host)
        report, labels = iris_evidence(HARMLESS), labels_evidence()
        report["worst"]["shown"] = ["note"]
        for row in report["worst"]["rows"]:
            row["shown"] = {"note": "text"}
        self._pages: dict[str, Callable[[Any], str]] = {
            "report.html": lambda word: Report(planted(report, word)).to_html(),
            "a report in a notebook": lambda word: Report(planted(report, word))._repr_html_(),
            "labels.html": lambda word: LabelsReport(planted(labels, word)).to_html(),
            "an estimator in a notebook": lambda word: preformatted(
                "\n".join(word("line", k) for k in range(JOINED))
            ),
        }
        self.goals = dict.fromkeys(self._pages, math.ceil(len(self._texts) / JOINED))
        self._plain: dict[str, Any] = {}

    def word(self, kind: str, number: int, k: int) -> str:
        """The first field of a kind gets several texts, the others one each; other ones in turn."""
        n = len(self._texts)
        first = (k * JOINED + sum(kind.encode())) % n
        if number == 0:
            return " ".join(self._texts[(first + i) % n] for i in range(JOINED))
        return self._texts[(first + number) % n]

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """Open one page."""
        words: dict[str, str] = {}  # by the plain word in its place

        def hostile(kind: str, number: int) -> str:
            words[plain(kind, number)] = self.word(kind, number, k)
            return words[plain(kind, number)]

        if name not in self._plain:
            self._plain[name] = self.open(name, self._pages[name](plain))
        try:
            html = self._pages[name](hostile)
        except ValueError as error:  # `bilevel report` says so in words
            print(name, k, ascii(str(error))[:200], flush=True)
            return "refused", []
        expected, found = self._plain[name], self.open(name, html)
        wrong = differences(expected, found)
        text = normal(found["text"])
        for there in sorted(set(re.findall(r"plain\w+?plain", expected["text"]))):
            if _is_picture(words[there]):
                continue
            shown = visible(words[there]), visible(words[there], keep="\n")  # the latter in a <pre>
            if not any(normal(one) in text for one in shown):
                wrong.append("a text is not shown")
                print(name, k, "not shown:", ascii(words[there])[:200], flush=True)
        if wrong:
            print(name, k, wrong, flush=True)
        return "opened", list(dict.fromkeys(wrong))

    def open(self, name: str, html: str) -> dict[str, Any]:
        """What the browser finds in a page, after every element was touched."""
        from selenium.common.exceptions import UnexpectedAlertPresentException

        path, browser = self._home / "page.html", self._browser
        if not html.startswith("<!DOCTYPE"):
            html = f"<!DOCTYPE html><meta charset=utf-8><body>{html}</body>"
        path.write_text(html, encoding="utf-8")
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        self._asked.clear()
        try:
            if name.endswith("html"):
                open_page(browser, path)
            else:
                browser.get(path.as_uri())
            if "<iframe" in html:
                browser.switch_to.frame(0)
            tips = browser.execute_script(DISTURB)
            found = browser.execute_script(CENSUS)
            saved = browser.execute_async_script(SAVE) if name == "report.html" else None
            browser.switch_to.default_content()
            found["dialogs"] = 0
        except UnexpectedAlertPresentException:
            browser.switch_to.default_content()
            found, tips, saved = {"dialogs": 1, "text": ""}, [], None
        beside = [m for m in requests_beside(browser, path) if '"url":"blob:' not in m]
        said = [line["message"] for line in browser.get_log("browser")]
        return found | {
            "tips": tips,
            "saved": saved,
            "asked": beside + self._asked,
            "console": said,
        }


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What a page has that the one with plain words has not."""
    if found["dialogs"]:
        return ["a dialog"]
    wrong = []
    if found["hacked"] != "undefined":
        wrong.append("code ran")
    if found["asked"]:
        wrong.append("a request")
    if found["console"]:
        wrong.append("words on the console")
        print(found["console"][:3], flush=True)
    if found["elements"] != expected["elements"]:
        wrong.append("other elements")
        both = {**expected["elements"], **found["elements"]}
        print(
            {
                key: (expected["elements"].get(key), found["elements"].get(key))
                for key in both
                if expected["elements"].get(key) != found["elements"].get(key)
            },
            flush=True,
        )
    if found["links"] != expected["links"]:
        wrong.append("other links")
        print([x for x in found["links"] if x not in expected["links"]][:3], flush=True)
    if found["live"] or not set(found["drawn"]) <= set(expected["drawn"]):
        wrong.append("other marks in drawings")
        print(set(found["drawn"]) - set(expected["drawn"]), found["live"], flush=True)
    if not set(found["tips"]) <= TIPS:
        wrong.append("markup in a tooltip")
        print(found["tips"], flush=True)
    for line in csv.reader(io.StringIO(found["saved"] or "", newline="")):
        for cell in line:
            if cell != for_spreadsheet(cell) and not re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell):
                wrong.append("a formula")
                print(ascii(cell)[:100], flush=True)
    return wrong


def plain(kind: str, number: int) -> str:
    """A word for a field, which no other field has."""
    return f"plain{re.sub(r'[^a-z0-9]', '', kind.lower())}{number}plain"


@functools.lru_cache(maxsize=8192)
def normal(text: str) -> str:
    """Without differences of case, blanks, minus signs, and full stops at the end."""
    return " ".join(text.replace("\N{MINUS SIGN}", "-").casefold().split()).rstrip(".")


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """(an address on this machine, what was asked there)."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def labels_evidence() -> dict[str, Any]:
    """Of three labels and forty rows, as `gather_labels` makes it."""
    estimate = {"value": 0.1, "low": 0.05, "high": 0.2}
    labels = [
        {
            "name": f"label {k}",
            "share": 0.3,
            "judged": k != 2,
            "flagged": 4 - k,
            "rate": None if k == 2 else estimate,
            "precision": None if k == 2 else estimate,
            "recall": None if k == 2 else estimate,
            "winner": "weights",
        }
        for k in range(3)
    ]
    wrong = [{"name": "label 0", "given": True, "wrong": 0.8}]
    rows = [
        {"id": f"row {k}", "quality": k / 40, "weight": 1.0, "labels": copy.deepcopy(wrong)}
        for k in range(40)
    ]
    return {
        "format": FORMAT,
        "train_rows": 200,
        "trusted_rows": 50,
        "rows_to_look_at": 40,
        "labels_to_look_at": 40,
        "labels": labels,
        "pairs": [{"first": "label 0", "second": "label 1", "rows": 3}],
        "rows": rows,
        "checks": [{"name": "check", "passed": k == 1, "detail": "detail"} for k in range(2)],
        "versions": {"bilevel": "0", "numpy": "0"},
        "verdict": {"headline": "headline", "detail": "detail"},
    }
