"""Scaling laws: the curve bpd(N) = a + b·N^−α through each family's front, its uncertainty, and a forecast beyond."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from tune.records.ledger import TrialRecord
from tune.stats.pareto import (
    Floats,
    Front,
    complete_trials,
    front_of,
    front_trials,
    interval95,
    resampled_fronts,
    size_and_bits,
)

MIN_FRONT_POINTS = 3
"""The curve has three numbers: fewer points do not determine it."""
ALPHA_BOUNDS = (0.01, 4.0)
ROBUST_SCALE = 0.02
"""Bits/dim. Residuals beyond it weigh in linearly, so that one unlucky trial cannot bend the curve."""
REPLICATES = 400
BAND_POINTS = 64
BEYOND = 8.0
"""How many times larger than the largest model tried a front is still forecast."""
BEYOND_POINTS = 16
FORECAST_SHARE = 0.95
"""Share of the probability that a forecast's band holds."""
LARGER = 1.25
"""Times the parameters of its front's largest model, beyond which a complete trial shows that more do not help."""
EARLY = 0.8
"""A trial whose best epoch came within this share of its epochs overfits: more training made it worse."""


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """bpd(N) = a + b·N^−α, with N in parameters and a, bpd in bits/dim."""

    a: float
    b: float
    alpha: float

    def __call__(self, params: Floats) -> Floats:
        """Bits/dim at each size."""
        return self.a + self.b * params**-self.alpha

    @property
    def at_bounds(self) -> list[str]:
        """Numbers that the front does not determine: the fit pushed them to their limit."""
        limits = {"a": (self.a, (0.0,)), "b": (self.b, (0.0,)), "alpha": (self.alpha, ALPHA_BOUNDS)}
        return [name for name, (value, ends) in limits.items() if np.isclose(value, ends, atol=1e-6).any()]


def fit_power_law(front: Front, start: PowerLaw | None = None) -> PowerLaw:
    """Robust least squares with a ≥ 0 and at most the lowest point, b ≥ 0 and α within ``ALPHA_BOUNDS``.

    ``start`` is where to look from; by default three exponents are tried and the best fit kept.
    Raises ``ValueError`` for fewer than ``MIN_FRONT_POINTS`` points.
    """
    if len(front.params) < MIN_FRONT_POINTS:
        raise ValueError(f"{len(front.params)} front points do not determine a, b and alpha")
    # In raw units b spans many decades and is all but a function of α. With N in units of the sizes'
    # geometric mean, the factor is the height of the curve at the middle of the data.
    center = float(np.exp(np.log(front.params).mean()))
    log_size = np.log(front.params / center)
    lowest, spread = float(front.bpd.min()), float(np.ptp(front.bpd))

    def residuals(theta: Floats) -> Floats:
        a, height, alpha = theta
        return a + height * np.exp(-alpha * log_size) - front.bpd

    def jacobian(theta: Floats) -> Floats:
        _, height, alpha = theta
        power = np.exp(-alpha * log_size)
        return np.stack([np.ones_like(power), power, -height * log_size * power], axis=1)

    if start is None:
        starts = [(max(lowest - spread, lowest / 2), spread, alpha) for alpha in (0.1, 0.5, 1.5)]
    else:
        starts = [(start.a, start.b * center**-start.alpha, start.alpha)]
    # What the largest models have reached is no floor for larger ones.
    lower, upper = np.array([0.0, 0.0, ALPHA_BOUNDS[0]]), np.array([lowest, np.inf, ALPHA_BOUNDS[1]])
    fits = [
        least_squares(
            residuals,
            np.clip(theta, lower + 1e-9, upper - 1e-9),  # the solver wants to begin inside its bounds
            jac=jacobian,
            bounds=(lower, upper),
            loss="soft_l1",
            f_scale=ROBUST_SCALE,
            x_scale="jac",
            xtol=1e-10,
            ftol=1e-10,
            gtol=1e-10,
            max_nfev=200,
        )
        for theta in starts
    ]
    a, height, alpha = min(fits, key=lambda fit: fit.cost).x
    # An interior-point solver stops a hair inside its bounds.
    a = a if a > 1e-9 else 0.0
    return PowerLaw(float(a), float(height * center**alpha), float(alpha))


def fit_family(records: Sequence[TrialRecord], family: str, seed: int) -> dict[str, Any]:
    """The family's curve, its 95% intervals and its band, JSON-ready.

    ``a``, ``b``, ``alpha``; ``ci95`` of each; ``band``: sizes ``params`` on a log grid over the tried sizes with
    ``bpd``, ``low``, ``high``; ``beyond``: the same for sizes up to ``BEYOND`` times the largest tried, from the band's
    end on as :func:`forecast_front` has it. Where too few points determine no curve all of these are null, and ``why``
    is the reason. The intervals come from resampling the family's complete trials; ``replicates_fitted`` of
    ``replicates`` resamples had enough front points for a curve.
    """
    points = np.array(size_and_bits(complete_trials(records, family))).reshape(-1, 2)
    front = front_of(points[:, 0], points[:, 1])
    empty = {"a": None, "b": None, "alpha": None, "ci95": None, "band": None, "beyond": None}
    counts = {"trials": len(points), "front_points": len(front.params)}
    if len(front.params) < MIN_FRONT_POINTS:
        why = (
            f"{len(front.params)} front points from {len(points)} complete trials: "
            f"a curve with three numbers needs at least {MIN_FRONT_POINTS}"
        )
        return empty | counts | {"why": why}

    law = fit_power_law(front)
    rng = np.random.default_rng(seed)
    replicates = _resampled_laws(points, law, rng)
    grid = np.geomspace(points[:, 0].min(), points[:, 0].max(), BAND_POINTS)
    curves = np.array([replicate(grid) for replicate in replicates]).reshape(-1, BAND_POINTS)
    result = dataclasses.asdict(law) | counts
    result["beyond"] = _forecast(front, law, replicates, grid[-1] * np.geomspace(1.0, BEYOND, BEYOND_POINTS), rng)
    result |= {"at_bounds": law.at_bounds, "replicates": REPLICATES, "replicates_fitted": len(replicates)}
    band: dict[str, Any] = {"params": grid.tolist(), "bpd": law(grid).tolist(), "low": None, "high": None}
    if 2 * len(replicates) < REPLICATES:
        why = f"only {len(replicates)} of {REPLICATES} resamples kept {MIN_FRONT_POINTS} front points: no interval"
        return result | {"ci95": None, "band": band, "why": why}
    band |= {"low": np.quantile(curves, 0.025, axis=0).tolist(), "high": np.quantile(curves, 0.975, axis=0).tolist()}
    for name in ("bpd", "low", "high"):  # at the largest size tried the forecast goes on from the fit
        result["beyond"][name][0] = band[name][-1]
    ci95 = {
        name: list(interval95(np.array([getattr(replicate, name) for replicate in replicates])))
        for name in ("a", "b", "alpha")
    }
    return result | {"ci95": ci95, "band": band, "why": None}


def _resampled_laws(points: Floats, start: PowerLaw, rng: np.random.Generator) -> list[PowerLaw]:
    """Curves of the resamples that have enough front points. Equal fronts are fitted once: few trials make few."""
    fitted: dict[bytes, PowerLaw] = {}
    laws = []
    for front in resampled_fronts(points[:, 0], points[:, 1], REPLICATES, rng):
        if len(front.params) < MIN_FRONT_POINTS:
            continue
        key = front.params.tobytes() + front.bpd.tobytes()
        if key not in fitted:
            fitted[key] = fit_power_law(front, start)
        laws.append(fitted[key])
    return laws


def forecast_front(points: Floats, sizes: Floats, seed: int) -> dict[str, list[float]] | None:
    """What the front of a family reaches at ``sizes`` ``[K]``, in parameters, of which some are larger than any tried.

    ``points`` ``[N, 2]`` are its complete trials' parameters and bits/dim. Returns ``params``, ``bpd`` and the band
    ``low``, ``high``, which should hold the front's true bits/dim with probability ``FORECAST_SHARE``; None where too
    few points determine no curve.
    """
    front = front_of(points[:, 0], points[:, 1])
    if len(front.params) < MIN_FRONT_POINTS:
        return None
    rng = np.random.default_rng(seed)
    law = fit_power_law(front)
    return _forecast(front, law, _resampled_laws(points, law, rng), sizes, rng)


def _forecast(
    front: Front, law: PowerLaw, resampled: Sequence[PowerLaw], sizes: Floats, rng: np.random.Generator
) -> dict[str, list[float]]:
    """The mean of two forecasts that are given the same weight, for a family may be at its floor and a curve through a
    few points cannot know it: the front goes on along its curve, or it stays where it is.

    Three things make the band: which of the two holds, which trials happened to be run (resampled, as for the
    intervals of the fit), and how far front points lie from their curve (drawn from the residuals). In any
    case a larger budget can hold the best smaller model: so no forecast is above what the front has within that size.
    """
    reached = np.interp(np.log(sizes), np.log(front.params), front.bpd)
    residuals = front.bpd - law(front.params)
    residuals = residuals * np.sqrt(len(residuals) / max(1, len(residuals) - 2))  # a curve bends towards its points
    ways = np.array([way for each in (law, *resampled) for way in (each(sizes), reached)])  # [2 (R + 1), K]
    ways = np.minimum(ways + rng.choice(residuals, size=(len(ways), len(sizes))), reached)
    tail = (1 - FORECAST_SHARE) / 2
    return {
        "params": sizes.tolist(),
        "bpd": ((np.minimum(law(sizes), reached) + reached) / 2).tolist(),
        "low": np.quantile(ways, tail, axis=0).tolist(),
        "high": np.quantile(ways, 1 - tail, axis=0).tolist(),
    }


def saturation(records: Sequence[TrialRecord], family: str) -> dict[str, Any] | None:
    """Complete trials that are larger than the family's front and reach no fewer bits/dim; None where there are none.

    ``params`` of the front's largest model; of the ``larger`` trials their number, the ``largest``'s parameters, how
    many ``overfit``, the earliest ``best_epoch`` of these (None: of none), and the ``epochs`` of a training.
    """
    front = front_trials(records, family)
    larger = [each for each in complete_trials(records, family) if front and each.params > LARGER * front[-1].params]
    if not larger:
        return None
    overfit = [each.best_epoch for each in larger if each.best_epoch and each.best_epoch <= EARLY * each.epochs]
    return {
        "params": front[-1].params,
        "larger": len(larger),
        "largest": max(each.params for each in larger),
        "overfit": len(overfit),
        "best_epoch": min(overfit, default=None),
        "epochs": larger[0].epochs,
    }
