"""Ray's launcher for machines reached by ssh, extended by checks, every worker, and a complete shutdown.

Ray finds :class:`Provider` by ``provider.module`` in ``cluster.onprem.yaml``: on the machine that runs ``ray up``, and
in the autoscaler on the head. Ray's own ``type: local`` (2.60) counts the head as one of the workers and so leaves
one of them out, and ``ray down`` leaves Ray running on all of them.
"""

from __future__ import annotations

import copy
import ipaddress
import logging
import shlex
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray.autoscaler._private.command_runner import SSHOptions
from ray.autoscaler._private.local.node_provider import LocalNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from fvae.config import ConfigError, require
from pipelines.cluster.settings import refuse, require_file_mounts
from pipelines.training.auth_token import make_token

HEAD, WORKER = "head", "worker"
"""The node types, as Ray's autoscaler names them."""
STOP = "source ~/.bashrc; ! command -v ray || ray stop"
STOP_SECONDS = 60.0
CONNECT_SECONDS = 5
NOTICING_SECONDS = 60.0
"""How long a machine that was removed is not added again; the autoscaler asks every 5 s."""

logger = logging.getLogger(__name__)


class Provider(LocalNodeProvider):
    """The machines of ``cluster.onprem.yaml``: a fixed set, on all of which Ray runs, or on none."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        self._unnoticed: set[str] = set()
        """Machines removed since the autoscaler last listed the nodes."""
        self._asked = threading.Condition()
        super().__init__(provider_config, cluster_name)
        if self._on_head() and not self.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_HEAD}):
            # `ray up` has recorded the head on its own machine; an autoscaler that does not see it launches nothing.
            tags = {
                TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
                TAG_RAY_USER_NODE_TYPE: HEAD,
                TAG_RAY_NODE_NAME: f"ray-{cluster_name}-head",
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
            self.create_node({}, tags, 1)

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Check the file, as Ray calls this first. A user's mistake ends the process with one line."""
        try:
            require_complete(cluster_config)
        except ConfigError as error:
            refuse(error)
        return cluster_config

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The file with as many workers as addresses and ssh settings for the provider; makes the token."""
        make_token()
        config = copy.deepcopy(cluster_config)
        count = len(config["provider"]["worker_ips"])
        config["max_workers"] = count
        config["available_node_types"][WORKER] |= {"min_workers": count, "max_workers": count}
        config["provider"]["auth"] = config["auth"]
        return config

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The file as the head's autoscaler reads it: its key is elsewhere, and it reaches workers directly."""
        cluster_config["provider"] |= {"auth": cluster_config["auth"], "here": HEAD}
        return cluster_config

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """The machines of the cluster, including those that do not answer."""
        found: list[str] = super().non_terminated_nodes(tag_filters)
        if not tag_filters:
            with self._asked:
                self._unnoticed &= set(found)
                self._asked.notify_all()
        return found

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        """Add unused machines to the cluster.

        A machine that was removed waits until the autoscaler has noticed: it identifies machines by their addresses,
        and would wait minutes for the end of the previous node.
        """
        with self._asked:
            self._asked.wait_for(lambda: not self._unnoticed, timeout=NOTICING_SECONDS)
        super().create_node(node_config, tags, count)

    def terminate_node(self, node_id: str) -> None:
        """Stop Ray on a machine, and remove it from the cluster."""
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """:meth:`terminate_node` for each, concurrently. A machine that does not answer is logged and removed."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            for node_id, stopped in zip(node_ids, pool.map(self._stop_ray, node_ids), strict=True):
                if not stopped:
                    logger.warning("%s: cannot be reached; if it still runs Ray, run `ray stop` there", node_id)
                if self._on_head():
                    with self._asked:
                        self._unnoticed.add(node_id)
                super().terminate_node(node_id)

    def _stop_ray(self, node_id: str) -> bool:
        """Whether Ray has been stopped there: through the head, which reaches every worker, or directly."""
        head = self.provider_config["head_ip"]
        through = [] if node_id == head or self._on_head() else [self._through(head)]
        return any(self._ssh_stop(node_id, proxy) for proxy in (*through, self._own_proxy()))

    def _on_head(self) -> bool:
        return self.provider_config.get("here") == HEAD

    def _own_proxy(self) -> str | None:
        return self.provider_config["auth"].get("ssh_proxy_command")

    def _through(self, head: str) -> str:
        proxy = self._own_proxy()
        doubled = proxy and proxy.replace("%", "%%")  # its % are for the inner ssh
        return shlex.join(self._ssh("-W", "%h:%p", proxy=doubled, address=self.external_ip(head)))

    def _ssh(self, *arguments: str, proxy: str | None, address: str) -> list[str]:
        auth = self.provider_config["auth"]
        options = SSHOptions(auth.get("ssh_private_key"), ProxyCommand=proxy, BatchMode="yes", LogLevel="ERROR")
        known = options.to_ssh_options_list(timeout=CONNECT_SECONDS)
        return ["ssh", *known, *arguments, f"{auth['ssh_user']}@{address}"]

    def _ssh_stop(self, node_id: str, proxy: str | None) -> bool:
        command = self._ssh(proxy=proxy, address=self.external_ip(node_id))
        try:
            subprocess.run(
                [*command, f"bash -ic '{STOP}'"],
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=STOP_SECONDS,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            logger.debug("%s: %s", node_id, error)
            return False
        return True


def require_complete(config: dict[str, Any]) -> None:
    """Raise ``ConfigError`` for what ``cluster.onprem.yaml`` lacks, or what cannot work. Changes nothing."""
    provider, auth = config["provider"], config.get("auth") or {}
    head, workers = provider.get("head_ip"), provider.get("worker_ips")
    _require_address("provider.head_ip", head, "10.0.0.10")
    require(
        isinstance(workers, list) and bool(workers),
        "provider.worker_ips: missing; give the addresses of the machines that train, such as [10.0.0.11, 10.0.0.12]",
    )
    assert isinstance(workers, list)
    for worker in workers:
        _require_address("provider.worker_ips", worker, "10.0.0.11")
    doubled = {each for each in [head, *workers] if [head, *workers].count(each) > 1}
    require(not doubled, f"provider.worker_ips: {', '.join(sorted(doubled))} is given twice, or is the head too")
    require(bool(auth.get("ssh_user")), "auth.ssh_user: missing; give the user who may log in on every machine")
    key = auth.get("ssh_private_key", "")
    require(bool(key), "auth.ssh_private_key: missing; give the file of the key that may log in on every machine")
    require(Path(key).expanduser().is_file(), f"auth.ssh_private_key={key}: there is no such file here")
    require_file_mounts(config)


def _require_address(name: str, value: Any, example: str) -> None:
    require(bool(value), f"{name}: missing; give an address such as {example}")
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ConfigError(f"{name}={value}: must be an IP address such as {example}") from None
