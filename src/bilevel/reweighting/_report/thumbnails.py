"""Small pictures of rows, for the report."""

import base64
import math
import struct
import zlib

import numpy as np
from jaxtyping import UInt8


def thumbnails(images: np.ndarray) -> list[str]:
    """Each image as a PNG in a data URI, at most 64 pixels per side, darkest value black."""
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
    images = images.astype(np.float64)
    low, high = np.nanmin(images), np.nanmax(images)
    pixels = np.nan_to_num((images - low) / (high - low if high > low else 1.0))
    step = math.ceil(max(pixels.shape[1:3]) / 64)
    whole = [(0, 0), *((0, -side % step) for side in pixels.shape[1:3]), (0, 0)]
    pixels = np.pad(pixels, whole, mode="edge")
    rows, h, w, channels = pixels.shape
    pixels = pixels.reshape(rows, h // step, step, w // step, step, channels).mean(axis=(2, 4))
    pixels = np.round(255 * pixels).astype(np.uint8)
    return ["data:image/png;base64," + base64.b64encode(_png(p)).decode() for p in pixels]


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
