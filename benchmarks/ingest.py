"""Ingest of an archive of images against the plainest loop: images per second, peak memory, bytes per image.

    python benchmarks/ingest.py cifar10.tar.gz                          # to a temporary folder
    python benchmarks/ingest.py cifar10.tar.gz --dest s3://bucket/name  # to S3 (AWS_ENDPOINT_URL honoured)

The plainest loop is tarfile, Pillow and one pyarrow table, written with pyarrow's defaults. Both run as processes of
their own, in turn, as often as --rounds says; memory is the sum of proportional set sizes over a process and its
children, sampled ten times a second.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from fvae.data.manifest import MANIFEST, Manifest
from pipelines.data.writer import check_destination
from pipelines.storage import open_storage

PLAIN = """
import io, sys, tarfile
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
paths, pixels = [], []
with tarfile.open(sys.argv[1]) as archive:
    for member in archive:
        if member.isfile():
            image = Image.open(io.BytesIO(archive.extractfile(member).read()))
            paths.append(member.name)
            pixels.append(np.asarray(image).tobytes())
pq.write_table(pa.table({"path": paths, "pixels": pixels}), sys.argv[2])
print(len(paths))
"""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def memory_mib(root: int) -> float:
    """PSS of a process and its descendants, MiB."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(folder.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += parents.get(process, [])
        try:
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        except OSError:
            continue
    return total / 1024


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of a command, its start included."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_mib(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … ended with status {process.returncode}")
    return time.perf_counter() - started, peak


def png_bytes(source: str, count: int = 2000) -> float:
    """Bytes per image of the archive's first images as optimised PNG."""
    from PIL import Image

    sizes = []
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile() and member.name.lower().endswith(SUFFIXES):
                content = archive.extractfile(member)
                assert content is not None
                png = io.BytesIO()
                Image.fromarray(np.asarray(Image.open(content))).save(png, "PNG", optimize=True)
                sizes.append(png.tell())
            if len(sizes) == count:
                break
    return statistics.mean(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a tar archive of images")
    parser.add_argument("--dest", help="s3://bucket/prefix; default: a temporary folder")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    plain, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        dest = options.dest or f"{folder}/dataset"
        storage = open_storage(dest)
        for _ in range(options.rounds):
            plain.append(measure([sys.executable, "-c", PLAIN, options.source, f"{folder}/plain.parquet"]))
            check_destination(storage)  # a data set or nothing, before it is emptied
            storage.delete_prefix("")
            ours.append(measure([sys.executable, "-m", "pipelines.ingest", options.source, dest]))
        manifest = Manifest.from_json(storage.read(MANIFEST).decode())
        plain_bytes = Path(f"{folder}/plain.parquet").stat().st_size
        read = manifest.images + manifest.duplicates_dropped + manifest.bad_files
        kept = manifest.images
        where = "S3" if options.dest else "a local folder"
        stored = sum(shard.bytes for shard in manifest.shards) / kept
        print(f"{read:,} images of {manifest.shape} to {where}, {options.rounds} rounds")
        print(f"{'':16}{'seconds':>10}{'images/s':>12}{'peak MiB':>10}{'bytes/image':>14}")
        for name, runs, size in (("plainest loop", plain, plain_bytes / read), ("ingest", ours, stored)):
            seconds = statistics.median(run[0] for run in runs)
            peak = max(run[1] for run in runs)
            print(f"{name:16}{seconds:10.2f}{read / seconds:12,.0f}{peak:10.0f}{size:14,.0f}")
        print(f"{'PNG':16}{'':10}{'':12}{'':10}{png_bytes(options.source):14,.0f}")
        ratios = [before[0] / after[0] for before, after in zip(plain, ours, strict=True)]
        print(f"ingest is {statistics.median(ratios):.2f} times as fast ({', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
