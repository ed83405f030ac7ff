"""The default way to choose the next model: the one that should enlarge a front the most for its cost.

Size is free, so it is known for every candidate. What a candidate will reach is not: the surrogate says so of models
that nobody has trained, their own learning curves of those that were stopped. Both are weighed alike: the expected
growth of the front's area (:mod:`tune.improvement`) over the epochs that it should cost. So a stopped trial goes on,
from where it was, once that has become the best use of the next epochs.

Everything follows from the ledger, the seed and the trial's number, so a search that was killed goes on as it would
have.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from fvae.config import ConfigError
from fvae.data import derived_seed
from tune.bootstrap import Floats
from tune.candidates import Candidate, CandidateSource, key, point_of
from tune.designs import spread_order
from tune.forecasts import Forecast
from tune.improvement import Staircase
from tune.ledger import TrialRecord
from tune.limits import Limits
from tune.pareto import pareto_front
from tune.space import SearchSpace
from tune.standings import Standing, Standings
from tune.surrogate import Surrogate, unit_point
from tune.untried import Untried

POOL = 96
"""Candidates that one choice is made from: half drawn uniformly, half near what stands on the front."""
LEAST_TRIALS = 3
"""Trials with a forecast that the surrogate needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What should come next of a family."""

    what: Candidate | TrialRecord
    """A model that nobody has trained, or a stopped trial that is to go on."""
    value: float
    """Expected growth of the front's area, in decades × bits/dim, for each epoch that it should cost."""


class FrontProposer:
    """Chooses by expected hypervolume improvement. See :class:`tune.proposers.Proposer`."""

    def __init__(
        self,
        standings: Standings,
        source: CandidateSource,
        limits: Limits,
        space: SearchSpace,
        images: dict[str, int],
        *,
        epochs: int,
        seed: int,
        first: Mapping[str, Sequence[Candidate]],
        earlier: Sequence[TrialRecord] = (),
    ) -> None:
        """
        Args:
            standings: how the search's trials stand.
            source: where candidates come from.
            limits: which of them may be trained.
            space: what their suggestions mean.
            images: ``channels``, ``height``, ``width`` and ``bins``.
            epochs: of a full training.
            seed: of the draws.
            first: what each family is begun with, from small to large.
            earlier: ended trials of other searches that compare: observations, and not proposed again unless they
                are among ``first``.
        """
        self.standings, self.source = standings, source
        self.space, self.images, self.epochs, self.seed = space, images, epochs, seed
        self.first = {
            family: [designs[place] for place in spread_order(len(designs))] for family, designs in first.items()
        }
        self.limits = limits
        # Memory takes long to count: only that of the chosen one is (`_new`).
        self.untried = Untried(source, dataclasses.replace(limits, max_memory=None), seed)
        self._points: dict[str, Floats] = {}  # of trials, by id
        self.earlier = self._observations(earlier)
        self._chosen: dict[str, Choice] = {}
        self._within_limits: dict[str, bool] = {}  # stopped trials, by id: their memory takes long to count

    def tell(self, record: TrialRecord) -> None:
        """Its model is not proposed again; the rest the ledger knows."""
        self.untried.take(key(record.config, record.train))

    def propose(self, family: str) -> Candidate | TrialRecord:
        """The best of some hundred candidates and the family's stopped trials.

        Raises ``ConfigError`` where there is neither.
        """
        choice = self._chosen.pop(family, None) or self.choose(family)
        if isinstance(choice.what, Candidate):
            self.untried.take(choice.what.key)
        return choice.what

    def most_worth(self, families: Sequence[str]) -> str:
        """The family whose next step is worth most: whose turn it is where families compete for one front."""
        for family in families:
            try:
                self._chosen[family] = self.choose(family)
            except ConfigError:
                return family  # whoever asks it to propose will be told
        return max(families, key=lambda family: self._chosen[family].value)

    def choose(self, family: str) -> Choice:
        """What :meth:`propose` returns, with its value."""
        for design in self.first.get(family, ()):
            if design in self.untried and self.limits.allows(design):
                return Choice(what=design, value=math.inf)
        standings = self.standings.of(family)
        own = [standing for standing in standings if standing.record.family == family]
        stopped = [standing for standing in own if standing.record.status == "stopped"]
        known = [*own, *self.earlier.get(family, ())]
        try:
            pool = self._pool(family, own)
        except ConfigError:
            if not stopped:
                raise
            pool = []
        largest = max([*(each.params for each in pool), *(record.params for record, _ in standings)])
        if len(known) < LEAST_TRIALS:
            choices = [Choice(what=each, value=math.inf) for each in pool if self.limits.allows(each)][:1]
            front = self.standings.front(standings, largest)
        else:
            surrogate = self._surrogate(known)
            front = self.standings.front([*standings, *self._begun(family, surrogate)], largest)
            choices = self._new(family, pool, surrogate, front)
        choices += self._again(stopped, front)
        if not choices:
            raise ConfigError(f"family {family!r}: no untried model within {self.limits} is found; raise the limit")
        return max(choices, key=lambda choice: choice.value)

    def _surrogate(self, known: list[Standing]) -> Surrogate:
        return Surrogate(
            np.array([self._point(record) for record, _ in known]),
            np.log10([record.params for record, _ in known]),
            np.array([min(forecast.mean, self.standings.uniform_bpd) for _, forecast in known]),
            np.array([forecast.spread for _, forecast in known]),
        )

    def _pool(self, family: str, own: list[Standing]) -> list[Candidate]:
        """Untried candidates within the limits. Raises ``ConfigError`` where there is none."""
        pool = self.untried.draw(family, POOL)
        on_front = self._on_front(own)
        if not on_front:
            return pool
        rng = np.random.default_rng(derived_seed(self.seed, f"near/{family}/{len(self.standings.ledger.records)}"))
        parents = [point_of(record, self.space, self.images) for record in on_front]
        near = []
        for candidate in pool[: POOL // 2]:
            parent = parents[int(rng.integers(len(parents)))]
            child = self.source.between(parent, candidate, rng)
            near.append(child if child is not None and child in self.untried else candidate)
        return [*near, *pool[POOL // 2 :]]

    def _on_front(self, own: list[Standing]) -> list[TrialRecord]:
        points = [(math.log10(record.params), forecast.mean) for record, forecast in own]
        return [own[index].record for index in pareto_front(points)]

    def _new(self, family: str, pool: list[Candidate], surrogate: Surrogate, front: Staircase) -> list[Choice]:
        if not pool:
            return []
        sizes = self.standings.log_size([candidate.params for candidate in pool])
        points = np.array([unit_point(family, each.suggestion, self.space, self.images) for each in pool])
        mean, spread = surrogate.predict(points, np.log10([candidate.params for candidate in pool]))
        gains = front.expected_improvement(sizes, mean, spread)
        # It is trained to the first rung, and further as far as it looks like reaching the front.
        first_rung = self.standings.forecasts.rungs[0] if self.standings.forecasts.rungs else self.epochs
        costs = first_rung + front.probability_below(sizes, mean, spread) * (self.epochs - first_rung)
        for best in np.argsort(-gains / costs):
            if self.limits.allows(pool[best]):
                return [Choice(what=pool[best], value=float(gains[best] / costs[best]))]
            self.untried.take(pool[best].key)  # for good: its memory is not counted again
        return []

    def _observations(self, earlier: Sequence[TrialRecord]) -> dict[str, list[Standing]]:
        """Complete trials of other searches, by family, as far as this one's space holds them."""
        wanted = {design.key for designs in self.first.values() for design in designs}
        observations = defaultdict(list)
        for record in earlier:
            if record.status != "complete" or record.val_bpd is None:
                continue
            try:
                self._point(record)
            except (ValueError, ConfigError):
                continue  # a point that this space does not have
            observations[record.family].append(Standing(record, Forecast(record.val_bpd, 0.0)))
            if (known := key(record.config, record.train)) not in wanted:
                self.untried.take(known)
        return observations

    def _again(self, stopped: list[Standing], front: Staircase) -> list[Choice]:
        if not stopped:
            return []
        sizes = self.standings.log_size([record.params for record, _ in stopped])
        mean = np.array([forecast.mean for _, forecast in stopped])
        spread = np.array([forecast.spread for _, forecast in stopped])
        gains = front.expected_improvement(sizes, mean, spread)
        values = gains / np.array([self.epochs - record.epochs for record, _ in stopped])
        for best in np.argsort(-values, kind="stable"):
            if self._is_within_limits(stopped[best].record):
                return [Choice(what=stopped[best].record, value=float(values[best]))]
        return []

    def _is_within_limits(self, record: TrialRecord) -> bool:
        """Whether a trial is within the limits of this session, which may be lower than those that it began under."""
        if record.id not in self._within_limits:
            self._within_limits[record.id] = self.limits.allows_trial(record)
        return self._within_limits[record.id]

    def _begun(self, family: str, surrogate: Surrogate) -> list[Standing]:
        """Running trials that have no forecast yet, with the surrogate's: so that workers side by side spread out."""
        begun = [
            record
            for record in self.standings.ledger.with_status("running")
            if record.family == family and record.replicate_of is None and self.standings.forecast(record) is None
        ]
        if not begun:
            return []
        points = np.array([self._point(record) for record in begun])
        means, spreads = surrogate.predict(points, np.log10([record.params for record in begun]))
        return [
            Standing(record, Forecast(float(mean), float(spread)))
            for record, mean, spread in zip(begun, means, spreads, strict=True)
        ]

    def _point(self, record: TrialRecord) -> Floats:
        if record.id not in self._points:
            point = point_of(record, self.space, self.images)
            self._points[record.id] = unit_point(record.family, point, self.space, self.images)
        return self._points[record.id]
