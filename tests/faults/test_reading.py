"""Files are read in a process of their own: what it may take, and what its death is called."""

import contextlib
import gzip
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from odd_tables import odd_table

from bilevel._reading import client
from bilevel._reading.client import ReadError, read_file
from bilevel._reading.csv import header_of
from bilevel.reweighting import InputError
from bilevel.reweighting._inputs.files import read_parquet, read_table, read_tables
from bilevel.reweighting._inputs.parts import ParquetRows
from runs import bilevel

linux = pytest.mark.skipif(not client.POSSIBLE, reason="reads in the process itself")


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,no\n2,yes\n")
    return path


def test_reading_a_csv_file_imports_no_data_frames(csv):
    """Which would take the process that reads a fifth of a second and 45 MB, for each file."""
    code = (
        "import io, sys; from pathlib import Path; from bilevel._reading import formats, serve; "
        f"formats.write_tables('csv', Path({str(csv)!r}), 'it', {{'separator': None}}, io.BytesIO()); "
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@linux
def test_reading_a_file_does_not_walk_the_folder_one_works_in(csv, monkeypatch):
    """Which may be a home with a million files, or a disk of the network."""
    server = client._Server()
    monkeypatch.setattr(client, "_SERVER", server)
    monkeypatch.setattr(client, "parquet_files", lambda folder: pytest.fail(f"{folder} was walked"))
    assert len(read_table(csv, "train").frame) == 2
    process = server._process
    server._close()
    assert process is not None
    process.wait(20)


@pytest.mark.parametrize("k", range(4))
def test_tables_are_those_that_pandas_reads(tmp_path, k):
    path = tmp_path / "t.parquet"
    for seed in range(5 * k, 5 * k + 5):
        table = odd_table(np.random.default_rng(seed))
        if len(set(table.column_names)) < table.num_columns:
            continue  # which is refused
        pyarrow.parquet.write_table(table, path, row_group_size=3)
        read = read_parquet(path, "it")
        expected = pd.read_parquet(path, partitioning=None)
        pd.testing.assert_frame_equal(read, expected.rename(columns=str))


def test_columns_are_taken_by_their_names_whatever_these_hold(tmp_path):
    """To Arrow `a.b` is the field `b` within `a` too: asked for alone, it once was refused."""
    path = tmp_path / "t.parquet"
    pairs = pa.array([{"b": 1, "c.d": "x"}, None, {"b": 3, "c.d": None}])
    words = pa.array(["one", "two", "one"]).dictionary_encode()
    for names in (["a", "a.b", "word"], ["a", "b", "word"]):
        table = pa.table(dict(zip(names, [pairs, pa.array([1.5, None, 2.5]), words], strict=True)))
        pyarrow.parquet.write_table(table, path, row_group_size=2)
        for chosen in (None, names[1:]):
            read = read_file("parquet", path, "it", "parquet", columns=chosen)
            assert read.select(chosen or names).equals(table.select(chosen or names))
            assert read.column_names == (chosen or names)


def test_both_ways_to_read_are_the_same(csv, monkeypatch):
    child = read_file("csv", csv, "it", "csv", separator=None)
    monkeypatch.setattr(client, "POSSIBLE", False)
    assert read_file("csv", csv, "it", "csv", separator=None).equals(child, check_metadata=True)
    csv.write_bytes(b"a,y\n\xff,1\n")
    with pytest.raises(ReadError, match="it cannot be read as csv: "):
        read_file("csv", csv, "it", "csv", separator=None)


SERVER = """
import faulthandler, os, signal, time
from bilevel._reading import formats, serve
serve.LOOK, serve.IDLE = 0.1, 1.0
faulthandler.disable()
def dies(*_, **__):
    {dies}
formats.FORMATS[{format!r}] = dies
serve.main({handle})
"""


@contextlib.contextmanager
def server_whose(format: str, dies: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of the test's own, one of whose formats does harm."""
    monkeypatch.setattr(client, "_SERVER", server := client._Server())
    mine, theirs = client.socket.socketpair(client.socket.AF_UNIX, client.socket.SOCK_SEQPACKET)
    code = SERVER.format(dies=dies, format=format, handle=theirs.fileno())
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()])
    server._control = mine
    try:
        yield
    finally:
        server._close()
        process.wait(60)


@linux
@pytest.mark.parametrize(
    ("dies", "word"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("os._exit(9)", "ended with the code 9"),
        ("bytearray(1 << 43)", "takes more than"),
        ("while True: pass", "took more than 1 s of the processor"),
        ("time.sleep(600)", "did nothing for"),  # as a parser whose thread lacks memory
        (
            "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999)); "
            "raise OSError(27, 'File too large')",
            "it takes more than the 999 bytes that `ulimit -f` allows",
        ),
    ],
    ids=["crash", "exit", "memory", "time", "idle", "size"],
)
def test_the_death_of_the_process_that_reads_is_an_error(csv, monkeypatch, dies, word):
    monkeypatch.setenv(client.SECONDS, "1")
    with server_whose("csv", dies, monkeypatch):
        said = bilevel("audit", csv, "--trusted", csv, "--label", "y")
    assert said.code == 3
    assert "".join(word.split()) in said.squeezed
    assert "thetrainfile" in said.squeezed
    assert csv.name in said.squeezed


TWO = """import pyarrow as pa
    table = pa.table({{"a": pa.array(range(1 << 17))}})  # more than a pipe takes
    yield table.schema, {tables}"""


@linux
def test_rows_that_nobody_takes_wait_for_ever_and_a_death_among_them_is_an_error(monkeypatch):
    """Of the server's own watch: a process that waits for who asked is not idle."""
    file = Path(__file__)
    with server_whose("rows", TWO.format(tables="iter([table] * 3)"), monkeypatch):
        rows = client.stream_file("rows", file, "it", "parquet")
        time.sleep(1.5)
        assert [len(table) for table in rows.tables] == [1 << 17] * 3
        assert next(client.stream_file("rows", file, "it", "parquet").tables).num_columns == 1
    dies = TWO.format(tables="(x or os.kill(os.getpid(), signal.SIGSEGV) for x in [table, None])")
    with server_whose("rows", dies, monkeypatch):
        rows = client.stream_file("rows", file, "it", "parquet")
        assert len(next(rows.tables)) == 1 << 17
        with pytest.raises(ReadError, match=r"it cannot be read: .* ended by SIGSEGV"):
            next(rows.tables)


def test_rows_of_a_damaged_file_are_refused(tmp_path, monkeypatch):
    """The groups of rows before the damage are read, the others are an error with the file's name."""
    path = tmp_path / "t.parquet"
    table = pa.table({"a": np.random.default_rng(0).normal(size=3000), "word": ["word"] * 3000})
    pyarrow.parquet.write_table(table, path, row_group_size=1000, compression="none")
    content, place = bytearray(path.read_bytes()), 0
    for _ in range(3):  # in the third group
        place = content.index(b"\x04\x00\x00\x00word", place + 1)
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    for possible in (client.POSSIBLE, False):
        monkeypatch.setattr(client, "POSSIBLE", possible)
        found = ParquetRows(path, "train").frames(500)
        assert [len(next(found)) for _ in range(4)] == [500] * 4
        with pytest.raises(
            InputError, match=r"the train file .*t.parquet cannot be read as parquet"
        ):
            list(found)
        with pytest.raises(
            InputError, match=r"the train file .*t.parquet cannot be read as parquet"
        ):
            ParquetRows(path, "train").column("word")


@linux
@pytest.mark.slow  # quick: an allocation that fails
def test_a_file_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    """400 MB, of which the interpreter takes most, and a file of some kB whose columns have 160."""
    monkeypatch.setenv(client.MEMORY, "0.4GB")
    path = tmp_path / "bomb.parquet"
    schema = pa.schema([("a", pa.float64()), ("y", pa.int64())])
    rows = 10**6
    part = pa.table({"a": np.zeros(rows), "y": np.zeros(rows, int)}, schema)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        writer.write_table(pa.concat_tables([part] * 10).combine_chunks(), row_group_size=10**7)
    del part
    assert path.stat().st_size < 10**6
    with pytest.raises(
        InputError, match=r"bomb.parquet takes more than 0.4 GB .*BILEVEL_READ_MEMORY"
    ):
        read_table(path, "train")


@linux
@pytest.mark.slow  # quick: which limits are set
def test_a_file_that_unpacks_to_more_than_the_memory_block_by_block_is_refused(
    tmp_path, monkeypatch
):
    """What is read goes to memory that no process owns, and that only the size of files limits."""
    monkeypatch.setenv(client.MEMORY, "0.7GB")
    path = tmp_path / "bomb.csv.gz"
    file: Any
    with gzip.open(path, "wb") as file:
        file.write(b"a,y\n")
        for _ in range(80):  # of 10 MB
            file.write((b"x" * 10_000 + b",1\n") * 1000)
    with pytest.raises(ReadError, match=r"it takes more than 0.7 GB .*BILEVEL_READ_MEMORY"):
        read_file("csv", path, "it", "csv", separator=None)


@linux
@pytest.mark.parametrize("name", [client.MEMORY, client.SECONDS])
def test_a_limit_that_is_none_is_refused(csv, monkeypatch, name):
    for given in ("much", "1..2", "."):
        monkeypatch.setenv(name, given)
        with pytest.raises(InputError, match=f"{name}='{given}' is no "):
            read_table(csv, "train")
    monkeypatch.setenv(name, "9" * 5000)  # more than the system, or Python, has numbers for
    assert len(read_table(csv, "train").frame) == 2


def test_a_quote_mark_that_is_never_closed_in_the_header_is_said(tmp_path):
    """Of 80,000 lines that took minutes: for each of them all before it were counted again."""
    lines = ['a,"b\n', *["1,2\n"] * 200_000]
    assert header_of(lines) == "".join(lines)
    assert header_of(['a,"b\n', 'c",d\n', "1,2\n"]) == 'a,"b\nc",d\n'
    path = tmp_path / "t.csv"
    for rows in (3, 200_000):
        path.write_text("".join(lines[: rows + 1]))
        with pytest.raises(InputError, match=r"the first line of .*t.csv is never closed"):
            read_table(path, "train")


@linux
def test_limits_of_the_caller_stay_and_end_no_reading(monkeypatch):
    """Under `ulimit -v` or `ulimit -t`, as batch systems set them, once no table could be read."""
    from bilevel._reading import serve

    set_to = {}
    monkeypatch.setattr(serve.resource, "getrlimit", lambda kind: (10**9, 2 * 10**9))
    monkeypatch.setattr(serve.resource, "setrlimit", set_to.__setitem__)
    serve.limit(10**10, 300, None)
    assert serve.resource.RLIMIT_FSIZE not in set_to
    serve.limit(10**10, 300, 10**8)
    assert set_to[serve.resource.RLIMIT_FSIZE] == (10**8, 10**8)
    assert set_to[serve.resource.RLIMIT_AS] == (2 * 10**9, 2 * 10**9)
    assert set_to[serve.resource.RLIMIT_CPU] == (300, 305)
    assert set_to[serve.resource.RLIMIT_CORE] == (0, 0)


@linux
def test_a_server_that_has_died_is_started_again(csv):
    read_table(csv, "train")
    process = client._SERVER._process
    assert process is not None
    process.kill()
    process.wait()
    assert len(read_table(csv, "train").frame) == 2


@pytest.mark.slow
@linux
def test_threads_and_forks_share_the_server(csv):
    """In a process of its own: JAX, which other tests have used, does not survive a fork."""
    code = f"""
import os, threading
from pathlib import Path
from typing import Any
from bilevel._reading.client import read_file
def read():
    return len(read_file("csv", Path({str(csv)!r}), "it", "csv", separator=None))
found = []
threads = [threading.Thread(target=lambda: found.append(read())) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert found == [2] * 8, found
child = os.fork()
if child == 0:
    os._exit(read())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@linux
@pytest.mark.slow  # a process of its own
def test_nothing_is_left_when_the_one_who_asked_is_killed(csv):
    code = f"""
import os, time
from pathlib import Path
from typing import Any
from bilevel._reading import client
client.read_file("csv", Path({str(csv)!r}), "it", "csv", separator=None)
print(client._SERVER._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        os.kill(server, 0)
        process.kill()
    for _ in range(100):
        try:
            os.kill(server, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the server goes on")


def test_what_odd_tables_found(tmp_path):
    """Tracebacks, each of them once, found by `odd_tables.py`."""
    path = tmp_path / "t.csv"
    options = ["--trusted", path, "--label", "y"]
    path.write_text("a,y\n")
    assert "zerorows" in bilevel("audit", path, *options).squeezed
    path.write_text("a,y\n1,2\n")
    assert "arebothy" in bilevel("audit", path, *options, "--id", "y").squeezed.replace("'", "")
    path.write_text("a\x00,y\n1,2\n2,3\n")
    assert "thecharacterNUL" in bilevel("audit", path, *options).squeezed
    other = tmp_path / "t.parquet"
    pairs = pa.table({"": [{"a": 1}, {"a": 2}], "y": [0, 1]})
    pyarrow.parquet.write_table(pairs, other)
    assert bilevel("audit", other, "--trusted", other, "--label", "y").code in (0, 3)
    long = pa.table({"a": [b"\xff" * 40, b"\xfe" * 40], "y": [0, 1]})
    pyarrow.parquet.write_table(long, other)
    assert bilevel("audit", other, "--trusted", other, "--label", "y").code in (0, 3)
    path.write_text('a,y\n"1,5",0\n"2,5",1\n')
    gaps = tmp_path / "gaps.csv"
    gaps.write_text("a,y\n,0\n,1\n")
    first, second = read_tables({"train": path, "trusted": gaps}, label="y").values()
    assert first.frame["a"].tolist() == [1.5, 2.5]
    assert np.isnan(second.frame["a"].to_numpy(float)).all()
