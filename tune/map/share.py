"""How N parameters should be split: the fewest bits/dim against the share of them that lies in E and G.

A flow has none of its parameters there (share 0), a VAE all of them (1), an f-VAE what is between. One model describes
all trials (:mod:`tune.stats.stochastic_frontier`), in which an f-VAE's frontier bends with its share as it does
with its size; its samples determine which share is the best at a size, with an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fvae.config import ConfigError, ModelConfig
from fvae.flops import encoder_and_decoder_parameters
from tune.records.ledger import TrialRecord
from tune.stats.comparison import ENDS, Band
from tune.stats.forecasts import Forecasts
from tune.stats.frontier_curves import Points
from tune.stats.frontiers import likelihood_of
from tune.stats.pareto import Floats
from tune.stats.stochastic_frontier import SEED_SPREAD, sample_frontiers

SIZES = 3
"""How many sizes are evaluated."""
STEPS = 19
"""Shares of an f-VAE that are evaluated."""
LEAST_TRIALS = 3
"""Complete f-VAEs of a likelihood that its shares need; and complete flows and VAEs, to be included."""
CURVES = ("flow", "fvae", "vae")


def share_of(record: TrialRecord) -> float | None:
    """Share of a trial's parameters in E and G; None where its config is none of this version's."""
    try:
        return encoder_and_decoder_parameters(ModelConfig.from_dict(record.config)) / record.params
    except ConfigError:
        return None


def best_shares(
    records: Sequence[TrialRecord], forecasts: Forecasts, seed: int, *, seed_spread: float = SEED_SPREAD
) -> dict[str, Any]:
    """Best shares by likelihood of f-VAE and VAE, where there are enough trials.

    A likelihood has ``size`` ``[K]`` in parameters; ``share`` ``[M]``, ascending, 0 the flow and 1 the VAE; bits/dim
    ``median``, ``low`` and ``high`` ``[K][M]``, null where a family has no model so small; and ``best`` ``[K]``: of the
    shares between the smallest and the largest that were trained, the ``share`` of the fewest bits/dim with its 95%
    interval ``low`` to ``high``.

    ``forecasts`` has learned from the trials; ``seed_spread`` is σ of :mod:`tune.stats.stochastic_frontier`.
    """
    likelihoods = sorted({likelihood_of(record) for record in records if record.family == "fvae"})
    found = {name: _of_likelihood(records, name, forecasts, seed, seed_spread) for name in likelihoods}
    return {name: each for name, each in found.items() if each}


def _of_likelihood(
    records: Sequence[TrialRecord], likelihood: str, forecasts: Forecasts, seed: int, seed_spread: float
) -> dict[str, Any] | None:
    known = []
    for record in records:
        own = record.family == "flow" or likelihood_of(record) == likelihood
        if not own or record.replicate_of is not None or record.status == "failed" or not record.history:
            continue
        share, forecast = share_of(record), forecasts.of(record)
        if share is not None and forecast is not None:
            known.append((CURVES.index(record.family), share, record.params, *forecast))
    if not known:
        return None
    curve, share, params, bits, spreads = np.array(known).T
    complete = spreads == 0
    enough = [place for place in range(len(CURVES)) if (complete & (curve == place)).sum() >= LEAST_TRIALS]
    if CURVES.index("fvae") not in enough:
        return None
    curve, share, params, bits, spreads = np.array(known)[np.isin(curve, enough)].T
    complete = spreads == 0
    trials = Points(np.log10(params), curve.astype(np.int64), share)
    mixed = complete & (curve == CURVES.index("fvae"))
    smallest, largest = trials.log_size[mixed].min(), trials.log_size[mixed].max()
    cut = ENDS * (largest - smallest)
    sizes = np.linspace(smallest + cut, largest - cut, SIZES)
    tried = share[curve == CURVES.index("fvae")]
    shares = np.linspace(tried.min(), tried.max(), STEPS)
    looked_at = [(place, each) for place in enough for each in (shares if CURVES[place] == "fvae" else [place / 2])]
    curves, at = np.array(looked_at).T
    where = Points(np.repeat(sizes, len(at)), np.tile(curves, SIZES).astype(np.int64), np.tile(at, SIZES))
    # Without safety: how the share bends a curve counts as excess already.
    samples = sample_frontiers(trials, bits, spreads, where, seed_spread=seed_spread, safety=1.0, seed=seed)
    samples = samples.reshape(-1, SIZES, len(at))
    least = np.array([trials.log_size[complete & (curve == each)].min() for each in curves])
    there = sizes[:, None] >= least - 1e-9  # [K, M]
    return {
        "size": (10**sizes).tolist(),
        "share": at.tolist(),
        **{name: _masked(each, there) for name, each in vars(Band.of(samples)).items()},
        "best": [_best(at[row], samples[:, place, row]) for place, row in enumerate(there)],
    }


def _masked(values: Floats, there: np.ndarray) -> list[list[float | None]]:
    return [[float(each) if is_there else None for each, is_there in zip(*row, strict=True)]
            for row in zip(values, there, strict=True)]  # fmt: skip


def _best(shares: Floats, samples: Floats) -> dict[str, float]:
    """The share of the fewest bits/dim, of samples ``[S, M]``: the median over them and the 95% interval."""
    chosen = shares[samples.argmin(axis=1)]
    ends = [("low", 0.025, "lower"), ("share", 0.5, "nearest"), ("high", 0.975, "higher")]
    return {name: float(np.quantile(chosen, at, method=method)) for name, at, method in ends}  # type: ignore[call-overload]
