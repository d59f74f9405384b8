"""`bilevel weigh` with its default method: the run folder, its report, and data that mean harm."""

import csv
import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from bilevel._text import for_spreadsheet, visible
from bilevel.cli import _run_files
from bilevel.reweighting._report.page import Report
from digits import TRAIN, TRUSTED, arguments, digits, mixed_table, plain_table, write_table
from runs import (
    FORMULAS,
    Run,
    bilevel,
    formula_ids,
    full_run,
    sources,
    weigh,
)
from schema import faults

FILES = [
    *("config.toml", "model.skops", "report.html", "report.json", "scorer.npz", "summary.json"),
    *("weights.parquet", "worst.csv"),
]
HARMLESS = FORMULAS[-3:]


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Run:
    return full_run(tmp_path_factory.getbasetemp())


def cells(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


# -- the run folder ---------------------------------------------------------------------------------


def test_the_folder_holds_these_files_and_nothing_else(full):
    assert full.code == 0
    assert full.files == FILES
    assert faults(full.out / "report.json") == []
    tables = ["holdout.csv", "run", "train.csv", "trusted.csv"]
    assert sorted(path.name for path in full.out.parent.iterdir()) == tables
    assert full.config["method"] == "auto"
    assert full.config["groups"] == "source"
    assert json.loads(full.stdout) == {**full.summary, "folder": str(full.out)}
    assert "gathering the evidence for the report" in full.stderr


def test_weights_have_one_line_per_row_and_wrong_labels_have_low_quality(full):
    weights, wrong = full.weights, digits().wrong
    assert list(weights.columns) == [
        *("id", "weight", "rank", "label_quality", "keep", "wrong"),
        *("given_label", "predicted_label"),
    ]
    assert weights["id"].tolist() == formula_ids()
    np.testing.assert_array_equal(weights["given_label"], digits().y)
    assert weights["weight"].mean() == pytest.approx(1.0, rel=1e-12)
    assert weights["label_quality"].between(0, 1).all()
    assert roc_auc_score(~wrong, weights["label_quality"]) >= 0.97  # 0.994
    by_rank = weights.set_index("rank")["weight"].sort_index()
    assert by_rank.index.tolist() == list(range(1, TRAIN + 1))
    assert (np.diff(by_rank) <= 0).all()
    assert np.mean(weights["keep"] != wrong) >= 0.92  # 0.96
    assert full.summary["keep"] == weights["keep"].sum()
    noise = full.summary["noise"]
    assert noise["flagged"] == (~weights["keep"]).sum()
    assert noise["rate"]["low"] <= wrong.mean() <= noise["rate"]["high"]
    assert [line["name"] for line in noise["by_class"]] == [str(k) for k in range(10)]
    assert len(noise["by_group"]) == len(np.unique(sources()))
    assert set(noise["verify"]["rows"]) <= set(formula_ids())
    assert noise["verify"]["expected_width"] < noise["verify"]["width"]


def test_the_summary_names_the_choice_among_all_candidates(full):
    summary = full.summary
    candidates = pd.DataFrame(summary["candidates"]).T
    assert set(candidates.index) == {
        *("uniform", "all rows + trusted", "trusted only", "filter"),
        *("weights", "clean rows", "groups"),
    }
    assert summary["winner"] in ("weights", "clean rows", "groups")
    assert summary["believable"] == all(check["passed"] for check in summary["checks"])
    assert list(summary["weighting_model"]) == ["uniform", "chosen"]
    baselines = summary["baselines"]
    assert list(baselines) == [
        *("uniform", "all rows + trusted", "trusted only", "filter", "reweighted")
    ]
    assert (
        baselines["reweighted"]["score"] > baselines["uniform"]["score"] + 0.12
    )  # 0.935 and 0.773


def test_the_score_in_the_table_is_that_of_the_model_in_the_folder(full):
    table = pd.read_csv(full.out.parent / "holdout.csv")
    right = full.model().predict(table.drop(columns=["row", "digit"])) == table["digit"]
    score = full.summary["baselines"]["reweighted"]["score"]
    assert score == pytest.approx(np.mean(right), abs=1e-12)


def test_the_source_that_guesses_weighs_least(full):
    groups = full.summary["group_weights"]
    assert sorted(groups) == ["a", "b", "guesses"]
    assert groups["guesses"] < 0.25 * min(groups["a"], groups["b"])
    means = full.weights["weight"].groupby(sources()).mean()
    assert groups == pytest.approx(means.to_dict(), rel=1e-9)
    assert "source" not in full.model().feature_names_in_


# -- worst.csv --------------------------------------------------------------------------------------


def test_worst_csv_lists_the_flagged_rows_with_the_lowest_label_quality_first(full):
    worst = pd.read_csv(full.out / "worst.csv")
    flagged = full.weights[~full.weights["keep"]]
    assert 0 < len(flagged) < len(full.weights)
    weights = flagged.sort_values("label_quality", kind="stable")
    assert list(worst.columns) == [c for c in weights.columns if c != "rank"]
    assert worst["label_quality"].is_monotonic_increasing
    assert worst["id"].tolist() == [for_spreadsheet(i) for i in weights["id"]]
    np.testing.assert_array_equal(worst["keep"], weights["keep"])
    np.testing.assert_allclose(worst["weight"], weights["weight"], rtol=1e-12)
    assert digits().wrong[weights.index[:40]].mean() >= 0.95


def assert_harmless(path: Path, ids: set[str]) -> None:
    """No spreadsheet takes a cell for a formula, and what was changed can be told."""
    header, *lines = cells(path)
    column = header.index("id")
    for line in lines:
        for cell in line:
            assert not cell.strip().startswith(tuple("=+-@\N{FULLWIDTH EQUALS SIGN}"))
            assert not cell.startswith(("\t", "\r", "\n"))
    shown = {line[column] for line in lines}
    dangerous = ids & set(FORMULAS[:-3])
    assert dangerous
    assert {f"'{formula}" for formula in dangerous} <= shown
    assert ids & set(HARMLESS) <= shown
    # Where spreadsheets separate by `;`, text that is not quoted would become two cells.
    assert ('"a;=1+1"' in path.read_text(encoding="utf-8")) == ("a;=1+1" in ids)


def test_ids_that_are_formulas_are_made_harmless_in_worst_csv(full):
    flagged = full.weights[~full.weights["keep"]]
    assert_harmless(full.out / "worst.csv", set(flagged["id"]))
    assert set(FORMULAS) <= set(full.weights["id"])  # Parquet is not opened by double click


def test_ids_that_are_formulas_are_made_harmless_in_scores(full, tmp_path):
    X, y = digits().holdout
    new = plain_table(X[:50], y[:50])
    new.loc[: len(FORMULAS) - 1, "row"] = FORMULAS
    said = bilevel(
        *("score", full.out, write_table(new, tmp_path / "new.csv"), "--out", tmp_path / "x.csv")
    )
    assert said.code == 0
    assert_harmless(tmp_path / "x.csv", set(new["row"]))
    assert len(cells(tmp_path / "x.csv")) == 51


# -- the report -------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The elements of a page with their attributes, and its texts outside of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements[-1][0] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_the_report_says_the_verdict_of_the_run(full):
    evidence: dict[str, Any] = json.loads((full.out / "report.json").read_text(encoding="utf-8"))
    summary = full.summary
    page = Page((full.out / "report.html").read_text(encoding="utf-8"))
    assert evidence["verdict"]["headline"] in page.text
    assert evidence["verdict"]["sentence"].startswith("Weighting ")
    assert f"is {summary['baselines']['reweighted']['score']:.3f} on" in page.text
    assert evidence["winner"] == summary["winner"]
    assert evidence["checks"] == summary["checks"]
    assert (evidence["train_rows"], evidence["trusted_rows"]) == (TRAIN, TRUSTED)
    assert {row["name"] for row in evidence["effects"]["groups"]} == {"a", "b", "guesses"}
    worst = [row["id"] for row in evidence["worst"]["rows"]]
    lowest = full.weights.sort_values("label_quality", kind="stable")["id"].tolist()
    assert set(worst[:10]) <= set(lowest[:20])
    assert {leak["between"] for leak in evidence["leaks"]} == {
        *("train/trusted", "train/holdout", "trusted/holdout")
    }
    assert evidence["provenance"]["seconds"] > 0
    assert evidence["provenance"]["peak_memory"] > 5e7


def test_report_reads_what_weigh_wrote(full, tmp_path):
    evidence = Report.load(full.out / "report.json").evidence
    for name in ("again.json", "again.html"):
        said = bilevel("report", full.out, "--out", tmp_path / name)
        assert said.code == 0
        assert str(tmp_path / name) in said.stdout
    assert Report.load(tmp_path / "again.json").evidence == evidence
    assert (tmp_path / "again.html").read_bytes() == (full.out / "report.html").read_bytes()


def test_at_most_a_thousand_worst_rows_are_written():
    assert _run_files.WORST == 1000


# -- data that mean harm ----------------------------------------------------------------------------

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "\"><img src=x onerror='window.hacked = 2'>",
    "{{7*7}}",
    "{% raw %}",
    "../../x",
    "..\\..\\x",
    "[/bold] [red]x[/red]",
    "</script><!--",
    "a\nb",
    "%s {0} $HOME",
]
LABEL = '<b>"label"\\\'</b>'


def hostile_table(X: np.ndarray, y: np.ndarray, first_id: int = 0) -> pd.DataFrame:
    """Hostile names of columns, ids, labels, categories and sources."""
    table: Any = mixed_table(X, y, first_id)
    rows = range(len(y))
    table["row"] = [f"{HOSTILE[i % 10]}{first_id + i}" for i in rows]
    table["digit"] = [HOSTILE[k] for k in y]
    table["side"] = table["side"].map({"a": HOSTILE[0], "b": HOSTILE[2]})
    table["source"] = [HOSTILE[(0, 1, 4)[i % 3]] for i in rows]
    names = {f"p{i + 1}": HOSTILE[i] for i in range(7)} | {"digit": LABEL, "row": "../id"}
    return table.rename(columns=names)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Run:
    data = digits()
    folder = tmp_path_factory.mktemp("hostile") / "a" / "b" / "c"
    folder.mkdir(parents=True)
    for k, (name, part) in enumerate(
        {
            "train": data.learnable[:2],
            "trusted": data.learnable[2:],
            "holdout": data.holdout,
        }.items()
    ):
        write_table(hostile_table(*part, first_id=10_000 * k), folder / f"{name}.csv")
    command = [*arguments(folder), "--id", "../id", "--groups", "source"]
    command[command.index("--label") + 1] = LABEL
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where relative paths would lead out of
        return weigh(command, folder / "run")


@pytest.mark.slow
@pytest.mark.slow
def test_hostile_tables_are_weighed_and_nothing_is_written_elsewhere(hostile):
    assert hostile.code == 0
    assert hostile.files == FILES
    above = hostile.out.parents[3]
    assert sorted(path.relative_to(above).as_posix() for path in above.rglob("*")) == [
        *("a", "a/b", "a/b/c", "a/b/c/holdout.csv", "a/b/c/run"),
        *(f"a/b/c/run/{name}" for name in FILES),
        *("a/b/c/train.csv", "a/b/c/trusted.csv"),
    ]
    weights = hostile.weights
    assert weights["id"].tolist() == [f"{HOSTILE[i % 10]}{i}" for i in range(TRAIN)]
    assert set(weights["predicted_label"]) == set(HOSTILE)
    assert roc_auc_score(~digits().wrong, weights["label_quality"]) >= 0.95
    assert hostile.config["label"] == LABEL
    assert set(hostile.summary["group_weights"]) == {HOSTILE[k] for k in (0, 1, 4)}
    assert set(HOSTILE[:7]) <= set(hostile.model().feature_names_in_)


@pytest.mark.slow
def test_hostile_names_are_text_in_the_report(hostile):
    text = (hostile.out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3  # the drawing library, the page's own, and the charts' data
    assert not {"img", "iframe", "b", "form", "object"} & set(tags)
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "href") or str(value).startswith("#")
    shown = set(page.texts)
    for name in HOSTILE:
        assert (
            visible(name) in shown
        )  # a class or a source, in a table, as it is: {{7*7}} is not 49
    assert "window.hacked = 1</script>" not in text


@pytest.mark.slow
@pytest.mark.slow
def test_hostile_tables_go_through_the_other_commands(hostile):
    tables = [hostile.out.parent / f"{name}.csv" for name in ("train", "trusted", "holdout")]
    scored = bilevel("score", hostile.out, tables[2], "--json")
    assert scored.code == 0
    assert {row["given_label"] for row in json.loads(scored.stdout)} == set(HOSTILE)
    shown = bilevel("score", hostile.out, tables[2])
    assert shown.code == 0
    assert "[/bold]" in shown.stdout  # it is no markup
    suggested = bilevel("suggest", hostile.out, "--budget", "5")
    assert suggested.code == 0
    train, trusted, holdout = map(str, tables)
    options = ("--trusted", trusted, "--holdout", holdout, "--id", "../id", "--drop", "source")
    audited = bilevel("audit", train, "--label", LABEL, *options)
    assert audited.code == 0
    assert "no id occurs in both" in " ".join(audited.stdout.split())
