"""Any set of images to a data set that laptops and clusters read alike: Parquet shards and a manifest.

    python -m pipelines.ingest photos/ data/photos --size 32       # a folder, archive, IDX, CIFAR, NumPy, Parquet
    python -m pipelines.ingest cifar10.tar.gz s3://bucket/cifar10  # to S3, without unpacking
    python -m pipelines.ingest photos/ data/photos --dry-run       # what would be made; nothing is written
    python tune/search.py --dataset s3://bucket/cifar10

What is read, what happens to an image, and the format of the data set: docs/datasets.md.
"""

from __future__ import annotations

from pipelines.cli import command_line
from pipelines.cli.progress import Steps, WarningLines
from pipelines.cli.terminal import make_console, without_controls
from pipelines.data.ingest import ingest, rehearse, summary
from pipelines.data.settings import IngestSettings


def main(settings: IngestSettings) -> int:
    """Ingest, and say what was done. Returns the exit status."""
    console = make_console()

    def say(line: str) -> None:
        console.print(without_controls(line), highlight=False, markup=False, soft_wrap=True)

    with WarningLines(console):
        if settings.dry_run:
            rehearse(settings, say, Steps(console))
            return 0
        manifest = ingest(settings, say, Steps(console))
    for line in summary(settings, manifest):
        say(line)
    return 0


if __name__ == "__main__":
    command_line.run(main, IngestSettings)
