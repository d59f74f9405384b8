"""One bilevel problem on two processes, whose rows are split between them.

    python examples/several_processes.py

The script starts itself twice, as a cluster would on two machines, and compares the weights with those
of one process. On a cluster, Slurm or Open MPI start the processes, and `jax.distributed.initialize()`
finds the others by itself.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

import bilevel

ROWS, COLUMNS, NUM_PROCESSES = 200, 5, 2


def rows_of(process: int, num_processes: int) -> tuple[np.ndarray, np.ndarray]:
    """What one process reads: its part of the rows, a quarter of which have a wrong target."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, COLUMNS))
    y = x @ np.arange(1.0, COLUMNS + 1)
    y[::4] = rng.normal(scale=20, size=ROWS // 4)
    part = slice(process * ROWS // num_processes, (process + 1) * ROWS // num_processes)
    return x[part], y[part]


def squared_error(prediction: jax.Array, y: jax.Array) -> jax.Array:
    return 0.5 * (prediction[:, 0] - y) ** 2


def weights(process: int, num_processes: int) -> np.ndarray:
    """The weights of all rows, learned by all processes together."""
    mesh = jax.make_mesh((num_processes,), ("data",))
    by_rows, whole = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec())
    )
    put = jax.make_array_from_process_local_data
    x, y = (put(by_rows, part) for part in rows_of(process, num_processes))
    rng = np.random.default_rng(1)
    x_val = rng.normal(size=(20, COLUMNS))  # the trusted rows are few: every process has them all
    y_val = x_val @ np.arange(1.0, COLUMNS + 1)
    with jax.set_mesh(mesh):
        problem = bilevel.tasks.hyper_cleaning(
            *(x, y, put(whole, x_val), put(whole, y_val)),
            lambda w, x: (x @ w)[:, None],
            loss=squared_error,
            l2=0.01,
        )
        u0 = put(by_rows, np.zeros(ROWS // num_processes))
        w0 = put(whole, np.zeros(COLUMNS))
        method = bilevel.SOBA(0.1, 0.1, 100.0)
        solution = bilevel.solve(problem, method, u0, w0, num_steps=2000)
    return np.asarray(
        jax.nn.sigmoid(jnp.asarray(multihost_utils.process_allgather(solution.u, tiled=True)))
    )


def main() -> None:
    if len(sys.argv) > 1:  # one of the processes
        process, address, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
        jax.distributed.initialize(address, NUM_PROCESSES, process)
        found = weights(process, NUM_PROCESSES)
        if process == 0:
            np.save(path, found)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.npy")
        command = [sys.executable, __file__]
        started = [
            subprocess.Popen([*command, str(k), "localhost:12346", str(path)])
            for k in range(NUM_PROCESSES)
        ]
        if any(process.wait() for process in started):
            raise SystemExit("a process failed")
        together = np.load(path)
    alone = weights(0, 1)
    wrong = np.arange(ROWS) % 4 == 0
    print(f"mean weight of the rows with a wrong target: {together[wrong].mean():.3f}")
    print(f"mean weight of the other rows:               {together[~wrong].mean():.3f}")
    print(f"largest difference from one process:         {np.abs(together - alone).max():.0e}")


if __name__ == "__main__":
    main()
