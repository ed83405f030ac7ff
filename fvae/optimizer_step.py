"""One optimizer step of a training: gradient, clipping, AdamW, learning-rate schedule and averaged weights (EMA)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fvae.evaluation import NonFiniteError
from fvae.global_batch import GlobalBatch
from fvae.model import Model
from fvae.static_step import StaticStep
from fvae.train_config import TrainConfig
from fvae.workers import Workers


class OptimizerStep:
    """Brings a model's weights, and their exponential moving average, one step on: AdamW on one global batch.

    The learning rate rises linearly over ``config.warmup_steps`` and then falls to 0 along a cosine.
    """

    def __init__(
        self,
        model: Model,
        ema: Model,
        config: TrainConfig,
        *,
        workers: Workers,
        micro_batch_size: int | None,
        graph: bool,
    ) -> None:
        """
        Args:
            model: the model that is trained, on its device.
            ema: its averaged weights: a copy of ``model``.
            config: the training's.
            workers: the processes that share each global batch.
            micro_batch_size: images that go through the model at once; ``None``: a worker's whole share.
            graph: run each step in static memory, on a GPU as one CUDA graph (:class:`~fvae.static_step.StaticStep`).
        """
        self.model, self.config, self.workers = model, config, workers
        self.device = model.log_sigma1.device
        groups, ema_groups = _parameters_by_peak_rate(model, config), _parameters_by_peak_rate(ema, config)
        self.parameters = [parameter for group in groups.values() for parameter in group]
        self.ema_parameters = [parameter for group in ema_groups.values() for parameter in group]
        self._peak_rates = list(groups)
        self._micro_batch_size, self._graph = micro_batch_size, graph
        self.optimizer = self.make_optimizer(groups)
        self.guard = FiniteGuard(model, workers)
        self.static_step: StaticStep | None = None
        self.global_batch: GlobalBatch | None = None

    def run(
        self, images: Tensor, noise: tuple[Tensor, Tensor], count: int, *, step: int, steps: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            images: this worker's share of the global batch, integer ``[B, C, H, W]`` on the device.
            noise: the noise of the whole global batch, as :meth:`Model.noise` gives it.
            count: images of the global batch.
            step: steps done before this one.
            steps: steps of the whole training.
            epoch: the epoch under way, from 1.

        Returns this worker's part of the mean bits/dim, and the norm of the gradient before clipping: scalars.
        Raises :class:`NonFiniteError` (on a GPU within 50 steps).
        """
        warmup = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        factor = warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
        rates = [peak * factor for peak in self._peak_rates]
        # Early on the average follows the weights closely, or it would remember the initial ones.
        ema_decay = min(self.config.ema_decay, (2 + step) / (11 + step))
        if self._graph:
            loss, grad_norm = self._static_step(images.dtype).run(images, noise, rates, ema_decay)
            self.guard.note(step, epoch, loss, grad_norm)
            return loss, grad_norm
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        loss = self._global_batch().backward(images, noise, count)
        grad_norm = self.clip()
        self.guard.note(step, epoch, loss, grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        get_ema_multi_avg_fn(ema_decay)(self.ema_parameters, self.parameters, 0)
        return loss, grad_norm

    def make_optimizer(self, groups: dict[float, list[nn.Parameter]]) -> torch.optim.Optimizer:
        """Return the optimizer of parameters that are grouped by their peak learning rate."""
        parameters = [
            {"params": parameters, "lr": torch.tensor(peak, device=self.device) if self._graph else peak}
            for peak, parameters in groups.items()
        ]
        return torch.optim.AdamW(
            parameters, weight_decay=self.config.weight_decay, betas=(0.9, 0.99), fused=True, capturable=self._graph
        )

    def clip(self) -> Tensor:
        """Bring the gradient's norm down to the limit. Returns the norm before."""
        return nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip, foreach=True)

    def forget_graph(self) -> None:
        """Capture a new CUDA graph in the next step: layers or the optimizer's memory have changed."""
        self.static_step = None

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state by ``INDEX/NAME``, the index of the parameter first."""
        states = self.optimizer.state_dict()["state"].items()
        return {f"{index}/{name}": tensor for index, state in states for name, tensor in state.items()}

    def load_moments(self, tensors: dict[str, Tensor]) -> None:
        """Continue from :meth:`moments`."""
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, field = name.split("/")
            if tensor.ndim:  # the fused optimizer reads memory in the parameter's own layout
                tensor = torch.empty_like(self.parameters[int(index)]).copy_(tensor).detach()
            states.setdefault(int(index), {})[field] = tensor
        self.forget_graph()
        self.optimizer.load_state_dict({"state": states, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _global_batch(self) -> GlobalBatch:
        if self.global_batch is None:  # not before the first step: DDP takes the model as it is
            self.global_batch = GlobalBatch(
                self.model,
                workers=self.workers,
                precision=self.config.precision,
                micro_batch_size=self._micro_batch_size,
            )
        return self.global_batch

    def _static_step(self, dtype: torch.dtype) -> StaticStep:
        if self.static_step is None:
            self.static_step = StaticStep(
                self.model, self.parameters, self.ema_parameters, self.optimizer, self.config, dtype, self.clip
            )
        return self.static_step


def _parameters_by_peak_rate(model: Model, config: TrainConfig) -> dict[float, list[nn.Parameter]]:
    groups = dict[float, list[nn.Parameter]]()
    for name, parameter in model.named_parameters():
        own = config.sigma_learning_rate if name in ("log_sigma1", "log_sigma2") else None
        groups.setdefault(own or config.learning_rate, []).append(parameter)
    return groups


class FiniteGuard:
    """Remembers the first step whose loss or gradient was not finite, and raises :class:`NonFiniteError` for it."""

    def __init__(self, model: Model, workers: Workers) -> None:
        self.model, self.workers = model, workers
        self.device = model.log_sigma1.device
        self._bad_step = torch.tensor(-1, device=self.device)

    def note(self, step: int, epoch: int, loss: Tensor, grad_norm: Tensor) -> None:
        """Note whether a step is finite, while its gradients are there; on a CPU, raise at once where it is not."""
        # Workers must fail together: the gradient is the same on all of them, the loss is not.
        finite = grad_norm.isfinite() if self.workers.count > 1 else loss.isfinite() & grad_norm.isfinite()
        self._bad_step = torch.where(~finite & (self._bad_step < 0), step, self._bad_step)
        # On a CPU the look is free and the gradients are still there to name the cause;
        # on a GPU it waits for the device, so it comes now and then.
        if self.device.type == "cpu" or step % 50 == 49:
            self.check(epoch, f"loss {loss.item()}, gradient norm {grad_norm.item()}")

    def check(self, epoch: int, what: str = "the loss or its gradient is not finite") -> None:
        """Raise :class:`NonFiniteError` where a step noted up to now, in ``epoch`` (from 1), is not finite."""
        step = int(self._bad_step)
        if step < 0:
            return
        named = [(name, p if p.grad is None else p.grad) for name, p in self.model.named_parameters()]
        first = next((name for name, tensor in named if not bool(tensor.isfinite().all())), None)
        cause = f"; first non-finite in {first}" if first else ""
        raise NonFiniteError(f"step {step} (epoch {epoch}): {what}{cause}")
