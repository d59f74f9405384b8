"""A run on the rows that several processes hold, saved and gone on with: see `test_checkpoint.py`.

    python tests/checkpoints.py PROCESS NUM_PROCESSES PORT FOLDER WHAT

WHAT is `break`: the run makes HALF of its steps with a checkpoint, goes on from it, and is as the
unbroken one to the last bit; then the processes die while they save again, when the arrays are
written. Or it is `go on`: from the checkpoint in FOLDER to the end; or `save`, which then saves the
state that was loaded; or `refused`, where that has to fail; or `changed`: of one process, when bits of
the files have changed. Process 0 writes u and w.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bilevel
from bilevel import _checkpoint
from bilevel._storage import DamagedFileError

ROWS, COLUMNS, STEPS, HALF, DIED = 24, 4, 12, 5, 7
METHOD = bilevel.SOBA(
    0.3,
    0.3,
    1.0,
    inner_sampler=bilevel.Shuffled(8),
    outer_sampler=bilevel.Shuffled(8),
)


def _loss(w: Any, x: Any) -> Any:
    return x @ w


def problem_of(mesh: Any, scale: float = 1.0, dtype: Any = None) -> tuple[Any, Any, Any]:
    """The problem with its start; split along the axis "data" of the mesh, if there is one."""

    def put(x: Any, *spec: Any) -> Any:
        x = np.asarray(x, dtype if x.dtype.kind == "f" else None)
        if mesh is None:
            return jax.numpy.asarray(x)
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    rng = np.random.default_rng(0)
    x, y = scale * rng.normal(size=(ROWS, COLUMNS)), rng.integers(0, 2, ROWS)
    X, y, X_val, y_val = (put(a, "data") for a in (x, y, x[::-1], y[::-1]))
    problem = bilevel.tasks.hyper_cleaning(X, y, X_val, y_val, _loss)
    return problem, put(np.zeros(ROWS), "data"), put(np.full((COLUMNS, 2), 0.1))


def like(problem: Any, u: Any, w: Any, method: Any = METHOD) -> Any:
    return method.init(problem, u, w, jax.random.key(9))


def run(problem: Any, u: Any, w: Any, steps: int = STEPS, **kwargs: Any) -> Any:
    return bilevel.solve(problem, METHOD, u, w, num_steps=steps, chunk_size=2, **kwargs)


def whole(x: Any) -> np.ndarray:
    x = jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def fetched(solution: Any) -> list[np.ndarray]:
    return [whole(solution.u), whole(solution.w)]


def refuse(checkpoint: bilevel.Checkpoint, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoint.load(like(*given), given[0], METHOD)


def change(path: Path, state: Any) -> None:
    """No bit of any file can change without an error, or the same state."""
    rng, refused = np.random.default_rng(0), 0
    used = next(path.parent.glob("run.eqx.arrays/0"))
    for file in [path, *sorted(x for x in used.rglob("*") if x.is_file())]:
        content = file.read_bytes()
        for place in rng.integers(len(content), size=3).tolist():
            changed = bytes([content[place] ^ 4])
            file.write_bytes(content[:place] + changed + content[place + 1 :])
            try:
                found = bilevel.Checkpoint(path).load(state)
            except DamagedFileError:
                refused += 1
            else:
                pairs = zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True)
                assert all(np.array_equal(whole(x), whole(y)) for x, y in pairs), file
        file.write_bytes(content)
    assert refused >= 6  # the file itself, and arrays


def die(*_: Any) -> None:
    os._exit(DIED)


def main(process: str, num_processes: str, port: str, folder: str, what: str) -> None:
    jax.config.update("jax_enable_x64", True)
    mesh = None
    if int(num_processes) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(num_processes), int(process))
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Explicit,))
    checkpoint = bilevel.Checkpoint(Path(folder, "run.eqx"))
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        given = problem_of(mesh)
        half = run(*given, HALF, callbacks=[checkpoint]).state if what == "break" else None
        refuse(checkpoint, problem_of(mesh, scale=2.0), "on other data or with other settings")
        refuse(
            checkpoint, problem_of(mesh, dtype=np.float32), "data of another size, or in another"
        )
        loaded = checkpoint.load(like(*given), given[0], METHOD)
        assert int(loaded.step) == HALF
        for x, y in zip(jax.tree.leaves(loaded), jax.tree.leaves(half or loaded), strict=True):
            assert np.array_equal(whole(x), whole(y))
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        found = fetched(run(*given, state=loaded))
        if process == "0":
            np.savez(Path(folder, f"{what} {num_processes}.npz"), u=found[0], w=found[1])
        if what == "break":
            unbroken = run(*given)
            assert all(np.array_equal(x, y) for x, y in zip(found, fetched(unbroken), strict=True))
            _checkpoint.write_sealed = die
            _checkpoint.sync_global_devices = die
            checkpoint.save(unbroken.state, given[0], METHOD)
        elif what == "save":
            checkpoint.save(loaded, given[0], METHOD)
        elif what == "changed":
            change(Path(folder, "run.eqx"), loaded)
        elif what == "refused":
            with pytest.raises(FileExistsError, match="holds something else"):
                checkpoint.save(loaded, given[0], METHOD)


if __name__ == "__main__":
    main(*sys.argv[1:])
