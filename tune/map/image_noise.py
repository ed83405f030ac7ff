"""A paired bootstrap over test images: how two families' difference varies with the images of the test split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tune.records.ledger import TrialRecord
from tune.stats.frontiers import Paths
from tune.stats.pareto import Floats, front_trials

IMAGE_DRAWS = 200
"""Resamples of the images."""
BitsOfImages = Callable[[TrialRecord], Floats | None]
"""Test bits/dim of every image of a front's model ``[images]``, k = 1; None where they are not known."""


class ImageNoise:
    """Changes of two families' difference on other images of the same kind, drawn by a bootstrap."""

    def __init__(self, records: Sequence[TrialRecord], bits_of_images: BitsOfImages, seed: int) -> None:
        self._seed = seed
        rng = np.random.default_rng(seed)
        self._changes: dict[str, tuple[Floats, Floats]] = {}  # family → log sizes [F], change of their means [draws, F]
        weights: NDArray[np.float64] | None = None
        for family in ("fvae", "flow"):
            front = [
                (record, bits)
                for record in front_trials(records, family)
                if (bits := bits_of_images(record)) is not None
            ]
            if not front:
                return
            images = np.stack([bits for _, bits in front])  # [F, images]
            if weights is None:
                count = images.shape[1]
                weights = rng.multinomial(count, np.full(count, 1 / count), IMAGE_DRAWS) / count - 1 / count
            if images.shape[1] != weights.shape[1]:
                return
            self._changes[family] = np.log10([record.params for record, _ in front]), weights @ images.T
        self.known = True

    known = False

    def at(self, log_size: Floats, samples: int) -> Floats:
        """Bits/dim for each of so many samples, the same images in all calls, and at each size ``[S, M]``."""
        if not self.known:
            return np.zeros((samples, len(log_size)))
        drawn = np.random.default_rng(self._seed).integers(IMAGE_DRAWS, size=samples)
        one, other = (
            np.array([np.interp(log_size, sizes, change) for change in changes])[drawn]
            for sizes, changes in (self._changes["fvae"], self._changes["flow"])
        )
        return np.asarray(one - other)

    def on(self, paths: Paths) -> Paths:
        """An f-VAE's frontier on other images, of which the flow's stays as it is."""
        return Paths.of(paths.log_size, paths.bits + self.at(paths.log_size, len(paths.bits)))
