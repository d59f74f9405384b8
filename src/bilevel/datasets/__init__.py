"""Readers for published data files, and label noise whose truth is known.

Nothing is downloaded unless you call `fetch` or pass `download=True`.
"""

from ._cifar import cifar10
from ._fetch import Fetched, fetch
from ._idx import read_idx
from ._images import ImagesOfClasses
from ._mini_imagenet import mini_imagenet
from ._mnist import LabelledImages, fashion_mnist, mnist
from ._noise import (
    NoisyLabels,
    flip_by_features,
    flip_by_matrix,
    flip_to_different,
    flip_to_next,
    redraw_uniform,
)
from ._omniglot import omniglot
from ._qmnist import QMNISTImages, qmnist
from ._svhn import svhn

__all__ = [
    "Fetched",
    "ImagesOfClasses",
    "LabelledImages",
    "NoisyLabels",
    "QMNISTImages",
    "cifar10",
    "fashion_mnist",
    "fetch",
    "flip_by_features",
    "flip_by_matrix",
    "flip_to_different",
    "flip_to_next",
    "mini_imagenet",
    "mnist",
    "omniglot",
    "qmnist",
    "read_idx",
    "redraw_uniform",
    "svhn",
]
