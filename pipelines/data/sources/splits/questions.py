"""Questions about ambiguous published splits: one line each, which names the options that answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.data.sources.base import Question, printable
from pipelines.data.sources.splits.folders import SplitFolders
from pipelines.data.sources.splits.names import SPLIT_NAMES, are_splits, listed_splits, without_split
from pipelines.data.sources.splits.option import Parts, option_for


@dataclass(frozen=True)
class Questions:
    """Raises ``Question`` where names are ambiguous."""

    where: str
    """The source as the user gave it."""
    examples: Mapping[str, str]
    """Every place with one image that lies there."""
    words: Mapping[str, str]
    """The split that the names of the files at each place mean side by side, or ``""``."""
    folders: SplitFolders
    """The folders whose names mean splits."""

    def require_clear_folders(self, file_words: Mapping[str, str]) -> None:
        """Raise ``Question`` where it is not clear which folder gives each place its split.

        Args:
            file_words: what :func:`split_in_file_name` finds in the names of the files at each place, or ``""``.
        """
        self._require_known()
        self._require_not_nested()
        self._require_no_strays()
        self._require_agreeing_files(file_words)
        self._require_one_variant()

    def require_clear_files(self) -> None:
        """Raise ``Question`` where the names of some files alone mean a split."""
        stray = next((place for place, word in self.words.items() if not word), None)
        if stray is None:
            return
        splits = sorted({word for word in self.words.values() if word}, key=list(SPLIT_NAMES.values()).index)
        named = next(place for place, word in self.words.items() if word)
        raise self._question(
            f"the names of files say {', '.join(splits)} ({self._example(named)}), but not that of "
            f"{self._example(stray)}; move it, or take all as one set: --splits none"
        )

    def require_no_lists(self, lists: Sequence[str]) -> None:
        """Raise ``Question`` where other files may list the images of each split."""
        if are_splits(split for name in lists for split in listed_splits(name)):
            some = ", ".join(map(printable, sorted(lists)[:3])) + (" …" if len(lists) > 3 else "")
            raise self._question(
                f"{some} may list published splits, which are not read from there: move the images into "
                "folders train, val and test, or cut all of them anew (--splits none)"
            )

    def require_no_split_of_links(
        self, everything: SplitFolders, words: Mapping[str, str], skipped: Mapping[str, str]
    ) -> None:
        """Raise ``Question`` where a split consists of links alone: without them it would be missing.

        Args:
            everything: the split folders of images and links.
            words: the splits that the names of images and links mean.
            skipped: the places of the links, each with one of them.
        """
        splits = everything.splits | (set(words.values()) if are_splits(words.values()) else set())
        if not are_splits(splits):
            return
        missing = splits - self.folders.splits - set(self.words.values()) - {""}
        for place, link in skipped.items():
            split = everything.chosen[place].split if place in everything.chosen else words[place]
            if split in missing:
                option = self._option(self.folders.folders())
                there = f"take the splits that are there{option}, " if option else ""
                raise self._question(
                    f"{printable(link)} is a symbolic link, which is not read from an archive, and the "
                    f"{split} split consists of such links; unpack the archive and give its folder, {there}or cut the "
                    "files that are there anew (--splits none)"
                )

    def _require_known(self) -> None:
        if suspected := self.folders.suspected():
            examples = {split: path for path, split in reversed(suspected.items())}
            raise self._question(
                f"{' and '.join(map(_shown, examples.values()))} may be published splits; if so, name "
                f"them{self._option(suspected)}; if they are none, cut everything anew (--splits none)"
            )

    def _require_not_nested(self) -> None:
        for place, outer, inner in self.folders.nested:
            raise self._question(
                f"{self._example(place)} lies in {_shown(inner.path)}, whose name says {inner.split}, inside "
                f"{_shown(outer.path)}, which is another split; say which folder is "
                f"which{self._option(self.folders.folders())}, or take no name for a split (--splits none)"
            )

    def _require_no_strays(self) -> None:
        folders = self.folders
        if folders.chosen and folders.strays:
            strays = set(folders.strays)
            folder = next(folder for place, folder in folders.chosen.items() if place not in strays)
            option = self._option(folders.folders() | folders.likely())
            raise self._question(
                f"{self._example(folders.strays[0])} lies beside the split folders ({_shown(folder.path)}); where "
                f"there are train, val and test folders, every image belongs in one of them: move it, "
                f"{f'name the splits{option}, ' if option else ''}or take such folders for classes (--splits none)"
            )

    def _require_agreeing_files(self, file_words: Mapping[str, str]) -> None:
        """Raise ``Question`` where the names of files in one split folder are published splits of their own."""
        words: dict[Parts, dict[str, str]] = defaultdict(dict)
        for place, folder in self.folders.chosen.items():
            word = file_words[place]  # with a *, the word means a split beside others alone
            words[folder.path].setdefault("" if "*" in word else word, place)
        for folder in self.folders.chosen.values():
            others = words[folder.path]
            other = next((word for word in others if word not in ("", folder.split)), None)
            if other and are_splits(others):
                raise self._question(
                    f"{self._example(others[other])} lies in {_shown(folder.path)} ({folder.split}), but its name says "
                    f"{other}; move such files into folders of their own, keep to the "
                    f"folders{self._option(self.folders.folders())}, or take no name for a split (--splits none)"
                )

    def _require_one_variant(self) -> None:
        """Raise ``Question`` where two folders side by side name one split and are not parts of it."""
        groups: dict[tuple[Parts, str], dict[str, Parts]] = defaultdict(dict)
        for place, (path, name) in self.folders.chosen.items():
            is_file = self.examples[place].rpartition(".")[0] == place
            together = name.counted or name.part.isalpha() or is_file
            groups[path[:-1], name.split].setdefault(name.variant if together else path[-1], path)
        for (_, split), variants in groups.items():
            one, *others = variants.values()
            if others and "train" in self.folders.splits:
                ways = [
                    f"{what}{option}"
                    for what, folders in (("one of them", _one_of_each(groups)), ("all", self.folders.folders()))
                    if (option := self._option(folders))
                ]
                raise self._question(
                    f"{printable(one[-1])} and {printable(others[0][-1])} both name the {split} split: "
                    "they may hold the same images twice, or be its parts; "
                    f"{'take ' + ' or '.join(ways) if ways else 'rename one of them'}, or cut everything anew "
                    "(--splits none)"
                )

    def _option(self, folders: Mapping[Parts, str]) -> str:
        return option_for(folders, self.folders.paths)

    def _example(self, place: str) -> str:
        return printable(self.examples[place])

    def _question(self, text: str) -> Question:
        return Question(f"{self.where}: {text}")


def _shown(path: Parts) -> str:
    return printable("/".join(path))


def _one_of_each(groups: Mapping[tuple[Parts, str], Mapping[str, Parts]]) -> dict[Parts, str]:
    """One folder of each split: ``train2017`` and ``val2017``, if there is no ``val2014``.

    Args:
        groups: the variants of each split in each folder, and where they lie.
    """
    common = Counter(rest for paths in groups.values() for rest in {without_split(path[-1]) for path in paths.values()})
    return {
        max(sorted(paths.values()), key=lambda path: common[without_split(path[-1])]): split
        for (_, split), paths in groups.items()
    }
