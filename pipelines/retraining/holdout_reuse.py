"""Reuse of the holdout: a ledger of the decisions on the same test images, and a correction for repeated looks.

Every decision on the same images is another chance for noise to look like a gain. The ledger keeps a sketch of the
images of each decision, so that a split that grows or changes counts by the share that was read before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from fvae.config import ConfigError, from_fields, require
from fvae.data.images import Array, ImageSource, image_source
from fvae.files import parse_json
from pipelines.retraining.champion_rule import CONFIDENCE, Comparison
from pipelines.storage import Storage

LEDGER = "looks.json"
"""Its key in the storage of a model's retrainings."""
SKETCH = 256
"""Hashes of a split that are kept: the smallest. They give the share that two splits have in common to some 6%."""
HASHED_AT_ONCE = 256
LEAST_IN_PART = 10
"""Least number of images in a part that decides: an interval from fewer is too wide for any expected gain."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """One decision between two models on test images."""

    pair: str
    """Digests of the two models, so that a job that was interrupted counts once."""
    time: float
    """Seconds since 1970."""
    part: int
    """Which part of the split decided, from 0."""
    parts: int
    """Into how many the split was cut; 1: the whole of it decided."""
    images: int
    """Images that decided."""
    sketch: tuple[int, ...]
    """The smallest hashes of these images."""


class Looks:
    """The ledger of one registered model."""

    def __init__(self, place: Storage | None, guard: Callable[[], None] = lambda: None) -> None:
        """``place``: storage of the model's retrainings; None: nothing is kept. ``guard`` is called before a write."""
        self._place, self._guard = place, guard
        self._looks: list[Look] = []
        if place is not None and place.exists(LEDGER):
            where = f"{place.uri}/{LEDGER}"
            kept = parse_json(place.read(LEDGER), where)
            looks = kept.get("looks")
            is_ledger = isinstance(looks, list) and all(isinstance(look, dict) for look in looks)
            require(is_ledger, f"{where}: damaged, not a ledger of looks; restore it or remove it")
            self._looks = [from_fields(Look, _with_tuple(look)) for look in kept["looks"]]

    def turn(self, pair: str, parts: int) -> int:
        """Which of ``parts`` parts decides between a pair of models: another one at every decision."""
        for look in self._looks:
            if (look.pair, look.parts) == (pair, parts):
                return look.part
        return sum(look.parts == parts for look in self._looks) % parts

    def add(self, look: Look) -> float:
        """Record a look. Returns the number of looks at these images, including this one: one for each at the same
        images, and a fraction for each that had some of the images in common."""
        others = [each for each in self._looks if (each.pair, each.parts) != (look.pair, look.parts)]
        self._looks = [*others, look]
        if self._place is not None:
            self._guard()
            content = {"looks": [dataclasses.asdict(each) for each in self._looks]}
            self._place.write(LEDGER, json.dumps(content).encode())
        return 1 + sum(overlap(look, each) for each in others)


def image_hashes(images: Array | ImageSource) -> np.ndarray:
    """A hash of each image's pixels: uint64 ``[N]``."""
    hashes = [
        int.from_bytes(hashlib.blake2b(image.numpy().tobytes(), digest_size=8).digest(), "big")
        for batch in image_source(images).in_order(HASHED_AT_ONCE)
        for image in batch.cpu()
    ]
    return np.array(hashes, dtype=np.uint64)


def in_part(hashes: np.ndarray, part: int, parts: int) -> np.ndarray:
    """Which images a part of the split has: bool ``[N]``. An image stays in its part when the split grows."""
    return np.asarray(hashes % np.uint64(parts) == part)


def require_parts(hashes: np.ndarray, parts: int) -> None:
    """Raise ``ConfigError`` where one of ``parts`` parts has fewer images than :data:`LEAST_IN_PART`, 1 part excepted:
    such a part decides nothing."""
    least = _smallest(hashes, parts)
    if parts == 1 or least >= LEAST_IN_PART:
        return
    most = min(parts - 1, len(hashes) // LEAST_IN_PART)
    works = next((fewer for fewer in range(most, 1, -1) if _smallest(hashes, fewer) >= LEAST_IN_PART), 1)
    raise ConfigError(
        f"--rotate={parts}: the smallest part of the {len(hashes):,} test images has {least}, and at least "
        f"{LEAST_IN_PART} are needed to decide; use --rotate={works}"
    )


def _smallest(hashes: np.ndarray, parts: int) -> int:
    if parts > len(hashes):
        return 0
    return int(np.bincount((hashes % np.uint64(parts)).astype(np.int64), minlength=parts).min())


def sketch(hashes: np.ndarray) -> tuple[int, ...]:
    """The smallest hashes, from which :func:`overlap` is estimated."""
    return tuple(int(each) for each in np.unique(hashes)[:SKETCH])


def overlap(look: Look, earlier: Look) -> float:
    """The share of a look's images that an earlier one has read, estimated from the hashes that both sketches cover."""
    covered = min(_covered(look), _covered(earlier))
    mine = [each for each in look.sketch if each <= covered]
    theirs = set(earlier.sketch)
    return sum(each in theirs for each in mine) / len(mine) if mine else 0.0


def _covered(look: Look) -> int:
    """The hash up to which a sketch has that of every image."""
    return look.sketch[-1] if len(look.sketch) == SKETCH else 2**64


def explained_by_looking(found: Comparison, looks: float, least_gain: float) -> str | None:
    """A sentence where a gain is significant for one look, but not for so many; None otherwise.

    By Bonferroni's correction: each of m looks may err with (1 − 95%) / m.
    """
    if looks <= 1 or found.images < 2 or not found.better_by(least_gain):
        return None
    half = float(stats.t.ppf(1 - (1 - CONFIDENCE) / 2 / looks, found.images - 1)) * found.standard_error_images
    if found.difference + half < -least_gain:
        return None
    return (
        f"these test images have decided about {looks:.3g} times: at so many looks a gain of up to "
        f"{half + least_gain:.4f} bits/dim may be chance, and this one is {-found.difference:.4f}; --rotate N decides "
        "on another part of them every time"
    )


def _with_tuple(look: dict[str, Any]) -> dict[str, Any]:
    return look | {"sketch": tuple(look.get("sketch", ()))}
