"""A cluster of several hosts that loses machines, changes, is rebooted, and goes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.cluster.hosts import PATIENCE, ROOT, SHARED, Host, wait_for
from tests.cluster.onprem_cluster import TOKEN, OnPremises

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("hosts"), pytest.mark.timeout(3 * PATIENCE)]


def ledger(cluster: OnPremises, name: str) -> list[dict[str, Any]]:
    """The records of a search in the shared folder."""
    paths = (cluster.network.shared / "runs" / name / "trials").glob("*/trial.json")
    return [json.loads(path.read_text()) for path in sorted(paths)]


def test_a_worker_is_lost_in_the_middle_of_a_search_and_comes_back(cluster: OnPremises) -> None:
    search = cluster.start_here(
        f"python tune/search.py --name lossy --trials 3 --epochs 30 --storage {SHARED}/runs --seed 3"
    )

    found: list[Host] = []

    def training() -> bool:
        """Whether a worker is in the middle of a trial."""
        assert search.poll() is None, search.communicate()[0]
        running = [record for record in ledger(cluster, "lossy") if record["status"] == "running"]
        if any(2 <= len(record["history"]) <= 20 for record in running):
            found.extend(each for each in cluster.workers if each.processes("_Inner.train"))
        return found != []

    wait_for(training, what="a trial")
    lost = found[0]
    place = cluster.workers.index(lost)
    cluster.network.cut(lost.name)
    lost.lose()

    output, _ = search.communicate(timeout=PATIENCE)
    assert search.returncode == 0, output
    records = ledger(cluster, "lossy")
    assert [record["status"] for record in records] == ["complete"] * 3
    assert any(attempt["ended"] == "lost" for record in records for attempt in record["attempts"])
    kept = [each for each in cluster.workers if each is not lost]
    assert cluster.nodes() == {cluster.head.address: 0.0} | {each.address: 1.0 for each in kept}

    cluster.workers[place] = cluster.add(lost.name)  # the power is back
    cluster.await_workers()


def test_a_new_worker_joins_without_an_end_to_ray_or_its_jobs(cluster: OnPremises) -> None:
    job = cluster.job_until("steady", "joined")
    before = cluster.ray_processes()
    cluster.workers.append(cluster.add("worker3"))

    assert "The autoscaler is restarted" in cluster.up()

    cluster.await_workers()
    after = cluster.ray_processes()
    assert {name: after[name] for name in before} == before
    (cluster.network.shared / "joined").touch()
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, output


def test_other_options_wait_for_the_jobs_that_run(cluster: OnPremises) -> None:
    job = cluster.job_until("first", "ended")
    before = cluster.ray_processes()
    cluster.head_options = ["--labels=changed=yes"]

    said = cluster.up()

    assert re.search(r"warning: Ray is not restarted, because it runs first;", said), said
    assert cluster.ray_processes() == before
    (cluster.network.shared / "ended").touch()
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, output
    assert "What Ray is started with has changed" in cluster.up()
    assert not cluster.ray_processes()["head"] & before["head"]
    cluster.open_tunnel()
    cluster.await_workers()


def test_after_a_reboot_the_head_comes_back_and_a_search_waits_for_its_workers(cluster: OnPremises) -> None:
    crontab = cluster.head.run("crontab -l")
    cluster.head.lose()
    cluster.head = cluster.add("head")
    assert cluster.head.run("crontab -l") == crontab
    (line,) = [line for line in crontab.splitlines() if line.startswith("@reboot")]

    cluster.head.run(f"env -i HOME=/root PATH=/usr/bin:/bin sh -c '{line.removeprefix('@reboot ')}'")  # as cron does
    search = f"python tune/search.py --name early --trials 1 --epochs 1 --storage {SHARED}/runs"
    said = cluster.head.run(f"cd {ROOT} && {search}", TOKEN | {"RAY_ADDRESS": "auto"})

    assert "Waiting for machines (1 CPU) …" in said
    assert [record["status"] for record in ledger(cluster, "early")] == ["complete"]
    cluster.await_workers()
    cluster.open_tunnel()


def test_down_leaves_nothing_running(cluster: OnPremises) -> None:
    said = cluster.down()
    assert "No nodes remaining" in said, said
    for host in (cluster.head, *cluster.workers):
        left = [command for command in host.processes() if "ray" in command or "python" in command]
        assert left == [], host.name
