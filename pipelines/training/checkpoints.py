"""A training's checkpoints in its storage: the last few and the best, written in the background, verified on load."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from pathlib import Path

import torch

from fvae.config import ConfigError
from fvae.training_state import TrainingState
from pipelines.storage import CorruptError, Storage
from pipelines.storage.json_objects import address
from pipelines.storage.local_copies import read_from, written_to

log = logging.getLogger("pipelines.storage")

CHECKPOINTS = "checkpoints"
"""The folder of a run that holds them."""
_KEY = re.compile(r"step-(\d{9})(?:-val-(-?\d+\.\d+))?\.safetensors")


@dataclasses.dataclass(frozen=True, order=True)
class Checkpoint:
    """One checkpoint; later ones are greater."""

    step: int
    """Optimizer steps done."""
    val_bpd: float | None
    """Validation bits/dim; None in mid-epoch."""

    @property
    def key(self) -> str:
        """Its name says all that is needed to choose between checkpoints without reading them."""
        val = "" if self.val_bpd is None else f"-val-{self.val_bpd:.6f}"
        return f"step-{self.step:09d}{val}.safetensors"

    @classmethod
    def of_key(cls, key: str) -> Checkpoint | None:
        """The checkpoint of that name; None for another file."""
        match = _KEY.fullmatch(key)
        return match and cls(int(match[1]), None if match[2] is None else float(match[2]))


class CheckpointStore:
    """The checkpoints of one training. Methods raise ``OSError`` or ``ConfigError`` where the storage fails."""

    def __init__(self, storage: Storage, keep: int) -> None:
        """``keep``: how many of the latest stay; the one with the lowest validation bits/dim stays besides."""
        self.storage, self.keep = storage, keep

    def all(self) -> list[Checkpoint]:
        """From the first to the last."""
        found = (Checkpoint.of_key(info.key) for info in self.storage.list())
        return sorted((each for each in found if each), key=lambda each: (each.step, each.val_bpd is not None))

    def put(self, state: TrainingState, val_bpd: float | None) -> None:
        """Write one, whole or absent; then remove those that are no longer kept."""
        with written_to(self.storage, Checkpoint(state.step, val_bpd).key) as path:
            state.write(path)
        there = self.all()
        measured = [each for each in there if each.val_bpd is not None]
        kept = {*there[-self.keep :], *sorted(measured, key=lambda each: each.val_bpd or 0.0)[:1]}
        self.storage.delete(*(each.key for each in there if each not in kept))

    def latest(self, device: torch.device) -> tuple[Checkpoint, TrainingState] | None:
        """The last one that is whole, verified. Damaged ones are removed, with a warning: they are trained again."""
        for checkpoint in reversed(self.all()):
            try:
                return checkpoint, self.load(checkpoint, device)
            except CorruptError as error:  # not what only could not be read: that may be whole
                log.warning("%s; the checkpoint before it is used", error)
                self.storage.delete(checkpoint.key)
        return None

    def load(self, checkpoint: Checkpoint, device: torch.device) -> TrainingState:
        """Read one and verify it. Raises ``CorruptError`` for one that is damaged."""
        with read_from(self.storage, checkpoint.key) as path:
            return self._verified(path, device)

    def _verified(self, path: Path, device: torch.device) -> TrainingState:
        try:
            return TrainingState.read(path, device)
        except ConfigError as error:
            raise CorruptError(str(error).replace(str(path), address(self.storage, path.name))) from error


class BackgroundWriter:
    """Writes checkpoints while training goes on. A store that fails costs a warning, until :meth:`finish`."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._next: tuple[TrainingState, float | None] | None = None
        self._writing = False
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="checkpoints", daemon=True)
        self._thread.start()

    def submit(self, state: TrainingState, val_bpd: float | None = None) -> None:
        """Write a checkpoint in the background; returns at once. It replaces one that still waits, unless that one is
        an epoch's and this one is not."""
        with self._changed:
            if self._next is None or val_bpd is not None or self._next[1] is None:
                self._next = (state, val_bpd)
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until all is written. Raises the error of the last one: ``OSError`` or ``ConfigError`` as a rule."""
        with self._changed:
            self._changed.wait_for(lambda: self._next is None and not self._writing)
            if self._failed is not None:
                raise self._failed

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None)
                assert self._next is not None
                (state, val_bpd), self._next, self._writing = self._next, None, True
            failed: Exception | None = None
            try:
                self._store.put(state, val_bpd)
            except Exception as error:  # noqa: BLE001 - whatever it is, finish() must not wait for ever
                failed = error
                log.warning("checkpoint of step %d not kept: %s", state.step, error)
            del state  # its memory, before the next
            with self._changed:
                self._failed, self._writing = failed, False
                self._changed.notify_all()
