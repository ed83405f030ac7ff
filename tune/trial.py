"""One trial after another in one process: Tune's class API, reused actors, no nested Train run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from ray import tune

from fvae import ConfigError, ModelConfig, NonFiniteError, TrainConfig, Trainer
from fvae.data import ImageSource, derived_seed, image_source
from fvae.evaluation import evaluate, standard_error
from pipelines.model_files import ModelError, keep_model, load_model
from pipelines.storage import open_storage
from pipelines.troubles import keep_warnings, trouble, with_warnings
from tune.ledger import TestResult
from tune.trial_files import Checkpoints


class TrialProcess(tune.Trainable):
    """Trains the trial that its config names, an epoch a step; then, reset, the next one.

    Images in memory come once per process, from Ray's object store (``tune.with_parameters``).
    """

    def setup(
        self, config: dict[str, Any], images: dict[str, np.ndarray | ImageSource], device: str, threads: int
    ) -> None:
        """``images``: ``train`` and ``val``, each uint8 ``[N, C, H, W]`` or a streamed source."""
        torch.set_num_threads(threads)
        keep_warnings()
        self.storage = open_storage(config["storage"])
        self.images = {split: image_source(each) for split, each in images.items()}
        self.trainer = Trainer(
            ModelConfig.from_dict(config["model"]),
            TrainConfig.from_dict(config["train"]),
            self.images["train"],
            self.images["val"],
            device,
        )
        self.checkpoints: Checkpoints | None = None
        self.seconds_before = config["seconds"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in this process."""
        self.setup(new_config)  # type: ignore[call-arg]  # with_parameters supplies the rest
        return True

    def step(self) -> dict[str, Any]:
        """One epoch. A non-finite figure ends the trial with its reason; it is no crash.

        A store or disk that fails is the search's trouble, not this trial's: see :mod:`pipelines.troubles`.
        """
        try:
            result = self._epoch()
        except NonFiniteError as error:
            result = {"epoch": self.trainer.epoch, "failure": str(error), "done": True}
        except (OSError, ConfigError) as error:
            result = trouble(error) | {"epoch": 0, "done": True}
        return with_warnings(result)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial's checkpoint lies in the search's own storage."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the first :meth:`step` restores."""

    def _epoch(self) -> dict[str, Any]:
        """Checkpoints before the epoch: Tune asks for it once the driver has recorded the last one, so that no
        checkpoint is ever ahead of the ledger, wherever either process is killed."""
        if self.checkpoints is None:  # not in setup, where an error would count as this trial's crash
            checkpoints = Checkpoints(self.storage)
            checkpoints.restore(self.trainer)
            self.checkpoints = checkpoints
            # Seconds that a crash cost: spent after the checkpoint, in a process that is gone.
            self.seconds_lost = max(0.0, self.seconds_before - self.trainer.seconds)
        else:
            self.checkpoints.save_when_due(self.trainer)
        metrics = self.trainer.train_epoch()
        result = dataclasses.asdict(metrics) | {"seconds": metrics.seconds + self.seconds_lost}
        if self.trainer.finished:
            keep_model(self.trainer, self.storage)
            kept = {"best_epoch": self.trainer.best_epoch, "best_val_bpd": self.trainer.best_val_bpd}
            result |= {**kept, "done": True}
        return result


def read_test_split(
    trial_uri: str, images: np.ndarray | ImageSource, seed: int, threads: int, device: str
) -> dict[str, Any]:
    """Test bits/dim of a trial's saved model, k = 1 and 64, over every image ``[N, C, H, W]``.

    Returns ``test``, or ``failure``, one line, where the model cannot be measured: not finite, or gone; or what
    :func:`pipelines.troubles.trouble` makes of a storage that fails.
    """
    torch.set_num_threads(threads)
    keep_warnings()
    return with_warnings(_read_test_split(trial_uri, images, seed, device))


def _read_test_split(trial_uri: str, images: np.ndarray | ImageSource, seed: int, device: str) -> dict[str, Any]:
    try:
        model = load_model(open_storage(trial_uri), device)
        source = image_source(images)
        one, many = (evaluate(model, source, k=k, seed=derived_seed(seed, f"test/{k}")) for k in (1, 64))
    except (NonFiniteError, ModelError) as error:
        return {"failure": f"test split: {error}"}
    except (OSError, ConfigError) as error:
        return trouble(error)
    result = TestResult(
        bpd=float(one.mean()),
        bpd_iwae64=float(many.mean()),
        standard_error=standard_error(one),
        standard_error_iwae64=standard_error(many),
        seed=seed,
    )
    return {"test": result}
