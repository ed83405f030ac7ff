"""Settings of an ingest: the options of ``python -m pipelines.ingest``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fvae.config import require, require_integer, require_seed
from pipelines.data.decode.conversion import Conversion
from pipelines.data.decode.value_levels import Levels
from pipelines.data.sources.splits.option import SplitOption
from pipelines.storage import is_remote

VAL_SHARE, TEST_SHARE = 0.1, 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Make a data set of images: Parquet shards and a manifest, in a folder or on S3.

    The same command again does nothing while the source is unchanged. A data set exists whole or not at all.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder or archive of image files, IDX, CIFAR, .npy, .npz, Parquet, 'digits', 'photos'; a path or s3://bucket/key."""
    dest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Where the data set goes: a folder or s3://bucket/prefix, empty or holding an earlier version of it."""
    name: str | None = None
    """Name of the data set, as in run names and MLflow experiments. Default: the source's."""
    size: int | None = None
    """Side in pixels: images are cropped to their central square and resized by area. Default: as they are."""
    channels: Literal[1, 3] | None = None
    """1 makes every image grey, 3 makes every image RGB. Default: RGB if any image is."""
    value_range: str | None = None
    """Values LOW:HIGH in the files that are black and white, such as '0:4095'. Default: those of the files' type."""
    bins: int | None = None
    """Levels of a pixel, 2 to 256. Without --value-range the values are the levels 0 to bins - 1 themselves.
    Default: 256, or 2 where every value is 0 or 1."""
    val: float = VAL_SHARE
    """Share of all images that becomes the validation split, where the source names no validation split."""
    test: float = TEST_SHARE
    """Share of all images that becomes the test split, where the source names no test split."""
    splits: str = "auto"
    """Splits of the source: 'auto' as its folders and files are named, 'none' cuts all anew, or folders such as
    'train=train2017,val=val2017', which leaves out all others."""
    seed: int = 0
    """Seed of the splits."""
    max_bad: str = "1%"
    """Files that cannot be used, as a share or a number: more of them are an error."""
    anonymous: bool = False
    """Read a source on s3:// without credentials, as the public buckets of others need it."""
    dry_run: bool = False
    """Print what would be made and write nothing."""
    processes: int | None = None
    """Processes that decode. Default: one per core."""

    def __post_init__(self) -> None:
        if self.size is not None:
            require_integer("--size", self.size, 1)
        if self.bins is not None:
            require_integer("--bins", self.bins, 2)
            require(self.bins <= 256, f"--bins={self.bins}: pixels are uint8, so at most 256")
        parse_range(self.value_range)
        require_seed("--seed", self.seed)
        if self.processes is not None:
            require_integer("--processes", self.processes, 1)
        for option, share in (("--val", self.val), ("--test", self.test)):
            require(0 < share < 1, f"{option}={share}: a share between 0 and 1, such as 0.1")
        require(self.val + self.test < 1, f"--val={self.val} --test={self.test}: nothing would be left to train on")
        require(self.name is None or self.name.strip() != "", "--name: empty")
        SplitOption(self.splits)
        bad_limit(self.max_bad, 100)

    def conversion(self) -> Conversion:
        """What happens to each image."""
        return Conversion(size=self.size, channels=self.channels, levels=self.levels())

    def levels(self) -> Levels:
        """Which values are black and white, and on how many levels."""
        low, high = parse_range(self.value_range) or (None, None)
        return Levels(low=low, high=high, bins=self.bins)

    def in_manifest(self) -> dict[str, Any]:
        """The settings on which the pixels and splits depend."""
        always = {"size": self.size, "channels": self.channels, "val": self.val, "test": self.test, "seed": self.seed}
        given = {"splits": self.splits if self.splits != "auto" else None, "value_range": self.value_range}
        return always | {name: value for name, value in (given | {"bins": self.bins}).items() if value is not None}


def parse_range(text: str | None) -> tuple[float, float] | None:
    """``0:4095`` as two numbers. Raises ``ConfigError``."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low = high = math.nan
    require(
        math.isfinite(low) and math.isfinite(high) and low < high,
        f"--value-range={text!r}: two numbers LOW:HIGH, such as 0:4095; LOW is black, and HIGH, which is larger, white",
    )
    return low, high


def bad_limit(text: str, files: int) -> int:
    """``1%`` or ``0.01`` of the files, or ``5`` files, as a number of files. Raises ``ConfigError``."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1.0
    share = number / 100 if text.endswith("%") else number
    if not text.endswith("%") and number >= 1 and number.is_integer():
        return int(number)
    require(0 <= share <= 1, f"--max-bad={text!r}: a share such as 1% or 0.01, or a number of files such as 5")
    return int(share * files)


def require_apart(settings: IngestSettings) -> None:
    """Raise ``ConfigError`` where the data set would be written into its own source."""
    if is_remote(settings.source) != is_remote(settings.dest):
        return
    if is_remote(settings.source):
        source, dest = settings.source.rstrip("/"), settings.dest.rstrip("/")
        inside = dest == source or dest.startswith(source + "/")
    else:
        source_path, dest_path = Path(settings.source).resolve(), Path(settings.dest).resolve()
        inside = source_path.is_dir() and dest_path.is_relative_to(source_path)
    require(not inside, f"{settings.dest}: lies inside the source ({settings.source}); give a place outside of it")
