"""The default proposer: a :class:`tune.propose.front_sampler.FrontSampler` for each family chooses the next model.

It chooses from untrained models and the family's stopped trials: one of those goes on, from where it was, once that has
become the best use of the next epochs. Everything follows from the ledger, the seed and the trial's number, so a search
that was killed goes on as it would have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import BaseTrial, FrozenTrial

from fvae.config import ConfigError
from fvae.data.images import derived_seed
from fvae.flops import parameters_and_flops
from tune.propose.candidates import Candidate, CandidateSource, key
from tune.propose.designs import spread_order
from tune.propose.expected_front import ExpectedFronts
from tune.propose.front_sampler import Choice, FrontSampler
from tune.propose.limits import Limits, Untried
from tune.propose.observations import ID
from tune.propose.optuna_study import FrozenTrials
from tune.propose.pool import POOL, Params, Proposal
from tune.propose.undecided_sizes import COMPARED, UndecidedRanges, UndecidedSizes
from tune.records.ledger import TrialRecord
from tune.space import SearchSpace, suggest

Next = Candidate | TrialRecord
"""A model that has not been trained, or a stopped trial that is to go on."""


class FrontProposer:
    """Asks a sampler for each family. See :class:`tune.propose.proposers.Proposer`."""

    def __init__(
        self,
        expected: ExpectedFronts,
        source: CandidateSource,
        limits: Limits,
        space: SearchSpace,
        images: dict[str, int],
        *,
        epochs: int,
        seed: int,
        first: Mapping[str, Sequence[Candidate]],
        earlier: Sequence[TrialRecord] = (),
        undecided: UndecidedSizes | None = None,
    ) -> None:
        """
        Args:
            expected: forecasts of the search's trials, and the fronts that follow.
            source: where candidates come from.
            limits: which of them may be trained.
            space: what their suggestions mean.
            images: ``channels``, ``height``, ``width`` and ``bins``.
            epochs: of a full training.
            seed: of the draws.
            first: initial designs of each family, from small to large.
            earlier: ended trials of other searches that compare: observations, and not proposed again unless they
                are among ``first``.
            undecided: finds the sizes at which the verdict is open, for a search that is to decide it.
        """
        self.undecided = undecided
        self.expected, self.source, self.limits = expected, source, limits
        self.space, self.images, self.epochs, self.seed = space, images, epochs, seed
        self.first = {
            family: [designs[place] for place in spread_order(len(designs))] for family, designs in first.items()
        }
        # Memory takes long to count: only that of the chosen one is (`FamilyPool.admits`).
        self.untried = Untried(source, dataclasses.replace(limits, max_memory=None), seed)
        self._trials = FrozenTrials(space, images)
        self._samplers: dict[str, FrontSampler] = {}
        self._best: tuple[str, Choice[Next]] | None = None
        """The family of :meth:`best_family` and its choice, which :meth:`propose` returns next. It is kept because a
        second one would be drawn from other candidates."""
        self._within_limits: dict[str, bool] = {}  # stopped trials, by id: their memory takes long to count
        self._earlier = [each for each in earlier if each.status == "complete" and each.val_bpd is not None]
        wanted = {design.key for designs in self.first.values() for design in designs}
        for record in self._earlier:
            if (known := key(record.config, record.train)) not in wanted and self._trials.of(record).params:
                self.untried.take(known)

    def tell(self, record: TrialRecord) -> None:
        """Do not propose the trial's model again; the ledger holds everything else."""
        self.untried.take(key(record.config, record.train))

    def propose(self, family: str) -> Candidate | TrialRecord:
        """The best of some hundred candidates and the family's stopped trials.

        Raises ``ConfigError`` where there is neither.
        """
        best, self._best = self._best, None
        choice = best[1] if best is not None and best[0] == family else self.choose(family)
        if isinstance(choice.what, Candidate):
            self.untried.take(choice.what.key)
        return choice.what

    def best_family(self, families: Sequence[str]) -> str:
        """The family whose next choice has the highest value: whose turn it is where families compete for one front.

        :meth:`propose` returns that very choice. A family that has none comes first, so that it raises its error there.
        """
        self._best = None
        choices = {}
        for family in families:
            try:
                choices[family] = self.choose(family)
            except ConfigError:
                return family
        best = max(families, key=lambda family: choices[family].value)
        self._best = best, choices[best]
        return best

    def least_certain_family(self, families: Sequence[str]) -> str | None:
        """The family of which the verdict needs more trials; None where all may take turns: while there are initial
        designs, or once there is nothing to decide."""
        if any(self._first_left(family) for family in families):
            return None
        is_open = self._open()
        return is_open.family if is_open and is_open.family in families else None

    def choose(self, family: str) -> Choice[Next]:
        """What :meth:`propose` returns, with its value."""
        if (design := self._first_left(family)) is not None:
            return Choice(what=design, value=math.inf)
        is_open = self._open()
        sampler = self._sampler(family)
        sampler.counted = is_open.ranges if is_open and family in COMPARED else None
        choice = sampler.choose(self._trials_beside(family), self._may_go_on)
        if choice is None:
            raise ConfigError(f"family {family!r}: no untried model within {self.limits} is found; raise the limit")
        if isinstance(choice.what, FrozenTrial):
            return Choice(self.expected.ledger.records[choice.what.user_attrs[ID]], choice.value)
        return Choice(choice.what.model, choice.value)

    def _first_left(self, family: str) -> Candidate | None:
        """The next of a family's initial designs; None where none is left."""
        designs = self.first.get(family, ())
        return next((each for each in designs if each in self.untried and self.limits.allows(each)), None)

    def _open(self) -> UndecidedRanges | None:
        return self.undecided.of(list(self.expected.ledger.records.values())) if self.undecided else None

    def _trials_beside(self, family: str) -> list[FrozenTrial]:
        """The trials that share the family's front, as trials of Optuna."""
        records = self.expected.ledger.records.values()
        self.expected.forecasts.learn(records)  # of all families at once, in the order in which trials complete
        return [self._trials.of(record) for record in records if self.expected.share_a_front(record, family)]

    def _sampler(self, family: str) -> FrontSampler:
        if family not in self._samplers:

            def size(trial: BaseTrial) -> float:
                model, _ = suggest(trial, family, self.space, self.images)
                return float(parameters_and_flops(model)[0])

            sampler = FrontSampler(size, worst=self.expected.uniform_bpd)
            sampler.family, sampler.scale, sampler.by_size = family, 1.0, self.expected.by_size
            sampler.epochs = self.epochs
            sampler.first_rung = min(self.expected.forecasts.rungs, default=self.epochs)
            sampler.observations.forecasts = self.expected.forecasts if self.expected.extrapolate else None
            sampler.pool = FamilyPool(self, family)
            own = (self._trials.of(record) for record in self._earlier if record.family == family)
            sampler.prior = [each for each in own if each.params]
            self._samplers[family] = sampler
        return self._samplers[family]

    def _may_go_on(self, trial: FrozenTrial) -> bool:
        """Whether a trial is within the limits of this session, which may be lower than those that it began under."""
        name = trial.user_attrs[ID]
        if name not in self._within_limits:
            self._within_limits[name] = self.limits.allows_trial(self.expected.ledger.records[name])
        return self._within_limits[name]


class FamilyPool:
    """A family's untried models within the limits, as :class:`tune.propose.pool.Pool`."""

    def __init__(self, proposer: FrontProposer, family: str) -> None:
        self.proposer, self.family = proposer, family

    def draw(self, parents: Sequence[Mapping[str, Any]], tried: Container[Params]) -> list[Proposal]:
        """Half of them drawn uniformly, half near ``parents``. Raises ``ConfigError`` where there is none."""
        proposer = self.proposer
        pool = proposer.untried.draw(self.family, POOL)
        seed = f"near/{self.family}/{len(proposer.expected.ledger.records)}"
        rng = np.random.default_rng(derived_seed(proposer.seed, seed))
        for place, other in enumerate(pool[: POOL // 2] if parents else ()):
            parent = parents[int(rng.integers(len(parents)))]
            child = proposer.source.between(dict(parent), other, rng)
            if child is not None and child in proposer.untried:
                pool[place] = child
        return [Proposal(each.suggestion, each.params, each) for each in pool]

    def admits(self, proposal: Proposal) -> bool:
        """Whether all limits allow it; where not, that is for good, and its memory is not counted again."""
        if self.proposer.limits.allows(proposal.model):
            return True
        self.proposer.untried.take(proposal.model.key)
        return False
