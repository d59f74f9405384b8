"""How the cost of `bilevel weigh` grows with the number of training rows.

    python benchmarks/growth.py [--rows 1e3 1e4 1e5 1e6] [--columns 100] [--memory 2GB] [--add]

The report of the documentation: `--memory 2GB`, then `--memory 4GB --rows 1e6 1e7 --add`.

One Parquet file of single-precision numbers, 1000 trusted and 2000 hold-out rows, two classes, a
fifth of the training labels wrong, report included. The rows are drawn at random: only costs are
measured. Each command runs in a process of its own, on one thread; so does `--dry-run`, whose
estimates stand beside what was measured. Beside it, for scale: the same table through scikit-learn's
own out-of-core path, one pass of `SGDClassifier.partial_fit` over the same parts, which makes one
linear model and judges no label.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _measure import RESULTS, command_in_a_process, in_a_process, write

BLOCK = 500_000  # rows that are drawn at a time
TRUSTED, HOLDOUT, WRONG = 1000, 2000, 0.2
SGD = """
import numpy as np, pyarrow.parquet as pq
from sklearn.linear_model import SGDClassifier
model = SGDClassifier(loss="log_loss", random_state=0)
for batch in pq.ParquetFile({path!r}, pre_buffer=False).iter_batches(50_000):
    part = batch.to_pandas()
    model.partial_fit(part.drop(columns=["id", "y"]).to_numpy(), part["y"], [0, 1])
"""


def draw(rows: int, columns: int, seed: int, wrong: float) -> pa.Table:
    """A linear rule of all columns, with noise."""
    direction = np.random.default_rng(0).normal(size=columns).astype(np.float32)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    y = (x @ direction + 3 * rng.standard_normal(rows) > 0).astype(int)
    y = np.where(rng.random(rows) < wrong, 1 - y, y)
    ids = [f"r{seed}-{i}" for i in range(rows)]
    return pa.table({"id": ids, **{f"c{j}": x[:, j] for j in range(columns)}, "y": y})


def write_tables(folder: Path, rows: int, columns: int) -> None:
    pq.write_table(draw(TRUSTED, columns, 10**6, 0.0), folder / "trusted.parquet")
    pq.write_table(draw(HOLDOUT, columns, 10**6 + 1, 0.0), folder / "holdout.parquet")
    writer = None
    for block, start in enumerate(range(0, rows, BLOCK)):
        table = draw(min(BLOCK, rows - start), columns, block + 1, WRONG)
        writer = writer or pq.ParquetWriter(folder / "train.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def measure(rows: int, columns: int, memory: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder, rows, columns)
        files = ["weigh", str(folder / "train.parquet"), "--label", "y", "--id", "id"]
        files += ["--trusted", str(folder / "trusted.parquet"), "--memory", memory]
        files += ["--holdout", str(folder / "holdout.parquet"), "--out", str(folder / "run")]
        expected = json.loads(command_in_a_process([*files, "--dry-run", "--json"]).said)
        used = command_in_a_process([*files, "--json"])
        summary = json.loads(used.said)
        sgd = in_a_process(SGD.format(path=str(folder / "train.parquet")))
        return {
            "rows": rows,
            "sampled_rows": summary.get("sampled_rows", rows),
            "cpu_seconds": used.cpu_seconds,
            "peak_bytes": used.peak_bytes,
            "expected_seconds": expected["seconds"],
            "expected_bytes": expected["bytes"],
            "report_bytes": (folder / "run" / "report.html").stat().st_size,
            "sgd_seconds": sgd.cpu_seconds,
            "sgd_peak_bytes": sgd.peak_bytes,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e3, 1e4, 1e5, 1e6])
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--memory", nargs="+", default=["2GB"])
    parser.add_argument("--add", action="store_true", help="keep the lines of the report")
    options = parser.parse_args()
    before = RESULTS / "growth.json"
    table = json.loads(before.read_text())["table"] if options.add else []
    for memory in options.memory:
        for rows in map(int, options.rows):
            table.append({"memory": memory, **measure(rows, options.columns, memory)})
            print(json.dumps(table[-1]), flush=True)
    settings = {"columns": options.columns, "trusted_rows": TRUSTED, "holdout_rows": HOLDOUT}
    write(__file__, {"settings": settings, "seeds": [0], "table": table})


if __name__ == "__main__":
    main()
