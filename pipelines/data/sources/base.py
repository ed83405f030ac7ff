"""The interface of sources: encoded image files, arrays of pixels, and files that cannot be read."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fvae.config import ConfigError
from pipelines.cli.terminal import without_controls

CHUNK_BYTES = 4 << 20
"""Pixels that a source of arrays hands over at a time."""
LARGEST_FILE = 256 << 20
"""An encoded image file above this is not read: it would fill the memory and is no photograph."""
LARGEST_IMAGE = 50_000_000
"""Pixels of one image of an array source, above which its header is taken for a damaged one."""
LEFT_OUT = ""
"""Split of an image that an explicit ``--splits`` does not name."""
_PART_OF_WORDS = "\u200c\u200d\u3000"
"""Joiners and the space of scripts and emoji that need them: Python does not call them printable."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One encoded image."""

    path: str
    """Inside the source, with ``/``; shown to users."""
    content: bytes
    split: str | None
    """``train``, ``val`` or ``test``; ``None`` where the source does not say."""
    label: str | None
    """To be given to :meth:`Source.class_of` and :meth:`Source.split_of` after the last item."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Images that need no decoding."""

    path: str
    """The file that they come from, inside the source; shown to users."""
    images: np.ndarray
    """``[N, H, W]`` or ``[N, H, W, 1 or 3]``, in the source's own type, as ``decode.conversion.convert`` takes it."""
    split: str | None
    labels: tuple[str | None, ...] | None
    """One for each image, to be given to :meth:`Source.class_of` after the last item."""


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file of the source that cannot be read."""

    path: str
    cause: str


Item = ImageFile | Pixels | BadFile


class Source(ABC):
    """Images as a user has them. Whatever is wrong with it as a whole raises ``ConfigError`` with one line."""

    name: str
    """Short: the folder or the file without its suffixes."""
    kind: str
    """In words: ``image folder``, ``tar archive``, ``IDX files`` …"""
    bins: int | None = None
    """Levels of a pixel; None where the source does not say, and the values themselves decide."""
    needs_range: str = ""
    """The type of the values where it does not define black and white (floats); empty otherwise."""
    notes: list[str]
    """Decisions that the source itself made, one plain line each. Final after the last item."""
    origins: Mapping[str, Sequence[str]]
    """The folders, files or parts of names that each split comes from. Final after the last item."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.notes = []
        self.origins = {}

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digits that change when the input does; found without decoding anything."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Everything in a fixed order, as a stream. May be called again, and then starts again.

        Raises ``ConfigError`` also after a part was handed over (a truncated archive shows its end last):
        only what was exhausted is whole.
        """

    def count(self) -> int | None:
        """How many images there are, where that is known without reading them all."""
        return None

    def class_of(self, label: str) -> str | None:
        """The class that an item's ``label`` stands for; to be asked after the last item.

        An archive that is read as a stream learns only at its end whether ``photos/cat/1.png`` shows
        a photo (other folders lie beside ``photos``) or a cat.
        """
        return label

    def split_of(self, label: str) -> str | None:
        """The split that an item's ``label`` stands for where the item names none; to be asked after the last item.

        :data:`LEFT_OUT` where the image is left out.
        """
        return None


class Question(ConfigError):
    """The input is ambiguous. The line names the option of ``python -m pipelines.ingest`` that answers."""


def digest(*parts: object) -> str:
    """A fingerprint of some values: SHA-256, 64 hex digits."""
    return digest_all(parts)


def digest_all(parts: Iterable[object]) -> str:
    """:func:`digest` of many values."""
    total = hashlib.sha256()
    for part in parts:
        content = str(part).encode("utf-8", "surrogateescape")
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()


def too_large(size: int) -> str:
    """Why a file of ``size`` bytes, more than ``LARGEST_FILE``, is not read."""
    return f"{size:,} bytes: too large for an image file (at most {LARGEST_FILE:,})"


def printable(name: str) -> str:
    """A file name that can be printed on one line, logged and kept in JSON, whatever bytes and characters it holds.

    Bytes that are not UTF-8 are escaped, and so are control characters, direction marks and spaces that look like
    another character.
    """
    if name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        character
        if character.isprintable() or character in _PART_OF_WORDS
        else character.encode("unicode_escape").decode()
        for character in text
    )


def kept_name(name: str) -> str:
    """The name of a class or a data set as it is kept: itself, unless it holds control characters or is no UTF-8."""
    if name.isascii() and name.isprintable():
        return name
    return without_controls(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def shortened(name: str, most: int = 80) -> str:
    """A name for a line on the screen: printable, its middle left out where it is longer than ``most``."""
    shown = printable(name)
    return shown if len(shown) <= most else f"{shown[: most // 2]}…{shown[-most // 2 + 1 :]}"


def suffix_of(name: str) -> str:
    """The suffix in small letters (``.jpg``), or nothing."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem and suffix else ""


def suffix_counts(counts: dict[str, int]) -> str:
    """``.txt ×12, .gif ×3``: most frequent first, the rest as a number."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{suffix or 'no suffix'} ×{number:,}" for suffix, number in ranked[:6]]
    return ", ".join(shown) + (f" and {len(ranked) - 6} more kinds" if len(ranked) > 6 else "")
