"""MiniImageNet: a hundred classes of ImageNet, in the two layouts in which it is common."""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Literal

from ._images import SUFFIXES, ImageFile, ImagesOfClasses, check_counts, check_size, decode
from ._sources import MINI_IMAGENET

_CLASSES = {"train": 64, "val": 16, "test": 20}
_PER_CLASS = 600


def mini_imagenet(
    split: Literal["train", "val", "test"],
    *,
    folder: str | os.PathLike[str] | None = None,
    size: int | None = 84,
    complete: bool = True,
) -> ImagesOfClasses:
    """Photographs of 64 training, 16 validation and 20 test classes, 600 of each.

    Two layouts are read, JPEG or PNG:

        train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg
        train.csv, val.csv, test.csv, with the columns filename and label; images/*.jpg

    in `folder`, or in the sub-folder `mini-imagenet` of the folder that the environment variable
    `BILEVEL_DATA` names. It cannot be downloaded, because the terms of ImageNet forbid
    redistribution of its images. There are no checksums either, because everybody resizes the
    images again. Pillow is needed.

    Args:
        split: "train", "val" or "test".
        folder: the folder that holds the split; None means `BILEVEL_DATA`.
        size: the side of the square to which images are resized, by Lanczos' filter and without
            regard to their aspect; None keeps them, if all have the same size.
        complete: require all classes with 600 images each; False reads what is there, also another
            data set in one of the layouts.

    Returns:
        `ImagesOfClasses(images, labels, classes)`: uint8 (n, size, size, 3), red, green and blue
        (813 MB for "train"); int64 (n,); `classes[label]` is the class's folder or label. Classes
        are in the order of their names, images in that of their names (folders) or of the list.

    Raises:
        FileNotFoundError: no place holds the split; the message says where to get it.
        ImportError: Pillow is not installed.
        ValueError: `split` is unknown; an image is missing, truncated or damaged, or of another
            size; classes or images are missing; a list has other columns; `size` is below 1.

    Source: Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra (2016), "Matching networks for
    one shot learning" [vinyals2016][]; the split: Ravi and Larochelle (2017), "Optimization as a
    model for few-shot learning" [ravi2017][].

    Example (skipped where the data is absent):
        >>> mini_imagenet("val").images.shape  # doctest: +SKIP
        (9600, 84, 84, 3)
    """
    check_size(size)
    again = f"It can be had from {MINI_IMAGENET.sources}."
    path, *images = MINI_IMAGENET.locate(split, folder)
    files = _listed(path, images[0]) if images else _in_folders(path)
    files = sorted(files, key=lambda file: file.label)  # stable
    counts = Counter(file.label for file in files)
    if complete:
        check_counts(list(counts.items()), _PER_CLASS, str(path), again)
    if not counts or (complete and len(counts) != _CLASSES[split]):
        other = next((s for s, n in _CLASSES.items() if n == len(counts) and s != split), None)
        raise ValueError(
            f"{path}: expected the {_CLASSES[split]} classes of {split!r}, found {len(counts)}"
            + (f", as many as {other!r} has: is it that one renamed? " if other else ". ")
            + again
        )
    return decode(files, "RGB", size, None, again)


def _in_folders(path: Path) -> list[ImageFile]:
    return [
        ImageFile(file.parent.name, str(file), file.read_bytes)
        for file in sorted(path.glob("*/*"))
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]


def _listed(path: Path, images: Path) -> list[ImageFile]:
    """The images of a list, `filename,label`, in its order."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a list of images in CSV ({error}).") from error
    if header != ["filename", "label"]:
        raise ValueError(f"{path}: expected the columns filename and label, found {header[:5]}.")
    for line, row in enumerate(rows, 2):
        if len(row) != 2 or row[0] != os.path.basename(row[0]) or row[0] in ("", ".", ".."):  # noqa: PTH119
            raise ValueError(
                f"{path}: row {line} is {row}; expected the name of a file in {images}, without a "
                "path, and its label."
            )
    missing = [name for name, _ in rows if not (images / name).is_file()]
    if missing:
        raise ValueError(
            f"{images}: {len(missing)} of the {len(rows)} images that {path} lists are missing; the "
            f"first is {missing[0]}."
        )
    return [
        ImageFile(label, str(images / name), (images / name).read_bytes) for name, label in rows
    ]
