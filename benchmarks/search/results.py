"""What the replayed searches came to, kept as one Parquet file: tables and pictures are made from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.search.bound import fewest_epochs
from benchmarks.search.curves import TARGETS, Curves
from benchmarks.search.replay import Trace

SHARES = (0.95, 0.99)
"""Of each target's true hypervolume: what searches are timed to."""
SCHEMA = pa.schema(
    {
        "method": pa.dictionary(pa.int32(), pa.string()),
        "seed": pa.int32(),
        "epochs": pa.int32(),
        "seconds": pa.float32(),
        **{target: pa.float64() for target in TARGETS},
    }
)
"""A row for each step of a search at which it found something; its last one too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What results must share to be compared."""

    table: str
    """Digest of the learning curves."""
    rows: int
    table_epochs: int
    """Of all rows together, each fully trained."""
    workers: int
    seeds: int
    fewest: Mapping[str, int]
    """Epochs of the fewest full trainings that reach each goal: what a search could do that knew them beforehand."""

    @classmethod
    def of(cls, curves: Curves, *, workers: int, seeds: int) -> Conditions:
        """For searches on this table."""
        digest = hashlib.sha256()
        for row in curves.rows:
            digest.update(f"{row.id} {row.params} {row.failure}".encode())
            digest.update(row.val_bpd.tobytes() + row.seconds.tobytes())
        trained = sum(len(row.val_bpd) for row in curves.rows)
        return cls(
            table=digest.hexdigest()[:16],
            rows=len(curves.rows),
            table_epochs=trained,
            workers=workers,
            seeds=seeds,
            fewest={
                goal(target, share): fewest_epochs(curves, target, share) for target in TARGETS for share in SHARES
            },
        )


def goal(target: str, share: float) -> str:
    """A target and its share by one name."""
    return f"{target} {share:.0%}"


Traces = Mapping[str, Sequence[Trace]]
"""Of each method, one for each seed."""


def write_results(file: Path, conditions: Conditions, traces: Traces) -> None:
    """Replace the file."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in SCHEMA.names}
    for method, seeds in traces.items():
        for seed, trace in enumerate(seeds):
            kept = _growth(trace)
            columns["method"].append(np.full(len(kept), method))
            columns["seed"].append(np.full(len(kept), seed))
            columns["epochs"].append(trace.epochs[kept])
            columns["seconds"].append(trace.seconds[kept])
            for target in TARGETS:
                columns[target].append(trace.shares[target][kept])
    arrays = [pa.array(np.concatenate(columns[field.name])).cast(field.type) for field in SCHEMA]
    metadata = {"conditions": json.dumps(dataclasses.asdict(conditions))}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, schema=SCHEMA.with_metadata(metadata)), file, compression="zstd")


def read_results(file: Path) -> tuple[Conditions, dict[str, list[Trace]]]:
    """The conditions, and of each method its traces by seed: only the steps at which they found something."""
    table = pq.read_table(file)
    conditions = Conditions(**json.loads(table.schema.metadata[b"conditions"]))
    columns = {name: table[name].to_numpy() for name in SCHEMA.names if name != "method"}
    methods = np.array(table["method"].to_pylist())
    traces: dict[str, list[Trace]] = {}
    for method in dict.fromkeys(methods.tolist()):
        for seed in range(conditions.seeds):
            mine = (methods == method) & (columns["seed"] == seed)
            epochs = columns["epochs"][mine]
            trace = Trace(
                epochs=epochs,
                seconds=columns["seconds"][mine].astype(float),
                shares={target: columns[target][mine] for target in TARGETS},
                total_epochs=int(epochs[-1]) if len(epochs) else 0,
                rows=(),
            )
            traces.setdefault(method, []).append(trace)
    return conditions, traces


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Of values that may be infinite: always one of them, never one between."""
    lower, middle, upper = np.quantile(list(values), (0.25, 0.5, 0.75), method="inverted_cdf")
    return float(lower), float(middle), float(upper)


def _growth(trace: Trace) -> np.ndarray:
    """Indices of the steps at which a share grew, and of the last one."""
    grew = np.zeros(len(trace.epochs), dtype=bool)
    for shares in trace.shares.values():
        grew |= np.diff(shares, prepend=0.0) > 0
    grew[-1:] = True
    return np.flatnonzero(grew)
