"""Classes of a WebDataset, whose archives hold ``000012.cls`` beside ``000012.jpg``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from fvae.config import ConfigError
from pipelines.data.sources.archives import Found
from pipelines.data.sources.base import BadFile, ImageFile, kept_name, printable

_CLASS = "\1"
"""Separates the place of an image from the class of its sample, in a label."""
SAMPLE_BYTES = 64 << 20
"""Images of one sample that are held back until the class of the sample comes."""


class Samples:
    """Gives the images of each sample in an archive its class, which may come before or after them.

    The class is added to the image's label, from which :func:`place_and_class` reads it again.

    Args:
        where: the source as the user gave it.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._waiting: list[ImageFile] = []  # images of one sample, for their class, which may lie behind them
        self._sample = ""  # the key that these have in common
        self._held = 0
        self._named = ("", "")  # the key of a class that lay before its images, and the class

    def add(self, found: Found, image: ImageFile | BadFile) -> Iterator[ImageFile | BadFile]:
        """Add the image of a member, and yield those that wait for no class."""
        key = _key(found)
        if key != self._sample:
            yield from self.rest()
            self._sample, self._held = key, 0
        if isinstance(image, BadFile):
            yield image
        elif self._named[1] and key == self._named[0]:
            yield _labelled(image, self._named[1])
        else:
            self._waiting.append(image)
            self._held += len(image.content)
            if self._held > SAMPLE_BYTES:  # they are no sample: names with a dot, such as frame.0001.png
                yield from self.rest()

    def add_class(self, found: Found) -> Iterator[ImageFile]:
        """Read the class in a ``.cls`` member, and yield the images that wait for it.

        Raises ``ConfigError`` where some of them were handed over already, as they are too large to wait.
        """
        text = found.read()
        label = text.decode("utf-8", "replace").strip() if isinstance(text, bytes) else ""
        self._named = (_key(found), label)
        if label and self._sample == self._named[0]:
            if self._held > SAMPLE_BYTES:
                raise ConfigError(
                    f"{self._where}: {printable(found.path)} names the class of images of more than "
                    f"{SAMPLE_BYTES:,} bytes before it; pack it before them"
                )
            yield from (_labelled(image, label) for image in self.rest())

    def rest(self) -> list[ImageFile]:
        """The images that wait for a class, which they no longer do."""
        waiting, self._waiting = self._waiting, []
        return waiting


def place_and_class(label: str) -> tuple[str, str | None]:
    """The place in the label of an image, and the class of its sample where it has one."""
    place, marked, name = label.partition(_CLASS)
    return place, kept_name(name) if marked else None


def _key(found: Found) -> str:
    """What the files of one sample have in common: the path up to the first dot of the name."""
    folder, _, name = found.place.rpartition("/")
    return f"{found.archive}/{folder}/{name.partition('.')[0]}"


def _labelled(image: ImageFile, label: str) -> ImageFile:
    return dataclasses.replace(image, label=f"{image.label}{_CLASS}{label}")
