"""One trial after another in one process: Tune's class API, reused actors, no nested Train run."""

from __future__ import annotations

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune

from fvae import ConfigError, ModelConfig, NonFiniteError, TrainConfig, Trainer, load, save
from fvae.data import derived_seed
from fvae.evaluation import evaluate, standard_error
from fvae.files import write_bytes
from pipelines.pictures import png_grid
from tune.ledger import TestResult

CHECKPOINT_SECONDS = 5.0
"""Least time between two checkpoints of a trial: what a crash can cost it."""
CHECKPOINT, MODEL = "training.safetensors", "model"


def read_only_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over Ray's shared read-only memory, not a copy: nothing may write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


class TrialProcess(tune.Trainable):
    """Trains the trial that its config names, an epoch a step; then, reset, the next one.

    The images come once per process, from Ray's object store (``tune.with_parameters``).
    """

    def setup(self, config: dict[str, Any], images: dict[str, np.ndarray], device: str, threads: int) -> None:
        """``images``: the uint8 arrays ``train`` and ``val``, ``[N, C, H, W]``."""
        torch.set_num_threads(threads)
        self.directory = Path(config["directory"])
        self.images = {split: read_only_tensor(array) for split, array in images.items()}
        self.trainer = Trainer(
            ModelConfig.from_dict(config["model"]),
            TrainConfig.from_dict(config["train"]),
            self.images["train"],
            self.images["val"],
            device,
        )
        checkpoint = self.directory / CHECKPOINT
        if checkpoint.exists():
            try:
                self.trainer.restore(checkpoint)
            except ConfigError:  # damaged, or of an older version: what it held is trained again
                checkpoint.unlink()
        # Seconds that a crash cost: spent after the checkpoint, in a process that is gone.
        self.seconds_lost = max(0.0, config["seconds"] - self.trainer.seconds)
        self._saved_at, self._saved_epoch = time.monotonic(), self.trainer.epoch

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in this process."""
        self.setup(new_config)  # type: ignore[call-arg]  # with_parameters supplies the rest
        return True

    def step(self) -> dict[str, Any]:
        """One epoch. A non-finite figure ends the trial with its reason; it is no crash."""
        try:
            self._save_now_and_then()
            metrics = self.trainer.train_epoch()
            result = dataclasses.asdict(metrics) | {"seconds": metrics.seconds + self.seconds_lost}
            if self.trainer.finished:
                self._keep_model()
                kept = {"best_epoch": self.trainer.best_epoch, "best_val_bpd": self.trainer.best_val_bpd}
                result |= {**kept, "done": True}
            return result
        except NonFiniteError as error:
            return {"epoch": self.trainer.epoch, "failure": str(error), "done": True}
        except OSError as error:  # a full disk is the search's trouble, not this trial's
            filename = None if error.filename is None else str(error.filename)
            return {"epoch": 0, "storage_error": (error.errno, error.strerror, filename), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial's folder holds its checkpoint, under the search's own storage."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: :meth:`setup` restores."""

    def _save_now_and_then(self) -> None:
        """Before an epoch: Tune asks for it once the driver has recorded the last one, so that no
        checkpoint is ever ahead of the ledger, wherever either process is killed."""
        if self.trainer.epoch > self._saved_epoch and time.monotonic() - self._saved_at > CHECKPOINT_SECONDS:
            self.trainer.save(self.directory / CHECKPOINT)
            self._saved_at, self._saved_epoch = time.monotonic(), self.trainer.epoch

    def _keep_model(self) -> None:
        model = self.trainer.best_model()
        bins = model.config.bins
        device = self.trainer.device
        generator = torch.Generator(device).manual_seed(derived_seed(self.trainer.config.seed, "samples"))
        samples = model.sample(64, generator=generator).cpu().numpy()
        originals = self.images["val"][:32]
        rebuilt = model.reconstruct(originals.to(device)).cpu()
        ends = originals[:8].to(device)
        lines = [model.interpolate(ends[2 * pair], ends[2 * pair + 1], 10).cpu() for pair in range(len(ends) // 2)]
        pairs = torch.stack((originals, rebuilt), dim=1).flatten(0, 1).numpy()  # original, reconstruction, …
        write_bytes(self.directory / "samples.png", png_grid(samples, bins, 16))
        write_bytes(self.directory / "reconstructions.png", png_grid(pairs, bins, 16))
        if lines:
            write_bytes(self.directory / "interpolations.png", png_grid(torch.cat(lines).numpy(), bins, 10))
        save(model, self.directory / MODEL)


def read_test_split(model_dir: str, images: np.ndarray, seed: int, threads: int, device: str) -> TestResult | str:
    """Test bits/dim of a saved model, k = 1 and 64, over every image ``[N, C, H, W]``.

    Returns one line instead where the model cannot be measured: not finite, or gone.
    """
    torch.set_num_threads(threads)
    tensor = read_only_tensor(images)
    try:
        model = load(model_dir, device)
        one, many = (evaluate(model, tensor, k=k, seed=derived_seed(seed, f"test/{k}")) for k in (1, 64))
    except (NonFiniteError, ConfigError) as error:
        return f"test split: {error}"
    return TestResult(
        bpd=float(one.mean()),
        bpd_iwae64=float(many.mean()),
        standard_error=standard_error(one),
        standard_error_iwae64=standard_error(many),
        seed=seed,
    )
