"""What becomes of every kind of input that people have: a table of outcomes, of this version and of an earlier one.

    python -m benchmarks.ingest_cases                            # this version
    python -m benchmarks.ingest_cases --before ../other-checkout # and what another one makes of the same inputs

Each input is built once in an empty folder and ingested by each version, as a user does. An outcome is right where the
counts, the classes, the levels and, where they are known, the pixels are those that tests/pipelines/data/input_cases.py
says or, for an input that is to be refused, where the status is 2 and the one line says so. What is printed of an
accepted input is compared by tests/pipelines/data/test_input_cases.py, not here. An earlier version refuses options
that it does not know.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fvae.data.manifest import SPLITS, Manifest  # noqa: E402
from fvae.data.shards import load_images  # noqa: E402
from pipelines.storage import open_storage  # noqa: E402
from tests.pipelines.data.input_cases import CASES, Case  # noqa: E402

WIDTH = 150
"""Characters of an outcome."""


class Outcome(NamedTuple):
    """What a version made of an input."""

    right: bool
    said: str


def outcome(case: Case, project: Path, folder: Path) -> Outcome:
    """Build the input in an empty folder and ingest it with the code of ``project``."""
    source, *options = case.build(folder)
    command = [sys.executable, "-m", "pipelines.ingest", str(folder / source), str(folder / "out"), *options]
    environment = {**os.environ, "PYTHONPATH": str(project), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    path = folder / "out" / "manifest.json"
    if done.returncode or not path.exists():
        lines = done.stderr.strip().splitlines() or [""]
        said = lines[-1].replace(f"{folder}/", "")
        asked = case.right.counts is None and done.returncode == 2 and len(lines) == 1 and case.right.said in lines[-1]
        return Outcome(asked, f"exit {done.returncode}: {said.removeprefix('error: ')}")
    manifest = Manifest.from_json(path.read_text())
    counts = tuple(manifest.counts.values())
    said = (
        f"{counts[0]} train, {counts[1]} val, {counts[2]} test, {len(manifest.classes)} classes, {manifest.bins} levels"
    )
    wanted = (case.right.counts, case.right.classes, case.right.bins)
    pixels = pixels_of(manifest, folder / "out")
    same = not len(case.right.pixels) or pixels == collections.Counter(map(planes, case.right.pixels))
    if case.right.counts is not None and not same:
        missing = sum((collections.Counter(map(planes, case.right.pixels)) - pixels).values())
        said += f", {missing} images missing or changed"
    return Outcome(wanted == (counts, manifest.classes, manifest.bins) and same, said)


def pixels_of(manifest: Manifest, folder: Path) -> collections.Counter[bytes]:
    """How often each image is in a data set."""
    read = open_storage(folder).read
    return collections.Counter(image.tobytes() for split in SPLITS for image in load_images(manifest, split, read))


def planes(image: np.ndarray) -> bytes:
    """An image ``[H, W]`` or ``[H, W, 3]`` as a data set holds it."""
    return (image.astype(np.uint8) if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))).tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout of this project")
    options = parser.parse_args()
    versions = {"before": options.before.resolve()} if options.before else {}
    versions["now"] = ROOT
    right: collections.Counter[str] = collections.Counter()
    kind = ""
    for number, case in enumerate(CASES, start=1):
        if case.kind != kind:
            kind = case.kind
            print(f"\n{kind}", flush=True)
        print(f"{number:3}. {case.given}", flush=True)
        for version, project in versions.items():
            with tempfile.TemporaryDirectory() as folder:
                found = outcome(case, project, Path(folder))
            right[version] += found.right
            said = found.said if len(found.said) <= WIDTH else f"{found.said[: WIDTH - 1]}…"
            print(f"     {version:6} {'right' if found.right else 'wrong'}  {said}", flush=True)
    print("\n" + "; ".join(f"{version}: {right[version]} of {len(CASES)} right" for version in versions))


if __name__ == "__main__":
    main()
