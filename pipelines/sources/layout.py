"""Splits and classes as the folders of an image tree name them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from fvae.config import ConfigError, require
from pipelines.sources.base import SPLIT_NAMES, printable

DEEPEST = 2
"""Folders that may lie above ``train``: archives often hold one folder, or two, around everything."""

Parts = tuple[str, ...]


class Layout:
    """What the folder of an image says about it.

    Folders around everything are seen through. Below them either every image lies in a folder named after a split,
    and the folder in that one is its class; or the folder is its class.

    Args:
        where: the source as the user gave it.
        folders: every folder that holds images, where they are known before the first is placed. Without them the
            first folder placed decides whether there are split folders, and :meth:`finish` looks again.
    """

    def __init__(self, where: str, folders: Iterable[str] | None = None) -> None:
        self._where = where
        self._names: dict[str, str] = {}  # split → the folder that names it
        self._placed: dict[str, tuple[str | None, str | None]] = {}
        self._examples: dict[Parts, str] = {}
        self._root: Parts = ()
        self._has_splits = False
        self._known = folders is not None
        if folders is not None:
            self._decide([_parts(folder) for folder in folders])

    def place(self, folder: str, path: str) -> tuple[str | None, str | None]:
        """Split and label of the images in ``folder``, of which ``path`` is one.

        Raises ``ConfigError`` where split folders exist and this one is in none of them.
        """
        found = self._placed.get(folder)
        if found is None:
            parts = _parts(folder)
            if not self._known and not self._placed:
                self._decide([parts])
            self._examples.setdefault(parts, path)
            found = self._placed[folder] = self._place(parts, path)
        return found

    def finish(self) -> None:
        """All are placed. Raises ``ConfigError`` where a later folder shows that the first was a stray."""
        if not self._known and not self._has_splits and self._placed:
            self._decide(list(self._examples))
            if self._has_splits:
                for parts, path in self._examples.items():
                    self._place(parts, path)

    def class_of(self, label: str) -> str | None:
        """The class that a label of :meth:`place` stands for, once all are placed."""
        return label if self._known or self._has_splits else self._class(_parts(label))

    def _class(self, parts: Parts) -> str | None:
        return printable(parts[len(self._root)]) if len(parts) > len(self._root) else None

    def _place(self, parts: Parts, path: str) -> tuple[str | None, str | None]:
        if not self._has_splits:
            return None, self._class(parts) if self._known else "/".join(parts) or None
        depth = len(self._root)
        inside = parts[:depth] == self._root and len(parts) > depth
        split = SPLIT_NAMES.get(parts[depth].lower()) if inside else None
        if split is None:
            raise ConfigError(
                f"{self._where}: {printable(path)} lies beside the split folders; where there are train, val and test "
                "folders, every image belongs in one of them; where a folder called train, val or test is a class, "
                "rename it"
            )
        name = self._names.setdefault(split, parts[depth])
        require(
            name == parts[depth],
            f"{self._where}: the folders {printable(name)} and {printable(parts[depth])} both name the {split} split; "
            "leave one of them",
        )
        return split, printable(parts[depth + 1]) if len(parts) > depth + 1 else None

    def _decide(self, folders: list[Parts]) -> None:
        """Which folders are seen through, and whether those below them are splits."""
        common: Parts = tuple(os.path.commonprefix(folders)) if folders else ()
        for depth, part in enumerate(common[: DEEPEST + 1]):
            if part.lower() in SPLIT_NAMES:
                self._root, self._has_splits = common[:depth], True
                return
        self._root = common
        depth = len(common)
        if depth <= DEEPEST and any(parts[depth].lower() in SPLIT_NAMES for parts in folders if len(parts) > depth):
            self._has_splits = True
            return
        # A tree with splits that has a stray above it would otherwise be taken for classes, and its test images
        # for any others.
        splits: dict[Parts, set[str]] = {}
        for parts in folders:
            for depth, part in enumerate(parts[: DEEPEST + 1]):
                if part.lower() in SPLIT_NAMES:
                    splits.setdefault(parts[:depth], set()).add(SPLIT_NAMES[part.lower()])
        for root, found in splits.items():
            if "train" in found and len(found) > 1:
                self._root, self._has_splits = root, True
                return


def _parts(folder: str) -> Parts:
    return tuple(part for part in folder.split("/") if part not in ("", "."))
