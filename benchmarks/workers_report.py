"""What ``ray.train.report`` after every epoch costs a training of two workers: seconds in the call, and of the epoch.

PYTHONPATH=. python benchmarks/workers_report.py --output benchmarks/results/workers_report.txt

An epoch is a pause of fixed length, so that nothing but the report and its wait for the other worker is measured. Ray
Train keeps one report at a time: a second one waits until the controller has collected the first, which it does once
in RAY_TRAIN_HEALTH_CHECK_INTERVAL_S. Rounds with and without reports take turns within one job.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pipelines.training.ray_environment  # noqa: F401  # isort: skip  (before Ray is imported)
import ray.train
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pipelines.training.ray_session import ray_session


def round_of(seconds: float, epochs: int, report: bool) -> tuple[float, list[float]]:
    """Seconds that an epoch takes beyond its pause, and the seconds of each report."""
    reports: list[float] = []
    began = time.perf_counter()
    for epoch in range(epochs):
        time.sleep(seconds)
        if report:
            started = time.perf_counter()
            ray.train.report({"epoch": epoch, "val_bpd": 1.0})
            reports.append(time.perf_counter() - started)
    return (time.perf_counter() - began) / epochs - seconds, reports


def loop(config: dict[str, Any]) -> list[tuple[float, list[float], list[float]]]:
    """On each worker. Returns for each length of an epoch: the length, its excess in each round, all reports' seconds.

    The excess of a round is what its epochs with reports take longer than those without.
    """
    rows = []
    for seconds in config["seconds"]:
        epochs = max(1, min(config["epochs"], round(config["round_seconds"] / seconds)))
        excess: list[float] = []
        reports: list[float] = []
        for _ in range(config["rounds"]):
            without, _none = round_of(seconds, epochs, report=False)
            with_, each = round_of(seconds, epochs, report=True)
            excess.append(with_ - without)
            reports += each
        rows.append((seconds, excess, reports))
    return rows


def main() -> None:
    """Measure and print; with --output also keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10, help="of a round, at most")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.1, 1.0, 30.0], help="of an epoch")
    parser.add_argument("--round-seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with ray_session(0, {"CPU": ("--workers", 1.0)}), tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            loop,
            train_loop_config=vars(options) | {"output": None},
            scaling_config=ScalingConfig(num_workers=options.workers),
            torch_config=TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(name="report", storage_path=folder),
        )
        rows = trainer.fit().return_value
    lines = [
        "PYTHONPATH=. python benchmarks/workers_report.py",
        f"{options.workers} workers, Ray {ray.__version__}, the controller's period is "
        f"{os.environ['RAY_TRAIN_HEALTH_CHECK_INTERVAL_S']} s; medians of {options.rounds} rounds; "
        f"load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores",
        "",
        f"{'epoch':>8}{'report: median':>17}{'longest':>12}{'epoch longer by':>18}{'of the epoch':>15}",
    ]
    for seconds, excess, reports in rows:
        cost = statistics.median(excess)
        lines.append(
            f"{seconds:>6.1f} s{1000 * statistics.median(reports):>14.1f} ms{1000 * max(reports):>9.0f} ms"
            f"{1000 * cost:>15.1f} ms{cost / seconds:>15.2%}"
        )
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
