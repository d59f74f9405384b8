"""What a command says of errors that are not its own, in place of a traceback."""

import pytest
import typer

from bilevel.cli._app import FAILURE, failures


def in_the_course_of(before: Exception, error: Exception) -> Exception:
    error.__context__ = before
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
        RuntimeError("can't start new thread"),
        in_the_course_of(MemoryError(), TypeError("() takes 1 positional argument")),
        SystemError("error return without exception set"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_told_in_words(error, capsys):
    with pytest.raises(typer.Exit) as ended, failures():
        raise error
    assert ended.value.exit_code == FAILURE
    assert "too little memory" in " ".join(capsys.readouterr().err.split())


def test_an_error_of_the_program_keeps_its_traceback():
    with pytest.raises(TypeError, match="a fault"), failures():
        raise TypeError("a fault")
