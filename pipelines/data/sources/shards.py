"""A data set that ingest made, as a source: its manifest and its shards."""

from __future__ import annotations

from collections.abc import Iterator

from fvae.config import ConfigError, require
from fvae.data.manifest import MANIFEST, Manifest
from pipelines.data.sources.base import Item, Pixels, Source, digest
from pipelines.data.sources.files import Files


class Shards(Source):
    """A data set that was ingested before."""

    def __init__(self, name: str, files: Files) -> None:
        super().__init__(name, "Parquet data set")
        self._files = files
        with files.file(MANIFEST).open() as file:
            content = file.read()
        self._manifest = Manifest.from_json(content, f"{files.where}/{MANIFEST}")
        self.bins = self._manifest.bins

    def fingerprint(self) -> str:
        return digest(self._manifest.to_json())

    def count(self) -> int:
        return sum(self._manifest.counts.values())

    def items(self) -> Iterator[Item]:
        from fvae.data.shards import fetch_shard

        classes = (*self._manifest.classes, None)  # −1 is none
        for shard in self._manifest.shards:
            try:
                images, labels = fetch_shard(self._manifest, shard, self._fetch)
            except ConfigError as error:
                raise ConfigError(f"{self._files.where}: {error}") from error
            require(
                bool((labels < len(classes) - 1).all() and (labels >= -1).all()),
                f"{self._files.where}: {shard.key} has label {labels.max()}, but there are {len(classes) - 1} classes",
            )
            pixels = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
            yield Pixels(shard.key, pixels, shard.split, tuple(classes[label] for label in labels.tolist()))

    def _fetch(self, key: str) -> bytes:
        with self._files.file(key).open() as file:
            return file.read()


def is_data_set(files: Files) -> bool:
    """Whether the files are a data set of ours: a manifest, and shards beside it or none of anything else."""
    keys = {entry.key for entry in files.entries}
    return MANIFEST in keys and (len(keys) == 1 or any(key.endswith(".parquet") for key in keys if "/" not in key))
