"""Write mnist_small.npz: `BILEVEL_DATA=... python tests/data/make_mnist_small.py [path]`.

Every 12th training image and every 10th test image of MNIST, in the published order. Evenly
spaced rows and not the first ones, because the first half of the test set is the easier half.
"""

import sys
from pathlib import Path

import numpy as np

from bilevel.datasets import mnist

TRAIN_STRIDE = 12
TEST_STRIDE = 10


def main(path: Path) -> None:
    """Save the rows, compressed; np.savez dates every member 1980, so equal data, equal file."""
    train, test = mnist("train"), mnist("test")
    np.savez_compressed(
        path,
        train_images=train.images[::TRAIN_STRIDE],
        train_labels=train.labels[::TRAIN_STRIDE],
        test_images=test.images[::TEST_STRIDE],
        test_labels=test.labels[::TEST_STRIDE],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("mnist_small.npz"))
