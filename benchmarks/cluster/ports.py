"""What listens on a head and a worker after ``ray up``, and what each port answers to a machine without credentials.

    python -m benchmarks.cluster.ports --output benchmarks/results/cluster_ports.txt

The stranger is a host of the same network that was given nothing. Needs root.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from tests.cluster.hosts import ROOT, Host, wait_for
from tests.cluster.onprem_cluster import TOKEN, OnPremises

KINDS = {
    22: "sshd",
    5000: "MLflow",
    6379: "Ray's GCS",
    6380: "raylet",
    6381: "raylet, objects",
    6382: "runtime environments",
    6383: "Ray's agent, gRPC",
    8265: "dashboard and jobs",
    10001: "Ray client",
    52365: "Ray's agent, HTTP",
}
"""What a port is for."""


def answers(stranger: Host, host: Host, ports: list[int]) -> dict[int, str]:
    """By port, what the stranger gets, in a few words."""
    said = stranger.run(
        f"cd {ROOT} && python benchmarks/cluster/strangers.py {host.address} {' '.join(map(str, ports))}", timeout=300
    )
    found = {}
    for line in said.splitlines():
        told = json.loads(line)
        found[told["port"]] = _words(told) if told["port"] != 22 else "asks for a key"
    return found


def _words(told: dict) -> str:
    if not told["open"]:
        return "no connection"
    if not told["answers"]:
        return "takes the connection, and answers nothing"
    kinds = {}
    for request, answer in told["answers"].items():
        kinds.setdefault(answer, []).append(request.removeprefix("/ray.rpc."))
    return "; ".join(f"{_some(requests)}: {answer}" for answer, requests in kinds.items())


def _some(requests: list[str]) -> str:
    return ", ".join(requests[:2]) + (f" and {len(requests) - 2} more requests" if len(requests) > 2 else "")


def table(cluster: OnPremises) -> list[str]:
    """A row for each port of a head and a worker."""
    stranger = cluster.network.add("stranger", ssh=False)
    rows = [("host", "port", "what", "program", "bound to", "a stranger gets")]
    for host in (cluster.head, cluster.workers[0]):
        listening = host.listening()
        ports = sorted({port for _, port, _ in listening})
        told = answers(stranger, host, ports)
        for port in ports:
            bound = sorted({address for address, each, _ in listening if each == port})
            (program, *_) = {program for _, each, program in listening if each == port}
            kind = KINDS.get(port, "a worker process" if 10002 <= port <= 19999 else "?")
            rows.append((host.name, str(port), kind, program, ", ".join(bound), told[port]))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[5]]) for row in rows]


def keep_a_worker_busy(cluster: OnPremises) -> None:
    """Have an actor on the worker, whose process listens too."""
    code = (
        "import ray, time; ray.init(); A = ray.remote(num_cpus=1)(type('A', (), {'here': lambda self: 1}));"
        " a = A.remote(); ray.get(a.here.remote()); open('/mnt/busy', 'w').close(); time.sleep(600)"
    )
    cluster.head.start(f'python -c "{code}"', TOKEN | {"RAY_ADDRESS": "auto"})
    wait_for((cluster.network.shared / "busy").exists, 120, "an actor on the worker")


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fvae-cluster-") as folder:
        cluster = OnPremises(Path(folder) / "network", workers=1, services=True)
        try:
            cluster.up()
            cluster.await_workers([each.address for each in cluster.workers])
            keep_a_worker_busy(cluster)
            lines = table(cluster)
        finally:
            cluster.close()
    print("\n".join(lines))
    if options.output:
        head = "python -m benchmarks.cluster.ports; the stranger is in the same network, without any credentials\n\n"
        options.output.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
