"""What a case of an input is, and what the cases share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.pipelines.data.input_builders import (
    idx,
    images,
    png,
    tar_bytes,
    tree,
)


class Made(NamedTuple):
    """What ingest is to make of an input."""

    counts: tuple[int, int, int] | None
    """Images to train, validate and test on; None where it is to be refused."""
    said: str = ""
    """What the summary or the one line of the error is to hold."""
    classes: tuple[str, ...] = ()
    pixels: Sequence[np.ndarray] = ()
    """Every image ``[H, W]`` or ``[H, W, 3]``, in no order, where they are known."""
    bins: int = 256


class Case(NamedTuple):
    """One input."""

    kind: str
    given: str
    """In words."""
    build: Callable[[Path], list[str]]
    """Makes it in an empty folder; returns ingest's arguments: the source's path below that folder, and options."""
    right: Made


FORTY = images(40)
GREY = images(40, grey=True)
FLAT = np.stack(FORTY).transpose(0, 3, 1, 2).reshape(40, -1)
SPLIT = {"train": FORTY[:25], "val": FORTY[25:33], "test": FORTY[33:]}
COUNTS = (25, 8, 7)
WIDE = [np.random.default_rng(seed).integers(0, 65536, (16, 16), dtype=np.uint16) for seed in range(20)]
WHOLE = (28, 4, 8)
"""Forty images, cut anew."""


def of_files(files: dict[str, bytes], *options: str) -> Callable[[Path], list[str]]:
    """A folder of files."""

    def build(folder: Path) -> list[str]:
        tree(folder / "in", files)
        return ["in", *options]

    return build


def of_one(name: str, content: bytes, *options: str) -> Callable[[Path], list[str]]:
    """One file."""

    def build(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return [name, *options]

    return build


def split_tree(names: dict[str, str], *, classes: tuple[str, ...] = ("",), top: str = "") -> dict[str, bytes]:
    """Forty PNGs in folders that are called so, in classes in turn."""
    return {
        f"{top}{names[split]}/{classes[number % len(classes)]}{'/' if classes[0] else ''}{number:02}.png": png(image)
        for split, part in SPLIT.items()
        for number, image in enumerate(part)
    }


def flat(images_: Sequence[np.ndarray], pattern: str = "{:02}.png") -> dict[str, bytes]:
    return {pattern.format(number): png(image) for number, image in enumerate(images_)}


USUAL = {split: split for split in SPLIT}
ROWS = [{"bytes": png(image), "path": None} for image in FORTY]


def table(**columns: object) -> Callable[[Path], list[str]]:
    """A folder of one Parquet file."""

    def build(folder: Path) -> list[str]:
        (folder / "in").mkdir()
        pq.write_table(pa.table(columns), folder / "in" / "data.parquet")
        return ["in"]

    return build


def tables(rows: dict[str, list[dict[str, object]]]) -> Callable[[Path], list[str]]:
    """Parquet files by their paths."""

    def build(folder: Path) -> list[str]:
        for name, part in rows.items():
            path = folder / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"image": part}), path)
        return ["in"]

    return build


def saved_to_disk(folder: Path) -> list[str]:
    held = pa.table({"image": pa.array(ROWS, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    tree(folder / "in", {"state.json": b"{}", "dataset_info.json": b"{}"})
    path = str(folder / "in" / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, held.schema) as writer:
        writer.write_table(held)
    return ["in"]


def with_link(name: str, target: str) -> Callable[[Path], list[str]]:
    """A folder of forty images and a link."""

    def build(folder: Path) -> list[str]:
        tree(folder / "in", flat(FORTY))
        (folder / "in" / name).symlink_to(target)
        return ["in"]

    return build


def deep_path(folder: Path) -> list[str]:
    """Forty images, of which one has a path longer than the system takes."""
    tree(folder / "in", flat(FORTY[:39]))
    here = os.open(folder / "in", os.O_RDONLY)
    try:
        for _ in range(18):
            os.mkdir("d" * 240, dir_fd=here)
            inner = os.open("d" * 240, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        file = os.open("deep.png", os.O_WRONLY | os.O_CREAT, dir_fd=here)
        os.write(file, png(FORTY[39]))
        os.close(file)
    finally:
        os.close(here)
    return ["in"]


def clutter_at_the_destination(folder: Path) -> list[str]:
    tree(folder / "in", flat(FORTY))
    tree(folder / "out", {".DS_Store": b"x", "Thumbs.db": b"x", "@eaDir/x/SYNOPHOTO_THUMB_M.jpg": b"x"})
    return ["in"]


def shards(*, classes: bool, tables_too: bool = False) -> dict[str, bytes]:
    """Two shards of a WebDataset."""
    made = {}
    for shard in range(2):
        files: dict[str, bytes] = {}
        for number in range(20):
            key = f"{shard:05}{number:04}"
            beside = {f"{key}.cls": str(number % 10).encode()} if classes else {f"{key}.txt": b"a cat"}
            files |= {f"{key}.png": png(FORTY[20 * shard + number]), f"{key}.json": b"{}", **beside}
        made[f"{shard:05}.tar"] = tar_bytes(files)
        if tables_too:
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"url": ["x"], "caption": ["a cat"]}), sink)
            made |= {f"{shard:05}.parquet": sink.getvalue().to_pybytes(), f"{shard:05}_stats.json": b"{}"}
    return made


def cifar(form: Callable[[np.ndarray, list[int]], bytes], names: bytes) -> dict[str, bytes]:
    """CIFAR-10 of 48 images."""
    pictures = images(48, 32)
    files = {"batches.meta": names}
    for number, name in enumerate((*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")):
        part = np.stack(pictures[8 * number :][:8]).transpose(0, 3, 1, 2).reshape(8, -1)
        files[name] = form(part, [k % 10 for k in range(8)])
    return {f"cifar-10-batches-py/{name}": content for name, content in files.items()}


MNIST = {
    "train-images": (np.stack(GREY[:30]), 3),
    "train-labels": (np.arange(30, dtype=np.uint8) % 10, 1),
    "t10k-images": (np.stack(GREY[30:]), 3),
    "t10k-labels": (np.arange(10, dtype=np.uint8), 1),
}
TWICE = {
    name: idx(values)
    for part, (values, dimensions) in MNIST.items()
    for name in (f"{part}.idx{dimensions}-ubyte", f"{part}-idx{dimensions}-ubyte/{part}-idx{dimensions}-ubyte")
}
BINARY = [(image > 128).astype(np.uint8) for image in GREY]
HORSES = ("trainA", "trainB", "testA", "testB")
DIGITS = tuple(map(str, range(10)))
FOUR = [np.dstack([image, other[..., 0]]) for image, other in zip(FORTY, reversed(FORTY), strict=True)]
CLUTTER = {
    ".DS_Store": b"x",
    "cats/Thumbs.db": b"x",
    "$RECYCLE.BIN/S-1-5/$R0001.png": png(images(1, seed=7)[0]),
    "#recycle/cats/old.png": png(images(1, seed=8)[0]),
    "System Volume Information/x.png": png(images(1, seed=9)[0]),
    "@eaDir/x.png": b"x",
    "lost+found/x.png": b"x",
    "__MACOSX/cats/._0.png": b"x",
    ".ipynb_checkpoints/0-checkpoint.png": b"x",
    "cats/0.png:Zone.Identifier": b"x",
}
CATS_AND_DOGS = {f"{'cats' if number % 2 else 'dogs'}/{number}.png": png(image) for number, image in enumerate(FORTY)}
NO_CLASSES: tuple[str, ...] = ()
