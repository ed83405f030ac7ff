"""Published splits and classes by the folders of a tree, or by the names of its tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

from pipelines.data.sources.base import kept_name
from pipelines.data.sources.splits.names import (
    SplitName,
    are_splits,
    read_name,
    read_names,
    read_table_name,
    split_word,
    suspected_splits,
)
from pipelines.data.sources.splits.option import Parts

_WORDS = "data image images img imgs jpeg jpegimages jpegs jpg jpgs photos pics pictures png pngs rgb"
_CONTAINERS = frozenset(_WORDS.split())
"""Folders inside a split that hold its images and name no class."""


class SplitFolder(NamedTuple):
    """A folder whose name means a split."""

    path: Parts
    name: SplitName

    @property
    def split(self) -> str:
        """``train``, ``val`` or ``test``."""
        return self.name.split


class SplitFolders:
    """The folder that gives each of some places its split: the innermost one whose name means a split.

    A folder inside a split folder that is called like a split is a class where it lies beside other classes and inside
    several splits (``train/train`` and ``test/train`` beside ``train/apple``).

    Args:
        paths: the folders around each place, and its own name where it is a table.
        tables: the places that are tables. One split word in their names is enough.
    """

    def __init__(self, paths: Mapping[str, Parts], tables: Collection[str] = ()) -> None:
        self.paths = paths
        self.chosen: dict[str, SplitFolder] = {}
        """The folder that gives each place its split."""
        self.nested: list[tuple[str, SplitFolder, SplitFolder]] = []
        """Places in a split folder inside that of another split, with both, the outer one first."""
        self._children: dict[Parts, set[str]] = defaultdict(set)
        for parts in paths.values():
            for depth, part in enumerate(parts):
                self._children[parts[:depth]].add(part)
        self._chains = self._read(tables)
        self._choose()
        above = {folder.path[:length] for folder in self.chosen.values() for length in range(len(folder.path))}
        self.strays = [place for place in paths if place not in self.chosen or self.chosen[place].path in above]
        """Places that lie beside split folders."""

    @property
    def splits(self) -> set[str]:
        """Every split that is named."""
        return {folder.split for folder in self.chosen.values()}

    def folders(self) -> dict[Parts, str]:
        """The split of each folder that gives one to places which do not lie beside split folders."""
        strays = set() if self.nested else set(self.strays)
        return {folder.path: folder.split for place, folder in self.chosen.items() if place not in strays}

    def likely(self) -> dict[Parts, str]:
        """The split of each folder around strays whose name holds a split word and is not understood."""
        found = {}
        for place in self.strays:
            parts = self.paths[place]
            words = ((parts[:end], split_word(parts[end - 1])) for end in range(1, len(parts) + 1))
            path, split = next(((path, split) for path, split in words if split), ((), None))
            if split and place not in self.chosen:
                found[path] = split
        return found

    def suspected(self) -> dict[Parts, str]:
        """The split of each folder whose name holds the words of a published split, where no folder is understood.

        The folders lie side by side, or else anywhere in the tree.
        """
        if self.chosen:
            return {}
        for parent, names in self._children.items():
            if splits := suspected_splits(names):
                return {(*parent, name): split for split, some in splits.items() for name in some}
        paths = [(*parent, name) for parent, names in self._children.items() for name in names]
        words = {path: split for path in paths if (split := split_word(path[-1]))}
        outermost = [
            (split, path) for path, split in words.items() if not any(path[:end] in words for end in range(len(path)))
        ]
        return {path: split for split, path in sorted(outermost)} if are_splits(split for split, _ in outermost) else {}

    def classes(self, root: Parts) -> dict[str, str | None]:
        """The class of each place: the folder inside the split folder, or else the one above it.

        Args:
            root: the folders around everything, which name no class.
        """
        start = min(len(root), *(len(folder.path) - 1 for folder in self.chosen.values()))
        letters: dict[str, set[str]] = defaultdict(set)
        for folder in self.chosen.values():
            letters[folder.split].add(folder.name.part)
        classes = {}
        for place, (path, name) in self.chosen.items():
            parts = self.paths[place]
            depth = self._below_containers(parts, len(path))
            named = {len(folder.path) - 1 for folder in self._chains[place]}
            depth = next((above for above in range(start, len(path) - 1) if above not in named), depth)
            classes[place] = kept_name(parts[depth]) if len(parts) > depth else None
            if classes[place] is None and name.part.isalpha() and len(letters[name.split]) > 1:
                classes[place] = name.part
        return classes

    def _read(self, tables: Collection[str]) -> dict[str, list[SplitFolder]]:
        """All folders around each place whose names mean splits, the outermost first."""
        self._named = {
            (*parent, name): found
            for parent, names in self._children.items()
            for name, found in read_names(names).items()
        }
        for place in tables:
            path = self.paths[place]
            read = None if read_name(path[-1]) else read_table_name(path[-1])
            if read is not None:
                self._named[path] = read
        return {
            place: [
                SplitFolder(parts[:end], self._named[parts[:end]])
                for end in range(1, len(parts) + 1)
                if parts[:end] in self._named
            ]
            for place, parts in self.paths.items()
        }

    def _choose(self) -> None:
        inside: dict[Parts, set[str]] = defaultdict(set)  # the splits that are named inside a split folder
        parents: dict[Parts, set[Parts]] = defaultdict(set)  # the folders around each path below a split folder
        around: dict[Parts, set[str]] = defaultdict(set)  # the splits that such a path lies in
        for chain in self._chains.values():
            for number, outer in enumerate(chain):
                for inner in chain[number + 1 :]:
                    below = inner.path[len(outer.path) :]
                    inside[outer.path].add(inner.split)
                    around[below].add(outer.split)
                    parents[below].add(inner.path[:-1])

        def is_class(below: Parts) -> bool:
            beside = ((*parent, name) for parent in parents[below] for name in self._children[parent])
            return len(around[below]) > 1 and any(path not in self._named for path in beside)

        for place, found in self._chains.items():
            chain = found
            while len(chain) > 1 and are_splits(inside[chain[0].path]):
                chain = chain[1:]
            if not chain:
                continue
            outer, *others = chain
            nested = (
                inner for inner in others if inner.split != outer.split and not is_class(inner.path[len(outer.path) :])
            )
            innermost = next(nested, None)
            self.chosen[place] = innermost or outer
            if innermost:
                self.nested.append((place, outer, innermost))

    def _below_containers(self, parts: Parts, depth: int) -> int:
        """``depth``, or the depth below the only folders there, where these name no class (``train/images``)."""
        split = parts[depth - 1]
        while (
            len(parts) > depth
            and self._children[parts[:depth]] == {parts[depth]}
            and (parts[depth].lower() in _CONTAINERS or parts[depth] == split)
        ):
            depth += 1
        return depth
