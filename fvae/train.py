"""Training, alone or as one of several workers: repeatable to the bit on a CPU, and resumable anywhere.

>>> trainer = Trainer(ModelConfig(family="fvae", channels=1, height=8, width=8, bins=17), TrainConfig(), train, val)
>>> while not trainer.finished:
...     print(trainer.train_epoch())
...     trainer.save("checkpoint.safetensors")
>>> model = trainer.best_model()
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fvae.activation_checkpointing import set_activation_checkpointing
from fvae.compilation import MeasuredCompilation, compile_layers
from fvae.config import ConfigError, ModelConfig, require, require_integer
from fvae.data.images import Array, ImageSource, TensorImages, derived_seed, image_source
from fvae.epoch_metrics import EpochMetrics
from fvae.evaluation import ALONE, NonFiniteError, evaluate
from fvae.model import Model, build, images_at_once
from fvae.optimizer_step import OptimizerStep
from fvae.train_config import TrainConfig, identity_of_any_version
from fvae.training_batches import TrainingBatches
from fvae.training_state import TrainingState
from fvae.workers import Workers

__all__ = ["EpochMetrics", "Trainer"]


class Trainer:
    """Trains one model on images in memory (integer ``[N, C, H, W]``) or streamed, each worker on its own device.

    Random state is the trainer's own: the same configs, images and thread count give the same weights to the bit
    on a CPU, whatever else the process does. Of several workers each makes a trainer with the same configs and
    images and calls the same methods in the same order; all of them have the same weights and figures, which differ
    from one worker's only by the order in which numbers are added. Micro-batches, compiling and activation
    checkpointing change no figure either, but for rounding.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        train_config: TrainConfig,
        train_images: Array | ImageSource,
        val_images: Array | ImageSource,
        device: str | torch.device = "cpu",
        *,
        workers: Workers = ALONE,
        micro_batch_size: int | None = None,
        compile: bool | Literal["auto"] = False,
        graph: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        """
        Args:
            model_config: the model that is trained.
            train_config: how it is trained; ``batch_size`` is the size of the global batch.
            train_images: the whole split, on every worker.
            val_images: the whole split, on every worker.
            device: this worker's device.
            workers: the processes that share the work, within ``torch.distributed``'s process group.
            micro_batch_size: images that go through the model at once; by default a worker's whole share.
            compile: run the model's repeated layers through ``torch.compile``; ``"auto"``: where a long training
                measures that its epochs become shorter (:mod:`fvae.compilation`).
            graph: run each step in static memory, on a GPU as one CUDA graph; for one worker without micro-batches.
            checkpoint_activations: compute activations again in the backward pass instead of keeping them.
        """
        require(len(train_images) > 0, "train_images: empty")
        require(len(val_images) > 0, "val_images: empty")
        if micro_batch_size is not None:
            require_integer("micro_batch_size", micro_batch_size, 1)
        require(
            not graph or (workers.count == 1 and micro_batch_size is None),
            f"graph=True: a step of {workers.count} workers or of micro-batches cannot be a graph; leave it at False",
        )
        train_config.require_fits(model_config)
        self.config, self.workers = train_config, workers
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # shapes are few: each algorithm is tried once, the fastest kept
        self.train_images, self.val_images = self._source(train_images), self._source(val_images)
        self._batches = TrainingBatches(self.train_images, train_config, workers, self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train_config.seed)
            model = build(model_config)
        # 3×3 weights in the layout of the activations: no reordering on each call.
        self.model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        set_activation_checkpointing(self.model, checkpoint_activations)
        self.ema: Model = copy.deepcopy(self.model).eval().requires_grad_(False)
        if train_config.kl_warmup:
            self.model.kl_weight = torch.zeros((), device=self.device)
        self._optimizer_step = OptimizerStep(
            self.model, self.ema, train_config, workers=workers, micro_batch_size=micro_batch_size, graph=graph
        )
        self.generator = torch.Generator(self.device).manual_seed(derived_seed(train_config.seed, "train"))
        self.steps_per_epoch = self._batches.per_epoch
        self.step = 0
        """Optimizer steps done."""
        self.history: list[EpochMetrics] = []
        """What every finished epoch measured."""
        self.best_val_bpd = math.inf
        self.best_epoch = 0
        self._best: dict[str, Tensor] = {}
        self.seconds = 0.0
        """Seconds of training and validation that led here, over every process that took part."""
        # Σ bits/dim of this worker's images, Σ gradient norm
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._compile = compile is True
        self._compilation = MeasuredCompilation(self.model) if compile == "auto" else None

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return self.epoch >= self.config.epochs

    # --- training --------------------------------------------------------------------------------

    def train_epoch(self, after_step: Callable[[], None] | None = None) -> EpochMetrics:
        """Finish the epoch under way and validate. Raises :class:`NonFiniteError`.

        ``after_step`` is called after every step but an epoch's last: there :meth:`state` is in mid-epoch.
        """
        require(not self.finished, f"epochs={self.config.epochs}: all done")
        epoch = self.epoch
        started, first_step = time.perf_counter(), self.step
        while self.epoch == epoch:
            self.train_step()
            if after_step and self.epoch == epoch:
                after_step()
        self._optimizer_step.guard.check(epoch + 1)
        if self.finished:
            self._batches.release()
        total_bpd, total_grad_norm = self._reduced_sums().tolist()
        if not math.isfinite(total_bpd):  # of several workers, one may have seen what the others have not
            raise NonFiniteError(f"epoch {self.epoch}: the sum of the losses is {total_bpd}")
        trained = time.perf_counter() - started
        if self._compilation and self._compilation.after_epoch(trained, self.config.epochs - self.epoch):
            self._optimizer_step.forget_graph()
        images = self._batches.images_before(self.step) - self._batches.images_before(first_step)
        self._sums.zero_()
        # The same noise after every epoch and in every trial of a seed: their differences are the models'.
        bits = evaluate(
            self.ema,
            self.val_images,
            samples=self.config.validation_samples,
            seed=derived_seed(self.config.seed, "val"),
            workers=self.workers,
        )
        val_bpd = float(bits.mean())
        if val_bpd < self.best_val_bpd:
            self.best_val_bpd, self.best_epoch = val_bpd, self.epoch
            self._best = {name: tensor.clone() for name, tensor in self.ema.state_dict().items()}
        self.seconds += time.perf_counter() - started
        metrics = EpochMetrics(
            epoch=self.epoch,
            train_bpd=total_bpd / len(self.train_images),
            val_bpd=val_bpd,
            grad_norm=total_grad_norm / self.steps_per_epoch,
            images_per_second=images / trained,
            images=self._batches.images_before(self.step),
            seconds=self.seconds,
            sigma1=self.ema.mean_sigma1(self.val_images.first(images_at_once(self.ema.config))),
            sigma2=self.ema.mean_sigma2(self.val_images.first(images_at_once(self.ema.config))),
            time_ms=time.time_ns() // 1_000_000,
        )
        self.history.append(metrics)
        return metrics

    def train_step(self) -> None:
        """One optimizer step on the next global batch. Raises :class:`NonFiniteError` (on a GPU within 50 steps)."""
        images, count = self._batches.share(self.step), self._batches.count(self.step)
        if self.step == 0:
            self._initialize(images, count)
        if self.model.kl_weight is not None:
            self.model.kl_weight.fill_(min(1.0, self.step / (self.config.kl_warmup * self._steps())))
        noise = self.model.noise(count, self.generator)
        if self._compile:
            compile_layers(self.model)
            self._compile = False  # they are now
        loss, grad_norm = self._optimizer_step.run(
            images, noise, count, step=self.step, steps=self._steps(), epoch=self.epoch + 1
        )
        self.step += 1
        self._sums += torch.stack((loss.double() * count, grad_norm.double()))

    def best_model(self) -> Model:
        """The averaged weights of the epoch with the lowest validation bits/dim, in evaluation mode."""
        model = copy.deepcopy(self.ema)
        if self._best:
            model.load_state_dict(self._best)
        return model

    def _initialize(self, images: Tensor, count: int) -> None:
        """Set ActNorm, once, from the whole first global batch, on worker 0; then all workers take its weights."""
        noise = self.model.noise(count, self.generator)  # drawn by all: their generators stay alike
        if self.workers.rank == 0:
            if self.workers.count > 1:
                images = self._batches.first_whole()
            self.model.initialize(images, noise=noise)
        self.workers.broadcast(self.model.state_dict().values())
        self.model.check_actnorm()
        self.ema.load_state_dict(self.model.state_dict())

    def _source(self, images: Array | ImageSource) -> ImageSource:
        """Move images in memory to the device; a source stays as it is, and its batches are moved one by one."""
        source = image_source(images)
        if isinstance(source, TensorImages):
            return TensorImages(source.images.to(self.device))
        return source

    def _steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    def _reduced_sums(self) -> Tensor:
        """Σ bits/dim over all workers' images and Σ gradient norm of the epoch so far, float64 ``[2]``."""
        sums = self._sums.clone()
        self.workers.all_reduce(sums[:1])
        return sums

    # --- checkpoints -----------------------------------------------------------------------------

    def state(self) -> TrainingState | None:
        """Copy the training as it is now, at any step, to the CPU's memory. Every worker calls it; the first one gets
        the state, the others ``None``."""
        self._optimizer_step.guard.check(self.epoch + 1)
        sums = self._reduced_sums()
        if self.workers.rank:
            return None
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema/{name}": tensor for name, tensor in self.ema.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self._optimizer_step.moments().items()}
        tensors |= {"generator": self.generator.get_state(), "sums": sums}
        return TrainingState(
            tensors={name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()},
            metadata=self._identity()
            | {
                "step": self.step,
                "seconds": self.seconds,
                "best_epoch": self.best_epoch,
                "best_val_bpd": self.best_val_bpd,
                "history": [dataclasses.asdict(metrics) for metrics in self.history],
            },
        )

    def save(self, path: str | Path) -> None:
        """Write :meth:`state` to one file, whole or absent; of several workers the first does."""
        if state := self.state():
            state.write(path)

    def restore(self, path: str | Path) -> None:
        """Continue from :meth:`save`, with any number of workers. Raises ``ConfigError`` for a damaged file or another
        training's."""
        self.load_state(TrainingState.read(path, self.device), str(path))

    def load_state(self, state: TrainingState, where: str = "the state") -> None:
        """Continue from :meth:`state`, on this trainer's device. Raises ``ConfigError``, which says ``where``, for that
        of another training."""
        theirs = identity_of_any_version(state.metadata)
        for key, value in identity_of_any_version(self._identity()).items():
            if theirs.get(key) != value:
                raise ConfigError(
                    f"{where}: a checkpoint of another training ({key} differs); remove it to start again"
                )
        try:
            self.model.load_state_dict(state.under("model/"))
            self.ema.load_state_dict(state.under("ema/"))
        except RuntimeError as error:
            raise ConfigError(f"{where}: a checkpoint of another version ({str(error).splitlines()[0]})") from error
        self._best = state.under("best/")
        self._optimizer_step.load_moments(state.under("optimizer/"))
        self.generator.set_state(state.tensors["generator"].cpu())
        self._sums = state.tensors["sums"]
        if self.workers.rank:  # the first worker carries what all had added up
            self._sums[0] = 0
        self.step, self.seconds = state.step, state.metadata["seconds"]
        self.best_epoch, self.best_val_bpd = state.metadata["best_epoch"], state.metadata["best_val_bpd"]
        self.history = [EpochMetrics(**metrics) for metrics in state.metadata["history"]]

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the training that continues it."""
        return {
            "model": self.model.config.to_dict(),
            "train": self.config.to_dict(),
            "train_images": len(self.train_images),
        }
