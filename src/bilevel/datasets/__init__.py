"""Readers for published data files, and label noise whose truth is known. Nothing downloads."""

from ._cifar import cifar10
from ._idx import read_idx
from ._mnist import LabelledImages, fashion_mnist, mnist
from ._noise import (
    NoisyLabels,
    flip_by_features,
    flip_to_different,
    flip_to_next,
    redraw_uniform,
)

__all__ = [
    "LabelledImages",
    "NoisyLabels",
    "cifar10",
    "fashion_mnist",
    "flip_by_features",
    "flip_to_different",
    "flip_to_next",
    "mnist",
    "read_idx",
    "redraw_uniform",
]
