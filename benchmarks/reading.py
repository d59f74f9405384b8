"""What it costs to read tables in a process of their own: a million rows, CSV and Parquet.

    python benchmarks/reading.py [--rows N]

Each file is read in turn by `read_table` in the process itself, by `read_table` in a process of its
own, and by pandas, each time in a new process that has read a small file before, as a command reads a
table once; the least of so many seconds of the processor, of both processes together. What it takes
to start the process that reads, once per command, is told beside it.
Writes benchmarks/results/reading.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import write

from bilevel._reading import client
from bilevel.reweighting._inputs.files import read_table

REPEATS = {"t.csv": 2, "t.parquet": 7}
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
    process, other = client._SERVER._process, 0.0
    if process is not None:
        fields = Path(f"/proc/{process.pid}/schedstat").read_text().split()
        children = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[13:15]
        other = int(fields[0]) / 1e9 + sum(map(int, children)) / os.sysconf("SC_CLK_TCK")
    return time.process_time() + other


def read_once(way: str, path: Path) -> None:
    """Print the seconds to start the process that reads, and those to read the file."""
    if way == "here":
        client.POSSIBLE = False
    began = used()
    read_table(path.with_name("small.parquet"), "train", label="y", ids=["id"])
    started = used()
    if way != "pandas":
        read_table(path, "train", label="y", ids=["id"])
    elif path.suffix == ".csv":
        pd.read_csv(path)
    else:
        pd.read_parquet(path)
    print(started - began, used() - started)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--once", nargs=2, metavar=("WAY", "FILE"), help="in this very process")
    asked = parser.parse_args()
    if asked.once:
        read_once(asked.once[0], Path(asked.once[1]))
        return
    results: dict[str, Any] = {"settings": {"rows": asked.rows, "columns": NUMBERS + 4}}
    with tempfile.TemporaryDirectory() as name:
        table = make(asked.rows)
        table.to_csv(Path(name) / "t.csv", index=False)
        table.to_parquet(Path(name) / "t.parquet", index=False)
        table[:9].to_parquet(Path(name) / "small.parquet", index=False)
        del table
        starts = []
        for file, repeats in REPEATS.items():
            seconds: dict[str, list[float]] = {"here": [], "child": [], "pandas": []}
            for _ in range(repeats):
                for way, found in seconds.items():
                    command = [sys.executable, __file__, "--once", way, str(Path(name) / file)]
                    said = subprocess.run(command, check=True, capture_output=True, text=True)
                    start, read = map(float, said.stdout.split())
                    found.append(read)
                    starts += [start] * (way == "child")
            results[file.partition(".")[2]] = {
                **{way: min(found) for way, found in seconds.items()},
                "seconds": seconds,
                "bytes": (Path(name) / file).stat().st_size,
            }
            print(file, seconds, flush=True)
        results["start"] = min(starts)
    if asked.rows == 1_000_000:
        write(__file__, results)


if __name__ == "__main__":
    sys.exit(main())
