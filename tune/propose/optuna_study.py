"""A search's trials as Optuna's: each in its true state, with its learning curve and its point of the space."""

from __future__ import annotations

import copy
import datetime
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from fvae.config import FAMILIES
from pipelines.storage import Storage
from tune.propose.candidates import point_of
from tune.propose.observations import FAMILY, ID, SIZE
from tune.records.ledger import Ledger, TrialRecord
from tune.space import SearchSpace, suggest

DATABASE = "optuna.db"
"""A file in a search's storage: ``optuna-dashboard sqlite:///runs/digits/optuna.db`` shows it."""
MANY_TRIALS = 100
"""More trials than this take seconds to write."""
METRICS = ["parameters", "validation bits/dim"]
optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would log a line for every study
_STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class FrozenTrials:
    """Makes Optuna's trials of a search's records, and keeps those that have not changed."""

    def __init__(self, space: SearchSpace, images: dict[str, int]) -> None:
        """``images`` holds ``channels``, ``height``, ``width`` and ``bins``."""
        self.space, self.images = space, images
        self._made: dict[str, tuple[TrialRecord, FrozenTrial]] = {}

    def of(self, record: TrialRecord) -> FrozenTrial:
        """One trial. A model that this version's space does not hold has no parameters there."""
        known = self._made.get(record.id)
        if known is None or known[0] is not record:
            known = self._made[record.id] = record, self._frozen(record)
        return known[1]

    def _frozen(self, record: TrialRecord) -> FrozenTrial:
        values = None
        if record.status == "complete" and record.val_bpd is not None:
            values = [float(record.params), record.val_bpd]
        suggestion, distributions = self._point(record)
        trial = optuna.create_trial(
            state=_STATES[record.status],
            values=values,
            params=suggestion,
            distributions=distributions,
            user_attrs={ID: record.id, FAMILY: record.family, SIZE: record.params} | _known_of(record),
            intermediate_values={point.epoch: point.val_bpd for point in record.history},
        )
        trial.number = record.number
        began, ended = _times(record)
        trial.datetime_start = began or trial.datetime_start
        if trial.state.is_finished():
            trial.datetime_complete = ended or trial.datetime_complete
        return trial

    def _point(self, record: TrialRecord) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        try:
            fixed = FixedTrial(point_of(record, self.space, self.images))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of values out of a range
                suggest(fixed, record.family, self.space, self.images)
        except ValueError:  # also of a choice that the space no longer has
            return {}, {}
        return fixed.params, {name: _holding(fixed.distributions[name], value) for name, value in fixed.params.items()}


def write_search(ledger: Ledger, name: str, dataset: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Write the trials of a search, but no further seeds of them, by :func:`write_studies`.

    ``dataset`` is the data set's part of ``search.json``; ``say`` gets a line where it takes seconds.
    """
    (channels, height, width), bins = dataset["shape"], dataset["bins"]
    images = {"channels": channels, "height": height, "width": width, "bins": bins}
    frozen = FrozenTrials(SearchSpace.for_images((channels, height, width), bins), images)
    records = [record for record in ledger.records.values() if record.replicate_of is None]
    if len(records) > MANY_TRIALS:
        say(f"Writing {len(records)} trials to {DATABASE} …")
    ledger.guard()
    write_studies(ledger.root, name, [frozen.of(record) for record in records])


def write_studies(run: Storage, name: str, trials: Sequence[FrozenTrial]) -> None:
    """Write ``optuna.db``: a study for each family, ``NAME/fvae``, and one of all, ``NAME``, in which the family is a
    parameter. Raises ``OSError`` where it cannot.

    For looking: the search itself reads its records alone.
    """
    try:
        _write(run, name, trials)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise OSError(f"{DATABASE}: cannot be written ({str(error).splitlines()[0]})") from error


def _write(run: Storage, name: str, trials: Sequence[FrozenTrial]) -> None:
    families = [family for family in FAMILIES if any(each.user_attrs[FAMILY] == family for each in trials)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / DATABASE
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", skip_compatibility_check=True)
        sqlalchemy.event.listen(storage.engine, "connect", _without_sync)
        storage.engine.dispose()
        for family in families:
            own = [each for each in trials if each.user_attrs[FAMILY] == family]
            _add_study(storage, f"{name}/{family}", own)
        _add_study(storage, name, _of_one_space(trials))
        storage.remove_session()
        storage.engine.dispose()
        run.write(DATABASE, path.read_bytes())


def _without_sync(connection: sqlite3.Connection, _: Any) -> None:
    """Do not wait for the disk after every trial: the file is copied when it is complete."""
    connection.execute("PRAGMA synchronous = OFF")


def _add_study(storage: optuna.storages.BaseStorage, name: str, trials: Sequence[FrozenTrial]) -> None:
    study = optuna.create_study(storage=storage, study_name=name, directions=["minimize", "minimize"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(METRICS)
    study.add_trials(trials)


def _of_one_space(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials with their family as a parameter, and each choice between what any family has to choose from; without
    their learning curves, which are many rows."""
    choices: dict[str, dict[Any, None]] = {FAMILY: dict.fromkeys(FAMILIES)}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                choices.setdefault(name, {}).update(dict.fromkeys(distribution.choices))
    common = {name: CategoricalDistribution(tuple(each)) for name, each in choices.items()}
    changed = []
    for trial in trials:
        one = copy.copy(trial)
        one.intermediate_values = {}
        one.params = trial.params | {FAMILY: trial.user_attrs[FAMILY]}
        one.distributions = {name: common.get(name) or trial.distributions[name] for name in one.params}
        changed.append(one)
    return changed


def _known_of(record: TrialRecord) -> dict[str, Any]:
    """Further attributes of a trial for the dashboard: test figures, and why it was stopped or failed."""
    test = {} if record.test is None else {"test_bpd": record.test.bpd, "test_bpd_iwae64": record.test.bpd_iwae64}
    return test | ({"reason": record.reason} if record.reason else {})


def _holding(distribution: BaseDistribution, value: Any) -> BaseDistribution:
    """A range that holds ``value``, which another version's may have had: of one study's trials each has its own."""
    if (
        not isinstance(distribution, FloatDistribution | IntDistribution)
        or distribution.low <= value <= distribution.high
    ):
        return distribution
    low, high = min(distribution.low, value), max(distribution.high, value)
    return type(distribution)(low, high, log=distribution.log)


def _times(record: TrialRecord) -> tuple[datetime.datetime | None, datetime.datetime | None]:
    """When the first process took a trial up, and when the last one ended."""
    if not record.attempts:
        return None, None
    began, ended = record.attempts[0].started_ms, record.attempts[-1].ended_ms
    return _time(began), None if ended is None else _time(ended)


def _time(milliseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000)
