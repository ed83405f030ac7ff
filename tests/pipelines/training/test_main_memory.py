"""A training that main memory cannot hold is refused before it starts, and one that ran out of it is one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import torch

from fvae import ModelConfig, TrainConfig
from fvae.config import ConfigError
from fvae.memory import training_memory
from pipelines import train
from pipelines.data.datasets import memory_bytes
from pipelines.training import main_memory, worker_loop
from pipelines.training.events import Event, Events
from pipelines.training.settings import TrainSettings
from pipelines.training.worker_loop import carry_out
from tests.commands import call
from tests.pipelines.training.one_process import Direct

pytestmark = pytest.mark.core

SMALL = ModelConfig(family="flow", channels=1, height=32, width=32)
TRAIN = TrainConfig(epochs=1, batch_size=64)


def needed(images: int, **options: Any) -> int:
    return main_memory.PROCESS_BYTES + training_memory(SMALL, images, **options).total


def test_a_model_that_no_memory_holds_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    options = ("--storage", str(tmp_path), "--train.epochs", "1", "--model.family", "flow")
    done = call(train.main, TrainSettings, *options, "--model.coupling-width", "2000000")
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert re.fullmatch(
        r"error: this model does not fit: each worker needs [\d.]+ GiB of memory to train it, and this machine has "
        r"[\d.]+ GiB; choose a smaller model, or a machine with more memory",
        line,
    )
    assert list(tmp_path.iterdir()) == []  # no run, no folder, no database


def require(monkeypatch: pytest.MonkeyPatch, room: int, **options: Any) -> None:
    monkeypatch.setattr(main_memory, "memory_bytes", lambda: room)
    settings = {"workers": 1, "micro_batch_size": None, "checkpoint_activations": False} | options
    main_memory.require_room(SMALL, TRAIN, **settings)


def test_what_fits_is_counted_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    require(monkeypatch, needed(64))
    with pytest.raises(ConfigError):
        require(monkeypatch, needed(64) - 1)
    require(monkeypatch, needed(32), workers=2)
    require(monkeypatch, needed(8), micro_batch_size=8)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    require(monkeypatch, 1)  # other machines


def test_the_advice_works_when_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    room = (needed(64) + needed(1, checkpoint_activations=True)) // 2
    with pytest.raises(ConfigError, match=r"--micro-batch-size \d+ with --checkpoint-activations fits") as refused:
        require(monkeypatch, room)
    smaller = int(re.findall(r"--micro-batch-size (\d+)", str(refused.value))[0])
    assert smaller < 64
    require(monkeypatch, room, micro_batch_size=smaller, checkpoint_activations=True)


def test_a_trial_that_fits_easily_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_memory, "training_memory", lambda *_, **__: pytest.fail("counted"))
    assert main_memory.lacks_room(SMALL, TRAIN, 64, room=64 * 2**30) is None


def real_errors() -> list[BaseException]:
    """What is raised where memory is refused, by the real thing."""
    errors: list[BaseException] = []
    for allocate in (lambda: torch.empty(2**60), lambda: bytearray(2**62)):
        try:
            allocate()
        except (RuntimeError, MemoryError) as error:
            errors.append(error)
    return [*errors, RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate")]


def test_refused_memory_is_told_from_other_errors() -> None:
    errors = real_errors()
    assert len(errors) == 3
    assert all(main_memory.ran_out(error) for error in errors)
    killed = ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")
    assert main_memory.ran_out(str(killed))
    assert not main_memory.ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    guess = (
        "Worker unexpectedly exits. Potential causes: (1) The process is killed by SIGKILL by OOM killer due to high"
    )
    assert not main_memory.ran_out(f"The actor died unexpectedly before finishing this task. {guess} memory usage.")


def test_a_worker_that_runs_out_ends_the_job_with_one_line() -> None:
    def loop(config: None, events: Events) -> None:
        torch.empty(2**60)

    events: list[Event] = []
    with pytest.raises(ConfigError, match=r"worker 0 on .* ran out of memory \(.*the machine has .*GiB\); a smaller"):
        carry_out(loop, None, Direct(events.append))
    assert not events


def test_a_card_that_is_full_is_not_the_machine_s_memory() -> None:
    line = worker_loop._out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert "ran out of memory (CUDA out of memory" in line and "the machine has" not in line


def test_the_machine_s_memory_is_known() -> None:
    assert 2**28 < memory_bytes() < 2**50
