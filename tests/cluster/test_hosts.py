"""``ray up cluster.onprem.yaml`` on several hosts: a cluster that runs, loses machines, changes, and goes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.hosts import ROOT, SHARED, wait_for
from tests.cluster.onprem_cluster import SERVER, TOKEN, OnPremises

pytestmark = pytest.mark.system

PORTS = {22, 6379, 6380, 6381, 6382, 6383, 10001, 52365}
"""That any machine of the cluster may reach on another: see docs/cluster.md. Workers' own are from 10002 to 19999."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPremises]:
    """A head and two workers, up. The tests of this file use it in their order."""
    cluster = OnPremises(tmp_path_factory.mktemp("network"), workers=2)
    try:
        cluster.up()
        cluster.open_tunnel()
        cluster.await_workers([each.address for each in cluster.workers])
        yield cluster
    finally:
        cluster.close()


def ledger(cluster: OnPremises, name: str) -> list[dict[str, Any]]:
    """The records of a search in the shared folder."""
    paths = (cluster.network.shared / "runs" / name / "trials").glob("*/trial.json")
    return [json.loads(path.read_text()) for path in sorted(paths)]


def job_until(cluster: OnPremises, name: str, end: str) -> subprocess.Popen[str]:
    """A job that runs until there is a file ``end`` in the shared folder."""
    command = f"bash -c 'until [ -e {SHARED}/{end} ]; do sleep 0.2; done'"
    job = cluster.start_here(f"ray job submit --submission-id {name} -- {command}")
    wait_for(lambda: cluster.head.processes(f"{SHARED}/{end}"), 60, "the job")
    return job


def test_every_machine_is_in_the_cluster_and_the_head_trains_nothing(cluster: OnPremises) -> None:
    assert cluster.nodes() == {cluster.head.address: 0.0} | {each.address: 1.0 for each in cluster.workers}
    said = cluster.exec("ray status")
    assert re.search(r"2 worker\b", said), said
    assert "0.0/2.0 CPU" in said


def test_up_again_changes_nothing_and_ends_no_job(cluster: OnPremises) -> None:
    job = job_until(cluster, "patient", "enough")
    before = cluster.ray_processes()
    assert all(len(found) >= 1 for found in before.values())

    said = cluster.up()

    assert "Ray runs as it should: nothing to do." in said
    assert cluster.ray_processes() == before
    (cluster.network.shared / "enough").touch()
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output


def test_two_machines_train_one_model_together(cluster: OnPremises) -> None:
    """By their addresses: as on Debian, each finds its own name at 127.0.1.1."""
    command = f"python -m pipelines.train --name both --workers 2 --train.epochs 1 --storage {SHARED}/runs"
    status, output = cluster.here(command)
    assert status == 0, output
    assert "on 2 workers" in output
    assert json.loads((cluster.network.shared / "runs/both/result.json").read_text())["status"] == "complete"


def test_a_worker_is_lost_in_the_middle_of_a_search_and_comes_back(cluster: OnPremises) -> None:
    search = cluster.start_here(
        f"python tune/search.py --name lossy --trials 3 --epochs 30 --storage {SHARED}/runs --seed 3"
    )

    def training() -> list[int]:
        """The workers that are in the middle of a trial."""
        assert search.poll() is None, search.communicate()[0]
        running = [record for record in ledger(cluster, "lossy") if record["status"] == "running"]
        if not any(2 <= len(record["history"]) <= 20 for record in running):
            return []
        return [place for place, each in enumerate(cluster.workers) if each.processes("_Inner.train")]

    wait_for(training, 150, "a trial")
    place = training()[0]
    lost, kept = cluster.workers[place], cluster.workers[1 - place]
    cluster.network.cut(lost.name)
    lost.lose()

    output, _ = search.communicate(timeout=400)
    assert search.returncode == 0, output
    records = ledger(cluster, "lossy")
    assert [record["status"] for record in records] == ["complete"] * 3
    assert any(attempt["ended"] == "lost" for record in records for attempt in record["attempts"])
    assert cluster.nodes() == {cluster.head.address: 0.0, kept.address: 1.0}

    cluster.workers[place] = cluster.add(lost.name)  # the power is back
    cluster.await_workers([each.address for each in cluster.workers], seconds=240)


def test_a_new_worker_joins_without_an_end_to_ray_or_its_jobs(cluster: OnPremises) -> None:
    job = job_until(cluster, "steady", "joined")
    before = cluster.ray_processes()
    cluster.workers.append(cluster.add("worker3"))

    assert "The autoscaler has started again" in cluster.up()

    cluster.await_workers([each.address for each in cluster.workers])
    after = cluster.ray_processes()
    assert {name: after[name] for name in before} == before
    (cluster.network.shared / "joined").touch()
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output


def test_other_options_wait_for_the_jobs_that_run(cluster: OnPremises) -> None:
    job = job_until(cluster, "first", "ended")
    before = cluster.ray_processes()
    cluster.head_options = ["--labels=changed=yes"]

    said = cluster.up()

    assert re.search(r"warning: Ray stays as it is, because it runs first;", said), said
    assert cluster.ray_processes() == before
    (cluster.network.shared / "ended").touch()
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    assert "What Ray is started with has changed" in cluster.up()
    assert not cluster.ray_processes()["head"] & before["head"]
    cluster.open_tunnel()
    cluster.await_workers([each.address for each in cluster.workers], seconds=240)


def test_after_a_reboot_the_head_comes_back_and_a_search_waits_for_its_workers(cluster: OnPremises) -> None:
    crontab = cluster.head.run("crontab -l")
    cluster.head.lose()
    cluster.head = cluster.add("head")
    assert cluster.head.run("crontab -l") == crontab
    (line,) = [line for line in crontab.splitlines() if line.startswith("@reboot")]

    cluster.head.run(f"env -i HOME=/root PATH=/usr/bin:/bin sh -c '{line.removeprefix('@reboot ')}'")  # as cron does
    search = f"python tune/search.py --name early --trials 1 --epochs 1 --storage {SHARED}/runs"
    said = cluster.head.run(f"cd {ROOT} && {search}", TOKEN | {"RAY_ADDRESS": "auto"}, timeout=300)

    assert "Waiting for machines (1 CPU) …" in said
    assert [record["status"] for record in ledger(cluster, "early")] == ["complete"]
    cluster.await_workers([each.address for each in cluster.workers], seconds=240)
    cluster.open_tunnel()


def test_only_the_ports_that_are_told_of_are_open(cluster: OnPremises) -> None:
    for host in (cluster.head, *cluster.workers):
        for address, port, program in host.listening():
            reachable = not address.startswith("127.") and address != "::ffff:127.0.0.1"
            assert not reachable or port in PORTS or 10002 <= port <= 19999, (host.name, address, port, program)
    assert [address for address, port, _ in cluster.head.listening() if port == 8265] == ["127.0.0.1"]


def test_no_port_answers_a_stranger(cluster: OnPremises) -> None:
    stranger = cluster.network.add("stranger", ssh=False)
    for host in (cluster.head, cluster.workers[0]):
        ports = sorted({port for _, port, _ in host.listening()} - {22})
        said = stranger.run(
            f"cd {ROOT} && python benchmarks/cluster/strangers.py {host.address} {' '.join(map(str, ports))}"
        )
        for told in map(json.loads, said.splitlines()):
            assert told["open"] == (told["port"] != 8265), told
            answers = {request: answer for request, answer in told["answers"].items() if "UNAUTH" not in answer.upper()}
            assert answers in ({}, {"GET /api/local_raylet_healthz": "200, 'success'"}), (host.name, told)
            assert told["answers"] or not told["open"], told


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_without_the_token_nothing_is_done(cluster: OnPremises, token: str) -> None:
    stranger = cluster.network.hosts["stranger"]
    mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    status = stranger.attempt(f"ray status --address {cluster.head.address}:6379", mode)
    job = cluster.laptop.attempt("ray job submit -- touch /mnt/taken", mode | {"RAY_ADDRESS": SERVER, "HOME": "/tmp"})
    for refused in (status, job):
        assert refused.returncode != 0, refused.stdout
        assert re.search(r"[Uu]nauthenticated|[Uu]nauthorized|[Aa]uthentication|AuthToken", refused.stdout), (
            refused.stdout
        )
    assert not (cluster.network.shared / "taken").exists()


def test_down_leaves_nothing_running(cluster: OnPremises) -> None:
    said = cluster.down()
    assert "No nodes remaining" in said, said
    for host in (cluster.head, *cluster.workers):
        left = [command for command in host.processes() if "ray" in command or "python" in command]
        assert left == [], host.name


def test_what_is_missing_is_one_line_and_nothing_is_touched(tmp_path: Path) -> None:
    cluster = OnPremises(tmp_path / "network", workers=1)
    try:
        filled = cluster.config()
        for path, line in (
            (("provider", "head_ip"), "error: provider.head_ip: missing; give an address such as 10.0.0.10"),
            (
                ("provider", "worker_ips"),
                "error: provider.worker_ips: missing; give the addresses of the machines ",
            ),
            (("auth", "ssh_user"), "error: auth.ssh_user: missing; give the user who may log in on every machine"),
        ):
            config = json.loads(json.dumps(filled))
            config[path[0]][path[1]] = None
            (cluster.network.shared / "cluster.yaml").write_text(yaml.safe_dump(config))
            done = cluster.laptop.attempt(f"cd {ROOT} && ray up --yes {SHARED}/cluster.yaml", TOKEN)
            assert done.returncode == 2, done.stdout
            assert [said[: len(line)] for said in done.stdout.splitlines() if "error" in said] == [line]
            assert "Traceback" not in done.stdout
        assert cluster.head.run("ls -A fvae 2>&1 || true").endswith("No such file or directory\n")
        assert not (cluster.laptop.folder / "home" / ".ray").exists()
    finally:
        cluster.close()
