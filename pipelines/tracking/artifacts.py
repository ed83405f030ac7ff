"""Upload of files and folders, local or on S3, to the artifact store of an MLflow run."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipelines.storage import Storage, open_storage
from pipelines.storage.local_copies import read_from

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Where one of these is set, MLflow has settings of its own for its store: then MLflow writes there.
_MLFLOWS_OWN_S3 = ("MLFLOW_S3_ENDPOINT_URL", "MLFLOW_S3_UPLOAD_EXTRA_ARGS")


@dataclass(frozen=True)
class Artifact:
    """A file, or a folder with all below it."""

    storage: Storage
    """Where it lies."""
    key: str
    """Its key there; for a folder, the prefix without the ``/`` at its end."""

    @property
    def name(self) -> str:
        """Its name in MLflow: the last part of the key."""
        return self.key.rpartition("/")[2]

    def stamp(self) -> str:
        """16 hex digits that change when the file, or any file of the folder, does.

        Raises ``FileNotFoundError`` where there is nothing, ``StorageError`` where the store does not answer.
        """
        folder = self.storage.local_path
        stats = _remote_stats(self.storage, self.key) if folder is None else _local_stats(folder / self.key)
        return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def log_artifact(client: MlflowClient, run_id: str, artifact_uri: str, artifact: Artifact) -> None:
    """Write ``artifact`` into a run's artifacts, over what has its name there.

    To a folder or to S3 it goes as everything else does: whole or not at all, with the same retries and checksums.
    Through a server, MLflow writes it.

    Args:
        client: the client of the run's tracking server or database.
        run_id: the run.
        artifact_uri: the run's ``info.artifact_uri``.
        artifact: a file or a folder. ``FileNotFoundError`` where it is missing.
    """
    with read_from(artifact.storage, artifact.key) as path:
        if place := reachable(artifact_uri):
            place.upload(path, artifact.name)
        else:
            client.log_artifact(run_id, str(path))


def is_missing(artifact_uri: str, artifact: Artifact) -> bool:
    """Whether a run's artifacts in a folder lack what was uploaded before: the folder was copied without them.

    False for artifacts elsewhere, which are not looked up.
    """
    place = reachable(artifact_uri)
    folder = place.local_path if place else None
    return folder is not None and not (folder / artifact.name).exists()


def mlflow_writes_s3() -> bool:
    """Whether MLflow has settings of its own for S3 in the environment; its artifacts are then its own to write."""
    return any(os.environ.get(name) for name in _MLFLOWS_OWN_S3)


def reachable(artifact_uri: str) -> Storage | None:
    """A run's artifacts as a storage, where this process reaches them without MLflow."""
    parts = urlsplit(artifact_uri)
    if parts.scheme in {"", "file"}:
        return open_storage(unquote(parts.path))
    return open_storage(artifact_uri) if parts.scheme == "s3" and not mlflow_writes_s3() else None


def _local_stats(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _remote_stats(storage: Storage, key: str) -> list[tuple[str, int, str]]:
    with contextlib.suppress(FileNotFoundError):
        info = storage.info(key)
        return [(info.key, info.size, info.version)]
    found = [(info.key, info.size, info.version) for info in storage.list(key)]
    if not found:
        raise FileNotFoundError(f"{storage.uri}/{key}: not there")
    return found
