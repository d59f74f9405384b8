"""Text and code that comes with Python, its packages and the system, as bytes."""

import glob
import gzip
import hashlib
import sysconfig
from pathlib import Path

import numpy as np

_PATHS = sysconfig.get_paths()
_PYTHON, _PACKAGES = _PATHS["stdlib"], _PATHS["purelib"]

# A source is where its files are; what is not there is left out.
SOURCES = {
    "Python": [f"{_PYTHON}/*.py", f"{_PYTHON}/[a-s]*/*.py"],
    "C headers": ["/usr/include/*.h", "/usr/include/*/*.h", f"{_PACKAGES}/**/*.h"],
    "Perl": ["/usr/share/perl/*/**/*.pm"],
    "JavaScript": [f"{_PACKAGES}/**/*.js"],
    "licences": ["/usr/share/common-licenses/*", f"{_PACKAGES}/*.dist-info/**/LICEN*"],
    "changelogs": ["/usr/share/doc/*/changelog*.gz"],
    "man pages": ["/usr/share/man/man[13578]/*.gz"],
    "German": ["/usr/share/man/de/*/*.gz"],
    "French": ["/usr/share/man/fr/*/*.gz"],
    "tables": [f"{_PACKAGES}/**/*.csv"],
}
TARGET = [
    f"{_PACKAGES}/*.dist-info/METADATA"
]  # what packages say of themselves, mostly in Markdown
SHUFFLED = "shuffled"  # the bytes of all other sources in random order
LONGEST = 50_000  # bytes that are taken of one file


def read(limit: int, smallest: int = 20_000) -> dict[str, np.ndarray]:
    """Up to `limit` bytes per source, in a fixed order of the files, and the shuffled source.

    Raises:
        FileNotFoundError: fewer than five sources have `smallest` bytes.
    """
    texts = {name: _read(patterns, limit) for name, patterns in SOURCES.items()}
    texts = {name: text for name, text in texts.items() if len(text) >= smallest}
    if len(texts) < 5:
        raise FileNotFoundError(
            f"only {sorted(texts)} have {smallest} bytes of text on this machine, and five sources "
            "are needed; install packages with sources, headers and licences."
        )
    every = np.concatenate(list(texts.values()))
    texts[SHUFFLED] = np.random.default_rng(0).permutation(every)[:limit]
    return texts


def size(name: str) -> int:
    """How many bytes of a source there are on this machine, compressed ones counted as they are."""
    if name == SHUFFLED:
        return max(size(other) for other in SOURCES)
    return sum(Path(f).stat().st_size for f in _files(SOURCES[name]))


def target(limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The target's trusted text and its test text, of other packages, `limit` bytes of each."""
    files = _files(TARGET)
    halves = files[::2], files[1::2]
    return tuple(_joined(half, limit) for half in halves)  # pyright: ignore[reportReturnType]


def _files(patterns: list[str]) -> list[str]:
    """The files in an order that does not depend on names, one of each content's name."""
    found = {f for pattern in patterns for f in glob.glob(pattern, recursive=True)}  # noqa: PTH207
    found = {f for f in found if Path(f).is_file() and not Path(f).is_symlink()}
    return sorted(found, key=lambda f: hashlib.sha256(Path(f).name.encode() + f.encode()).digest())


def _read(patterns: list[str], limit: int) -> np.ndarray:
    return _joined(_files(patterns), limit)


def _joined(files: list[str], limit: int) -> np.ndarray:
    parts: list[bytes] = []
    size = 0
    seen: set[bytes] = set()
    for name in files:
        try:
            with gzip.open(name) if name.endswith(".gz") else Path(name).open("rb") as file:
                content = file.read(LONGEST)
        except OSError:
            continue
        if name.endswith("METADATA"):
            content = content.partition(b"\n\n")[2]  # after the header
        digest = hashlib.sha256(content).digest()
        if digest in seen:  # the same licence in many packages
            continue
        seen.add(digest)
        parts.append(content + b"\n\n")
        size += len(parts[-1])
        if size >= limit:
            break
    return np.frombuffer(b"".join(parts)[:limit], np.uint8)
