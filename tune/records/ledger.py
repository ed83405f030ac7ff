"""The ledger: a record of every trial ever started, the search's one source of truth, in a folder
or on S3.

Proposals, MLflow's runs and the map are all derived from it, so after a crash there is nothing to
reconcile with them. There is one writer, the driver; every write is complete or absent.

A write to a disk takes some 10 ms, to S3 more, and small models finish many epochs a second. So an
epoch is written at once only where something rests on it: the trial's end, or a checkpoint, which is
never ahead of the ledger. Any other epoch waits for up to ``WRITE_SECONDS``. A killed driver loses
nothing that would not be trained again from the checkpoint anyway.

    <storage>/<name>/search.json           what is searched: data set, hash, seed, budget
    <storage>/<name>/trials/<id>/trial.json    one record
    <storage>/<name>/trials/<id>/              its checkpoint, model and pictures
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from typing import Any, Literal

from fvae.config import field_values, from_fields
from fvae.files import parse_json
from fvae.train import EpochMetrics
from pipelines.storage import Storage
from pipelines.storage.json_objects import address, read_present
from tune.records.attempts import OF_STATUS, Attempt, end_attempt, update_attempt
from tune.records.scores import TestResult

RECORD = "trial.json"
"""A trial's record, in the trial's storage."""
WRITE_SECONDS = 1.0
"""Seconds between two writes of a trial's epochs on which nothing rests yet: the cost that a killed driver loses."""

MORE_MEMORY = 1.05
"""Times as much main memory is more."""

Status = Literal["running", "complete", "stopped", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial. ``status`` ``running`` also covers one whose process died and which is to go on."""

    id: str
    """``0007-fvae``: the order of starting, and the family."""
    family: str
    config: dict[str, Any]
    """``ModelConfig.to_dict()``."""
    train: dict[str, Any]
    """``TrainConfig.to_dict()``."""
    params: int
    """Trained parameters, known before training."""
    flops_per_image: int
    """Multiply-adds ×2 of one ELBO evaluation of one image (forward)."""
    suggestion: dict[str, Any]
    """The sampler's own parameters, as Optuna's parameters."""
    status: Status = "running"
    reason: str = ""
    """Why it was stopped or failed: one line."""
    history: tuple[EpochMetrics, ...] = ()
    best_epoch: int | None = None
    """The epoch whose weights were kept: the lowest validation bits/dim. Complete trials only."""
    val_bpd: float | None = None
    """Validation bits/dim of the kept weights. For a part-trained trial: the last one measured."""
    test: TestResult | None = None
    replicate_of: str | None = None
    """The trial of which this one is another seed: the same model and training, for the spread of its bits/dim."""
    memory_room: int | None = None
    """Bytes of main memory that were too few for it; 0 where other trials took them up; None where it has not failed
    for that."""
    attempts: tuple[Attempt, ...] = ()
    """Every process that took the trial up, in order: what the trial cost."""

    @property
    def epochs(self) -> int:
        """Epochs finished."""
        return self.history[-1].epoch if self.history else 0

    @property
    def seconds(self) -> float:
        """Training and validation seconds spent, on epochs that were trained again too."""
        if self.attempts:
            return sum(attempt.seconds for attempt in self.attempts)
        return self.history[-1].seconds if self.history else 0.0

    @property
    def number(self) -> int:
        """The order of starting, from 0."""
        return int(self.id.split("-")[0])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; :meth:`from_dict` is the inverse."""
        return field_values(self) | {
            "history": [field_values(epoch) for epoch in self.history],
            "test": None if self.test is None else field_values(self.test),
            "attempts": [field_values(attempt) for attempt in self.attempts],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrialRecord:
        """Raises ``ConfigError`` for a field it does not know."""
        history = tuple(from_fields(EpochMetrics, epoch) for epoch in values.get("history", ()))
        test = values.get("test")
        return from_fields(
            cls,
            values
            | {
                "history": history,
                "test": from_fields(TestResult, test) if test else None,
                "attempts": tuple(from_fields(Attempt, attempt) for attempt in values.get("attempts", ())),
            },
        )


def changes(record: TrialRecord, result: dict[str, Any]) -> dict[str, Any]:
    """What a result of :class:`tune.run.trial.TrialProcess` changes in the trial's record."""
    if "failure" in result:
        lacking = {"memory_room": result["memory_room"]} if "memory_room" in result else {}
        return {"status": "failed", "reason": result["failure"], **lacking}
    if "out_of_memory" in result:  # it will be tried again
        return {}
    new: dict[str, Any] = {}
    if (attempts := update_attempt(record.attempts, result)) != record.attempts:
        new["attempts"] = attempts
    # After a crash the epochs since the last checkpoint are trained again; the first record of each stays.
    if result["epoch"] > record.epochs:
        metrics = EpochMetrics(**{name: result[name] for name in EpochMetrics.__dataclass_fields__})
        if attempts:  # the process counts what led to its weights; the trial also what was lost on the way
            metrics = dataclasses.replace(metrics, seconds=sum(attempt.seconds for attempt in attempts))
        new["history"] = (*record.history, metrics)
        new["val_bpd"] = result["val_bpd"]
    if "best_val_bpd" in result:
        new |= {"status": "complete", "best_epoch": result["best_epoch"], "val_bpd": result["best_val_bpd"]}
    return new


class Ledger:
    """The records of one run. Reading is done once, at opening; a write is done when the method returns, unless the
    method's description differs."""

    def __init__(self, root: Storage, guard: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            root: the run's storage.
            guard: called before each write; raises where this process may no longer write there.
        """
        self.root, self.guard = root, guard
        self.records: dict[str, TrialRecord] = {}
        self._written_at: dict[str, float] = {}
        self._unwritten: set[str] = set()
        keys = [info.key for info in root.list("trials") if re.fullmatch(r"trials/[^/]+/trial\.json", info.key)]
        for key, content in zip(keys, read_present(root, keys), strict=True):
            if content is not None:
                record = TrialRecord.from_dict(parse_json(content, address(root, key)))
                self.records[record.id] = record

    def __getstate__(self) -> dict[str, Any]:
        """Nothing is pickled: Tune pickles its parts to restore them, which the ledger makes needless."""
        return {}

    def trial_storage(self, trial_id: str) -> Storage:
        """Storage of a trial's record, checkpoint, model and pictures."""
        return self.root.child("trials").child(trial_id)

    def put(self, record: TrialRecord) -> None:
        """Write a record, replacing the trial's earlier one."""
        self.guard()
        self.trial_storage(record.id).write(RECORD, json.dumps(record.to_dict(), indent=1).encode())
        self.records[record.id] = record
        self._written_at[record.id] = time.monotonic()
        self._unwritten.discard(record.id)

    def update(self, trial_id: str, *, at_once: bool = True, **changes: Any) -> TrialRecord:
        """Change fields of a record and write it, where anything changes. A trial's end is its attempt's.

        Not ``at_once``: the write may wait for the trial's next one a second later, or for :meth:`flush`.
        """
        record = dataclasses.replace(self.records[trial_id], **changes)
        if record.status != "running":
            record = dataclasses.replace(record, attempts=end_attempt(record.attempts, OF_STATUS[record.status]))
        rests = not at_once and time.monotonic() - self._written_at.get(trial_id, 0.0) < WRITE_SECONDS
        if record != self.records[trial_id] and rests:
            self.records[trial_id] = record
            self._unwritten.add(trial_id)
        elif record != self.records[trial_id] or (trial_id in self._unwritten and not rests):
            self.put(record)
        return record

    def close_attempts(self) -> None:
        """End attempts that an earlier driver left running: they were lost. To be called before anything runs."""
        for record in self.with_status("running"):
            self.update(record.id, attempts=end_attempt(record.attempts, "lost", None))

    def retry_out_of_memory(self, room: float) -> None:
        """Let trials go on that failed on a machine with less than ``room`` bytes of memory, and those that others
        crowded out. To be called before anything runs."""
        for record in self.with_status("failed"):
            if record.memory_room is not None and (not record.memory_room or room > MORE_MEMORY * record.memory_room):
                self.update(record.id, status="running", reason="", memory_room=None)

    def is_written(self, trial_id: str) -> bool:
        """Whether the storage holds all that is known of a trial."""
        return trial_id not in self._unwritten

    def flush(self) -> None:
        """Write the records that wait to be written."""
        for trial_id in sorted(self._unwritten):
            self.put(self.records[trial_id])

    def ended(self) -> list[TrialRecord]:
        """Records of trials that are not to go on, in order of starting."""
        return self.with_status("complete", "stopped", "failed")

    def with_status(self, *statuses: Status) -> list[TrialRecord]:
        """Records in any of these states, in order of starting."""
        return [record for record in self.records.values() if record.status in statuses]
