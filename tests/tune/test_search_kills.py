"""kill -9 at random moments of a real search: of its driver, of a trial's process, of a whole node.

The moments are drawn from a seeded generator over everything that happens in the search (a training step, a record
written, half of a checkpoint …), so they are the same every time, however fast the machine is.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.pipelines.training import training_cluster
from tests.pipelines.training.training_cluster import grow
from tests.tune.real_search import (
    ROOT,
    SMALL,
    TRIALS,
    Records,
    check_grown,
    check_whole,
    mlflow_runs,
    records,
    run_command,
    tradeoff,
)

pytestmark = pytest.mark.faults

STEPS = 5
"""Steps of an epoch."""
OPTIONS = (*SMALL, "--concurrent", "1")
AGAIN = 2
"""Epochs that a loss costs at most: there is a checkpoint after every other one."""
LOSSES = ("driver", "process", "node")
"""In turn: no trial loses its process more often in a session than Tune starts it again."""
MOMENTS = 20
"""Losses of a search."""
SEED = 5
OF_THE_CLOCK = ("seconds", "images_per_second", "time_ms")
"""What of an epoch no two runs have in common."""
MEASURED = ("config", "train", "params", "flops_per_image", "status", "reason", "best_epoch", "val_bpd", "test")
"""What of a record every run of the same search has in common, besides its epochs."""

Loss = tuple[int, str]
Event = tuple[str, str]
"""What happened, and in which trial."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room for trials; a node that has room for one comes with each search."""
    cluster = training_cluster.start()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def whole(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same search without kills."""
    folder = tmp_path_factory.mktemp("whole")
    assert search(folder, cluster, []) == []
    return folder


def search(folder: Path, cluster: Cluster, losses: list[Loss]) -> list[Records]:
    """The same command again until it has ended by itself; what the ledger held whenever it was killed."""
    ledgers = []
    script = [sys.executable, str(ROOT / "tests/tune/killed_search.py"), str(folder), json.dumps(losses)]
    for session in range(1 + len([loss for _, loss in losses if loss == "driver"])):
        with (folder / f"output-{session}").open("w+") as output:
            process = subprocess.Popen(
                [*script, "--storage", str(folder), *OPTIONS],
                cwd=ROOT,
                env={**os.environ, "RAY_ADDRESS": cluster.address},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                while process.poll() is None:
                    grow(cluster, 1)  # a node for the one that was lost; in this thread, as Ray requires
                    time.sleep(0.05)
            finally:
                process.kill()
            if process.returncode == 0:
                return ledgers
            output.seek(0)
            assert process.returncode == -signal.SIGKILL, output.read()
        ledgers.append(records(folder))
    raise AssertionError(f"killed more often than planned: {losses}")


def events(folder: Path) -> list[Event]:
    return [tuple(line.split()) for line in (folder / "events").read_text().splitlines()]  # type: ignore[misc]


def in_a_process(event: Event) -> bool:
    return not event[0].startswith("writ")


def draw(happened: list[Event], count: int) -> list[Loss]:
    """So many moments out of what happens in the search without kills, and what is lost at each."""
    last = max(number for number, event in enumerate(happened, 1) if in_a_process(event))
    numbers = sorted(random.Random(SEED).sample(range(2, len(happened) + 1), count))
    losses = zip(numbers, itertools.cycle(LOSSES), strict=False)
    return [(number, loss if number <= last else "driver") for number, loss in losses]  # then only tests are read


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """The trials with all that they measured, without times."""

    def timeless(epoch: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in epoch.items() if name not in OF_THE_CLOCK}

    return {
        name: {field: record[field] for field in MEASURED} | {"history": [timeless(each) for each in record["history"]]}
        for name, record in records(folder).items()
    }


def check_nothing_ended_is_begun_again(happened: list[Event]) -> None:
    """A complete trial never; one that was stopped only once the ledger has it running again: till then it may at most
    keep where it was."""
    ended: dict[str, str] = {}
    for what, trial in happened:
        if what.startswith("written-"):
            status = what.removeprefix("written-")
            assert ended.get(trial) != "complete" or status == "complete", f"{trial} was complete"
            ended[trial] = status
        elif in_a_process((what, trial)):
            allowed = ended[trial] == "running" or (ended[trial], what) == ("stopped", "checkpoint")
            assert allowed, f"{what} in {trial}, which is {ended[trial]}"


def lost_in(folder: Path, losses: list[Loss]) -> Counter[str]:
    """How often each trial was in the midst of something when something was lost."""
    return Counter((folder / f"lost-{number}").read_text().split()[-1] for number, _ in losses)


def check_accounts(folder: Path, happened: list[Event], lost: Counter[str]) -> None:
    """Every epoch that a process finished is counted once, and the whole is the sum of its parts."""
    steps = Counter(trial for what, trial in happened if what == "step")
    accounts = tradeoff(folder)["accounting"]
    assert set(accounts["by_trial"]) == set(records(folder)) == set(steps)
    for name, record in records(folder).items():
        account, attempts = accounts["by_trial"][name], record["attempts"]
        assert account["epochs"] == sum(attempt["epochs"] for attempt in attempts) >= len(record["history"])
        assert account["images"] == sum(attempt["images"] for attempt in attempts)
        # The rest of the steps that were taken: of epochs in whose midst, or after which unheard, something was lost.
        assert 0 <= steps[name] - STEPS * account["epochs"] <= STEPS * AGAIN * lost[name]
        assert steps[name] - STEPS * len(record["history"]) <= STEPS * AGAIN * lost[name]
        assert [attempt["ended"] in ("done", "stopped", "lost") for attempt in attempts] == [True] * len(attempts)
        assert sum(attempt["ended"] == "lost" for attempt in attempts) <= lost[name]
    for quantity in ("epochs", "images", "attempts", "seconds", "core_seconds"):
        parts = [account[quantity] for account in accounts["by_trial"].values()]
        assert accounts["total"][quantity] == pytest.approx(sum(parts), rel=1e-12)


@pytest.mark.timeout(1800)  # on a busy machine
def test_whatever_is_killed_the_search_ends_as_without_kills(cluster: Cluster, whole: Path, tmp_path: Path) -> None:
    losses = draw(events(whole), MOMENTS)
    ledgers = search(tmp_path, cluster, losses)
    lost = Counter((tmp_path / f"lost-{number}").read_text().split(":")[0] for number, _ in losses)
    assert lost == Counter(loss for _, loss in losses)
    assert len(ledgers) == lost["driver"] and min(lost.values()) >= 2 and set(lost) == set(LOSSES)

    # The ledger is exact: nothing lost, nothing twice, nothing left running, in MLflow neither.
    check_whole(tmp_path, {}, TRIALS)
    for before, after in itertools.pairwise([*ledgers, records(tmp_path)]):
        check_grown(before, after)
    check_nothing_ended_is_begun_again(events(tmp_path))
    check_accounts(tmp_path, events(tmp_path), lost_in(tmp_path, losses))

    # The same trials, and the same figures to the last bit.
    mine, theirs = figures(tmp_path), figures(whole)
    assert {name: trial["config"] | trial["train"] for name, trial in mine.items()} == {
        name: trial["config"] | trial["train"] for name, trial in theirs.items()
    }
    assert mine == theirs
    assert tradeoff(tmp_path)["fronts"] == tradeoff(whole)["fronts"]
    assert tradeoff(tmp_path)["hypervolume"] == tradeoff(whole)["hypervolume"]


def test_killed_then_interrupted_then_whole_on_a_ray_of_its_own(tmp_path: Path) -> None:
    """As on a laptop: kill -9, the same command until Ctrl-C at the terminal, and the same command again."""
    alone = {"RAY_ADDRESS": None}
    script = "tests/tune/interrupted_search.py"
    killed = run_command(tmp_path, *SMALL, script=(script, "SIGKILL", "results:11"), **alone)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    first = records(tmp_path)
    stopped = run_command(tmp_path, *SMALL, script=(script, "SIGINT", "tests:1"), **alone)
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    assert "Interrupted. The same command goes on" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    second = records(tmp_path)
    assert [record["test"] is not None for record in second.values()].count(True) == 1
    _, runs = mlflow_runs(tmp_path)
    assert "RUNNING" not in {run.info.status for run in runs}
    resumed = run_command(tmp_path, *SMALL, **alone)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_whole(tmp_path, first)
    check_whole(tmp_path, second)
