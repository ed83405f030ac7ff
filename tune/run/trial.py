"""Train trials in a process of Ray Tune, one after another: its class API with reused actors, no nested Train run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ray import tune

from fvae import ConfigError, ModelConfig, NonFiniteError, TrainConfig, Trainer
from fvae.data.images import ImageSource, image_source
from fvae.evaluation import ALONE
from fvae.workers import Workers
from pipelines.data.datasets import memory_bytes
from pipelines.storage import open_storage
from pipelines.storage.json_objects import read_json
from pipelines.training import main_memory
from pipelines.training.model_files import keep_model
from pipelines.training.worker_warnings import keep_warnings, trouble, with_warnings
from tune.records.ledger import RECORD, TrialRecord
from tune.run.gpu_shares import limit_to_share
from tune.run.trial_checkpoint import Checkpoints


class TrialTraining:
    """The training of one trial: goes on from its checkpoint, an epoch a step, and keeps its model.

    Of several workers each has one, and calls the same methods in the same order; the first writes.
    """

    trainer: Trainer
    """Made when the trial is restored: making it may fail for want of memory."""

    def __init__(
        self,
        config: dict[str, Any],
        images: dict[str, ImageSource],
        device: str,
        workers: Workers = ALONE,
        *,
        share: float = 1.0,
        shares_grow: bool = False,
    ) -> None:
        """
        Args:
            config: as :meth:`tune.run.tune_searcher.FrontSearcher.suggest` makes it.
            images: ``train`` and ``val``.
            device: of this worker.
            workers: those that train the trial together.
            share: of a card, that this process has.
            shares_grow: whether a trial that its share does not hold is tried again with a larger one.
        """
        gc.collect()  # the last trial of this process: its parts know one another, so they do not go by themselves
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.storage = open_storage(config["storage"])
        self.device, self.workers = torch.device(device), workers
        self.share, self.shares_grow = share, shares_grow
        self.model, self.train = ModelConfig.from_dict(config["model"]), TrainConfig.from_dict(config["train"])
        self._make_trainer = functools.partial(
            Trainer,
            self.model,
            self.train,
            images["train"],
            images["val"],
            device,
            workers=workers,
            compile="auto" if device == "cuda" else False,
            graph=device == "cuda" and workers.count == 1,
        )
        self.checkpoints: Checkpoints | None = None
        self.checkpoint_announced = False
        self.unusable = False  # its weights, or its storage

    def step(self) -> dict[str, Any]:
        """One epoch. A non-finite figure or want of memory ends the trial with its reason; it is no crash.

        Where there may be more memory elsewhere, the result has ``out_of_memory`` and no reason. A store or disk that
        fails is the search's trouble, not this trial's: see :mod:`pipelines.training.worker_warnings`.
        """
        return self._result_of(self._epoch)

    def restore(self) -> dict[str, Any]:
        """Continue from the trial's checkpoint where there is one. Unless it is called, the first :meth:`step` does it.

        Returns ``restored_step``, or what :func:`pipelines.training.worker_warnings.trouble` makes of a storage that
        fails.
        """
        return self._result_of(self._restore)

    def _result_of(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            result = self._lacks_room() or work()
        except NonFiniteError as error:
            self.unusable = True
            result = {"epoch": self.trainer.epoch, "failure": str(error), "done": True}
        except torch.OutOfMemoryError as error:
            self.unusable = True
            grows = self.shares_grow and self.share < 1
            why = {"out_of_memory": True} if grows else {"failure": _out_of_memory(error, self.share)}
            result = {"epoch": 0, "done": True} | why
        except (MemoryError, RuntimeError) as error:
            if not main_memory.ran_out(error):
                raise
            self.unusable = True
            room = memory_bytes()
            alone, crowded = (
                main_memory.why_it_ran_out(self.model, self.train, self._images(), room, crowded=crowded)
                for crowded in (False, True)
            )
            result = {"epoch": 0, "failure": alone, "if_crowded": crowded, "memory_room": room, "done": True}
        except (OSError, ConfigError) as error:
            self.unusable = True
            result = trouble(error) | {"epoch": 0, "done": True}
        return with_warnings(result)

    def _lacks_room(self) -> dict[str, Any] | None:
        """A result that ends a trial which this machine's memory could never hold; None otherwise."""
        if self.checkpoints is not None or self.device.type != "cpu":
            return None
        room = memory_bytes()
        need = main_memory.lacks_room(self.model, self.train, self._images(), room=room)
        if need is None:
            return None
        self.unusable = True
        return {"epoch": 0, "failure": main_memory.does_not_fit(need, room), "memory_room": room, "done": True}

    def _images(self) -> int:
        """Images of a forward pass."""
        return -(-self.train.batch_size // self.workers.count)

    def _restore(self) -> dict[str, Any]:
        checkpoints = Checkpoints(self.storage)
        self.trainer = self._make_trainer()
        checkpoints.restore(self.trainer)
        self.checkpoints = checkpoints
        self.first_epoch, self.seconds_before = self.trainer.epoch + 1, self.trainer.seconds
        self.images_before = self.trainer.history[-1].images if self.trainer.history else 0
        return {"restored_step": self.trainer.step}

    def _epoch(self) -> dict[str, Any]:
        """Checkpoints before the epoch where the last result announced it: Tune asks for the epoch once the driver has
        written that result, so that no checkpoint is ever ahead of the ledger, wherever either process is killed."""
        if self.checkpoints is None:  # not in setup, where an error would count as this trial's crash
            self._restore()
        elif self.checkpoint_announced:
            self._save(self.checkpoints)
        metrics = self.trainer.train_epoch()
        result = dataclasses.asdict(metrics) | {
            "attempt_first_epoch": self.first_epoch,
            "attempt_epochs": metrics.epoch - self.first_epoch + 1,
            "attempt_images": metrics.images - self.images_before,
            "attempt_seconds": metrics.seconds - self.seconds_before,
        }
        if self.device.type == "cuda" and metrics.epoch == self.first_epoch:
            result["peak_gpu_bytes"] = torch.cuda.max_memory_reserved(self.device)  # a graph's memory is not allocated
        self.checkpoint_announced = result["checkpoint_follows"] = not self.trainer.finished and self._checkpoint_due()
        if self.trainer.finished:
            if self.workers.rank == 0:
                keep_model(self.trainer, self.storage)
            kept = {"best_epoch": self.trainer.best_epoch, "best_val_bpd": self.trainer.best_val_bpd}
            result |= {**kept, "done": True}
        return result

    def leave(self) -> None:
        """Leave the trial, for another one or at the end: keep the epochs of one that was stopped or paused.

        Only where the ledger holds its last epoch: Tune may have ended the trial before that result reached it. What
        cannot be kept is trained again, so a storage that fails here ends nothing.
        """
        keep = torch.tensor(self._may_go_on(), device=self.device)
        self.workers.broadcast([keep])
        if keep and self.checkpoints is not None:
            with contextlib.suppress(OSError, ConfigError):
                self._save(self.checkpoints)

    def _may_go_on(self) -> bool:
        if self.workers.rank or self.unusable or self.checkpoints is None or self.checkpoints.holds(self.trainer):
            return False
        try:
            record = TrialRecord.from_dict(read_json(self.storage, RECORD))
        except (OSError, ConfigError):
            return False
        return record.status in ("running", "stopped") and record.epochs == self.trainer.epoch

    def _checkpoint_due(self) -> bool:
        assert self.checkpoints is not None
        due = torch.tensor(self.checkpoints.due(self.trainer), device=self.trainer.device)
        self.workers.broadcast([due])  # one clock for all
        return bool(due)

    def _save(self, checkpoints: Checkpoints) -> None:
        if self.workers.rank == 0:
            checkpoints.save(self.trainer)
        else:
            self.trainer.state()  # the first worker's save waits for every worker's part


def _out_of_memory(error: torch.OutOfMemoryError, share: float) -> str:
    """A line for a trial that no further memory would be found for."""
    first = str(error).split(". ")[0].strip()
    if share < 1:
        return f"{first} with --gpus-per-trial={share}: give a larger share, or auto"
    return f"{first} with a whole card: give a smaller --batch-size, or leave such models out with --max-params"


class TrialProcess(tune.Trainable):
    """Trains the trial that its config names, an epoch a step; then, reset, the next one.

    Images in memory come once per process, from Ray's object store (``tune.with_parameters``).
    """

    def setup(  # type: ignore[override]  # with_parameters supplies all but the config
        self,
        config: dict[str, Any],
        images: dict[str, np.ndarray | ImageSource],
        device: str,
        threads: int,
        shares_grow: bool,
    ) -> None:
        """``images``: ``train`` and ``val``, each uint8 ``[N, C, H, W]`` or a streamed source. ``shares_grow``: a trial
        that its share of a card does not hold is tried again with a larger one."""
        torch.set_num_threads(threads)
        keep_warnings()
        share = limit_to_share(device)
        sources = {split: image_source(each) for split, each in images.items()}
        self.training = TrialTraining(config, sources, device, share=share, shares_grow=shares_grow)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in this process."""
        self.training.leave()
        del self.training  # its memory goes before the next one's comes
        self.setup(new_config)  # type: ignore[call-arg]  # with_parameters supplies the rest
        return True

    def step(self) -> dict[str, Any]:
        """One epoch: :meth:`TrialTraining.step`."""
        return self.training.step()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to do: the trial's checkpoint lies in the search's own storage."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to do: the first :meth:`step` restores."""

    def cleanup(self) -> None:
        """The process ends."""
        self.training.leave()
