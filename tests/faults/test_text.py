"""What others have written, in every place where it is shown."""

import csv
import io
import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
import typer

from bilevel._summary import preformatted
from bilevel._text import for_spreadsheet, named, to_json, visible
from bilevel.cli import _app
from bilevel.cli._commands_work import write_table
from bilevel.cli._run_files import write_csv
from bilevel.reweighting._report.chart import (
    by_name,
    layer,
    make_chart,
    matrix,
    number,
    tips,
)
from bilevel.reweighting._report.charts import draw_charts
from bilevel.reweighting._report.page import Report
from reports import iris_evidence
from runs import bilevel

UNSEEN = [
    *(
        "\x00",
        "\x07",
        "\x08",
        "\x1b[31m",
        "\x1b]0;title\x07",
        "\x7f",
        "\x9b31m",
        "\ufffe",
        "\uffff",
    ),
    *(
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\ufdd0",
        "\U0001fffe",
        "\U000e0041",
        "\xad",
    ),
]
ANY_UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\ufffe\uffff\u202a-\u202e\u2066-\u2069\u200b\ufeff]"
)
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\uff1d1"]
BEFORE = ["", " ", "\t", "\u200b", "\ufeff", "\x00", "\u2060", "\x00\u200b ", "\xa0", "\u202e"]


@pytest.mark.parametrize("text", UNSEEN, ids=ascii)
def test_what_cannot_be_seen_is_made_visible(text):
    shown = visible(f"a{text}b")
    assert shown.isprintable()
    assert shown != f"a{text}b"
    assert visible(shown) == shown
    assert json.loads(to_json({text: [text]})) == {text: [text]}
    assert not ANY_UNSEEN.search(to_json(text))


def test_a_notebook_shows_no_control_character():
    shown = preformatted("\n".join(UNSEEN))
    assert not ANY_UNSEEN.search(shown)


def test_what_can_be_seen_stays():
    for text in ("plain", "é", "naïve 数 ع ", "a\u200db", "👩‍🚀", "e\u0301", "5 %"):
        assert visible(text) == text
        assert for_spreadsheet(text) == text
    assert visible("two\nlines", "\n") == "two\nlines"
    assert visible("two\nlines") == "two␊lines"


@pytest.mark.parametrize("before", BEFORE, ids=ascii)
def test_formulas_are_text_in_csv_whatever_comes_before_them(tmp_path, before):
    table = pd.DataFrame({before + f: [before + f, "x"] for f in FORMULAS})
    write_csv(table, tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_bytes().decode("utf-8")
    for line in csv.reader(io.StringIO(text, newline="")):
        assert all(cell.startswith("'") or cell == "x" for cell in line)
    write_table(table, tmp_path / "t.csv", verbatim=True)
    content = (tmp_path / "t.csv").read_bytes().decode("utf-8")
    assert next(csv.reader(io.StringIO(content, newline=""))) == list(table.columns)


def test_json_has_no_numbers_that_json_does_not_have():
    values = {"a": [float("nan"), float("inf"), 1.5], float("nan"): {"b": -float("inf")}}
    text = to_json(values)
    json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert json.loads(text) == {"a": [None, None, 1.5], "nan": {"b": None}}


def test_the_terminal_gets_no_control_character(capsys):
    for text in UNSEEN:
        for say in (_app.say, _app.note):
            say(f"id {text} [red]markup[/red]")
        _app.say_json({"id": text})
    said = "".join(capsys.readouterr())
    assert not ANY_UNSEEN.search(said)
    assert "[red]markup[/red]" in said


def test_a_name_of_others_begins_no_line_and_fills_no_screen(tmp_path):
    """A file called `a<line break>::error::` once gave a command to the workflow of a repository."""
    (tmp_path / "a\n::error::x.parquet").write_bytes(b"PAR1 no table PAR1")
    said = bilevel("audit", tmp_path, "--label", "y")
    assert said.code == 3
    assert "::error::x.parquet cannot be read as parquet" in said.stderr
    assert "\n::" not in said.stderr
    assert named(["c" * 5_000_000, "short"], 5) == "'" + 199 * "c" + "..., 'short'"


def test_words_between_colons_stay_words(capsys):
    """A row called `a:x:b` was once printed with a cross in place of the `x`."""
    for say in (_app.say, _app.note):
        say("row a:x:b, :warning: [i]c[/i]")
    _app.say_table("t", "row", pd.DataFrame({"n": ["1"]}, index=["a:x:b"]))
    said = capsys.readouterr()
    assert "row a:x:b, :warning: [i]c[/i]" in said.out
    assert "row a:x:b, :warning: [i]c[/i]" in said.err
    assert said.out.count("a:x:b") == 2


def test_a_page_with_charts_of_any_names():
    """Charts of such names once ended the process: the library that draws them aborts."""
    words = ["\x00=1", "\ufffe\uffff", "\x1b[31m\u202e", *UNSEEN[5:9], "\x08<b>"]
    evidence = iris_evidence([f"{word}{k}" for k, word in enumerate(words)])
    page = Report(evidence).to_html()
    style = re.sub(r"<script(?! type=.application/json).*?</script>", "", page, flags=re.DOTALL)
    assert not ANY_UNSEEN.search(style)
    for name in ("␀=10", "\\ufffe\\uffff1", "␛[31m\\u202e2"):
        assert name in page
    evidence["score"] = "\ufffe\x00accuracy"  # as somebody's report.json may say
    charts = draw_charts(evidence)
    assert "\\ufffe␀accuracy" in charts["gains"].svg


def test_a_bar_in_a_name_of_others_is_no_number_format():
    """What came before it once was the format of a tooltip, and ended its drawing."""
    score, fit = tips(score=".4f|a{x|b|", fit="Fit")["tooltip"]
    assert score == {
        **{"field": "score", "type": "quantitative"},
        **{"format": ".4f", "title": "a{x|b|"},
    }
    assert fit == {"field": "fit", "type": "nominal", "title": "Fit"}


def test_classes_may_have_the_names_of_what_every_object_has(capfd):
    """A class called "constructor" once ended the report, and with it the run."""

    def drawn(names: list[str]) -> list[int]:
        rows = [{"given": a, "suggested": b, "rows": 1} for a in names for b in names]
        bars = [layer("bar", by_name(), {"x": number("rows")})]
        lines = [{"name": name, "rows": 1} for name in names]
        charts = [
            matrix("n", "t", "w", rows, names, 1, "given"),
            make_chart("n", "t", "w", lines, bars, 99),
        ]
        assert [row["name"] for row in charts[1].rows] == names
        return [chart.svg.count("<path") for chart in charts]

    assert drawn(["constructor", "__proto__", "toString"]) == drawn(["a", "b", "c"])
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_or_a_closed_pipe_behind_stdout_is_said(tmp_path):
    code = "from bilevel.cli import main\nmain()"
    for target, locale in [("/dev/full", "C.UTF-8"), ("/dev/null", "POSIX")]:
        with open(target, "w") as out:  # noqa: PTH123
            done = subprocess.run(
                [sys.executable, "-c", code, "--help"],
                stdout=out,
                stderr=subprocess.PIPE,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": locale, "PYTHONUTF8": "0"},
                text=True,
                check=False,
            )
        assert done.returncode == (1 if target == "/dev/full" else 0)
        assert "Traceback" not in done.stderr
        assert ("the output cannot be printed (No space left" in done.stderr) == (
            target == "/dev/full"
        )


@pytest.mark.skipif(os.name != "posix", reason="closes what is inherited")
def test_streams_that_are_closed_lead_nowhere_and_give_their_numbers_to_no_file():
    """Once a traceback: `bilevel audit ... >&-`."""
    code = """
import os
from bilevel.cli import _open_streams, main
_open_streams()
assert os.open(os.devnull, os.O_RDONLY) > 2
main()
"""
    command = [sys.executable, "-c", code, "--help"]
    closing = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *command]
    assert subprocess.run(closing, check=False).returncode == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("x.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        ValueError("of another kind, raised from the first"),
    ],
    ids=["allocation", "library", "thread", "cause"],
)
def test_too_little_memory_is_said(capsys, error):
    if isinstance(error, ValueError):
        error.__cause__, error.__context__ = KeyError("of a library"), MemoryError()
    with pytest.raises(typer.Exit) as ended, _app.failures():
        raise error
    assert ended.value.exit_code == 1
    assert "there is too little memory" in capsys.readouterr().err
    with pytest.raises(ImportError, match="another"), _app.failures():
        raise ImportError("another")


def test_too_little_memory_is_said_though_there_is_too_little_to_say_it(capfd, monkeypatch):
    """Once a traceback, under `ulimit -v`: what makes text colourful imports modules."""

    def prints(*_, **__):
        raise MemoryError

    monkeypatch.setattr(_app.err, "print", prints)
    with pytest.raises(typer.Exit) as ended, _app.failures():
        raise MemoryError
    assert ended.value.exit_code == 1
    assert capfd.readouterr().err == "bilevel: there is too little memory: an allocation failed\n"
