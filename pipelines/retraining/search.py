"""The search of a retraining: a process that runs ``tune.search`` on the new data, resumed where it was interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from fvae.config import ConfigError, ModelConfig
from fvae.data.images import Dataset
from fvae.train_config import TrainConfig
from pipelines.cli.run_settings import as_run_name
from pipelines.cli.stop_signals import in_a_hurry
from pipelines.retraining.lease_wait import waited_for
from pipelines.retraining.settings import RetrainSettings
from pipelines.storage import StorageError
from pipelines.storage.json_objects import read_json
from pipelines.tracking.registry import finished_runs, tracking_uri_of
from pipelines.training.configs import TrainConfigs

# The search must not outlive this process: it holds the run that the next retraining opens again. On Linux it then gets
# SIGINT, as by Ctrl-C; elsewhere the next retraining waits for it. The new process requests that before it becomes the
# search.
_START = """\
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.executable, [sys.executable, "-m", "tune.search", *sys.argv[2:]])
"""


class Found(NamedTuple):
    """The best model of a search."""

    configs: TrainConfigs
    what: str
    """Its source, in a few words."""


class NothingFound(Exception):
    """No model of the search was trained to its end within the limits of size. ``str(error)`` is one sentence."""


def search_name(dataset: Dataset) -> str:
    """The search's run: one for each content of the data set."""
    return f"retrain-search-{as_run_name(dataset.name)}-{dataset.content_hash()[:8]}"


def search_for(
    settings: RetrainSettings, dataset: Dataset, start: TrainConfigs | None, say: Callable[[str], None]
) -> Found:
    """Run or resume the search, or read its result.

    Args:
        settings: the time budget and the limits of size.
        dataset: the data set to search on.
        start: the champion's configuration: the search has its epochs, batch size, precision and seed.
        say: takes a line about each step.

    Raises :class:`NothingFound`; ``ConfigError`` or ``StorageError`` with the search's own line where it ends so.
    """
    name = search_name(dataset)
    run = settings.runs().child(name)
    with waited_for(run, "the search that another retraining has begun", settings.wait_seconds, say):
        pass  # a search that has lost its parent ends by itself
    options = options_of(settings, name, start)
    warm = _warm_start(settings)
    say(f"Searching for {settings.search}: python tune/search.py {' '.join(options + warm)}")
    status, last = _run(options + warm)
    if status == 2 and warm and "--warm-start" in last:
        say(f"{last}; searching without")
        status, last = _run(options)
    if status:
        raise {2: ConfigError}.get(status, StorageError)(
            f"the search {name} ended with status {status}: {last.removeprefix('error: ') or 'interrupted'}"
        )
    return best_of(read_json(run, "tradeoff.json"), settings, name)


def options_of(settings: RetrainSettings, name: str, start: TrainConfigs | None) -> list[str]:
    """The options of ``tune/search.py``, but for the warm start."""
    options = ["--dataset", str(settings.dataset), "--storage", settings.storage, "--name", name]
    options += ["--streaming", settings.streaming, "--time-budget", str(settings.search)]
    if start is not None:
        for field in ("epochs", "batch_size", "precision", "seed"):
            options += [f"--{field.replace('_', '-')}", str(getattr(start.train, field))]
    for field in ("max_params", "max_flops"):
        if (limit := getattr(settings, field)) is not None:
            options += [f"--{field.replace('_', '-')}", str(limit)]
    options += ["--cpus-per-trial", str(settings.cpus_per_worker)]
    if settings.gpus_per_worker:
        options += ["--gpus-per-trial", f"{settings.gpus_per_worker:g}"]
    return options + settings.search_words()


def best_of(tradeoff: dict[str, Any], settings: RetrainSettings, name: str) -> Found:
    """The fully trained model with the lowest validation bits/dim within the limits of size.

    Raises :class:`NothingFound`.
    """
    whole = [
        trial
        for trial in tradeoff["trials"]
        if trial["status"] == "complete"
        and trial["replicate_of"] is None
        and trial["val_bpd"] is not None
        and (settings.max_params is None or trial["params"] <= settings.max_params)
        and (settings.max_flops is None or trial["flops_per_image"] <= settings.max_flops)
    ]
    if not whole:
        raise NothingFound(f"the search {name} has trained no model within the limits to its end")
    best = min(whole, key=lambda trial: (trial["val_bpd"], trial["params"]))
    configs = TrainConfigs(ModelConfig.from_dict(best["config"]), TrainConfig.from_dict(best["train"]), None)
    return Found(configs, f"trial {best['id']} of the search {name}, the best of {len(whole)} on validation images")


def _warm_start(settings: RetrainSettings) -> list[str]:
    experiment = f"fvae/{settings.name}"
    try:
        known = finished_runs(experiment, tracking_uri_of(settings.runs()))
    except ConfigError:
        return []  # no training yet
    return ["--warm-start", f"mlflow:{experiment}"] if known else []


def _run(options: list[str]) -> tuple[int, str]:
    """Run the search; returns its exit status and its last line on standard error, which is passed through."""
    command = [sys.executable, "-c", _START, str(os.getpid()), *options]
    last: deque[str] = deque(maxlen=1)
    interrupted = False
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        while True:
            try:
                for line in process.stderr:
                    sys.stderr.write(line)
                    if line.strip():
                        last.append(line.strip())
                status = process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True  # and so was the search, which saves its trials first
                if in_a_hurry():  # by a signal to this process alone
                    process.terminate()
    if interrupted:
        raise KeyboardInterrupt
    return status, last[0] if last else ""
