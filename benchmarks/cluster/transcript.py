"""One head and two workers as three hosts on this machine: what a user types from ``ray up`` to ``ray down``, and when.

    python -m benchmarks.cluster.transcript --output benchmarks/results/cluster.txt

In the middle of the search one worker's cable is pulled and its power cut, and later it comes back. Needs root.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster.hosts import SHARED, wait_for
from tests.cluster.onprem_cluster import OnPremises

NOISE = re.compile(
    r"\d{4}-\d\d-\d\d .*\s(V*INFO|V*WARN\w*|SUCC)\s|\S+\.py$|.*RAY_API_SERVER_ADDRESS=|"
    r"Shared connection|sent \d|total size|sending incr|^\s*$|^\./$|.*/$"
)
"""Lines of Ray's launcher and rsync that tell a reader nothing."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SEARCH = f"python tune/search.py --trials 8 --epochs 60 --storage {SHARED}/runs"


class Transcript:
    """Lines with the seconds since the beginning."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """A line, now."""
        line = f"{time.monotonic() - self._began:7.1f} s  {text}"
        self.lines.append(line)
        print(line, flush=True)

    def told(self, output: str, keep: str) -> None:
        """Those of a command's lines that match."""
        for line in output.splitlines():
            plain = COLOURS.sub("", line).rstrip()
            if re.search(keep, plain) and not NOISE.match(plain):
                self.say(f"    {plain}")


def running(cluster: OnPremises) -> list[dict]:
    """The search's trials that have finished an epoch and go on."""
    paths = (cluster.network.shared / "runs" / "digits" / "trials").glob("*/trial.json")
    records = [json.loads(path.read_text()) for path in paths]
    return [record for record in records if record["status"] == "running" and record["history"]]


def follow(transcript: Transcript, search: subprocess.Popen[str], until: str) -> None:
    """Show the search's lines up to one that matches, or to its end."""
    assert search.stdout
    for told in search.stdout:
        line = COLOURS.sub("", told)
        if not line.startswith(("(raylet)", "\t(", "    /", "20")) and line.strip():
            transcript.say(f"    {line.rstrip()}")
        if re.search(until, line):
            return


def record(cluster: OnPremises) -> list[str]:
    """Everything, in a user's order. Returns the transcript."""
    transcript = Transcript()
    say = transcript.say
    address = {host.address: host.name for host in (cluster.head, *cluster.workers)}
    say(f"hosts: {', '.join(f'{name} {ip}' for ip, name in address.items())}; one core for training on each worker")

    say("$ ray up --yes cluster.onprem.yaml")
    transcript.told(cluster.up(), r"Ray runtime started|^MLflow|http://|services?:|scheduler")
    say("the head is up")
    cluster.await_workers([each.address for each in cluster.workers])
    say("both workers are in the cluster")

    say("$ ray exec cluster.onprem.yaml 'ray status'")
    transcript.told(cluster.exec("ray status"), r"^ \d|^ .*CPU")

    say("$ ray up --yes cluster.onprem.yaml        (again, nothing has changed)")
    transcript.told(cluster.up(), r"nothing to do|unchanged|as it should")
    say("done")

    cluster.open_tunnel()
    say("$ ray dashboard cluster.onprem.yaml &     (the tunnel to the job server)")
    say(f"$ RAY_ADDRESS=http://127.0.0.1:8265 {SEARCH}")
    search = cluster.start_here(SEARCH)
    follow(transcript, search, r"^\[  2/8\]")
    wait_for(lambda: len(running(cluster)) == 2, 120, "a trial on each worker")
    lost = cluster.workers[0]
    cluster.network.cut(lost.name)
    lost.lose()
    say(f"!! {lost.name}'s cable is pulled and its power cut, in the middle of a trial")
    follow(transcript, search, r"^\[  5/8\]")
    cluster.workers[0] = cluster.add(lost.name)
    say(f"!! {lost.name} is switched on again")
    follow(transcript, search, "^nothing$")
    say(f"exit status {search.wait()}")
    cluster.await_workers([each.address for each in cluster.workers])
    say("both workers are in the cluster; nobody typed anything")

    say("$ ray down --yes cluster.onprem.yaml")
    transcript.told(cluster.down(), r"Stopped|No nodes remaining|cannot be reached")
    say("done")
    for host in (cluster.head, *cluster.workers):
        left = [command.split()[0] for command in host.processes("ray") if "sshd" not in command]
        say(f"Ray's processes on {host.name}: {', '.join(left) or 'none'}")
    return transcript.lines


def main() -> None:
    """Make the transcript, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fvae-cluster-") as folder:
        cluster = OnPremises(Path(folder) / "network", workers=2, services=True)
        try:
            lines = record(cluster)
        finally:
            cluster.close()
    if options.output:
        head = (
            "python -m benchmarks.cluster.transcript; three hosts as network namespaces of one machine of two cores\n\n"
        )
        options.output.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
