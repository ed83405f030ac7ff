"""The manifest of a data set on disk: what it holds, in which shards, and where its images came from.

A data set is a folder or prefix with ``manifest.json`` and the Parquet shards that it names (see
:mod:`fvae.data.shards`). The manifest is written last: where there is one, the data set is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fvae.config import ConfigError, from_fields, require, require_integer

SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
FORMAT = 1
"""Version of manifest and shards that this code writes and reads."""

# A key comes from a file that anyone may have written: one plain name beside the manifest, no path.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_HEX = re.compile(r"[0-9a-f]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a data set. Raises ``ConfigError`` for values that none can have."""

    key: str
    """Its name beside the manifest, e.g. ``train-00000-1a2b3c4d.parquet``."""
    split: str
    """``train``, ``val`` or ``test``."""
    images: int
    """How many images it holds."""
    bytes: int
    """Its size on disk."""
    sha256: str
    """SHA-256 of the file's bytes: 64 hex digits."""

    def __post_init__(self) -> None:
        _require_text("shard key", self.key)
        require(
            _KEY.fullmatch(self.key) is not None,
            f"shard key {self.key!r}: must be a file name of letters, digits, '-', '_' and '.'",
        )
        require(self.split in SPLITS, f"shard {self.key}: split={self.split!r}: must be one of {', '.join(SPLITS)}")
        require_integer(f"shard {self.key}: images", self.images, 1)
        require_integer(f"shard {self.key}: bytes", self.bytes, 1)
        require(
            isinstance(self.sha256, str) and len(self.sha256) == 64 and _HEX.fullmatch(self.sha256) is not None,
            f"shard {self.key}: sha256={self.sha256!r}: must be 64 hex digits",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``manifest.json``. Raises ``ConfigError`` where its values do not fit together."""

    format: int = FORMAT
    """Version of the layout."""
    name: str
    """Short name of the data set, as in run names and MLflow experiments."""
    shape: tuple[int, int, int]
    """``(C, H, W)`` of every image."""
    bins: int
    """Levels L of a pixel: images hold the integers 0 … bins − 1."""
    counts: dict[str, int]
    """Images of each split."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them, −1 is none. Empty where images have no classes."""
    hash: str
    """:func:`content_hash` of the decoded pixels: 16 hex digits."""
    shards: tuple[Shard, ...]
    """Every file of pixels, in stored order."""
    source: dict[str, Any]
    """What the images were made from (JSON values)."""
    settings: dict[str, Any]
    """Settings of the ingest: size, channels, val, test, seed (JSON values)."""
    decisions: tuple[str, ...] = ()
    """What was decided about the images on the way, one plain line each."""
    duplicates_dropped: int = 0
    """Images left out because another split holds the same pixels."""
    bad_files: int = 0
    """Files of the source that gave no image."""

    def __post_init__(self) -> None:
        require(
            self.format == FORMAT,
            f"format={self.format!r}: this version reads format {FORMAT}; ingest the data set again with this version",
        )
        _require_text("name", self.name)
        require(isinstance(self.shape, tuple) and len(self.shape) == 3, f"shape={self.shape!r}: must be three integers")
        for value in self.shape:
            require_integer("shape", value, 1)
        require_integer("bins", self.bins, 2)
        require(self.bins <= 256, f"bins={self.bins}: pixels are uint8, so at most 256")
        require(
            isinstance(self.counts, dict) and set(self.counts) == set(SPLITS),
            f"counts={self.counts!r}: must give the images of {', '.join(SPLITS)}",
        )
        require(
            isinstance(self.hash, str) and len(self.hash) == 16 and _HEX.fullmatch(self.hash) is not None,
            f"hash={self.hash!r}: must be 16 hex digits",
        )
        for name in ("classes", "decisions"):
            values = getattr(self, name)
            require(
                isinstance(values, tuple) and all(isinstance(value, str) for value in values),
                f"{name}={values!r}: must be a list of texts",
            )
        for name in ("source", "settings"):
            require(isinstance(getattr(self, name), dict), f"{name}={getattr(self, name)!r}: must be an object")
        for name in ("duplicates_dropped", "bad_files"):
            require_integer(name, getattr(self, name), 0)
        keys = [shard.key for shard in self.shards]
        require(len(set(keys)) == len(keys), "shards: two have the same key")
        for split in SPLITS:
            require_integer(f"counts: {split}", self.counts[split], 1)
            held = sum(shard.images for shard in self.of_split(split))
            require(
                held == self.counts[split],
                f"counts: {split}={self.counts[split]}, but its shards hold {held} images",
            )

    @property
    def images(self) -> int:
        """Images of all splits."""
        return sum(self.counts.values())

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """The shards of one split, in stored order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values; ``from_dict`` is its inverse."""
        values = dataclasses.asdict(self)
        return values | {name: list(values[name]) for name in ("shape", "classes", "shards", "decisions")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Manifest:
        """Build from ``to_dict``'s result. Raises ``ConfigError`` on anything else."""
        require(isinstance(values, dict), "must be an object")
        # Another version may have other fields: say that first.
        require(
            values.get("format") == FORMAT,
            f"format={values.get('format')!r}: this version reads format {FORMAT}; "
            "ingest the data set again with this version",
        )
        changes: dict[str, Any] = {}
        for name in ("shape", "classes", "decisions", "shards"):
            if name in values:
                require(isinstance(values[name], list), f"{name}={values[name]!r}: must be a list")
                changes[name] = tuple(values[name])
        for shard in changes.get("shards", ()):
            require(isinstance(shard, dict), f"shards: {shard!r}: must be an object")
        if "shards" in changes:
            changes["shards"] = tuple(from_fields(Shard, shard) for shard in changes["shards"])
        return from_fields(cls, {**values, **changes})

    def to_json(self) -> str:
        """The text of ``manifest.json``: equal manifests give equal text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, content: str | bytes, where: str = MANIFEST) -> Manifest:
        """Read :meth:`to_json`'s text. Raises ``ConfigError``, one line that names ``where``, if it is damaged."""
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: damaged, not JSON ({error}); ingest the data set again") from error
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{where}: no manifest of a data set: {error}") from error


def _require_text(name: str, value: Any) -> None:
    require(isinstance(value, str) and value.strip() != "", f"{name}={value!r}: must be a text that is not empty")


def require_split(split: str, splits: Iterable[str]) -> None:
    """Raise ``ConfigError`` unless ``split`` is one of ``splits``."""
    names = tuple(splits)
    require(split in names, f"split={split!r}: must be one of {', '.join(names)}")


def image_digest(image: np.ndarray) -> bytes:
    """SHA-256 of the pixels of one image, uint8 ``[C, H, W]``: 32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()


def content_hash(bins: int, shape: tuple[int, int, int], digests: Mapping[str, Iterable[bytes]]) -> str:
    """SHA-256 (hex, 16 digits) over every pixel, by split; the order of the images is no part of it.

    ``digests`` has each split's :func:`image_digest` s, the splits in the order train, val, test.
    """
    total = hashlib.sha256(repr((bins, tuple(shape))).encode())
    for split, of_images in digests.items():
        total.update(split.encode() + b"".join(sorted(of_images)))
    return total.hexdigest()[:16]
