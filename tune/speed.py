"""What a model's compute takes in seconds, learned from trials that have trained."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.optimize import nnls

from tune.ledger import TrialRecord

LEAST_TRIALS = 3
"""Trials of different FLOPs before anything is said."""


class Speed:
    """Seconds an image = constant + slope · FLOPs an image, both at least 0.

    Fitted to the trials' relative errors, so that small models count as much as large ones: their time is overhead,
    not FLOPs.
    """

    def __init__(self, records: Iterable[TrialRecord]) -> None:
        """``records``: those without a finished epoch tell nothing. ``known`` says whether the rest were enough."""
        trained = [record for record in records if record.history and record.seconds > 0]
        self.known = len({record.flops_per_image for record in trained}) >= LEAST_TRIALS
        if self.known:
            seconds = np.array([record.seconds / _images(record) for record in trained])
            flops = np.array([record.flops_per_image for record in trained], dtype=float)
            columns = np.column_stack([1 / seconds, flops / seconds])
            (self.constant, self.slope), _ = nnls(columns, np.ones(len(trained)))
            self.images_per_epoch = trained[0].history[0].images

    def seconds(self, flops_per_image: float, images: float) -> float:
        """Of training and validation; only where it is ``known``."""
        return float(self.constant + self.slope * flops_per_image) * images


def _images(record: TrialRecord) -> int:
    """That its seconds were spent on."""
    return sum(attempt.images for attempt in record.attempts) or record.history[-1].images
