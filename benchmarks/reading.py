"""What it costs to read tables in a process of their own: a million rows, CSV and Parquet.

    python benchmarks/reading.py [--rows N]

Each file is read in turn by `read_table` in the process itself, by `read_table` in a process of its
own, and by pandas, each time in a new process that has read a small file before, as a command reads a
table once; the least of so many seconds of the processor, of all processes together. What it takes
to start the process that reads, once per command, is told beside it.
Writes benchmarks/results/reading.json.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _measure import write

from bilevel._reading import client
from bilevel.reweighting._inputs.files import read_table
from bilevel.reweighting._inputs.parts import PART, ParquetRows

TABLES = {"10.csv": 2, "10.parquet": 9, "100.parquet": 4}  # columns, and how often each is read
PARTS = ".parts.parquet"  # of tables that are read by parts
TABLES["10" + PARTS] = 5


def make(rows: int, columns: int) -> pd.DataFrame:
    """Ids, numbers, a word, a date and a label."""
    rng = np.random.default_rng(0)
    table: dict[str, Any] = {"id": [f"row{i}" for i in range(rows)]}
    for k in range(columns - 4):
        table[f"x{k}"] = rng.normal(size=rows).round(6)
    table["city"] = rng.choice(["Berlin", "Paris", "Rome"], rows)
    table["day"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 365, rows), "D")
    table["y"] = rng.integers(0, 2, rows)
    return pd.DataFrame(table)


def server_seconds() -> float:
    """Seconds of the processor that the process which forks readers has had itself."""
    process = client._SERVER._process
    if process is None:
        return 0.0
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9


def reader_seconds(server: float) -> float:
    """Those of the readers that it has forked, by what is told of all when it has ended."""
    process = client._SERVER._process
    if process is None:
        return 0.0
    client._SERVER._close()
    process.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime - server


def read_once(way: str, path: Path) -> None:
    """Print the seconds to start the process that reads, to read the file, and of readers.

    The latter are those of the small file too.
    """
    if way == "here":
        client.POSSIBLE = False
    read_table(path.with_name("small.parquet"), "train", label="y", ids=["id"])
    started, own = server_seconds(), time.process_time()
    if path.name != "small.parquet":
        if path.name.endswith(PARTS):
            deque(ParquetRows(path, "train").frames(PART), maxlen=0)
        elif way != "pandas":
            read_table(path, "train", label="y", ids=["id"])
        elif path.suffix == ".csv":
            pd.read_csv(path)
        else:
            pd.read_parquet(path)
    own, server = time.process_time() - own, server_seconds()
    print(started, own + server - started, reader_seconds(server))


def ask(way: str, path: Path) -> tuple[float, float, float]:
    """The same, in a new process."""
    command = [sys.executable, __file__, "--once", way, str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    started, own, readers = map(float, said.stdout.split())
    return started, own, readers


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--once", nargs=2, metavar=("WAY", "FILE"), help="in this very process")
    asked = parser.parse_args()
    if asked.once:
        read_once(asked.once[0], Path(asked.once[1]))
        return
    results: dict[str, Any] = {"settings": {"rows": asked.rows}}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for file in TABLES:
            table = make(asked.rows, int(file.partition(".")[0]))
            if file.endswith("csv"):
                table.to_csv(home / file, index=False)
            else:
                table.to_parquet(home / file, index=False)
        make(9, 10).to_parquet(home / "small.parquet", index=False)
        starts = [ask("child", home / "small.parquet") for _ in range(5)]
        small = min(readers for *_, readers in starts)
        for file, repeats in TABLES.items():
            seconds: dict[str, list[float]] = {"here": [], "child": [], "pandas": []}
            if file.endswith(PARTS):
                del seconds["pandas"]
            for _ in range(repeats):
                for way, found in seconds.items():
                    _, own, readers = ask(way, home / file)
                    found.append(own + max(readers - small, 0.0))
            results[file] = {
                **{way: min(found) for way, found in seconds.items()},
                "seconds": seconds,
                "bytes": (home / file).stat().st_size,
            }
            print(file, seconds, flush=True)
        results["start"] = min(started for started, *_ in starts) + small
        results["small"] = small
    if asked.rows == 1_000_000:
        write(__file__, results)


if __name__ == "__main__":
    sys.exit(main())
