"""Omniglot: characters of fifty alphabets, each drawn by twenty people."""

import os
import re
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Literal

from ._fetch import ensure
from ._images import ImageFile, ImagesOfClasses, check_counts, check_size, decode
from ._sources import OMNIGLOT

_CHARACTERS = {"background": 964, "evaluation": 659}  # of 30 and 20 alphabets
_DRAWERS = 20  # images a character
_SIZE = (105, 105)
_MAX_BYTES = 1 << 20  # of one image; the published ones have some hundred


def omniglot(
    split: Literal["background", "evaluation"],
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = False,
    size: int | None = None,
    complete: bool = True,
) -> ImagesOfClasses:
    """Handwritten characters, twenty drawings of each: the data of few-shot classification.

    "background" has 964 characters of 30 alphabets, "evaluation" 659 characters of 20 others. The
    files are `images_background.zip` and `images_evaluation.zip`, which are read as they are, or
    the folders unpacked from them: `images_background/ALPHABET/characterNN/NNNN_NN.png`. They are
    looked for in `folder`, then in the sub-folder `omniglot` of the folder that the environment
    variable `BILEVEL_DATA` names, then where `fetch` puts them. Nothing is downloaded without
    `download=True`. Needs Pillow.

    Rows are sorted by alphabet, character and file name, so the twenty rows of a character are its
    drawers 1 to 20.

    Args:
        split: "background" or "evaluation".
        folder: the folder that holds the zip file or the folder of the split, or that folder
            itself.
        download: let `fetch` download what is missing.
        size: the side to which images are resized, by Lanczos' filter (28 is customary); None
            keeps 105.
        complete: require all characters with twenty drawings each; False reads what is there.

    Returns:
        `ImagesOfClasses(images, labels, classes)`: uint8 (n, size, size) as in the files, where the
        background is 255 and ink is 0 (MNIST has it the other way round); int64 (n,);
        `classes[label]` is "ALPHABET/characterNN".

    Raises:
        FileNotFoundError: no place holds the split; the message says where to get it.
        OSError: `fetch` could not download it.
        ImportError: Pillow is not installed.
        ValueError: `split` is unknown; a file is truncated, damaged, or has not 105 x 105 pixels;
            characters or drawings are missing; `size` is below 1.

    Source: Lake, Salakhutdinov and Tenenbaum (2015), "Human-level concept learning through
    probabilistic program induction" [lake2015][]; layout: https://github.com/brendenlake/omniglot.

    Example (skipped where the data is absent):
        >>> images, labels, classes = omniglot("evaluation", size=28)  # doctest: +SKIP
        >>> images.shape, len(classes)  # doctest: +SKIP
        ((13180, 28, 28), 659)
    """
    check_size(size)
    again = f"The files can be had from {OMNIGLOT.sources}."
    itself = folder is not None and Path(folder).name == f"images_{split}"
    place = Path(folder).parent if itself and folder is not None else folder
    (path,) = OMNIGLOT.locate(split, ensure(OMNIGLOT, split, place, download))
    if path.is_dir():
        files = _in_folder(path)
        return _decode(files, split, path, size, complete, again)
    try:
        with zipfile.ZipFile(path) as archive:
            files = _in_zip(archive, path, split)
            return _decode(files, split, path, size, complete, again)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{path}: truncated, damaged or not a zip file ({error}). {again}"
        ) from error


def _decode(
    files: list[ImageFile], split: str, path: Path, size: int | None, complete: bool, again: str
) -> ImagesOfClasses:
    files = sorted(files, key=lambda file: (file.label, file.name))
    counts = Counter(file.label for file in files)
    if complete:
        check_counts(list(counts.items()), _DRAWERS, str(path), again)
    if not counts or (complete and len(counts) != _CHARACTERS[split]):
        other = next((s for s, n in _CHARACTERS.items() if n == len(counts) and s != split), None)
        raise ValueError(
            f"{path}: expected the {_CHARACTERS[split]} characters of {split!r}, as "
            f"ALPHABET/characterNN/NNNN_NN.png; found {len(counts)}"
            + (f", as many as {other!r} has: is it that one renamed? " if other else ". ")
            + again
        )
    return decode(files, "L", size, _SIZE, again)


def _in_folder(path: Path) -> list[ImageFile]:
    return [
        ImageFile(f"{file.parent.parent.name}/{file.parent.name}", str(file), file.read_bytes)
        for file in path.glob("*/*/*.png")
        if not file.name.startswith(".")
    ]


def _in_zip(archive: zipfile.ZipFile, path: Path, split: str) -> list[ImageFile]:
    pattern = re.compile(rf"images_{split}/([^/]+/[^/]+)/[^/.][^/]*\.png")
    files = []
    for member in archive.infolist():
        if match := pattern.fullmatch(member.filename):
            if member.file_size > _MAX_BYTES:
                raise ValueError(
                    f"{path}: {member.filename} has {member.file_size} bytes, expected at most "
                    f"{_MAX_BYTES}: this is not Omniglot."
                )

            def read(member: zipfile.ZipInfo = member) -> bytes:
                return archive.read(member)

            files.append(ImageFile(match[1], f"{path}: {member.filename}", read))
    return files
