"""Splits and classes as the folders of an image tree, or the names of files, give them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pipelines.data.sources.base import Question, printable
from pipelines.data.sources.splits.folders import Found, find_splits, one_of_each
from pipelines.data.sources.splits.names import (
    SPLIT_NAMES,
    are_splits,
    file_words,
    listed_splits,
    of_file_name,
    split_word,
)
from pipelines.data.sources.splits.option import Parts, Splits, answer, shown

__all__ = ["LEFT_OUT", "Layout", "Splits", "place_of"]

LEFT_OUT = ""
"""Split of what an explicit ``--splits`` does not name."""
_WORDS = "data image images img imgs jpeg jpegimages jpegs jpg jpgs photos pics pictures png pngs rgb"
_CONTAINERS = frozenset(_WORDS.split())
"""Folders inside a split that hold its images and name no class."""
_FILE = "\0"
"""Marks the split word of a file's name in a place."""

Place = tuple[str | None, str | None]


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
        skipped: places, as ``places`` has them, of symbolic links that are not read.
        tables: whether the places are tables, whose own names say the split as well as those of the folders.

    Raises ``Question`` where the names are ambiguous; the line names the option that answers.
    """

    def __init__(
        self,
        where: str,
        places: Mapping[str, str],
        splits: Splits,
        lists: Sequence[str] = (),
        skipped: Mapping[str, str] | None = None,
        *,
        tables: bool = False,
    ) -> None:
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
            return
        found = find_splits(self._parts, list(places) if tables else ())
        if splits.text == "none":
            self._without_splits(found)
            return
        if skipped:
            self._require_no_split_of_links(found, skipped)
        if not (self._by_folders(found) or self._by_file_names()):
            some = ", ".join(map(shown, sorted(lists)[:3])) + (" …" if len(lists) > 3 else "")
            if are_splits(split for name in lists for split in listed_splits(name)):
                raise Question(
                    f"{where}: {some} may list published splits, which are not read from there: move the images into "
                    "folders train, val and test, or cut all of them anew (--splits none)"
                )
            self._without_splits(found)

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

    def _without_splits(self, found: Found) -> None:
        """Take no split from names. Where all images lie in split folders, these name no class."""
        if found.chosen and not found.strays:
            self._classes(found)
            self._placed = {place: (None, label) for place, (_, label) in self._placed.items()}
        else:
            self._placed = {place: (None, self._class(parts)) for place, parts in self._parts.items()}

    # --- folders ----------------------------------------------------------------------------------------------

    def _by_folders(self, found: Found) -> bool:
        if found.suspected:
            examples = dict(reversed(found.suspected))
            raise Question(
                f"{self._where}: {' and '.join(shown('/'.join(path)) for path in examples.values())} may be published "
                f"splits; if so, name them{self._option(found.suspected)}; if they are none, cut everything anew "
                "(--splits none)"
            )
        if not found.chosen:
            return False
        for place, outer, inner in found.contrary:
            parts = self._parts[place]
            raise Question(
                f"{self._where}: {shown(self._examples[place])} lies in {shown('/'.join(parts[: inner + 1]))}, "
                f"whose name says {found.chosen[place][1].split}, inside {shown('/'.join(parts[: outer + 1]))}, "
                f"which is another split; say which folder is which{self._option(self._folders(found))}, or take no "
                "name for a split (--splits none)"
            )
        if found.strays:
            stray = found.strays[0]
            place, (depth, _) = next(other for other in found.chosen.items() if other[0] not in found.strays)
            folder = "/".join(self._parts[place][: depth + 1])
            option = self._option([*self._folders(found), *self._likely(found)])
            raise Question(
                f"{self._where}: {shown(self._examples[stray])} lies beside the split folders "
                f"({shown(folder)}); where there are train, val and test folders, every image belongs in one of "
                f"them: move it, {f'name the splits{option}, ' if option else ''}or take such folders for classes "
                "(--splits none)"
            )
        self._require_agreeing_files(found)
        self._require_one_variant(found)
        self._classes(found)
        return True

    def _require_agreeing_files(self, found: Found) -> None:
        """Raise ``Question`` where the names of files in one split folder are a published cut of their own."""
        words: dict[Parts, dict[str, str]] = defaultdict(dict)
        for place, (depth, _) in found.chosen.items():
            words[self._parts[place][: depth + 1]].setdefault(_words([place])[place], place)
        for folder, places in words.items():
            if are_splits(places):
                split = found.chosen[next(iter(places.values()))][1].split
                word, place = next((word, place) for word, place in places.items() if word not in ("", split))
                raise Question(
                    f"{self._where}: {shown(self._examples[place])} lies in {shown('/'.join(folder))} "
                    f"({split}), but its name says {word}; move such files into folders of their own, keep to the "
                    f"folders{self._option(self._folders(found))}, or take no name for a split (--splits none)"
                )

    def _folders(self, found: Found) -> list[tuple[str, Parts]]:
        return [
            (name.split, self._parts[place][: depth + 1])
            for place, (depth, name) in found.chosen.items()
            if found.contrary or place not in found.strays
        ]

    def _likely(self, found: Found) -> list[tuple[str, Parts]]:
        """The folders around strays whose names hold a split word that is not understood."""
        likely = []
        for place in found.strays:
            parts = self._parts[place]
            end = next((end for end in range(1, len(parts) + 1) if split_word(parts[end - 1])), None)
            if place not in found.chosen and end and (split := split_word(parts[end - 1])):
                likely.append((split, parts[:end]))
        return likely

    def _option(self, folders: Sequence[tuple[str, Parts]]) -> str:
        """`` (--splits train=…)`` that takes some folders; nothing where no such option is."""
        splits = {path: split for split, path in folders}
        wanted = {}
        for place, parts in self._parts.items():
            inside = [splits[parts[:end]] for end in range(len(parts), 0, -1) if parts[:end] in splits]
            if inside:
                wanted[place] = inside[0]
        option = answer(folders, self._parts, wanted)
        return f" (--splits {option})" if option else ""

    def _require_one_variant(self, found: Found) -> None:
        """Raise ``Question`` where two folders side by side name one split and are not parts of it."""
        groups: dict[tuple[Parts, str], dict[str, Parts]] = defaultdict(dict)
        for place, (depth, name) in found.chosen.items():
            path = self._parts[place][: depth + 1]
            is_file = self._examples[place].rpartition(".")[0] == place
            together = name.counted or name.part.isalpha() or is_file
            groups[path[:-1], name.split].setdefault(name.variant if together else path[-1], path)
            self._note_origin(name.split, "/".join(path))
        for (_, split), variants in groups.items():
            one, *others = variants.values()
            if others and "train" in found.splits:
                options = [self._option(folders) for folders in (one_of_each(groups), self._folders(found))]
                ways = [
                    f"{what}{option}" for what, option in zip(("one of them", "all"), options, strict=True) if option
                ]
                raise Question(
                    f"{self._where}: {shown(one[-1])} and {shown(others[0][-1])} both name the {split} split: "
                    "they may hold the same images twice, or be its parts; "
                    f"{'take ' + ' or '.join(ways) if ways else 'rename one of them'}, or cut everything anew "
                    "(--splits none)"
                )

    def _classes(self, found: Found) -> None:
        self._root = self._root[: min(depth for depth, _ in found.chosen.values())]
        inside: dict[Parts, set[str]] = defaultdict(set)
        for parts in self._parts.values():
            for depth in range(len(parts)):
                inside[parts[:depth]].add(parts[depth])
        letters: dict[str, set[str]] = defaultdict(set)
        for _, name in found.chosen.values():
            letters[name.split].add(name.part)
        for place, (depth, name) in found.chosen.items():
            parts = self._parts[place]
            below = depth + 1
            while (
                len(parts) > below
                and inside[parts[:below]] == {parts[below]}
                and (parts[below].lower() in _CONTAINERS or parts[below] == parts[depth])
            ):
                below += 1
            around = {at for at, _ in found.chains[place]}
            above = next((at for at in range(len(self._root), depth) if at not in around), None)
            label = self._class(parts, below if above is None else above)
            if label is None and name.part.isalpha() and len(letters[name.split]) > 1:
                label = name.part
            self._placed[place] = (name.split, label)

    # --- file names, links, patterns --------------------------------------------------------------------------

    def _by_file_names(self) -> bool:
        words = _words(self._parts)
        if not are_splits(filter(None, words.values())):
            return False
        stray = next((place for place, word in words.items() if not word), None)
        if stray is not None:
            splits = sorted({word for word in words.values() if word}, key=list(SPLIT_NAMES.values()).index)
            example = next(self._examples[place] for place, word in words.items() if word)
            raise Question(
                f"{self._where}: the names of files say {', '.join(splits)} ({shown(example)}), but not that of "
                f"{shown(self._examples[stray])}; move it, or take all as one set: --splits none"
            )
        for place, parts in self._parts.items():
            self._placed[place] = (words[place], self._class(parts))
            self._note_origin(words[place], f"files called {words[place]}…")
        return True

    def _require_no_split_of_links(self, found: Found, skipped: Mapping[str, str]) -> None:
        """Raise ``Question`` where a split consists of links alone: without them it would be missing."""
        paths = {place: _parts(place.partition(_FILE)[0]) for place in (*skipped, *self._parts)}
        words = _words(paths)
        known = found.splits | set(_words(self._parts).values())
        everything = find_splits(paths)
        splits = everything.splits | (set(words.values()) if are_splits(words.values()) else set())
        missing = splits - known - {""} if are_splits(splits) else set()
        for place, link in skipped.items():
            chosen = everything.chosen.get(place)
            split = chosen[1].split if chosen else words[place]
            if split in missing:
                option = self._option(self._folders(found))
                there = f"take the splits that are there{option}, " if option else ""
                raise Question(
                    f"{self._where}: {shown(link)} is a symbolic link, which is not read from an archive, and the "
                    f"{split} split consists of such links; unpack the archive and give its folder, {there}or cut the "
                    "files that are there anew (--splits none)"
                )

    def _by_patterns(self) -> None:
        for place, match in self._splits.assign(self._where, self._parts, self._examples).items():
            parts = self._parts[place]
            if match is None:
                self._placed[place] = (LEFT_OUT, None)
                continue
            self._placed[place] = (match.split, self._class(parts, match.end))
            self._note_origin(match.split, "/".join(parts[: match.end]))


def _words(places: Iterable[str]) -> dict[str, str]:
    """The split that the names of the files at each place mean, or ``""``."""
    return file_words({place: place.partition(_FILE)[2] for place in places})


def _parts(folder: str) -> Parts:
    return tuple(part for part in folder.replace("\\", "/").split("/") if part not in ("", "."))
