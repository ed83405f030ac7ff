"""A trial's checkpoint in its storage."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fvae import ConfigError, Trainer
from pipelines.storage import CorruptError, Storage
from pipelines.storage.local_copies import written_to
from tune.records.ledger import Ledger

CHECKPOINT_SECONDS = 5.0
"""Least time between two checkpoints of a trial: what a crash can cost it."""
CHECKPOINT_SHARE = 1 / 20
"""Largest share of a trial's time that its checkpoints may take, once the first has shown how long one takes."""
CHECKPOINT = "training.safetensors"


class Checkpoints:
    """The one checkpoint of a trial, replaced now and then."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._saved_at, self._saved_epoch, self._took = time.monotonic(), 0, 0.0

    def restore(self, trainer: Trainer) -> None:
        """Continue from the checkpoint where there is one; a damaged one is removed, and what it held trained again.

        Raises ``OSError`` or ``ConfigError`` where the storage cannot be read.
        """
        with self._local_checkpoint() as path:
            if path is not None:
                try:
                    trainer.restore(path)
                except ConfigError:  # damaged, or of an older version
                    self.storage.delete(CHECKPOINT)
        self._saved_at, self._saved_epoch = time.monotonic(), trainer.epoch

    def due(self, trainer: Trainer) -> bool:
        """Whether there is something to write, and the last one is old enough."""
        rest = max(CHECKPOINT_SECONDS, self._took / CHECKPOINT_SHARE)
        return not self.holds(trainer) and time.monotonic() - self._saved_at > rest

    def holds(self, trainer: Trainer) -> bool:
        """Whether it is of this very epoch (a checkpoint of none is needed)."""
        return trainer.epoch == self._saved_epoch

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint. Raises ``OSError`` or ``ConfigError`` where it cannot."""
        started = time.monotonic()
        with written_to(self.storage, CHECKPOINT) as path:
            trainer.save(path)
        self._saved_at, self._saved_epoch = time.monotonic(), trainer.epoch
        self._took = self._saved_at - started

    @contextmanager
    def _local_checkpoint(self) -> Iterator[Path | None]:
        if self.storage.local_path is not None:
            path = self.storage.local_path / CHECKPOINT
            yield path if path.exists() else None
            return
        with tempfile.TemporaryDirectory(prefix="fvae-") as folder:
            path = Path(folder) / CHECKPOINT
            try:
                self.storage.download(CHECKPOINT, path)
            except FileNotFoundError:
                pass
            except CorruptError:
                self.storage.delete(CHECKPOINT)
            yield path if path.exists() else None


def remove_checkpoints(ledger: Ledger) -> None:
    """Remove the checkpoints of ended trials that never go on, which a search that was killed has left."""
    ended = {f"trials/{record.id}/{CHECKPOINT}" for record in ledger.with_status("complete", "failed")}
    ledger.root.delete(*(found.key for found in ledger.root.list("trials") if found.key in ended))
