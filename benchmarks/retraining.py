"""Nights of retraining on scanned digits that grow in number, with everything that may happen in between.

    python benchmarks/retraining.py > benchmarks/results/retraining.txt

Real parts: the command as a process, Ray's workers, an MLflow server, an S3 server (moto) behind a proxy that can be
switched off. Requests to S3 are given up after three attempts, instead of two and a half minutes. About
five minutes on two idle cores.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import boto3  # noqa: E402

from tests.pipelines.retraining.retrainings import MODEL, Registry, command, config_file, data_set, pixels  # noqa: E402
from tests.pipelines.tracking.mlflow_server import Server  # noqa: E402
from tests.pipelines.training.training_cluster import HASTE, grow, start  # noqa: E402
from tests.s3 import CREDENTIALS, FaultProxy, impatient_environment, moto_server  # noqa: E402

NO_RUN = "none"


@dataclasses.dataclass
class Row:
    """What happened, and what came of it."""

    what: str
    status: str
    decision: str
    before: str
    after: str
    seconds: float
    why: str


class Nights:
    """One after the other, on the same model."""

    def __init__(self, folder: Path, proxy: FaultProxy, server: Server) -> None:
        self.folder, self.proxy, self.server = folder, proxy, server
        self.registry = Registry(server.url)
        self.rows: list[Row] = []
        self.hooked = folder / "hooked"
        script = f"import os; open({str(self.hooked)!r}, 'a').write(os.environ['FVAE_REASON'] + chr(10))"
        self.hook = shlex.join([sys.executable, "-c", script])
        self.data = ""

    def grow(self, images: int) -> None:
        """The data set has so many images from now on."""
        self.data = data_set(self.folder, pixels(images), "s3://bench/data")

    def config(self, **train: Any) -> tuple[str, str]:
        return "--config", config_file(self.folder / f"{len(self.rows)}.json", train)

    def champion(self) -> str:
        number = self.registry.alias()
        return "–" if number is None else str(number)

    def night(
        self,
        what: str,
        *options: str,
        at: str = "",
        deed: Callable[[subprocess.Popen[str]], None] = lambda process: None,
        at_once: int = 1,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Run the command; when it says a line that begins with ``at``, do ``deed``; ``after``: before one looks."""
        before, known = self.champion() if self.rows else "–", len(self.registry.decisions())
        words = command("s3://bench/runs", *(() if "--rollback" in options else ("--dataset", self.data)), *options)
        words += ["--on-failure", self.hook]
        environment = {**os.environ, **HASTE, **impatient_environment(), "PYTHONUNBUFFERED": "1"}
        began, hooked = time.monotonic(), self._hooked()
        processes = [
            subprocess.Popen(
                words, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for _ in range(at_once)
        ]
        said = [""] * at_once

        def listen(number: int) -> None:
            process, told = processes[number], False
            assert process.stdout is not None
            for line in process.stdout:
                said[number] += line
                if at and line.startswith(at) and not told:
                    told = True
                    deed(process)

        threads = [threading.Thread(target=listen, args=(number,)) for number in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = [process.wait() for process in processes]
        seconds = time.monotonic() - began
        after()
        made = self.registry.decisions()[known:]
        if "--verbose" in sys.argv:
            print(*said, sep="\n----\n", file=sys.stderr)
        told = "; hook told" * (self._hooked() - hooked)
        weighed = [tag for run in made if (tag := run.data.tags["champion.before"]) not in (before, "none")]
        if len(made) == 1 and weighed:
            before += f" → by hand {weighed[0]}"
        last = next((line for line in reversed(said[0].splitlines()) if line.startswith("error: ")), "")
        why = "; ".join(run.data.tags["reason"] for run in made) or last.removeprefix("error: ")
        self.rows.append(
            Row(
                what,
                " ".join("killed" if status == -signal.SIGKILL else str(status) for status in statuses),
                " ".join(run.data.tags["decision"] for run in made) or NO_RUN,
                before,
                self.champion(),
                seconds,
                (" ".join(why.split()) or "–") + told,
            )
        )
        waited = [line for text in said for line in text.splitlines() if line.startswith("Waiting for another retr")]
        self.rows[-1].why += f"; {len(waited)} waited" if at_once > 1 else ""

    def _hooked(self) -> int:
        return len(self.hooked.read_text().splitlines()) if self.hooked.exists() else 0


def story(nights: Nights) -> None:
    """Every row of the table."""

    def kill(process: subprocess.Popen[str]) -> None:
        process.kill()

    def s3_down(process: subprocess.Popen[str]) -> None:
        nights.proxy.dead = True

    def s3_up() -> None:
        nights.proxy.dead = False

    def mlflow_down(process: subprocess.Popen[str]) -> None:
        nights.server.kill()

    def by_hand(process: subprocess.Popen[str]) -> None:
        nights.registry.client.set_registered_model_alias(MODEL, "champion", "1")

    nights.grow(400)
    nights.night("first model (2 epochs)", *nights.config(epochs=2))
    nights.night("no new data")
    nights.grow(600)
    nights.night("more data, better (12 epochs)", *nights.config(epochs=12))
    nights.grow(700)
    nights.night("more data, worse (learning rate 1e-7)", *nights.config(epochs=12, learning_rate=1e-7))
    nights.grow(800)
    nights.night("more data, broken (learning rate 1e9: NaN)", *nights.config(learning_rate=1e9))
    nights.night("the same again")
    nights.grow(900)
    nights.night("killed in mid-training (SIGKILL)", at="epoch  5/12", deed=kill)
    nights.night("  the next run")
    nights.grow(1000)
    nights.night("two at once", at_once=2)
    nights.grow(1200)
    nights.night("S3 away once trained", at="Measuring the challenger", deed=s3_down, after=s3_up)
    nights.night("  the next run")
    nights.grow(1400)
    nights.night("MLflow away in mid-training", at="epoch  5/12", deed=mlflow_down, after=nights.server.start)
    nights.night("  the next run")
    nights.grow(1797)
    nights.night("champion set to 1 by hand meanwhile", "--k", "64", at="registered as", deed=by_hand)
    nights.night("rollback", "--rollback", "--reason", "blurred")
    nights.night("  the next run")


def table(rows: list[Row]) -> str:
    """Aligned, with the reasons below."""
    head = ("", "what happened", "exit status", "decision", "champion", "seconds")
    lines = [head]
    for number, row in enumerate(rows, 1):
        champion = f"{row.before} → {row.after}"
        lines.append((str(number), row.what, row.status, row.decision, champion, f"{row.seconds:.0f}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    said = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*said, "", *(f"{number}: {row.why}" for number, row in enumerate(rows, 1))])


def main() -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fvae-") as name, moto_server(Path(name)) as url, FaultProxy(url) as proxy:
        folder = Path(name)
        server = Server(folder / "server")
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=proxy.url, MLFLOW_TRACKING_URI=server.url)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="bench")
        cluster = start()
        try:
            grow(cluster, 1)
            os.environ["RAY_ADDRESS"] = cluster.address
            server.start()
            nights = Nights(folder, proxy, server)
            story(nights)
            print(f"$ python benchmarks/retraining.py     ({os.cpu_count()} cores)\n")
            print(table(nights.rows))
            print(f"\n{counts(nights.registry)}")
            print(f"{time.monotonic() - began:.0f} s in all")
        finally:
            server.kill()
            cluster.shutdown()


def counts(registry: Registry) -> str:
    """What there is of it all: nothing twice, and nothing missing."""
    trainings = sorted(registry.trainings(), key=lambda run: run.info.start_time)
    epochs = [len(registry.client.get_metric_history(run.info.run_id, "val/bpd")) for run in trainings]
    return (
        f"{len(registry.decisions())} decisions, {len(trainings)} trainings, {len(registry.versions())} versions; "
        f"epochs of the trainings in MLflow: {' '.join(map(str, epochs))}"
    )


if __name__ == "__main__":
    main()
