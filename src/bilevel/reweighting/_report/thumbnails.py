"""Small pictures of rows, for the report."""

import base64
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

MOST = 1_600_000  # characters of all pictures together, above which they lose shades
FEWEST_SHADES = 16  # per channel


def thumbnails(images: np.ndarray, rows: Sequence[int] | None = None) -> list[str]:
    """Each image as a PNG in a data URI, at most 64 pixels per side, darkest value black."""
    return as_pictures(shrunk(images, rows))


def as_pictures(pixels: Sequence[UInt8[np.ndarray, "height width channels"]]) -> list[str]:
    """Each as a PNG in a data URI.

    Where they have more than 1.6 million characters in all, they have 64 shades per channel in place
    of 256, or 32, or 16: 200 photographs would else be most of a page.
    """
    shades = 256
    while True:
        step = 255 / (shades - 1)
        few = [np.round(np.round(p / step) * step).astype(np.uint8) for p in pixels]
        found = [f"data:image/png;base64,{base64.b64encode(_png(p)).decode()}" for p in few]
        if shades == FEWEST_SHADES or sum(map(len, found)) <= MOST:
            return found
        shades //= 4 if shades == 256 else 2


def shrunk(
    images: np.ndarray, rows: Sequence[int] | None = None
) -> list[UInt8[np.ndarray, "height width channels"]]:
    """Each image with at most 64 pixels per side, darkest value 0, brightest 255.

    With `rows`, those at these positions. They are read one by one: images may be mapped, and large.
    """
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        if side * side != images.shape[1]:
            raise ValueError(
                f"`images` of shape (rows, pixels) must be square, got {images.shape[1]} pixels; "
                "pass (rows, height, width) instead."
            )
        images = images.reshape(-1, side, side)
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            "`images` must have shape (rows, height, width), (rows, height, width, 1, 3 or 4) or "
            f"(rows, side * side), got {images.shape}."
        )
    chosen = range(len(images)) if rows is None else rows
    if not len(chosen):
        return []
    low = float(np.nanmin([np.nanmin(images[k]) for k in chosen]))
    high = float(np.nanmax([np.nanmax(images[k]) for k in chosen]))
    step = math.ceil(max(images.shape[1:3]) / 64)
    return [_reduced(images[k], step, low, high) for k in chosen]


def _reduced(
    image: np.ndarray, step: int, low: float, high: float
) -> UInt8[np.ndarray, "height width channels"]:
    """Means of squares of `step` pixels, some lines at a time: a picture may be a large one."""
    lines = []
    for start in range(0, image.shape[0], step):
        strip = image[start : start + step].astype(np.float64)
        strip = np.nan_to_num((strip - low) / (high - low if high > low else 1.0))
        whole = [(0, -side % step) for side in strip.shape[:2]]
        strip = np.pad(strip, [*whole, (0, 0)], mode="edge")
        lines.append(strip.reshape(step, -1, step, strip.shape[2]).mean(axis=(0, 2)))
    return np.round(255 * np.stack(lines)).astype(np.uint8)


def _png(pixels: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """One 8-bit image `(h, w, 1 | 3 | 4)` as PNG (W3C, second edition): header, pixels, end."""
    h, w, channels = pixels.shape
    colour = {1: 0, 3: 2, 4: 6}[channels]
    lines = np.concatenate([np.zeros((h, 1), np.uint8), pixels.reshape(h, w * channels)], axis=1)
    header = struct.pack(">IIBBBBB", w, h, 8, colour, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + body + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check
