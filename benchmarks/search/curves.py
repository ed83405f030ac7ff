"""The table of real learning curves, read: its rows, and how much of its true front a search has found."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fvae import ConfigError, ModelConfig
from fvae.config import FAMILIES
from fvae.likelihood import uniform_bits_per_dim
from tune.space import SearchSpace, suggestion_of
from tune.stats.pareto import Point, hypervolume, pareto_front

CURVES = Path(__file__).with_name("digits.parquet")
"""Written by :mod:`benchmarks.search.table`."""
SERIES = ("val_bpd", "train_bpd", "seconds", "sigma1", "sigma2", "val_bits")
"""Of each epoch, but for the last: the validation images' bits/dim with the weights that are kept."""
TARGETS = ("front", "map")
"""``front``: the one front over all families. ``map``: the three families' own fronts, their areas summed."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One trained configuration. All series are float32 arrays ``[epochs]``; a diverged one's are shorter."""

    id: str
    family: str
    source: str
    """``design`` (one of the sound designs that a search begins with) or ``random``."""
    params: int
    flops_per_image: int
    memory_bytes: int
    suggestion: Mapping[str, Any]
    """What Optuna knows it by."""
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    failure: str | None
    """Why the training diverged; None where it reached its last epoch."""
    val_bpd: np.ndarray
    """Bits/dim on the validation images."""
    train_bpd: np.ndarray
    seconds: np.ndarray
    """Processor seconds of an epoch, one thread."""
    sigma1: np.ndarray
    sigma2: np.ndarray
    val_bits: np.ndarray
    """Bits/dim of each validation image with the weights that training keeps ``[images]``."""
    replicate_of: str | None = None
    """Whose further seed it is."""

    @property
    def final(self) -> float:
        """Validation bits/dim of the weights that training keeps: the best epoch's. Only of what did not fail."""
        if self.failure is not None:
            raise ValueError(f"{self.id} diverged: it has no final value")
        return float(self.val_bpd.min())

    @property
    def point(self) -> Point:
        """``(log10 parameters, final bits/dim)``."""
        return math.log10(self.params), self.final


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """The whole table."""

    rows: tuple[Row, ...]
    bins: int
    """Grey levels of the images that the rows were trained on."""
    epochs: int
    """Of a full training."""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Data set, seed, machine: what the table says of itself."""
    replicates: tuple[Row, ...] = ()
    """Further seeds of some of the rows."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError("the table of curves has no rows: python -m benchmarks.search.table trains them")
        for row in self.rows:
            if row.failure is None and len(row.val_bpd) not in (0, self.epochs):
                raise ConfigError(f"{row.id}: {len(row.val_bpd)} epochs where the table's trainings have {self.epochs}")

    @classmethod
    def load(cls, path: Path = CURVES) -> Curves:
        """From the Parquet file, or from a folder of finished rows (``runs/.table``) while the table is in work."""
        if path.is_dir():
            records = [json.loads(file.read_text()) for file in sorted(path.glob("*.json"))]
            return cls._of(records, {})
        if not path.exists():
            raise ConfigError(f"no table of curves at {path}: python -m benchmarks.search.table writes it")
        table = pq.read_table(path)
        return cls._of(table.to_pylist(), json.loads((table.schema.metadata or {}).get(b"curves", b"{}")))

    @classmethod
    def _of(cls, records: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> Curves:
        every = [_row(record) for record in records]
        rows = tuple(row for row in every if row.replicate_of is None)
        replicates = tuple(row for row in every if row.replicate_of is not None)
        bins = metadata.get("bins") or max((row.model["bins"] for row in rows), default=256)
        epochs = max((int(row.train["epochs"]) for row in rows), default=0)
        return cls(rows=rows, bins=bins, epochs=epochs, metadata=metadata, replicates=replicates)

    def blind(self) -> Curves:
        """The same rows without what only training tells: what a search is given to choose from."""
        nothing = dict.fromkeys(SERIES, np.empty(0, np.float32))
        rows = tuple(dataclasses.replace(row, failure=None, **nothing) for row in self.rows)
        return dataclasses.replace(self, rows=rows, replicates=())

    def designs(self, count: int) -> list[int]:
        """Indices of ``count`` sound designs of each family, evenly spread from its smallest to its largest."""
        picked: list[int] = []
        for family in FAMILIES:
            own = [index for index, row in enumerate(self.rows) if row.family == family and row.source == "design"]
            own.sort(key=lambda index: self.rows[index].params)
            picked += dict.fromkeys(own[int((place + 0.5) / count * len(own))] for place in range(count) if own)
        return picked

    @functools.cached_property
    def reference(self) -> Point:
        """Of every hypervolume: the largest row's log10 parameters, and log2(bins), a uniform guess's bits/dim."""
        return math.log10(max(row.params for row in self.rows)), uniform_bits_per_dim(self.bins)

    @functools.cached_property
    def truth(self) -> dict[str, float]:
        """Each target's hypervolume over all rows that did not diverge, in decades × bits/dim."""
        found = Found(self.reference)
        for row in self.rows:
            if row.failure is None:
                found.add(row.family, row.point)
        return found.areas()

    def hypervolumes(self, rows: Iterable[int]) -> dict[str, float]:
        """Each target's hypervolume over complete rows, by their indices, in decades × bits/dim."""
        found = Found(self.reference)
        for index in rows:
            found.add(self.rows[index].family, self.rows[index].point)
        return found.areas()


class Found:
    """The fronts of what a search has completed so far; a new point costs what the fronts are long."""

    def __init__(self, reference: Point) -> None:
        self._reference = reference
        self._fronts: dict[str, list[Point]] = {name: [] for name in ("all", *FAMILIES)}
        self._areas = dict.fromkeys(self._fronts, 0.0)

    def add(self, family: str, point: Point) -> None:
        """One more complete row."""
        for name in ("all", family):
            points = [*self._fronts[name], point]
            self._fronts[name] = [points[index] for index in pareto_front(points)]
            self._areas[name] = hypervolume(self._fronts[name], self._reference)

    def areas(self) -> dict[str, float]:
        """Each target's hypervolume, in decades × bits/dim."""
        return {"front": self._areas["all"], "map": sum(self._areas[family] for family in FAMILIES)}


def _row(record: Mapping[str, Any]) -> Row:
    series = {name: np.array(record.get(name) or [], dtype=np.float32) for name in SERIES}  # as far as its version has
    for values in series.values():
        values.setflags(write=False)
    parts = {name: json.loads(record[name]) for name in ("model", "train")}
    # As today's space asks for it, whichever version's space the table was drawn from.
    model = ModelConfig.from_dict(parts["model"])
    suggestion = suggestion_of(model, parts["train"], table_space(model.image_shape, model.bins))
    known = ("id", "replicate_of", "family", "source", "params", "flops_per_image", "memory_bytes", "failure")
    return Row(**{name: record.get(name) for name in known}, suggestion=suggestion, **parts, **series)


@functools.cache
def table_space(shape: tuple[int, int, int], bins: int) -> SearchSpace:
    """The search's space, as wide as the scales that the table's rows were drawn from."""
    space = SearchSpace.for_images(shape, bins)
    return dataclasses.replace(space, sigma_bins=(0.01, 0.2 * bins), sigma2_bins=(0.01, 0.2 * bins))
