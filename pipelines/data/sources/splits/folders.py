"""Where the folders of a tree, or its tables, name published splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipelines.data.sources.splits.names import (
    SplitName,
    are_splits,
    read_name,
    read_names,
    read_table_name,
    split_word,
    suspected_splits,
    without_split,
)
from pipelines.data.sources.splits.option import Parts

Chain = list[tuple[int, SplitName]]
"""The names on one path that mean splits, the outermost first, each with its depth."""


@dataclass
class Found:
    """What the folders of a tree say about splits."""

    chosen: dict[str, tuple[int, SplitName]] = field(default_factory=dict)
    """The folder that gives each place its split: its depth, and what its name says."""
    chains: dict[str, Chain] = field(default_factory=dict)
    """All such folders around each place."""
    strays: list[str] = field(default_factory=list)
    """Places that lie beside split folders."""
    contrary: list[tuple[str, int, int]] = field(default_factory=list)
    """Places in a split folder inside that of another split, with the depths of both."""
    suspected: list[tuple[str, Parts]] = field(default_factory=list)
    """Folders whose names hold the words of a published cut that is not understood, and the split of each."""

    @property
    def splits(self) -> set[str]:
        """Every split that is named."""
        return {name.split for _, name in self.chosen.values()}


def find_splits(paths: Mapping[str, Parts], tables: Collection[str] = ()) -> Found:
    """The innermost folder that names a split, for each of some places.

    A folder inside a split folder that is called like a split is a class where it lies beside other classes and inside
    several splits (``train/train`` and ``test/train`` beside ``train/apple``).

    Args:
        paths: the folders around each place, and its own name where it is a table.
        tables: the places that are tables. One split word in their names is enough.
    """
    children: dict[Parts, set[str]] = defaultdict(set)
    for parts in paths.values():
        for depth, part in enumerate(parts):
            children[parts[:depth]].add(part)
    named = {parent: read_names(names) for parent, names in children.items()}
    for place in tables:
        *folders, file_name = paths[place]
        read = None if read_name(file_name) else read_table_name(file_name)
        if read is not None:
            named[tuple(folders)][file_name] = read
    found = Found()
    inside: dict[Parts, set[str]] = defaultdict(set)  # the splits that are named inside a split folder
    parents: dict[Parts, set[Parts]] = defaultdict(set)  # the folders around what has the same path in several splits
    around: dict[Parts, set[str]] = defaultdict(set)  # the splits that what has such a path lies in
    for place, parts in paths.items():
        chain = [(at, named[parts[:at]][parts[at]]) for at in range(len(parts)) if parts[at] in named[parts[:at]]]
        found.chains[place] = chain
        for number, (outer, name) in enumerate(chain):
            for inner, other in chain[number + 1 :]:
                inside[parts[: outer + 1]].add(other.split)
                around[parts[outer + 1 : inner + 1]].add(name.split)
                parents[parts[outer + 1 : inner + 1]].add(parts[:inner])

    def is_class(path: Parts) -> bool:
        return len(around[path]) > 1 and any(children[folder] - named[folder].keys() for folder in parents[path])

    for place, chain in found.chains.items():
        parts = paths[place]
        while len(chain) > 1 and are_splits(inside[parts[: chain[0][0] + 1]]):
            chain = chain[1:]
        for inner, name in chain[1:]:
            outer, around_it = chain[0]
            if name.split != around_it.split and not is_class(parts[outer + 1 : inner + 1]):
                found.contrary.append((place, outer, inner))
                chain = [(inner, name)]
                break
        if chain:
            found.chosen[place] = chain[0]
    above = {paths[place][:length] for place, (depth, _) in found.chosen.items() for length in range(depth + 1)}
    for place in paths:
        if place not in found.chosen or paths[place][: found.chosen[place][0] + 1] in above:
            found.strays.append(place)
    if not found.chosen:
        found.suspected = _suspected(children)
    return found


def _suspected(children: Mapping[Parts, set[str]]) -> list[tuple[str, Parts]]:
    """The folders whose names hold the words of a published cut: side by side, or else anywhere in the tree."""
    for parent, names in children.items():
        if splits := suspected_splits(names):
            return [(split, (*parent, name)) for split, some in splits.items() for name in some]
    words = [
        (split, (*parent, name)) for parent, names in children.items() for name in names if (split := split_word(name))
    ]
    outermost = [
        (split, path) for split, path in words if not any(path[: len(other)] == other != path for _, other in words)
    ]
    return sorted(outermost) if are_splits(split for split, _ in outermost) else []


def one_of_each(groups: Mapping[tuple[Parts, str], Mapping[str, Parts]]) -> list[tuple[str, Parts]]:
    """One folder of each split: ``train2017`` and ``val2017``, if there is no ``val2014``.

    Args:
        groups: the variants of each split in each folder, and where they lie.
    """
    common = Counter(rest for paths in groups.values() for rest in {without_split(path[-1]) for path in paths.values()})
    return [
        (split, max(sorted(paths.values()), key=lambda path: common[without_split(path[-1])]))
        for (_, split), paths in groups.items()
    ]
