"""Settings of a search: the options of ``python tune/search.py``."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal, get_args

from fvae.config import (
    FAMILIES,
    Family,
    Likelihood,
    require,
    require_choice,
    require_integer,
    require_positive,
    require_seed,
)
from fvae.train_config import Precision
from pipelines.cli.optional_fields import without_default as _unset
from pipelines.cli.quantities import parse_bytes, parse_duration
from pipelines.cli.run_settings import RunSettings, as_run_name
from pipelines.storage import Storage

Sampler = Literal["front", "tpe", "nsga2", "gp", "random"]
Goal = Literal["map", "front", "decide"]

TRIALS = 48
"""Trials of a search that is given no budget at all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings(RunSettings):
    """Search VAE, flow and f-VAE on a set of images, and draw the map of parameters against bits/dim.

    The same command again resumes an unfinished search, shows a finished one, and with a larger budget extends it.
    Of several budgets (--trials, --time-budget, --gpu-hours, --patience) the first that is used up ends the search.
    """

    name: Annotated[str | None, _unset("NAME")] = None
    """Name of the run; its results lie in STORAGE/NAME. Default: the data set's name."""
    trials: Annotated[int | None, _unset("N")] = None
    """Models to train, the families' shares being equal. Default: 48; no limit where another budget is given."""
    epochs: int = 40
    """Passes over the training images that every complete trial gets."""
    time_budget: Annotated[str | None, _unset("TIME")] = None
    """Time for training, such as 2h, 90m or 1h30m, over all sessions of the search.
    Trials that still run at the end are paused, and a larger budget goes on with them."""
    gpu_hours: Annotated[float | None, _unset("HOURS")] = None
    """Hours of GPUs that all trials together may train for; without GPUs, of cores."""
    patience: Annotated[int | None, _unset("N")] = None
    """Start no more trials once so many in a row have ended without moving a family's front, or with --goal front the
    one front. It has moved when its hypervolume has grown by a thousandth."""
    families: tuple[Family, ...] = ("fvae", "flow", "vae")
    """Families to search."""
    likelihoods: tuple[Likelihood, ...] = get_args(Likelihood)
    """Likelihoods of VAE and f-VAE to search: 'gaussian' is the paper's, whose bits/dim on saturated pixels are far
    higher; with both, a family's front shows the better one."""
    sampler: Sampler = "front"
    """What proposes models: 'front' is this project's own, which seeks the fronts; the others are Optuna's."""
    goal: Goal = "map"
    """'map': a front for each family, their shares being equal, as the verdict needs. 'front': one front, for which the
    families compete: the best models of every size, whatever they are. 'decide': like 'map' until every family has had
    its first models; then f-VAEs and flows of the sizes at which the verdict is open. Both need the sampler 'front'."""
    max_params: Annotated[int | None, _unset("N")] = None
    """Train no model with more parameters."""
    max_flops: Annotated[float | None, _unset("N")] = None
    """Train no model that takes more FLOPs for one image (forward, 2 per multiply-add)."""
    max_memory: Annotated[str | None, _unset("SIZE")] = None
    """Train no model whose training needs more, such as 2GiB: weights, gradients, optimizer and activations."""
    seeds: int = 1
    """Train the fronts' models with so many seeds in all, for error bars on the map. Beyond --trials."""
    warm_start: Annotated[str | None, _unset("SEARCH")] = None
    """Learn from an earlier search, also of other images.
    Its NAME in STORAGE, the folder or s3:// URI of its run, or mlflow:EXPERIMENT."""
    batch_size: int = 64
    """Images per training step."""
    seed: int = 0
    """Seeds proposals, weights, order and noise."""
    cpus_per_trial: int = 1
    """Cores (and torch threads) of each trial; of each worker where a trial has several."""
    gpus_per_trial: float | Literal["auto"] = 0.0
    """GPUs of each trial; a fraction shares one, and 'auto' takes the fraction that the model's memory needs. Where a
    trial has several workers: of each, whole ones."""
    workers_per_trial: int = 1
    """Processes that train each trial together, on the machines of a cluster where one has no room for all: for models
    too large for one device."""
    concurrent: Annotated[int | None, _unset("N")] = None
    """Trials at a time, and at the end readings of the test split. Default: as many as the machine or cluster has room
    for."""
    precision: Precision = "float32"
    """'bf16' runs the networks under autocast; likelihoods stay in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "seeds", "cpus_per_trial", "workers_per_trial"):
            require_integer(_option(name), getattr(self, name), 1)
        for name in ("trials", "patience", "max_params", "concurrent"):
            if getattr(self, name) is not None:
                require_integer(_option(name), getattr(self, name), 1)
        for name in ("gpu_hours", "max_flops"):
            if getattr(self, name) is not None:
                require_positive(_option(name), getattr(self, name))
        require_seed("--seed", self.seed)
        require_choice("--sampler", self.sampler, get_args(Sampler))
        require_choice("--goal", self.goal, get_args(Goal))
        require(
            self.goal == "map" or self.sampler == "front",
            f"--goal={self.goal}: --sampler {self.sampler} does not use sizes; give --sampler front",
        )
        require(
            self.goal != "decide" or {"fvae", "flow"} <= set(self.families),
            f"--goal=decide: the verdict compares f-VAEs with flows, and --families names {', '.join(self.families)}; "
            "give both, or --goal map",
        )
        require(self.warm_start != "", "--warm-start: empty; give a search's name, its folder or mlflow:EXPERIMENT")
        self._require_gpus()
        for option, chosen, choices in (
            ("--families", self.families, FAMILIES),
            ("--likelihoods", self.likelihoods, get_args(Likelihood)),
        ):
            require(len(chosen) > 0, f"{option}: name at least one of " + ", ".join(choices))
            for each in chosen:
                require_choice(option, each, choices)
            require(len(set(chosen)) == len(chosen), f"{option}: each at most once")
        if self.time_budget is not None:
            parse_duration("--time-budget", self.time_budget)
        if self.max_memory is not None:
            parse_bytes("--max-memory", self.max_memory)

    def _require_gpus(self) -> None:
        gpus = self.gpus_per_trial
        if gpus != "auto":
            require(math.isfinite(gpus) and gpus >= 0, f"--gpus-per-trial={gpus}: must be at least 0, or 'auto'")
            require(gpus <= 1 or gpus == int(gpus), f"--gpus-per-trial={gpus}: above 1, give a whole number")
        require(
            self.workers_per_trial == 1 or (gpus != "auto" and gpus == int(gpus)),
            f"--gpus-per-trial={gpus}: workers share no GPU; give a whole number, or --workers-per-trial 1",
        )

    @property
    def max_trials(self) -> int | None:
        """Trials to start at most, seeds of the same model counted once; None: other budgets end the search."""
        if self.trials is None and (self.time_budget, self.gpu_hours, self.patience) == (None, None, None):
            return TRIALS
        return self.trials

    @property
    def time_budget_seconds(self) -> float | None:
        """``--time-budget`` in seconds."""
        return None if self.time_budget is None else parse_duration("--time-budget", self.time_budget)

    @property
    def max_memory_bytes(self) -> int | None:
        """``--max-memory`` in bytes."""
        return None if self.max_memory is None else parse_bytes("--max-memory", self.max_memory)

    @property
    def device(self) -> str:
        """Device on which trials train: ``cpu`` or ``cuda``."""
        return "cuda" if self.gpus_per_trial else "cpu"

    def options_to_decide(self) -> list[str] | None:
        """The words of a command that goes on with this search where the verdict is open, but for its budget; None
        where it does not search both families that the verdict compares."""
        if not {"fvae", "flow"} <= set(self.families):
            return None
        goal: Goal = "decide" if self.sampler == "front" else self.goal
        changed = dataclasses.replace(self, trials=None, time_budget=None, gpu_hours=None, patience=None, goal=goal)
        words = []
        for field in dataclasses.fields(changed):
            value = getattr(changed, field.name)
            if value != field.default:
                words += [_option(field.name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        return words

    def run_name(self, dataset_name: str) -> str:
        """The run's name."""
        return self.name or as_run_name(dataset_name) or "images"

    def run_storage(self, dataset_name: str) -> Storage:
        """Storage of the run's files."""
        return self.all_runs().child(self.run_name(dataset_name))


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
