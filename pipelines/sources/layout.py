"""Splits and classes as the folders of an image tree, or the names of files, give them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from fvae.config import require
from pipelines.sources.base import Question, printable
from pipelines.sources.split_names import SPLIT_NAMES, SplitName, are_splits, listed_splits, of_file_name, read_names

LEFT_OUT = ""
"""Split of what an explicit ``--splits`` does not name."""
_WORDS = "data image images img imgs jpeg jpegimages jpegs jpg jpgs photos pics pictures png pngs rgb"
_CONTAINERS = frozenset(_WORDS.split())
"""Folders inside a split that hold its images and name no class."""
_FILE = "\0"
"""Marks the split word of a file's name in a place."""

Parts = tuple[str, ...]
Place = tuple[str | None, str | None]


class Splits:
    """What ``--splits`` asks for: ``auto``, ``none``, or ``train=NAME,val=NAME,test=NAME`` with patterns of names.

    Raises ``ConfigError`` for anything else.
    """

    def __init__(self, text: str = "auto") -> None:
        self.text = text
        self.patterns: list[tuple[str, str]] = []
        if text in ("auto", "none"):
            return
        for part in text.split(","):
            split, equals, name = part.strip().partition("=")
            require(
                bool(equals) and split in ("train", "val", "test") and name.strip("/ ") != "",
                f"--splits={text!r}: auto, none, or folders such as train=train2017,val=val2017",
            )
            self.patterns.append((split, name.strip("/ ")))
        require(
            any(split == "train" for split, _ in self.patterns),
            f"--splits={text!r}: names no train split; every model needs one: add train=NAME",
        )

    def of(self, parts: Parts) -> tuple[str, int] | None:
        """The split that the patterns give a path, and the number of its parts up to the one named."""
        for depth in range(1, len(parts) + 1):
            for split, pattern in self.patterns:
                whole = "/".join(parts[max(0, depth - 1 - pattern.count("/")) : depth])
                if fnmatchcase(whole, pattern):
                    return split, depth
        return None


def place_of(path: str) -> str:
    """The place of an image: its folder, and the split that its file's name seems to mean."""
    folder, _, name = path.replace("\\", "/").rpartition("/")
    split = of_file_name(name.rpartition(".")[0] or name)
    return f"{folder}/{_FILE}{split}" if split else folder


class Layout:
    """What the places of images say about them.

    Folders around everything are seen through. Below them either every image lies in a folder named after a split, at
    any depth, and the folder in that one (or else the one above it) is its class; or the folder is its class. Where
    no folder names a split, the files' names may.

    Args:
        where: the source as the user gave it.
        places: every place of :func:`place_of` with one image that lies there.
        splits: what the user says about splits.
        lists: the other files that may list the images of each split.

    Raises ``Question`` where the names are ambiguous; the line names the option that answers.
    """

    def __init__(self, where: str, places: Mapping[str, str], splits: Splits, lists: Sequence[str] = ()) -> None:
        self.origins: dict[str, list[str]] = defaultdict(list)
        """The folders or the parts of file names that each split comes from."""
        self._noted: set[tuple[str, str]] = set()
        self._where = where
        self._splits = splits
        self._examples = places
        self._parts = {place: _parts(place.partition(_FILE)[0]) for place in places}
        self._root: Parts = tuple(os.path.commonprefix(list(self._parts.values()))) if places else ()
        self._placed: dict[str, Place] = {}
        if splits.patterns:
            self._by_patterns()
        elif splits.text == "none" or not (self._by_folders() or self._by_file_names()):
            shown = ", ".join(map(printable, sorted(lists)[:3])) + (" …" if len(lists) > 3 else "")
            if splits.text == "auto" and are_splits(split for name in lists for split in listed_splits(name)):
                raise Question(
                    f"{where}: {shown} may list published splits, which are not read from there: move the images into "
                    "folders train, val and test, or cut all of them anew (--splits none)"
                )
            self._placed = {place: (None, self._class(parts)) for place, parts in self._parts.items()}

    def place(self, place: str) -> Place:
        """Split and class of a place. The split is :data:`LEFT_OUT` where ``--splits`` names others only."""
        return self._placed[place]

    def _note_origin(self, split: str, origin: str) -> None:
        if (split, origin) not in self._noted:
            self._noted.add((split, origin))
            self.origins[split].append(origin)

    def _class(self, parts: Parts, start: int | None = None) -> str | None:
        depth = len(self._root) if start is None else start
        return printable(parts[depth]) if len(parts) > depth else None

    # --- folders ----------------------------------------------------------------------------------------------

    def _by_folders(self) -> bool:
        children: dict[Parts, set[str]] = defaultdict(set)
        for parts in self._parts.values():
            for depth, part in enumerate(parts):
                children[parts[:depth]].add(part)
        named = {parent: read_names(names) for parent, names in children.items()}
        shared = len(self._root)

        def first(parts: Parts, start: int) -> int | None:
            return next((at for at in range(start, len(parts)) if parts[at] in named[parts[:at]]), None)

        depths = {place: first(parts, shared) for place, parts in self._parts.items()}
        around = first(self._root, 0)
        if around is not None and None in depths.values():
            depths = dict.fromkeys(depths, around)
        found = {
            place: (at, named[parts[:at]][parts[at]])
            for place, parts in self._parts.items()
            if (at := depths[place]) is not None
        }
        if not found:
            return False
        if len(found) < len(depths):
            raise self._stray(next(place for place in depths if place not in found), found)
        self._root = self._root[: min(depth for depth, _ in found.values())]
        self._require_one_variant(found)
        self._classes(found)
        return True

    def _stray(self, stray: str, found: Mapping[str, tuple[int, SplitName]]) -> Question:
        place, (depth, _) = next(iter(found.items()))
        folder = "/".join(self._parts[place][: depth + 1])
        return Question(
            f"{self._where}: {printable(self._examples[stray])} lies beside the split folders ({printable(folder)}); "
            "where there are train, val and test folders, every image belongs in one of them: move it, name the "
            "folders to take (--splits train=FOLDER,test=FOLDER), or take such folders for classes (--splits none)"
        )

    def _require_one_variant(self, found: Mapping[str, tuple[int, SplitName]]) -> None:
        """Raise ``ConfigError`` where two folders side by side name one split and are not parts of it."""
        names: dict[tuple[Parts, str], dict[str, str]] = defaultdict(dict)
        for place, (depth, name) in found.items():
            parts = self._parts[place]
            names[parts[:depth], name.split].setdefault(name.variant, parts[depth])
            self._note_origin(name.split, "/".join(parts[: depth + 1]))
        for (_, split), variants in names.items():
            one, *others = variants.values()
            if others:
                answer = f"train={one}" if split == "train" else f"train=FOLDER,{split}={one}"
                raise Question(
                    f"{self._where}: the folders {printable(one)} and {printable(others[0])} both name the {split} "
                    f"split; leave one of them, or name the folders to take: --splits {printable(answer)}"
                )

    def _classes(self, found: Mapping[str, tuple[int, SplitName]]) -> None:
        inside: dict[Parts, set[str]] = defaultdict(set)
        for parts in self._parts.values():
            for depth in range(len(parts)):
                inside[parts[:depth]].add(parts[depth])
        letters: dict[str, set[str]] = defaultdict(set)
        for _, name in found.values():
            letters[name.split].add(name.part)
        for place, (depth, name) in found.items():
            parts = self._parts[place]
            below = depth + 1
            while (
                len(parts) > below
                and inside[parts[:below]] == {parts[below]}
                and (parts[below].lower() in _CONTAINERS or parts[below] == parts[depth])
            ):
                below += 1
            label = self._class(parts, len(self._root)) if depth > len(self._root) else self._class(parts, below)
            if label is None and name.part.isalpha() and len(letters[name.split]) > 1:
                label = name.part
            self._placed[place] = (name.split, label)

    # --- file names, patterns ---------------------------------------------------------------------------------

    def _by_file_names(self) -> bool:
        words = {place: place.partition(_FILE)[2] for place in self._parts}
        if not are_splits(filter(None, words.values())):
            return False
        stray = next((place for place, word in words.items() if not word), None)
        if stray is not None:
            splits = sorted({word for word in words.values() if word}, key=list(SPLIT_NAMES.values()).index)
            raise Question(
                f"{self._where}: the names of files begin with {', '.join(splits)}, but not that of "
                f"{printable(self._examples[stray])}; move it, or take all as one set: --splits none"
            )
        for place, parts in self._parts.items():
            self._placed[place] = (words[place], self._class(parts))
            self._note_origin(words[place], f"files called {words[place]}…")
        return True

    def _by_patterns(self) -> None:
        found = {place: self._splits.of(parts) for place, parts in self._parts.items()}
        for split, pattern in self._splits.patterns:
            require(
                any(self._splits.of(parts) and _matches(parts, pattern) for parts in self._parts.values()),
                f"{self._where}: --splits {split}={pattern}: no folder with images is called so",
            )
        for place, match in found.items():
            parts = self._parts[place]
            if match is None:
                self._placed[place] = (LEFT_OUT, None)
                continue
            split, end = match
            self._placed[place] = (split, self._class(parts, end))
            self._note_origin(split, "/".join(parts[:end]))


def _matches(parts: Parts, pattern: str) -> bool:
    width = pattern.count("/") + 1
    return any(fnmatchcase("/".join(parts[max(0, end - width) : end]), pattern) for end in range(1, len(parts) + 1))


def _parts(folder: str) -> Parts:
    return tuple(part for part in folder.replace("\\", "/").split("/") if part not in ("", "."))
