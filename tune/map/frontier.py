"""The fewest bits/dim that each family can reach at each size, and how sure that is: one model of all trials.

A trial reaches what its size allows, and then some more, because its other hyperparameters are not the best. This is
stochastic frontier analysis (Aigner, Lovell and Schmidt 1977) with a Gaussian process for what a curve does not say.
Of trial i of curve f (a family, or one of its likelihoods) with N_i parameters::

    y_i = F_f(N_i) + u_i + e_i          its bits/dim, measured or forecast
    F_f(N) = a_f + b_f·N^−α_f + g_f(N)  what the best hyperparameters would reach; g ~ GP(0, K), the α_f are alike
    u_i ~ Exponential(mean θ_f·s_i/γ_i) u_i ≥ 0: what its hyperparameters cost; γ_i ~ Gamma(ν, ν): some cost far more
    e_i ~ N(0, σ² + τ_i²)               the luck of its seed; how sure its forecast is, where it is part-trained

s_i is what an excess typically is on this curve and at this size: small models, whose curve is steep, lie further
apart, and so do those whose likelihood suits the images badly. The curves are fitted first; g, u, γ and θ are sampled,
g by steps that leave its exact posterior as it is. What trials of one curve say of g counts for the others too. The
constants of this file were chosen on replayed searches of the digits (``benchmarks/search/calibration.py``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import least_squares
from scipy.special import log_ndtr, ndtri_exp
from threadpoolctl import threadpool_limits

from tune.statistics.bootstrap import Floats

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
"""σ before any configuration has been trained with several seeds, bits/dim, and how many such pairs it is worth."""
SAFETY = 3.0
"""Of the typical excess, by which trials' distances from their curve are taken for larger than they are."""
LEAST_EXCESS = 0.02
"""Bits/dim. The typical excess is at least this."""
EXCESS_TRIALS = 3
"""How many trials of its own the typical excess of all curves is worth to each."""
ALPHA, ALPHA_WEIGHT = 0.4, 0.15
"""What the α are before any trial, and the bits/dim that a factor of e in all or in one of them weighs."""
EXPONENTS = (0.1, 0.5, 1.0)
"""α from which the fit begins."""
ROBUST_SCALE = 0.05
"""Bits/dim by which a trial may miss its curve before it weighs less."""
SWEEPS, BURN_IN, STEPS = 800, 200, 8
"""Of the sampler: in all, those that are forgotten, and steps of g in each."""
ADAPT = (20, 60, 120)
"""Sweeps before which the approximation that the steps are made from is found anew."""
BLUR = 0.5
"""Typical excesses by which that is smoother than the posterior."""
NEWTON = 30
"""Steps that finding it takes at most."""


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Where trials lie, or where frontiers are looked at; arrays ``[N]``."""

    log_size: Floats
    """log10 of the parameters, or of another cost."""
    curve: NDArray[np.int64]
    """A number for each family, or for each of its likelihoods."""
    share: Floats | float = 0.0
    """Of its parameters in E and G, along which a curve bends as well; a number: the same everywhere."""

    def __len__(self) -> int:
        return len(self.log_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """a + b·N^−α for every curve."""

    a: Floats
    """Of each curve, like the others ``[F]``."""
    b: Floats
    """At the middle of all sizes: b·N^−α there."""
    alpha: Floats
    excess: Floats
    """Typical distance of a trial from its curve at the middle of all sizes, bits/dim."""
    middle: float
    """log10 of that size."""
    names: NDArray[np.int64]
    """The curves' numbers, ascending ``[F]``."""

    def at(self, points: Points) -> Floats:
        """Bits/dim at each point ``[N]``."""
        own = np.searchsorted(self.names, points.curve)
        return np.asarray(self.a[own] + self.b[own] * 10 ** (-self.alpha[own] * (points.log_size - self.middle)))

    def typical(self, points: Points, most: float = math.inf) -> Floats:
        """Typical excess at each point ``[N]``, of each curve at most ``most`` at the middle size: small models, whose
        curve is steep, lie further apart."""
        own = np.searchsorted(self.names, points.curve)
        return np.minimum(self.excess, most)[own] * _steepness(self.alpha[own], points.log_size - self.middle)


def fit_curves(trials: Points, bits: Floats, safety: float = SAFETY) -> Curves:
    """Robust least squares through complete trials, ``a`` and ``b`` at least 0, and how far these lie from it, times
    ``safety``."""
    names, index = np.unique(trials.curve, return_inverse=True)
    count, middle = len(names), float(trials.log_size.mean())
    sizes = trials.log_size - middle

    def residuals(theta: Floats) -> Floats:
        a, b, alpha = np.split(theta, 3)
        common = np.log(alpha).mean()
        prior = ALPHA_WEIGHT * np.append(np.log(alpha) - common, common - math.log(ALPHA))
        return np.append(a[index] + b[index] * 10 ** (-alpha[index] * sizes) - bits, prior)

    lowest = [max(0.0, float(bits[index == place].min()) - 0.2) for place in range(count)]
    bounds = [0.0] * 2 * count + [0.01] * count, [np.inf] * 2 * count + [4.0] * count
    starts = ([*lowest, *[0.2] * count, *[alpha] * count] for alpha in EXPONENTS)
    fits = [least_squares(residuals, start, bounds=bounds, loss="soft_l1", f_scale=ROBUST_SCALE) for start in starts]
    best = min(fits, key=lambda fit: float(fit.cost)).x
    a, b, alpha = np.split(best, 3)
    away = np.abs(residuals(best)[: len(bits)]) / _steepness(alpha[index], sizes)
    away *= len(away) / max(1, len(away) - 2 * count)  # curves bend towards their trials: each has used up two
    excess = safety * _typical_excess([away[index == place] for place in range(count)])
    return Curves(a, b, alpha, excess, middle, names)


def _typical_excess(away: Sequence[Floats]) -> Floats:
    """Mean excess of each curve's trials from how far they lie from the curve, each curve's with that of all."""
    # A few that failed to learn are not typical.
    capped = [np.minimum(each, 5 * np.median(each) / math.log(2)) for each in away]
    counts = np.array([len(each) for each in capped])
    means = np.maximum([each.mean() for each in capped], LEAST_EXCESS)
    of_all = math.exp(counts @ np.log(means) / counts.sum())
    # An exponential distribution of mean θ has its median, and its mean distance from it, at θ·log 2.
    return np.asarray((counts * means + EXCESS_TRIALS * of_all) / (counts + EXCESS_TRIALS) / math.log(2))


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
    # Where u may be 0 the posterior has an edge, of which its mode says nothing: it is approximated a little blurred.
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
    """Of e ``[N]``."""
    rate: Floats
    """γ/θ ``[N]``."""

    def log_density(self, left: Floats) -> Floats:
        """With u integrated out ``[N]``."""
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
    """Of the covariance ``[N, N]``."""

    @classmethod
    def of(cls, covariance: Floats, beyond: Floats, noise: Noise) -> Laplace:
        """At the highest density, found by Newton's method."""
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


def _steepness(alpha: Floats, log_size: Floats) -> Floats:
    """How steep a curve is, over how steep it is at the middle of all sizes; nowhere less than a quarter of it."""
    return np.asarray(np.maximum(10 ** (-alpha * log_size), 0.25))


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
