"""The champion rule: whether one model is better on the same images, by a paired difference and its interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Comparison(NamedTuple):
    """Challenger less champion, in bits/dim: below 0 the challenger is better."""

    challenger: float
    """The challenger's mean over images and noise."""
    champion: float
    difference: float
    low: float
    high: float
    """The ends of the interval of ``difference``; infinite where there is one image alone."""
    standard_error_images: float
    """Standard error of ``difference`` over images: how much other images, with other noise, would change it."""
    standard_error_noise: float | None
    """Standard error of ``difference`` over seeds of noise, which more ``noise_seeds`` lower. None for one seed."""
    images: int

    def better_by(self, least_gain: float) -> bool:
        """Whether the whole interval shows a gain of more than ``least_gain`` bits/dim."""
        return self.high < -least_gain


def compare(challenger: np.ndarray, champion: np.ndarray) -> Comparison:
    """Compare bits/dim ``[noise seeds, images]`` of two models, measured on the same images with the same seeds.

    The interval is Student's over the images' own differences, each the mean over the seeds of noise. An image's noise
    is drawn for it alone, so the spread of these means over images includes both the differences between images and the
    remaining noise. What the two models have in common cancels in each pair and does not widen the interval.
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
