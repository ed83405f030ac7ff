"""The four published forms of CIFAR-10 and CIFAR-100, recognised by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))


@dataclass(frozen=True, kw_only=True)
class Format:
    """One of the four published forms."""

    kind: str
    train: tuple[str, ...]
    test: str
    names: str
    """The file of class names."""
    classes: int
    label_bytes: int = 0
    """Binary: bytes before each image, of which the last is the (fine) label. Python: 0."""
    label_key: bytes = b""
    names_key: bytes = b""

    def split_of(self, name: str) -> str | None:
        """The split of a batch, ``None`` for any other file."""
        return "train" if name in self.train else "test" if name == self.test else None


FORMATS = (
    Format(
        kind="CIFAR-10 python batches",
        train=_FIVE,
        test="test_batch",
        names="batches.meta",
        classes=10,
        label_key=b"labels",
        names_key=b"label_names",
    ),
    Format(
        kind="CIFAR-10 binary batches",
        train=tuple(f"{name}.bin" for name in _FIVE),
        test="test_batch.bin",
        names="batches.meta.txt",
        classes=10,
        label_bytes=1,
    ),
    Format(
        kind="CIFAR-100 python batches",
        train=("train",),
        test="test",
        names="meta",
        classes=100,
        label_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
    Format(
        kind="CIFAR-100 binary batches",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        classes=100,
        label_bytes=2,
    ),
)

_TAR_NAME = re.compile(r"(?:^|/)(?:(?:data_batch_\d|test_batch)(\.bin)?|cifar-100-(python|binary)/[^/]+)$")


def format_of(names: Iterable[str]) -> Format | None:
    """The form that the files of one folder are in, by their names."""
    present = set(names)
    for form in FORMATS:
        batches = {*form.train, form.test}
        # The names of CIFAR-100's files are common words: all must be there.
        if batches & present and (form.classes == 10 or batches <= present):
            return form
    return None


def format_in_tar(name: str) -> Format | None:
    """The form of an archive that has a member ``name``; CIFAR-100 is known by its published folder's name."""
    found = _TAR_NAME.search(name)
    if found is None:
        return None
    if found[2]:
        return FORMATS[2 if found[2] == "python" else 3]
    return FORMATS[1 if found[1] else 0]
