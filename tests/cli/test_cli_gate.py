"""`bilevel audit` as a gate: what makes it fail, baselines, and the forms that programs read."""

import json
import os
import re
import stat
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import typer
import yaml

from bilevel.cli import app
from bilevel.cli._gate import Gate, in_format, parse_fail_on
from bilevel.reweighting._audit.finding import CHECKS, FAMILIES, Finding
from runs import Said, bilevel
from schema import faults

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> list[str]:
    """A row of the training file stands in the hold-out (a problem), and one repeats (a warning)."""
    folder = tmp_path_factory.mktemp("gate")
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(160, 3)).round(4), columns=["a", "b", "c"])
    table["y"] = np.where(table["a"] + rng.normal(size=160) > 0, "yes", "no")
    table.insert(0, "row", [f"r{i}" for i in range(160)])
    parts = {"train": table[:80], "trusted": table[80:120], "holdout": table[120:]}
    parts["holdout"] = pd.concat([parts["holdout"], table[3:4].assign(row="h3")])
    parts["train"] = pd.concat([parts["train"], table[5:6].assign(row="again")])
    for name, part in parts.items():
        part.to_csv(folder / f"{name}.csv", index=False)
    return [
        str(folder / "train.csv"), "--label", "y", "--id", "row",
        "--trusted", str(folder / "trusted.csv"), "--holdout", str(folder / "holdout.csv"),
    ]  # fmt: skip


def audit(tables: list[str], *options: str | Path) -> Said:
    return bilevel("audit", *tables, *options)


def test_exit_codes(tables):
    codes = {
        (): 0,
        ("--fail-on", "leak"): 4,
        ("--fail-on", "leaks"): 2,
        ("--baseline", "/nowhere"): 3,
    }
    found = {options: audit(tables, *options) for options in codes}
    assert {options: said.code for options, said in found.items()} == codes
    assert "does not know leaks; it knows problem" in " ".join(
        found["--fail-on", "leaks"].stderr.replace("│", " ").split()
    )


def test_without_trusted_rows_labels_are_judged_by_each_other(tables):
    said = bilevel("audit", *tables[:5], "--fail-on", "leak")
    assert said.code == 0
    assert "labels that the other rows contradict: " in said.stdout
    assert "trusted rows among" not in said.stdout


@pytest.mark.parametrize(
    ("names", "strict", "fails"),
    [
        (None, False, []),
        (None, True, ["leak/rows"]),
        ("problem", False, ["leak/rows"]),
        ("warning", True, ["leak/rows", "labels/spelling"]),
        ("leak, labels", False, ["leak/rows", "labels/spelling"]),
        ("labels/spelling", True, ["labels/spelling"]),
        ("leak/ids,columns", False, []),
    ],
)
def test_what_an_audit_fails_on(names, strict, fails):
    found = Gate(parse_fail_on(names, strict)).judge(FINDINGS)
    assert [line.check for line in found.lines if line.fails] == fails
    assert found.fails == bool(fails)


def test_a_baseline_lets_pass_what_it_has_and_nothing_else(tables, tmp_path):
    last = tmp_path / "last.json"
    assert audit(tables, "--format", "json", "--out", last).code == 0
    assert faults(last) == []
    said = audit(tables, "--strict", "--fail-on", "leak,duplicates", "--baseline", last)
    assert said.code == 0
    assert " ".join(said.stdout.split()).count("(in the baseline)") == 3
    saved = json.loads(last.read_text())
    assert (saved["format"], saved["passed"]) == ("bilevel audit 1", False)
    leak = next(f for f in saved["findings"] if f["check"] == "leak/rows" and f["ids"])
    assert (leak["ids"], leak["num_ids"], leak["table"]) == (["r3"], 1, "train")
    leak["ids"] = ["r4"]  # another row: what was found is new
    last.write_text(json.dumps(saved))
    assert audit(tables, "--fail-on", "leak", "--baseline", last).code == 4
    leak |= {"ids": [], "num_ids": 2}  # a private baseline has numbers alone
    last.write_text(json.dumps(saved))
    assert audit(tables, "--fail-on", "leak", "--baseline", last).code == 0
    last.write_text('{"findings": []}')
    assert audit(tables, "--baseline", last).code == 3


@pytest.mark.parametrize(
    ("before", "now", "known"),
    [
        ({}, {}, True),
        ({"title": "training rows among the trusted rows"}, {}, False),  # of other tables
        ({"severity": "warning"}, {}, False),
        ({}, {"severity": "warning"}, True),
        ({"ids": ("r1", "r2")}, {}, True),
        ({}, {"ids": ("r1", "r2")}, False),
        ({"ids": ()}, {}, False),
        ({"ids": ()}, {"ids": ()}, True),
    ],
)
@pytest.mark.parametrize("private", [False, True])
def test_a_baseline_knows_the_same_fault_and_no_other(before, now, known, private):
    """Equal ids of another pair of tables, and a warning that became a problem, are new."""
    title = "training rows among the hold-out rows"
    finding = Finding("problem", title, "1 row", ("r1",), "leak/rows", "train")
    old = Gate(frozenset()).judge([finding._replace(**before)], private=private).lines
    saved = json.loads(json.dumps([line._asdict() for line in old]))
    (line,) = Gate(frozenset({"leak"}), saved).judge([finding._replace(**now)]).lines
    if private:  # it has numbers alone, and no titles
        known = known or "title" in before
    assert line.known == known
    assert line.fails == (not known)


FINDINGS = [
    Finding("problem", "a <b>", 'x "1", 50% of\n\x1b[31m, rows: a', ("r1",), "leak/rows"),
    Finding("warning", "spelling", "d\u202e", ("\ud800",), "labels/spelling", "trusted"),
    Finding("ok", "constant columns", "none.", (), "columns/constant"),
]
PATHS = {"train": Path("data/train set.csv"), "trusted": Path("data/t,:%.csv")}


def judged(fail_on: str = "problem", baseline: Any = None, private: bool = False) -> Any:
    return Gate(parse_fail_on(fail_on, False), baseline).judge(FINDINGS, private=private)


def form(kind: str, **options: Any) -> str:
    return in_format(kind, judged(**options), PATHS, private=False, at_most=None)


# The required properties of the published schema of SARIF 2.1.0, and the values that it allows.
SARIF: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"enum": ["2.1.0"]},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "tool": {
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "required": ["name"],
                                "properties": {
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "required": ["id"],
                                            "properties": {
                                                "shortDescription": {"required": ["text"]},
                                                "help": {"required": ["text"]},
                                            },
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message"],
                            "properties": {
                                "message": {"required": ["text"]},
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "baselineState": {
                                    "enum": ["new", "unchanged", "updated", "absent"]
                                },
                                "partialFingerprints": {"additionalProperties": {"type": "string"}},
                                "locations": {
                                    "items": {
                                        "properties": {
                                            "physicalLocation": {
                                                "properties": {
                                                    "artifactLocation": {
                                                        "properties": {
                                                            "uri": {
                                                                "type": "string",
                                                                "pattern": "^[A-Za-z0-9._/%-]+$",
                                                            }
                                                        }
                                                    },
                                                    "region": {
                                                        "properties": {
                                                            "startLine": {
                                                                "type": "integer",
                                                                "minimum": 1,
                                                            }
                                                        }
                                                    },
                                                }
                                            }
                                        }
                                    }
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def test_sarif_has_what_the_schema_requires_and_a_result_per_finding():
    text = form("sarif")
    assert text.isascii()
    log = json.loads(text)
    jsonschema.validate(log, SARIF)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == list(CHECKS)
    results = run["results"]
    assert [(r["ruleId"], r["level"]) for r in results] == [
        ("leak/rows", "error"),
        ("labels/spelling", "warning"),
    ]
    assert all(rules[r["ruleIndex"]] == r["ruleId"] for r in results)
    places = [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in results]
    assert places == ["data/train%20set.csv", "data/t%2C%3A%25.csv"]
    assert "\x1b" not in results[0]["message"]["text"]
    assert len({r["partialFingerprints"]["bilevelFinding/v1"] for r in results}) == 2
    assert "baselineState" not in results[0]
    known: list[dict[str, Any]] = [{"check": "leak/rows", "table": "train", "severity": "problem"}]
    known[0] |= {"title": "leak/rows, training rows", "ids": [], "num_ids": 1}
    results = json.loads(form("sarif", baseline=known))["runs"][0]["results"]
    assert [r["baselineState"] for r in results] == ["unchanged", "new"]
    jsonschema.validate(json.loads(form("sarif", baseline=known)), SARIF)


def test_junit_has_a_case_per_finding_and_a_failure_for_what_fails():
    root = ET.fromstring(form("junit"))
    # What Jenkins' schema of JUnit files (junit-10.xsd) allows, which refuses a file with more.
    assert set(root.keys()) <= {"name", "time", "tests", "failures", "errors"}
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "0")
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == ["a <b>", "spelling", "constant columns"]
    (failure,) = cases["a <b>"]
    assert failure.tag == "failure"
    assert failure.get("message") == failure.text == 'x "1", 50% of␊␛[31m, rows: a'
    assert cases["spelling"][0].text == "warning: d\\u202e"
    assert ET.fromstring(form("junit", fail_on="leak/ids")).get("failures") == "0"


def test_annotations_are_one_line_each_and_escaped():
    assert form("github").splitlines() == [
        '::error file=data/train set.csv,title=leak/rows%3A a <b>::x "1", 50%25 of␊␛[31m, rows: a',
        "::warning file=data/t%2C%3A%25.csv,title=labels/spelling%3A spelling::d\\u202e",
    ]


def test_forms_are_printed_or_written(tables, tmp_path):
    said = audit(tables, "--format", "sarif", "--fail-on", "leak")
    assert said.code == 4
    jsonschema.validate(json.loads(said.stdout), SARIF)
    out = tmp_path / "audit.xml"
    said = audit(tables, "--format", "junit", "--out", out, "--strict")
    assert (said.code, said.stdout) == (4, "")
    assert ET.parse(out).getroot().get("failures") == "1"


def test_in_private_mode_nothing_of_the_input_is_said(tables, tmp_path):
    secrets = ["r3", "again", "'a'", "yes", "row", "train.csv"]
    said = audit(tables, "--private", "--strict", "--out", tmp_path / "p.json")
    assert said.code == 4
    assert "leak/rows" in said.stdout
    assert not [s for s in secrets if f"{s}," in said.stdout or f"'{s}'" in said.stdout]
    assert "r3" not in said.stdout
    for kind in ("json", "sarif", "junit", "github"):
        text = in_format(kind, judged(private=True), PATHS, private=True, at_most=None)
        assert "leak/rows" in text
        assert not [s for s in ("a <b>", "&lt;b", "r1", "50%", "data", "set") if s in text]
    assert stat.S_IMODE((tmp_path / "p.json").stat().st_mode) == 0o600
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["files"] == {"train": "train", "trusted": "trusted", "holdout": "holdout"}
    assert all(f["ids"] == [] for f in found["findings"])
    said = bilevel("audit", "/secret/place.csv", *tables[1:], "--private")
    assert said.code == 3
    assert "place" not in said.stderr
    assert "the data cannot be used" in said.stderr


# --- what other repositories use


def test_the_hook_and_the_action_name_options_that_there_are():
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [(h["id"], h["entry"], h["pass_filenames"]) for h in hooks] == [
        ("bilevel-audit", "bilevel audit", False)
    ]
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    script = action["runs"]["steps"][1]["run"]
    options = {word for word in re.split(r"[\s()]+", script) if word.startswith("--")}
    command: Any = typer.main.get_command(app)
    known = {o for p in command.commands["audit"].params for o in p.opts}
    assert options <= known
    assert "${{" not in script  # inputs are no code
    named = {
        v.split("inputs.")[1].split(" ")[0] for v in action["runs"]["steps"][1]["env"].values()
    }
    assert named | {"package"} == set(action["inputs"])


def test_the_action_passes_its_inputs_as_they_are(tmp_path):
    """Its script runs, with a `bilevel` that writes down what it is given."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    stub = tmp_path / "bilevel"
    stub.write_text(
        '#!/bin/sh\nfor x in "$@"; do printf "<%s>" "$x"; done >> calls\necho >> calls\n'
    )
    stub.chmod(0o755)
    given = dict.fromkeys(action["runs"]["steps"][1]["env"], "")
    given |= {"TRAIN": "a b.csv", "LABEL": "$(touch hacked)", "TRUSTED": "t.csv", "ID": "row id"}
    given |= {"FAIL_ON": "leak,labels", "SARIF": "out.sarif", "PRIVATE": "false"}
    script = action["runs"]["steps"][1]["run"]
    subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, check=True,
        env=given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    common = "<audit><a b.csv><--label><$(touch hacked)><--trusted><t.csv><--id><row id>"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"{common}<--format><sarif><--out><out.sarif>",
        f"{common}<--format><github><--fail-on><leak,labels>",
    ]
    assert not (tmp_path / "hacked").exists()


def test_the_page_on_audits_names_every_check():
    page = (ROOT / "docs" / "start" / "audit.md").read_text()
    assert [check for check in CHECKS if f"`{check}`" not in page] == []
    assert [family for family in FAMILIES if family not in page] == []
