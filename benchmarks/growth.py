"""How the cost of `bilevel weigh` grows: with rows, columns, classes, trusted rows, processes.

    python benchmarks/growth.py [--rows 1e3 1e4 1e5 1e6] [--memory 2GB] [--format csv] [--add]
    python benchmarks/growth.py --rows 1e4 --columns 10 30 100 300 --axis columns --add
    python benchmarks/growth.py --rows 1e4 --classes 2 5 10 20 --columns 30 --axis classes --add
    python benchmarks/growth.py --rows 1e4 --trusted 100 300 1000 3000 --axis trusted --add
    python benchmarks/growth.py --rows 3e6 --processes 1 2 4 --axis processes --add
    python benchmarks/growth.py --draw                       (the picture, of the report as it is)

The report of the documentation: `--memory 2GB`, then with `--add` `--memory 4GB --rows 1e6 1e7`,
`--format csv --rows 1e4 1e5 1e6`, and the four other axes as they stand above.

One file of single-precision numbers, 1000 trusted and 2000 hold-out rows, two classes, a
fifth of the training labels wrong, report included. The rows are drawn at random: only costs are
measured. Each command runs in a process of its own, on one thread; so does `--dry-run`, whose
estimates stand beside what was measured. CPU seconds are with those of the process that reads CSV
files. Beside the Parquet tables, for scale: the same table through scikit-learn's
own out-of-core path, one pass of `SGDClassifier.partial_fit` over the same parts, which makes one
linear model and judges no label.

Of several processes (`--processes N`), each on one thread, the seconds are those of the clock, so the
machine has to be idle; the CPU seconds are of all of them together, the memory of the one that takes
most.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from _measure import (
    IMAGES,
    RESULTS,
    command_in_a_process,
    in_a_process,
    panels,
    processor,
    save,
    write,
)

BLOCK = 500_000  # rows that are drawn at a time
TRUSTED, HOLDOUT, WRONG = 1000, 2000, 0.2
AXES = ("rows", "columns", "classes", "trusted", "processes")
POLL = 0.1  # seconds between two looks at the memory of the processes
SGD = """
import numpy as np, pyarrow.parquet as pq
from sklearn.linear_model import SGDClassifier
model = SGDClassifier(loss="log_loss", random_state=0)
for batch in pq.ParquetFile({path!r}, pre_buffer=False).iter_batches(50_000):
    part = batch.to_pandas()
    model.partial_fit(part.drop(columns=["id", "y"]).to_numpy(), part["y"], [0, 1])
"""


class Size(NamedTuple):
    """Of the tables."""

    rows: int
    columns: int
    classes: int
    trusted: int


def draw(rows: int, size: Size, seed: int, wrong: float) -> pa.Table:
    """A linear rule of all columns, with noise."""
    columns, classes = size.columns, size.classes
    directions = np.random.default_rng(0).normal(size=(columns, classes)).astype(np.float32)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    y = np.argmax(x @ directions + 3 * rng.standard_normal((rows, classes)), axis=1)
    y = np.where(rng.random(rows) < wrong, (y + 1) % classes, y)
    ids = [f"r{seed}-{i}" for i in range(rows)]
    return pa.table({"id": ids, **{f"c{j}": x[:, j] for j in range(columns)}, "y": y})


def write_tables(folder: Path, size: Size, format: str) -> None:
    def write_table(name: str, blocks: Iterable[pa.Table]) -> None:
        writer = None
        for table in blocks:
            path = folder / f"{name}.{format}"
            of = pq.ParquetWriter if format == "parquet" else pyarrow.csv.CSVWriter
            writer = writer or of(path, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()

    write_table("trusted", [draw(size.trusted, size, 10**6, 0.0)])
    write_table("holdout", [draw(HOLDOUT, size, 10**6 + 1, 0.0)])
    starts = enumerate(range(0, size.rows, BLOCK))
    write_table("train", (draw(min(BLOCK, size.rows - s), size, k + 1, WRONG) for k, s in starts))


def weigh(folder: Path, memory: str, format: str) -> list[str]:
    files = ["weigh", str(folder / f"train.{format}"), "--label", "y", "--id", "id"]
    files += ["--trusted", str(folder / f"trusted.{format}"), "--memory", memory]
    return [*files, "--holdout", str(folder / f"holdout.{format}"), "--out", str(folder / "run")]


def measure(size: Size, memory: str, format: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder, size, format)
        train, files = folder / f"train.{format}", weigh(folder, memory, format)
        expected = json.loads(command_in_a_process([*files, "--dry-run", "--json"]).said)
        used = command_in_a_process([*files, "--json"])
        found = {
            **size._asdict(),
            "memory": memory,
            "format": format,
            "sampled_rows": json.loads(used.said).get("sampled_rows", size.rows),
            "cpu_seconds": used.cpu_seconds,
            "peak_bytes": used.peak_bytes,
            "expected_seconds": expected["seconds"],
            "expected_bytes": expected["bytes"],
            "file_bytes": train.stat().st_size,
            "report_bytes": (folder / "run" / "report.html").stat().st_size,
            "processor": processor(),
        }
        if format == "parquet" and size.classes == 2:
            sgd = in_a_process(SGD.format(path=str(train)))
            found |= {"sgd_seconds": sgd.cpu_seconds, "sgd_peak_bytes": sgd.peak_bytes}
        return found


def measure_processes(size: Size, memory: str, counts: list[int]) -> Iterator[dict[str, Any]]:
    """The same table by so many processes; the weights of all of them are equal to the last bit."""
    with tempfile.TemporaryDirectory() as name:
        folder, weights = Path(name), None
        write_tables(folder, size, "parquet")
        for count in counts:
            command = [sys.executable, "-c", "from bilevel.cli import main; main()"]
            command += [*weigh(folder, memory, "parquet"), "--processes", str(count), "--json"]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            started = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            peaks: dict[int, int] = {}
            while started.poll() is None:
                peaks |= peaks_below(started.pid)
                time.sleep(POLL)
            seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            assert started.returncode == 0
            assert started.stdout is not None
            summary = json.loads(started.stdout.read())
            (folder / "run").rename(folder / f"run{count}")
            found = pq.read_table(folder / f"run{count}" / "weights.parquet")
            assert weights is None or found.equals(weights)
            weights = found
            yield {
                **size._asdict(),
                "memory": memory,
                "format": "parquet",
                "processes": count,
                "sampled_rows": summary.get("sampled_rows", size.rows),
                "seconds": seconds,
                "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                "peak_bytes": max(peaks.values()),
                "other_peak_bytes": min(sorted(peaks.values())[-count:]),
                "processor": processor(),
            }


def peaks_below(process: int) -> dict[int, int]:
    """The peak memory so far of a process and of those that it has started, in bytes."""
    found: dict[int, int] = {}
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has just ended
        return found
    for line in lines:
        if line.startswith("VmHWM:"):
            found[process] = 1024 * int(line.split()[1])
    for child in children:
        found |= peaks_below(int(child))
    return found


def picture(report: dict[str, Any]) -> None:
    """Lines are what was measured, crosses what the dry run expected."""
    together = report.get("processes")
    figure, axes = panels(1, 4, (17, 4)) if together else panels(1, 3, (13, 4))
    kinds = sorted({(row["memory"], row["format"]) for row in report["rows"]})
    scales = (("cpu_seconds", "expected_seconds", 1.0), ("peak_bytes", "expected_bytes", 1e9))
    for axis, (measured, expected, unit) in zip(axes, scales, strict=False):
        for memory, format in kinds:
            of_kind = [r for r in report["rows"] if (r["memory"], r["format"]) == (memory, format)]
            x = [row["rows"] for row in of_kind]
            name = f"{memory}, {'CSV' if format == 'csv' else 'Parquet'}"
            (line,) = axis.plot(x, [r[measured] / unit for r in of_kind], "o-", label=name)
            guess = [row[expected] / unit for row in of_kind]
            axis.plot(x, guess, "x", color=line.get_color(), ms=9)
        axis.set(xscale="log", yscale="log", xlabel="training rows")
    axes[0].set_ylabel("CPU seconds")
    axes[1].set_ylabel("peak memory, GB")
    axes[0].legend(frameon=False)
    for name in ("columns", "classes", "trusted"):
        if rows := [row for row in report[name] if row["rows"] == 10_000]:
            x = [row[name] for row in rows]
            words = f"{name} rows" if name == "trusted" else name
            (line,) = axes[2].plot(x, [row["cpu_seconds"] for row in rows], "o-", label=words)
            axes[2].plot(
                x, [r["expected_seconds"] for r in rows], "x", color=line.get_color(), ms=9
            )
    axes[2].set(xscale="log", yscale="log", xlabel="number", ylabel="CPU seconds, 10,000 rows")
    axes[2].legend(frameon=False)
    if together:
        count = [row["processes"] for row in together]
        axes[3].plot(count, [row["seconds"] for row in together], "o-", label="seconds")
        axes[3].plot(count, [row["cpu_seconds"] for row in together], "o--", label="CPU s of all")
        axes[3].legend(frameon=False)
        axes[3].set(ylim=(0, None), xticks=count, xlabel="processes")
    for axis in axes[:3]:
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    save(figure, IMAGES / "growth.png")


def with_line(lines: list[dict[str, Any]], line: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines, where this one takes the place of an earlier measurement of the same run."""
    keys = (*Size._fields, "memory", "format", "processes")
    same = [k for k, old in enumerate(lines) if all(old.get(x) == line.get(x) for x in keys)]
    place = same[0] if same else len(lines)
    return [*lines[:place], line, *(x for k, x in enumerate(lines) if k > place and k not in same)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e6])
    parser.add_argument("--columns", type=int, nargs="+", default=[100])
    parser.add_argument("--classes", type=int, nargs="+", default=[2])
    parser.add_argument("--trusted", type=int, nargs="+", default=[TRUSTED])
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--memory", nargs="+", default=["2GB"])
    parser.add_argument("--format", choices=["parquet", "csv"], default="parquet")
    parser.add_argument("--axis", choices=AXES, default="rows")
    parser.add_argument("--add", action="store_true", help="keep the other lines of the report")
    parser.add_argument("--draw", action="store_true", help="only the picture")
    options = parser.parse_args()
    if options.draw:
        picture(json.loads((RESULTS / "growth.json").read_text()))
        return
    before = json.loads((RESULTS / "growth.json").read_text()) if options.add else {}
    tables = {axis: before.get(axis, []) for axis in AXES}
    settings = {"columns": 100, "trusted_rows": TRUSTED, "holdout_rows": HOLDOUT}
    sizes = product(options.rows, options.columns, options.classes, options.trusted)
    for memory, (rows, *others) in product(options.memory, list(sizes)):
        size = Size(int(rows), *others)
        if options.axis == "processes":
            found = measure_processes(size, memory, options.processes)
        else:
            found = iter([measure(size, memory, options.format)])
        for line in found:
            tables[options.axis] = with_line(tables[options.axis], line)
            print(json.dumps(line), flush=True)
            path = write(__file__, {"settings": settings, "seeds": [0], **tables})
            picture(json.loads(path.read_text()))


if __name__ == "__main__":
    main()
