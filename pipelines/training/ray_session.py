"""A Ray for the length of a job: our own on this machine, or the cluster that ``RAY_ADDRESS`` names."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from fvae.config import ConfigError
from pipelines.cli.stop_signals import treat_as_ctrl_c
from pipelines.training.auth_token import make_token
from pipelines.training.autoscaler import await_machines
from pipelines.training.ray_environment import PASSED_ON

OBJECT_STORE_BYTES = 200 * 2**20
"""Ray's shared memory on one machine, besides the images."""
ANSWER_SECONDS = 5.0
"""How long the cluster that ``RAY_ADDRESS`` names may take to accept a connection."""
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a container's limits."""

TOKEN_HINT = "; where it asks for a token, RAY_AUTH_MODE=token and ~/.ray/auth_token must be as on its head"


@contextmanager
def ray_session(held_bytes: int, needed: Mapping[str, tuple[str, float]]) -> Iterator[None]:
    """A Ray that ends with the block where it is our own.

    Args:
        held_bytes: of the images that its processes share.
        needed: by resource (``CPU``, ``GPU``), the option that asks for it and how much one node must have of it.

    Raises ``ConfigError`` where no node has it, or where there is no Ray to be had.
    """
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address:
        require_answer(address)
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ}}
    else:
        require_loopback()
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES + 2 * held_bytes}
        if has_less_than_a_core():
            options["num_cpus"] = 1  # Ray would count none, and nothing could ever run
    if not address:
        _own_token()
    try:
        with _silent_stderr() if address else contextlib.nullcontext():
            ray.init(address=address or "local", **options)  # not whichever Ray this machine happens to run
    except Exception as error:  # Ray raises plain ones, too
        where, hint = (f"RAY_ADDRESS={address}", TOKEN_HINT) if address else ("a Ray on this machine", _remedy(error))
        raise ConfigError(f"{where}: cannot be used ({_first_line(error)}){hint}") from error
    finally:
        treat_as_ctrl_c()
    try:
        if address:
            bundle = {name: amount for name, (_, amount) in needed.items() if amount}
            await_machines([bundle], lambda: not _lacking(needed))
        for name in _lacking(needed):
            option, amount = needed[name]
            have = _most(name)
            verb = "is" if have == 1 else "are"
            raise ConfigError(f"{option}={amount}: there {verb} {have:g} on the largest node")
        yield
    finally:
        gc.collect()  # references to Ray's objects in cycles: freed after the shutdown, they end the process
        ray.shutdown()


def require_loopback() -> None:
    """Raise ``ConfigError`` where this machine does not reach itself: Ray would wait for minutes, deaf to Ctrl-C."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"a Ray on this machine: 127.0.0.1 cannot be reached ({error.strerror or error}), over which its processes "
            "speak; bring the loopback interface up: ip link set lo up"
        ) from error


def has_less_than_a_core() -> bool:
    """Whether the container that this process runs in may use less than one core."""
    first = CGROUP / "cpu"
    for quota, period in ((CGROUP / "cpu.max", None), (first / "cpu.cfs_quota_us", first / "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            words = quota.read_text().split() + (period.read_text().split() if period else [])
            if 0 < int(words[0]) < int(words[1]):
                return True
    return False


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what Ray's C++ code writes to standard error: at length what the raised error says too."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _remedy(error: Exception) -> str:
    """The advice after the line that says why Ray does not start; empty where there is none."""
    line = str(error)
    if "AF_UNIX path" in line:
        return "; its folder's path is too long: set RAY_TMPDIR to a short one, such as /tmp"
    if isinstance(error, OSError) and error.errno is not None:
        return "; set RAY_TMPDIR to a short path of a folder of yours with room, such as /tmp/$USER"
    if "timed out during startup" in line:
        return "; start it again, when the machine is less busy"
    return ""


def _own_token() -> None:
    """Make the token of our own Ray: all users of the machine could read the one that Ray makes, and run code here."""
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not given and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        try:
            make_token()
        except OSError as error:
            raise ConfigError(
                f"a Ray on this machine: cannot be used ({error}); set HOME to a folder of yours that can be written"
            ) from error


def _most(resource: str) -> float:
    """The amount of a resource on the node that has most of it."""
    return max(float(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"])


def _lacking(needed: Mapping[str, tuple[str, float]]) -> list[str]:
    """The resources of which no node has what is needed."""
    return [name for name, (_, amount) in needed.items() if amount > _most(name)]


def require_answer(address: str) -> None:
    """Raise ``ConfigError`` where nothing listens at ``host:port``: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto" and the like, which Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from error
