"""`Checkpoint`: the state of a run on the disk, of one process or of several."""

import importlib
import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices

from ._algorithm.base import State
from ._callback import AbstractCallback
from ._content import content_sums, spans
from ._fingerprint import fingerprint
from ._storage import CHECKPOINT_KIND, DamagedFileError, open_sealed, write_sealed

_OURS = re.compile(r"[01](\.orbax-checkpoint-tmp.*)?")  # the entries of a folder of arrays


class Checkpoint(AbstractCallback):
    """Saves the state after every chunk, such that a complete one is on the disk at any moment.

    A new state is written to a temporary file beside the old one, flushed to the disk and renamed
    over it, so an interruption leaves the last complete state. The file carries its own checksum, and
    a digest of the problem (its data too) and of the algorithm (its step sizes too).

    **Several processes.** Where an array of the state is split among the processes of
    `jax.distributed`, each writes its own part, by orbax (`pip install 'bilevel[processes]'`), into
    the folder `path` + ".arrays", which all have to see. The file is written last, by process 0: it
    is what makes the new state the one that counts, and it holds sums over all entries of each array.
    Every process calls `save` and `load`. Another number of processes, or one, can go on.

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
        """Write `state`, and the digest of what it belongs to.

        Raises:
            ImportError: an array is split among processes, and orbax is not installed.
            FileExistsError: the folder of the arrays holds something else.
        """
        plain = _unwrap_keys(state)
        header = {
            "step": int(state.step),
            "run": self._digest_of(problem, algorithm),
            "leaves": _shapes(plain),
            "versions": {"jax": jax.__version__, "equinox": eqx.__version__},
        }
        if any(spans(leaf) for leaf in jax.tree.leaves(plain)):
            _save_together(self._path, header, jax.tree.leaves(plain))
            return
        content = io.BytesIO()
        eqx.tree_serialise_leaves(content, plain)
        write_sealed(self._path, CHECKPOINT_KIND, header, content.getvalue())
        _remove_arrays(_folder_of(self._path), but=None)  # of several processes, before

    def load(self, like: State, problem: Any = None, algorithm: Any = None) -> State:
        """The saved state.

        Args:
            like: a state of the same algorithm and problem; its structure is used, and how its arrays
                are split among devices.
            problem, algorithm: what the run goes on with. They are compared with those that the
                state was saved with: objectives, data, and settings such as step sizes. Without
                them, only the number, the shapes and the dtypes of the state's arrays are.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file was cut short or has changed (a `DamagedFileError`), or it holds the
                state of another run.
            ImportError: several processes wrote it, and orbax is not installed.
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
        if "arrays" in header:
            saved = _load_together(self._path, header, plain)
        else:
            try:
                saved = eqx.tree_deserialise_leaves(content, _on_host(plain))
            except Exception as error:  # an array of another version of numpy or equinox
                raise DamagedFileError(
                    f"the checkpoint {self._path} cannot be read: {error}. It was written with "
                    f"{header.get('versions')}."
                ) from error
            saved = jax.tree.map(_placed, plain, saved)
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


def _save_together(path: Path, header: dict[str, Any], leaves: list[Any]) -> None:
    """Each process writes its part of the arrays; then process 0 writes the file.

    The arrays go to that one of the two places `0` and `1` that the file does not name.
    """
    orbax = _orbax()
    folder = _folder_of(path)
    place, foreign = 0, False
    if jax.process_index() == 0:
        place = 1 - _place_in_use(path)
        foreign = bool(_foreign(folder))
    # All processes have to do the same.
    place, foreign = broadcast_one_to_all(np.array([place, foreign], np.int32))
    if foreign:
        raise FileExistsError(
            f"{folder} is where the processes write the arrays of the checkpoint {path}, and it holds "
            "something else. Move that, or give `Checkpoint` another path."
        )
    # What each process has by itself, such as a number, is the same on all of them.
    arrays = {str(k): x if spans(x) else np.asarray(x) for k, x in enumerate(leaves)}
    header |= {"arrays": f"{folder.name}/{place}", "sums": content_sums(leaves)}
    with _checkpointer(orbax) as writer:
        item = orbax.args.StandardSave(arrays)
        writer.save((folder / str(place)).absolute(), args=item, force=True)
    if jax.process_index() == 0:
        write_sealed(path, CHECKPOINT_KIND, header, b"")
        _remove_arrays(folder, but=str(place))
    sync_global_devices("a bilevel checkpoint was written")


def _load_together(path: Path, header: dict[str, Any], plain: Any) -> Any:
    """What `_save_together` wrote, split as `plain` is."""
    orbax = _orbax()
    folder = path.parent / header["arrays"]
    if not folder.is_dir():
        raise DamagedFileError(
            f"the checkpoint {path} cannot be used: several processes wrote it, and the folder "
            f"{folder} with their arrays is missing. Bring both to the same place, or start anew."
        )
    leaves, structure = jax.tree.flatten(plain)
    wanted = {str(k): _described(leaf) for k, leaf in enumerate(leaves)}
    try:
        with _checkpointer(orbax) as reader:
            item = orbax.args.StandardRestore(wanted)
            found = reader.restore(folder.absolute(), args=item)
        found = [found[name] for name in wanted]
    except Exception as error:  # of as many kinds as orbax has ways to read
        raise DamagedFileError(
            f"the checkpoint {path} cannot be read: {error}. It was written with "
            f"{header.get('versions')}."
        ) from error
    if content_sums(found) != header.get("sums"):
        raise DamagedFileError(
            f"the checkpoint {path} cannot be used: the arrays in {folder} have changed since they "
            "were written. Remove both and start anew, or bring back a copy."
        )
    return jax.tree.map(_placed, plain, jax.tree.unflatten(structure, found))


def _orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            "an array of this state is split among processes, and orbax, which writes and reads such "
            "ones, is not installed: `pip install 'bilevel[processes]'`."
        ) from error


def _checkpointer(orbax: Any) -> Any:
    return orbax.Checkpointer(orbax.StandardCheckpointHandler())


def _folder_of(path: Path) -> Path:
    return path.with_name(path.name + ".arrays")


def _place_in_use(path: Path) -> int:
    """Which of the two places the file names; 1 if none."""
    try:
        header, _ = open_sealed(path, CHECKPOINT_KIND)
    except (FileNotFoundError, DamagedFileError):
        return 1
    return int(str(header.get("arrays", "/1")).rpartition("/")[2])


def _foreign(folder: Path) -> list[str]:
    """What lies where the arrays go and is none."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        return [folder.name]
    return [entry.name for entry in folder.iterdir() if not _OURS.fullmatch(entry.name)]


def _remove_arrays(folder: Path, but: str | None) -> None:
    """What no file names any more."""
    if not folder.is_dir() or _foreign(folder):
        return
    for entry in folder.iterdir():
        if entry.name != but:
            shutil.rmtree(entry, ignore_errors=True)
    if but is None:
        folder.rmdir()


def _described(leaf: Any) -> Any:
    """How orbax is to bring back a leaf: split as it is, or on the host."""
    if _is_placed(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.empty(leaf.shape, leaf.dtype)


def _is_placed(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.committed


def _placed(old: Any, new: Any) -> Any:
    """The array on the devices that hold `old`; an array that JAX placed by itself, as JAX does."""
    if not isinstance(old, jax.Array) or isinstance(new, jax.Array):
        return new
    if not old.committed:
        return jnp.asarray(new)
    return jax.make_array_from_callback(old.shape, old.sharding, lambda part: new[part])


def _on_host(tree: Any) -> Any:
    """The same structure, whose arrays are read without a device."""
    return jax.tree.map(
        lambda x: np.empty(x.shape, x.dtype) if isinstance(x, jax.Array) else x, tree
    )


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
