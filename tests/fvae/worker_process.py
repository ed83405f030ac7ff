"""One of several workers that train and evaluate together, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer imports it, which takes a second: not in each of the forks
import torch.distributed as distributed

from fvae import NonFiniteError, Trainer
from fvae.data.images import read_only_tensor
from fvae.evaluation import evaluate
from fvae.workers import Workers
from tests.fvae.distributed_cases import CASES, images, model_config, poisoned_step, train_config


def train(name: str, workers: Workers, folder: Path) -> dict[str, Any]:
    """A whole training of one case; what this worker has at its end, and right after ActNorm's initialisation."""
    case = CASES[name]
    options = {"workers": workers, **case.execution}
    trainer = Trainer(model_config(case), train_config(case), *images(case), **options)
    shares = []
    share = trainer._batches.share
    trainer._batches.share = lambda step: shares.append(share(step)) or shares[-1]  # type: ignore[func-returns-value, method-assign]
    trainer.train_step()
    initial = {key: tensor.clone() for key, tensor in trainer.ema.state_dict().items()}
    while not trainer.finished:
        if trainer.step == case.checkpoint_step:
            trainer.save(folder / f"{name}.safetensors")  # from worker 0, in mid-epoch
        trainer.train_step() if trainer.step < case.checkpoint_step else trainer.train_epoch()
    return {
        "history": trainer.history,
        "initial": initial,
        "final": trainer.model.state_dict(),
        "ema": trainer.ema.state_dict(),
        "images": sum(map(len, shares)),
    }


def main(rank: int, count: int, folder: Path) -> None:
    """What a worker does; it writes what it has seen to ``folder/RANK.pt``."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count)
    workers = Workers.of_process_group()
    seen: dict[str, Any] = {name: train(name, workers, folder) for name in CASES}

    case = CASES["fvae"]
    again = Trainer(model_config(case), train_config(case), *images(case), workers=workers)
    again.restore(folder / "alone.safetensors")  # one worker's checkpoint, in mid-epoch
    while not again.finished:
        again.train_epoch()
    seen["resumed"] = again.history

    test = images(case)[1]
    measured: list[int] = []
    seen["bits"] = {
        k: evaluate(again.ema, read_only_tensor(test), k=k, seed=7, workers=workers, advance=measured.append)
        for k in (1, 5)
    }
    seen |= {"measured": measured, "weights": again.ema.state_dict()}

    try:
        poisoned_step(Trainer(model_config(case), train_config(case), *images(case), workers=workers))
    except NonFiniteError as error:
        seen["non-finite"] = str(error)
    torch.save(seen, folder / f"{rank}.pt")
    distributed.destroy_process_group()
