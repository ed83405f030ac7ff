"""The same evaluation by three workers on three machines of one core, and by one process: every image once, equal bits.

    PYTHONPATH=. python benchmarks/evaluation.py --model runs/mnist --dataset path/to/mnist --k 1 4

The machines are nodes of a `ray.cluster_utils.Cluster` on this one, so the seconds say nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as parquet
from ray.cluster_utils import Cluster


def evaluate(options: argparse.Namespace, folder: Path, workers: int, address: str) -> Path:
    """Run the command; returns its output folder."""
    arguments = ["--model", options.model, "--dataset", options.dataset, "--k", *map(str, options.k)]
    arguments += ["--noise-seeds", "2", "--workers", str(workers), "--output", str(folder)]
    command = [sys.executable, "-m", "pipelines.evaluate", *arguments]
    subprocess.run(command, env={**os.environ, "RAY_ADDRESS": address}, check=True)
    return folder


def main() -> None:
    """Measure, compare and print; with --output also keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--k", type=int, nargs="+", default=[1])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    with tempfile.TemporaryDirectory() as folder:
        one, three = (evaluate(options, Path(folder, str(n)), n, cluster.address) for n in (1, 3))
        tables = [parquet.read_table(each / "bits.parquet") for each in (one, three)]
        reports = [json.loads((each / "evaluation.json").read_text()) for each in (one, three)]
    cluster.shutdown()
    lines = [
        f"PYTHONPATH=. python benchmarks/evaluation.py --model … --dataset … --k {' '.join(map(str, options.k))}",
        "{name}, hash {hash}, {split} split, {test:,} images".format(**reports[0]["dataset"]),
        f"images measured: {tables[0].num_rows:,} by one process, {tables[1].num_rows:,} by three workers",
        f"bits/dim of every image, k and noise equal to the bit: {tables[0].equals(tables[1])}",
        *(
            f"{who:<14}k = {result['k']:<4}{result['bits_per_dim']:.6f} bits/dim "
            f"± {result['standard_error_images']:.6f} over images ± {result['standard_error_noise']:.6f} over noise"
            for who, report in zip(("one process", "three workers"), reports, strict=True)
            for result in report["results"]
        ),
    ]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
