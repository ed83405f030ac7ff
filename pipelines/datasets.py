"""Images from where users have them to an :class:`fvae.ImageDataset` in memory.

One seam: ``load_dataset("digits")``, a folder of images, or a folder with the MNIST files.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

from fvae.config import ConfigError, require
from fvae.data import ImageDataset

SPLIT_SEED = 20180916
"""Seeds every random split, so that a data set has the same test images in every search."""
VAL_SHARE = 0.1
TEST_SHARE = 0.2
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MNIST_FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")


def load_dataset(source: str) -> ImageDataset:
    """The data set that ``source`` names: ``digits``, or a folder.

    A folder holds the MNIST files (``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte``,
    gzipped or not), or images of one size, in ``train``/``val``/``test`` folders or without.
    Raises ``ConfigError`` with one line for anything else.
    """
    if source == "digits":
        return _digits()
    path = Path(source)
    try:
        exists = path.exists()
    except OSError as error:
        raise ConfigError(f"dataset {source[:40]!r}…: no path of this machine ({error.strerror})") from error
    require(exists, f"dataset {source!r}: no such folder; give 'digits' or a folder of images or MNIST files")
    require(path.is_dir(), f"dataset {source!r}: a file; give the folder that holds the images or the MNIST files")
    name = path.resolve().name
    if _mnist_file(path, MNIST_FILES[0]):
        return _mnist(name, path)
    return _image_folder(name, path)


def _digits() -> ImageDataset:
    """scikit-learn's 1,797 scanned digits: 8×8, 17 levels (UCI Optical Recognition of Handwritten Digits)."""
    from sklearn.datasets import load_digits  # a second to import, and only this data set needs it

    images = load_digits().images.astype(np.uint8)[:, None]  # [1797, 1, 8, 8]
    return _split("digits", 17, images)


def _split(name: str, bins: int, images: np.ndarray) -> ImageDataset:
    """Train, validation and test by :data:`SPLIT_SEED`."""
    require(len(images) >= 10, f"dataset {name!r}: {len(images)} images; a split in three needs at least 10")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    test, val = math.ceil(TEST_SHARE * len(images)), math.ceil(VAL_SHARE * len(images))
    parts = np.split(images[order], (test, test + val))
    return ImageDataset(name=name, bins=bins, test=parts[0], val=parts[1], train=parts[2])


def _hold_out(images: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """``share`` of the images, by :data:`SPLIT_SEED`, and the others."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    count = math.ceil(share * len(images))
    return images[order[:count]], images[order[count:]]


# --- MNIST -----------------------------------------------------------------------------------------


def _mnist_file(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _mnist(name: str, folder: Path) -> ImageDataset:
    """The published test files are the test split; validation is cut from the training file."""
    splits = []
    for file in MNIST_FILES:
        path = _mnist_file(folder, file)
        if path is None:
            raise ConfigError(f"dataset {str(folder)!r}: {file}[.gz] is missing beside the other MNIST file")
        splits.append(_read_idx(path))
    train, test = splits
    val, train = _hold_out(train, VAL_SHARE)
    return ImageDataset(name=name, bins=256, train=train, val=val, test=test)


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes in three dimensions, as ``[N, 1, H, W]``."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    require(content[:4] == b"\x00\x00\x08\x03", f"{path}: not an IDX file of images (magic {content[:4].hex()})")
    count, height, width = (int.from_bytes(content[start : start + 4], "big") for start in (4, 8, 12))
    pixels = np.frombuffer(content, np.uint8, offset=16)
    require(
        len(pixels) == count * height * width,
        f"{path}: {len(pixels)} pixels where its header promises {count}×{height}×{width}",
    )
    return pixels.reshape(count, 1, height, width)


# --- a folder of images ------------------------------------------------------------------------------


def _image_folder(name: str, folder: Path) -> ImageDataset:
    """``train``/``val``/``test`` below the folder are the splits; what is missing is cut from train."""
    splits = {split: folder / split for split in ("train", "val", "test") if (folder / split).is_dir()}
    if "train" not in splits:
        require(
            not splits, f"dataset {str(folder)!r}: has a {' and a '.join(splits)} folder but no train folder beside it"
        )
        return _split(name, 256, _read_folder(folder))
    for stray in sorted(folder.iterdir()):
        require(
            stray.name.startswith(".") or stray in splits.values(),
            f"dataset {str(folder)!r}: {stray.name} lies beside train; only train, val and test belong there",
        )
    images = {split: _read_folder(path) for split, path in splits.items()}
    train = images["train"]
    if "test" not in images:
        images["test"], train = _hold_out(train, TEST_SHARE)
    if "val" not in images:
        images["val"], train = _hold_out(train, VAL_SHARE)
    for split, held in images.items():
        require(
            held.shape[1:] == train.shape[1:],
            f"dataset {str(folder)!r}: {split} images are {_size(held)}, train images {_size(train)}; "
            "every image needs the same size and the same colours",
        )
    return ImageDataset(name=name, bins=256, train=train, val=images["val"], test=images["test"])


def _size(images: np.ndarray) -> str:
    channels, height, width = images.shape[1:]
    return f"{width}×{height} {'grey' if channels == 1 else 'colour'}"


def _read_folder(folder: Path) -> np.ndarray:
    """Every image below ``folder`` (class folders and all), sorted by path: uint8 ``[N, C, H, W]``."""
    paths = []
    for path in folder.rglob("*"):  # stops at the first stray: the folder may be a whole disk, given by mistake
        if path.is_file() and not path.name.startswith("."):
            is_image = path.suffix.lower() in SUFFIXES
            require(is_image, f"{path}: not an image; a data set folder holds only {', '.join(SUFFIXES)} files")
            paths.append(path)
    require(bool(paths), f"dataset {str(folder)!r}: no images in it; needs {', '.join(SUFFIXES)} files")
    paths.sort()
    arrays: list[np.ndarray] = []
    for path in paths:
        array = _read_image(path)
        if arrays and array.shape != arrays[0].shape:
            raise ConfigError(
                f"{path}: {_size(array[None])} where {paths[0]} is {_size(arrays[0][None])}; "
                "every image needs the same size and the same colours"
            )
        arrays.append(array)
    return np.stack(arrays)


def _read_image(path: Path) -> np.ndarray:
    """One image file, uint8 ``[C, H, W]``: grey (1 channel) or RGB (3)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            require(
                image.mode in ("L", "RGB"),
                f"{path}: colour mode {image.mode}; only 8-bit grey and RGB images are read, so convert it first",
            )
            array = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path}: cannot be read as an image ({error})") from error
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
