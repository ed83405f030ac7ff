"""Parquet: data sets that were ingested before, and files of encoded images that others wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fvae.config import ConfigError, require
from fvae.manifest import MANIFEST, Manifest
from pipelines.sources.base import (
    LARGEST_FILE,
    BadFile,
    ImageFile,
    Item,
    Pixels,
    Source,
    digest,
    too_large,
)
from pipelines.sources.files import Files
from pipelines.sources.layout import LEFT_OUT, Layout, Splits
from pipelines.sources.streams import OneFile
from pipelines.storage import StorageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE_COLUMNS = ("image", "img", "pixels", "bytes")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
BATCH = 256
"""Rows in memory at a time."""


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
        from fvae.shards import fetch_shard

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


class EncodedRows(Source):
    """Parquet files with a column of encoded images, as others write them."""

    def __init__(self, name: str, files: list[tuple[str, OneFile]], where: str, splits: Splits) -> None:
        super().__init__(name, "Parquet files")
        self._where = where
        # A file is a folder of rows: its own name says the split as well as those of the folders around it.
        places = {key: key.rpartition(".")[0] or key for key, _ in files}
        layout = Layout(where, {place: key for key, place in places.items()}, splits)
        self._splits = {key: layout.place(place)[0] for key, place in places.items()}
        self._files = [(key, file) for key, file in files if self._splits[key] != LEFT_OUT]
        self.origins = layout.origins
        self._rows = 0
        for _, file in self._files:
            with _parquet(file) as opened:
                if b"fvae.format" in (opened.metadata.metadata or {}):
                    what = "a shard of a data set"
                    what += "; give its folder" if file.where == where else f" without its {MANIFEST}; ingest it again"
                    raise ConfigError(f"{file.where}: {what}")
                _columns(opened, file.where)
                self._rows += opened.metadata.num_rows
        require(self._rows > 0, f"{where}: no rows")

    def fingerprint(self) -> str:
        return digest(*(part for key, file in self._files for part in (key, file.fingerprint())))

    def count(self) -> int:
        return self._rows

    def items(self) -> Iterator[Item]:
        for key, file in self._files:
            row = 0
            with _parquet(file) as opened:
                column, label, names = _columns(opened, file.where)
                wanted = [column] if label is None else [column, label]
                for batch in opened.iter_batches(BATCH, columns=wanted, use_threads=False):
                    encoded = _encoded(batch.column(batch.schema.get_field_index(column)))
                    labels = [None] * batch.num_rows if label is None else batch.column(label).to_pylist()
                    for content, value in zip(encoded, labels, strict=True):
                        path = f"{key}: row {row}"
                        row += 1
                        if content is None:
                            yield BadFile(path, "no image in this row")
                        elif len(content) > LARGEST_FILE:
                            yield BadFile(path, too_large(len(content)))
                        else:
                            yield ImageFile(path, content, self._splits[key], _label(value, names))


@contextmanager
def _parquet(file: OneFile) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.open() as content:
        try:
            yield pq.ParquetFile(content, pre_buffer=False)
        except (StorageError, ConfigError):
            raise
        except (pa.ArrowException, OSError) as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"{file.where}: no whole Parquet file ({cause[:200]}); get it whole") from error


def _columns(file: pq.ParquetFile, where: str) -> tuple[str, str | None, list[str]]:
    """The column of images, that of labels where there is one, and the labels' names where the file has them."""
    import pyarrow.types as types

    schema = file.schema_arrow
    image = next(
        (name for name in IMAGE_COLUMNS if name in schema.names and _holds_bytes(schema.field(name).type)), None
    )
    if image is None:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise ConfigError(
            f"{where}: needs a column of encoded images (bytes) called {', '.join(IMAGE_COLUMNS)}; it has {found[:300]}"
        )
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if label is not None:
        kind = schema.field(label).type
        require(
            types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind),
            f"{where}: column {label} is {kind}; labels are whole numbers or texts",
        )
    return image, label, _class_names(schema, label)


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _class_names(schema: pa.Schema, label: str | None) -> list[str]:
    """Class names as Hugging Face's writer keeps them; none where it was another."""
    try:
        held: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = held["info"]["features"][label]["names"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _encoded(column: pa.Array) -> Iterator[bytes | None]:
    import pyarrow.types as types

    if types.is_struct(column.type):
        column = column.flatten()[column.type.get_field_index("bytes")]  # null where the struct is
    for value in column:
        yield value.as_py()


def _label(value: Any, names: list[str]) -> str | None:
    if value is None or value == -1:
        return None
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else str(value)
