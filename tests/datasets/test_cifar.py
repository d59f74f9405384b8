import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from bilevel.datasets import _cifar, _sources, cifar10

N = 20  # records a file in place of 10000, where a test uses `small`
TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
BATCH_LABEL = dict(
    zip(TRAIN, (f"training batch {i} of 5".encode() for i in range(1, 6)), strict=True)
)
BATCH_LABEL["test_batch"] = b"testing batch 1 of 1"

root = os.environ.get("BILEVEL_DATA")
needs_data = pytest.mark.skipif(
    not root or not any(Path(root, name).is_dir() for name in _sources.CIFAR10.subfolders),
    reason="BILEVEL_DATA holds no folder of the published CIFAR-10 files",
)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(_cifar, "_RECORDS", N)
    monkeypatch.delenv("BILEVEL_DATA", raising=False)


def make(seed: int, n: int = N) -> tuple[np.ndarray, list[int]]:
    """Images (n, 32, 32, 3) and labels that cover 0 to 9."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), np.uint8), (rng.permutation(n) % 10).tolist()


def planes(image: np.ndarray) -> bytes:
    """The red, green and blue plane, each row by row: byte 1024 k + 32 r + c, without the code
    under test."""
    return bytes(int(image[r, c, k]) for k in range(3) for r in range(32) for c in range(32))


def binary(images: np.ndarray, labels: list[int]) -> bytes:
    return b"".join(bytes([y]) + planes(x) for x, y in zip(images, labels, strict=True))


def published_pickle(images: np.ndarray, labels: list[int], batch_label: bytes) -> bytes:
    """Opcode by opcode as the publisher's Python 2 wrote it: protocol 2, 8-bit strings.

    The dict's keys in their order: batch_label, labels, data, filenames.
    """

    def string(text: bytes) -> bytes:  # SHORT_BINSTRING
        return b"U" + bytes([len(text)]) + text

    def integer(value: int) -> bytes:  # BININT1, BININT2
        return struct.pack("<cB", b"K", value) if value < 256 else struct.pack("<cH", b"M", value)

    pixels = b"".join(map(planes, images))
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    array += string(b"b") + b"\x87R(K\x01" + integer(len(images)) + integer(3072) + b"\x86"
    array += dtype + b"\x89" + struct.pack("<cI", b"T", len(pixels)) + pixels + b"tb"
    names = b"](" + b"".join(string(b"image_s_%06d.png" % i) for i in range(len(images))) + b"e"
    return (
        (b"\x80\x02}(" + string(b"batch_label") + string(batch_label) + string(b"labels"))
        + (b"](" + b"".join(map(integer, labels)) + b"e")
        + (string(b"data") + array + string(b"filenames") + names + b"u.")
    )


def batch(seed: int, name: str) -> dict:
    images, labels = make(seed)
    data = np.frombuffer(b"".join(map(planes, images)), np.uint8).reshape(N, 3072)
    return {b"batch_label": BATCH_LABEL[name], b"labels": labels, b"data": data}


def write_binary(folder: Path, names: list[str], first_seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names, first_seed):
        (folder / f"{name}.bin").write_bytes(binary(*make(seed)))


def write_published_pickles(folder: Path, names: list[str], first_seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names, first_seed):
        (folder / name).write_bytes(published_pickle(*make(seed), BATCH_LABEL[name]))


def check(found, seeds) -> None:
    expected = [make(seed) for seed in seeds]
    np.testing.assert_array_equal(found.images, np.concatenate([x for x, _ in expected]))
    np.testing.assert_array_equal(found.labels, np.concatenate([y for _, y in expected]))
    assert found.images.dtype == found.labels.dtype == np.uint8
    assert found.images.flags.c_contiguous
    assert found.images.flags.writeable
    assert found.labels.flags.writeable


@needs_data
def test_the_published_files_have_the_usual_mean_and_deviation():
    train, test = cifar10("train"), cifar10("test")
    assert train.images.shape == (50000, 32, 32, 3)
    assert test.images.shape == (10000, 32, 32, 3)
    np.testing.assert_allclose(
        train.images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], rtol=0, atol=5e-5
    )
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10


@pytest.mark.parametrize("write", [write_binary, write_published_pickles])
def test_files_in_the_published_layouts_come_back_in_order(small, tmp_path, write):
    write(tmp_path, [*TRAIN, "test_batch"])
    check(cifar10("train", folder=tmp_path), range(5))
    check(cifar10("test", folder=tmp_path), [5])


def test_the_hand_written_pickle_is_what_python_loads():
    with_numpy = pickle.loads(
        published_pickle(*make(0), BATCH_LABEL[TRAIN[0]]), encoding="bytes", fix_imports=True
    )
    expected = batch(0, TRAIN[0])
    np.testing.assert_array_equal(with_numpy.pop(b"data"), expected.pop(b"data"))
    assert with_numpy.pop(b"filenames")[1] == b"image_s_000001.png"
    assert with_numpy == expected


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_pickles_that_python_3_writes_are_read(small, tmp_path, protocol, layout):
    content = batch(3, "test_batch")
    content[b"data"] = layout(content[b"data"])
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    check(cifar10("test", folder=tmp_path), [3])


def test_a_full_file_of_either_version(tmp_path):
    # The published sizes: 10000 records of 3073 bytes.
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (10000, 3073), np.uint8)
    records[:, 0] %= 10
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes())
    images, labels = cifar10("test", folder=tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    content = {b"labels": records[:, 0].tolist(), b"data": records[:, 1:].copy()}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content))
    for found in (images, cifar10("test", folder=tmp_path).images):
        assert found.shape == (10000, 32, 32, 3)
        for i, r, c, k in rng.integers(0, (10000, 32, 32, 3), (50, 4)):
            assert found[i, r, c, k] == records[i, 1 + 1024 * k + 32 * r + c]
    np.testing.assert_array_equal(labels, records[:, 0])


@pytest.mark.parametrize("name", ["cifar-10", "cifar-10-batches-bin", "cifar-10-batches-py"])
def test_the_folder_comes_before_the_environment(small, tmp_path, monkeypatch, name):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path / "root"))
    write = write_published_pickles if name.endswith("py") else write_binary
    write(tmp_path / "root" / name, TRAIN, first_seed=10)
    check(cifar10("train"), range(10, 15))
    check(cifar10("train", folder=tmp_path / "given"), range(10, 15))  # nothing there
    write_binary(tmp_path / "given", TRAIN[:4], first_seed=20)
    check(cifar10("train", folder=tmp_path / "given"), range(10, 15))  # not all there: not mixed
    write_binary(tmp_path / "given", TRAIN, first_seed=20)
    check(cifar10("train", folder=tmp_path / "given"), range(20, 25))


def test_missing_files_say_what_is_missing_and_where_to_get_it(small, tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path / "root"))
    write_binary(tmp_path / "given", TRAIN[:1])
    with pytest.raises(FileNotFoundError) as error:
        cifar10("train", folder=tmp_path / "given")
    for part in (
        *(f"{name}.bin" for name in TRAIN),
        *(f"{name}," for name in TRAIN[:4]),
        *(str(tmp_path / "root" / name) for name in _sources.CIFAR10.subfolders),
        f"found {tmp_path / 'given' / 'data_batch_1.bin'}. ",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "cifar-10-binary.tar.gz",
        "cifar-10-python.tar.gz",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], r"truncated.*found 61459 bytes, that is 19 records and 3072 bytes over"),
        (lambda b: b + b[:3073], r"too long.*Expected 20 records.*that is 21 records"),
        (lambda b: b"\x0a" + b[1:], r"record 0 has the label 10; .* 0 to 9"),
        (lambda b: b[: 19 * 3073] + b"\xff" + b[19 * 3073 + 1 :], r"record 19 has the label 255"),
    ],
)
def test_damaged_binary_files_are_named_with_what_is_wrong(small, tmp_path, change, message):
    write_binary(tmp_path, TRAIN)
    path = tmp_path / "data_batch_4.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"data_batch_4\.bin: {message}"):
        cifar10("train", folder=tmp_path)


@pytest.mark.parametrize("write", [write_binary, write_published_pickles])
def test_a_copy_under_another_name_is_refused(small, tmp_path, write):
    write(tmp_path, TRAIN)
    suffix = ".bin" if write is write_binary else ""
    copy = (tmp_path / f"data_batch_2{suffix}").read_bytes()
    copy = copy.replace(b"training batch 2 of 5", b"training batch 5 of 5")
    (tmp_path / f"data_batch_5{suffix}").write_bytes(copy)
    with pytest.raises(
        ValueError, match=rf"data_batch_5.*the same images as data_batch_2{suffix},"
    ):
        cifar10("train", folder=tmp_path)


def test_a_swapped_pickle_is_found_by_the_name_inside(small, tmp_path):
    write_published_pickles(tmp_path, [*TRAIN, "test_batch"])
    (tmp_path / "test_batch").replace(tmp_path / "data_batch_3")
    with pytest.raises(
        ValueError, match=r"data_batch_3: this is another batch .*b'testing batch 1 of 1', expected"
    ):
        cifar10("train", folder=tmp_path)


def without(key):
    return lambda b: {k: v for k, v in b.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(b"labels"), r"not a CIFAR-10 batch.*found .*b'batch_label'.*b'data'"),
        (lambda b: {k.decode(): v for k, v in b.items()}, r"not a CIFAR-10 batch.* found .*'data'"),
        # CIFAR-100
        (lambda b: {b"data": b[b"data"], b"fine_labels": b[b"labels"]}, r"b'fine_labels'"),
        (lambda b: b | {b"data": b[b"labels"], b"labels": b[b"data"]}, r"b'labels' must be a list"),
        (lambda b: b | {b"data": b[b"data"][:7]}, r"shape \(20, 3072\), found 'u1' of shape \(7, "),
        (lambda b: b | {b"data": b[b"data"].astype(np.int8)}, r"must be uint8.*found 'i1'"),
        (lambda b: b | {b"data": b[b"data"].astype(object)}, r"b'data' must be a NumPy array"),
        (lambda b: b | {b"labels": b[b"labels"][1:]}, r"expected 20 labels, found 19"),
        (lambda b: b | {b"labels": [*b[b"labels"][1:], 10]}, r"record 19 has the label 10"),
        (lambda b: b | {b"labels": [-1, *b[b"labels"][1:]]}, r"record 0 has the label -1"),
        (lambda b: b | {b"labels": [1.0] * N}, r"b'labels' must be a list of integers"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_of_another_structure_are_refused(small, tmp_path, change, message, protocol):
    content = change(batch(0, "test_batch"))
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=rf"test_batch: .*{message}"):
        cifar10("test", folder=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b"",
        lambda b: b[:-1],
        lambda b: binary(*make(0)),
        lambda b: b"<!DOCTYPE html>\n<html>",
        lambda b: b"\x1f\x8b\x08" + b,
    ],
)
def test_truncated_pickles_are_refused(small, tmp_path, change):
    content = published_pickle(*make(0), BATCH_LABEL["test_batch"])
    (tmp_path / "test_batch").write_bytes(change(content))
    with pytest.raises(ValueError, match=r"test_batch: truncated, damaged or not a pickle"):
        cifar10("test", folder=tmp_path)


def test_bytes_after_the_pickle_are_refused(small, tmp_path):
    content = published_pickle(*make(0), BATCH_LABEL["test_batch"])
    (tmp_path / "test_batch").write_bytes(content + b"\0\0")
    with pytest.raises(ValueError, match=r"test_batch: 2 trailing bytes"):
        cifar10("test", folder=tmp_path)


def test_an_array_with_fewer_bytes_than_its_shape_is_refused(small, tmp_path):
    content = published_pickle(*make(0), BATCH_LABEL["test_batch"])
    short = content.replace(struct.pack("<cI", b"T", N * 3072), struct.pack("<cI", b"T", 4))
    at = short.index(struct.pack("<cI", b"T", 4)) + 5 + 4
    (tmp_path / "test_batch").write_bytes(short[:at] + short[at + N * 3072 - 4 :])
    with pytest.raises(ValueError, match=r"announces shape \(20, 3072\), .* found 4 in order 'C'"):
        cifar10("test", folder=tmp_path)


class Call:
    """Pickles as the call function(*args)."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("place", ["whole", "extra key", "in data"])
@pytest.mark.parametrize(
    ("attack", "refused"),
    [
        (lambda file: Call(os.system, f"touch '{file}'"), r"(posix|nt)\.system"),
        (lambda file: Call(os.mkdir, str(file)), r"(posix|nt)\.mkdir"),
        (lambda file: Call(open, str(file), "w"), r"(_?io|__builtin__|builtins)\.open"),
        (lambda file: Call(eval, f"open({str(file)!r}, 'w')"), r"(__builtin__|builtins)\.eval"),
        (lambda file: Call(np.save, str(file), 0), r"numpy\.save"),
    ],
)
def test_pickles_that_would_run_code_are_refused_and_run_none(
    small, tmp_path, attack, refused, place, protocol
):
    touched = tmp_path / "touched"
    content = {
        "whole": attack(touched),
        "extra key": batch(0, "test_batch") | {b"more": attack(touched)},
        "in data": batch(0, "test_batch") | {b"data": attack(touched)},
    }[place]
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=rf"test_batch: refused\. The pickle asks for {refused},"):
        cifar10("test", folder=tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "test_batch"]


def test_the_attack_of_these_tests_works_on_an_unprotected_reader(tmp_path):
    pickle.loads(pickle.dumps(Call(os.mkdir, str(tmp_path / "touched"))))
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "content",
    [
        # A dotted name behind an allowed one; protocol 4 would walk it.
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93.",
        b"\x80\x04\x8c\x07_codecs\x8c\x06decode\x93.",
    ],
)
def test_names_similar_to_the_allowed_ones_are_refused(small, tmp_path, content):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"refused\. The pickle asks for (numpy|_codecs)\."):
        cifar10("test", folder=tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02c_codecs\nencode\n}}X\x01\x00\x00\x00aK\x01s\x86b.",  # BUILD: set its attribute
        b"\x80\x02cnumpy\nndarray\n}}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",  # a codec
        b"\x80\x02c_codecs\nencode\n)R.",
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # a persistent id
    ],
)
def test_misuse_of_the_allowed_names_changes_nothing(small, tmp_path, content):
    before = {cls: dict(vars(cls)) for cls in set(_cifar._GLOBALS.values())}
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="test_batch: truncated, damaged or not a pickle"):
        cifar10("test", folder=tmp_path)
    assert before == {cls: dict(vars(cls)) for cls in before}


def test_an_array_record_that_was_never_filled_is_refused(small, tmp_path):
    labels = b"](" + b"K\x01" * N + b"e"
    keys = b"\x80\x02}(U\x06labels" + labels + b"U\x04data"
    for array in (b"cnumpy\nndarray\n)\x81", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n)R"):
        (tmp_path / "test_batch").write_bytes(keys + array + b"u.")
        with pytest.raises(ValueError, match="b'data' must be a NumPy array, found a"):
            cifar10("test", folder=tmp_path)
