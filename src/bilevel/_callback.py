"""What may happen between two chunks of a run: show, log, save, stop."""

import abc
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._algorithm.base import State
from ._fingerprint import fingerprint
from ._storage import (
    CHECKPOINT_KIND,
    DamagedFileError,
    flush,
    open_log,
    open_sealed,
    write_sealed,
)


class Chunk(NamedTuple):
    """What a callback is given after each chunk.

    `rows` are the chunk's trace points, as a dict of equally long numpy arrays (the columns of
    `Solution.trace`); it is empty arrays if the chunk had none. `state` is only lent: the next
    chunk overwrites its memory, so copy what is to be kept. `problem` and `algorithm` are those that
    `solve` was given.
    """

    step: int
    num_steps: int
    state: State
    rows: Mapping[str, np.ndarray]
    problem: Any = None
    algorithm: Any = None


class AbstractCallback(abc.ABC):
    """Called on the host after every chunk; returning True ends the run."""

    @abc.abstractmethod
    def __call__(self, chunk: Chunk) -> bool | None:
        """Look at the chunk; return True to stop."""

    def close(self) -> None:
        """Called once when the run ends, however it ends. Nothing by default."""
        return


class ProgressBar(AbstractCallback):
    """A progress bar on stderr with the latest outer value and residuals.

    Args:
        description: the text before the bar.
    """

    def __init__(self, description: str = "outer steps"):
        self._description = description
        self._progress: Any = None

    def __call__(self, chunk):
        """Advance the bar."""
        if self._progress is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[latest]}"),
                console=Console(stderr=True),
            )
            self._progress.start()
            self._task = self._progress.add_task(
                self._description, total=chunk.num_steps, latest=""
            )
        rows, fields = chunk.rows, {}
        if len(rows["step"]):
            fields["latest"] = (
                f"F {rows['outer_value'][-1]:.4g}  residuals "
                f"{rows['outer_residual'][-1]:.1e} / {rows['inner_residual'][-1]:.1e} / "
                f"{rows['linear_residual'][-1]:.1e}"
            )
        self._progress.update(self._task, completed=chunk.step, **fields)

    def close(self):
        """Leave the finished bar on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Logger(AbstractCallback):
    """Appends the trace to a file, with one JSON object per line.

    Args:
        path: the file. Lines already in it are kept, except those at or after the step where this
            run starts: a resumed run overwrites what its interrupted predecessor wrote past its
            last checkpoint. Read it with `pandas.read_json(path, lines=True)`.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._file: IO[str] | None = None

    def __call__(self, chunk):
        """Append the chunk's rows."""
        lines = rows_to_json(chunk.rows)
        if self._file is None and lines:
            first = int(chunk.rows["step"][0])
            kept = [x for x in read_lines(self._path) if json.loads(x)["step"] < first]
            self._file = open_log(self._path, "".join(line + "\n" for line in kept))
        if self._file is not None:
            self._file.writelines(line + "\n" for line in lines)
            self._file.flush()

    def sync(self) -> None:
        """Wait until every line is on the disk, so that it survives a loss of power too."""
        if self._file is not None:
            flush(self._file)

    def close(self):
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def rows_to_json(rows: Mapping[str, np.ndarray]) -> list[str]:
    """The rows of a trace as JSON objects."""
    columns = {name: column.tolist() for name, column in rows.items()}
    return [
        json.dumps(dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]


def read_lines(path: Path) -> list[str]:
    """The complete lines of a file; none if it does not exist."""
    # What follows the last newline was cut short by an interruption.
    return path.read_text().split("\n")[:-1] if path.exists() else []


class StopWhen(AbstractCallback):
    """Ends the run when a condition holds.

    Args:
        condition: takes a `Chunk`, returns True to stop.
    """

    def __init__(self, condition: Callable[[Chunk], bool]):
        self._condition = condition

    def __call__(self, chunk):
        """Ask the condition."""
        return bool(self._condition(chunk))


class Checkpoint(AbstractCallback):
    """Saves the state after every chunk, in one file that is always complete.

    A new state is written to a temporary file beside it, flushed to the disk and renamed over the
    old one, so an interruption at any moment leaves the last complete state. The file carries its own
    checksum, and a digest of the problem (its data too) and of the algorithm (its step sizes too).

    Args:
        path: the file. `solve(..., chunk_size=)` decides how often it is written.

    To go on: `like = algorithm.init(problem, u0, w0, key)`, then
    `solve(..., state=Checkpoint(path).load(like, problem, algorithm))`. Where u0 or w0 has
    a module or arrays of several dtypes, the state is that of `as_arrays`:
    `given = as_arrays(problem, u0, w0)` and `algorithm.init(given.problem, given.u, given.w, key)`.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._digest: tuple[Any, Any, str | None] = (None, None, None)

    def __call__(self, chunk):
        """Save the state."""
        self.save(chunk.state, chunk.problem, chunk.algorithm)

    def save(self, state: State, problem: Any = None, algorithm: Any = None) -> None:
        """Write `state`, and the digest of what it belongs to."""
        content = io.BytesIO()
        plain = _unwrap_keys(state)
        eqx.tree_serialise_leaves(content, plain)
        header = {
            "step": int(state.step),
            "run": self._digest_of(problem, algorithm),
            "leaves": _shapes(plain),
            "versions": {"jax": jax.__version__, "equinox": eqx.__version__},
        }
        write_sealed(self._path, CHECKPOINT_KIND, header, content.getvalue())

    def load(self, like: State, problem: Any = None, algorithm: Any = None) -> State:
        """The saved state.

        Args:
            like: a state of the same algorithm and problem; only its structure is used.
            problem, algorithm: what the run goes on with. They are compared with those that the
                state was saved with: objectives, data, and settings such as step sizes. Without
                them, only the number, the shapes and the dtypes of the state's arrays are.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file was cut short or has changed (a `DamagedFileError`), or it holds the
                state of another run.
        """
        try:
            header, content = open_sealed(self._path, CHECKPOINT_KIND)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"the checkpoint {self._path} cannot be used: {error}. Remove it and start anew, or "
                "bring back a copy."
            ) from error
        plain = _unwrap_keys(like)
        if header.get("leaves") != _shapes(plain):
            raise ValueError(
                f"the checkpoint {self._path} does not fit this run: it was saved by another "
                "algorithm, for data of another size, or in another dtype. Start anew with another "
                "file, or repeat the call that made it."
            )
        if problem is not None and header.get("run") != self._digest_of(problem, algorithm):
            raise ValueError(
                f"the checkpoint {self._path} does not fit this run: it was saved on other data or "
                "with other settings (objectives, step sizes, batches). Repeat the call that made it, "
                "or start anew with another file."
            )
        try:
            saved = eqx.tree_deserialise_leaves(content, plain)
        except Exception as error:  # an array of another version of numpy or equinox
            raise DamagedFileError(
                f"the checkpoint {self._path} cannot be read: {error}. It was written with "
                f"{header.get('versions')}."
            ) from error
        return jax.tree.map(
            lambda old, new: (
                jax.random.wrap_key_data(new, impl=jax.random.key_impl(old))
                if _is_key(old)
                else new
            ),
            like,
            saved,
        )

    def _digest_of(self, problem: Any, algorithm: Any) -> str | None:
        if problem is None:
            return None
        if self._digest[0] is not problem or self._digest[1] is not algorithm:
            self._digest = problem, algorithm, fingerprint(problem, algorithm)
        return self._digest[2]


def _shapes(tree: Any) -> list[list[Any]]:
    """Dtype and shape of each leaf."""
    leaves = jax.tree.leaves(tree)
    return [
        [str(x.dtype), list(x.shape)] if eqx.is_array(x) else [type(x).__name__] for x in leaves
    ]


def _is_key(leaf: Any) -> bool:
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _unwrap_keys(tree: Any) -> Any:
    # Typed keys do not serialise; their raw data do.
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)
