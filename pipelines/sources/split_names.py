"""Names of folders, files and arrays that mean a split: ``train``, ``valid_64x64``, ``train2017``, ``testA`` …"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Words, in small letters, and the split that each one means."""
_WORDS = SPLIT_NAMES | {
    "trainval": "train",
    **{f"{word}{more}": SPLIT_NAMES[word] for word in SPLIT_NAMES for more in ("set", "data", "images", "imgs")},
}
_BESIDE_TRAIN = {"dev": "val", "eval": "test", "evaluation": "test", "holdout": "test", "heldout": "test"}
"""Words that mean a split where a train split lies beside them, and elsewhere may be anything."""
_PLAIN_WORDS = """
    all batch big chunk clean color colour crop cropped data dataset file files fold folder full gray grey hr image
    images img imgs jpeg jpegs jpg k labeled labelled large lr mini of orig original part partial photos pics pictures
    png private public px raw resized rgb sample samples set shard small split splits tiny unlabeled unlabelled v
"""
_AFFIXES = frozenset(_PLAIN_WORDS.split())
"""Words that say nothing else than how the images of a split are kept."""
_TOKENS = re.compile(r"\d+x\d+|\d+|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+")
_LISTS = frozenset(("txt", "csv", "tsv", "json", "jsonl", "lst", "list"))
_IN_FILE_NAME = re.compile(rf"(?:^|(?<=[-_.]))({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?=[-_. ]|\d|$)")


@dataclass(frozen=True, slots=True)
class SplitName:
    """What a name says."""

    split: str
    """``train``, ``val`` or ``test``."""
    part: str = ""
    """The letter or the number that distinguishes the parts of one split: ``A`` of ``trainA``."""
    variant: str = ""
    """Everything else: ``2017`` of ``train2017``. Two variants may hold the same images."""


def read_name(name: str) -> SplitName | None:
    """The split that a name means by itself; None where it holds words of other meanings (``test_tube``)."""
    if name.lower() == "t10k":
        return SplitName("test")
    tokens = _TOKENS.findall(name)
    words = [token for token in tokens if token.lower() in _WORDS]
    if len(words) != 1:
        return None
    rest = [token for token in tokens if token != words[0]]
    if not all(token[0].isdigit() or len(token) == 1 or token.lower() in _AFFIXES for token in rest):
        return None
    parts = [token for token in rest if _is_part(token)]
    variant = " ".join([words[0].lower(), *(token.lower() for token in rest if token not in parts)])
    return SplitName(_WORDS[words[0].lower()], "".join(parts), variant)


def _is_part(token: str) -> bool:
    """Whether a token distinguishes parts of one split: a letter, or a number that is no year."""
    if token.isdigit():
        return not (len(token) == 4 and token[:2] in ("19", "20"))
    return len(token) == 1 and token.isalpha() and token.lower() not in _AFFIXES


def read_names(names: Collection[str]) -> dict[str, SplitName]:
    """Which of some names that lie side by side mean a split.

    Beside those of :func:`read_name`: names of one pattern for the training split and another one
    (``birds_train``, ``birds_test``), and words such as ``dev`` beside a training split.
    """
    found = {name: split for name in names if (split := read_name(name)) is not None}
    families: dict[str, dict[str, SplitName]] = defaultdict(dict)
    for name in names:
        tokens = [token.lower() for token in _TOKENS.findall(name)]
        words = [token for token in tokens if token in _WORDS or token in _BESIDE_TRAIN]
        if name not in found and len(words) == 1:
            pattern = " ".join("*" if token == words[0] else token for token in tokens)
            meant = _WORDS.get(words[0]) or _BESIDE_TRAIN[words[0]]
            families[pattern][name] = SplitName(meant, variant=pattern)
    for pattern, family in families.items():
        splits = {member.split for member in family.values()}
        if ("train" in splits and len(splits) > 1) or (
            pattern == "*" and any(other.split == "train" for other in found.values())
        ):
            found |= family
    return found


def listed_splits(path: str) -> set[str]:
    """The splits whose images a file may list, by its name: ``train.txt``, ``train_test_split.csv``, ``partition.txt``.

    None where the name says nothing of the kind.
    """
    stem, dot, suffix = path.replace("\\", "/").rpartition("/")[2].rpartition(".")
    if not dot or suffix.lower() not in _LISTS:
        return set()
    words = {_WORDS[token.lower()] for token in _TOKENS.findall(stem) if token.lower() in _WORDS}
    if "partition" in stem.lower():
        return {"train", "val", "test"}
    return words if len(words) > 1 or read_name(stem) is not None else set()


def of_file_name(stem: str) -> str | None:
    """The split word in a file's name: ``train`` of ``train_0001``, ``img_train_1`` and ``0001-train``."""
    small = stem.lower()
    if "train" not in small and "test" not in small and "val" not in small:
        return None  # nearly all
    word = _IN_FILE_NAME.search(small)
    return SPLIT_NAMES[word[1]] if word and word[1] != small else None


def are_splits(splits: Iterable[str]) -> bool:
    """Whether splits that names seem to mean are a published cut: training and another one."""
    found = set(splits)
    return "train" in found and len(found) > 1
