"""Drain this machine when EC2 interrupts its spot instance, so that training writes a checkpoint first.

    python -m pipelines.cluster.spot_watcher --address $RAY_HEAD_IP:6379

EC2 announces it two minutes ahead, on the instance's own metadata service. Ray then gives the machine no new work, and
Ray Train has its workers write a checkpoint (``pipelines.train``). The command runs until the machine is gone.
``AWS_EC2_METADATA_SERVICE_ENDPOINT`` is the address of another metadata service.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import socket
import time
import urllib.error
import urllib.request

from fvae.config import ConfigError, one_line, require, require_positive
from pipelines.cli.command_line import run

TOKEN_SECONDS = 21600
"""Lifetime of a session with the metadata service: the maximum."""
ANSWER_SECONDS = 2.0
"""Seconds until the metadata service, which is on the same machine, must answer."""
RETRY_SECONDS = 1.0
"""Seconds between attempts to reach the cluster's head, once there is a notice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatcherSettings:
    """The cluster to notify, and how often to poll."""

    address: str
    """The head's GCS, ``HOST:PORT``."""
    seconds: float = 5.0
    """Seconds between two polls; AWS recommends 5."""

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        require(bool(host) and port.isdigit(), f"--address={self.address}: must be HOST:PORT of the head")
        require_positive("--seconds", self.seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notice:
    """What EC2 will do to this instance, and when (seconds since 1970)."""

    action: str
    time: float


class Metadata:
    """EC2's instance metadata service, version 2."""

    def __init__(self, endpoint: str | None = None) -> None:
        given = endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
        self._endpoint = given.rstrip("/")
        self._token = ""

    def get(self, path: str) -> str | None:
        """The text at ``latest/meta-data/PATH``, ``None`` where there is none. Raises ``OSError`` where no answer."""
        for attempt in ("with the token we have", "with a new one"):
            if not self._token or attempt == "with a new one":
                seconds = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
                self._token = self._request("PUT", "latest/api/token", seconds)
            try:
                return self._request("GET", f"latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401:  # 401: the token has expired
                    raise
        raise OSError("the metadata service refuses its own token")

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._endpoint}/{path}", method=method, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            return answer.read().decode()


def read_notice(metadata: Metadata) -> Notice | None:
    """The notice for this instance, if there is one. Raises ``OSError`` where the service does not answer."""
    text = metadata.get("spot/instance-action")
    if text is None:
        return None
    found = json.loads(text)
    return Notice(action=found["action"], time=datetime.datetime.fromisoformat(found["time"]).timestamp())


def drain(address: str, instance: str, notice: Notice) -> int:
    """Have Ray drain the machine with this EC2 instance id. Returns how many Ray nodes were drained.

    Raises ``OSError``, or what Ray raises, where the head cannot be reached.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()  # Ray would try for half a minute
    import ray._raylet  # a second of imports, which most watchers never need
    from ray.core.generated import autoscaler_pb2, gcs_pb2

    gcs = ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]  # missing in Ray's own stub
    count = 0
    for node in gcs.get_all_node_info(timeout=10).values():
        if node.instance_id != instance or node.state != gcs_pb2.GcsNodeInfo.ALIVE:
            continue
        accepted, why = gcs.drain_node(
            node.node_id.hex(),
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            f"EC2 will {notice.action} its spot instance {instance}",
            int(notice.time * 1000),
        )
        if accepted:
            count += 1
        else:
            print(f"Ray refuses to drain its node {node.node_id.hex()}: {why}")
    return count


def main(settings: WatcherSettings) -> int:
    """Watch for a notice. Returns 0 at the time of the interruption. Raises ``ConfigError`` outside EC2."""
    metadata = Metadata()
    try:
        instance = metadata.get("instance-id")
    except OSError as error:
        raise ConfigError(f"this is no EC2 instance: its metadata service does not answer ({error})") from error
    if instance is None:
        raise ConfigError("this is no EC2 instance: its metadata service knows no instance-id")
    print(f"watching for a spot notice to {instance}", flush=True)
    while (notice := _look(metadata)) is None:
        time.sleep(settings.seconds)
    left = notice.time - time.time()
    print(f"EC2 will {notice.action} {instance} in {left:.0f} s", flush=True)
    drained = False
    while time.time() < notice.time:  # until the end: a node that joins late must be drained too
        drained = _drained(settings.address, instance, notice, drained)
        time.sleep(settings.seconds if drained else RETRY_SECONDS)
    return 0


def _look(metadata: Metadata) -> Notice | None:
    try:
        return read_notice(metadata)
    except (OSError, ValueError, KeyError) as error:
        print(f"the metadata service: {error}; trying again", flush=True)
        return None


def _drained(address: str, instance: str, notice: Notice, before: bool) -> bool:
    try:
        count = drain(address, instance, notice)
    except Exception as error:  # noqa: BLE001  (whatever it is, trying again is all there is)
        print(f"Ray at {address}: {one_line(error, 200)}; trying again", flush=True)
        return before
    if count and not before:
        print(f"drained: Ray gives {instance} no new work", flush=True)
    return before or bool(count)


if __name__ == "__main__":
    run(main, WatcherSettings)
