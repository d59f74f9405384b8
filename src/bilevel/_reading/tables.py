"""What is read of a file: groups of columns as Arrow tables, and what is refused of it."""

from collections.abc import Iterable, Sequence

import pyarrow as pa

NOTES, NAMELESS = b"bilevel", b"bilevel_nameless"  # the keys of our metadata
Columns = tuple[pa.Schema, Iterable[pa.Table]]


class RefusedError(ValueError):
    """The content cannot be used; the message is for the user."""


def beside(parts: Sequence[pa.Table]) -> pa.Table:
    """One table of groups of columns.

    Raises:
        pa.ArrowInvalid: one has more rows than another.
    """
    if len(parts) == 1:
        return parts[0]
    schema = pa.schema([field for part in parts for field in part.schema], parts[0].schema.metadata)
    table = pa.Table.from_arrays(
        [column for part in parts for column in part.columns], schema=schema
    )
    table.validate()
    return table
