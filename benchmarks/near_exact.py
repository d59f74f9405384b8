"""CPU seconds, compilation included, and peak memory of the default method on MNIST.

The problem is hyper-cleaning: 8000 x 784 training rows with 90 % wrong labels, 5000 trusted rows, ten
classes. One process, one thread: run it as `taskset -c 0`. The clock starts after imports and loading
of the data; the memory is that of the whole process.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")

import resource
import sys
import time
from pathlib import Path

import jax
import numpy as np
from _measure import write

import bilevel
from bilevel import tasks

sys.path.insert(0, str(Path(__file__).parents[1] / "papers" / "reweighting"))
from hyper_cleaning import N, cleaning  # pyright: ignore[reportMissingImports]

STEPS = 20


def main() -> None:
    data = cleaning(seed=0)
    jax.block_until_ready(data.problem.inner_data)
    start = time.process_time()
    run = bilevel.solve(
        data.problem,
        bilevel.near_exact(),
        tasks.uniform_weights(N),
        data.model.w0,
        num_steps=STEPS,
        chunk_size=1,
    )
    jax.block_until_ready(run.u)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    measured = {
        "settings": {"training_rows": N, "features": 784, "outer_steps": STEPS},
        "seeds": [0],
        "seconds": seconds,
        "peak_gb": peak,
        "effective_sample_size": bilevel.effective_sample_size(np.asarray(run.u)),
        "calls": run.stats["calls"],
    }
    write(__file__, measured)


if __name__ == "__main__":
    main()
