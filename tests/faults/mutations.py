"""Valid files, changed at random: no reader may crash, hang or let an exception through."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from server import Server

from bilevel.cli._run_files import write_summary

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


def judge(done: dict[str, Any], allowed: tuple[int, ...] = OK) -> str:
    """How a command ended, in a word; what is wrong is in capitals."""
    if done["code"] is None:
        return "HANG"
    if "Traceback" in done["stderr"]:
        return "TRACEBACK"
    if done["code"] < 0 or done["code"] not in allowed:
        return f"CRASH {done['code']}"
    return "done" if done["code"] == 0 else "refused"


def count(found: list[str]) -> dict[str, Any]:
    """How commands ended."""
    ends = Counter(found)
    return {
        "cases": len(found),
        "ends": {k: n for k, n in ends.items() if not k.isupper()},
        "wrong": {k: n for k, n in ends.items() if k.isupper() or "CRASH" in k},
    }


def mutate_folders(server: Server, folder: Path, number: int) -> dict[str, Any]:
    """Every file of a run folder, changed, with and without the sums in its summary made to fit."""
    from torture import write_small_tables

    home = folder / "folders"
    home.mkdir()
    command = write_small_tables(home)[:-1]
    made = server.run(*command, "--out", home / "run")
    assert made["code"] == 0, made["stderr"]
    readers: dict[str, list[str | Path]] = {
        "config.toml": ["suggest", home / "m"],
        "summary.json": ["score", home / "m", home / "train.csv"],
        "model.skops": ["score", home / "m", home / "train.csv"],
        "scorer.npz": ["score", home / "m", home / "train.csv"],
        "weights.parquet": ["suggest", home / "m"],
        "report.json": ["report", home / "m"],
    }
    counts, rng = {}, np.random.default_rng(0)
    for name, reader in readers.items():
        content, found = (home / "run" / name).read_bytes(), []
        for k in range(number):
            shutil.copytree(home / "run", home / "m")
            (home / "m" / name).write_bytes(mutate(content, rng))
            if k % 4 and name != "summary.json":  # as somebody who forges a folder would
                summary = json.loads((home / "m" / "summary.json").read_text())
                write_summary(summary, home / "m")
            done = server.run(*reader)
            found.append(judge(done))
            if found[-1].isupper() or "CRASH" in found[-1]:
                print(name, k, found[-1], done["stderr"][-900:], flush=True)
            shutil.rmtree(home / "m")
        counts[name] = count(found)
        print(name, counts[name], flush=True)
    return counts


def mutate_tables(server: Server, folder: Path, number: int) -> dict[str, Any]:
    """Tables of each format, changed, through `audit` and the checks of `weigh`."""
    from torture import write_small_tables

    home = folder / "tables"
    home.mkdir()
    write_small_tables(home)
    table = pd.read_csv(home / "train.csv")
    table["when"] = pd.date_range("2026-01-01", periods=len(table))
    table["text"] = [f"word {i % 7}, é" for i in range(len(table))]
    table.to_csv(home / "wide.csv", index=False)
    table.to_csv(home / "wide.tsv", index=False, sep="\t")
    table.to_csv(home / "wide.csv.gz", index=False)
    table.to_parquet(home / "wide.parquet")
    table["vector"] = list(np.zeros((len(table), 3)))
    table.to_parquet(home / "nested.parquet", compression=None)
    counts, rng = {}, np.random.default_rng(1)
    for name in ("wide.csv", "wide.tsv", "wide.csv.gz", "wide.parquet", "nested.parquet"):
        content, found = (home / name).read_bytes(), []
        changed = home / f"changed.{name.partition('.')[2]}"
        for k in range(number):
            changed.write_bytes(mutate(content, rng))
            options = [changed, "--trusted", home / name, "--label", "y", "--id", "id"]
            command = ["audit", *options] if k % 2 else ["weigh", *options, "--dry-run"]
            more = [] if k % 2 else ["--out", home / "none"]
            done = server.run(*command, *more)
            found.append(judge(done))
            if found[-1].isupper() or "CRASH" in found[-1]:
                print(name, k, found[-1], done["stderr"][-900:], flush=True)
        counts[name] = count(found)
        print(name, counts[name], flush=True)
    return counts
