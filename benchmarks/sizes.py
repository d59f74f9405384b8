"""The small command and the large label set: CPU seconds and peak memory, each in a fresh process.

`weigh`: `bilevel weigh` with its report on scikit-learn's breast cancer data (309 training, 100
trusted and 160 hold-out rows, 30 columns, 30 % of the training labels wrong), as on the page "Noisy
labels". `classes`: `learn_weights` on 5000 rows and 40 columns of 300 classes, one Gaussian cluster
each, 30 % of the labels redrawn, with 1000 trusted rows.

Each process is alone on one thread, and JAX has compiled nothing before. Of three runs of the command
the median counts. Two things are there before, as in an installed package: the bytecode of bilevel's
modules, without which a quarter of a second goes into reading their source, and the script of the
report's charts, which a checkout that was never built makes for each report in two CPU seconds and
80 MB more.

Results: `results/sizes.json`.
"""

import compileall
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _measure import Used, command_in_a_process, in_a_process, write
from sklearn.datasets import load_breast_cancer

import bilevel
from bilevel.reweighting._report.bundle import BUILT

RUNS = 3
CLASSES = """
import time, warnings
import numpy as np
from bilevel import learn_weights
rng = np.random.default_rng(0)
y = rng.integers(0, 300, 6000)
X = (1.2 * rng.normal(size=(300, 40)))[y] + rng.normal(size=(6000, 40))
noisy = np.where(rng.random(5000) < 0.3, rng.integers(0, 300, 5000), y[:5000])
warnings.simplefilter("ignore")  # a few classes have no trusted row
learn_weights(X[:5000], noisy, X[5000:], y[5000:])
"""


def shown(used: Used) -> dict[str, float]:
    return {"cpu_seconds": used.cpu_seconds, "megabytes": used.peak_bytes / 2**20}


def weigh() -> dict[str, float]:
    """The command, on files in a folder that is thrown away."""
    data: Any = load_breast_cancer(as_frame=True)
    table = data.frame.rename(columns={"target": "benign"})
    table.index.name = "patient"
    rng = np.random.default_rng(9)
    train, trusted, holdout = (table.iloc[i] for i in np.split(rng.permutation(569), [309, 409]))
    wrong = rng.random(len(train)) < 0.3
    train = train.assign(benign=np.where(wrong, 1 - train["benign"], train["benign"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, rows in {"train": train, "trusted": trusted, "holdout": holdout}.items():
            rows.to_csv(folder / f"{part}.csv")
        arguments = ["weigh", str(folder / "train.csv"), "--label", "benign", "--id", "patient"]
        for part in ("trusted", "holdout"):
            arguments += [f"--{part}", str(folder / f"{part}.csv")]
        runs = [
            shown(command_in_a_process([*arguments, "--out", str(folder / f"run{i}")]))
            for i in range(RUNS)
        ]
        return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


if __name__ == "__main__":
    compileall.compile_dir(str(Path(bilevel.__file__).parent), quiet=1)
    found = {"weigh": weigh(), "classes": shown(in_a_process(CLASSES))}
    print(found)
    settings = {"classes": 300, "rows": 5000, "columns": 40, "built": BUILT.is_file()}
    write(__file__, {"settings": settings} | found, full=BUILT.is_file())
