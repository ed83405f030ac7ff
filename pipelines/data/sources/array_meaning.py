"""The meaning of arrays: images or labels, of which split, and the order of their dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fvae.config import require
from pipelines.data.sources.base import LARGEST_IMAGE
from pipelines.data.sources.npy_format import Array
from pipelines.data.sources.splits.names import SPLIT_NAMES, read_name

IMAGE_KEYS = ("images", "image", "imgs", "img", "x", "data", "pixels", "samples", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "targets", "target")
LEAST_SIDE = 8
"""Pixels of the side of an image that lies as one row: shorter rows are no images."""


@dataclass(frozen=True, slots=True)
class Named:
    """Images and labels that belong together by their names."""

    split: str | None
    images: str
    labels: str | None


def assign(where: str, arrays: Mapping[str, Array]) -> tuple[list[Named], list[str]]:
    """Which arrays are the images and labels of which split, and the names of the others. Raises ``ConfigError``."""
    images: dict[str | None, str] = {}
    labels: dict[str | None, str] = {}
    for name in arrays:
        kind, split = meaning(name)
        if kind is None or (name.lower() == "arr_0" and len(arrays) > 1):
            continue
        found = images if kind == "images" else labels
        require(split not in found, f"{where}: {found.get(split)} and {name} both mean the same; leave one of them")
        found[split] = name
    if not images and len(arrays) == 1:
        images[None] = next(iter(arrays))
    if not images:
        images, labels = _by_position(arrays)
    held = ", ".join(arrays) or "nothing"
    require(
        bool(images),
        f"{where}: holds {held}; needs images, x, or x_train, x_val and x_test (labels in y, y_train …)",
    )
    require(
        None not in images or len(images) == 1,
        f"{where}: {images.get(None)} belongs to no split, beside {', '.join(n for s, n in images.items() if s)}",
    )
    stray = [name for split, name in labels.items() if split not in images]
    require(not stray, f"{where}: {', '.join(stray)}: labels without images")
    used = {*images.values(), *labels.values()}
    parts = [Named(split, name, labels.get(split)) for split, name in images.items()]
    return parts, [name for name in arrays if name not in used]


def meaning(name: str) -> tuple[str | None, str | None]:
    """``x_train`` → ``images``, ``train``; ``labels`` → ``labels``, None; ``mean`` → None, None."""
    parts = [part for part in name.lower().replace("-", "_").split("_") if part]
    split = next((SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES), None)
    rest = "_".join(part for part in parts if part not in SPLIT_NAMES)
    if rest in LABEL_KEYS:
        return "labels", split
    if rest in IMAGE_KEYS or (split and not rest):
        return "images", split
    if rest.startswith("data_batch") and (batch := read_name(name)):  # of the published CIFAR and ImageNet
        return "images", batch.split
    return None, None


def _by_position(arrays: Mapping[str, Array]) -> tuple[dict[str | None, str], dict[str | None, str]]:
    """``np.savez(path, images, labels)`` names both by position: ``arr_0`` and ``arr_1``."""
    if not all(name.startswith("arr_") for name in arrays):
        return {}, {}
    images = [name for name, array in arrays.items() if len(array.shape) >= 3]
    if len(images) != 1:
        return {}, {}
    count = arrays[images[0]].shape[0]
    labels = [name for name, array in arrays.items() if array.shape in ((count,), (count, 1))]
    return {None: images[0]}, {None: labels[0]} if len(labels) == 1 else {}


# --- dimensions -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """How the rows of an array become images."""

    note: str = ""
    shape: tuple[int, ...] = ()
    """The shape of one image, where a row is flat."""
    channels_first: bool = False

    def images(self, rows: np.ndarray) -> np.ndarray:
        """``[N, H, W]`` or ``[N, H, W, C]``."""
        if self.shape:
            rows = rows.reshape(len(rows), *self.shape)
        return rows.transpose(0, 2, 3, 1) if self.channels_first else rows


def form_of(array: Array, *, planar: bool = False) -> Form:
    """How the dimensions of an array are meant. Raises ``ConfigError`` where they are ambiguous.

    Args:
        array: many images.
        planar: whether flat rows of colour images are known to hold one channel after the other.
    """
    shape = "×".join(map(str, array.shape)) or "()"
    require(0 not in array.shape, f"{array.where}: empty ({shape})")
    require(
        math.prod(array.shape[1:]) <= LARGEST_IMAGE,
        f"{array.where}: damaged: its header promises images of {shape}",
    )
    if len(array.shape) == 2 and (flat := _flat(array, shape, planar)):
        return flat
    require(
        len(array.shape) in (3, 4),
        f"{array.where}: has shape {shape}; reshape it to [N, H, W], [N, H, W, 1 or 3] or [N, 1 or 3, H, W]",
    )
    first, last = array.shape[1], array.shape[-1]
    if len(array.shape) == 3:
        require(
            last not in (1, 3),
            f"{array.where}: shape {shape} is one picture or many that are {last} wide; give it four dimensions",
        )
        return Form()
    require(
        first in (1, 3) or last in (1, 3),
        f"{array.where}: shape {shape} has neither first nor last 1 or 3 channels; an alpha channel is to be dropped",
    )
    require(
        first not in (1, 3) or last not in (1, 3),
        f"{array.where}: shape {shape} may have its channels first or last; crop or resize it so that it tells",
    )
    layout = "[N, H, W, C]" if last in (1, 3) else "[N, C, H, W]"
    return Form(f"arrays of four dimensions read as {layout}", channels_first=last not in (1, 3))


def _flat(array: Array, shape: str, planar: bool) -> Form | None:
    """The form of square images that lie as one row each; None where the rows are none."""
    length = array.shape[1]
    side = flat_side(length)
    if side:
        return Form(f"rows of {length:,} values read as {side}×{side}", (side, side))
    side = flat_side(length // 3) if length % 3 == 0 else 0
    if not side:
        return None
    require(
        planar,
        f"{array.where}: the rows of shape {shape} may be {side}×{side}×3 or 3×{side}×{side}; save "
        f"x.reshape(-1, {side}, {side}, 3) or x.reshape(-1, 3, {side}, {side})",
    )
    note = f"rows of {length:,} values read as 3×{side}×{side}, one channel after the other"
    return Form(note, (3, side, side), channels_first=True)


def flat_side(length: int) -> int:
    """The side of a square image of so many pixels; 0 where it would be none."""
    side = math.isqrt(length)
    return side if side * side == length and side >= LEAST_SIDE else 0


def check_type(array: Array) -> str:
    """The type of an array of images where it says nothing about white (floats), else nothing.

    Raises ``ConfigError`` where it holds no numbers.
    """
    kind = array.dtype.kind
    require(
        not array.dtype.hasobject,
        f"{array.where}: an array of objects; only numbers are read: save np.stack(images) as uint8",
    )
    require(
        kind in "buif" and array.dtype.names is None and array.dtype.subdtype is None,
        f"{array.where}: holds {array.dtype}; levels are whole numbers: save the images as uint8",
    )
    return str(array.dtype) if kind == "f" else ""


# --- labels -----------------------------------------------------------------------------------------------


def check_count(array: Array, count: int) -> None:
    """Raise ``ConfigError`` where labels are not those of ``count`` images."""
    require(
        array.shape[:1] == (count,),
        f"{array.where}: labels of shape {array.shape} for {count:,} images; needs one for each, [{count}]",
    )


def read_labels(array: Array) -> tuple[list[str | None] | None, str]:
    """The labels of images, one each, or None and why they are left out.

    Numbers that are whole are cast, whatever their type; not a number stands for no label.
    """
    name = array.where.rpartition("/")[2].removesuffix(".npy")
    shape = ", ".join(map(str, array.shape))
    if math.prod(array.shape[1:]) != 1:
        return None, f"{name} left out: labels of shape [{shape}], not one for each image"
    if array.dtype.kind not in "uifbUS" or array.dtype.itemsize > 4096:
        return None, f"{name} left out: labels of type {array.dtype}, neither whole numbers nor texts"
    labels: list[str | None] = []
    for rows in array.rows():
        values = rows.reshape(-1)
        if array.dtype.kind == "f":
            whole = np.isfinite(values) & (values == np.floor(values))
            if not (whole | np.isnan(values)).all():
                return None, f"{name} left out: labels that are not whole numbers"
            labels += [str(int(value)) if fits else None for value, fits in zip(values, whole, strict=True)]
        elif array.dtype.kind == "S":
            labels += [value.decode("utf-8", "replace") for value in values.tolist()]
        else:
            labels += [str(value) for value in values.tolist()]
    return labels, ""
