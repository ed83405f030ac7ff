"""Training on one device: repeatable to the bit on a CPU, and resumable anywhere.

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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fvae.checkpoint import read_tensors, write_tensors
from fvae.config import ConfigError, ModelConfig, require
from fvae.data import ImageSource, TensorImages, derived_seed, image_source
from fvae.evaluation import NonFiniteError, evaluate
from fvae.model import Model, build, images_at_once
from fvae.train_config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What one epoch measured."""

    epoch: int
    """Epochs finished, from 1."""
    train_bpd: float
    """Mean bits/dim over the epoch's images as they were trained on."""
    val_bpd: float
    """Mean bits/dim (k = 1) of the validation images under the averaged weights."""
    grad_norm: float
    """Mean gradient norm before clipping."""
    images_per_second: float
    """Training throughput, validation not counted. Of this process's part of the epoch."""
    images: int
    """Training images seen since the start."""
    seconds: float
    """Seconds of training and validation since the start, over every process that took part."""
    sigma1: float
    """σ1 of the averaged weights; for ``vae`` the mean (geometric) of σ1(x') over validation images."""
    sigma2: float
    """σ2 of the averaged weights."""


class Trainer:
    """Trains one model on one device, on images in memory (integer ``[N, C, H, W]``) or streamed.

    Random state is the trainer's own: the same configs, images and thread count give the same
    weights to the bit on a CPU, whatever else the process does.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        train_config: TrainConfig,
        train_images: np.ndarray | Tensor | ImageSource,
        val_images: np.ndarray | Tensor | ImageSource,
        device: str | torch.device = "cpu",
    ) -> None:
        require(len(train_images) > 0, "train_images: empty")
        require(len(val_images) > 0, "val_images: empty")
        self.config = train_config
        self.device = torch.device(device)
        self.train_images, self.val_images = self._source(train_images), self._source(val_images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train_config.seed)
            model = build(model_config)
        # 3×3 weights in the layout of the activations: no reordering on each call.
        self.model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema: Model = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.parameters = list(self.model.parameters())
        self._ema_parameters = list(self.ema.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            train_config.learning_rate,
            weight_decay=train_config.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.generator = torch.Generator(self.device).manual_seed(derived_seed(train_config.seed, "train"))
        self.steps_per_epoch = self.train_images.steps(train_config.batch_size)
        self.step = 0
        """Optimizer steps done."""
        self.best_val_bpd = math.inf
        self.best_epoch = 0
        self._best: dict[str, Tensor] = {}
        self.seconds = 0.0
        """Seconds of training and validation that led here, over every process that took part."""
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # Σ bits/dim·images, Σ grad_norm
        self._bad_step = torch.tensor(-1, device=self.device)
        self._batches: Iterator[Tensor] = iter(())
        self._batches_step: int | None = None  # the step whose batch comes next

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return self.epoch >= self.config.epochs

    # --- training --------------------------------------------------------------------------------

    def train_epoch(self) -> EpochMetrics:
        """Finish the epoch under way and validate. Raises :class:`NonFiniteError`."""
        require(not self.finished, f"epochs={self.config.epochs}: all done")
        epoch = self.epoch
        started, first_step = time.perf_counter(), self.step
        while self.epoch == epoch:
            self.train_step()
        self._check_finite()
        if self.finished:
            self._batches = iter(())  # a streamed source's memory
        trained = time.perf_counter() - started
        images = self._images_seen(self.step) - self._images_seen(first_step)
        total_bpd, total_grad_norm = self._sums.tolist()
        self._sums.zero_()
        # The same noise after every epoch and in every trial of a seed: their differences are the models'.
        val_bpd = float(evaluate(self.ema, self.val_images, seed=derived_seed(self.config.seed, "val")).mean())
        if val_bpd < self.best_val_bpd:
            self.best_val_bpd, self.best_epoch = val_bpd, self.epoch
            self._best = {name: tensor.clone() for name, tensor in self.ema.state_dict().items()}
        self.seconds += time.perf_counter() - started
        return EpochMetrics(
            epoch=self.epoch,
            train_bpd=total_bpd / len(self.train_images),
            val_bpd=val_bpd,
            grad_norm=total_grad_norm / self.steps_per_epoch,
            images_per_second=images / trained,
            images=self._images_seen(self.step),
            seconds=self.seconds,
            sigma1=self.ema.mean_sigma1(self.val_images.first(images_at_once(self.ema.config))),
            sigma2=self.ema.sigma2,
        )

    def train_step(self) -> None:
        """One optimizer step on the next batch. Raises :class:`NonFiniteError` (on a GPU within 50 steps)."""
        batch = self._next_batch()
        if self.step == 0:
            self.model.initialize(batch, self.generator)
            self.ema.load_state_dict(self.model.state_dict())
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._learning_rate_factor()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = self.model.bits_per_dim(batch, self.generator).mean()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip, foreach=True)
        self._note_finite(loss.detach(), grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # Early on the average follows the weights closely, or it would remember the initial ones.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(self._ema_parameters, self.parameters, 0)
        self._sums += torch.stack((loss.detach().double() * len(batch), grad_norm.double()))

    def best_model(self) -> Model:
        """The averaged weights of the epoch with the lowest validation bits/dim, in evaluation mode."""
        model = copy.deepcopy(self.ema)
        if self._best:
            model.load_state_dict(self._best)
        return model

    def _source(self, images: np.ndarray | Tensor | ImageSource) -> ImageSource:
        """In memory: all on the device. A source: as it is, its batches moved one by one."""
        source = image_source(images)
        if isinstance(source, TensorImages):
            return TensorImages(source.images.to(self.device), source.worker, source.workers)
        return source

    def _next_batch(self) -> Tensor:
        if self._batches_step != self.step:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            # Every epoch that is left in one iterator: a streamed source reads ahead across their borders.
            self._batches = self.train_images.batches(
                seed=self.config.seed,
                epoch=epoch,
                batch_size=self.config.batch_size,
                start=position,
                epochs=self.config.epochs - epoch,
            )
        self._batches_step = None  # unless a batch comes, the next call begins anew
        batch = next(self._batches)
        self._batches_step = self.step + 1
        if self.device.type == "cuda" and not batch.is_cuda:
            batch = batch.pin_memory()
        return batch.to(self.device, non_blocking=True)

    def _images_seen(self, step: int) -> int:
        epochs, position = divmod(step, self.steps_per_epoch)
        return epochs * len(self.train_images) + position * self.config.batch_size

    def _learning_rate_factor(self) -> float:
        total = self.config.epochs * self.steps_per_epoch
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        return warmup * 0.5 * (1 + math.cos(math.pi * self.step / total))

    # --- guards ----------------------------------------------------------------------------------

    def _note_finite(self, loss: Tensor, grad_norm: Tensor) -> None:
        bad = ~(loss.isfinite() & grad_norm.isfinite())
        self._bad_step = torch.where(bad & (self._bad_step < 0), self.step, self._bad_step)
        # On a CPU the look is free and the gradients are still there to name the cause;
        # on a GPU it waits for the device, so it comes now and then.
        if self.device.type == "cpu" or self.step % 50 == 49:
            self._check_finite(f"loss {loss.item()}, gradient norm {grad_norm.item()}")

    def _check_finite(self, what: str = "the loss or its gradient is not finite") -> None:
        step = int(self._bad_step)
        if step < 0:
            return
        named = [(name, p if p.grad is None else p.grad) for name, p in self.model.named_parameters()]
        first = next((name for name, tensor in named if not bool(tensor.isfinite().all())), None)
        cause = f"; first non-finite in {first}" if first else ""
        raise NonFiniteError(f"step {step} (epoch {step // self.steps_per_epoch + 1}): {what}{cause}")

    # --- checkpoints -----------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the whole training state to one file, whole or absent, at any step."""
        self._check_finite()
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema/{name}": tensor for name, tensor in self.ema.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items()}
        tensors |= {"generator": self.generator.get_state(), "sums": self._sums}
        write_tensors(
            Path(path),
            tensors,
            {
                "model": self.model.config.to_dict(),
                "train": self.config.to_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "best_epoch": self.best_epoch,
                "best_val_bpd": self.best_val_bpd,
                "train_images": len(self.train_images),
            },
        )

    def restore(self, path: str | Path) -> None:
        """Continue from :meth:`save`. Raises ``ConfigError`` for a damaged file or another training's."""
        tensors, metadata = read_tensors(Path(path), self.device)
        mine = {
            "model": self.model.config.to_dict(),
            "train": self.config.to_dict(),
            "train_images": len(self.train_images),
        }
        for key, value in mine.items():
            if metadata.get(key) != value:
                raise ConfigError(f"{path}: a checkpoint of another training ({key} differs); remove it to start again")
        self.model.load_state_dict(_under("model/", tensors))
        self.ema.load_state_dict(_under("ema/", tensors))
        self._best = _under("best/", tensors)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer/", tensors).items():
            index, field = name.split("/")
            if tensor.ndim:  # the fused optimizer reads memory in the parameter's own layout
                tensor = torch.empty_like(self.parameters[int(index)]).copy_(tensor).detach()
            state.setdefault(int(index), {})[field] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.generator.set_state(tensors["generator"].cpu())
        self._sums = tensors["sums"]
        self.step, self.seconds = metadata["step"], metadata["seconds"]
        self.best_epoch, self.best_val_bpd = metadata["best_epoch"], metadata["best_val_bpd"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
