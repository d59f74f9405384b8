"""How the cost of `bilevel weigh` grows: with training rows, columns, classes, trusted rows.

    python benchmarks/growth.py [--rows 1e3 1e4 1e5 1e6] [--memory 2GB] [--format csv] [--add]
    python benchmarks/growth.py --rows 1e4 --columns 10 30 100 300 --axis columns --add
    python benchmarks/growth.py --rows 1e4 --classes 2 5 10 20 --columns 30 --axis classes --add
    python benchmarks/growth.py --rows 1e4 --trusted 100 300 1000 3000 --axis trusted --add

The report of the documentation: `--memory 2GB`, then with `--add` `--memory 4GB --rows 1e6 1e7`,
`--format csv --rows 1e4 1e5 1e6`, and the three other axes as they stand above.

One file of single-precision numbers, 1000 trusted and 2000 hold-out rows, two classes, a
fifth of the training labels wrong, report included. The rows are drawn at random: only costs are
measured. Each command runs in a process of its own, on one thread; so does `--dry-run`, whose
estimates stand beside what was measured. CPU seconds are with those of the process that reads CSV
files. Beside the Parquet tables, for scale: the same table through scikit-learn's
own out-of-core path, one pass of `SGDClassifier.partial_fit` over the same parts, which makes one
linear model and judges no label.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from _measure import RESULTS, command_in_a_process, in_a_process, write

BLOCK = 500_000  # rows that are drawn at a time
TRUSTED, HOLDOUT, WRONG = 1000, 2000, 0.2
AXES = ("rows", "columns", "classes", "trusted")
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


def measure(size: Size, memory: str, format: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder, size, format)
        train = folder / f"train.{format}"
        files = ["weigh", str(train), "--label", "y", "--id", "id"]
        files += ["--trusted", str(folder / f"trusted.{format}"), "--memory", memory]
        files += ["--holdout", str(folder / f"holdout.{format}"), "--out", str(folder / "run")]
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
        }
        if format == "parquet" and size.classes == 2:
            sgd = in_a_process(SGD.format(path=str(train)))
            found |= {"sgd_seconds": sgd.cpu_seconds, "sgd_peak_bytes": sgd.peak_bytes}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e6])
    parser.add_argument("--columns", type=int, nargs="+", default=[100])
    parser.add_argument("--classes", type=int, nargs="+", default=[2])
    parser.add_argument("--trusted", type=int, nargs="+", default=[TRUSTED])
    parser.add_argument("--memory", nargs="+", default=["2GB"])
    parser.add_argument("--format", choices=["parquet", "csv"], default="parquet")
    parser.add_argument("--axis", choices=AXES, default="rows")
    parser.add_argument("--add", action="store_true", help="keep the lines of the report")
    options = parser.parse_args()
    before = json.loads((RESULTS / "growth.json").read_text()) if options.add else {}
    tables = {axis: before.get(axis, []) for axis in AXES}
    settings = {"columns": 100, "trusted_rows": TRUSTED, "holdout_rows": HOLDOUT}
    sizes = product(options.rows, options.columns, options.classes, options.trusted)
    for memory, (rows, *others) in product(options.memory, list(sizes)):
        tables[options.axis].append(measure(Size(int(rows), *others), memory, options.format))
        print(json.dumps(tables[options.axis][-1]), flush=True)
        write(__file__, {"settings": settings, "seeds": [0], **tables})


if __name__ == "__main__":
    main()
