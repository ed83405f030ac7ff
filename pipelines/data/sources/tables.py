"""Tables with a column of encoded images, as others write them: Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fvae.config import ConfigError, require
from fvae.data.manifest import MANIFEST
from pipelines.data.sources.base import LARGEST_FILE, LEFT_OUT, BadFile, ImageFile, Item, Source, digest, too_large
from pipelines.data.sources.splits.layout import Layout
from pipelines.data.sources.splits.option import SplitOption
from pipelines.data.sources.streams import OneFile
from pipelines.data.sources.table_files import Columns, encoded_images, label_of, open_table

SUFFIXES = (".parquet", ".arrow", ".feather")


class EncodedRows(Source):
    """Tables with a column of encoded images, or of lists of them."""

    def __init__(
        self, name: str, files: list[tuple[str, OneFile]], where: str, splits: SplitOption, notes: Sequence[str] = ()
    ) -> None:
        super().__init__(
            name, "Arrow files" if all(key.endswith(SUFFIXES[1:]) for key, _ in files) else "Parquet files"
        )
        self._where = where
        # A file is a folder of rows: its own name says the split as well as those of the folders around it.
        places = {key: key.rpartition(".")[0] or key for key, _ in files}
        layout = Layout(where, {place: key for key, place in places.items()}, splits, tables=True)
        self._splits = {key: layout.split_and_class(place)[0] for key, place in places.items()}
        self._files = [(key, file) for key, file in files if self._splits[key] != LEFT_OUT]
        self.origins = layout.origins
        self.notes = list(notes)
        self._rows: int | None = 0
        for _, file in self._files:
            with open_table(file) as table:
                if b"fvae.format" in (table.schema.metadata or {}):
                    what = "a shard of a data set"
                    what += "; give its folder" if file.where == where else f" without its {MANIFEST}; ingest it again"
                    raise ConfigError(f"{file.where}: {what}")
                columns = Columns(table, file.where)
                self.notes += [note for note in columns.notes if note not in self.notes]
                rows = table.count if not columns.lists else None
                self._rows = None if rows is None or self._rows is None else self._rows + rows
        require(self._rows != 0, f"{where}: no rows")

    def fingerprint(self) -> str:
        return digest(*(part for key, file in self._files for part in (key, file.fingerprint())))

    def count(self) -> int | None:
        return self._rows

    def items(self) -> Iterator[Item]:
        for key, file in self._files:
            row = 0
            with open_table(file) as table:
                columns = Columns(table, file.where)
                for batch in table.batches([columns.image] + ([columns.label] if columns.label else [])):
                    images = batch.column(columns.image)
                    labels = batch.column(columns.label).to_pylist() if columns.label else [None] * batch.num_rows
                    for contents, value in zip(encoded_images(images), labels, strict=True):
                        label = label_of(value, columns.names)
                        for number, content in enumerate(contents):
                            path = f"{key}: row {row}" + (f", image {number}" if columns.lists else "")
                            yield self._item(path, content, self._splits[key], label)
                        row += 1

    def _item(self, path: str, content: bytes | None, split: str | None, label: str | None) -> Item:
        if content is None:
            return BadFile(path, "no image in this row")
        if len(content) > LARGEST_FILE:
            return BadFile(path, too_large(len(content)))
        return ImageFile(path, content, split, label)
