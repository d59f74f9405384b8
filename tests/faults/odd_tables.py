"""Tables that are legal and odd: every type of Arrow, names and texts of every kind, few rows."""

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

NAMES = [
    *(
        "y",
        "a",
        "b",
        " ",
        "",
        "a b",
        "a\nb",
        "é",
        "e\u0301",
        "\u202eevil",
        "=1+1",
        "\x00",
        "\ufeffy",
    ),
    *(
        "Unnamed: 0",
        "index",
        "__index_level_0__",
        "None",
        "nan",
        "0",
        "1.5",
        "weight",
        "id",
        "label",
    ),
    *("x" * 300, "<script>alert(1)</script>", "[red]x[/red]", "{{7*7}}", "../../x", "a,b", '"q"'),
]
TEXTS = [
    *(
        "",
        " ",
        "a",
        "A",
        "é",
        "e\u0301",
        "\x00",
        "\x1b[31m",
        "\u200b",
        "\ufffe",
        "a\x0cb",
        "a\x85b",
        "a\u2028b",
        "NA",
        "null",
        "NaN",
    ),
    *(
        "1",
        "01",
        "1.0",
        "1e999",
        "-0",
        "0x10",
        "1_000",
        "1,5",
        "12:30",
        "2026-01-01",
        "true",
        "True",
    ),
    *(
        "=1+1",
        "<b>",
        "\n",
        "\t",
        '"',
        "\\",
        "a" * 5000,
        "数",
        "👩\u200d🚀",
        "inf",
        "-inf",
        "٣",
        "½",
    ),
]
NUMBERS = [0, 1, -1, 2, 127, 255, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1]
FLOATS = [0.0, -0.0, 1.5, 1e-320, 1e160, 1e308, float("inf"), float("-inf"), float("nan"), 0.1]
DAY = datetime.datetime(2026, 1, 1)


def _whole(low: int, high: int) -> Callable[[np.random.Generator], Any]:
    fitting = [x for x in NUMBERS if low <= x <= high]
    return lambda rng: fitting[int(rng.integers(len(fitting)))]


def _one_of(values: list[Any]) -> Callable[[np.random.Generator], Any]:
    return lambda rng: values[int(rng.integers(len(values)))]


def _moment(rng: np.random.Generator) -> datetime.datetime:
    return DAY + datetime.timedelta(seconds=int(rng.integers(-(2**31), 2**32)))


def _bytes(rng: np.random.Generator) -> bytes:
    return rng.bytes(int(rng.integers(4)))


def _texts(rng: np.random.Generator) -> str:
    return TEXTS[int(rng.integers(len(TEXTS)))]


VALUES: dict[pa.DataType, Callable[[np.random.Generator], Any]] = {
    **{
        pa.type_for_alias(f"int{n}"): _whole(-(2 ** (n - 1)), 2 ** (n - 1) - 1) for n in (8, 32, 64)
    },
    **{pa.type_for_alias(f"uint{n}"): _whole(0, 2**n - 1) for n in (8, 64)},
    pa.float32(): lambda rng: np.float32(_one_of(FLOATS[:4] + FLOATS[6:])(rng)),
    pa.float64(): _one_of(FLOATS),
    pa.bool_(): _one_of([True, False]),
    pa.string(): _texts,
    pa.large_string(): _texts,
    pa.binary(): _bytes,
    pa.decimal128(38, 2): lambda rng: decimal.Decimal(int(rng.integers(-(10**9), 10**9))) / 100,
    pa.date32(): lambda rng: _moment(rng).date(),
    pa.timestamp("ns"): _moment,
    pa.timestamp("us", "Europe/Berlin"): _moment,
    pa.timestamp("s"): _one_of([0, 2**40, -(2**40)]),
    pa.time64("us"): lambda rng: _moment(rng).time(),
    pa.duration("ns"): lambda rng: datetime.timedelta(seconds=int(rng.integers(10**6))),
    pa.list_(pa.float64()): lambda rng: [0.5] * int(rng.integers(3)),
    pa.list_(pa.float64(), 2): lambda _: [0.5, 1.0],
    pa.struct([("a", pa.int64())]): lambda rng: {"a": int(rng.integers(3))},
    pa.map_(pa.string(), pa.int64()): lambda rng: [("k", int(rng.integers(3)))],
    pa.null(): lambda _: None,
}


def odd_column(rng: np.random.Generator, rows: int) -> pa.Array:
    """A column of some type, with gaps or without, of few or many different values."""
    kinds = list(VALUES)
    kind = kinds[int(rng.integers(len(kinds)))]
    gaps = rng.choice([0.0, 0.0, 0.1, 1.0], p=[0.5, 0.2, 0.25, 0.05])
    pool = [VALUES[kind](rng) for _ in range(int(rng.choice([1, 2, 3, 40])))]
    values = [
        None if rng.random() < gaps else pool[int(rng.integers(len(pool)))] for _ in range(rows)
    ]
    column = pa.array(values, kind)
    plain = pa.types.is_string(kind) or pa.types.is_integer(kind)
    return column.dictionary_encode() if plain and rng.random() < 0.3 else column


def odd_table(rng: np.random.Generator) -> pa.Table:
    """A table of one to six such columns; half of the time with a sound label and numbers."""
    rows = int(rng.choice([0, 1, 2, 3, 8, 40]))
    columns = [odd_column(rng, rows) for _ in range(int(rng.integers(1, 6)))]
    names = [NAMES[int(rng.integers(len(NAMES)))] for _ in columns]
    if rng.random() < 0.5:
        columns += [pa.array(np.arange(rows) % 2), pa.array(rng.normal(size=rows))]
        names += ["y", "number"]
    if rng.random() < 0.9:  # names that repeat are refused at once
        names = [name if names.index(name) == i else f"{name}{i}" for i, name in enumerate(names)]
    return pa.Table.from_arrays(columns, names=names)
