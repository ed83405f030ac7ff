"""What a model's compute takes in seconds, learned from trials that have trained."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.optimize import least_squares

from tune.records.ledger import TrialRecord

LEAST_TRIALS = 3
"""Trials of different FLOPs before anything is said."""


class Speed:
    """Seconds an image = constant + slope · FLOPs an image, both above 0.

    Fitted to the trials' logarithms, so that small models count as much as large ones (their time is overhead, not
    FLOPs), and then scaled so that on average over the trials it is their seconds.
    """

    def __init__(self, records: Iterable[TrialRecord]) -> None:
        """``records``: those without a finished epoch tell nothing. ``known`` says whether the rest were enough."""
        trained = [record for record in records if record.history and record.seconds > 0]
        self.known = len({record.flops_per_image for record in trained}) >= LEAST_TRIALS
        if self.known:
            seconds = np.array([record.seconds / _images(record) for record in trained])
            flops = np.array([record.flops_per_image for record in trained], dtype=float)

            def excess(logs: np.ndarray) -> np.ndarray:
                return np.logaddexp(logs[0], logs[1] + np.log(flops)) - np.log(seconds)

            start = np.log([seconds.min() / 2, np.median(seconds / flops) / 2])
            logs = least_squares(excess, start).x
            self.constant, self.slope = np.exp(logs) * np.mean(np.exp(-excess(logs)))
            self.images_per_epoch = trained[0].history[0].images

    def seconds(self, flops_per_image: float, images: float) -> float:
        """Of training and validation; only where it is ``known``."""
        return float(self.constant + self.slope * flops_per_image) * images


def _images(record: TrialRecord) -> int:
    """That its seconds were spent on."""
    return sum(attempt.images for attempt in record.attempts) or record.history[-1].images
