"""What a printed command runs, once a shell has read it: a command of the product, or another program."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipelines import schedule
from pipelines.cli import command_line
from pipelines.training.configs import read_tables

SETTINGS = {
    "pipelines.cluster.roles": "RolesSettings",
    "pipelines.evaluate": "EvaluateSettings",
    "pipelines.ingest": "IngestSettings",
    "pipelines.retrain": "RetrainSettings",
    "pipelines.schedule": "ScheduleSettings",
    "pipelines.services.__main__": "Command",
    "pipelines.train": "TrainSettings",
    "pipelines.ui": "UISettings",
    "tune.search": "SearchSettings",
}
"""The commands of the product: their modules, and the class of each one's options there."""


class Product(NamedTuple):
    """A command of the product."""

    main: Callable[[Any], int]
    """What does it."""
    settings: type[Any]
    """The class of its options."""
    options: tuple[str, ...]
    """Its options."""
    of_the_job: tuple[str, ...] = ()
    """What follows ``--`` in ``pipelines.schedule add``: options of ``pipelines.retrain``."""

    def parse(self) -> Any:
        """Its settings. Raises ``ConfigError`` for an option that it, or its job, does not know."""
        if self.of_the_job:
            product_of("pipelines.retrain", self.of_the_job).parse()
        arguments = sys.argv
        sys.argv = ["command", *self.options]
        try:
            return command_line.parse(self.settings)
        finally:
            sys.argv = arguments


def product_of(module: str, options: tuple[str, ...]) -> Product:
    """The command that a module of the product is. Raises ``KeyError`` for another module."""
    name = "pipelines.services.__main__" if module == "pipelines.services" else module
    class_ = SETTINGS[name]
    home = importlib.import_module(name)
    if module != "pipelines.schedule":
        return Product(home.main, getattr(home, class_), options)
    own, after = schedule.split_arguments(list(options))
    return Product(lambda settings: schedule.main(settings, after), getattr(home, class_), tuple(own), after or ())


def product(words: list[str]) -> Product | None:
    """The command of the product in these words, by itself or as what another program is to run."""
    for place, word in enumerate(words):
        if word == "python":
            match words[place + 1 :]:
                case ["-m", "pytest" | "pip", *_]:
                    return None
                case ["-m", module, *options]:
                    return product_of(module, tuple(options))
                case [script, *options]:
                    return product_of(script.removesuffix(".py").replace("/", "."), tuple(options))
    return None


def check(words: list[str], clone: Path) -> None:
    """Raise for what cannot work: options that the command does not know, files that are not there or not readable."""
    for word in words[1:]:
        if re.match(r"(fvae|pipelines|tune|tests|benchmarks|docs|configs)/", word) or re.search(r"\.ya?ml$", word):
            assert (clone / word).exists(), f"{word}: there is no such file"
        if word.endswith(".toml"):
            read_tables(clone / word)
        if re.search(r"\.ya?ml$", word):
            yaml.safe_load((clone / word).read_text())
    if found := product(words):
        found.parse()
    if words[0] in ("ray", "mlflow"):
        _check_click(words)
    if words[0] == "curl":
        json.loads(words[words.index("-d") + 1])


def _check_click(words: list[str]) -> None:
    """Ask for the help of a program of the package click: an unknown option or command is an error all the same."""
    with warnings.catch_warnings(action="ignore"):  # of what Ray's commands import
        program = importlib.import_module("ray.scripts.scripts" if words[0] == "ray" else "mlflow.cli").cli
    own = words[1 : words.index("--")] if "--" in words else words[1:]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            program.main([*own, "--help"])
        except SystemExit as exit_:
            assert exit_.code in (0, None), shown.getvalue()
