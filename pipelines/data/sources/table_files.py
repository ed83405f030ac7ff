"""One Parquet or Arrow file: its batches of rows, its column of encoded images and its labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fvae.config import ConfigError
from pipelines.data.sources.file_names import is_image_content
from pipelines.data.sources.streams import OneFile
from pipelines.storage import StorageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE_COLUMNS = ("image", "img", "pixels", "bytes")
_MORE_COLUMNS = ("images", "jpg", "jpeg", "png", "webp", "image_bytes", "img_bytes", "picture", "photo", "content")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")
BATCH = 256
"""Rows in memory at a time."""


class Table:
    """A Parquet file, an Arrow file or a stream of Arrow's record batches."""

    def __init__(self, held: pq.ParquetFile | pa.RecordBatchReader | pa.ipc.RecordBatchFileReader) -> None:
        self._held: Any = held
        self.is_parquet = hasattr(held, "iter_batches")
        self.schema: pa.Schema = held.schema_arrow if self.is_parquet else held.schema
        self.count: int | None = held.metadata.num_rows if self.is_parquet else None

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns, some rows at a time. Only a Parquet file can be read twice."""
        if self.is_parquet:
            yield from self._held.iter_batches(BATCH, columns=list(columns), use_threads=False)
            return
        held = self._held
        readable: Iterable[pa.RecordBatch] = (
            (held.get_batch(number) for number in range(held.num_record_batches))
            if hasattr(held, "num_record_batches")
            else held
        )
        for batch in readable:
            for start in range(0, batch.num_rows, BATCH):
                yield batch.select(list(columns)).slice(start, BATCH)


@contextmanager
def open_table(file: OneFile) -> Iterator[Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.open() as content:
        head = content.read(6)
        content.seek(0)
        kind = "Parquet" if head.startswith(b"PAR1") or file.where.endswith(".parquet") else "Arrow"
        try:
            if kind == "Parquet":
                yield Table(pq.ParquetFile(content, pre_buffer=False))
            else:
                yield Table(pa.ipc.open_file(content) if head == b"ARROW1" else pa.ipc.open_stream(content))
        except (StorageError, ConfigError):
            raise
        except (pa.ArrowException, OSError) as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"{file.where}: not a complete {kind} file ({cause[:200]}); get a complete copy"
            ) from error


class Columns:
    """The column of images, and that of labels where there is one that fits. Raises ``ConfigError``."""

    def __init__(self, table: Table, where: str) -> None:
        import pyarrow.types as types

        schema = table.schema
        self.notes: list[str] = []
        self.image = _image_column(table, where)
        self.lists = _is_list(schema.field(self.image).type)
        label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
        if label is not None:
            kind = schema.field(label).type
            text = types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)
            exact = types.is_integer(kind) or types.is_boolean(kind) or text
            if not exact and not (types.is_floating(kind) and _are_whole(table, label)):
                self.notes.append(f"column {label} left out: {kind}, not one whole number or text for each image")
                label = None
        self.label = label
        self.names = _class_names(schema, label)


def holds_images(file: OneFile) -> bool:
    """Whether a table has a column of encoded images."""
    with open_table(file) as table:
        try:
            return bool(Columns(table, file.where).image)
        except ConfigError:
            return False


def _image_column(table: Table, where: str) -> str:
    schema = table.schema
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    for name in (*IMAGE_COLUMNS, *_MORE_COLUMNS):
        if name in holding:
            return name
    if len(holding) == 1 and table.is_parquet:  # whatever its name: by what it holds
        first = next(table.batches(holding), None)
        rows = encoded_images(first.column(holding[0])) if first else iter(())
        found = next((content for contents in rows for content in contents if content), b"")
        if is_image_content(found):
            return holding[0]
    found_columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    raise ConfigError(
        f"{where}: needs a column of encoded images (bytes) called {', '.join(IMAGE_COLUMNS)}; it has "
        f"{found_columns[:300]}"
    )


def _are_whole(table: Table, column: str) -> bool:
    """Whether the floats of a column are whole numbers, or nothing."""
    if not table.is_parquet:
        return False
    values = (value for batch in table.batches([column]) for value in batch.column(column).to_pylist())
    return all(value is None or value != value or float(value).is_integer() for value in values)


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    if _is_list(kind):
        return _holds_bytes(kind.value_type)
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


def encoded_images(column: pa.Array) -> Iterator[list[bytes | None]]:
    """The images of each row: one, or those of a list."""
    import pyarrow.types as types

    if _is_list(column.type):
        for row in column:
            yield [_content(value) for value in row.as_py() or []]
        return
    if types.is_struct(column.type):
        column = column.flatten()[column.type.get_field_index("bytes")]  # null where the struct is
    for value in column:
        yield [value.as_py()]


def _content(value: Any) -> bytes | None:
    found = value.get("bytes") if isinstance(value, dict) else value
    return found if isinstance(found, bytes) else None


def label_of(value: Any, names: list[str]) -> str | None:
    if value is None or value != value or (value == -1 and value is not True):
        return None
    if isinstance(value, float):
        value = int(value)
    named = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names)
    return names[value] if named else str(value)
