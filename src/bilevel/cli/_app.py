"""What all commands share: the application, consoles, exit codes, errors, configuration files."""

import contextlib
import os
import re
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .._text import to_json, visible
from ._signals import Stop, is_asked_for_privacy

if TYPE_CHECKING:
    import pandas as pd

OK, FAILURE, USAGE, BAD_INPUT, NOT_BELIEVABLE, LOST = 0, 1, 2, 3, 4, 75

app = typer.Typer(
    help="Learn what training data is worth, and whether to believe it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# With a width of 0 nothing would be printed.
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "COLUMNS" or v.strip("0")}
# A word between colons is the user's, and no emoji.
out = Console(_environ=_ENVIRONMENT, emoji=False)
err = Console(_environ=_ENVIRONMENT, emoji=False, stderr=True)
stop = Stop()


LARGEST_CONFIG = 1 << 20  # bytes
SAID_ALOUD = {"allow_code"}  # options that run code, which no configuration file may set
# Where other processes are, which differs between them: no file may set these either.
PLACES = {"coordinator", "num_processes", "process_id"}


class RunFolderError(ValueError):
    """The output folder cannot be used; nothing was written."""


class LostProcessError(RuntimeError):
    """Of several processes that share a run, another one has ended or has never come."""


def shown(value: object, keep: str = "") -> str:
    """What others have written, as text for the terminal: neither markup nor control characters."""
    return escape(visible(str(value), keep))


def say(text: str) -> None:
    """A line on stdout that is not wrapped, nor taken for markup."""
    out.print(shown(text, "\n"), highlight=False, soft_wrap=True)


def say_table(title: str, first: str, lines: "pd.DataFrame") -> None:
    """A table on stdout; `first` is what its index is called."""
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in lines.columns:
        table.add_column(str(column).replace("_", " "), justify="right")
    for name, row in lines.iterrows():
        cells = (f"{x:.3f}" if isinstance(x, float) else shown(x) for x in row)
        table.add_row(shown(name), *cells)
    out.print(table)


def say_json(value: Any) -> None:
    """JSON on stdout, in ASCII: any terminal and program takes it."""
    sys.stdout.write(to_json(value, ascii_only=True) + "\n")


def note(text: str, keep: str = "") -> None:
    """A line on stderr that is worth knowing; several, if line breaks are kept, as in words of ours.

    A name of others with a line break would else begin a line of its own: a command for the workflow
    of a repository, or what looks like a message of ours.
    """
    _say_on_stderr("yellow", text, keep)


def fail(message: str, code: int, keep: str = "") -> NoReturn:
    """Say what is wrong on stderr, as `note` does, and exit."""
    _say_on_stderr("red", message, keep)
    raise typer.Exit(code)


def _say_on_stderr(colour: str, text: str, keep: str) -> None:
    # Messages quote the user's data, which must not be taken for markup, nor wrapped mid-path.
    head = f"[{colour}]bilevel:[/{colour}]"
    try:
        err.print(head, shown(text, keep), highlight=False, soft_wrap=True)
    except MemoryError:  # which may be what is to be said
        os.write(2, f"bilevel: {visible(text, keep)}\n".encode(errors="backslashreplace"))


HIDDEN = (
    "with --private no message quotes your data. Run it without --private where its messages may be "
    "seen, to read what is meant."
)


@contextlib.contextmanager
def owner_only(private: bool) -> Iterator[None]:
    """In private mode, what is written inside can be read by its owner alone (0600, 0700)."""
    before = os.umask(0o077) if private else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)


@contextlib.contextmanager
def failures(
    interrupted: Callable[[], str] | None = None, *, private: bool = False
) -> Iterator[None]:
    """Turn the library's errors into messages and exit codes.

    In private mode no message and no warning is shown, as they quote what is in the tables, and what
    is written can be read by its owner alone.
    """
    from ..reweighting._inputs.checks import InputError

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        note(f"a warning was given; {HIDDEN}" if private else " ".join(str(message).split()))

    stop.hint = interrupted or ((lambda: "interrupted") if private else stop.hint)
    try:
        with warnings.catch_warnings(), owner_only(private):
            warnings.showwarning = show
            yield
    except KeyboardInterrupt:
        stop.said = True
        fail(stop.hint(), stop.code, "\n")
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        if (
            stop.signal is not None
        ):  # compiled code turned the interruption into an error of its own
            stop.said = True
            fail(stop.hint(), stop.code, "\n")
        if private:
            codes = {RunFolderError: USAGE, InputError: BAD_INPUT, LostProcessError: LOST}
            code = codes.get(type(error), FAILURE)
            fail(f"{_SAID[code]}; {HIDDEN}", code)
        if isinstance(error, RunFolderError):
            fail(str(error), USAGE)
        if isinstance(error, InputError):
            fail(str(error), BAD_INPUT)
        if isinstance(error, LostProcessError):
            fail(f"{error}\n{stop.hint()}", LOST, "\n")
        if isinstance(error, OSError):
            fail(str(error), FAILURE)
        if is_of_memory(error):
            fail(
                f"there is too little memory: {str(error)[:300] or 'an allocation failed'}", FAILURE
            )
        if isinstance(error, SystemError):  # compiled code returned an error and named none
            fail(
                f"compiled code of a library failed and gave no reason ({error}), as it does where "
                "an allocation fails: perhaps there is too little memory",
                FAILURE,
            )
        if isinstance(error, RuntimeError):
            from .._solution import BilevelError  # which imports JAX

            if isinstance(error, BilevelError):
                fail(str(error), FAILURE, "\n")
        raise


# What JAX, the loader of libraries, and those who start threads say of a failed allocation.
_TOO_LITTLE = re.compile(
    "RESOURCE_EXHAUSTED|failed to map segment|annot allocate|start new thread|launch worker thread"
)


def is_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or one that it was raised from or after, is of too little memory."""
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, MemoryError) or _TOO_LITTLE.search(str(one)):
            return True
        seen.add(id(one))
        left += [one.__cause__, one.__context__]  # JAX gives errors a cause of its own
    return False


_SAID = {
    USAGE: "the output folder cannot be used",
    BAD_INPUT: "the data cannot be used",
    FAILURE: "it failed",
    LOST: "another process of the run was lost",
}


def _refusal(message: str) -> typer.BadParameter:
    """Of a configuration file, which somebody else may have written."""
    return typer.BadParameter(visible(message))


def _load(context: typer.Context, path: Path | None) -> Path | None:
    """The file's values become the defaults of the command's options."""
    private = is_asked_for_privacy() or _is_private(path)  # options are read after the file
    try:
        found = None if path is None else _read_defaults(context, path)
        if private:  # what an option cannot be is otherwise said later, with the value
            given = context.default_map or {}
            for param in context.command.params:
                if str(param.name) in given:
                    param.process_value(context, given[str(param.name)])
    except typer.BadParameter as error:
        if private:
            raise typer.BadParameter(f"the file cannot be used; {HIDDEN}") from error
        raise
    return found


def _is_private(path: Path | None) -> bool:
    """Whether a configuration file asks for privacy, though it may be none that can be read."""
    try:
        content = b"" if path is None else _content(path)
    except (OSError, typer.BadParameter):
        return False
    return re.search(rb"(?m)^\s*[\"']?private[\"']?\s*=\s*true\b", content) is not None


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LARGEST_CONFIG + 1)
    if len(content) > LARGEST_CONFIG:
        raise _refusal(f"{path} has more than {LARGEST_CONFIG} bytes.")
    return content


def parse_toml(content: bytes) -> dict[str, Any]:
    """What a file of settings holds.

    Raises:
        ValueError: it is no TOML in UTF-8, is nested too deeply, or has numbers too long to read.
    """
    try:
        return tomllib.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _read_defaults(context: typer.Context, path: Path) -> Path:
    try:
        values = parse_toml(_content(path))
    except OSError as error:
        raise _refusal(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise _refusal(f"{path} is not TOML: {error}.") from error
    values.pop("sha256", None)  # a run folder's config.toml notes the digests of its inputs
    known = {str(p.name) for p in context.command.params} - {"config"} - SAID_ALOUD - PLACES
    names = {key: {"json": "json_"}.get(key, key).replace("-", "_") for key in values}
    if said_aloud := sorted(SAID_ALOUD & set(names.values())):
        option = "--" + said_aloud[0].replace("_", "-")
        raise _refusal(
            f"{path} sets {said_aloud[0]}, which no file can: if you trust the code, say "
            f"{option} on the command line."
        )
    unknown = sorted(key for key in names if names[key] not in known)
    settings: dict[str, Any] = {names[key]: value for key, value in values.items()}
    if unknown:
        raise _refusal(
            f"{path} sets {', '.join(unknown)}, which `{context.command.name}` does not have; it has "
            f"{', '.join(sorted(name.rstrip('_') for name in known))}."
        )
    lists = {p.name for p in context.command.params if getattr(p, "multiple", False)}
    for name in lists & settings.keys():
        values = settings[name] if isinstance(settings[name], list) else [settings[name]]
        if not all(isinstance(value, str) for value in values):
            option = "--" + name.replace("_", "-")
            raise _refusal(
                f"Invalid value for '{option}' in {path}: {settings[name]!r} is no text."
            )
    one = {k: [v] for k, v in settings.items() if k in lists and isinstance(v, str)}
    context.default_map = {**(context.default_map or {}), **settings, **one}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        callback=_load,
        is_eager=True,
        help="TOML file whose keys are the names of these options; the command line wins.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]
Private = Annotated[
    bool,
    typer.Option(
        "--private",
        help="No value, id, group, column, class or file name goes to any file or to the terminal.",
    ),
]
Train = Annotated[Path, typer.Argument(help="Training rows: CSV or Parquet.")]
Out = Annotated[Path, typer.Option(help="Folder to write; must not exist.")]
Id = Annotated[str | None, typer.Option(help="Column with the rows' ids (not a feature).")]
Drop = Annotated[
    list[str] | None, typer.Option(help="Column to leave out; may be given several times.")
]
