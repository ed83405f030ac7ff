"""The figures of an evaluation, one reading after another: every image, k samples, noise of one seed.

What is done is kept as ``bits.parquet``: a row per image, a column per reading (``k64_noise0``), in bits/dim.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from fvae.config import ConfigError
from fvae.data.images import ImageSource, derived_seed, image_source
from fvae.evaluation import ALONE, NonFiniteError, evaluate
from fvae.model import Model
from fvae.workers import Workers
from pipelines.storage import CorruptError, Storage, StorageError

BITS = "bits.parquet"
_ABOUT = b"fvae"
"""Key of the file's metadata: JSON, whose readings these are and how long each took."""


class Reading(NamedTuple):
    """One measurement of a whole split."""

    k: int
    """Samples per image."""
    noise: int
    """Which of the seeds of noise, from 0."""

    @property
    def column(self) -> str:
        """Its name in ``bits.parquet``."""
        return f"k{self.k}_noise{self.noise}"

    def seed(self, seed: int, split: str) -> int:
        """Seed of its noise. A search of the same ``seed`` measures the test split with noise 0."""
        return derived_seed(seed, f"{split}/{self.k}/{self.noise}" if self.noise else f"{split}/{self.k}")


class Measured(NamedTuple):
    """A reading that is done."""

    reading: Reading
    bits: np.ndarray
    """Bits/dim of each image, float64 ``[N]``, in stored order."""
    seconds: float
    """How long it took."""


def measure(
    model: Model,
    images: np.ndarray | Tensor | ImageSource,
    readings: Sequence[Reading],
    *,
    seed: int,
    split: str,
    workers: Workers = ALONE,
    advance: Callable[[int], None],
) -> Iterator[Measured]:
    """Measure ``model`` on ``images``, reading by reading; of several workers each yields all of them.

    ``advance`` is called with the number of samples (images × k) that this worker has done since its last call. Raises
    ``NonFiniteError``.
    """
    source = image_source(images)
    for reading in readings:
        started = time.monotonic()

        def count(images_done: int, k: int = reading.k) -> None:
            advance(images_done * k)

        try:
            bits = evaluate(model, source, k=reading.k, seed=reading.seed(seed, split), workers=workers, advance=count)
        except NonFiniteError as error:
            raise NonFiniteError(f"k = {reading.k}, noise {reading.noise}: {error}") from error
        yield Measured(reading, bits.numpy(), time.monotonic() - started)


class KeptReadings:
    """The finished readings of one evaluation in its storage: each is there as soon as it is done."""

    def __init__(self, storage: Storage, identity: Mapping[str, Any], guard: Callable[[], None] = lambda: None) -> None:
        """Load the readings that are there.

        ``guard`` is called before each write; it raises where this process may no longer write there.
        ``identity`` is JSON-ready: what makes figures comparable (weights, data, split, seed, device). Raises
        ``ConfigError`` where the readings there are of another identity. A damaged file counts as none.
        """
        self._storage, self._identity, self._guard = storage, dict(identity), guard
        self._done: dict[str, Measured] = {}
        try:
            table = pq.read_table(io.BytesIO(storage.read(BITS)), page_checksum_verification=True)
            about = json.loads(table.schema.metadata[_ABOUT])
        except (FileNotFoundError, CorruptError):
            return
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{storage.uri}/{BITS}: not an evaluation's; give another --output") from error
        except (pa.ArrowException, ValueError):
            return
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            return  # Arrow's, about a page's checksum
        _require_same(self._identity, about["identity"], storage.uri)
        for name, (k, noise, seconds) in about["readings"].items():
            self._done[name] = Measured(Reading(k, noise), table[name].to_numpy(), seconds)

    def get(self, reading: Reading) -> Measured | None:
        """The reading, if it is done."""
        return self._done.get(reading.column)

    def add(self, measured: Measured) -> None:
        """Keep a reading: ``bits.parquet`` is written anew, whole or not at all."""
        self._done[measured.reading.column] = measured
        readings = {name: (*done.reading, done.seconds) for name, done in sorted(self._done.items())}
        about = json.dumps({"identity": self._identity, "readings": readings})
        table = pa.table({name: self._done[name].bits for name in readings})
        content = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({_ABOUT: about}), content, write_page_checksum=True)
        self._guard()
        self._storage.write(BITS, content.getvalue())


def _require_same(mine: Mapping[str, Any], theirs: Mapping[str, Any], uri: str) -> None:
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise ConfigError(
                f"--output={uri}: holds another evaluation ({key} {theirs.get(key)}, not {value}); give another place, "
                "or --again to replace it"
            )
