"""``ray up cluster.onprem.yaml`` on several hosts: machines, jobs of a laptop, and who else gets in."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.cluster import shipped_files as shipment
from tests.cluster.hosts import PATIENCE, ROOT, SHARED, Host
from tests.cluster.onprem_cluster import SERVER, TOKEN, OnPremises

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("hosts"), pytest.mark.timeout(3 * PATIENCE)]

PORTS = {22, 6379, 6380, 6381, 6382, 6383, 10001, 52365}
"""That any machine of the cluster may reach on another: see docs/cluster.md. Workers' own are from 10002 to 19999."""
REFUSED = f"error: RAY_ADDRESS={SERVER}: refused; RAY_AUTH_MODE=token and the cluster's token "
SEARCH = f"python tune/search.py --trials 3 --epochs 2 --storage {SHARED}/runs"


@pytest.fixture
def stranger(onpremises: OnPremises) -> Host:
    """A host on the same network that is none of the cluster's."""
    return onpremises.network.hosts.get("stranger") or onpremises.network.add("stranger", ssh=False)


def job_of(output: str) -> str:
    """The id in what a command has printed."""
    found = re.search(r"[Tt]he job (\S+?)[.;]? ", output)
    assert found, output
    return found[1]


def read_until(process: subprocess.Popen[str], start: str) -> str:
    """What a command prints, up to the first line that begins so."""
    lines: list[str] = []
    assert process.stdout
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            return "".join(lines)
    raise AssertionError("".join(lines))


def test_every_machine_is_in_the_cluster_and_the_head_trains_nothing(cluster: OnPremises) -> None:
    assert cluster.nodes() == {cluster.head.address: 0.0} | {each.address: 1.0 for each in cluster.workers}
    said = cluster.exec("ray status")
    assert re.search(rf"{len(cluster.workers)} worker\b", said), said
    assert f"0.0/{len(cluster.workers)}.0 CPU" in said


def test_up_again_changes_nothing_and_ends_no_job(cluster: OnPremises) -> None:
    job = cluster.job_until("patient", "enough")
    before = cluster.ray_processes()
    assert all(len(found) >= 1 for found in before.values())

    said = cluster.up()

    assert "Ray runs as it should: nothing to do." in said
    assert cluster.ray_processes() == before
    (cluster.network.shared / "enough").touch()
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, output


def test_two_machines_train_one_model_together(cluster: OnPremises) -> None:
    """By their addresses: as on Debian, each finds its own name at 127.0.1.1."""
    command = f"python -m pipelines.train --name both --workers 2 --train.epochs 1 --storage {SHARED}/runs"
    status, output = cluster.here(command)
    assert status == 0, output
    assert "on 2 workers" in output
    assert json.loads((cluster.network.shared / "runs/both/result.json").read_text())["status"] == "complete"


def test_a_search_runs_there_with_the_code_from_here(cluster: OnPremises) -> None:
    status, output = cluster.here(SEARCH)

    assert status == 0, output
    assert "[  3/3]" in output
    assert "WARNING" not in output
    assert (cluster.network.shared / "runs" / "digits" / "tradeoff.json").exists()
    listed = cluster.head.run("ls -d /tmp/ray/session_latest/runtime_resources/working_dir_files/_ray_pkg_*/")
    (shipped,) = listed.split()
    assert set(cluster.head.run(f"ls -A {shipped}").split()) == set(shipment.SHIPPED)
    assert cluster.head.run(f"cat {shipped}/requirements.lock") == (ROOT / "requirements.lock").read_text()


def test_the_same_command_shows_what_is_finished(cluster: OnPremises) -> None:
    status, output = cluster.here(SEARCH)
    assert status == 0, output
    assert "Submitted as the job search-" in output
    assert "[  1/3]" not in output
    assert "Verdict on the paper's claim" in output


def test_ctrl_c_detaches_the_same_command_follows_and_a_job_that_is_stopped_is_no_success(cluster: OnPremises) -> None:
    command = f"python -m pipelines.train --train.epochs 4000 --storage {SHARED}/runs --name followed"
    first = cluster.start_here(command)
    job = job_of(read_until(first, "epoch    2/4000"))
    cluster.laptop.run("kill -INT $(pgrep -f '^python -m pipelines.train ')")
    output, _ = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1
    assert f"Detached; the job {job} goes on." in output
    assert f"`ray job logs --address {SERVER} --follow {job}`" in output
    assert "RUNNING" in cluster.laptop.run(f"ray job status --address {SERVER} {job} 2>&1", TOKEN)

    second = cluster.start_here(command)
    output = read_until(second, "epoch")
    assert f"The job {job} runs already: following it." in output
    assert output.splitlines()[-1].startswith("epoch    1/4000")
    cluster.laptop.run(f"ray job stop --address {SERVER} {job}", TOKEN)
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert f"error: the job {job} has ended as STOPPED" in output


def test_a_mistake_that_shows_there_only_has_its_exit_status(cluster: OnPremises) -> None:
    status, output = cluster.here(f"python tune/search.py --dataset /nowhere --storage {SHARED}/runs")
    assert status == 2, output
    assert output.splitlines()[-1].startswith("error: --dataset=/nowhere") or "error: /nowhere" in output, output


@pytest.mark.parametrize("env", [{"RAY_AUTH_MODE": "disabled"}, {"HOME": "/tmp"}])
def test_a_laptop_without_the_token_is_refused_in_one_line(cluster: OnPremises, env: dict[str, str]) -> None:
    status, output = cluster.here("python tune/search.py --storage /mnt/x", env)
    assert status == 2, output
    (line,) = output.splitlines()
    assert line.startswith(REFUSED)


def test_only_the_documented_ports_are_open(cluster: OnPremises) -> None:
    for host in (cluster.head, *cluster.workers):
        for address, port, program in host.listening():
            reachable = not address.startswith("127.") and address != "::ffff:127.0.0.1"
            assert not reachable or port in PORTS or 10002 <= port <= 19999, (host.name, address, port, program)
    assert [address for address, port, _ in cluster.head.listening() if port == 8265] == ["127.0.0.1"]


def test_no_port_answers_a_stranger(cluster: OnPremises, stranger: Host) -> None:
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
def test_without_the_token_nothing_is_done(cluster: OnPremises, stranger: Host, token: str) -> None:
    mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    status = stranger.attempt(f"ray status --address {cluster.head.address}:6379", mode)
    job = cluster.laptop.attempt("ray job submit -- touch /mnt/taken", mode | {"RAY_ADDRESS": SERVER, "HOME": "/tmp"})
    for refused in (status, job):
        assert refused.returncode != 0, refused.stdout
        assert re.search(r"[Uu]nauthenticated|[Uu]nauthorized|[Aa]uthentication|AuthToken", refused.stdout), (
            refused.stdout
        )
    assert not (cluster.network.shared / "taken").exists()


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
