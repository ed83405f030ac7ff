"""Published splits and classes of images, as the folders around them or the names of their files give them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pipelines.data.sources.base import LEFT_OUT, kept_name
from pipelines.data.sources.splits.folders import SplitFolders
from pipelines.data.sources.splits.names import are_splits, split_in_file_name, splits_of_file_names
from pipelines.data.sources.splits.option import Parts, SplitOption
from pipelines.data.sources.splits.questions import Questions

_FILE = "\0"
"""Separates the split that a file's name may mean from the folder, in a place."""


def place_of(path: str) -> str:
    """The place of an image: its folder, and the split that its file's name seems to mean."""
    folder, _, name = path.replace("\\", "/").rpartition("/")
    split = split_in_file_name(name.rpartition(".")[0] or name)
    return f"{folder}/{_FILE}{split}" if split else folder


class Layout:
    """The split and the class of every place in a tree of images.

    The folders that are around all images do not count. Below them either every image lies in a folder whose name means
    a split, at any depth, and the folder inside that one (or else the one above it) is its class; or the folder is its
    class. Where no folder names a split, the names of the files may.

    Args:
        where: the source as the user gave it.
        places: every place of :func:`place_of` with one image that lies there.
        option: what ``--splits`` asks for.
        lists: the other files that may list the images of each split.
        skipped: places, as ``places`` has them, of symbolic links that are not read.
        tables: whether the places are tables, whose own names mean a split as well as those of the folders.

    Raises ``Question`` where the names are ambiguous; the line names the option that answers.
    """

    def __init__(
        self,
        where: str,
        places: Mapping[str, str],
        option: SplitOption,
        lists: Sequence[str] = (),
        skipped: Mapping[str, str] | None = None,
        *,
        tables: bool = False,
    ) -> None:
        self.origins: dict[str, list[str]] = defaultdict(list)
        """The folders or the parts of file names that each split comes from."""
        self._paths = _paths(places)
        self._root: Parts = tuple(os.path.commonprefix(list(self._paths.values()))) if places else ()
        self._placed: dict[str, tuple[str | None, str | None]] = {}
        if option.patterns:
            self._place_as_asked(where, places, option)
            return
        folders = SplitFolders(self._paths, list(places) if tables else ())
        file_words = _file_words(places)
        words = splits_of_file_names(file_words)
        questions = Questions(where, places, words, folders)
        classes = {place: self._class(parts) for place, parts in self._paths.items()}
        splits: Mapping[str, str] = {}
        if option.text == "none":
            if folders.chosen and not folders.strays:  # then these folders name no class
                classes = folders.classes(self._root)
        else:
            if skipped:
                everything = {**skipped, **places}
                linked_words = splits_of_file_names(_file_words(everything))
                questions.require_no_split_of_links(SplitFolders(_paths(everything)), linked_words, skipped)
            questions.require_clear_folders(file_words)
            if folders.chosen:
                classes = folders.classes(self._root)
                splits = {place: folder.split for place, folder in folders.chosen.items()}
                self._note_origins((folder.split, "/".join(folder.path)) for folder in folders.chosen.values())
            elif are_splits(filter(None, words.values())):
                questions.require_clear_files()
                splits = words
                self._note_origins((word, f"files called {word}…") for word in words.values())
            else:
                questions.require_no_lists(lists)
        self._placed = {place: (splits.get(place), label) for place, label in classes.items()}

    def split_and_class(self, place: str) -> tuple[str | None, str | None]:
        """Split and class of a place. The split is ``LEFT_OUT`` where ``--splits`` names others only."""
        return self._placed[place]

    def _place_as_asked(self, where: str, places: Mapping[str, str], option: SplitOption) -> None:
        matches = option.assign(where, self._paths, places)
        for place, match in matches.items():
            label = self._class(self._paths[place], match.end) if match else None
            self._placed[place] = (match.split if match else LEFT_OUT, label)
        self._note_origins(
            (match.split, "/".join(self._paths[place][: match.end])) for place, match in matches.items() if match
        )

    def _class(self, parts: Parts, depth: int | None = None) -> str | None:
        depth = len(self._root) if depth is None else depth
        return kept_name(parts[depth]) if len(parts) > depth else None

    def _note_origins(self, origins: Iterable[tuple[str, str]]) -> None:
        for split, origin in dict.fromkeys(origins):
            self.origins[split].append(origin)


def _paths(places: Iterable[str]) -> dict[str, Parts]:
    """The folders around each place."""
    folders = {place: place.partition(_FILE)[0].replace("\\", "/").split("/") for place in places}
    return {place: tuple(part for part in parts if part not in ("", ".")) for place, parts in folders.items()}


def _file_words(places: Iterable[str]) -> dict[str, str]:
    """What :func:`split_in_file_name` finds in the names of the files at each place, or ``""``."""
    return {place: place.partition(_FILE)[2] for place in places}
