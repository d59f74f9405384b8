"""CSV files by declared rules: every cell is text until all cells of its column say otherwise.

- The first line names the columns. A row with another number of fields is an error, except where all
  rows end in one separator too many.
- Labels and ids: only an empty cell is a gap. Ids stay text. Labels are numbers only where every
  label, of all tables, is a number in its plain form (`7`, `-2.5`, `1e-3`), so that the codes `01`,
  `02`, and `1`, `2`, `other` are classes named by their text; so are whole numbers of at most 50
  values that 64 bits do not tell apart.
- Other columns: an empty cell and the words in `GAPS` are gaps, as they are for pandas; of a column of
  texts this is told. A column is numbers where every
  other cell is one; a leading zero (`00123`) makes it text. Thousands separators, a decimal comma, a
  per cent sign, a currency, a unit, or brackets around negative numbers are understood where the whole
  column is written in one way. A comma that is the decimal point of one column separates no thousands
  in another.
- `true` and `false`, in any case, are booleans.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from ..._reading import Mapped
from ..._reading.tables import NAMELESS, NOTES
from .checks import InputError, named

pc: Any = pyarrow.compute  # whose functions are made when it is imported
GAPS = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>", "?")
MANY_VALUES = 50  # distinct labels above which numbers with a mark are a target and no classes
STRAY = 0.05  # a share of labels that are words, below which a target is taken to have stray words
SAMPLE = 1000  # distinct values that are looked at before all of them are

_PLAIN = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_DATE = r"[0-9][-/.:, ]+[0-9]|[0-9]{4}"
_LEADING_ZERO = r"^[+-]?0[0-9]"
_CURRENCY = "$€£¥₹"
_MARKED = re.compile(
    rf"(?P<sign>[+-]?)(?P<before>[{_CURRENCY}]?|(?:USD|EUR|GBP|CHF|JPY)\s?)\s*(?P<sign2>[+-]?)"
    r"(?P<number>(?:[0-9][0-9.,' ]*|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?)\s*"
    rf"(?P<after>[%‰{_CURRENCY}]?|[^\W\d_]{{1,5}}[²³]?)"
)
_BRACKETS = re.compile(r"\([^()]+\)")
_SPACES = str.maketrans({"\u2212": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2019": "'"})


class Reading(NamedTuple):
    """How the cells of one column are read.

    Attributes:
        kind: "text", "number" or "boolean".
        thousands, decimal: the separators of its numbers, where they are not written plainly.
        mark: what stands before and after each number.
        brackets: whether negative numbers stand in brackets, as accountants write them.
    """

    kind: str
    thousands: str = ""
    decimal: str = "."
    mark: tuple[str, str] = ("", "")
    brackets: bool = False

    @property
    def plain(self) -> bool:
        """Whether any reader would read the column so."""
        return self == Reading(self.kind)

    @property
    def unit(self) -> str:
        """What stands beside each number: a unit, a currency, a per cent sign, or nothing."""
        return "".join(self.mark)

    def describe(self, column: str, texts: Any) -> str:
        """What is worth saying about it, with the first cell that is no gap, if there is one."""
        cells = (x for chunk in texts.chunks for x in chunk.to_pylist() if x.strip() not in GAPS)
        example = next(cells, None)
        parts = [f"without {self.unit!r}"] * any(self.mark)
        parts += [f"{self.thousands!r} separates thousands"] * bool(self.thousands)
        parts += ["a comma is the decimal point"] * (self.decimal == ",")
        parts += ["brackets are a minus"] * self.brackets
        said = f"the column {column!r} is read as numbers ({', '.join(parts)})"
        if example is None:  # in this table
            return said
        return f"{said}: {example!r} is {self.numbers([example])[0]:g}"

    def misfit(self, column: str, name: str, texts: Any) -> str | None:
        """What to say of another table's numbers that are written otherwise, if there are any."""
        distinct = _distinct(texts)
        other = [
            x for x, value in zip(distinct, self.numbers(distinct), strict=True) if value != value
        ]
        other = [x for x in other if _match(x, False)]
        if not other:
            return None  # words, which are refused with the ids of their rows
        how = f"with {self.unit!r}" if any(self.mark) else "with separators"
        return (
            f"the column {column!r} holds numbers {how} in the first table, and numbers without in "
            f"the {name} file: {named(other)}. Write them alike in all tables."
        )

    def numbers(self, texts: Sequence[str]) -> np.ndarray:
        """Numbers of texts that are written in this way; others are NaN."""
        values = np.full(len(texts), np.nan)
        for i, text in enumerate(texts):
            found = _match(text, self.brackets)
            if found is None or (found["before"].strip(), found["after"]) != self.mark:
                continue
            digits = found["number"].strip()
            if self.thousands and self.thousands in digits:
                groups = rf"[1-9][0-9]{{0,2}}(?:{re.escape(self.thousands)}[0-9]{{3}})+"
                if not re.fullmatch(rf"{groups}(?:{re.escape(self.decimal)}[0-9]*)?", digits):
                    continue
                digits = digits.replace(self.thousands, "")
            digits = digits.replace(self.decimal, ".")
            if re.fullmatch(r"[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?", digits):
                negative = (found["sign"] + found["sign2"]).count("-") == 1
                values[i] = -float(digits) if negative else float(digits)
        return values


READ_AS = ("text", "number", "boolean")
TEXT, NUMBER, BOOLEAN = map(Reading, READ_AS)


class Texts(NamedTuple):
    """A CSV file as it stands: its columns as texts, and what was noticed in reading it.

    Attributes:
        columns: pyarrow's strings, by name.
        rows: how many each has.
        notes: what was noticed.
        release: gives back the memory of cells that were read.
    """

    columns: dict[str, Any]
    rows: int
    notes: list[str]
    release: Callable[[], None]

    @classmethod
    def of(cls, mapped: Mapped) -> "Texts":
        """Of what the process that reads files has given."""
        table, release = mapped
        metadata = table.schema.metadata or {}
        nameless = json.loads(metadata.get(NAMELESS, b"[]"))
        columns = {
            name: column
            for k, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True))
            if k not in nameless or not pc.all(pc.equal(column, "")).as_py()
        }
        return cls(columns, len(table), json.loads(metadata.get(NOTES, b"[]")), release)


def find_reading(texts: Any) -> Reading:
    """How a column of features is read."""
    plain, leading_zero = True, False
    for chunk in texts.chunks:
        values = chunk
        if not _are_plain_numbers(values):  # most are, without blanks and gaps
            values = without_gaps(pc.utf8_trim_whitespace(chunk))
            if not (plain := _are_plain_numbers(values)):
                break
        leading_zero = leading_zero or has(values, _LEADING_ZERO)
    if plain:
        return TEXT if leading_zero else NUMBER
    distinct = _distinct(texts)
    if not distinct:
        return NUMBER
    if {x.strip().lower() for x in distinct[:3]} <= {"true", "false"}:
        words = {x.strip().lower() for x in distinct}
        return BOOLEAN if words <= {"true", "false"} else TEXT
    reading = _marked_numbers(distinct[:SAMPLE])
    return reading if len(distinct) <= SAMPLE or reading == TEXT else _marked_numbers(distinct)


def find_label_reading(texts: Sequence[Any], column: str) -> Reading:
    """How the labels of all tables are read.

    Raises:
        InputError: a target with stray words.
    """
    values = pc.unique(pa.chunked_array([*_chunks(texts)], pa.large_string()))
    values = values.filter(pc.not_equal(values, ""))
    if (
        pc.all(pc.match_substring_regex(pc.utf8_trim_whitespace(values), _PLAIN)).as_py()
        is not False
    ):
        return TEXT if _are_long_codes(values) else NUMBER
    distinct = values.to_pylist()
    plain = [x for x in distinct if re.match(_PLAIN, x.strip())]
    if {x.strip().lower() for x in distinct} <= {"true", "false"}:
        return BOOLEAN
    marked = _marked_numbers(distinct)
    if len(distinct) > MANY_VALUES and marked.kind == "number":
        return marked
    words = [x for x in distinct if x not in set(plain)]
    if len(plain) > max(MANY_VALUES, len(words) / STRAY) and any("." in x for x in plain):
        raise InputError(
            f"the label column {column!r} holds {len(plain)} different numbers, and besides them "
            f"{named(words)}. Empty or mend these cells."
        )
    return TEXT


def _are_long_codes(values: Any) -> bool:
    """Whether few labels are numbers so long that some of them would be one and the same."""
    if not 1 < len(values) <= MANY_VALUES:
        return False
    try:
        pc.cast(pc.utf8_trim_whitespace(values), pa.int64())
    except pa.ArrowInvalid:
        texts = [x.strip() for x in values.to_pylist()]
        whole = {int(x) for x in texts if re.fullmatch("-?[0-9]+", x)}
        return len({float(x) for x in whole}) < len(whole)
    return False


def read_column(texts: Any, reading: Reading, *, verbatim: bool = False) -> pd.Series:
    """The column as it is read; where a cell cannot be read so, the texts.

    `verbatim`, for labels and ids: only an empty cell is a gap.
    """
    gaps = ("",) if verbatim else GAPS
    if reading.kind != "text":
        present = without_gaps(pc.utf8_trim_whitespace(texts), gaps)
        values = _read_numbers(present) if reading == NUMBER else None
        values = read_distinct(present, reading) if values is None else values
        if values is not None:
            return values
    return without_gaps(texts, gaps).to_pandas()


def words_for_gaps(columns: Mapping[str, Any]) -> list[str]:
    """What is worth saying of columns of texts: words in them that are read as gaps.

    `NA` may be a country, and `None` a kind of damage. Among dates they are no values.
    """
    said = []
    for column, texts in columns.items():
        words = pc.is_in(texts, value_set=pa.array(GAPS[1:], pa.large_string()))
        if not pc.any(words).as_py():
            continue
        value = next((x for x in pc.unique(texts).to_pylist() if x not in GAPS), "")
        if not re.search(_DATE, value):
            found = pc.value_counts(texts.filter(words)).to_pylist()
            said += [f"{x['values']!r} in {x['counts']} cells of {column!r}" for x in found]
    if not said:
        return []
    more = f" and {len(said) - 5} more" if len(said) > 5 else ""
    return [
        f"words in columns of text are read as gaps, as empty cells are: {', '.join(said[:5])}{more}; "
        "write them otherwise where they are values"
    ]


def _read_numbers(present: Any) -> pd.Series | None:
    """Numbers that are written plainly: integers where all are."""
    try:
        return pc.cast(present, pa.int64() if are_digits(present) else pa.float64()).to_pandas()
    except pa.ArrowInvalid:  # written otherwise, or beyond 64 bits
        return None


def are_digits(present: Any) -> bool:
    """Whether these are integers, none missing."""
    return present.null_count == 0 and not has(present, r"[^0-9-]")


def read_distinct(present: Any, reading: Reading) -> pd.Series | None:
    """Booleans, or numbers with marks and separators."""
    codes, distinct = pd.factorize(np.asarray(present.to_pandas(), object))
    if reading == BOOLEAN:
        words = [text.lower() for text in distinct]
        if not {*words} <= {"true", "false"}:
            return None
        values = np.array([*(word == "true" for word in words), None], object)[codes]
        return pd.Series(values.astype(bool) if (codes >= 0).all() else values)
    numbers = reading.numbers(list(distinct))
    if not np.isfinite(numbers).all():
        return None
    return pd.Series(np.append(numbers, np.nan)[codes])


def as_texts(column: pd.Series) -> pd.Series:
    """Texts, with gaps; integers that a gap has made floating are still written as integers."""
    known = column.astype(object).where(column.notna(), np.nan)
    return pd.Series([_as_text(x) for x in known], column.index, dtype=object)


def _as_text(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isnan(value) else str(int(value) if value.is_integer() else value)
    return str(value)


def read_like(labels: np.ndarray, classes: np.ndarray | None, name: str) -> np.ndarray:
    """Labels of one file as the known ones are: numbers, texts, truth values or dates.

    A column of few rows may look otherwise, and text is all that a tool may give back. Texts that are
    none of the classes stay, where the classes are texts; `classes=None` takes labels as they are.

    Raises:
        InputError: labels that cannot be read so.

    >>> read_like(np.array(["true", "False"]), np.array([False, True]), "y").tolist()
    [True, False]
    """
    kind = "" if classes is None else _kind_of(classes)
    if classes is None or kind == _kind_of(labels):
        return labels
    if kind == "numbers":
        known = np.asarray(pd.to_numeric(pd.Series(labels), errors="coerce"))
        unread = labels[np.isnan(known)]
    else:
        words, names = (
            [_as_text(x).lower() if kind == "truth values" else _as_text(x) for x in values]
            for values in (pd.Series(labels), pd.Series(classes))
        )
        place = {name: k for k, name in enumerate(names)}
        if kind == "texts":
            return np.array([classes[place[x]] if x in place else x for x in words], object)
        found = np.array([place.get(x, -1) for x in words])
        known, unread = classes[found], labels[found < 0]
    if len(unread):
        lack = f"labels that are none of the {kind} that the training rows have"
        if kind == "numbers":
            lack = "labels that are not numbers, as those of the training rows are"
        raise InputError(
            f"`{name}` has {lack}: {named(np.unique(unread.astype(str)))}. Remove these rows or mend "
            "the labels."
        )
    return known


def _kind_of(labels: np.ndarray) -> str:
    kind = labels.dtype.kind
    kind = pd.Series(labels).infer_objects().dtype.kind if kind == "O" else kind
    return {**dict.fromkeys("iuf", "numbers"), "b": "truth values", "M": "dates"}.get(kind, "texts")


def _chunks(texts: Sequence[Any]) -> Any:
    for column in texts:
        yield from column.chunks


def has(values: Any, pattern: str) -> bool:
    """Whether some value matches."""
    return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())


def without_gaps(texts: Any, gaps: Sequence[str] = GAPS) -> Any:
    """The same with missing values in place of these texts."""
    if isinstance(texts, pa.ChunkedArray):
        return pa.chunked_array([without_gaps(x, gaps) for x in texts.chunks], texts.type)
    missing = pc.is_in(texts, value_set=pa.array(gaps, pa.large_string()))
    if not pc.any(missing).as_py():
        return texts
    # Not `if_else`, which up to pyarrow 23 reads the wrong bytes of a slice of texts.
    return pc.replace_with_mask(texts, missing, pa.scalar(None, texts.type))


def _distinct(texts: Any) -> list[str]:
    return [x for x in pc.unique(texts).to_pylist() if x.strip() not in GAPS]


def _are_plain_numbers(values: Any) -> bool:
    try:
        pc.cast(values, pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _marked_numbers(distinct: list[str]) -> Reading:
    """Numbers that all have the same marks and separators, or text."""
    in_brackets = sum(_BRACKETS.fullmatch(x.strip()) is not None for x in distinct)
    brackets = 0 < in_brackets < len(distinct)  # if all are, they number something
    found = [_match(x, brackets) for x in distinct]
    marks = {(m["before"].strip(), m["after"]) for m in found if m is not None}
    if None in found or len(marks) != 1:
        return TEXT
    digits = [m["number"].strip() for m in found if m is not None]
    if any(re.match("0[0-9]", x) for x in digits):
        return TEXT
    mark = marks.pop()
    separators = {c for x in digits for c in x if not c.isdigit()}
    for thousands, decimal in _styles(digits, separators):
        reading = Reading("number", thousands, decimal, mark, brackets)
        if np.isfinite(reading.numbers(distinct)).all():
            return reading
    return TEXT


def _match(text: str, brackets: bool) -> re.Match[str] | None:
    text = text.strip().translate(_SPACES)
    if brackets and _BRACKETS.fullmatch(text):
        text = f"-{text[1:-1].strip()}"
    return _MARKED.fullmatch(text)


def with_decimal_comma(texts: Any, reading: Reading) -> Reading:
    """Another reading of numbers like `1,234`, where the file has decimal commas elsewhere."""
    if reading.kind != "number" or reading.thousands != "," or reading.decimal != ".":
        return reading
    other = reading._replace(thousands="", decimal=",")
    return other if np.isfinite(other.numbers(_distinct(texts))).all() else reading


def _styles(digits: list[str], separators: set[str]) -> list[tuple[str, str]]:
    """(thousands separator, decimal separator), the most likely first."""
    spaced = [s for s in "' " if s in separators]
    if len(spaced) > 1:
        return []
    if spaced:
        return [(spaced[0], ".")] if "," not in separators else [(spaced[0], ",")]
    if "," not in separators:
        return [("", "."), (".", ",")]
    if "." in separators:
        return [(",", "."), (".", ",")]
    # 1,234 may be either: with three digits after every comma it is taken for thousands.
    return [(",", "."), ("", ",")]
