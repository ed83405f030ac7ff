"""Optuna behind Ray Tune's ``Searcher``: two objectives, one study per family, rebuilt from the ledger.

Each family has its own share of the trials, so that each gets a front and the claim a fair test.
Its study minimises (parameters, validation bits/dim). Only complete trials are told with values:
what was stopped is told as PRUNED, what failed as FAIL, so part-trained figures mislead nobody.
The studies live in memory and are rebuilt from the ledger, so no crash can leave a ghost in them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from fvae.config import ConfigError, ModelConfig
from fvae.flops import parameters_and_flops
from fvae.train_config import TrainConfig
from tune.ledger import Ledger, TrialRecord
from tune.space import SearchSpace, initial_designs, suggest

optuna.logging.set_verbosity(optuna.logging.WARNING)  # the live table says it better

ASKS = 50
"""How often a sampler may propose an impossible or already tried model before its word is taken."""


class FrontSearcher(Searcher):
    """Suggests unfinished trials of an earlier run first, then new ones, families in turn."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        space: SearchSpace,
        images: dict[str, int],
        train: TrainConfig,
        families: Sequence[str],
        trials: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.ledger, self.space, self.images, self.train = ledger, space, images, train
        self.families, self.trials = tuple(families), trials
        self._asked: dict[str, optuna.trial.Trial] = {}
        self._record_ids: dict[str, str] = {}  # Tune's trial id → ours
        self._waiting: list[TrialRecord] = []
        self._studies = {family: self._new_study(family, seed) for family in families}
        self._replay()

    # --- Tune's interface ------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config for :class:`tune.trial.TrialProcess`, or ``FINISHED``."""
        if self._waiting:
            record = self._waiting.pop(0)
        elif len(self.ledger.records) < self.trials:
            record = self._new_record()
            self.ledger.put(record)
        else:
            return Searcher.FINISHED
        self._record_ids[trial_id] = record.id
        return {
            "id": record.id,
            "storage": self.ledger.trial_storage(record.id).uri,
            "model": record.config,
            "train": record.train,
            "seconds": record.seconds,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: a part-trained figure is no observation."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study what the ledger says of the trial."""
        record = self.ledger.records[self._record_ids[trial_id]]
        if record.id not in self._asked or (record.status == "running" and not error):
            return  # interrupted: a later run goes on with it
        state, values = (TrialState.FAIL, None) if error else _outcome(record)
        self._studies[record.family].tell(self._asked.pop(record.id), values, state)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept what Tune offers; the objectives are this searcher's own."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    # --- new trials ------------------------------------------------------------------------------

    def _new_study(self, family: str, seed: int) -> optuna.Study:
        sampler = optuna.samplers.TPESampler(
            # Another seed after a resume: the same one would propose the first proposals again.
            seed=seed + 7919 * len(self.ledger.records) + self.families.index(family),
            n_startup_trials=max(4, self.trials // len(self.families) // 3),
            constant_liar=True,
        )
        return optuna.create_study(directions=["minimize", "minimize"], sampler=sampler, study_name=family)

    def _replay(self) -> None:
        for record in self.ledger.records.values():
            if record.status == "running":
                self._waiting.append(record)
            if record.family in self._studies:
                self._replay_into(self._studies[record.family], record)
        for family, study in self._studies.items():
            share = len(range(self.families.index(family), self.trials, len(self.families)))
            for design in initial_designs(family, self.space, max(1, 2 * share // 3))[self._started(family) :]:
                study.enqueue_trial(design, skip_if_exists=True)

    def _replay_into(self, study: optuna.Study, record: TrialRecord) -> None:
        state, values = _outcome(record)
        fixed = optuna.trial.FixedTrial(record.suggestion)
        try:
            with warnings.catch_warnings():  # Optuna warns of a value out of range, and then refuses it
                warnings.simplefilter("ignore", UserWarning)
                suggest(fixed, record.family, self.space, self.images)
                told = optuna.create_trial(
                    state=state, values=values, params=record.suggestion, distributions=fixed.distributions
                )
        except ValueError:
            return  # the space has changed since: the trial stands in the ledger, the sampler starts without it
        if record.status == "running":
            study.enqueue_trial(record.suggestion)
            self._asked[record.id] = study.ask()
            suggest(self._asked[record.id], record.family, self.space, self.images)
        else:
            study.add_trial(told)

    def _started(self, family: str) -> int:
        return sum(record.family == family for record in self.ledger.records.values())

    def _new_record(self) -> TrialRecord:
        family = min(self.families, key=self._started)
        number = 1 + max((record.number for record in self.ledger.records.values()), default=-1)
        trial, model, searched = self._ask(family)
        record_id = f"{number:04d}-{family}"
        self._asked[record_id] = trial
        params, flops = parameters_and_flops(model)
        return TrialRecord(
            id=record_id,
            family=family,
            config=model.to_dict(),
            train=self.train.to_dict() | searched,
            params=params,
            flops_per_image=flops,
            suggestion=dict(trial.params),
        )

    def _ask(self, family: str) -> tuple[optuna.trial.Trial, ModelConfig, dict[str, Any]]:
        study = self._studies[family]
        tried = [(record.config, record.train) for record in self.ledger.records.values()]
        for _ in range(ASKS):
            trial = study.ask()
            try:
                model, searched = suggest(trial, family, self.space, self.images)
            except ConfigError:
                study.tell(trial, state=TrialState.FAIL)
                continue
            if (model.to_dict(), self.train.to_dict() | searched) not in tried:
                return trial, model, searched
            study.tell(trial, state=TrialState.FAIL)
        raise ConfigError(f"family {family!r}: no untried model found in {ASKS} proposals; widen tune/space.py")


def _outcome(record: TrialRecord) -> tuple[TrialState, list[float] | None]:
    if record.status == "complete" and record.val_bpd is not None:
        return TrialState.COMPLETE, [float(record.params), record.val_bpd]
    return (TrialState.PRUNED if record.status == "stopped" else TrialState.FAIL), None
