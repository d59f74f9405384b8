"""The command line: `bilevel weigh` and the commands beside it.

The modules `_x` hold the options of the commands and import nothing heavy; what a command does is in
`_x_work`, which is imported when it runs.
"""

import io
import os
import sys
from typing import Any

import typer

from ._annotate import collect, export
from ._apart import run_apart
from ._app import FAILURE, HIDDEN, OK, USAGE, RunFolderError, app, is_of_memory, note, stop
from ._audit import audit
from ._commands import report, score, suggest
from ._consensus import consensus
from ._demo import bench, demo
from ._fix import fix
from ._multilabel import multilabel
from ._signals import is_asked_for_privacy, stoppable
from ._weigh import weigh

__all__ = [
    "RunFolderError",
    "app",
    "audit",
    "bench",
    "collect",
    "consensus",
    "demo",
    "export",
    "fix",
    "main",
    "multilabel",
    "report",
    "score",
    "suggest",
    "weigh",
]

_UsageError: Any = typer.BadParameter.__base__  # which typer does not name

for command in (
    weigh,
    demo,
    audit,
    fix,
    consensus,
    multilabel,
    score,
    suggest,
    report,
    export,
    collect,
    bench,
):
    app.command()(command)


def main() -> None:
    """The entry point of the `bilevel` command."""
    try:
        _main()
    except KeyboardInterrupt:  # as the handlers of signals were set, or as the command ended
        if not stop.said:
            note(stop.hint(), "\n")
        sys.exit(stop.code)


def _main() -> None:
    _open_streams()
    if os.environ.get("COLUMNS", "1").strip("0") == "":  # nothing would be printed
        del os.environ["COLUMNS"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale, text can be written
            stream.reconfigure(errors="backslashreplace")
    run_apart()
    with stoppable(stop):
        try:
            run_app()
        except SystemExit as ended:
            code = stop.code if stop.signal is not None else ended.code
        except KeyboardInterrupt:  # outside of a command's work
            code = stop.code
        except OSError as error:
            code = _unprinted(error)
        except Exception as error:  # before the command's work has begun
            if not is_of_memory(error):
                raise
            note(f"there is too little memory: {error}")
            code = FAILURE
        else:
            code = OK
        try:
            sys.stdout.flush()
        except OSError as error:
            code = _unprinted(error)
        if stop.signal is not None and not stop.said:
            note(stop.hint(), "\n")
        sys.exit(code)


def run_app() -> None:
    """Run the command; with --private no message on how it is called quotes what was given.

    Raises:
        SystemExit: as typer does at the end of a command.
    """
    if not is_asked_for_privacy():
        app()
        return
    try:
        code = app(standalone_mode=False)
    except _UsageError as error:
        given = [
            word.partition("=")[2] if word[:2] == "--" else word[2:] if word[:1] == "-" else word
            for word in sys.argv[2:]
        ]
        if any(word and word in error.format_message() for word in given):
            note(f"the command is not called rightly (bilevel {sys.argv[1]} --help); {HIDDEN}")
        else:
            error.show()
        sys.exit(USAGE)
    sys.exit(code)


def _open_streams() -> None:
    """Streams that the caller has closed lead nowhere, and no file gets their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(number, True)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _unprinted(error: OSError) -> int:
    """Say on stderr that stdout is full or closed: the work itself is done and its files are whole.

    Of a command that was stopped, the terminal may be closed, and nothing is said.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if stop.signal is not None:
        os.dup2(nowhere, 2)
        return stop.code
    note(f"the output cannot be printed ({error.strerror}); files that were written are complete.")
    return FAILURE
