"""Several processes that share a run of `weigh`: they give its weights, and end together."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from bilevel._storage import DamagedFileError, write_sealed
from bilevel.cli._app import LostProcessError
from bilevel.cli._judged import _as_bytes, judged_ranges, left, read_judged, share
from bilevel.cli._run_folder import JUDGED_KIND, judged_file
from bilevel.cli._together import Team

ROWS, COLUMNS, LOST = 600_000, 3, 75
COMMAND = str(Path(sys.executable).with_name("bilevel"))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_all_rows_once_and_of_about_one_size(count):
    rng = np.random.default_rng(count)
    ends = np.sort(rng.choice(1000, 12, replace=False)).tolist()
    done = list(zip(ends[::2], ends[1::2], strict=True))
    rest = left(1000, done)
    shares = [share(rest, k, count) for k in range(count)]
    taken = [
        row for ranges in [*shares, done] for start, stop in ranges for row in range(start, stop)
    ]
    assert sorted(taken) == list(range(1000))
    sizes = [sum(stop - start for start, stop in ranges) for ranges in shares]
    assert max(sizes) - min(sizes) <= 1


JUDGED = {
    "weights": 1.0,
    "quality": 0.5,
    "wrong": 0.1,
    "keep": True,
    "given": "a",
    "predicted": "a",
}


def write_judged(folder: Path, start: int, rows: int, /, **changes: Any) -> Path:
    """A file of judged rows, with another header or other columns."""
    columns = {name: [value] * rows for name, value in JUDGED.items()}
    columns |= {name: value for name, value in changes.items() if name in JUDGED}
    header = {"start": start, "stop": start + rows, "learned": "sum"}
    header |= {name: value for name, value in changes.items() if name in header}
    content = changes.get("content", _as_bytes([pa.table(columns)]))
    path = folder / judged_file(start)
    write_sealed(path, JUDGED_KIND, header, content)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"learned": "other"},
        {"start": 51},
        {"start": "50"},
        {"stop": None},
        {"stop": 81},
        {"start": 50, "stop": 50},
        {"weights": ["1"] * 30},
        {"keep": [1.0] * 30},
        {"content": b"no table"},
    ],
    ids=str,
)
def test_judged_rows_that_somebody_forged_are_judged_again(tmp_path, changes):
    """With a checksum that fits: once they ended the run that went on in a traceback."""
    write_judged(tmp_path, 0, 50)
    forged = write_judged(tmp_path, 50, 30, **changes)
    assert judged_ranges(tmp_path, "sum", 100) == [(0, 50)]
    assert not forged.exists()
    write_judged(tmp_path, 50, 50)
    overlapping, beyond = write_judged(tmp_path, 60, 20), write_judged(tmp_path, 100, 20)
    assert judged_ranges(tmp_path, "sum", 110) == [(0, 50), (50, 100)]
    assert not overlapping.exists()
    assert not beyond.exists()
    assert [len(table) for _, table in read_judged(tmp_path)] == [50, 50]


def make_table(rows: int, seed: int, wrong: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, COLUMNS)).round(3)
    y = (x.sum(axis=1) > 0) ^ (rng.random(rows) < wrong)
    columns: Any = {f"c{j}": x[:, j] for j in range(COLUMNS)}
    return pd.DataFrame({"id": [f"{seed}-{i}" for i in range(rows)], **columns, "y": y.astype(int)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A table in two files and in groups of rows that no process has for itself; and a small one."""
    folder = tmp_path_factory.mktemp("together")
    train = make_table(ROWS, 0, 0.2)
    (folder / "shards").mkdir()
    for k, (first, last) in enumerate([(0, 250_000), (250_000, ROWS)]):
        path = folder / "shards" / f"{k}.parquet"
        train.iloc[first:last].to_parquet(path, row_group_size=110_000)
    train.head(300).to_parquet(folder / "small.parquet")
    make_table(100, 1, 0).to_parquet(folder / "trusted.parquet")
    return folder


def command(folder: Path, out: str, *options: str, train: str = "shards") -> list[str]:
    """`weigh`, in memory for about a tenth of the rows."""
    tables = [str(folder / train), "--trusted", str(folder / "trusted.parquet")]
    more = ["--id", "id", "--label", "y", "--memory", "470MB", "--no-report", *options]
    return [COMMAND, "weigh", *tables, *more, "--out", str(folder / out)]


def start(command: list[str], **environment: str) -> subprocess.Popen:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI"))}
    return subprocess.Popen(
        command,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(command: list[str]) -> None:
    started = start(command)
    said = started.communicate(timeout=900)
    assert started.returncode == 0, said


def weights(folder: Path, out: str) -> pd.DataFrame:
    return pd.read_parquet(folder / out / "weights.parquet")


@pytest.fixture(scope="module")
def alone(folder) -> pd.DataFrame:
    run(command(folder, "alone"))
    return weights(folder, "alone")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def wait_for(pattern: str, folder: Path, *started: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while not list(folder.glob(pattern)):
        assert all(process.poll() is None for process in started)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def child_of(parent: subprocess.Popen, word: str) -> int:
    """A process below the one that was started, with this word in its command."""
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    for child in map(int, children):
        if word in Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0"):
            return child
    raise AssertionError(children)


WORKER = "joblib.externals.loky.backend.popen_loky_posix"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
def test_a_lost_process_ends_the_others_and_another_number_of_them_goes_on(folder, alone):
    started = start(command(folder, "two", "--processes", "2"))
    wait_for("two.partial/judged-*", folder, started)
    os.kill(child_of(started, WORKER), signal.SIGKILL)
    began = time.monotonic()
    _, errors = started.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert started.returncode == LOST
    assert re.search(r"one of the processes .* was killed.*--resume goes on", errors, re.S)
    assert "Traceback" not in errors
    assert list(folder.glob("two.partial/judged-*"))
    run(command(folder, "two", "--processes", "3", "--resume"))
    pd.testing.assert_frame_equal(weights(folder, "two"), alone, check_exact=True)
    assert not list(folder.glob("two/judged-*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
@pytest.mark.parametrize("lost", [0, 1])
def test_processes_with_an_address_end_when_one_is_lost(folder, alone, lost):
    places = ["--coordinator", f"localhost:{free_port()}", "--num-processes", "2"]
    out = f"apart{lost}"
    started = [start(command(folder, out, *places, "--process-id", str(k))) for k in (0, 1)]
    wait_for(f"{out}.partial/config.toml", folder, *started)
    os.kill(child_of(started[lost], "--process-id"), signal.SIGKILL)
    began = time.monotonic()
    said = [process.communicate(timeout=90)[1] for process in started]
    assert time.monotonic() - began < 30
    assert [process.returncode for process in started] == [LOST, LOST]
    assert all("was lost (SIG" in errors or "has ended" in errors for errors in said)


@pytest.mark.slow
def test_processes_find_each_other_as_those_of_slurm_do(folder, alone):
    slurm = {
        **{"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost"},
        **{"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"},
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    started = [
        start(command(folder, "slurm"), **slurm, SLURM_PROCID=str(k), SLURM_LOCALID=str(k))
        for k in (0, 1)
    ]
    said = [process.communicate(timeout=900) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "rows weighed" in said[0][0]
    assert said[1][0] == ""
    pd.testing.assert_frame_equal(weights(folder, "slurm"), alone, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize(("train", "code"), [("small.parquet", 0), ("none.parquet", 3)])
def test_those_of_open_mpi_end_when_there_is_nothing_to_share(folder, train, code):
    mpi = {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        **{"OMPI_COMM_WORLD_SIZE": "2", "JAX_COORDINATOR_PORT": str(free_port())},
    }
    started = [
        start(
            command(folder, f"mpi{code}", train=train),
            **mpi,
            OMPI_COMM_WORLD_RANK=str(k),
            OMPI_COMM_WORLD_LOCAL_RANK=str(k),
        )
        for k in (0, 1)
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [code, 0], said
    assert (folder / f"mpi{code}" / "summary.json").exists() == (code == 0)
    assert "none.parquet does not exist" in said[0][1] or code == 0


class Store:
    """What a coordinator keeps."""

    def __init__(self):
        self.kept: dict[str, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        self.kept[key] = value

    def blocking_key_value_get(self, key: str, _: int) -> str:
        return self.kept[key]


class Touch(NamedTuple):
    """Leaves a mark where it is done."""

    path: Path

    def do(self, team: Team) -> None:
        assert team.index == 1
        self.path.touch()


@pytest.fixture
def told(tmp_path, monkeypatch) -> Any:
    """The second of two processes, the file of the first, and what it is told to make."""
    monkeypatch.setattr(Team, "part", lambda _: None)
    store, mark = Store(), tmp_path / "done"
    Team(0, 2, tmp_path, store).tell(Touch(mark))
    (file,) = tmp_path.glob(".bilevel-*")
    return Team(1, 2, tmp_path, store), store, file, mark


def test_what_is_told_is_done(told):
    team, _, file, mark = told
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    team.work()
    assert mark.exists()


def forge(what: str, store: Store, file: Path) -> None:
    if what == "content":
        file.write_bytes(file.read_bytes() + b"x")
    elif what == "for all to write":
        file.chmod(0o666)
    elif what == "link":
        content = file.read_bytes()
        file.unlink()
        file.with_name("other").write_bytes(content)
        file.symlink_to("other")
    elif what == "pipe":
        file.unlink()
        os.mkfifo(file, 0o600)
    else:
        others = {
            "name": file.with_name("other"),
            "unfinished table": file.with_suffix(".partial"),
            "folder": file.parent.with_suffix(".x"),
        }
        other = others[what]
        other.write_bytes(file.read_bytes())
        other.chmod(0o600)
        digest = store.kept["bilevel/job"].split()[1]
        name = f"../{other.name}" if what == "folder" else other.name
        store.key_value_set("bilevel/job", f"{name} {digest}")


@pytest.mark.skipif(os.name != "posix", reason="modes and links are those of POSIX")
@pytest.mark.parametrize(
    "what",
    ["content", "for all to write", "link", "pipe", "name", "unfinished table", "folder"],
)
def test_what_somebody_else_may_have_told_is_not_done(told, what):
    team, store, file, mark = told
    forge(what, store, file)
    with pytest.raises((LostProcessError, DamagedFileError, OSError)):
        team.work()
    assert not mark.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--coordinator", "a:1", "--method", "soba"], "several processes need --method auto"),
        (["--process-id", "1"], "goes with --coordinator"),
        (
            ["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"],
            "must be below --num-processes 2, got 2",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    from runs import bilevel

    files = ["weigh", "a.csv", "--label", "y", "--trusted", "b.csv", "--out", "run"]
    refused = bilevel(*files, *options)
    assert refused.code == 2
    assert said in " ".join(refused.stderr.replace("│", " ").split())
