"""Two families' comparison by the importance-weighted bound of k = 64 samples, which is nearer to the likelihood.

Only a front's models are measured with k = 64, on the test split. What that takes off their k = 1 depends on the family
(a flow with uniform noise and a discretized f-VAE have bounds of different tightness) and slowly on the size, so it is
interpolated between a front's models and taken off the whole frontier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tune.map.comparison import Band, Comparison
from tune.records.ledger import TrialRecord
from tune.statistics.pareto import front_trials


def with_64_samples(comparison: Comparison, records: Sequence[TrialRecord]) -> Comparison | None:
    """The f-VAE's bits/dim less the flow's at k = 64; None where a front has not been measured. Sizes at equal bits/dim
    are not looked at, so no size is the ``same``."""
    taken_off = []
    for family in ("fvae", "flow"):
        front = [(record.params, record.test) for record in front_trials(records, family) if record.test is not None]
        if not front:
            return None
        sizes, changes = np.log10([size for size, _ in front]), [test.bpd_iwae64 - test.bpd for _, test in front]
        taken_off.append(np.interp(comparison.log_size, sizes, changes))
    difference = comparison.difference + taken_off[0] - taken_off[1]
    return dataclasses.replace(comparison, difference=difference, outside=np.ones_like(comparison.outside))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """``size`` ``[M]``, the ``difference`` with its band, and the ``ranges`` of sizes with one answer."""
    return {
        "size": (10**comparison.log_size).tolist(),
        "difference": Band.of(comparison.difference).json(),
        "ranges": comparison.ranges(),
    }
