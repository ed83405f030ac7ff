"""Everything that a GPU is to show, in one command of at most eight minutes that survives being cut off.

    make gpu-report ARGS="--mnist data/mnist"               # results in benchmarks/results/gpu.json and gpu.txt
    make gpu-report ARGS="--device cpu --quick --out DIR"   # the same code without a GPU, in two minutes

It needs torch, numpy, safetensors, pyarrow and pytest, and to compare with Glow normflows. Each part is a process with
a time limit of its own and keeps every figure as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_map, gpu_steps
from fvae.files import write_text

SECONDS = {"tests": 90, "steps": 160, "map": 210}
"""The parts, in order, and how long each may take: 7 minutes 40 s in all."""
ROOT = Path(__file__).parents[1]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="the smallest models alone: to try the command itself")
    parser.add_argument(
        "--mnist", type=Path, metavar="DIR", help="MNIST as pipelines.ingest wrote it; else made images"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS), metavar="PART")
    parser.add_argument("--part", choices=SECONDS, help=argparse.SUPPRESS)  # in its own process
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: torch sees no GPU; give --device cpu --quick to try the command without one")
    if options.mnist is not None and not (options.mnist / "manifest.json").is_file():
        parser.error(f"--mnist={options.mnist}: no manifest.json there; make it with python -m pipelines.ingest")
    return options


class Report:
    """One JSON file, whole after every row."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """What has been measured."""
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    def begin(self, options: argparse.Namespace) -> None:
        """Leave what an earlier command has measured."""
        options.out.mkdir(parents=True, exist_ok=True)
        card = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
        command = f"python -m benchmarks.gpu_report {' '.join(sys.argv[1:])}".strip()
        self.write({"command": command, "card": card, "torch": torch.__version__, "quick": options.quick, "parts": {}})

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Keep a row of a part."""
        report = self.read()
        report["parts"].setdefault(part, {"ended": None, "rows": []})["rows"].append(row)
        self.write(report)

    def end(self, part: str, how: str, seconds: float) -> None:
        """Keep how a part ended."""
        report = self.read()
        report["parts"].setdefault(part, {"rows": []}).update(ended=how, seconds=seconds)
        self.write(report)

    def write(self, report: dict[str, Any]) -> None:
        """Whole or not at all."""
        write_text(self.path, json.dumps(report, indent=1) + "\n")

    def text(self) -> str:
        """The table."""
        report = self.read()
        lines = [f"$ {report['command']}", f"{report['card']}, torch {report['torch']}"]
        tables = {"tests": tests_table, "steps": gpu_steps.table, "map": gpu_map.table}
        for part, measured in report["parts"].items():
            how = f"{measured['ended']}, {measured['seconds']:.0f} s" if measured.get("ended") else "was cut off"
            lines += ["", f"{part} ({how})", *tables[part](measured["rows"])]
        return "\n".join(lines) + "\n"


def tests(report: Report, options: argparse.Namespace) -> int:
    """Run tests/gpu; keep each test's outcome as it comes."""
    command = [sys.executable, "-m", "pytest", "-vv", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    command += ["--device", options.device, *(("-k", "equal_those or non_finite") if options.quick else ())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
                report.add("tests", {"test": found[1], "outcome": found[2].lower()})
            elif line.startswith("E  "):
                report.add("tests", {"test": line.strip(), "outcome": "said"})
    return process.returncode


def tests_table(rows: list[dict[str, Any]]) -> list[str]:
    """How many passed, and what did not."""
    counts = Counter(row["outcome"] for row in rows if row["outcome"] != "said")
    return [
        ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none has ended",
        *(f"  {row['outcome']}: {row['test']}" for row in rows if row["outcome"] in ("failed", "error", "said")),
    ]


def carry_out(part: str, report: Report, options: argparse.Namespace) -> int:
    """One part, in this process. Returns its exit status."""
    append = lambda row: report.add(part, row)  # noqa: E731
    if part == "tests":
        return tests(report, options)
    if part == "steps":
        gpu_steps.run(append, options.device, quick=options.quick)
    else:
        seconds = 20.0 if options.quick else 0.9 * SECONDS["map"]
        gpu_map.run(append, options.device, quick=options.quick, mnist=options.mnist, seconds=seconds)
    return 0


def supervise(part: str, report: Report) -> None:
    """Run a part in a process group of its own, which ends with its time."""
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu_report", *sys.argv[1:], "--part", part]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(SECONDS[part])
        how = "done" if status == 0 else f"exit status {status}"
    except subprocess.TimeoutExpired:
        how = "its time was up"
    finally:  # also where this command is interrupted
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    report.end(part, how, time.monotonic() - started)


def main() -> int:
    """Measure, and print the table. Returns the exit status."""
    options = arguments()
    options.out = options.out.resolve()
    report = Report(options.out / "gpu.json")
    if options.part:
        return carry_out(options.part, report, options)
    report.begin(options)
    for part in options.parts:
        supervise(part, report)
        write_text(options.out / "gpu.txt", report.text())
    print(report.text(), end="")
    return 0 if all(part["ended"] == "done" for part in report.read()["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
