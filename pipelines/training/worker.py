"""The training loop of every worker: restores the last checkpoint, trains, writes checkpoints, keeps the model."""

from __future__ import annotations

import dataclasses
import socket
import time

import ray.train
import torch
from ray.train.torch import get_device

from fvae import ModelConfig, TrainConfig, Trainer
from fvae.config import require
from fvae.workers import Workers
from pipelines.storage import open_storage
from pipelines.training.checkpoint_clock import CheckpointClock
from pipelines.training.checkpoints import CHECKPOINTS, BackgroundWriter, Checkpoint, CheckpointStore
from pipelines.training.events import EpochDone, Events, StepDone, TrainingDone, TrainingStarted
from pipelines.training.job import JOB, TrainResult
from pipelines.training.machine_metrics import WorkerFigures
from pipelines.training.model_files import keep_model
from pipelines.training.worker_group import SentImages, fetched

STEP_SECONDS = 2.0
"""From one report of progress within an epoch to the next."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """What the workers train, the same for all of them. Picklable."""

    storage: str
    """URI of the run."""
    model: ModelConfig
    train: TrainConfig
    images: dict[str, SentImages]
    """``train`` and ``val``."""
    keep: int
    """Checkpoints kept, besides the best."""
    checkpoint_seconds: float
    """From one checkpoint to the next in mid-epoch."""
    micro_batch_size: int | None
    compile: bool
    checkpoint_activations: bool


def _pays_as_graph(task: WorkerTask, workers: Workers, device: torch.device) -> bool:
    """Whether steps are CUDA graphs: on one GPU, unless its memory is so short that activations are not kept."""
    short = task.micro_batch_size is not None or task.checkpoint_activations
    return device.type == "cuda" and workers.count == 1 and not short


def train(task: WorkerTask, events: Events) -> TrainResult:
    """Train ``task`` to its end, from its last checkpoint where there is one. Returns how it ended.

    Events: ``TrainingStarted``, then ``EpochDone`` after every epoch and ``StepDone`` every :data:`STEP_SECONDS`, and
    ``TrainingDone``.
    """
    storage = open_storage(task.storage)
    require(
        storage.exists(JOB),
        f"--storage: {task.storage} on {socket.gethostname()} is not the driver's; give a folder that all machines "
        "share, or s3://bucket/prefix",
    )
    workers, device = Workers.of_process_group(), get_device()
    trainer = Trainer(
        task.model,
        task.train,
        fetched(task.images["train"]),
        fetched(task.images["val"]),
        device,
        workers=workers,
        micro_batch_size=task.micro_batch_size,
        compile=task.compile,
        graph=_pays_as_graph(task, workers, device),
        checkpoint_activations=task.checkpoint_activations,
    )
    store = CheckpointStore(storage.child(CHECKPOINTS), task.keep)
    _restore(trainer, store)
    first = workers.rank == 0
    writer = BackgroundWriter(store) if first else None
    if first:
        events.put(TrainingStarted(tuple(trainer.history), workers.count, trainer.step))
    figures = WorkerFigures(workers, device)
    clock = CheckpointClock(
        workers, device, task.checkpoint_seconds, lambda: ray.train.get_preemption_info() is not None
    )

    sent = time.monotonic()

    def checkpoint(val_bpd: float | None = None) -> None:
        state = trainer.state()
        if writer and state:
            writer.submit(state, val_bpd)
        clock.saved()

    def after_step() -> None:
        nonlocal sent
        if clock.due(trainer.step):
            checkpoint()
        if first and time.monotonic() - sent >= STEP_SECONDS:
            sent = time.monotonic()
            events.put(StepDone(trainer.step))

    while not trainer.finished:
        metrics = trainer.train_epoch(after_step)
        checkpoint(metrics.val_bpd)
        system = figures.since_last()
        events.report(EpochDone(metrics, system), dataclasses.asdict(metrics) | system)
    if writer:
        writer.finish()
        keep_model(trainer, storage)
    result = TrainResult(
        status="complete",
        history=tuple(trainer.history),
        best_epoch=trainer.best_epoch,
        best_val_bpd=trainer.best_val_bpd,
    )
    if first:
        events.put(TrainingDone(result))
    return result


def _restore(trainer: Trainer, store: CheckpointStore) -> None:
    """Worker 0 chooses the checkpoint, since it may find one damaged; the others take the same."""
    chosen = torch.full((2,), -1.0, dtype=torch.float64, device=trainer.device)  # step, validation bits/dim
    if trainer.workers.rank == 0 and (found := store.latest(trainer.device)):
        checkpoint, state = found
        trainer.load_state(state, checkpoint.key)
        val_bpd = float("nan") if checkpoint.val_bpd is None else checkpoint.val_bpd
        chosen = torch.tensor([checkpoint.step, val_bpd], dtype=torch.float64, device=trainer.device)
    trainer.workers.broadcast([chosen])
    step, val_bpd = chosen.tolist()
    if trainer.workers.rank and step >= 0:
        checkpoint = Checkpoint(int(step), None if val_bpd != val_bpd else val_bpd)
        trainer.load_state(store.load(checkpoint, trainer.device), checkpoint.key)
