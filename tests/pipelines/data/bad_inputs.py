"""Everything that a user may give ingest by mistake: what was given, and what must be said.

As a script it prints the table of benchmarks/results/bad_input.txt:

    python -m tests.pipelines.data.bad_inputs
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from pipelines.cli.progress import Steps
from pipelines.data.ingest import ingest
from pipelines.data.settings import IngestSettings

Arguments = list[str]


class Case(NamedTuple):
    """One mistake."""

    given: str
    """In words."""
    build: Callable[[Path], Arguments]
    """Makes it in an empty folder; returns ingest's arguments."""
    said: str
    """What the one line must contain."""


def picture(path: Path, seed: int = 0, height: int = 8, width: int = 8, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def pictures(folder: Path, count: int = 20, **options: int) -> Path:
    for number in range(count):
        picture(folder / f"{number:03d}.png", number, **options)
    return folder


def archive(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return path


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def idx(images: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, images.ndim]) + struct.pack(f">{images.ndim}I", *images.shape) + images.tobytes()


def mnist(folder: Path, images: int = 30, labels: int = 30) -> Path:
    for seed, name in enumerate(("train", "t10k")):
        pixels = np.random.default_rng(seed).integers(0, 256, (images, 8, 8), dtype=np.uint8)
        written(folder / f"{name}-images-idx3-ubyte.gz", gzip.compress(idx(pixels)))
        written(folder / f"{name}-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(labels, np.uint8))))
    return folder


class Command:
    """Pickles as a call of ``os.system``."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        import os

        return os.system, ("touch pwned",)


def cifar(folder: Path, batch: object) -> Path:
    for number in range(1, 6):
        written(folder / f"data_batch_{number}", pickle.dumps(batch, 2))
    written(folder / "test_batch", pickle.dumps(batch, 2))
    written(folder / "batches.meta", pickle.dumps({b"label_names": [b"cat", b"dog"]}, 2))
    return folder


def saved(path: Path, array: np.ndarray, *, pickled: bool = False) -> Path:
    np.save(path, array, allow_pickle=pickled)
    return path


def parquet(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def damaged_dataset(folder: Path, spoil: Callable[[Path], None]) -> Path:
    """A data set made by ingest, then damaged."""
    settings = IngestSettings(source=str(pictures(folder / "images")), dest=str(folder / "set"))
    ingest(settings, lambda line: None, Steps(Console(quiet=True)))
    spoil(folder / "set")
    return folder / "set"


def flip(folder: Path) -> None:
    shard = next(iter(sorted(folder.glob("train-*.parquet"))))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def with_bad(folder: Path, bad: dict[str, bytes], good: int = 20) -> Path:
    pictures(folder, good)
    for name, content in bad.items():
        written(folder / name, content)
    return folder


def png(height: int = 8, width: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 100,000 × 100,000 pixels."""
    content = bytearray(png())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    import zlib

    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def locked_zip(path: Path) -> Path:
    """A zip whose members claim to be encrypted."""
    with zipfile.ZipFile(path, "w") as zipped:
        for number in range(20):
            zipped.writestr(f"{number}.png", png())
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(magic)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(magic, at + 1)
    path.write_bytes(content)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def to(source: Path | str, folder: Path, *options: str) -> Arguments:
    return [str(source), str(folder / "out"), *options]


CASES = [
    Case("a path that is not there", lambda t: to(t / "nothing-like-it", t), "no such file or folder"),
    Case("a path with a slip", lambda t: (pictures(t / "photographs"), to(t / "photograps", t))[1], "photographs"),
    Case("an empty folder", lambda t: ((t / "empty").mkdir(), to(t / "empty", t))[1], "empty"),
    Case("a folder of text files", lambda t: to(written(t / "d" / "a.txt", b"hello").parent, t), "no image"),
    Case("a folder of films", lambda t: to(written(t / "d" / "a.mp4", b"").parent, t), ".mp4"),
    Case("a text file", lambda t: to(written(t / "notes.txt", b"hello"), t), "notes.txt"),
    Case("a RAR archive", lambda t: to(written(t / "a.rar", b"Rar!\x1a\x07\x01\x00" + bytes(99)), t), "RAR"),
    Case("a 7z archive", lambda t: to(written(t / "a.7z", b"7z\xbc\xaf\x27\x1c" + bytes(99)), t), "7z"),
    Case("a truncated tar.gz", lambda t: to(cut(archive(t / "a.tar.gz", pictures(t / "d", 200))), t), "cut short"),
    Case(
        "a tar.gz without images",
        lambda t: to(archive(t / "a.tar.gz", written(t / "d" / "a.txt", b"hello").parent), t),
        "no image",
    ),
    Case(
        "a truncated zip",
        lambda t: to(cut(written(t / "a.zip", b"PK\x03\x04" + bytes(500))), t),
        "a.zip",
    ),
    Case("a zip with a password", lambda t: to(locked_zip(t / "a.zip"), t), "encrypted"),
    Case(
        "an IDX file of floats",
        lambda t: to(written(t / "a-idx3", idx(np.zeros((9, 8, 8), ">f4"), 13)), t),
        "float",
    ),
    Case(
        "a truncated IDX file",
        lambda t: to(written(t / "a-idx3", idx(np.zeros((9, 8, 8), np.uint8))[:300]), t),
        "4 of the 9 images",
    ),
    Case("a damaged gzip", lambda t: to(cut(written(t / "a.gz", gzip.compress(bytes(range(256)) * 99))), t), "a.gz"),
    Case("more images than labels", lambda t: to(mnist(t / "m", 30, 29), t), "29"),
    Case(
        "MNIST without its test file",
        lambda t: ((mnist(t / "m") / "t10k-images-idx3-ubyte.gz").unlink(), to(t / "m", t))[1],
        "no file of test images",
    ),
    Case("CIFAR batches that call a command", lambda t: to(cifar(t / "c", {b"data": Command()}), t), "system"),
    Case("CIFAR batches without data", lambda t: to(cifar(t / "c", {b"labels": [1]}), t), "data"),
    Case(
        "a CIFAR binary of a wrong size",
        lambda t: to(written(t / "c" / "data_batch_1.bin", bytes(5000)).parent, t),
        "data_batch_1.bin",
    ),
    Case("a .npy of floats", lambda t: to(saved(t / "a.npy", np.zeros((20, 8, 8))), t), "float64"),
    Case("a .npy of objects", lambda t: to(saved(t / "a.npy", np.full((9, 8, 8), None), pickled=True), t), "object"),
    Case("a .npy of one image", lambda t: to(saved(t / "a.npy", np.zeros((8, 8), np.uint8)), t), "shape 8×8"),
    Case(
        "an .npz of unknown names",
        lambda t: (np.savez(t / "a.npz", p=np.zeros((9, 8, 8), np.uint8), q=np.zeros(9)), to(t / "a.npz", t))[1],
        "p, q",
    ),
    Case("a Parquet file without images", lambda t: to(parquet(t / "a.parquet", price=[1, 2]), t), "price"),
    Case("a damaged Parquet file", lambda t: to(cut(parquet(t / "a.parquet", image=[b"x"])), t), "a.parquet"),
    Case("a data set with a damaged shard", lambda t: to(damaged_dataset(t, flip), t), "damaged"),
    Case(
        "a data set with a damaged manifest",
        lambda t: to(damaged_dataset(t, lambda d: written(d / "manifest.json", b"{")), t),
        "manifest.json",
    ),
    Case("only empty image files", lambda t: to(written(t / "d" / "a.png", b"").parent, t), "no usable image"),
    Case(
        "more bad files than --max-bad",
        lambda t: to(with_bad(t / "d", {"a.png": b"", "b.jpg": b"no", "c.png": png()[:60]}), t, "--max-bad", "5%"),
        "3 of 23 files",
    ),
    Case("a decompression bomb", lambda t: to(with_bad(t / "d", {"a.png": bomb()}), t), "pixels"),
    Case(
        "images of two sizes",
        lambda t: to(with_bad(t / "d", {"a.png": png(16, 16)}), t),
        "16×16 where most images are 8×8; --size",
    ),
    Case("a test folder without train", lambda t: (pictures(t / "d/test"), to(t / "d", t))[1], "train"),
    Case(
        "images beside train",
        lambda t: (pictures(t / "d/train"), picture(t / "d/stray.png"), to(t / "d", t))[2],
        "stray.png",
    ),
    Case("two images", lambda t: to(pictures(t / "d", 2), t), "would be empty"),
    Case("--size 0", lambda t: to("digits", t, "--size", "0"), "--size"),
    Case("--channels 2", lambda t: to("digits", t, "--channels", "2"), "channels"),
    Case("--val 0", lambda t: to("digits", t, "--val", "0"), "--val"),
    Case("shares that leave nothing", lambda t: to("digits", t, "--val", "0.5", "--test", "0.5"), "nothing would be"),
    Case("--max-bad many", lambda t: to("digits", t, "--max-bad", "many"), "--max-bad"),
    Case("a destination in the source", lambda t: [str(pictures(t / "d")), str(t / "d" / "set")], "inside the source"),
    Case(
        "a destination with other files",
        lambda t: (written(t / "out" / "thesis.doc", b""), to("digits", t))[1],
        "thesis.doc",
    ),
    Case("a destination that is a file", lambda t: (written(t / "out", b""), to("digits", t))[1], "out"),
    Case("a destination on another cloud", lambda t: ["digits", "gs://bucket/set"], "gs://"),
    Case("an impossible bucket", lambda t: ["digits", "s3://No_Bucket/set"], "No_Bucket"),
    Case("an option that is none", lambda t: to("digits", t, "--sise", "8"), "--sise"),
]


def give(case: Case, folder: Path) -> tuple[int, str, str]:
    """Run ingest as a user does. Returns its status, standard output and standard error."""
    command = [sys.executable, "-m", "pipelines.ingest", *case.build(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[3]
    )
    return done.returncode, done.stdout, done.stderr


def main() -> None:
    for number, case in enumerate(CASES, start=1):
        with tempfile.TemporaryDirectory() as folder:
            status, _, said = give(case, Path(folder))
            print(f"{number:2}. {case.given}")
            print(f"    exit {status}  {said.strip().replace(folder + '/', '').replace(folder, '')}")


if __name__ == "__main__":
    main()
