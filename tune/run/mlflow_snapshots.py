"""A trial's record in MLflow's words: params, metrics and artifacts under the product's fixed names."""

from __future__ import annotations

from typing import Any

from pipelines.storage import Storage
from pipelines.tracking.snapshot import epoch_snapshot, run_params
from pipelines.tracking.tracker import Artifact, TrialSnapshot
from pipelines.training.model_files import INTERPOLATIONS, MODEL, PICTURES
from tune.records.ledger import TrialRecord


def snapshot(record: TrialRecord, dataset: dict[str, Any], storage: Storage) -> TrialSnapshot:
    """What MLflow shows of a trial. ``dataset`` is the data set's part of ``search.json``, ``storage`` the trial's."""
    final: dict[str, float] = {}
    artifacts: tuple[Artifact, ...] = ()
    if record.status == "complete" and record.val_bpd is not None:
        final["best/val_bpd"] = record.val_bpd
        if record.test is not None:
            final |= {"test/bpd": record.test.bpd, "test/bpd_iwae64": record.test.bpd_iwae64}
        artifacts = _artifacts(storage, dataset)
    return TrialSnapshot(
        id=record.id,
        family=record.family,
        status=record.status,
        reason=record.reason,
        params=run_params(record.config, record.train, dataset),
        constants={"size/params": record.params, "size/flops_per_image": record.flops_per_image},
        history=tuple(epoch_snapshot(epoch, record.config) for epoch in record.history),
        final=final,
        artifacts=artifacts,
    )


def _artifacts(storage: Storage, dataset: dict[str, Any]) -> tuple[Artifact, ...]:
    """What a complete trial left. A remote store is not asked, for every trial at every start: it left them all."""
    names = [name for name in (*PICTURES, MODEL) if name != INTERPOLATIONS or dataset["val"] > 1]
    if (folder := storage.local_path) is not None:
        names = [name for name in names if (folder / name).exists()]
    return tuple(Artifact(storage, name) for name in names)
