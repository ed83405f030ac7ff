"""Whether one model is better than another on the same images: the paired difference and its interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Comparison(NamedTuple):
    """Challenger less champion, in bits/dim: below 0 the challenger is better."""

    challenger: float
    """Its mean over images and noise."""
    champion: float
    difference: float
    low: float
    high: float
    """The ends of the interval of ``difference``; infinite where there is one image alone."""
    standard_error_images: float
    """Of ``difference``, over images: how much other images, with other noise, would change it."""
    standard_error_noise: float | None
    """Of ``difference``, over seeds of noise: the part of it that more ``noise_seeds`` would lower. None of one."""
    images: int

    def better_by(self, least_gain: float) -> bool:
        """Whether the whole interval shows a gain of more than ``least_gain`` bits/dim."""
        return self.high < -least_gain


def compare(challenger: np.ndarray, champion: np.ndarray) -> Comparison:
    """Compare bits/dim ``[noise seeds, images]`` of two models, measured on the same images with the same seeds.

    The interval is Student's over the images' own differences, each the mean over the seeds of noise. An image's noise
    is drawn for it alone, so the spread of these means from image to image holds both: what the images differ by, and
    what is left of the noise. Nothing of either is counted out because the models share it, but what they share does
    not widen the interval: that is what the pairs are for.
    """
    if challenger.shape != champion.shape:
        raise ValueError(f"bits/dim of shapes {challenger.shape} and {champion.shape}: not the same images and noise")
    pairs = challenger - champion
    of_image, of_seed = pairs.mean(axis=0), pairs.mean(axis=1)
    count, difference = len(of_image), float(pairs.mean())
    error, half = np.inf, np.inf
    if count > 1:
        error = float(of_image.std(ddof=1) / np.sqrt(count))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Comparison(
        challenger=float(challenger.mean()),
        champion=float(champion.mean()),
        difference=difference,
        low=difference - half,
        high=difference + half,
        standard_error_images=error,
        standard_error_noise=float(of_seed.std(ddof=1) / np.sqrt(len(of_seed))) if len(of_seed) > 1 else None,
        images=count,
    )
