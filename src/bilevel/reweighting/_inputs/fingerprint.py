"""What a run folder remembers of the data and settings it was made from."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np


def fingerprint(settings: Any, arrays: Iterable[Any]) -> str:
    """A digest of the data as the run sees them and of what a checkpoint itself cannot tell."""
    digest = hashlib.sha256(eqx.tree_pformat(settings, short_arrays=False).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_fingerprint(folder: Path, digest: str) -> None:
    """Write the digest to a folder that has none.

    Raises:
        ValueError: the folder has another one.
    """
    path = folder / "fingerprint"
    if not path.exists():
        path.write_text(digest)
    elif path.read_text() != digest:
        raise ValueError(
            f"`folder` {folder} holds the checkpoint of a run on other data or with "
            "other settings. Repeat that call to go on with it, or pass another folder."
        )
