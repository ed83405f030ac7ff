"""Splitting images into train, val and test by their pixels alone, whatever the order or packing of the source."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np

from fvae.config import require
from fvae.data.manifest import SPLITS
from pipelines.data.sources.base import Question
from pipelines.data.spool import UNSPLIT

TRAIN, VAL, TEST = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splitting:
    """The images of each split, and what was decided."""

    rows: dict[str, np.ndarray]
    """int64 rows by split, in the order of storing: by digest, so shuffled."""
    dropped: int
    """Images left out because another split holds the same pixels."""
    decisions: tuple[str, ...]
    """One plain line each."""


def split(
    digests: np.ndarray, given: np.ndarray, labels: np.ndarray, *, val: float, test: float, seed: int
) -> Splitting:
    """Cut what the source left open, and drop what leaks.

    Images without a split are all cut in three; a source that names train alone, or train and one other, has the
    missing ones cut from train. An image in test is dropped from train and validation, one in validation from train.

    Args:
        digests: uint8 ``[N, 32]``, SHA-256 of the pixels.
        given: int8 ``[N]``, position in ``SPLITS`` or ``UNSPLIT``.
        labels: int32 ``[N]``, positions in the sorted class names; they only order images of equal pixels.
        val: share of the images to validate on, where the source names no validation split.
        test: share of the images to test on, where the source names no test split.
        seed: seed of the splits.

    Raises ``ConfigError`` where a split would be empty.
    """
    keys = digests.view("V32").ravel().tolist()  # 32 bytes each
    order = np.lexsort((labels, *digests.view(">u8").T[::-1]))  # by digest, then label

    def of_split(code: int) -> np.ndarray:
        return order[codes[order] == code]

    codes = given.copy()
    named = [name for code, name in enumerate(SPLITS) if (given == code).any()]
    decisions = []
    if named and "train" not in named:
        raise Question(
            f"the source has a {' and a '.join(named)} split but no train split; every model needs one: give the place "
            "that holds all of them, or take all images as one set that is cut anew (--splits none)"
        )
    codes[codes == UNSPLIT] = TRAIN
    whole = int((codes == TRAIN).sum())
    dropped = 0

    cut_seed = str(seed).encode()
    for code, share in ((TEST, test), (VAL, val)):
        name = SPLITS[code]
        if name in named:
            decisions.append(f"{name} split: the source's own, {int((codes == code).sum()):,} images")
        else:
            pool = of_split(TRAIN).tolist()
            count = math.ceil(share * whole)
            ranks = {row: hashlib.sha256(b"%b/%b/%b" % (cut_seed, name.encode(), keys[row])).digest() for row in pool}
            codes[sorted(pool, key=ranks.__getitem__)[:count]] = code
            origin = "the source's train split" if named else "all images"
            decisions.append(f"{name} split: {count:,} images, {share:.0%} of {origin}, by seed {seed}")
        held = {keys[row] for row in of_split(code).tolist()}
        lower = (TRAIN, VAL) if code == TEST else (TRAIN,)
        for other in lower:
            leaks = [row for row in of_split(other).tolist() if keys[row] in held]
            codes[leaks] = UNSPLIT
            dropped += len(leaks)
            if leaks:
                decisions.append(
                    f"{len(leaks):,} images dropped from {SPLITS[other]}: exact duplicates of {name} images (leakage)"
                )
    rows = {name: of_split(code) for code, name in enumerate(SPLITS)}
    for name, chosen in rows.items():
        require(
            len(chosen) > 0,
            f"the {name} split would be empty ({len(keys)} images in all, {dropped} dropped as duplicates); "
            "give more images or other shares",
        )
    repeated = sum(len(chosen) - len({keys[row] for row in chosen.tolist()}) for chosen in rows.values())
    if repeated:
        decisions.append(f"{repeated:,} images are exact duplicates within their split: kept")
    return Splitting(rows=rows, dropped=dropped, decisions=tuple(decisions))
