"""`Checkpoint` where several processes share the arrays: written by some, gone on with by others.

`test_callback.py` has that of one process.
"""

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bilevel import Checkpoint
from bilevel._content import _sum_of_part, content_sums
from bilevel._storage import DamagedFileError
from checkpoints import DIED, like, problem_of
from helpers import assert_same

SCRIPT = Path(__file__).with_name("checkpoints.py")


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32, float, complex, "<U3"])
def test_the_sum_of_an_array_is_that_of_its_parts(dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (12, 6, 3)).astype(dtype)
    known = content_sums([x])
    parts = [
        (slice(*rows), slice(*columns), slice(None))
        for rows in ((0, 5), (5, 12))
        for columns in ((0, 2), (2, 6))
    ]
    total = sum(_sum_of_part(x[part], x.shape, part) for part in parts)
    assert [f"{total % 2**64:016x}"] == known == content_sums([jax.device_get(x)])
    for other in (x[::-1], x.reshape(6, 12, 3).swapaxes(0, 1), x[:11]):
        assert content_sums([other]) != known
    changed = x.copy()
    changed[4, 3, 1] = x[x != x[4, 3, 1]][0]
    assert content_sums([changed]) != known


def start(num_processes: int, folder: Path, what: str, expected: int = 0) -> Any:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(k), str(num_processes), str(port), str(folder), what],
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(num_processes)
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == expected, error
    return np.load(folder / f"{what} {num_processes}.npz")


def assert_near(found: Any, expected: Any) -> None:
    for name in ("u", "w"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_processes_die_and_others_go_on(tmp_path):
    """Two are killed while they write; one goes on, three do, and two from the file of one."""
    pytest.importorskip("orbax.checkpoint")
    path = tmp_path / "run.eqx"
    expected = start(2, tmp_path, "break", DIED)
    assert len([*(tmp_path / "run.eqx.arrays").iterdir()]) == 2  # that of HALF, and a later one

    assert_near(start(1, tmp_path, "changed"), expected)

    state = like(*problem_of(None))
    loaded = Checkpoint(path).load(state)
    moved = tmp_path / "elsewhere" / "run.eqx"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    with pytest.raises(
        DamagedFileError, match=r"several processes wrote it, and the folder .* miss"
    ):
        Checkpoint(moved).load(state)
    shutil.copytree(tmp_path / "run.eqx.arrays", moved.parent / "run.eqx.arrays")
    assert_same(Checkpoint(moved).load(state), loaded)

    assert_near(start(3, tmp_path, "go on"), expected)
    start(1, moved.parent, "save")
    assert not (moved.parent / "run.eqx.arrays").exists()  # they are in the file
    unfinished = moved.parent / "run.eqx.arrays" / "0.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    (unfinished / "part").write_text("of arrays")
    assert_near(start(2, moved.parent, "save"), expected)
    assert [x.name for x in unfinished.parent.iterdir()] == ["0"]
    assert_same(Checkpoint(moved).load(state), loaded)
    (unfinished.parent / "precious").touch()
    start(2, moved.parent, "refused")
