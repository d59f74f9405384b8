"""The page: what is on it, and that nothing in the data can change it or make it act."""

import base64
import dataclasses
import hashlib
import html
import html.parser
import json
import re
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
from jsonschema import ValidationError
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression
from sklearn.naive_bayes import GaussianNB

from bilevel.reweighting._report import bundle
from bilevel.reweighting._report.charts import Chart, draw_charts
from bilevel.reweighting._report.evidence import gather_evidence
from bilevel.reweighting._report.page import Report, _show, packaged
from reports import HARMLESS, HOSTILE, iris_evidence, made_result
from schema import faults

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(html.parser.HTMLParser):
    """The elements of a page in order, its texts, and the contents of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag == "script":
            self.scripts.append((self.elements[-1][1], ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif inside == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)

    def named(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def harmless() -> dict[str, Any]:
    return iris_evidence(HARMLESS)


@pytest.fixture(scope="module")
def hostile() -> dict[str, Any]:
    return iris_evidence(HOSTILE)


@pytest.fixture(scope="module")
def charts(harmless) -> dict[str, Chart]:
    return draw_charts(harmless)


@pytest.fixture(scope="module")
def text(harmless) -> str:
    return Report(harmless).to_html()


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def hostile_page(hostile) -> Page:
    return Page(Report(hostile).to_html())


# -- what is on it --------------------------------------------------------------------------------


def test_wrong_labels_are_counted_with_intervals_and_rows_to_verify_are_named(text, harmless):
    assert harmless["noise"]["verify"]["rows"] == ["name 290", "name 77", "name 731"]
    section = text[text.index('<section id="labels">') :]
    section = section[: section.index("</section>")]
    cells = re.findall(r">([^<>\n]+)</", section)
    lines = {
        "Wrong labels, of all training rows": ["16.7%", "12.5%", "21.8%"],
        "Precision: wrong labels, of the flagged rows": ["93.4%", "81.1%", "99.9%"],
        "Recall: flagged rows, of all wrong labels": ["95.3%", "80.0%", "100.0%"],
        "name 1": ["34", "6", "17.1%", "12.0%", "24.0%", "87.0%", "65.0%", "99.0%"],
        "name 2": [
            "32",
            "0",
            "15.2%",
            "10.0%",
            "21.0%",
            "\N{EN DASH}",
            "\N{EN DASH}",
            "\N{EN DASH}",
        ],
    }
    for name, numbers in lines.items():
        start = cells.index(name) + 1
        assert cells[start : start + len(numbers)] == numbers
    assert "name 290, name 77, name 731" in section
    assert "from 9.3 to about 4.6 percentage points" in section


def test_without_an_estimate_there_is_no_section_on_wrong_labels(harmless):
    assert '"#labels"' not in Report(harmless | {"noise": None}).to_html()


def test_the_verdict_comes_first_then_alarms_then_tables(page, harmless):
    parts = [
        "What the training rows are worth",
        "Weighting paid",
        "Accuracy is 0.900 on 30 hold-out rows, against 0.850 of the best baseline (all rows + "
        "trusted): +0.050 (95% interval +0.011 to +0.089, paired over the rows). Over uniform weights "
        "it gains +0.100 (+0.041 to +0.159).",
        "Wrong labels 16.7% 12.5% to 21.8%",  # with the precision of the list, at the top
        "Rows to look at 16 93% of them wrong (81% to 100%)",
        "Read these before using the weights.",
        "Tables share rows Name 7: 1 exact and 2 near duplicates.",
        "Failed: name 3 Name 4.",
        "Scores on the hold-out",
        "all rows + trusted 120 0.8500 +0.0500 0.0200",
        "Worst rows",
        "Time 1.2 s Peak memory 400 MB Run name 5: name 6",
    ]
    place = 0
    for part in parts:
        place = page.text.index(part, place)
    assert harmless["verdict"]["sentence"] == f"{parts[1]}: a{parts[2][1:]}"


def test_the_table_of_worst_rows_holds_the_evidence(page, harmless):
    rows, cells = harmless["worst"]["rows"], page.text
    assert len(rows) == 96
    for row in rows[:10]:
        line = f"{row['id']} {row['given']} {row['suggested']} {row['probability']:.2f}"
        line += f" {row['kind']} {row['group']}"
        assert line in cells
    pictures = page.named("img")
    assert [p["src"] for p in pictures] == [row["thumbnail"] for row in rows]
    assert [p["alt"] for p in pictures] == [f"row {row['id']}" for row in rows]


def test_every_chart_is_a_drawing_with_words_and_a_specification(page, charts):
    assert list(charts) == [
        *(
            "gains",
            "first-wrong",
            "noise-matrix",
            "histogram",
            "effective-sample-size",
            "entropy",
            "outer-value",
            "drops",
        ),
        *("removal", "weight-classes", "change-classes", "weight-groups", "change-groups"),
        *("calibration", "confusion-before", "confusion-after"),
    ]
    shown = [e["data-chart"] for e in page.named("div") if "data-chart" in e]
    assert sorted(shown) == sorted(charts)
    drawings = page.named("svg")
    assert len(drawings) == len(charts)
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert drawing["aria-label"] in [chart.alt for chart in charts.values()]
        assert float(drawing["width"]) <= 420
    (specs,) = [text for attributes, text in page.scripts if "json" in str(attributes)]
    assert json.loads(specs) == {name: chart.spec for name, chart in charts.items()}


def test_charts_show_the_numbers_of_the_evidence(harmless, charts):
    gains = {row["name"]: row for row in charts["gains"].rows}
    assert gains["uniform"] == {
        "name": "uniform",
        "gain": 0.10,
        "low": pytest.approx(0.10 - 1.96 * 0.03),
        "high": pytest.approx(0.10 + 1.96 * 0.03),
    }
    assert "reweighted" not in gains
    assert sum(row["rows"] for row in charts["histogram"].rows) == 96
    assert [row["value"] for row in charts["outer-value"].rows] == [0.9, 0.6]  # the third is NaN
    removal = [r["score"] for r in charts["removal"].rows if r["removed"] == "lowest label quality"]
    assert removal == [t["lowest"] for t in harmless["removal"]["table"]]
    assert [r["drop"] for r in charts["drops"].rows] == [
        harmless["overfitting"]["trusted"]["drop"],
        harmless["overfitting"]["holdout"]["drop"],
    ]


def test_weights_chosen_from_candidates_have_no_lines_over_the_run(harmless, charts):
    chosen = draw_charts(harmless | {"candidates": []})
    assert charts.keys() - chosen.keys() == {"effective-sample-size", "entropy", "outer-value"}


def test_tables_can_be_read_aloud_and_reached_by_keyboard(page):
    tables = sum(tag == "table" for tag, _ in page.elements)
    assert sum(tag == "caption" for tag, _ in page.elements) == tables >= 8
    regions = [e for e in page.named("div") if e.get("role") == "region"]
    assert len(regions) == tables
    assert all(e["tabindex"] == "0" and e["aria-label"] for e in regions)
    assert {e.get("scope") for e in page.named("th")} == {"col", "row"}
    assert page.named("html") == [{"lang": "en"}]
    ids = [e["id"] for _, e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    links = [e["href"] for e in page.named("a")]
    assert links[0] == "#main"
    assert {link.removeprefix("#") for link in links} <= set(ids)


# -- safety ---------------------------------------------------------------------------------------


def test_hostile_names_change_no_element_of_the_page(page, hostile_page):
    """The same elements with the same attributes, whatever the rows, labels and groups are called."""

    def skeleton(p: Page) -> list[tuple[str, list[str]]]:
        return [(tag, sorted(attributes)) for tag, attributes in p.elements]

    # A chart's labels are cut to length, and drawn where they fit: compare the rest of the page.
    assert skeleton(hostile_page) == skeleton(page)


def test_columns_to_show_have_their_units_and_are_sorted_as_what_they_are(harmless):
    shown = {"price": 1.25, "note": "1.25", "rate": None}
    lines = [line | {"shown": shown} for line in harmless["worst"]["rows"]]
    lines[0] = lines[0] | {"shown": shown | {"price": 10, "note": "a"}}
    worst = harmless["worst"] | {"rows": lines, "shown": list(shown), "label_unit": "EUR"}
    worst["units"] = {"price": "€", "rate": "<b>"}
    page = Report(harmless | {"worst": worst}).to_html()
    assert re.findall(r'data-sort="(\w+)">(price|note|rate)([^<]*)<', page) == [
        ("number", "price", " (€)"),
        ("text", "note", ""),
        ("number", "rate", " (&lt;b&gt;)"),
    ]
    assert ">Given (EUR)</th>" in page


def test_hostile_names_are_shown_as_they_are(hostile_page):
    for k, name in enumerate(HOSTILE):
        assert f"{name}{k}" in hostile_page.texts
    assert "49" not in [text.strip() for text in hostile_page.texts]
    alts = [p["alt"] for p in hostile_page.named("img")]
    assert f"row {HOSTILE[1]}1" in alts


@pytest.mark.parametrize("kind", ["page", "hostile_page"])
def test_only_our_own_scripts_may_run_and_nothing_is_loaded(kind, request):
    page: Page = request.getfixturevalue(kind)
    (policy,) = [e["content"] for e in page.named("meta") if "http-equiv" in e]
    hashes = []
    for attributes, code in page.scripts:
        if attributes != {"type": "application/json", "id": "specs"}:
            assert attributes in ({}, {"type": "text/plain", "id": "bundle"})
            digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
            hashes.append(f"'sha256-{digest}'")
    assert len(hashes) == 2
    assert policy == (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base", "image", "use")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
    assert not re.search(r"url\(|@import|expression\(", " ".join(page.styles))


def test_the_specifications_cannot_end_their_script(hostile_page, hostile):
    (block,) = [code for attributes, code in hostile_page.scripts if "json" in str(attributes)]
    assert not re.search("[<>&]", block)
    rows = json.loads(block)["weight-groups"]["data"]["values"]
    assert sorted(row["name"] for row in rows) == sorted(HOSTILE)
    assert {row["group"] for row in hostile["worst"]["rows"]} == set(HOSTILE)


def test_a_strangers_json_cannot_load_pictures(harmless, tmp_path):
    evil = json.loads(json.dumps(harmless))
    urls = ["https://example.com/x.png", "javascript:alert(1)", "data:text/html;base64,eA=="]
    for row, url in zip(evil["worst"]["rows"], urls, strict=False):
        row["thumbnail"] = url
    evil["alarms"][0]["detail"] = "<b>bold</b>"
    (tmp_path / "evil.json").write_text(json.dumps(evil))
    page = Page(Report.load(tmp_path / "evil.json").to_html())
    assert len(page.named("img")) == 96 - len(urls)
    assert not page.named("b")
    assert "<b>bold</b>" in page.text


@pytest.mark.parametrize(
    ("place", "value", "where"),
    [
        (("score",), {"signal": "repeat('x', 9)"}, "$.score: "),
        (("baselines", 0, "score"), "<i>text</i>", "$.baselines[0].score: "),
        (("worst", "rows", 3, "thumbnail"), 7, "$.worst.rows[3].thumbnail: 7 is not of type"),
        (("first_rows", 0, "low"), [1], "$.first_rows"),
    ],
)
def test_a_strangers_json_of_other_kinds_is_refused(harmless, tmp_path, place, value, where):
    evil = part = json.loads(json.dumps(harmless))
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "evil.json").write_text(json.dumps(evil))
    with pytest.raises(ValueError, match=re.escape(where)):
        Report.load(tmp_path / "evil.json")


@pytest.mark.parametrize(
    "score", ['\\" + repeat("QQ", 9) + \\"', "\\\\\" + repeat('QQ', 9) + \"", ".4f|a|x\\"]
)
def test_a_strangers_score_is_a_text_of_the_chart(harmless, score):
    chart = draw_charts(harmless | {"score": score})["removal"]
    drawing = vl_convert.vegalite_to_svg(chart.spec)
    assert "QQQQ" not in drawing
    assert drawing.count("</text>") > 5  # it was drawn
    code = json.dumps(vl_convert.vegalite_to_vega(chart.spec), ensure_ascii=False)
    said = score.replace("\\", "\N{SET MINUS}").replace('"', "\N{RIGHT DOUBLE QUOTATION MARK}")
    assert said in code
    assert "repeat" not in code.replace(said, "")


# -- files ----------------------------------------------------------------------------------------


def test_saved_as_json_it_loads_again_and_gives_the_same_page(harmless, text, tmp_path):
    report = Report(harmless)
    assert report.save(tmp_path / "report.json") == tmp_path / "report.json"
    again = Report.load(tmp_path / "report.json")
    assert again == report
    again.save(str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    assert len(text) < 2_000_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.evidence = {}  # pyright: ignore[reportAttributeAccessIssue]


def test_a_file_is_written_whole_or_not_at_all(harmless, tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("what was there")
    with pytest.raises(ValueError, match="not JSON compliant"):
        Report(harmless | {"rows": float("nan")}).save(path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            Report(harmless).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    with path.open() as reader:  # who has the old file open keeps it
        Report(harmless).save(path)
        assert reader.read() == "what was there"
    with pytest.raises(ValueError, match=r"saved as \.html or \.json, got 'report\.pdf'"):
        Report(harmless).save(tmp_path / "report.pdf")
    with pytest.raises(FileNotFoundError):
        Report(harmless).save(tmp_path / "nowhere" / "report.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a report saved as JSON: Expecting"),
        ("[1]", "has no line \"format\": 'bilevel report 4'"),
        ('{"format": "bilevel report 4", "rows": 3}', "lacks advice, alarms, baselines,"),
    ],
)
def test_other_files_are_refused(text, message, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        Report.load(path)


# -- other results --------------------------------------------------------------------------------


def test_a_page_without_holdout_leaks_or_history():
    X, y = load_iris(return_X_y=True)
    table = pd.DataFrame(
        {
            "loss": [0.3, 0.25, 0.4],
            "score": [0.9, 0.91, 0.8],
            "difference": [0.0, -0.05, 0.1],
            "standard_error": [0.0, 0.02, 0.05],
        },
        index=["all rows + trusted", "weights", "trusted only"],
    )
    result = made_result(np.ones(100), 50, candidates=table, checks=[], history=pd.DataFrame())
    result.parameters = [np.zeros(3)]
    order = np.random.default_rng(0).permutation(150)
    train, trusted = order[:100], order[100:]
    args = X[train], y[train], X[trusted], y[trusted], result
    page = Page(Report(gather_evidence(GaussianNB(), *args)).to_html())
    for said in [
        "There are none: every check below passed.",
        "There is no hold-out",
        "weights 0.2500 0.9100 \N{MINUS SIGN}0.0500 0.0200",
        "The control with shuffled trusted labels was not run.",
        "This was not checked",
        "Time not measured",
        "Gain over all rows + trusted, with 95% interval",
    ]:
        assert said in page.text
    assert "Over the run" not in page.text
    assert [e["data-chart"] for e in page.named("div") if "data-chart" in e] == [
        *("gains", "histogram", "drops", "removal", "weight-classes"),
    ]


def test_a_regression_page():
    rng = np.random.default_rng(0)
    X, X_trusted = rng.normal(size=(50, 2)), rng.normal(size=(20, 2))
    y, y_trusted = X[:, 0], X_trusted[:, 0] + rng.normal(size=20)
    found = gather_evidence(
        LinearRegression(), X, y, X_trusted, y_trusted, made_result(np.ones(50))
    )
    assert faults(found) == []
    html = Report(found).to_html()
    page = Page(html)
    assert "#effects" not in html  # neither classes nor groups: no section, and no way to it
    assert 'id="effects"' not in html
    assert "R2 without some rows" in page.text
    assert f"0 {_show(y[0], '.4g')}" in page.text


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, ".4f", "\N{EN DASH}"),
        (-0.5, "+.4f", "\N{MINUS SIGN}0.5000"),
        (12345, "", "12,345"),
        (1e-9, "", "1e-09"),
        (True, "", "True"),
        ("a-b", ".4f", "a-b"),
    ],
)
def test_values_are_shown_as_people_read_them(value, form, text):
    assert _show(value, form) == text


def test_every_chart_keeps_to_the_schema_of_vega_lite():
    """They are made without this check, which takes longer than making them."""
    charts = draw_charts(iris_evidence(HARMLESS)).values()
    specs = [{k: v for k, v in chart.spec.items() if k != "config"} for chart in charts]
    assert len(specs) > 5
    for spec in specs:
        assert alt.Chart.from_dict(spec).to_dict()["width"] == "container"
        with pytest.raises(ValidationError):
            alt.Chart.from_dict(spec | {"width": "sideways"})


def test_the_bundle_is_read_as_it_was_built_and_else_made(tmp_path, monkeypatch):
    built = tmp_path / "vega.js"
    monkeypatch.setattr(bundle, "BUILT", built)
    monkeypatch.setattr(
        vl_convert, "javascript_bundle", lambda snippet: f"'</script><!--';{snippet}"
    )
    read = bundle.read_bundle.__wrapped__
    assert read() == r"'<\/script><\!--';window.vegaEmbed = vegaEmbed;"
    built.write_text("already built")
    assert read() == "already built"


# -- the schema, advice, private reports ----------------------------------------------------------


def test_reports_keep_to_the_published_schema(harmless, hostile):
    assert faults(harmless) == faults(hostile) == []
    found = faults(harmless | {"advice": 3, "work": {"hours": 1}, "news": 1})
    assert len(found) == 3
    assert any("$.advice: 3 is not of type 'string'" in line for line in found)
    assert any("('news' was unexpected)" in line for line in found)
    assert any("$.format" in line for line in faults({"format": "bilevel report 3"}))


# What a section is made of: its numbers are those of these parts of the JSON.
SECTIONS = {
    "alarms": ("alarms", "checks"),
    "labels": ("noise", "first_rows"),
    "suspects": ("kinds", "confusions", "clusters", "work"),
    "baselines": ("baselines", "candidates"),
    "before-after": ("before_after",),
    "retrained": ("scores",),
    "weights": ("train_rows", "weights", "history"),
    "overfit": ("overfitting",),
    "leaks": ("leaks",),
    "removal": ("removal",),
    "effects": ("effects",),
    "worst": ("worst",),
    "provenance": ("provenance",),
}
NUMBER = re.compile(r"(?<![\w.,#])[\u2212+]?\d+(?:,\d{3})*(?:\.\d+)?%?(?![\w.]*\w)")


def numbers_of(section: str) -> set[str]:
    """Those that a reader sees, but those of drawings and how many things are folded or printed."""
    left_out = r'<svg.*?</svg>|<summary>.*?</summary>|<p class="paper">.*?</p>'
    text = re.sub(left_out, " ", section, flags=re.DOTALL)
    return set(NUMBER.findall(html.unescape(re.sub(r"<[^>]*>", " ", text))))


def is_said(token: str, parts: Any) -> bool:
    """Whether a number of the JSON is shown so, or a text has it, or so many things are listed."""
    if isinstance(parts, dict):
        return any(is_said(token, x) for pair in parts.items() for x in pair)
    if isinstance(parts, list):
        return token == str(len(parts)) or any(is_said(token, x) for x in parts)
    if isinstance(parts, str):
        return token in numbers_of(parts.replace(" %", "%"))
    if parts is None or isinstance(parts, bool):
        return False
    plain = token.replace("\N{MINUS SIGN}", "-").replace(",", "").rstrip("%")
    digits = len(plain.partition(".")[2])
    scale = 100 if token.endswith("%") else 1
    return abs(scale * parts - float(plain)) <= 0.5000001 * 10.0**-digits


def test_each_section_finds_its_numbers_in_the_json(harmless, text):
    ours = numbers_of(re.sub(r"{[{%].*?[}%]}", " ", packaged("report.html.jinja"), flags=re.DOTALL))
    sections = dict(re.findall(r'<section id="([\w-]+)">(.*?)</section>', text, re.DOTALL))
    assert sections.keys() == SECTIONS.keys()
    for name, section in sections.items():
        parts = [harmless[key] for key in SECTIONS[name]]
        parts += [harmless["provenance"]["peak_memory"] / 1e6] * (name == "provenance")
        shown = numbers_of(section) - ours
        assert len(shown) >= 3, name
        assert [token for token in sorted(shown) if not is_said(token, parts)] == [], name


def test_every_part_of_the_evidence_is_on_the_page(harmless, page):
    for pair in harmless["confusions"]["pairs"]:
        line = f"{pair['given']} {pair['suggested']} {pair['rows']} {pair['share']:.1%}"
        assert line in page.text
    kinds = {row["name"]: row["rows"] for row in harmless["kinds"]}
    assert sum(kinds.values()) == 16  # the flagged rows
    assert all(f"{name} {count} {count} " in page.text for name, count in kinds.items())
    assert "wrong label 16 16 90% 100% its label is" in page.text
    nearest = harmless["worst"]["rows"][0]["nearest_suggested"]
    assert nearest["typical"]
    assert f"{nearest['id']} ({nearest['distance']:.2f}, typical)" in page.text
    first = harmless["worst"]["rows"][0]
    assert first["suggested"] != first["given"]
    disagree = f"1 of 2 linear, all rows: {first['opinions'][0]['says']} 0.75 (given 0.50)"
    assert f"{disagree} name 7: {first['given']} 0.75" in page.text
    assert "Advice: Use the weights." in page.text
    changed = harmless["before_after"]
    assert changed["sentences"]["classes"] in page.text
    assert "name 1 name 2 3 1 \N{MINUS SIGN}2" in page.text  # a confusion before and after
    assert "name 1 32 1.011 33.3% 33.7% 12 0.7500 0.9167 +0.1667" in page.text
    assert "log loss 0.2216 0.1223 \N{MINUS SIGN}0.0992" in page.text
