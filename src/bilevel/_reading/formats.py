"""What is read of a file, as Arrow tables. Imports little: the process that reads has only this.

A format is a function that takes a path, how messages name the file, and its options. It gives groups
of columns, one after the other: their schema, and the tables that hold their rows. The metadata of the
first schema may hold notes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from .csv import read_csv
from .parquet import read_folder, read_folder_rows, read_parquet, read_rows
from .tables import Columns

FORMATS: dict[str, Callable[..., Iterator[Columns]]] = {
    "csv": read_csv,
    "parquet": read_parquet,
    "folder": read_folder,
    "rows": read_rows,
    "folder rows": read_folder_rows,
}


def write_tables(format: str, path: Path, what: str, options: dict[str, Any], sink: Any) -> None:
    """Read a file and write it to `sink`: per group of columns a stream of Arrow's IPC format.

    Raises:
        RefusedError: the content cannot be used.
        Exception: it cannot be parsed.
    """
    for schema, tables in FORMATS[format](path, what, **options):
        with pa.ipc.new_stream(sink, schema) as stream:
            for table in tables:
                stream.write_table(table)


def prepare(format: str) -> None:
    """Import what a format needs beyond this module: `pyarrow.dataset` imports pandas."""
    if format.startswith("folder"):
        import pyarrow.dataset  # noqa: F401
