"""What all commands share: the application, consoles, exit codes, errors, configuration files."""

import contextlib
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

OK, FAILURE, USAGE, BAD_INPUT, NOT_BELIEVABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130

app = typer.Typer(
    help="Learn what training data is worth, and whether to believe it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(), Console(stderr=True)


SAID_ALOUD = {"allow_code"}  # options that run code, which no configuration file may set


class RunFolderError(ValueError):
    """The output folder cannot be used; nothing was written."""


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong on stderr, and exit."""
    # Messages quote the user's data, which must not be taken for markup, nor wrapped mid-path.
    err.print("[red]bilevel:[/red]", escape(message), highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def failures(interrupted: Callable[[], str] = lambda: "interrupted") -> Iterator[None]:
    """Turn the library's errors into messages and exit codes."""
    from ..reweighting._inputs.checks import InputError

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        err.print(
            "[yellow]bilevel:[/yellow]", escape(str(message)), highlight=False, soft_wrap=True
        )

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    except RunFolderError as error:
        fail(str(error), USAGE)
    except KeyboardInterrupt:
        fail(interrupted(), INTERRUPTED)
    except InputError as error:
        fail(str(error), BAD_INPUT)
    except OSError as error:
        fail(str(error), FAILURE)
    except RuntimeError as error:
        from .._solution import BilevelError  # which imports JAX

        if not isinstance(error, BilevelError):
            raise
        fail(str(error), FAILURE)


def _load(context: typer.Context, path: Path | None) -> Path | None:
    """The file's values become the defaults of the command's options."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} is not TOML: {error}.") from error
    values.pop("sha256", None)  # a run folder's config.toml notes the digests of its inputs
    known = {str(p.name) for p in context.command.params} - {"config"} - SAID_ALOUD
    names = {key: {"json": "json_"}.get(key, key).replace("-", "_") for key in values}
    if said_aloud := sorted(SAID_ALOUD & set(names.values())):
        option = "--" + said_aloud[0].replace("_", "-")
        raise typer.BadParameter(
            f"{path} sets {said_aloud[0]}, which no file can: if you trust the code, say "
            f"{option} on the command line."
        )
    unknown = sorted(key for key in names if names[key] not in known)
    settings: dict[str, Any] = {names[key]: value for key, value in values.items()}
    if unknown:
        raise typer.BadParameter(
            f"{path} sets {', '.join(unknown)}, which `{context.command.name}` does not have; it has "
            f"{', '.join(sorted(name.rstrip('_') for name in known))}."
        )
    context.default_map = {**(context.default_map or {}), **settings}
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
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]
