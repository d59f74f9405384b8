"""Valid files, changed at random: no reader may crash, hang or let an exception through."""

import csv
import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from cases import Part, write_small_tables
from odd_tables import TEXTS, odd_table
from server import Server

from bilevel.cli._run_files import write_summary
from bilevel.reweighting import InputError
from bilevel.reweighting._inputs.files import read_table

OK = (0, 2, 3)  # exit codes: done, refused as a call, refused as data
WORDS = [
    b"\x00",
    b"\xff\xfe",
    b"NaN",
    b"1e999",
    b'"',
    b"\n",
    b"{",
    b"[[[[",
    b"=1",
    b"\xe2\x80\xae",
    b",",
]


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: flipped bits, cuts, repeats, other numbers, words that mean something."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data) + 1))
        size = int(rng.integers(1, 40))
        match int(rng.integers(7)):
            case 0 if place < len(data):
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                del data[place : place + size]
            case 2:
                data[place:place] = data[place : place + size]
            case 3:
                data[place : place + size] = rng.bytes(size)
            case 4:
                data[place:place] = WORDS[int(rng.integers(len(WORDS)))]
            case 5 if rng.random() < 0.3:
                del data[place:]
            case 6:
                value = [0, 1, 2**31 - 1, 2**63 - 1, 255][int(rng.integers(5))]
                data[place : place + 4] = value.to_bytes(8, "little")[:4]
    return bytes(data)


def judge(done: dict[str, Any], allowed: tuple[int, ...] = OK) -> tuple[str, list[str]]:
    """(how a command ended, what is wrong with that)."""
    if done["code"] is None:
        return "hang", ["hang"]
    if "Traceback" in done["stderr"]:
        return "traceback", ["traceback"]
    if done["code"] < 0 or done["code"] not in allowed:
        return "crash", [f"exit code {done['code']}"]
    return ("done" if done["code"] == 0 else "refused"), []


def run_and_judge(
    server: Server, name: str, k: int, command: list[str | Path]
) -> tuple[str, list[str]]:
    """`judge`, of a command in the warm child; what is wrong there is repeated in a new one."""
    ended, wrong = judge(server.run(*command, warm=True))
    if wrong:
        done = server.run(*command)
        print(name, k, f"{wrong} in the warm child;", done["stderr"][-2000:], flush=True)
        ended, wrong = judge(done)
    return ended, wrong


def shared(number: int, names: dict[str, Any] | list[str]) -> dict[str, int]:
    """So many cases, shared among the names."""
    return dict.fromkeys(names, max(1, number // len(names)))


def mutate_text(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes of a kind that people and programs make: the result is still text."""
    lines = list(io.StringIO(content.decode("utf-8"), newline=""))
    for _ in range(rng.integers(1, 4)):
        i, j = (int(rng.integers(len(lines))) for _ in range(2))
        separator = "\t" if "\t" in lines[0] else ","
        cells = lines[i].rstrip("\r\n").split(separator)
        k = int(rng.integers(len(cells)))
        match int(rng.integers(12)):
            case 0:
                lines.insert(i, lines[j])
            case 1 if len(lines) > 2:
                del lines[i]
            case 2:
                lines[i], lines[j] = lines[j], lines[i]
            case 3 | 4 | 5:
                cells[k] = TEXTS[int(rng.integers(len(TEXTS)))]
            case 6:
                cells[k] = f'"{cells[k]}"' if rng.random() < 0.5 else f'"{cells[k]}'
            case 7:
                cells = [*cells[:k], *cells[k + 1 :]]
            case 8:
                cells.insert(k, "")
            case 9:
                lines = [
                    line.replace("\n", "\r\n" if rng.random() < 0.5 else "\r") for line in lines
                ]
                continue
            case 10:
                lines = ["\ufeff", *lines] if rng.random() < 0.5 else [*lines, "\n", "  \n"]
                continue
            case 11:
                cells[k] += "\n" + cells[k]
        if i < len(lines):
            lines[i] = separator.join(cells) + "\n" * lines[i].endswith("\n")
    return "".join(lines).encode("utf-8", "surrogatepass")


class Folders(Part):
    """Every file of a run folder, changed, with and without the sums in its summary made to fit."""

    def __init__(self, server: Server, folder: Path, number: int):
        self.server, self.home = server, folder / "folders"
        self.home.mkdir()
        command, m = write_small_tables(self.home)[:-1], self.home / "m"
        for run, options in {"run": [], "trees": ["--estimator", "trees", "--no-report"]}.items():
            made = server.run(*command, *options, "--out", self.home / run)
            assert made["code"] == 0, made["stderr"]
        score = ["score", m, self.home / "train.csv"]
        self.readers: dict[str, tuple[str, list[str | Path]]] = {
            "config.toml": ("run", ["suggest", m]),
            "summary.json": ("run", score),
            "model.skops": ("run", score),
            "scorer.npz": ("run", score),
            "weights.parquet": ("run", ["suggest", m]),
            "report.json": ("run", ["report", m]),
            "weights.parquet of two runs": ("run", ["report", self.home / "run", m]),
            "model.skops of trees": ("trees", score),
            "scorer.skops of trees": ("trees", score),
        }
        self.goals = shared(number, list(self.readers))

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """Change one file and read it."""
        rng = np.random.default_rng([*name.encode(), k])
        (run, reader), changed = self.readers[name], self.home / "m"
        shutil.copytree(self.home / run, changed)
        path = changed / name.partition(" ")[0]
        path.write_bytes(mutate(path.read_bytes(), rng))
        if k % 4 and path.name != "summary.json":  # as somebody who forges a folder would
            write_summary(json.loads((changed / "summary.json").read_text()), changed)
        ended, wrong = run_and_judge(self.server, name, k, reader)
        shutil.rmtree(changed)
        return ended, wrong


class Tables(Part):
    """Files that a command reads, of each format, changed."""

    def __init__(self, server: Server, folder: Path, number: int):
        self.server, self.home = server, folder / "tables"
        self.home.mkdir()
        write_small_tables(self.home)
        for name in ("train", "trusted"):
            self._write(pd.read_csv(self.home / f"{name}.csv"), name)
        home, rest = self.home, ["--trusted", "TRUSTED", "--label", "y", "--id", "id"]
        plain = [
            home / "train.csv",
            "--trusted",
            home / "trusted.csv",
            "--label",
            "y",
            "--id",
            "id",
        ]
        weigh = ["weigh", *plain, "--dry-run", "--out", home / "none"]
        given = ["--pred-probs", "FILE", "--pred-probs-trusted", home / "trusted.npy"]
        accepted = ["--apply-labels", "FILE", "--dry-run"]
        (home / "decided.csv").write_text("id,label\ntrain3,1\ntrain4,0\n")
        (home / "settings.toml").write_text('id = "id"\ntime = "a"\ndrop = ["b"]\n')
        made = server.run("audit", *plain, "--format", "json", "--out", home / "baseline.json")
        assert made["code"] == 0, made["stderr"]
        self.readers: dict[str, list[list[str | Path]]] = {
            name: [["audit", "FILE", *rest], ["weigh", "FILE", *rest, *weigh[-3:]]]
            for name in ("wide.csv", "wide.tsv", "wide.csv.gz", "wide.parquet", "nested.parquet")
        }
        self.readers |= {
            "train.npy": [[*weigh, *given]],
            "decided.csv": [["fix", *plain, "--out", home / "none", *accepted]],
            "baseline.json": [["audit", *plain, "--baseline", "FILE"]],
            "settings.toml": [["audit", *plain[:-2], "--config", "FILE"]],
        }
        self.goals = shared(number, self.readers)

    def _write(self, table: pd.DataFrame, name: str) -> None:
        table["when"] = pd.date_range("2026-01-01", periods=len(table))
        table["text"] = [f"word {i % 7}, é" for i in range(len(table))]
        kind = "wide" if name == "train" else "trusted wide"
        table.to_csv(self.home / f"{kind}.csv", index=False)
        table.to_csv(self.home / f"{kind}.tsv", index=False, sep="\t")
        table.to_csv(self.home / f"{kind}.csv.gz", index=False)
        table.to_parquet(self.home / f"{kind}.parquet")
        table["vector"] = list(np.zeros((len(table), 3)))
        table.to_parquet(self.home / f"{kind.replace('wide', 'nested')}.parquet", compression=None)
        np.save(self.home / f"{name}.npy", np.full((len(table), 2), 0.5))

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """Change one file and read it."""
        rng = np.random.default_rng([*name.encode(), k])
        changed = self.home / f"changed.{name.partition('.')[2]}"
        content = (self.home / name).read_bytes()
        as_text = rng.random() < 0.7 and not name.endswith((".parquet", ".npy"))
        if as_text and name.endswith(".gz"):
            content = gzip.compress(mutate_text(gzip.decompress(content), rng))
        else:
            content = mutate_text(content, rng) if as_text else mutate(content, rng)
        changed.write_bytes(content)
        places = {"FILE": changed, "TRUSTED": self.home / f"trusted {name}"}
        command = self.readers[name][k % len(self.readers[name])]
        given = [places.get(str(x), x) for x in command]
        ended, wrong = run_and_judge(self.server, name, k, given)
        if ended == "done" and (said := misread(changed, name)):
            ended, wrong = "misread", [said]
            print(name, k, wrong, flush=True)
        return ended, wrong


def misread(path: Path, name: str) -> str | None:
    """What Python's own reader finds otherwise in the label column of a CSV file."""
    if not name.startswith(("wide.csv", "wide.tsv")):
        return None
    try:
        read = read_table(path, "train", label="y", ids=["id"]).frame["y"]
    except InputError:
        return None  # which was read with other options
    content = path.read_bytes()
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode("utf-8-sig")
    separator = "\t" if name.endswith(".tsv") else ","
    head, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows = [row for row in rows if row]
    if len(rows) != len(read):
        return "another number of rows"
    told = [row[head.index("y")] for row in rows]
    same = [a == str(b) or _number(a) == _number(b) for a, b in zip(told, read, strict=True)]
    return None if all(same) else "another label"


def _number(value: Any) -> float | str:
    try:
        return -1e9 if value != value or value in ("", None) else float(value)
    except (TypeError, ValueError):
        return str(value)


class OddTables(Part):
    """Whole files with columns of every type, odd names, and few rows, see `odd_tables.py`."""

    def __init__(self, server: Server, folder: Path, number: int):
        self.server, self.home = server, folder / "odd"
        self.home.mkdir()
        self.goals = shared(number, ["odd.parquet", "odd.csv"])

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """Make two tables and read them."""
        rng = np.random.default_rng([*name.encode(), k])
        path, trusted = self.home / name, self.home / f"trusted {name}"
        table = odd_table(rng)
        rows = len(table)
        known = (
            table.take(rng.integers(rows, size=rows // 2)) if rng.random() < 0.5 and rows else table
        )
        for one, target in [(table, path), (known, trusted)]:
            if name.endswith(".parquet"):
                pyarrow.parquet.write_table(one, target)
            else:
                one = one.select(list(dict.fromkeys(range(one.num_columns))))
                pd.DataFrame(
                    {str(i): _texts(column) for i, column in enumerate(one.columns)}
                ).set_axis(one.column_names, axis=1).to_csv(
                    target, index=False, errors="backslashreplace"
                )
        columns = [
            c for c in table.column_names if c and "\x00" not in c and not c.startswith("-")
        ] or ["a"]
        label, other = (columns[int(rng.integers(len(columns)))] for _ in range(2))
        options = ["--trusted", trusted, "--label", label]
        options += ["--id", other] if rng.random() < 0.4 else []
        command = ["audit", path, *options]
        if k % 2:
            groups = ["--groups", other] if rng.random() < 0.3 else []
            command = ["weigh", path, *options, *groups, "--dry-run", "--out", self.home / "none"]
        return run_and_judge(self.server, name, k, command)


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    try:
        return [None if x is None else str(x) for x in column.to_pylist()]
    except (ValueError, OverflowError, UnicodeDecodeError):
        return ["?"] * len(column)
