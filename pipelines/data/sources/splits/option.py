"""The option ``--splits``: which folders make which split."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fvae.config import ConfigError, require
from fvae.data.manifest import SPLITS
from pipelines.data.sources.base import printable

Parts = tuple[str, ...]
"""The names of the folders on a path."""


@dataclass(frozen=True, slots=True)
class Match:
    """A pattern that matches the folders ``start`` to ``end`` of a path."""

    split: str
    pattern: str
    start: int
    end: int
    literal: bool

    def beats(self, other: Match) -> bool:
        """Whether this match is more specific: deeper, or literal where the other one has wildcards."""
        if self.end == other.end:
            return (self.literal, self._weight()) > (other.literal, other._weight())
        if self.end < other.end:
            return self.literal and not other.literal and other.start >= self.end and other._weight() == 0
        inside = self.start < other.end  # its pattern names the folder of the other match, too
        return self.literal or inside or (not other.literal and self._weight() > other._weight())

    def _weight(self) -> int:
        return len(re.sub(r"[*?]|\[.*?\]", "", self.pattern))


class SplitOption:
    """The value of ``--splits``: ``auto``, ``none``, or ``train=NAME,val=NAME,test=NAME`` with patterns of names.

    Raises ``ConfigError`` for anything else.
    """

    def __init__(self, text: str = "auto") -> None:
        self.text = text
        self.patterns: list[tuple[str, str]] = []
        if text in ("auto", "none"):
            return
        for part in re.split(r",(?=\s*\w+\s*=)", text):  # a name may hold a comma
            split, equals, name = (piece.strip() for piece in part.partition("="))
            require(
                bool(equals) and split in SPLITS and name.strip("/ ") != "",
                f"--splits={text!r}: auto, none, or folders such as train=train2017,val=val2017",
            )
            name = posixpath.normpath(name).strip("/")
            twice = next((other for other, known in self.patterns if known == name and other != split), None)
            require(
                twice is None,
                f"--splits={text!r}: {name} is in {twice} and in {split}; name each folder for one split",
            )
            self.patterns.append((split, name))
        require(
            any(split == "train" for split, _ in self.patterns),
            f"--splits={text!r}: names no train split; every model needs one: add train=NAME",
        )

    def assign(self, where: str, paths: Mapping[str, Parts], examples: Mapping[str, str]) -> dict[str, Match | None]:
        """The most specific match for each of some paths; None for those that no pattern matches.

        Raises ``ConfigError`` where two splits claim an image, and for a pattern that gets none.
        """
        found: dict[str, Match | None] = {}
        named: set[tuple[str, str]] = set()
        used: set[tuple[str, str]] = set()
        for place, parts in paths.items():
            matches = [match for split, pattern in self.patterns if (match := _match(split, pattern, parts))]
            named |= {(match.split, match.pattern) for match in matches}
            best = [m for m in matches if all(m.beats(other) for other in matches if other.split != m.split)]
            if matches and not best:
                raise self._claimed(f"{where}: {printable(examples[place])}", parts, matches)
            found[place] = max(best, key=lambda match: match.end) if best else None
            used |= {(match.split, match.pattern) for match in matches if best and match.split == best[0].split}
        for split, pattern in self.patterns:
            what = f"{where}: --splits {split}={printable(pattern)}: "
            require((split, pattern) in named, what + "no folder with images has this name")
            require(
                (split, pattern) in used,
                what + "every image there goes to another split, which names its folder more closely; leave this out, "
                "or name the folders that it stands for",
            )
        return found

    def _claimed(self, image: str, parts: Parts, matches: list[Match]) -> ConfigError:
        one = matches[-1]
        other = next(match for match in matches if match.split != one.split)
        folder = _writable("/".join(parts[: max(match.end for match in matches)]))
        option = shlex.quote(f"{self.text},{one.split}={folder}")
        return ConfigError(
            f"{image} lies in {printable(other.pattern)} ({other.split}) and in {printable(one.pattern)} "
            f"({one.split}); name its folder for one of them, as in --splits {option}"
        )


def option_for(folders: Mapping[Parts, str], paths: Mapping[str, Parts]) -> str:
    """`` (--splits train=…)``, quoted for a shell, which takes some folders and leaves out all others.

    Args:
        folders: the split of each folder.
        paths: the folders around each place.

    Returns ``""`` where no option does: where there is no train split, or for names that it cannot hold.
    """
    wanted = {}
    for place, parts in paths.items():
        inside = (folders.get(parts[:end]) for end in range(len(parts), 0, -1))
        if split := next(filter(None, inside), None):
            wanted[place] = split
    known = sorted(folders.items(), key=lambda folder: (SPLITS.index(folder[1]), folder[0]))
    for names in ([path[-1] for path, _ in known], ["/".join(path) for path, _ in known]):
        parts_of_text = (f"{split}={_writable(name)}" for (_, split), name in zip(known, names, strict=True))
        text = ",".join(dict.fromkeys(parts_of_text))
        try:
            found = SplitOption(text).assign("", paths, dict.fromkeys(paths, ""))
        except ConfigError:
            continue
        if {place: match.split for place, match in found.items() if match} == wanted:
            return f" (--splits {shlex.quote(text)})"
    return ""


def _writable(name: str) -> str:
    """A name as a user can type it: a wildcard for each character that no terminal shows."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _match(split: str, pattern: str, parts: Parts) -> Match | None:
    """Where a pattern matches a path: the deepest folders of just this name, else the first that fit its wildcards."""
    width = pattern.count("/") + 1
    ends = range(1, len(parts) + 1)
    windows = {end: "/".join(parts[max(0, end - width) : end]) for end in ends}
    end = next((end for end in reversed(ends) if windows[end] == pattern), None)
    literal = end is not None
    if end is None and any(character in pattern for character in "*?["):
        end = next((end for end in ends if fnmatchcase(windows[end], pattern)), None)
    return None if end is None else Match(split, pattern, max(0, end - width), end, literal)
