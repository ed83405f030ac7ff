"""Stochastic frontier analysis: the fewest bits/dim that each family can reach at each size, with its uncertainty.

A trial reaches what its size allows, and then some more, because its other hyperparameters are not the best. This is
stochastic frontier analysis (Aigner, Lovell and Schmidt 1977) with a Gaussian process for deviations from a curve.
Of trial i of curve f (a family, or one of its likelihoods) with N_i parameters::

    y_i = F_f(N_i) + u_i + e_i          its bits/dim, measured or forecast
    F_f(N) = a_f + b_f·N^−α_f + g_f(N)  what the best hyperparameters would reach; g ~ GP(0, K), the α_f are alike
    u_i ~ Exponential(mean θ_f·s_i/γ_i) u_i ≥ 0: what its hyperparameters cost; γ_i ~ Gamma(ν, ν): some cost far more
    e_i ~ N(0, σ² + τ_i²)               the effect of its seed; the spread of its forecast, where it is part-trained

s_i is what an excess typically is on this curve and at this size: small models, whose curve is steep, lie further
apart, and so do those whose likelihood suits the images badly. The curves are fitted first; g, u, γ and θ are sampled,
g by steps that leave its exact posterior as it is. The trials of one curve inform g of the others too. The
constants of this file were chosen on replayed searches of the digits (``benchmarks/search/calibration.py``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import log_ndtr, ndtri_exp
from threadpoolctl import threadpool_limits

from tune.stats.frontier_curves import SAFETY, Curves, Points, fit_curves
from tune.stats.pareto import Floats

LENGTH = 1.0
"""Decades of parameters over which g bends."""
SHARE_LENGTH = 0.3
"""Likewise of the share of the parameters that lies in E and G, where that is looked at."""
COMMON = 0.5
"""Correlation of two curves' g at one size."""
BEND, LINE = 1.0, 1.0
"""Standard deviations of g: of what bends, and of a curve's height and of its slope over a decade; in typical excesses
of the curve's complete trials, of which what bends takes at most the middle curve's. Where trials lie far above the
best of their size, even the best may be far from the frontier; but that makes the frontier no rougher."""
TAIL = 5.0
"""ν: the excess is as likely to be above u as u^−ν, far out."""
SEED_SPREAD, SEED_TRIALS = 0.015, 3
"""σ before any configuration has been trained with several seeds, bits/dim, and its weight in such pairs."""
SWEEPS, BURN_IN, STEPS = 800, 200, 8
"""Sweeps of the sampler in all, those that are discarded, and steps of g in each."""
ADAPT = (20, 60, 120)
"""Sweeps before which the approximation that the steps are made from is recomputed."""
BLUR = 0.5
"""Typical excesses by which that is smoother than the posterior."""
NEWTON = 30
"""Newton steps that finding it takes at most."""


def sample_frontiers(
    trials: Points,
    bits: Floats,
    spreads: Floats,
    where: Points,
    *,
    seed_spread: float = SEED_SPREAD,
    safety: float = SAFETY,
    seed: int,
    sweeps: int = SWEEPS,
) -> Floats:
    """Samples ``[S, M]`` of F at the points ``where`` ``[M]``, bits/dim.

    Args:
        trials: at least one complete one of every curve.
        bits: what they have reached, or are forecast to reach ``[N]``.
        spreads: τ of the forecasts, 0 where it is measured ``[N]``.
        where: any sizes.
        seed_spread: σ; see :func:`seed_spread_of`.
        safety: see :data:`SAFETY`.
        seed: of the samples.
        sweeps: of the sampler, more than ``BURN_IN``.
    """
    with threadpool_limits(1):  # of matrices this small more threads only wait for one another
        return _sample(trials, bits, spreads, where, seed_spread, safety, np.random.default_rng(seed), sweeps)


def _sample(
    trials: Points,
    bits: Floats,
    spreads: Floats,
    where: Points,
    seed_spread: float,
    safety: float,
    rng: np.random.Generator,
    sweeps: int,
) -> Floats:
    complete = spreads == 0
    curves = fit_curves(Points(trials.log_size[complete], trials.curve[complete]), bits[complete], safety)
    typical, typical_where = curves.typical(trials), curves.typical(where)
    # The curve goes through the middle of its trials; from here on everything is relative to what lies below it.
    beyond = bits - curves.at(trials) + math.log(2) * typical
    base = curves.at(where) - math.log(2) * typical_where
    deviation = np.sqrt(seed_spread**2 + spreads**2)  # of e, [N]
    covariance = _covariance(trials, trials, curves)
    across = _covariance(where, trials, curves)
    gain = cho_solve((_root(covariance), True), across.T).T  # g elsewhere from g here
    prior = _covariance(where, where, curves)
    root_where = _root(prior - gain @ across.T, prior)
    members = [np.flatnonzero(trials.curve == each) for each in np.unique(trials.curve)]
    theta = typical.copy()
    noise = Noise(deviation, 1 / theta)
    # Where u may be 0 the posterior has an edge, which its mode does not show: it is approximated a little blurred.
    wide = np.sqrt(deviation**2 + (BLUR * typical) ** 2)
    laplace = Laplace.of(covariance, beyond, Noise(wide, noise.rate))
    g = laplace.mode
    samples = []
    for sweep in range(sweeps):
        if sweep in ADAPT:
            laplace = Laplace.of(covariance, beyond, Noise(wide, noise.rate))
        for _ in range(STEPS):
            g = laplace.step(g, beyond, noise, rng)
        # u given g is a normal number where it is not below 0; γ and θ given u.
        middle = beyond - g - deviation**2 * noise.rate
        excess = np.maximum(middle - deviation * _normal_below(middle / deviation, rng), 0.0)
        gamma = rng.gamma(TAIL + 1, 1 / (TAIL + excess / theta))
        for mine in members:
            relative = float((gamma * excess / typical)[mine].sum())
            theta[mine] = typical[mine] * (2 + relative) / rng.gamma(2 + len(mine))
        noise = Noise(deviation, gamma / theta)
        if sweep >= BURN_IN:
            samples.append(base + gain @ g + root_where @ rng.standard_normal(len(where)))
    return np.array(samples)


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """The distribution of u + e, an exponential and a normal number; log-concave."""

    deviation: Floats
    """Standard deviation of e ``[N]``."""
    rate: Floats
    """γ/θ ``[N]``."""

    def log_density(self, left: Floats) -> Floats:
        """Log density of ``left`` = u + e, with u integrated out ``[N]``."""
        scaled = self.rate * self.deviation
        below = log_ndtr(left / self.deviation - scaled)
        return np.asarray(np.log(self.rate) + self.rate * (0.5 * self.rate * self.deviation**2 - left) + below)

    def slope_and_curvature(self, left: Floats) -> tuple[Floats, Floats]:
        """−d/d ``left`` and −d²/d ``left``² of the log density ``[N]``."""
        at = left / self.deviation - self.rate * self.deviation
        hazard = np.exp(-0.5 * at**2 - 0.5 * math.log(2 * math.pi) - log_ndtr(at))
        return self.rate - hazard / self.deviation, np.maximum(hazard * (at + hazard), 0.0) / self.deviation**2


@dataclasses.dataclass(frozen=True, eq=False)
class Laplace:
    """A normal distribution close to the posterior of g (Rasmussen and Williams 2006, algorithm 3.1), from which exact
    samples are made."""

    mode: Floats
    pull: Floats
    """K⁻¹ times the mode ``[N]``."""
    precision: Floats
    """What the trials add to K⁻¹ ``[N]``."""
    root: Floats
    """Lower root of the covariance ``[N, N]``."""

    @classmethod
    def of(cls, covariance: Floats, beyond: Floats, noise: Noise) -> Laplace:
        """Find the approximation at the highest density, by Newton's method."""
        count = len(beyond)
        g, pull = np.zeros(count), np.zeros(count)
        value = -np.inf
        for _ in range(NEWTON):
            slope, precision = noise.slope_and_curvature(beyond - g)
            half, factor = _whitened(covariance, precision)
            wanted = precision * g + slope
            target = wanted - half * cho_solve((factor, True), half * (covariance @ wanted))
            length = 1.0
            while True:  # shorter steps where a whole one goes too far
                new_pull = pull + length * (target - pull)
                new = covariance @ new_pull
                new_value = float(noise.log_density(beyond - new).sum() - 0.5 * new_pull @ new)
                if new_value >= value - 1e-9 or length < 1e-3:
                    break
                length /= 2
            done = new_value - value < 1e-4
            g, pull, value = new, new_pull, new_value
            if done:
                break
        _, precision = noise.slope_and_curvature(beyond - g)
        half, factor = _whitened(covariance, precision)
        inner = solve_triangular(factor, half[:, None] * covariance, lower=True)
        return cls(g, pull, precision, _root(covariance - inner.T @ inner, covariance))

    def step(self, g: Floats, beyond: Floats, noise: Noise, rng: np.random.Generator) -> Floats:
        """A step from ``g``, a sample of the posterior, to another one: elliptical slice sampling (Murray, Adams and
        MacKay 2010) with this distribution as the prior, and what it leaves of the posterior as the likelihood."""

        def log_likelihood(at: Floats) -> float:
            own = noise.log_density(beyond - (self.mode + at)).sum()
            return float(own - at @ self.pull + 0.5 * self.precision @ at**2)

        here, other = g - self.mode, self.root @ rng.standard_normal(len(g))
        least = log_likelihood(here) + math.log(rng.uniform())
        angle = rng.uniform(0, 2 * math.pi)
        low, high = angle - 2 * math.pi, angle
        while True:
            moved = np.asarray(here * math.cos(angle) + other * math.sin(angle))
            if log_likelihood(moved) > least:
                return self.mode + moved
            low, high = (angle, high) if angle < 0 else (low, angle)
            angle = rng.uniform(low, high)


def seed_spread_of(groups: Sequence[Sequence[float]]) -> float:
    """σ from configurations that were trained with several seeds, each a list of its bits/dim."""
    squares = sum(float(np.square(np.array(group) - np.mean(group)).sum()) for group in groups)
    freedom = sum(len(group) - 1 for group in groups)
    return float(np.sqrt((SEED_TRIALS * SEED_SPREAD**2 + squares) / (SEED_TRIALS + freedom)))


def _covariance(one: Points, other: Points, curves: Curves) -> Floats:
    """K, ``[N, M]``: Matérn's kernel of ν = 5/2 over sizes, and a line of each curve's own; both the same or nearly so
    for shares that are near one another."""
    near = _near((one.log_size[:, None] - other.log_size) / LENGTH)
    shares = np.broadcast_to(one.share, len(one))[:, None] - np.broadcast_to(other.share, len(other))
    same = (one.curve[:, None] == other.curve) * _near(shares / SHARE_LENGTH)
    lines = 1 + (one.log_size[:, None] - curves.middle) * (other.log_size - curves.middle)
    middle = float(np.median(curves.excess))
    bend = BEND**2 * np.outer(curves.typical(one, middle), curves.typical(other, middle))
    line = LINE**2 * np.outer(curves.typical(one), curves.typical(other))
    return np.asarray(bend * near * (COMMON + (1 - COMMON) * same) + line * same * lines)


def _near(distance: Floats) -> Floats:
    """Matérn's kernel of ν = 5/2."""
    scaled = np.sqrt(5.0) * np.abs(distance)
    return np.asarray((1 + scaled + scaled**2 / 3) * np.exp(-scaled))


def _whitened(covariance: Floats, precision: Floats) -> tuple[Floats, Floats]:
    """The square root of ``precision`` ``[N]``, and the lower root of I + W½·K·W½ ``[N, N]`` with it on the diagonal of
    W½."""
    half = np.sqrt(precision)
    return half, np.asarray(cholesky(np.eye(len(half)) + half[:, None] * covariance * half, lower=True))


def _root(covariance: Floats, before: Floats | None = None) -> Floats:
    """A lower root of a covariance that rounding may have left short of positive: of ``before`` less something, where
    that is given, so that the errors go by its size."""
    scale = np.diag(covariance if before is None else before)
    jitter = 1e-10 + 1e-7 * scale
    while True:
        try:
            return np.asarray(cholesky(covariance + np.diag(jitter), lower=True))
        except np.linalg.LinAlgError:
            if (jitter > scale).all():  # no covariance at all
                raise
            jitter = 10 * jitter


def _normal_below(limits: Floats, rng: np.random.Generator) -> Floats:
    """Standard normal numbers, each below its limit ``[N]``; exact far out in the tail."""
    return np.asarray(ndtri_exp(np.log(rng.uniform(size=len(limits))) + log_ndtr(limits)))
