"""Proposers choose the next model: the interface, and the one with Optuna's samplers.

Each family has a study of its own, which minimises (parameters, validation bits/dim). Only complete trials have values
there: a stopped trial is PRUNED and a failed one FAIL, so no part-trained figure misleads a sampler. The studies live
in memory and are rebuilt from the ledger, so no crash can leave a stale trial in them; and each proposal is a function
of the seed and of the trials before it, so a search that was killed goes on as it would have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import optuna
import torch
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from fvae.config import ConfigError
from fvae.data.images import derived_seed
from tune.propose.candidates import Candidate, SpaceCandidates, key, point_of
from tune.propose.limits import Limits, Untried
from tune.records.ledger import TrialRecord
from tune.settings import Sampler

ASKS = 8
"""How often a sampler may propose what is impossible, tried or beyond the limits; then one is drawn uniformly."""
STARTUP = 10
"""Ended trials of a family before its sampler learns from them; until then it draws uniformly."""
POPULATION = 16
"""Trials of a generation of NSGA-II. Optuna's own 50 would be more than most families ever get."""

optuna.logging.set_verbosity(optuna.logging.ERROR)  # the live table shows it better


class _NSGAIISampler(NSGAIISampler):
    """Takes parents in the order of their numbers.

    Optuna's has one order when it chooses them and another when it finds them kept, so that a search that was killed
    would propose something else than one that was not.
    """

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)


_SAMPLERS: dict[Sampler, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True),
    "nsga2": lambda seed: _NSGAIISampler(seed=seed, population_size=POPULATION),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False),
    "random": RandomSampler,
}


class Proposer(Protocol):
    """Chooses models. It sees the ledger's records alone, so nothing of it has to survive a crash."""

    def propose(self, family: str) -> Candidate | TrialRecord:
        """A model of ``family`` that is within the limits and neither tried nor proposed before; or a stopped trial of
        it that is to go on.

        Raises ``ConfigError``, one line, where none is found.
        """

    def tell(self, record: TrialRecord) -> None:
        """Take in a record. At opening these are all records of the ledger, in order, unfinished trials too; from then
        on each trial when it has ended, and again where it went on. Further seeds of a trial are left out."""


class OptunaProposer:
    """One of Optuna's samplers, asked for a family at a time; each family's initial designs come first."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        source: SpaceCandidates,
        limits: Limits,
        first: Mapping[str, Sequence[Candidate]],
        earlier: Sequence[TrialRecord] = (),
        seed: int,
    ) -> None:
        """
        Args:
            sampler: which one of Optuna's.
            source: the search space.
            limits: beyond which nothing is proposed.
            first: what is proposed first, by family, in this order (:func:`tune.propose.designs.first_models`).
            earlier: ended trials of other searches that compare: observations, but not proposed again.
            seed: of all proposals.
        """
        self.source, self.first, self.seed = source, first, seed
        self.untried = Untried(source, limits, seed)
        self._make_sampler = _SAMPLERS[sampler]
        self._studies = {family: self._study(family) for family in first}
        self._begun: Counter[str] = Counter()  # trials by family, of this search
        self._unfinished: dict[str, int] = {}  # candidates' keys → their trials' numbers in the family's study
        wanted = {candidate.key for candidates in first.values() for candidate in candidates}
        for record in earlier:
            if (candidate := self._known(record)) and record.family in self._studies:
                self._end(record, self._begin(candidate))
                if candidate.key not in wanted:
                    self.untried.take(candidate.key)

    def propose(self, family: str) -> Candidate:
        """The next of the initial designs, or the sampler's choice. Raises as :meth:`Proposer.propose` does."""
        for candidate in self.first[family][self._begun[family] :]:
            if candidate in self.untried:
                self._unfinished[candidate.key] = self._begin(candidate)
                return self._taken(candidate)
        study = self._studies[family]
        study.sampler = self._make_sampler(self._seed(family))
        for _ in range(ASKS):
            trial = study.ask()
            try:
                with _one_thread():
                    candidate = self.source.ask(trial, family)
            except ConfigError:
                pass  # impossible
            else:
                if candidate in self.untried:
                    self._unfinished[candidate.key] = trial.number
                    return self._taken(candidate)
            study.tell(trial, state=TrialState.FAIL)
        candidate = self.untried.draw(family)[0]
        self._unfinished[candidate.key] = self._begin(candidate)
        return self._taken(candidate)

    def tell(self, record: TrialRecord) -> None:
        """Tell the study of a trial that it may not know yet, and how it ended if it has."""
        known = key(record.config, record.train)
        if record.family not in self._studies:
            return  # a family no longer searched
        if known not in self._unfinished:
            self._begun[record.family] += 1
            self.untried.take(known)
            if (candidate := self._known(record)) is None:
                return  # the space has changed since: the ledger holds the trial, the sampler starts without it
            self._unfinished[known] = self._begin(candidate)
        if record.status != "running":
            self._end(record, self._unfinished.pop(known))

    def _study(self, family: str) -> optuna.Study:
        sampler = self._make_sampler(self.seed % 2**32)
        return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler, study_name=family)

    def _seed(self, family: str) -> int:
        """Another one for each proposal, and the same one after a kill."""
        return derived_seed(self.seed, f"sampler/{family}/{self._begun[family]}") % 2**32

    def _taken(self, candidate: Candidate) -> Candidate:
        self.untried.take(candidate.key)
        self._begun[candidate.family] += 1
        return candidate

    def _known(self, record: TrialRecord) -> Candidate | None:
        """The candidate at a record's point of the space; None where the space has no such point."""
        try:
            return self.source.at(record.family, point_of(record, self.source.space, self.source.images))
        except ConfigError:
            return None

    def _begin(self, candidate: Candidate) -> int:
        """Tell the study of a trial that it did not propose. Returns the trial's number there."""
        study = self._studies[candidate.family]
        point = optuna.trial.FixedTrial(candidate.suggestion)
        self.source.ask(point, candidate.family)
        study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING, params=candidate.suggestion, distributions=point.distributions
            )
        )
        trial = study.get_trials(deepcopy=False)[-1]
        if isinstance(study.sampler, NSGAIISampler):
            study.sampler.get_trial_generation(study, trial)  # which it would have noted when it proposed it
        return trial.number

    def _end(self, record: TrialRecord, number: int) -> None:
        study = self._studies[record.family]
        if record.status == "complete" and record.val_bpd is not None:
            study.tell(number, [float(record.params), record.val_bpd], TrialState.COMPLETE)
        else:
            study.tell(number, state=TrialState.PRUNED if record.status == "stopped" else TrialState.FAIL)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch, in which the sampler ``gp`` computes, to one thread: beside the trials more would only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
