"""Names of folders, files and arrays that mean a split: ``train``, ``valid_64x64``, ``train2017``, ``testA`` …"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
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
_BESIDE_TRAIN = {
    "dev": "val",
    "eval": "test",
    "evaluation": "test",
    "heldout": "test",
    "holdout": "test",
    "trn": "train",
    "tst": "test",
    "vld": "val",
}
"""Words that mean a split where a train split lies beside them, and elsewhere may be anything."""
_SHORT = {"tr": "train", "va": "val", "vl": "val", "te": "test", "ts": "test"}
"""Words that mean a split where all names side by side have one of them: they are languages and countries, too."""
_ALL_WORDS = _WORDS | _BESIDE_TRAIN
_PLAIN_WORDS = """
    all batch big chunk clean color colour crop cropped data dataset file files fold folder full gray grey hr image
    images img imgs jpeg jpegs jpg k labeled labelled large lr mini of orig original part partial photos pics pictures
    png private public px raw resized rgb sample samples set shard small split splits tiny unlabeled unlabelled v
"""
_AFFIXES = frozenset(_PLAIN_WORDS.split())
"""Words that say nothing else than how the images of a split are kept."""
_TOKENS = re.compile(r"\d+x\d+|\d+|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+")
_LISTS = frozenset(("txt", "csv", "tsv", "json", "jsonl", "lst", "list"))
_HOLD_OUT = re.compile(r"h(?:old|eld)[-_ ]out", re.IGNORECASE)
_GLUED = re.compile("|".join(sorted(SPLIT_NAMES, key=len, reverse=True)))
_GLUED_END = re.compile(rf"([a-z]+?)({_GLUED.pattern})(?![a-z])")
_SHORT_START = re.compile(rf"({'|'.join(_SHORT)})(?![a-z])")
_SHARD = re.compile(r"(\d+)-of-(\d+)(?:-[0-9a-f]{8,})?(?![0-9A-Za-z])")
_DIGEST = re.compile(
    r"(?<![0-9A-Za-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{8}T\d{4,6}Z?(?:-\d+)*"
    r"|(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{6,}(?:-(?=[0-9a-f]*\d|[0-9a-f]{1,2}(?![0-9a-z]))[0-9a-f]{2,})*)(?![0-9A-Za-z])"
)
"""What programs add to a name: a UUID, a hash in hexadecimal digits, a time."""
_IN_FILE_NAMES = SPLIT_NAMES | _BESIDE_TRAIN
_SHORTEST = [word for word in _IN_FILE_NAMES if not any(other != word and other in word for other in _IN_FILE_NAMES)]
"""The words that all others contain: a name without one of them, as nearly all are, is not looked at any closer."""
_COUNTED = frozenset(("batch", "chunk", "file", "part", "shard"))
"""Words whose number distinguishes parts that belong together."""


@dataclass(frozen=True, slots=True)
class SplitName:
    """What a name says."""

    split: str
    """``train``, ``val`` or ``test``."""
    part: str = ""
    """The letter or the number that distinguishes the parts of one split: ``A`` of ``trainA``."""
    variant: str = ""
    """Everything else: ``2017`` of ``train2017``. Two variants may hold the same images."""
    counted: bool = False
    """Whether the part is the number of a shard: ``train-00000-of-00002``, ``train_batch_1``."""


def _tokens(name: str) -> list[str]:
    """The words and the numbers in a name."""
    return _TOKENS.findall(_HOLD_OUT.sub("holdout", name))


def read_name(name: str) -> SplitName | None:
    """The split that a name means by itself; None where it holds words of other meanings (``test_tube``)."""
    if name.lower() == "t10k":
        return SplitName("test")
    name = _DIGEST.sub("", name) if any(character.isdigit() for character in name) else name
    shard = _SHARD.search(name)
    tokens = _tokens(_SHARD.sub("", name))
    words = [token for token in tokens if token.lower() in _WORDS]
    if len(words) != 1:
        return None
    rest = [token for token in tokens if token != words[0]]
    if not all(token[0].isdigit() or len(token) == 1 or token.lower() in _AFFIXES for token in rest):
        return None
    parts = [*(token for token in rest if _is_part(token)), *(shard.groups() if shard else ())]
    variant = " ".join([words[0].lower(), *(token.lower() for token in rest if token not in parts)])
    counted = shard is not None or any(token.lower() in _COUNTED for token in rest)
    return SplitName(_WORDS[words[0].lower()], "".join(parts), variant, counted)


def _is_part(token: str) -> bool:
    """Whether a token distinguishes parts of one split: a letter, or a number that is no year."""
    if token.isdigit():
        return not (len(token) == 4 and token[:2] in ("19", "20"))
    return len(token) == 1 and token.isalpha() and token.lower() not in _AFFIXES


def read_table_name(name: str) -> SplitName | None:
    """The split of a table by the name of its file: the only split word in it, or the one at its start."""
    tokens = [token.lower() for token in _tokens(_DIGEST.sub("", _SHARD.sub("", name)))]
    words = [token for token in tokens if token in _WORDS]
    if not words or (len(words) > 1 and tokens[0] not in _WORDS):
        return None
    return SplitName(_WORDS[words[0]], variant=words[0], counted=True)


def read_names(names: Collection[str]) -> dict[str, SplitName]:
    """Which of some names that lie side by side mean a split.

    Beside those of :func:`read_name`: names of one pattern for the training split and another one (``birds_train``
    and ``birds_test``, ``Xtrain`` and ``Xtest``), and words such as ``dev`` beside a training split.
    """
    found = {name: split for name in names if (split := read_name(name)) is not None}
    trains = any(split.split == "train" for split in found.values())
    for words in (_ALL_WORDS, _SHORT, None):
        patterns: dict[str, dict[str, SplitName]] = defaultdict(dict)
        for name in names:
            if name not in found and (split := _read_pattern(name, words)) is not None:
                patterns[split.variant][name] = split
        for pattern, alike in patterns.items():
            beside_train = words is _ALL_WORDS and pattern == "*" and trains
            whole = words is not _SHORT or len(alike) == len(names)
            if beside_train or (whole and are_splits(split.split for split in alike.values())):
                found |= alike
    return found


def _read_pattern(name: str, words: Mapping[str, str] | None) -> SplitName | None:
    """The split of the only word in a name that is one of ``words``, and as its variant the name with a ``*`` there.

    With no ``words``, the word may be glued to others (``Xtrain``).
    """
    small = name.lower()
    if words is None:
        hits = _GLUED.findall(small)
        return SplitName(SPLIT_NAMES[hits[0]], variant=small.replace(hits[0], "*")) if len(hits) == 1 else None
    tokens = [token.lower() for token in _tokens(name)]
    hits = [token for token in tokens if token in words]
    if len(hits) != 1:
        return None
    return SplitName(words[hits[0]], variant=" ".join("*" if token == hits[0] else token for token in tokens))


def suspected_splits(names: Collection[str]) -> dict[str, list[str]]:
    """The names for each split that names side by side may mean, where they hold the words of a published cut.

    Nothing where they do not: where no name holds a word for training, or none a word for another split.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if split := split_word(name):
            found[split].append(name)
    short = [name for name in sorted(names) if name.lower() in _SHORT]
    if not are_splits(found) and len(names) - len(short) <= len(short) // 2:  # else they are languages
        found = defaultdict(list)
        for name in short:
            found[_SHORT[name.lower()]].append(name)
    return dict(found) if are_splits(found) else {}


def split_word(name: str) -> str | None:
    """The split of the words in a name, whatever else it says; None where there is none, or several."""
    words = {_ALL_WORDS[token.lower()] for token in _tokens(name) if token.lower() in _ALL_WORDS}
    return words.pop() if len(words) == 1 else None


def without_split(name: str) -> str:
    """What a name says beside its split: ``2017`` of ``train2017``, ``cats`` of ``train_cats``."""
    return " ".join(token for token in map(str.lower, _tokens(name)) if token not in _ALL_WORDS)


def listed_splits(path: str) -> set[str]:
    """The splits whose images a file may list, by its name: ``train.txt``, ``train_test_split.csv``, ``partition.txt``.

    The set is empty for any other name.
    """
    stem, dot, suffix = path.replace("\\", "/").rpartition("/")[2].rpartition(".")
    if not dot or suffix.lower() not in _LISTS:
        return set()
    words = {_WORDS[token.lower()] for token in _tokens(stem) if token.lower() in _WORDS}
    if "partition" in stem.lower():
        return {"train", "val", "test"}
    return words if len(words) > 1 or read_name(stem) is not None else set()


def split_in_file_name(stem: str) -> str | None:
    """The split word in a file's name: ``train`` of ``train_0001``, ``img (train) 1``, ``trainA_1`` and ``0001-train``.

    Words such as ``eval`` count, too: they mean a split only where others mean the training split. Of a word that is
    glued to another one (``Xtrain_1``), or short (``tr_1``), that other one and a ``*`` stand before the split.
    """
    small = stem.lower()
    if (short := _SHORT_START.match(small)) and small != short[1]:
        return f"*{_SHORT[short[1]]}"
    if not any(word in small for word in _SHORTEST) or small in _ALL_WORDS:
        return None
    split = next((_IN_FILE_NAMES[token] for token in map(str.lower, _tokens(stem)) if token in _IN_FILE_NAMES), None)
    if split is None and (glued := _GLUED_END.search(small)):
        return f"{glued[1]}*{SPLIT_NAMES[glued[2]]}"
    return split


def splits_of_file_names(words: Mapping[str, str]) -> dict[str, str]:
    """The splits that words of :func:`split_in_file_name` mean side by side; ``""`` for those that mean none.

    Args:
        words: the word of each place, or ``""``.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for word in words.values():
        before, star, split = word.rpartition("*")
        if star:
            groups[before].add(split)
    everywhere = all(word.startswith("*") for word in words.values())  # else ``tr`` and ``te`` are languages
    meant = {before for before, splits in groups.items() if are_splits(splits) and (before or everywhere)}
    found = {}
    for place, word in words.items():
        before, star, split = word.rpartition("*")
        found[place] = split if not star or before in meant else ""
    return found


def are_splits(splits: Iterable[str]) -> bool:
    """Whether splits that names seem to mean are a published cut: training and another one."""
    found = set(splits)
    return "train" in found and len(found) > 1
