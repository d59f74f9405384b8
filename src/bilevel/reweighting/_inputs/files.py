"""Tables on disk: reading them, and telling their labels and ids from their features."""

import contextlib
import difflib
import hashlib
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from ..._reading import ReadError, map_file, read_file
from ..._reading.parquet import PARQUET, parquet_files
from ..._storage import DamagedFileError, checksum
from .checks import InputError, named
from .csv import (
    TEXT,
    Reading,
    Texts,
    as_texts,
    find_label_reading,
    find_reading,
    read_column,
    with_decimal_comma,
    words_for_gaps,
)
from .scalars import check_scalars, settled

REPEATED = 0.8  # the share of equal cells from which a column of the label's name repeats it
MOST_BLOCKS = 64  # columns that are left where they were read; pandas warns of frames of above 100
_UNNAMED = re.compile(r"(Unnamed: \d+(\.\d+)*|__index_level_\d+__)?")
NO_NAME = ("__index_level_0__", "index")  # what an index without a name is asked for as
_SEPARATORS = {".csv": None, ".csv.gz": None, ".tsv": "\t"}
FOLDER = "a folder of Parquet files"


class Table(NamedTuple):
    """A table as it was read, and what is worth saying about how."""

    frame: pd.DataFrame
    notes: tuple[str, ...]


def read_table(
    path: Path,
    name: str,
    *,
    label: str | None = None,
    ids: Sequence[str] = (),
    readings: dict[str, Reading] | None = None,
) -> Table:
    """One table, see `read_tables`."""
    return read_tables({name: path}, label=label, ids=ids, readings=readings)[name]


def is_table(path: Path) -> bool:
    """Whether the name ends as that of a table does."""
    return any(path.name.lower().endswith(end) for end in (*_SEPARATORS, *PARQUET))


def is_parquet(path: Path) -> bool:
    """Whether it is a Parquet file that is not empty, or a folder, as of those files."""
    if path.is_dir():
        return True
    return path.is_file() and path.suffix.lower() in PARQUET and path.stat().st_size > 0


def is_csv(path: Path) -> bool:
    """Whether it is read as a CSV file."""
    return not path.is_dir() and any(path.name.lower().endswith(end) for end in _SEPARATORS)


def read_tables(
    paths: Mapping[str, Path],
    *,
    label: str | None = None,
    ids: Sequence[str] = (),
    read: Mapping[str, "pd.DataFrame | Texts"] | None = None,
    readings: dict[str, Reading] | None = None,
) -> dict[str, Table]:
    """CSV, TSV or Parquet files, or folders of Parquet files, as data frames.

    `read` is what has been read of some of them already: a sample of the rows, or the texts of a CSV
    file; and `readings` are of the columns of CSV files, as far as they have been found already; they
    grow.

    A CSV file has no types: how its columns are read (see `csv.py`) is decided by the first table, for
    the label column by all of them; columns in `ids` stay text. The files of a folder are read in the
    order of their paths; parts of paths like `year=2025` become columns. A named index that pandas
    wrote to Parquet is a column where `label` or `ids` ask for it; one without a name is asked for as
    `__index_level_0__`, which other readers call it, or as `index`. A first column without a name that
    numbers or names the rows is left out.

    Raises:
        InputError: no such file, an unknown ending, a file that cannot be parsed, no rows, repeated
            column names, rows with more or fewer fields than there are columns, or files of one folder
            with different columns.
    """
    given = read or {}
    sources = {
        name: given[name] if name in given else _read(Path(path), name)
        for name, path in paths.items()
    }
    texts = {name: one for name, one in sources.items() if isinstance(one, Texts)}
    known = {} if readings is None else readings
    if label is None or label not in known:
        known |= find_readings(texts.values(), label, ids)
    tables = {}
    for name, one in sources.items():
        if isinstance(one, Texts):
            frame, notes = _interpret(one, known, {label, *ids}, name)
        else:
            if name not in given:  # those have their columns already
                one = with_named_index(one, ids)
            wanted = [c for c in dict.fromkeys((label, *ids)) if c and c in one.index.names]
            frame, notes = one.reset_index(wanted) if wanted else one, []
        frame, more = _without_row_numbers(frame, {label, *ids})
        check_unique(frame, f"the {name} file {paths[name]}")
        if len(frame) == 0:
            raise InputError(f"the {name} file {paths[name]} has a header and zero rows.")
        tables[name] = Table(frame, tuple(f"{name}: {note}" for note in [*notes, *more]))
    if texts and label is not None:
        as_texts_if_any_is(label, [one.frame for one in tables.values()])
    return tables


def with_named_index(frame: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    """The frame, its index named as `ids` call an index that pandas wrote without a name."""
    if frame.index.names != [None] or isinstance(frame.index, pd.RangeIndex):
        return frame
    asked = [name for name in ids if name in NO_NAME and name not in frame.columns]
    return frame.rename_axis(asked[0]) if asked else frame


def as_texts_if_any_is(column: str, frames: list[pd.DataFrame]) -> None:
    """Labels or ids of CSV files beside those of typed ones: the 1 of one is "1" of the other."""
    frames = [frame for frame in frames if column in frame]
    if len({pd.api.types.is_numeric_dtype(frame[column]) for frame in frames}) > 1:
        for frame in frames:
            frame[column] = as_texts(pd.Series(frame[column]))


def find_readings(
    tables: Iterable[Texts], label: str | None, ids: Sequence[str]
) -> dict[str, Reading]:
    """How labels and ids are read in all of these tables."""
    readings: dict[str, Reading] = dict.fromkeys(ids, TEXT)
    labels = [one.columns[label] for one in tables if label in one.columns]
    if label is not None and labels:
        readings[label] = find_label_reading(labels, label)
    return readings


def add_readings(one: Texts, readings: dict[str, Reading]) -> None:
    """How the columns are read that no earlier table had, whose readings grow."""
    found = {}
    for c, texts in one.columns.items():
        if c not in readings:
            found[c] = find_reading(texts)
            one.release()
    if any(reading.decimal == "," for reading in [*found.values(), *readings.values()]):
        found = {c: with_decimal_comma(one.columns[c], reading) for c, reading in found.items()}
    readings |= found


def _interpret(
    one: Texts, readings: dict[str, Reading], verbatim: Container[str | None], name: str
) -> tuple[pd.DataFrame, list[str]]:
    """The columns as they are read; `readings` are those of earlier tables, and grow."""
    add_readings(one, readings)
    columns, notes = {}, [*one.notes]
    for c, texts in one.columns.items():
        reading = readings[c]
        columns[c] = read_column(texts, reading, verbatim=c in verbatim)
        one.release()
        if reading.plain:
            continue
        if not pd.api.types.is_numeric_dtype(columns[c]):
            if c not in verbatim and (misfit := reading.misfit(c, name, texts)):
                raise InputError(misfit)
            continue
        notes.append(reading.describe(c, texts))
    plain = {c: x for c, x in one.columns.items() if readings[c] == TEXT and c not in verbatim}
    notes += words_for_gaps(plain)
    one.release()
    return pd.DataFrame(columns), notes


def read_texts(path: Path, name: str, folder: Path | None) -> Texts | None:
    """The texts of a CSV file, laid down in `folder` in place of memory; None for any other.

    Raises:
        InputError: as `read_tables`.
    """
    if path.is_dir() or (kind := _kind_of(path, name)) in PARQUET:
        return None
    return _texts(path, f"the {name} file {path}", kind, folder)


def _texts(path: Path, what: str, kind: str, folder: Path | None) -> Texts:
    try:
        separator = _SEPARATORS[kind]
        return Texts.of(map_file("csv", path, what, kind.lstrip("."), folder, separator=separator))
    except ReadError as error:
        raise InputError(str(error)) from error


def _kind_of(path: Path, name: str) -> str:
    """The ending of a file that can be read."""
    what = f"the {name} file {path}"
    if not path.is_file():
        raise InputError(f"{what} does not exist; check the path.")
    endings = (*_SEPARATORS, *PARQUET)
    kind = next((end for end in endings if path.name.lower().endswith(end)), "")
    if not kind:
        raise InputError(
            f"{what} ends in {path.suffix or 'nothing'!r}; the formats read are "
            f"{', '.join(endings)} and folders of Parquet files. Convert it, or rename it "
            "if it is one of these."
        )
    if path.stat().st_size == 0:
        raise InputError(f"{what} is empty (0 bytes).")
    return kind


def _read(path: Path, name: str) -> Texts | pd.DataFrame:
    what = f"the {name} file {path}"
    if path.is_dir():
        return _as_frame(
            _asked("folder", path, f"the {name} folder {path}", FOLDER, columns=None), what
        )
    kind = _kind_of(path, name)
    return read_parquet(path, what) if kind in PARQUET else _texts(path, what, kind, None)


def read_parquet(path: Path, what: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A Parquet file, read in a process of its own; `columns=None` is all of them.

    Raises:
        InputError: it cannot be read, or has no such columns.
    """
    return _as_frame(_asked("parquet", path, what, "parquet", columns=columns), what)


def _asked(format: str, path: Path, what: str, kind: str, **options: Any) -> pa.Table:
    try:
        return read_file(format, path, what, kind, **options)
    except ReadError as error:
        raise InputError(str(error)) from error


def _as_frame(table: pa.Table, what: str) -> pd.DataFrame:
    try:
        frame = table.to_pandas(split_blocks=table.num_columns <= MOST_BLOCKS)
        frame.columns = frame.columns.astype(str)
    except Exception as error:  # of many kinds: metadata may say anything
        raise InputError(f"{what} cannot be read as a table: {error}") from error
    return frame


def _without_row_numbers(
    frame: pd.DataFrame, wanted: Container[str | None]
) -> tuple[pd.DataFrame, list[str]]:
    """Without a first column that has no name and holds integers, or a different text per row."""
    notes = []
    while frame.shape[1] and _UNNAMED.fullmatch(first := str(frame.columns[0])):
        column = pd.Series(frame.iloc[:, 0])
        names = not pd.api.types.is_numeric_dtype(column) and _is_unique(column)
        if first in wanted or not (names or _are_whole(column)):
            break
        notes.append(
            f"the first column, {first!r}, has no name of its own and numbers or names the rows: it "
            "is left out (name it and give it as --id to find the rows by it)"
        )
        frame = frame.iloc[:, 1:]
    return frame, notes


def _are_whole(column: pd.Series) -> bool:
    """Integers, also those that a gap or a join has made `0.0`, `1.0`, ..."""
    if not pd.api.types.is_float_dtype(column):
        return pd.api.types.is_integer_dtype(column)
    values = column.to_numpy(np.float64, na_value=np.nan)
    return bool((values == np.round(values)).all())


def _is_unique(column: pd.Series) -> bool:
    try:
        return column.is_unique
    except TypeError:  # of lists and maps
        return False


def digest(path: Path) -> str:
    """The sha256 sum of a file, or of the names and sums of a folder's Parquet files.

    Raises:
        InputError: it is neither.
    """
    if path.is_dir():
        sums = [f"{p.relative_to(path).as_posix()} {digest(p)}\n" for p in parquet_files(path)]
        return hashlib.sha256("".join(sums).encode()).hexdigest()
    try:
        return checksum(path)
    except DamagedFileError as error:
        raise InputError(f"{error}, and may have no end; give a file.") from error


def watch(paths: Mapping[str, Path]) -> Callable[[], None]:
    """A function that raises `InputError` if one of these files or folders has changed since.

    It is told by sizes and times: what is read twice, or read and summed, was one and the same.
    """
    before = {name: _mark(path) for name, path in paths.items()}

    def check() -> None:
        for name, path in paths.items():
            if _mark(path) != before[name]:
                raise InputError(
                    f"the {name} file {path} was changed while it was read. Start again when nobody "
                    "writes to it, or copy it first."
                )

    return check


def _mark(path: Path) -> list[tuple[Any, ...]]:
    found = []
    for file in parquet_files(path) if path.is_dir() else [path]:
        with contextlib.suppress(OSError):  # refused in words by who reads it
            info = file.stat()
            found.append((file, info.st_ino, info.st_size, info.st_mtime_ns))
    return found


def check_unique(table: pd.DataFrame, what: str) -> None:
    """Refuse column names that repeat, or that arrays of texts cannot hold."""
    repeated = table.columns[table.columns.duplicated()].unique()
    if len(repeated):
        raise InputError(f"{what} has repeated column names: {named(repeated)}.")
    if cut := [name for name in table.columns if isinstance(name, str) and "\x00" in name]:
        raise InputError(
            f"{what} has column names that hold the character NUL, which models cut off: "
            f"{named(cut)}. Rename them."
        )


def check_unique_ids(ids: pd.Series, what: str, column: str) -> None:
    """Refuse ids that are missing or repeat.

    Raises:
        InputError: with the ids.
    """
    missing = np.asarray(ids.isna())
    if missing.any():
        raise InputError(
            f"{what} has {int(missing.sum())} rows without an id in {column!r}, the first of them row "
            f"{int(np.argmax(missing))}. Give every row an id."
        )
    repeated = pd.unique(ids[ids.duplicated()])
    if len(repeated):
        raise InputError(f"{what}'s ids in {column!r} repeat: {named(repeated)}.")


def split_label(
    table: pd.DataFrame, label: str, identifier: str | None, name: str
) -> tuple[pd.DataFrame, pd.Series]:
    """(features with the row ids as index, labels).

    Raises:
        InputError: the label or id column is unknown or holds lists, maps or bytes; ids repeat or are
            missing; or nothing else is left.
    """
    for column, option in [(label, "--label"), (identifier, "--id")]:
        if column is not None and column not in table.columns:
            nameless = table.index.names == [None] and not isinstance(table.index, pd.RangeIndex)
            way = ". Its index has no name: --id index takes it" if nameless else ""
            raise InputError(
                f"the {name} file has no column {column!r} ({option}); "
                f"{suggest(column, table.columns)}{way if option == '--id' else ''}."
            )
    if label == identifier:
        raise InputError(
            f"--label and --id are both {label!r}; the ids of rows are not their labels."
        )
    check_scalars(table[label], f"the label column {label!r} of the {name} file")
    if identifier is not None:
        check_scalars(table[identifier], f"the column {identifier!r} (--id) of the {name} file")
        check_unique_ids(pd.Series(table[identifier]), f"the {name} file", identifier)
        table = table.set_index(identifier)
    check_label_is_no_feature(table, label, name)
    features = table.drop(columns=label)
    if features.shape[1] == 0:
        raise InputError(f"the {name} file has no column besides the label {label!r}.")
    return features, settled(pd.Series(table[label]))


def check_label_is_no_feature(table: pd.DataFrame, label: str, name: str) -> None:
    """Refuse a column with the label's values and, but for case, blanks or a number, its name."""
    told = as_texts(pd.Series(table[label]).reset_index(drop=True))
    for column in table.columns:
        stem = re.sub(r"[._]\d+$", "", str(column))
        alike = {" ".join(x.casefold().split()) for x in (str(column), stem)}
        if column == label or " ".join(label.casefold().split()) not in alike:
            continue
        same = as_texts(pd.Series(table[column]).reset_index(drop=True)) == told
        if np.mean(np.asarray(same)) >= REPEATED:
            raise InputError(
                f"the {name} file has the label twice: {column!r} holds what {label!r} holds in "
                f"{int(np.sum(np.asarray(same)))} of {len(table)} rows. A model would read the label "
                f"off it: leave it out with --drop {column!r}."
            )


def suggest(column: str, columns: Any) -> str:
    """What to say of a column that is not there: the name meant, perhaps, and those there are."""
    close = difflib.get_close_matches(column, [c for c in columns if isinstance(c, str)], n=1)
    hint = f"did you mean {close[0]!r}? Its" if close else "its"
    return f"{hint} columns are {named(list(columns), 20)}"
