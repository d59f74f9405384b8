"""What a step costs on 1, 2 and 4 processes that share the rows, and what they tell each other.

    python benchmarks/processes.py

Full-batch SOBA learns one weight per row of a table. The rows and their weights are split between the
processes, the model is in each of them. Each process has one thread. CPU seconds are of a step after
compilation, of the process that takes most. The bytes are those of the collective operations in the
compiled step, without those of another order of the rows, which does not occur: for an all-reduce of b
bytes in a ring, each of M machines sends 2 b (M - 1) / M.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")

import equinox as eqx
import jax
import numpy as np
from _measure import write
from jax.sharding import NamedSharding, PartitionSpec

import bilevel

ROWS, COLUMNS, TRUSTED, STEPS, REPEATS = 200_000, 50, 1000, 10, 5
PROCESSES, MACHINES = (1, 2, 4), 64
BANDWIDTHS = {"10 Gb/s Ethernet": 1.25e9, "100 Gb/s Ethernet": 12.5e9}  # bytes per second
SIZES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "f64": 8, "s64": 8}
KINDS = "all-reduce|all-gather|all-to-all|collective-permute"
COLLECTIVE = re.compile(rf"= (.*?) (?:{KINDS})(?:-start)?\(")


def squared_error(prediction: jax.Array, y: jax.Array) -> jax.Array:
    return 0.5 * (prediction[:, 0] - y) ** 2


def bytes_of(program: str) -> tuple[int, int]:
    """(collective operations of a compiled program, bytes that they are about).

    Where it chooses between two ways (`take_rows`: are all rows asked for in order?), the first is
    left out: that of a condition that does not hold.
    """
    not_taken = re.findall(r"branch_computations=\{%([\w.-]+),", program)
    for name in not_taken:
        program = re.sub(rf"^%{re.escape(name)} .*?^\}}", "", program, flags=re.M | re.S)
    found, size = COLLECTIVE.findall(program), 0
    for kind, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", " ".join(found)):
        size += SIZES[kind] * math.prod(int(x) for x in dimensions.split(",") if x)
    return len(found), size


def measure(process: int, processes: int) -> dict[str, Any]:
    mesh = jax.make_mesh((processes,), ("data",))
    by_rows, whole = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec())
    )
    put, rows = jax.make_array_from_process_local_data, ROWS // processes
    rng = np.random.default_rng(process)
    truth = np.ones(COLUMNS, np.float32)
    x = rng.standard_normal((rows, COLUMNS), dtype=np.float32)
    x_trusted = np.random.default_rng(99).standard_normal((TRUSTED, COLUMNS), dtype=np.float32)
    with jax.set_mesh(mesh):
        problem = bilevel.tasks.hyper_cleaning(
            *(put(by_rows, x), put(by_rows, x @ truth)),
            *(put(whole, x_trusted), put(whole, x_trusted @ truth)),
            lambda w, x: (x @ w)[:, None],
            loss=squared_error,
            l2=0.01,
        )
        method = bilevel.SOBA(0.1, 0.1, 1.0)
        u, w = put(by_rows, np.zeros(rows, np.float32)), put(whole, np.zeros(COLUMNS, np.float32))
        state = method.init(problem, u, w, jax.random.key(0))
        arrays, others = eqx.partition((problem, state), eqx.is_array)

        @jax.jit
        def step(arrays):
            problem, state = eqx.combine(arrays, others)
            return eqx.filter((problem, method.step(problem, state)[0]), eqx.is_array)

        compiled = step.lower(arrays).compile()
        arrays = jax.block_until_ready(compiled(arrays))
        cpu, wall = [], []
        for _ in range(REPEATS):
            began = time.process_time(), time.monotonic()
            for _ in range(STEPS):
                arrays = compiled(arrays)
            jax.block_until_ready(arrays)
            cpu.append((time.process_time() - began[0]) / STEPS)
            wall.append((time.monotonic() - began[1]) / STEPS)
    operations, sent = bytes_of(compiled.as_text() or "")
    return {
        "cpu_seconds": float(np.median(cpu)),
        "seconds": float(np.median(wall)),
        "collectives": operations,
        "bytes": sent,
    }


def together(processes: int, port: int) -> dict[str, Any]:
    """The process that takes most."""
    command = [sys.executable, __file__, "--of", str(processes), "--port", str(port), "--process"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*command, str(k)], env=environment, stdout=subprocess.PIPE, text=True)
        for k in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    found = [json.loads(text.splitlines()[-1]) for text in said]
    return {"processes": processes} | max(found, key=lambda one: one["cpu_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for option, default in [("--of", 1), ("--port", 12357), ("--process", -1)]:
        parser.add_argument(option, type=int, default=default, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process >= 0:
        if options.of > 1:
            jax.distributed.initialize(f"localhost:{options.port}", options.of, options.process)
        print(json.dumps(measure(options.process, options.of)))
        return
    table = [together(processes, 12357 + k) for k, processes in enumerate(PROCESSES)]
    for line in table:
        print(json.dumps(line), flush=True)
    sent = 2 * table[-1]["bytes"] * (MACHINES - 1) / MACHINES
    model = {name: sent / speed for name, speed in BANDWIDTHS.items()}
    settings = {"rows": ROWS, "columns": COLUMNS, "trusted_rows": TRUSTED, "steps": STEPS * REPEATS}
    model = {"machines": MACHINES, "sent_bytes": sent, "seconds": model}
    write(__file__, {"settings": settings, "seeds": [0], "table": table, "model": model})


if __name__ == "__main__":
    main()
