"""Omniglot and MiniImageNet."""

import io
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bilevel.datasets import _mini_imagenet, _omniglot, mini_imagenet, omniglot

CLASSES = [f"{alphabet}/character{i:02d}" for alphabet in ("Greek", "Armenian") for i in (1, 2, 10)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(_omniglot, "_CHARACTERS", {"background": 6, "evaluation": 3})
    monkeypatch.setattr(_mini_imagenet, "_CLASSES", {"train": 3, "val": 1, "test": 2})
    monkeypatch.setattr(_mini_imagenet, "_PER_CLASS", 4)
    monkeypatch.delenv("BILEVEL_DATA", raising=False)


def drawing(name: str, drawer: int) -> np.ndarray:
    """Ink is False. The drawings of all characters and drawers differ."""
    rng = np.random.default_rng([CLASSES.index(name), drawer])
    return rng.random((105, 105)) < 0.9


def png(pixels: np.ndarray) -> bytes:
    """A bool array as a file with one bit per pixel, like the published files."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_omniglot(folder: Path, split: str = "background", classes=CLASSES) -> Path:
    for number, name in enumerate(classes):
        place = folder / f"images_{split}" / name
        place.mkdir(parents=True)
        for drawer in range(1, 21):
            path = place / f"{number + 709:04d}_{drawer:02d}.png"
            path.write_bytes(png(drawing(name, drawer)))
    (folder / f"images_{split}" / ".DS_Store").write_bytes(b"")
    (folder / f"images_{split}" / classes[0] / "._0709_01.png").write_bytes(b"no image")
    return folder / f"images_{split}"


def zipped(folder: Path) -> Path:
    """The folder as a zip file in its place, with the entries that macOS adds."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
        archive.writestr(f"__MACOSX/{folder.name}/Greek/character01/._0709_01.png", b"no image")
    shutil.rmtree(folder)
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_omniglot_in_the_published_layout_comes_back(tmp_path, packed):
    folder = write_omniglot(tmp_path)
    if packed:
        zipped(folder)
    images, labels, classes = omniglot("background", folder=tmp_path)
    assert classes == tuple(sorted(CLASSES))
    assert (images.shape, images.dtype, labels.dtype) == ((120, 105, 105), np.uint8, np.int64)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(6), 20))
    for row in (0, 1, 19, 20, 77, 119):
        expected = drawing(classes[labels[row]], row % 20 + 1)  # rows are drawers 1 to 20
        np.testing.assert_array_equal(images[row], np.where(expected, 255, 0))


def test_the_published_one_bit_format():
    with Image.open(io.BytesIO(png(drawing(CLASSES[0], 1)))) as image:
        assert (image.mode, image.size) == ("1", (105, 105))


def test_the_folder_of_the_split_or_that_of_the_environment_is_found(tmp_path, monkeypatch):
    folder = write_omniglot(tmp_path / "omniglot")
    expected = omniglot("background", folder=folder).images
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    np.testing.assert_array_equal(omniglot("background").images, expected)
    with pytest.raises(FileNotFoundError) as error:
        omniglot("evaluation")
    for part in (
        "images_evaluation.zip",
        str(tmp_path / "omniglot"),
        "download=True",
        "brendenlake",
    ):
        assert part in str(error.value)


def test_the_published_numbers(monkeypatch):
    monkeypatch.undo()
    assert _omniglot._CHARACTERS == {"background": 964, "evaluation": 659}
    assert _mini_imagenet._CLASSES == {"train": 64, "val": 16, "test": 20}
    assert _mini_imagenet._PER_CLASS == 600


def test_resizing_preserves_a_smooth_image(tmp_path):
    place = tmp_path / "images_background" / "Greek" / "character01"
    place.mkdir(parents=True)
    ramp = np.tile(np.arange(105, dtype=np.uint8) * 2, (105, 1))
    (place / "0001_01.png").write_bytes(png(ramp))
    (place / "0001_02.png").write_bytes(png(np.zeros((105, 105), bool)))
    images = omniglot("background", folder=tmp_path, size=35, complete=False).images
    assert images.shape == (2, 35, 35)
    # Pixel j of the small image is at 3 j + 1 of the large one.
    expected = np.tile(2 * (3 * np.arange(35) + 1), (35, 1))
    np.testing.assert_allclose(images[0, :, 2:-2], expected[:, 2:-2], atol=1)
    assert not images[1].any()


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("Greek/character02/*_07.png", r"expected 20 images.* 1 of 6 .*Greek/character02 19\)"),
        ("Greek/character02/*.png", r"expected the 6 characters of 'background', .* found 5\. "),
        ("Greek/*/*.png", r"found 3, as many as 'evaluation' has: is it that one renamed\?"),
        ("*/*/*.png", r"expected the 6 characters of 'background', .* found 0\. "),
        ("*/*/*_20.png", r"6 of 6 classes have another number \(Armenian/character01 19"),
        ("*/*/*_1?.png", r"6 of 6 classes.*Armenian/character02 10, .*, \.\.\.\)"),
    ],
)
def test_an_incomplete_omniglot_is_named(tmp_path, lost, message, packed):
    folder = write_omniglot(tmp_path)
    for path in folder.glob(lost):
        path.unlink()
    if packed:
        folder = zipped(folder)
    with pytest.raises(ValueError, match=rf"{folder.name}: .*{message}"):
        omniglot("background", folder=tmp_path)


def test_an_incomplete_data_set_can_be_read_on_demand(tmp_path):
    folder = write_omniglot(tmp_path)
    shutil.rmtree(folder / "Greek")
    next(folder.glob("Armenian/character10/*.png")).unlink()
    _, labels, classes = omniglot("background", folder=tmp_path, complete=False)
    assert np.bincount(labels).tolist() == [20, 20, 19]
    assert classes == tuple(f"Armenian/character{i}" for i in ("01", "02", "10"))


def replaced(change):
    """The bytes of one drawing changed."""

    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replaced(lambda b: b[: len(b) // 2]), r"truncated, damaged or not an image"),
        (replaced(lambda b: b[:60] + b"\0\0\0\0" + b[64:]), r"truncated, damaged or not an image"),
        (replaced(lambda b: b""), r"truncated, damaged or not an image"),
        (replaced(lambda b: b"GIF89a"), r"truncated, damaged or not an image"),
        (
            replaced(lambda b: png(np.ones((28, 28), bool))),
            r"expected 105 x 105 pixels, found 28 x",
        ),
    ],
)
def test_a_damaged_drawing_is_named(tmp_path, damage, message, packed):
    folder = write_omniglot(tmp_path)
    damage(folder / "Greek" / "character10" / "0711_13.png")
    if packed:
        zipped(folder)
    with pytest.raises(ValueError, match=rf"Greek.character10.0711_13\.png: .*{message}"):
        omniglot("background", folder=tmp_path)


def middle(content: bytes) -> bytes:
    """One byte of the compressed drawings changed."""
    at = content.index(b"IDAT") + 20
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-100], r"truncated, damaged or not a zip file \(File is not a zip"),
        (lambda b: b[: len(b) // 2], r"truncated, damaged or not a zip file"),
        (lambda b: b"<!DOCTYPE html>", r"truncated, damaged or not a zip file"),
        (middle, r"truncated, damaged or not a zip file \(Bad CRC-32 for file 'images_background/"),
    ],
)
def test_a_damaged_zip_file_is_named(tmp_path, change, message):
    folder = write_omniglot(tmp_path)
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:  # stored, so that the drawings can be found
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, f"{folder.name}/{file.relative_to(folder).as_posix()}")
    shutil.rmtree(folder)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"images_background\.zip: .*{message}"):
        omniglot("background", folder=tmp_path)


def test_a_member_too_large_to_be_a_drawing_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "images_background.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images_background/Greek/character01/0001_01.png", bytes(2 << 20))
    with pytest.raises(
        ValueError, match=r"0001_01\.png has 2097152 bytes, expected at most 1048576"
    ):
        omniglot("background", folder=tmp_path)


@pytest.mark.parametrize("size", [0, -84])
def test_a_size_below_one_is_refused(tmp_path, size):
    for read in (
        lambda: omniglot("background", folder=tmp_path, size=size),
        lambda: mini_imagenet("train", folder=tmp_path, size=size),
    ):
        with pytest.raises(ValueError, match=rf"size must be .* at least 1; got {size}"):
            read()


def test_a_missing_pillow_is_named(tmp_path, monkeypatch):
    write_omniglot(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"decoded by Pillow, .* `pip install pillow`"):
        omniglot("background", folder=tmp_path)


# ---- MiniImageNet -------------------------------------------------------------------------------

SPLITS = {"train": ["n01532829", "n13133613", "n02108089"], "val": ["n9"], "test": ["n1", "n2"]}


def photograph(name: str, i: int, shape=(84, 84, 3)) -> np.ndarray:
    return np.random.default_rng([*name.encode(), i]).integers(0, 256, shape, np.uint8)


def write_folders(folder: Path, suffix: str = ".png", shape=(84, 84, 3)) -> None:
    for split, classes in SPLITS.items():
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                path = folder / split / name / f"{name}{i:08d}{suffix}"
                Image.fromarray(photograph(name, i, shape)).save(path)


def write_lists(folder: Path, suffix: str = ".png", shape=(84, 84, 3)) -> None:
    """The lists alternate between the classes, unlike the published lists."""
    (folder / "images").mkdir(parents=True)
    for split, classes in SPLITS.items():
        lines = ["filename,label"]
        for i in range(4):
            for name in classes:
                file = f"{name}{i:08d}{suffix}"
                Image.fromarray(photograph(name, i, shape)).save(folder / "images" / file)
                lines.append(f"{file},{name}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("write", [write_folders, write_lists])
@pytest.mark.parametrize("split", SPLITS)
def test_mini_imagenet_in_either_layout_comes_back(tmp_path, write, split):
    write(tmp_path)
    images, labels, classes = mini_imagenet(split, folder=tmp_path)
    assert classes == tuple(sorted(SPLITS[split]))
    assert labels.tolist() == [k for k in range(len(classes)) for _ in range(4)]
    expected = [photograph(name, i) for name in classes for i in range(4)]
    np.testing.assert_array_equal(images, expected)  # 84 x 84 already: resizing changes nothing


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
@pytest.mark.parametrize("write", [write_folders, write_lists])
def test_jpeg_files_of_another_size(tmp_path, write, suffix, monkeypatch):
    monkeypatch.setattr(
        sys.modules[__name__], "photograph", lambda n, i, s: np.full(s, 40 * i + 20, np.uint8)
    )
    write(tmp_path, suffix, (120, 90, 3))
    images, labels, _ = mini_imagenet("train", folder=tmp_path)
    assert images.shape == (12, 84, 84, 3)
    np.testing.assert_allclose(
        images,
        np.full_like(images, 1) * (40 * (np.arange(12) % 4) + 20)[:, None, None, None],
        atol=2,
    )
    kept = mini_imagenet("train", folder=tmp_path, size=None).images
    assert kept.shape == (12, 120, 90, 3)
    assert labels[4] == 1


def test_grey_photographs_get_three_channels(tmp_path):
    write_folders(tmp_path)
    grey = np.arange(84 * 84, dtype=np.uint8).reshape(84, 84)
    path = tmp_path / "val" / "n9" / "n900000000.png"
    Image.fromarray(grey).save(path)
    image = mini_imagenet("val", folder=tmp_path).images[0]
    np.testing.assert_array_equal(image, np.repeat(grey[:, :, None], 3, axis=2))


def test_different_sizes_need_a_size(tmp_path):
    write_folders(tmp_path)
    path = tmp_path / "val" / "n9" / "n900000002.png"
    Image.fromarray(photograph("n9", 2, (50, 60, 3))).save(path)
    with pytest.raises(ValueError, match=r"n900000002\.png: 60 x 50 pixels, .* before it 84 x 84"):
        mini_imagenet("val", folder=tmp_path, size=None)
    assert mini_imagenet("val", folder=tmp_path).images.shape == (4, 84, 84, 3)


def test_an_incomplete_mini_imagenet_is_named(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "n01532829" / "n0153282900000001.png").unlink()
    with pytest.raises(ValueError, match=r"expected 4 images in each class, .*\(n01532829 3\)"):
        mini_imagenet("train", folder=tmp_path)
    assert len(mini_imagenet("train", folder=tmp_path, complete=False).labels) == 11
    shutil.rmtree(tmp_path / "train" / "n01532829")
    with pytest.raises(ValueError, match=r"the 3 classes of 'train', found 2, as many as 'test'"):
        mini_imagenet("train", folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"val\.csv: expected the columns filename and label, found \[\]"),
        ("label,filename\nn9,a.png\n", r"expected the columns .* found \['label', 'filename'\]"),
        ("filename,label\na.png\n", r"row 2 is \['a\.png'\]; expected the name of a file"),
        (
            "filename,label\n../val.csv,n9\n",
            r"row 2 is \['\.\./val\.csv', 'n9'\]; .* without a path",
        ),
        ("filename,label\n/etc/passwd,n9\n", r"row 2 is \['/etc/passwd', 'n9'\]"),
        ("filename,label\nno.png,n9\nnot.png,n9\n", r"images: 2 of the 2 .* the first is no\.png"),
        ('filename,label\n"a.png,n9\n', r"val\.csv: not a list of images in CSV"),
        ("filename,label\n", r"val\.csv: expected the 1 classes of 'val', found 0"),
    ],
)
def test_other_lists_are_named(tmp_path, text, message):
    write_lists(tmp_path)
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        mini_imagenet("val", folder=tmp_path)


@pytest.mark.parametrize("write", [write_folders, write_lists])
def test_a_truncated_photograph_is_named(tmp_path, write):
    write(tmp_path, ".jpg")
    path = next(tmp_path.rglob("n900000003.jpg"))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"n900000003\.jpg: truncated, damaged or not an image"):
        mini_imagenet("val", folder=tmp_path)


def test_a_missing_mini_imagenet_says_why_it_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("BILEVEL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        mini_imagenet("val")
    for part in ("val.csv, images", str(tmp_path / "mini-imagenet"), "ImageNet's", "forbid"):
        assert part in str(error.value)
    assert "download=True" not in str(error.value)
