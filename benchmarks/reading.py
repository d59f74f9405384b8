"""What it costs to read tables in a process of their own: a million rows, CSV and Parquet.

    python benchmarks/reading.py [--rows N]

Each file is read in turn in the process itself and in one of its own, by `read_table`, which also
decides how columns are read; the least of so many seconds of the processor, of both processes
together.
Writes benchmarks/results/reading.json.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from _measure import write

from bilevel._reading import client
from bilevel.reweighting._inputs.files import read_table

REPEATS = 3
NUMBERS = 12  # columns


def make(rows: int) -> pd.DataFrame:
    """Ids, numbers, a word, a date and a label."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": [f"row{i}" for i in range(rows)]})
    for k in range(NUMBERS):
        table[f"x{k}"] = rng.normal(size=rows).round(6)
    table["city"] = rng.choice(["Berlin", "Paris", "Rome"], rows)
    table["day"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 365, rows), "D")
    table["y"] = rng.integers(0, 2, rows)
    return table


def used() -> float:
    """Seconds of the processor that this process and the one that reads have had."""
    process = client._SERVER._process
    assert process is not None
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def seconds(path: Path) -> float:
    """Of one reading."""
    began = used()
    read_table(path, "train", label="y", ids=["id"])
    return used() - began


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    results: dict[str, Any] = {"settings": {"rows": rows, "columns": NUMBERS + 4}}
    with tempfile.TemporaryDirectory() as name:
        table = make(rows)
        table.to_csv(Path(name) / "t.csv", index=False)
        table.to_parquet(Path(name) / "t.parquet", index=False)
        del table
        client.read_file(
            "parquet", Path(name) / "t.parquet", "t", "parquet", columns=["y"]
        )  # starts it
        for file in ("t.csv", "t.parquet"):
            here, child = [], []
            for _ in range(REPEATS):
                child.append(seconds(Path(name) / file))
                with mock.patch.object(client, "POSSIBLE", False):
                    here.append(seconds(Path(name) / file))
            results[file.partition(".")[2]] = {
                "here": min(here),
                "child": min(child),
                "bytes": (Path(name) / file).stat().st_size,
            }
            print(file, results[file.partition(".")[2]], flush=True)
    results["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if rows == 1_000_000:
        write(__file__, results)


if __name__ == "__main__":
    sys.exit(main())
