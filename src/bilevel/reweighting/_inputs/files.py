"""Tables on disk: reading them, and telling their labels and ids from their features."""

import difflib
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from .checks import InputError, named


def _read_parquet(path: Path) -> pd.DataFrame:
    # Without partitioning: folder names above the file are not columns of the table.
    return pd.read_parquet(path, partitioning=None)


_read_csv = partial(pd.read_csv, low_memory=False)
_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".tsv": partial(pd.read_csv, low_memory=False, sep="\t"),
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}


def read_table(path: Path, name: str) -> pd.DataFrame:
    """A CSV, TSV or Parquet file, or a folder of Parquet files, as a data frame.

    The files of a folder are read in the order of their paths; parts of paths like `year=2025`
    become columns.

    Raises:
        InputError: no such file, an unknown ending, a file that cannot be parsed, no rows, or files
            of one folder with different columns.
    """
    if path.is_dir():
        reader, kind = partial(_read_folder, name=name), "a folder of Parquet files"
    elif not path.is_file():
        raise InputError(f"the {name} file {path} does not exist; check the path.")
    else:
        kind = next((end for end in _READERS if path.name.lower().endswith(end)), "")
        if not kind:
            raise InputError(
                f"the {name} file {path} ends in {path.suffix or 'nothing'!r}; the formats read "
                f"are {', '.join(_READERS)} and folders of Parquet files. Convert it, or rename it "
                "if it is one of these."
            )
        reader, kind = _READERS[kind], kind[1:]
        if path.stat().st_size == 0:
            raise InputError(f"the {name} file {path} is empty (0 bytes).")
    try:
        table = reader(path)
    except InputError:
        raise
    except Exception as error:  # parsers raise many kinds; each means the same to the user
        raise InputError(f"the {name} file {path} cannot be read as {kind}: {error}") from error
    if len(table) == 0:
        raise InputError(f"the {name} file {path} has a header and zero rows.")
    table.columns = table.columns.astype(str)
    check_unique(table, f"the {name} file {path}")
    return table


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below `folder`, sorted; names that start with `.` or `_` are bookkeeping."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (".parquet", ".pq")
        and not any(part[0] in "._" for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _read_folder(folder: Path, name: str) -> pd.DataFrame:
    files = _parquet_files(folder)
    if not files:
        raise InputError(f"the {name} folder {folder} holds no Parquet files (.parquet, .pq).")
    schemas = []
    for path in files:
        try:
            schemas.append(pyarrow.parquet.read_schema(path))
        except Exception as error:
            raise InputError(
                f"the {name} file {path} cannot be read as parquet: {error}"
            ) from error
        lacks, has = (
            [c for c in one.names if c not in other.names]
            for one, other in [(schemas[0], schemas[-1]), (schemas[-1], schemas[0])]
        )
        if lacks or has:
            differences = [
                f"{word} {named(c)}" for word, c in [("lacks", lacks), ("has", has)] if c
            ]
            raise InputError(
                f"the {name} folder {folder} holds files of different columns: {path.name} differs "
                f"from {files[0].name}, it {' and '.join(differences)}. Keep one table in a folder."
            )
    arguments: dict[str, Any] = {
        "format": "parquet",
        "partitioning": "hive",
        "partition_base_dir": str(folder),
    }
    found = pyarrow.dataset.dataset(files, **arguments).schema
    from_paths = pa.schema([field for field in found if field.name not in schemas[0].names])
    schema = pa.unify_schemas([*schemas, from_paths], promote_options="permissive")
    return pyarrow.dataset.dataset(files, schema=schema, **arguments).to_table().to_pandas()


def digest(path: Path) -> str:
    """The sha256 sum of a file, or of the names and sums of a folder's Parquet files."""
    if path.is_dir():
        sums = [f"{p.relative_to(path).as_posix()} {digest(p)}\n" for p in _parquet_files(path)]
        return hashlib.sha256("".join(sums).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_unique(table: pd.DataFrame, what: str) -> None:
    """Refuse repeated column names."""
    repeated = table.columns[table.columns.duplicated()].unique()
    if len(repeated):
        raise InputError(f"{what} has repeated column names: {named(repeated)}.")


def split_label(
    table: pd.DataFrame, label: str, identifier: str | None, name: str
) -> tuple[pd.DataFrame, pd.Series]:
    """(features with the row ids as index, labels).

    Raises:
        InputError: the label or id column is unknown, ids repeat, or nothing else is left.
    """
    for column, option in [(label, "--label"), (identifier, "--id")]:
        if column is not None and column not in table.columns:
            raise InputError(
                f"the {name} file has no column {column!r} ({option}); "
                f"{suggest(column, table.columns)}."
            )
    if identifier is not None:
        repeated = pd.unique(table.loc[table[identifier].duplicated(), identifier])
        if len(repeated):
            raise InputError(f"the {name} file's ids in {identifier!r} repeat: {named(repeated)}.")
        table = table.set_index(identifier)
    features = table.drop(columns=label)
    if features.shape[1] == 0:
        raise InputError(f"the {name} file has no column besides the label {label!r}.")
    return features, pd.Series(table[label])


def suggest(column: str, columns: Any) -> str:
    """What to say of a column that is not there: the name meant, perhaps, and those there are."""
    close = difflib.get_close_matches(column, [c for c in columns if isinstance(c, str)], n=1)
    hint = f"did you mean {close[0]!r}? Its" if close else "its"
    return f"{hint} columns are {named(list(columns), 20)}"
