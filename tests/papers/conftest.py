"""The scripts of `papers/`, imported as they run."""

import importlib
import sys
from pathlib import Path

import jax
import pytest

PAPERS = Path(__file__).parents[2] / "papers"


@pytest.fixture
def script(monkeypatch):
    """Imports a script by its name; jax has the promotion that scripts are written for."""
    folders = [PAPERS, *(folder for folder in PAPERS.iterdir() if folder.is_dir())]
    monkeypatch.setattr(sys, "path", [*map(str, folders), *sys.path])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield importlib.import_module
