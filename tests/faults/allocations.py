"""The process that reads tables, with one allocation of memory that fails: refused, or read right."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from cases import Part

from bilevel._reading import ReadError, client, read_file

LEAST = (
    256  # bytes of an allocation that is counted: smaller ones Python takes from blocks of its own
)
SECONDS = 60  # a read that takes longer hangs
LOOK, IDLE = 0.5, 3.0  # in place of minutes, see `serve.py`
CODE = """
import ctypes
from bilevel._reading import formats, serve
serve.LOOK, serve.IDLE = {look}, {idle}
library, write = ctypes.CDLL(None), formats.write_tables
library.counted_allocations.restype = ctypes.c_long
def armed(format, path, what, options, sink):
    fails, counts = options.pop("fails", None), options.pop("counts", None)
    if fails is not None:
        library.arm_allocations(ctypes.c_long(fails), ctypes.c_long({least}))
    try:
        write(format, path, what, options, sink)
    finally:
        number = library.counted_allocations()
        library.arm_allocations(ctypes.c_long(-1), ctypes.c_long(1 << 62))
    if counts is not None:
        with open(counts, "w") as file:
            file.write(str(number))
formats.write_tables = armed
serve.main({handle})
"""


class Reading(Part):
    """Every allocation of the process that reads a table of some format fails once."""

    def __init__(self, shim: Path, folder: Path):
        self._home = folder / "reading"
        self._home.mkdir()
        self._start(shim)
        self._made = {
            "t.csv": ("csv", {"separator": None}),
            "t.parquet": ("parquet", {"columns": None}),
            "folder": ("folder", {"columns": None}),
        }
        write_tables(self._home)
        self._right, self.goals = {}, {}
        for name in self._made:
            counts = self._home / "counts"
            self._right[name] = self._read(name, fails=-1, counts=str(counts))
            self.goals[name] = int(counts.read_text())

    def _start(self, shim: Path) -> None:
        server = client._Server()
        server._control, theirs = client.socket.socketpair(
            client.socket.AF_UNIX, client.socket.SOCK_SEQPACKET
        )
        code = CODE.format(look=LOOK, idle=IDLE, least=LEAST, handle=theirs.fileno())
        with theirs:
            server._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | client._QUIET | client._PLAIN | {"LD_PRELOAD": str(shim)},
            )
        client._SERVER = server

    def _read(self, name: str, **how: Any) -> pa.Table:
        format, options = self._made[name]
        return read_file(format, self._home / name, f"the file {name}", format, **options, **how)

    def case(self, name: str, k: int) -> tuple[str, list[str]]:
        """Fail at the k-th."""
        try:
            with alarm(SECONDS):
                found = self._read(name, fails=k)
        except ReadError as error:
            return "refused", [] if name in str(error) else ["does not name the file"]
        except TimeoutError:
            return "hang", ["hang"]
        except Exception as error:
            print(name, k, repr(error), flush=True)
            return "traceback", ["traceback"]
        same = found.equals(self._right[name], check_metadata=True)
        return ("done", []) if same else ("misread", ["misread"])


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """TimeoutError after so many seconds."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def write_tables(folder: Path) -> None:
    """One of each format, with gaps, texts and repeated texts, in more than one group of rows."""
    rng = np.random.default_rng(0)
    rows = 3000
    words = [f"word {k % 7}, é" for k in range(rows)]
    table = pa.table(
        {
            "id": [f"row{k}" for k in range(rows)],
            "a": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1),
            "b": rng.integers(0, 9, rows),
            "word": pa.array(words).dictionary_encode(),
            "y": np.arange(rows) % 2 == 0,
        }
    )
    pyarrow.parquet.write_table(table, folder / "t.parquet", row_group_size=1000)
    for year in (2025, 2026):
        part = folder / "folder" / f"year={year}"
        part.mkdir(parents=True)
        pyarrow.parquet.write_table(table.slice(0, 500), part / "part.parquet")
    with (folder / "t.csv").open("w", encoding="utf-8") as file:
        file.write("id,a,b,word,y\n")
        for row in table.to_pylist():
            a = "" if row["a"] is None else row["a"]
            file.write(f'{row["id"]},{a},{row["b"]},"{row["word"]}",{row["y"]}\n')
