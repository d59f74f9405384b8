"""Archives that somebody else may have made: looked at before they are read; nothing is unpickled."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..._storage import DamagedFileError

LARGEST_SCHEMA = 1 << 26  # bytes of the description of a model
LARGEST_INNER = 1 << 28  # bytes of an archive within the archive, unpacked
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more bytes than it has, or whose arrays lie about their size.

    Ours are not compressed, so that reading one never takes more than its size.

    Raises:
        DamagedFileError: with what is wrong.
    """
    if not path.is_file():
        raise DamagedFileError("it is no file")
    try:
        with zipfile.ZipFile(path) as archive:
            _check(archive, path.stat().st_size)
    except DamagedFileError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds for bytes that are no archive
        raise DamagedFileError(str(error)) from error


def _check(archive: zipfile.ZipFile, at_most: int) -> None:
    members = archive.infolist()
    declared = sum(member.file_size for member in members)
    if declared > at_most:
        raise DamagedFileError(f"it unpacks to {declared} bytes, more than {at_most}")
    if len({member.filename for member in members}) < len(members):
        raise DamagedFileError("it has two files of one name")
    for member in members:
        if member.filename == "schema.json" and member.file_size > LARGEST_SCHEMA:
            raise DamagedFileError(f"its description has {member.file_size} bytes")
        with archive.open(member) as file:
            if member.filename.endswith(".npy"):
                _check_array(file, member)
            elif member.filename.endswith(".npz"):
                with zipfile.ZipFile(file) as inner:
                    _check(inner, LARGEST_INNER)


def _check_array(file: Any, member: zipfile.ZipInfo) -> None:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise DamagedFileError(f"the array {member.filename} is of the format {version}")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise DamagedFileError(f"the array {member.filename} holds objects")
    size = file.tell() + math.prod(shape) * dtype.itemsize
    if size != member.file_size or min(shape, default=0) < 0:
        raise DamagedFileError(
            f"the array {member.filename} of shape {shape} is not of the size of its content"
        )
