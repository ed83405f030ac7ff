"""Data sets: the real digits, real IDX and image files, and one clear line for each kind of bad input."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvae import ConfigError
from pipelines.datasets import MNIST_FILES, load_dataset


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def grey(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def folder_of(root: Path, count: int = 20) -> Path:
    for number in range(count):
        write_image(root / f"class{number % 2}" / f"{number:03d}.png", grey(number))
    return root


def write_idx(path: Path, images: np.ndarray) -> None:
    header = b"\x00\x00\x08\x03" + b"".join(size.to_bytes(4, "big") for size in images.shape)
    content = header + images.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist_folder(root: Path, suffix: str = ".gz") -> Path:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    for name in MNIST_FILES:
        write_idx(root / f"{name}{suffix}", images)
    return root


def test_digits_are_the_real_ones_and_split_for_good() -> None:
    digits = load_dataset("digits")
    assert (digits.shape, digits.bins) == ((1, 8, 8), 17)
    assert [len(images) for images in digits.splits().values()] == [1257, 180, 360]
    assert digits.content_hash() == "6e488d75142b8351"  # the figures of earlier searches rest on this split
    pooled = np.concatenate(list(digits.splits().values())).reshape(1797, -1)
    from sklearn.datasets import load_digits

    assert sorted(map(bytes, pooled)) == sorted(map(bytes, load_digits().data.astype(np.uint8)))


def test_folder_of_images_is_split_three_ways_without_loss(tmp_path: Path) -> None:
    loaded = load_dataset(str(folder_of(tmp_path / "mine")))
    assert (loaded.name, loaded.shape, loaded.bins) == ("mine", (1, 8, 8), 256)
    pooled = np.concatenate(list(loaded.splits().values()))
    assert sorted(map(bytes, pooled.reshape(20, -1))) == sorted(bytes(grey(number)) for number in range(20))


def test_split_folders_are_respected_and_what_is_missing_is_cut_from_train(tmp_path: Path) -> None:
    folder_of(tmp_path / "train")
    write_image(tmp_path / "test" / "a.png", grey(500))
    loaded = load_dataset(str(tmp_path))
    assert [len(images) for images in loaded.splits().values()] == [18, 2, 1]
    assert (loaded.test[0, 0] == grey(500)).all()


def test_colour_images_are_channels_first(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    for number in range(10):
        write_image(tmp_path / f"{number}.png", pixels)
    loaded = load_dataset(str(tmp_path))
    assert loaded.shape == (3, 8, 6)
    assert (loaded.train[0] == pixels.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files_gzipped_or_not(tmp_path: Path, suffix: str) -> None:
    loaded = load_dataset(str(mnist_folder(tmp_path, suffix)))
    assert [len(images) for images in loaded.splits().values()] == [27, 3, 30]
    assert loaded.shape == (1, 8, 8)


def text_among_images(root: Path) -> None:
    folder_of(root)
    (root / "class0" / "notes.txt").write_text("hello")


def two_sizes(root: Path) -> None:
    folder_of(root)
    write_image(root / "class1" / "zz.png", grey(0, 8, 6))


def grey_and_colour(root: Path) -> None:
    folder_of(root)
    write_image(root / "zz.png", np.zeros((8, 8, 3), np.uint8))


def truncated(root: Path) -> None:
    path = folder_of(root) / "class0" / "000.png"
    path.write_bytes(path.read_bytes()[:40])


def not_an_image(root: Path) -> None:
    (folder_of(root) / "class0" / "000.png").write_text("hello")


def alpha(root: Path) -> None:
    write_image(folder_of(root) / "zz.png", np.zeros((8, 8, 4), np.uint8))


def only_a_test_folder(root: Path) -> None:
    folder_of(root / "test")


def stray_beside_train(root: Path) -> None:
    folder_of(root / "train")
    write_image(root / "extra.png", grey(0))


def sizes_differ_between_splits(root: Path) -> None:
    folder_of(root / "train")
    write_image(root / "test" / "a.png", grey(0, 6, 6))


def too_few(root: Path) -> None:
    folder_of(root, 5)


def one_idx_missing(root: Path) -> None:
    (mnist_folder(root) / f"{MNIST_FILES[1]}.gz").unlink()


def idx_cut(root: Path) -> None:
    path = mnist_folder(root, "") / MNIST_FILES[0]
    path.write_bytes(path.read_bytes()[:-1])


def idx_gzip_cut(root: Path) -> None:
    path = mnist_folder(root) / f"{MNIST_FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-10])


def idx_of_labels(root: Path) -> None:
    (mnist_folder(root, "") / MNIST_FILES[0]).write_bytes(b"\x00\x00\x08\x01" + bytes(20))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: None, "no images in it"),
        (text_among_images, "notes.txt: not an image"),
        (two_sizes, r"zz.png: 6×8 grey where .*000.png is 8×8 grey"),
        (grey_and_colour, r"zz.png: 8×8 colour where"),
        (truncated, "000.png: cannot be read as an image"),
        (not_an_image, "000.png: cannot be read as an image"),
        (alpha, "colour mode RGBA"),
        (only_a_test_folder, "no train folder"),
        (stray_beside_train, "extra.png lies beside train"),
        (sizes_differ_between_splits, "test images are 6×6 grey, train images 8×8 grey"),
        (too_few, "5 images"),
        (one_idx_missing, r"t10k-images-idx3-ubyte\[.gz\] is missing"),
        (idx_cut, "pixels where its header promises 30×8×8"),
        (idx_gzip_cut, "cannot be read"),
        (idx_of_labels, "not an IDX file of images"),
    ],
)
def test_bad_folders_are_named_in_one_line(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    spoil(root)
    with pytest.raises(ConfigError) as caught:
        load_dataset(str(root))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_file_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="a file; give the folder"):
        load_dataset(str(tmp_path / "file"))
