"""A search and its trials in MLflow: params, metrics and artifacts under the product's fixed names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pipelines.storage import Storage, StorageError
from pipelines.tracking.snapshot import epoch_snapshot, run_params
from pipelines.tracking.tracker import Artifact, SearchTracker, TrialSnapshot
from pipelines.training.model_files import INTERPOLATIONS, MODEL, PICTURES
from pipelines.training.worker_warnings import Notices
from tune.records.ledger import Ledger, TrialRecord
from tune.records.search_folder import COMPARED
from tune.settings import SearchSettings

CLOSING_SECONDS, CLOSING_SECONDS_WITHOUT_STORE = 60.0, 3.0
"""How long MLflow may take over what is left to write when the search ends."""


class LedgerTracker(SearchTracker):
    """The MLflow runs of one search, written from its ledger's records."""

    def __init__(
        self, settings: SearchSettings, dataset_name: str, search: dict[str, Any], ledger: Ledger, notices: Notices
    ) -> None:
        """``search`` is the content of ``search.json``."""
        super().__init__(
            storage=settings.all_runs(),
            dataset_name=dataset_name,
            search_name=settings.run_name(dataset_name),
            params={f"data.{name}": value for name, value in search["dataset"].items()}
            | {f"train.{name}": search[name] for name in COMPARED},
        )
        self._search, self._ledger, self._notices = search, ledger, notices
        self._close_called = False

    def track(self, record: TrialRecord) -> None:
        """Write a trial's present state. Raises as :meth:`start` does."""
        self.record_trial(snapshot(record, self._search["dataset"], self._ledger.trial_storage(record.id)))
        self.start()  # a search that cannot begin leaves no run

    @contextlib.contextmanager
    def reporting_interrupt(self) -> Iterator[None]:
        """Report Ctrl-C within the block to MLflow at once, not only when Ray has ended."""
        try:
            yield
        except KeyboardInterrupt:
            self.begin_to_close(interrupted=True)
            raise

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Close when the block ends, however it ends."""
        interrupted, timeout = False, None
        try:
            yield
        except KeyboardInterrupt:
            interrupted = True
            raise
        except StorageError:  # after minutes of retries: the next start writes what MLflow still lacks
            timeout = CLOSING_SECONDS_WITHOUT_STORE
            self._notices.silence()
            raise
        finally:
            self.close(interrupted=interrupted, timeout=timeout)

    def close(self, *, interrupted: bool = False, timeout: float | None = None) -> None:
        """See :meth:`pipelines.tracking.background.BackgroundTracker.close`. A second call does nothing."""
        if self._close_called:
            return
        self._close_called = True
        if self._ledger.records:
            self._notices.say("Writing the last figures to MLflow …")
        super().close(interrupted=interrupted, timeout=CLOSING_SECONDS if timeout is None else timeout)


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
