"""Images in folders of classes: decoding with Pillow into arrays."""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (".png", ".jpg", ".jpeg")  # of images, in lower case


class ImagesOfClasses(NamedTuple):
    """Images uint8 (n, ...), labels int64 (n,), and the names of the classes: `classes[label]`."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


class ImageFile(NamedTuple):
    """An image to decode: its class, its name for messages, and its bytes on demand."""

    label: str
    name: str
    read: Callable[[], bytes]


def pillow() -> Any:
    """The module `PIL.Image`."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "PNG and JPEG files are decoded by Pillow, which is not installed: "
            "`pip install pillow` (`pip install 'bilevel[viz]'` brings it too)."
        ) from error
    return Image


def check_size(size: int | None) -> None:
    """Refuse a value that cannot be the side of an image."""
    if size is not None and size < 1:
        raise ValueError(f"size must be the side of the images in pixels, at least 1; got {size}.")


def decode(
    files: Iterable[ImageFile],
    mode: str,
    size: int | None,
    published: tuple[int, int] | None,
    again: str,
) -> ImagesOfClasses:
    """All `files`, in order, in Pillow's `mode`, resized to (size, size) by Lanczos' filter.

    With `published`, each image must have that (width, height); without, and without `size`, all
    must have the first one's. Classes are numbered in the order in which they come.
    """
    Image, files = pillow(), list(files)
    check_size(size)
    classes = tuple(dict.fromkeys(file.label for file in files))
    number = {name: i for i, name in enumerate(classes)}
    images: np.ndarray | None = None
    expected = published
    for row, file in enumerate(files):
        try:
            with Image.open(io.BytesIO(file.read())) as image:
                _check_shape(image, file.name, expected, published, again)
                picture: Picture = image.convert(mode)
        except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{file.name}: truncated, damaged or not an image ({error}). {again}"
            ) from error
        if size is not None:
            picture = picture.resize((size, size), Image.Resampling.LANCZOS)
        elif expected is None:
            expected = picture.size
        pixels = np.asarray(picture)
        if images is None:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        images[row] = pixels
    if images is None:
        raise ValueError(f"No images to read. {again}")
    labels = np.array([number[file.label] for file in files], np.int64)
    return ImagesOfClasses(images, labels, classes)


def _check_shape(
    image: "Picture",
    name: str,
    expected: tuple[int, int] | None,
    published: tuple[int, int] | None,
    again: str,
) -> None:
    if expected is None or image.size == expected:
        return
    w, h = expected
    if published is not None:
        raise ValueError(
            f"{name}: expected {w} x {h} pixels, found {image.width} x {image.height}. {again}"
        )
    raise ValueError(
        f"{name}: {image.width} x {image.height} pixels, the images before it {w} x {h}. Pass "
        "`size` (84 is customary) to have all of them resized."
    )


def check_counts(counts: Sequence[tuple[str, int]], per_class: int, where: str, again: str) -> None:
    """Refuse a class with another number of images than `per_class`."""
    wrong = [(name, count) for name, count in counts if count != per_class]
    if wrong:
        some = ", ".join(f"{name} {count}" for name, count in wrong[:3])
        raise ValueError(
            f"{where}: expected {per_class} images in each class, but {len(wrong)} of "
            f"{len(counts)} classes have another number ({some}{', ...' if wrong[3:] else ''}). It "
            f"is incomplete, or not the published data; complete=False reads it as it is. {again}"
        )
