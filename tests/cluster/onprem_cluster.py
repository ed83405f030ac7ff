"""A cluster on a :class:`tests.cluster.hosts.Network`, by ``cluster.onprem.yaml`` and the commands of a user."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.hosts import PATIENCE, ROOT, SHARED, Host, Network, wait_for

SERVER = "http://127.0.0.1:8265"
"""The job server, through the tunnel."""
TOKEN = {"RAY_AUTH_MODE": "token"}
HASTE = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "8"}
"""A machine that is gone is missed after some 10 s, not half a minute; one that is only busy is not."""
MEMORY = 150 * 2**20
"""Of each host's object store, in bytes."""


class OnPremises:
    """One head and workers of one core each, not yet up."""

    def __init__(self, folder: Path, workers: int, *, services: bool = False) -> None:
        self.network = Network(folder)
        self.laptop = self.network.laptop
        self.services = services
        self.head_options: list[str] = []
        """Further options of the head's ``ray start``."""
        self._tunnel: subprocess.Popen[str] | None = None
        self._up = False
        self.head = self.add("head")
        self.workers = [self.add(f"worker{number}") for number in range(1, workers + 1)]

    def add(self, name: str) -> Host:
        """A host on which the lock file's packages are installed already."""
        host = self.network.add(name)
        lock = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()[:16]
        host.run(
            f"mkdir -p fvae-venvs && ln -sfnT {ROOT}/.venv fvae-venvs/{lock} && test -e fvae-venvs/{lock}/installed"
        )
        return host

    def config(self) -> dict[str, Any]:
        """``cluster.onprem.yaml``, filled in; each host is told that it is small."""
        config = yaml.safe_load((ROOT / "cluster.onprem.yaml").read_text())
        config["provider"] |= {"head_ip": self.head.address, "worker_ips": [each.address for each in self.workers]}
        config["auth"]["ssh_user"] = "root"
        start, services = config["head_start_ray_commands"]
        haste = " ".join(f"{name}={value}" for name, value in HASTE.items())
        options = " ".join((f"--object-store-memory={MEMORY}", *self.head_options))
        assert "pipelines.cluster.start_head --node" in start
        start = start.replace("start_head --node", f"start_head {options} --node")
        if self.services:
            config["head_start_ray_commands"] = [start.replace(" python -m", f" {haste} python -m"), services]
        else:
            assert "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 " in start
            config["head_start_ray_commands"] = [start.replace("MLFLOW_TRACKING_URI=http://127.0.0.1:5000", haste)]
        (worker,) = config["worker_start_ray_commands"]
        assert "ray start --address" in worker
        small = f"ray start --num-cpus=1 --object-store-memory={MEMORY} --address"
        config["worker_start_ray_commands"] = [worker.replace("ray start --address", small)]
        return config

    def write(self) -> str:
        """Write the file; returns where the laptop finds it."""
        (self.network.shared / "cluster.yaml").write_text(yaml.safe_dump(self.config(), sort_keys=False))
        return f"{SHARED}/cluster.yaml"

    def up(self) -> str:
        """``ray up``; returns what it said."""
        printed = self.laptop.run(f"cd {ROOT} && ray up --yes {self.write()} 2>&1", TOKEN)
        self._up = True
        return printed

    def be_up(self) -> None:
        """Where it is not up: ``ray up``, the tunnel, and all workers."""
        if not self._up:
            self.up()
            self.open_tunnel()
            self.await_workers()

    def down(self) -> str:
        """``ray down``; returns what it said."""
        self._up = False
        return self.laptop.run(f"ray down --yes {SHARED}/cluster.yaml 2>&1", TOKEN)

    def exec(self, command: str) -> str:
        """``ray exec`` of a command for the head's shell."""
        return self.laptop.run(f"ray exec {SHARED}/cluster.yaml '{command}' 2>/dev/null", TOKEN)

    def nodes(self) -> dict[str, float]:
        """Cores by address, of the machines that Ray has now."""
        listed = self.head.attempt("ray list nodes --format yaml --filter state=ALIVE", TOKEN | {"RAY_ADDRESS": SERVER})
        if listed.returncode or not listed.stdout.lstrip().startswith("-"):
            return {}
        return {node["node_ip"]: node["resources_total"].get("CPU", 0.0) for node in yaml.safe_load(listed.stdout)}

    def await_workers(self, addresses: Sequence[str] | None = None) -> None:
        """Until just these are in the cluster, besides the head; all workers, unless ``addresses`` says otherwise."""
        wanted = [each.address for each in self.workers] if addresses is None else addresses
        wait_for(lambda: set(self.nodes()) == {self.head.address, *wanted}, what=f"workers {wanted}")

    def open_tunnel(self) -> None:
        """The way to the head's job server, as ``ray dashboard`` opens it; after a reboot of the head, again."""
        if self._tunnel:
            self._tunnel.kill()
            self._tunnel.wait()
        options = "-o StrictHostKeyChecking=no -o ExitOnForwardFailure=yes -o ServerAliveInterval=5"
        command = f"ssh -N {options} -L 8265:127.0.0.1:8265 root@{self.head.address}"
        self._tunnel = self.laptop.start(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: any(port == 8265 for _, port, _ in self.laptop.listening()), what="the tunnel")

    def start_here(self, command: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """A command on the laptop, in the project's folder, with the job server's URL; its output is one stream."""
        environment = TOKEN | {"RAY_ADDRESS": SERVER, "PYTHONUNBUFFERED": "1"} | (env or {})
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return self.laptop.start(f"env --chdir={ROOT} {command}", environment, **pipes)

    def here(self, command: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        """:meth:`start_here` to its end: exit status and output."""
        process = self.start_here(command, env)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            seen = self.report()
            process.kill()
            output, _ = process.communicate()
            raise AssertionError(f"{command}: no end after {PATIENCE:g} s\n{output}\n{seen}") from None
        return process.returncode, output

    def job_until(self, name: str, end: str) -> subprocess.Popen[str]:
        """The laptop's command for a job that runs until there is a file ``end`` in the shared folder."""
        command = f"bash -c 'until [ -e {SHARED}/{end} ]; do sleep 0.2; done'"
        job = self.start_here(f"ray job submit --submission-id {name} -- {command}")
        wait_for(lambda: self.head.processes(f"{SHARED}/{end}"), what="the job")
        return job

    def report(self) -> str:
        """What runs on each host, and the last lines of Ray's newest logs there."""
        look = "ps ww -e -o pid=,stat=,etime=,wchan:20=,args= | cut -c -250; cd /tmp/ray/session_latest/logs && "
        look += "tail -n 15 $(ls -t *.out *.err *.log | head -n 12)"
        return "\n".join(f"--- {host.name}\n{host.attempt(look).stdout}" for host in (self.head, *self.workers))

    def ray_processes(self) -> dict[str, set[str]]:
        """By host, the ids and start times of Ray's own processes."""
        found = {}
        for host in (self.head, *self.workers):
            listed = host.run("ps ww -e -o pid=,lstart=,comm=").splitlines()
            found[host.name] = {line for line in listed if line.split()[-1] in ("gcs_server", "raylet")}
        return found

    def close(self) -> None:
        """Switch everything off."""
        self.network.close()  # which ends the tunnel
        if self._tunnel:
            self._tunnel.wait()
