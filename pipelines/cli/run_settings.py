"""Options of every command that makes a run: the data set, the run's name and its storage."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from fvae.config import ConfigError, require
from pipelines.storage import Storage, open_storage

Streaming = Literal["auto", "always", "never"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Options of a run. Raises ``ConfigError`` for a name or a storage location that cannot be one."""

    dataset: str = "digits"
    """'digits' or 'photos' (embedded); a folder, archive or file of images; a data set that
    `python -m pipelines.ingest` made. A path of this machine or s3://bucket/prefix."""
    streaming: Streaming = "auto"
    """Hold the images in memory ('never'), read them from the data set's files as they are needed ('always'), or
    hold them where they fit ('auto')."""
    name: str | None = None
    """Name of the run; its results are in STORAGE/NAME."""
    storage: str = "runs"
    """Storage of all runs: a folder (on a cluster, one that all machines share) or s3://bucket/prefix."""
    dry_run: bool = False
    """Print what would be done, and where RAY_ADDRESS is a job server's URL every file that would be sent
    there; do nothing."""

    def __post_init__(self) -> None:
        require(self.dataset != "", "--dataset: empty; give 'digits', 'photos', a path or an s3:// URI")
        require(
            self.name is None or re.fullmatch(r"[\w][\w.-]*", self.name) is not None,
            f"--name={self.name!r}: letters, digits, '_', '-' and '.' only",
        )
        require(
            not _reserved(self.name or ""),
            f"--name={self.name}: reserved for MLflow's files beside the runs; give another name",
        )
        self.all_runs()

    def all_runs(self) -> Storage:
        """The storage of all runs. Raises ``ConfigError`` for a location that cannot be one."""
        return open_runs(self.storage)


def open_runs(location: str) -> Storage:
    """The storage of all runs. Raises ``ConfigError``, which names ``--storage``, for a location that cannot be one."""
    require(location != "", "--storage: empty; give a folder or s3://bucket/prefix")
    try:
        return open_storage(location)
    except ConfigError as error:
        raise ConfigError(f"--storage: {error}") from error


def as_run_name(dataset_name: str) -> str:
    """A run's name made from a data set's name."""
    name = re.sub(r"[^\w.-]|^[.-]", "-", dataset_name)
    return f"{name}-images" if _reserved(name) else name


def _reserved(name: str) -> bool:
    """Whether a file beside the runs has the name: MLflow's artifacts, its database, copies of remote databases."""
    return name.lower() in {"mlartifacts", "s3"} or name.lower().startswith("mlflow.db")
