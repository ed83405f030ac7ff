"""Several seeds of one flow on one core: all in one batched step (``torch.func.vmap``), or one after another.

    python -m benchmarks.batched_seeds >> benchmarks/results/small_models.txt

Both take the same images, forward and backward, clip each seed's gradient, and step the optimizer and the averaged
weights. Rounds alternate; the ratio is the median over them, in seconds of the core.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from benchmarks.small_models import MODELS
from fvae import ModelConfig, TrainConfig, Trainer
from fvae.model import Model
from pipelines.cli import command_line

BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure and print."""

    models: tuple[str, ...] = ("flow", "larger flow")
    """Names of `benchmarks.small_models.MODELS`."""
    seeds: tuple[int, ...] = (3, 8)
    """How many are trained together."""
    rounds: int = 8
    """Of which the median is taken."""
    steps: int = 6
    """Of each way in a round."""


class Bits(nn.Module):
    """A model's objective without the checks of its input, which vmap cannot trace."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, r: Tensor, u: Tensor) -> Tensor:
        """Mean bits/dim of ``images [B, C, H, W]`` with their noise, a scalar."""
        return self.model._bits_per_dim(self.model.log_weight(images, r, u)).mean()


def batched_step(trainers: Sequence[Trainer], images: Tensor) -> Callable[[], None]:
    """One step of every trainer's model, all at once."""
    modules = [Bits(trainer.model) for trainer in trainers]
    weights, buffers = stack_module_state(modules)  # each [seeds, ...]
    skeleton = copy.deepcopy(modules[0]).to("meta")

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return functional_call(skeleton, (weights, buffers), inputs)

    gradients_and_loss = vmap(grad_and_value(loss))
    noise = [trainer.model.noise(BATCH, trainer.generator) for trainer in trainers]
    r, u = (torch.stack(each) for each in zip(*noise, strict=True))
    batch = images[:BATCH].expand(len(trainers), -1, -1, -1, -1)
    optimizer = torch.optim.AdamW(list(weights.values()), lr=1e-3, fused=True)
    average = [each.detach().clone() for each in weights.values()]

    def step() -> None:
        gradients, _ = gradients_and_loss(weights, buffers, batch, r, u)
        with torch.no_grad():
            norms = torch.stack([each.flatten(1).square().sum(1) for each in gradients.values()]).sum(0).sqrt()
            factors = (trainers[0].config.gradient_clip / norms).clamp(max=1)  # [seeds]
            for name, weight in weights.items():
                weight.grad = gradients[name] * factors.view(-1, *[1] * (weight.ndim - 1))
            optimizer.step()
            torch._foreach_lerp_(average, list(weights.values()), 0.01)

    return step


def main(settings: Settings) -> int:
    """Measure and print. Returns the exit status."""
    torch.set_num_threads(1)
    print(f"\n$ python -m benchmarks.batched_seeds {' '.join(sys.argv[1:])}".rstrip())
    print(f"one thread, torch {torch.__version__}, batch {BATCH} of each seed\n")
    print(f"{'':16}{'parameters':>10}{'seeds':>8}{'one after another':>20}{'batched':>12}{'ratio':>9}")
    for name in settings.models:
        config = ModelConfig(**MODELS[name])
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(config.bins, (10 * BATCH, *config.image_shape), generator=generator).to(torch.uint8)
        for count in settings.seeds:
            trainers = [
                Trainer(config, TrainConfig(epochs=10**6, batch_size=BATCH, seed=seed), images, images[:1])
                for seed in range(count)
            ]
            for trainer in trainers:
                trainer.train_step()
            together = batched_step(trainers, images)
            times: list[tuple[float, float]] = []
            for number in range(settings.rounds + 1):
                started = time.process_time()
                for _ in range(settings.steps):
                    for trainer in trainers:
                        trainer.train_step()
                between = time.process_time()
                for _ in range(settings.steps):
                    together()
                if number:  # the first warms up
                    times.append((between - started, time.process_time() - between))
            apart, batched = (1000 * statistics.median(each) / settings.steps for each in zip(*times, strict=True))
            ratio = statistics.median(one / all_ for one, all_ in times)
            parameters = trainers[0].model.parameter_count()
            print(f"{name:16}{parameters:>10,}{count:>8}{apart:>17.2f} ms{batched:>9.2f} ms{ratio:>8.2f}×", flush=True)
    return 0


if __name__ == "__main__":
    command_line.run(main, Settings)
