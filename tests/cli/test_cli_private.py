"""`--private`: secrets in every place of the input, and every byte of what is written searched."""

import base64
import itertools
import json
import re
import stat
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import typer

from bilevel import cli
from bilevel.cli import _app
from bilevel.cli._run_folder import RunFolder
from bilevel.cli._signals import Stop
from runs import Said, bilevel
from schema import faults

WORDS = [
    *("zorbla", "quixomat", "fennwick", "oddsecret", "grumlen"),  # columns
    *("vrakul", "peltom", "izzarb", "wuntak", "hobbern"),  # values and classes
]
NUMBERS = ["7319.4471", "88213.907", "-6120.3391"]


def write_tables(folder: Path, *, regression: bool) -> list[str]:
    """Tables in which each name and value is a secret word or number."""
    rng = np.random.default_rng(0)
    parts = {}
    for k, (name, n) in enumerate({"train": 150, "trusted": 60, "holdout": 60}.items()):
        x = rng.normal(size=n)
        z = rng.normal(size=n)
        table = pd.DataFrame(
            {
                "oddsecret": [f"wuntak{1000 * k + i}" for i in range(n)],  # ids
                "zorbla": np.where(rng.random(n) < 0.1, 7319.4471, 7319.4471 + x),
                "quixomat": 88213.907 * z,
                "fennwick": rng.choice(["vrakul", "peltom"], n),
                "grumlen": [f"hobbern{i % 5}" for i in range(n)],  # groups
            }
        )
        clean = x + 0.3 * z
        if regression:
            table["target"] = (clean * 6120.3391).round(4)
            table.loc[0, "target"] = -6120.3391
        else:
            label = np.where(clean > 0, "izzarb", "izzarbo")
            flip = rng.random(n) < (0.25 if name == "train" else 0)
            table["target"] = np.where(flip, np.where(clean > 0, "izzarbo", "izzarb"), label)
        path = folder / f"hobbern_{name}.csv"
        table.rename(columns={"target": "wuntakol"}).to_csv(path, index=False)
        parts[name] = str(path)
    return [
        "weigh", parts["train"], "--label", "wuntakol", "--id", "oddsecret",
        "--trusted", parts["trusted"], "--holdout", parts["holdout"], "--groups", "grumlen",
    ]  # fmt: skip


def everything_in(path: Path) -> list[str]:
    """A file as text, and what is packed in it: archives, columns, embedded data, scripts."""
    content = path.read_bytes()
    found = [content.decode("latin-1"), content.decode("utf-8", "replace")]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                found += [name, archive.read(name).decode("latin-1")]
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        found += [str(table.schema), str(table.schema.metadata), table.to_pandas().to_csv()]
    for packed in re.findall(rb"[A-Za-z0-9+/]{200,}={0,2}", content):
        try:
            plain = base64.b64decode(packed + b"=" * (-len(packed) % 4))
        except ValueError:
            continue
        found.append(plain.decode("latin-1"))
    for start in (
        m.start() for m in itertools.islice(re.finditer(rb"\x78[\x01\x9c\xda]", content), 200)
    ):
        try:
            found.append(zlib.decompressobj().decompress(content[start:]).decode("latin-1"))
        except zlib.error:
            continue
    return found


def secrets_in(texts: list[str]) -> set[str]:
    spelled = {word: word for word in WORDS}
    spelled |= {number: number for number in NUMBERS}
    spelled |= {n.lstrip("-").split(".")[0] + "." + n.split(".")[1][:3]: n for n in NUMBERS}
    return {name for text in texts for part, name in spelled.items() if part in text}


def leaks_of(said: Said, folder: Path) -> dict[str, set[str]]:
    found = {"terminal": secrets_in([said.stdout, said.stderr])}
    for path in sorted(folder.rglob("*")):
        found[path.name] = secrets_in([path.name, *everything_in(path)])
    return {name: words for name, words in found.items() if words}


def test_the_search_looks_into_what_is_packed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", "zorbla")
    pd.DataFrame({"a": ["quixomat"] * 9}).to_parquet(tmp_path / "b.parquet")
    packed = base64.b64encode(b"fennwick" + bytes(200))
    (tmp_path / "c.html").write_bytes(b"<img src='data:;base64," + packed + b"'>")
    (tmp_path / "d.bin").write_bytes(b"??" + zlib.compress(b"peltom") + b"??")
    (tmp_path / "e.json").write_text('{"x": [1, "-6120.3391"]}')
    (tmp_path / "vrakul").touch()
    assert leaks_of(Said(0, "88213.907", ""), tmp_path) == {
        "terminal": {"88213.907"},
        "a.zip": {"zorbla"},
        "b.parquet": {"quixomat"},
        "c.html": {"fennwick"},
        "d.bin": {"peltom"},
        "e.json": {"-6120.3391"},
        "vrakul": {"vrakul"},
    }


@pytest.mark.slow
def test_the_search_finds_what_an_open_run_writes(tmp_path):
    command = write_tables(tmp_path, regression=False)
    out = tmp_path / "run"
    said = bilevel(*command, "--show", "zorbla", "--out", out)
    found = leaks_of(said, out)
    assert {"config.toml", "model.skops", "report.html", "report.json", "weights.parquet"} <= set(
        found
    )
    assert {"7319.4471", "izzarb", "wuntak", "hobbern"} <= found["report.json"]


@pytest.mark.parametrize("regression", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_secret_leaves_a_private_run(tmp_path, regression):
    command = write_tables(tmp_path, regression=regression)
    out = tmp_path / "run"
    said = bilevel(*command, "--private", "--minutes-per-check", "2", "--out", out)
    assert said.code == 0, said.stderr
    assert f"Score on the hold-out ({'R2' if regression else 'accuracy'}) " in said.stdout
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("config.toml", "report.html", "report.json", "summary.json"),
        *("weights.parquet", "worst.csv"),
    }
    assert leaks_of(said, out) == {}
    assert faults(out / "summary.json") == faults(out / "report.json") == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    weights = pd.read_parquet(out / "weights.parquet")
    assert weights["id"].tolist() == [f"row {i + 1}" for i in range(150)]
    assert np.mean(np.asarray(weights["weight"])) == pytest.approx(1)
    report: Any = json.loads((out / "report.json").read_text())
    assert report["work"]["minutes_per_check"] == 2
    if not regression:
        assert {line["name"] for line in report["effects"]["classes"]} == {"class 1", "class 2"}
        assert len(report["effects"]["groups"]) == 5
    # The commands that read a run: the report can be written again, the others say why not.
    again = bilevel("report", out)
    assert again.code == 0
    assert leaks_of(again, out) == {}
    assert "isprivate:itkeepsnomodels" in bilevel("suggest", out).squeezed


@pytest.mark.parametrize(
    "broken",
    [
        lambda words: [*words[:3], "vrakul", *words[4:]],  # no such label
        lambda words: ["weigh", words[1] + "x", *words[2:]],  # no such file
        lambda words: [*words, "--show", "zorbla"],
        lambda words: [*words, "--drop", "hobbern"],
        lambda words: [*words, "--estimator", "peltom:Izzarb", "--allow-code"],
    ],
)
def test_no_secret_is_in_what_a_refusal_says(tmp_path, broken):
    command = broken(write_tables(tmp_path, regression=False))
    said = bilevel(*command, "--private", "--out", tmp_path / "run")
    assert said.code in (1, 3)
    assert secrets_in([said.stdout, said.stderr]) == set()
    assert "no message quotes your data" in " ".join(said.stderr.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["vrakul.csv", "zorbla.csv", "--private", "--label=y", "--trusted=t", "--out=o"],
            "no message quotes your data",
        ),
        (["vrakul.csv", "--private", "--label=vrakul", "--task=zorbla"], "quotes your data"),
        (["vrakul.csv", "--private"], "Missing option '--label'"),
    ],
)
def test_no_secret_is_in_what_is_said_of_a_wrong_call(monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["bilevel", "weigh", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run_app()
    assert ended.value.code == 2
    found = capsys.readouterr()
    assert secrets_in([found.out, found.err]) == set()
    assert said in " ".join(found.err.split())


def test_no_secret_of_a_configuration_file_is_said(tmp_path, monkeypatch):
    path = tmp_path / "vrakul.toml"
    path.write_text("zorbla = 3\n")
    command = ["weigh", "--config", str(path), "--private", "--out", str(tmp_path / "run")]
    said = bilevel(*command).squeezed.replace("│", "")  # which frames a message
    assert secrets_in([said]) == {"vrakul", "zorbla"}
    monkeypatch.setattr("sys.argv", ["bilevel", *command])
    said = bilevel(*command)
    assert said.code == 2
    assert secrets_in([said.stdout, said.squeezed.replace("│", "")]) == set()


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_command_does_not_say_what_it_was_called_with(monkeypatch, capsys, begun):
    """Neither before its options are read, nor where it works: privacy may be asked in a file."""
    monkeypatch.setattr("sys.argv", ["bilevel", "audit", "zorbla.csv", "--label", "quixomat"])
    assert secrets_in([Stop().hint()]) == {"zorbla", "quixomat"}
    if not begun:
        monkeypatch.setattr("sys.argv", [*sys.argv, "--private"])
        assert Stop().hint() == "interrupted\nbilevel audit --private ..."
        return
    monkeypatch.setattr(_app, "stop", Stop())
    with pytest.raises(typer.Exit), _app.failures(private=True):
        raise KeyboardInterrupt
    said = "".join(capsys.readouterr())
    assert "interrupted" in said
    assert secrets_in([said]) == set()


@pytest.mark.parametrize("private", [False, True])
def test_the_lock_of_a_private_run_does_not_say_what_it_was_called_with(
    monkeypatch, tmp_path, private
):
    """It stays where a run is killed."""
    monkeypatch.setattr("sys.argv", ["bilevel", "weigh", "zorbla.csv", "--config", "vrakul.toml"])
    with RunFolder.of(tmp_path / "run").writing("", private=private) as partial:
        found = secrets_in([(partial / "lock").read_text()])
    assert found == (set() if private else {"zorbla", "vrakul"})


@pytest.mark.parametrize(
    ("line", "quoted"),
    [
        ("zorbla = 3", True),
        ("memory = 'vrakulGB'", True),
        ("task = 'vrakul'", True),
        ("drop = [3, 'zorbla']", True),
        ("out = 's3://vrakul/zorbla'", True),
        ("train = 'zorbla.csv'", True),
        ("seed = 'vrakul'", False),
        ("zorbla = ", False),  # no TOML
    ],
)
def test_a_file_that_asks_for_privacy_is_not_quoted(tmp_path, line, quoted):
    path = tmp_path / "config.toml"
    needed = {"train": "peltom", "label": "y", "trusted": "peltom", "out": tmp_path / "run"}
    rest = [f"{key} = '{value}'" for key, value in needed.items() if not line.startswith(key)]
    for private in (False, True):
        path.write_text("\n".join([*rest, f"private = {str(private).lower()}", line]))
        said = bilevel("weigh", "--config", path)
        text = said.squeezed.replace("\u2502", "")  # which frames a message
        assert said.code in (2, 3)
        assert bool(secrets_in([said.stdout, text])) == (quoted and not private)
    assert not (tmp_path / "run").exists()
