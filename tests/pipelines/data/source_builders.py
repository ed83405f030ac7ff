"""What the tests of the sources share: real files in, items out."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.decode.conversion import Conversion, convert
from pipelines.data.sources import BadFile, ImageFile, Pixels, Source
from pipelines.storage import open_storage


def png(seed: int = 0, side: int = 8) -> bytes:
    """A grey PNG, another one for each seed."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pngs(*paths: str) -> dict[str, bytes]:
    """Different PNGs by path."""
    return {path: png(seed) for seed, path in enumerate(paths)}


def folder(root: Path, files: Mapping[str, bytes]) -> str:
    """The files in a folder; its path."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz", form: int = tarfile.PAX_FORMAT) -> str:
    """The files in a tar archive, in the order given; its path."""
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def zipped(path: Path, files: Mapping[str, bytes]) -> str:
    """The files in a zip archive; its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def stored(uri: str, files: Mapping[str, bytes]) -> str:
    """The files below a prefix of a store; its URI."""
    storage = open_storage(uri)
    for name, content in files.items():
        storage.write(name, content)
    return uri


TREE = pngs(
    "train/cat/1.png", "train/cat/2.PNG", "train/dog/a/3.jpeg", "val/cat/4.webp", "test/dog/5.bmp", "test/6.tiff"
)
"""A tree with splits, classes and every suffix."""
CLUTTER = {
    "train/.hidden.png": b"x",
    "__MACOSX/train/cat/._1.png": b"x",
    ".DS_Store": b"x",
    "train/cat/Thumbs.db": b"x",
    "README.md": b"hello",
    "train/labels.txt": b"1",
    "train/cat/labels.txt": b"1",
}
"""What may lie in a tree and is no image of it."""
PACKERS: dict[str, Callable[[Path, dict[str, bytes]], str]] = {
    "folder": lambda root, tree: folder(root / "set", tree),
    "tar": lambda root, tree: tar(root / "set.tar", tree, "w"),
    "tar.gz": lambda root, tree: tar(root / "set.tar.gz", tree),
    "tar.bz2": lambda root, tree: tar(root / "set.tar.bz2", tree, "w:bz2"),
    "tar.xz": lambda root, tree: tar(root / "set.tar.xz", tree, "w:xz"),
    "zip": lambda root, tree: zipped(root / "set.zip", tree),
}
"""Ways to pack a tree below a folder; each returns its path."""


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    """An IDX file."""
    return bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def files_of(source: Source) -> dict[str, tuple[bytes, str | None, str | None]]:
    """Path → content, split and class of every image file of a source, in its order. Fails for anything else."""
    items = list(source.items())
    assert all(isinstance(item, ImageFile) for item in items), items
    return {item.path: (item.content, split_of(source, item), named(source, item.label)) for item in items}  # type: ignore


def splits_and_classes(source: Source) -> dict[str, tuple[str | None, str | None]]:
    """Path → split and class."""
    return {path: (split, label) for path, (_, split, label) in files_of(source).items()}


def bad_of(source: Source) -> dict[str, str]:
    """Path → cause of what cannot be handed over."""
    return {item.path: item.cause for item in source.items() if isinstance(item, BadFile)}


def pixels_of(source: Source) -> dict[str | None, tuple[np.ndarray, list[str | None] | None]]:
    """Split → images and classes of a source of arrays."""
    images: dict[str | None, list[np.ndarray]] = {}
    labels: dict[str | None, list[str | None]] = {}
    for item in source.items():
        assert isinstance(item, Pixels), item
        assert item.images.ndim == 3 or item.images.shape[3] in (1, 3)
        converted = [convert(image, Conversion()).pixels for image in item.images]
        images.setdefault(item.split, []).append(np.stack(converted))
        if item.labels is not None:
            assert len(item.labels) == len(item.images)
            labels.setdefault(item.split, []).extend(item.labels)
    return {
        split: (
            np.concatenate(parts),
            [named(source, label) for label in labels[split]] if split in labels else None,
        )
        for split, parts in images.items()
    }


def split_of(source: Source, item: ImageFile) -> str | None:
    """The split of an image file."""
    return item.split if item.split or item.label is None else source.split_of(item.label)


def named(source: Source, label: str | None) -> str | None:
    """The class that a label stands for."""
    return None if label is None else source.class_of(label)
