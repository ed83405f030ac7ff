"""Commands that run in forks (:mod:`tests.pipelines.forks`), without Ray, and may end by SIGKILL at set moments."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cli import command_line
from pipelines.evaluate import main as evaluate_main
from pipelines.evaluation import job as evaluation_job
from pipelines.evaluation import worker as evaluation_worker
from pipelines.evaluation.image_scores import KeptReadings, Measured
from pipelines.evaluation.settings import EvaluateSettings
from pipelines.retrain import main as retrain_main
from pipelines.retraining.settings import RetrainSettings
from pipelines.tracking.settings import quiet_mlflow
from tests.pipelines.retraining import retrainings
from tests.pipelines.training import faulty_training
from tests.pipelines.training.one_process import without_ray
from tests.waiting import until

quiet_mlflow()

import mlflow  # noqa: E402, F401  (takes a second or two, as does what an optimizer imports: not in each of the forks)
import torch._dynamo  # noqa: E402, F401


def train(folder: Path, plan: faulty_training.Plan, options: list[str]) -> None:
    """``python -m pipelines.train`` that loses what is planned: see :mod:`tests.pipelines.training.faulty_training`."""
    without_ray(pytest.MonkeyPatch())
    faulty_training.run(faulty_training.Faults(folder, plan, os.getpid()), options)


def retrain(options: list[str], moment: str = "") -> None:
    """``python -m pipelines.retrain``, which ends at a moment of :func:`.retrainings.die_at`."""
    without_ray(pytest.MonkeyPatch())
    retrainings.die_at(moment)
    _retrain(options)


def slow_retrain(options: list[str], folder: Path) -> None:
    """``python -m pipelines.retrain``, which waits: see :func:`.retrainings.wait_at_the_first_epoch`."""
    without_ray(pytest.MonkeyPatch())
    retrainings.wait_at_the_first_epoch(folder)
    _retrain(options)


def _retrain(options: list[str]) -> None:
    sys.argv = ["retrain.py", *options]
    command_line.run(retrain_main, RetrainSettings)


def evaluate(options: list[str], folder: Path) -> None:
    """``python -m pipelines.evaluate`` on several workers.

    They make ``folder/measured`` once a reading is taken, and wait for ``folder/go``; SIGKILL ends the command once the
    third reading is kept.
    """
    add, done = KeptReadings.add, []

    def adding(self: KeptReadings, measured: Measured) -> None:
        add(self, measured)
        done.append(measured.reading)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def waiting(task: Any, events: Any) -> None:
        def report(event: Any, metrics: Any) -> None:
            events.report(event, metrics)
            (folder / "measured").touch()
            until((folder / "go").exists, "the file 'go'")

        evaluation_worker.evaluate_task(task, SimpleNamespace(put=events.put, report=report))  # type: ignore[arg-type]

    KeptReadings.add = adding  # type: ignore[method-assign]
    evaluation_job.evaluate_task = waiting  # type: ignore[assignment]
    sys.argv = ["evaluate.py", *options]
    command_line.run(evaluate_main, EvaluateSettings)
