"""A Ray for the length of a job: our own on this machine, or the cluster that ``RAY_ADDRESS`` names."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from fvae.config import ConfigError
from pipelines.cluster.auth_token import make_token
from pipelines.machines_to_come import await_machines
from pipelines.ray_environment import PASSED_ON
from pipelines.stop_signals import treat_as_ctrl_c

OBJECT_STORE_BYTES = 200 * 2**20
"""Ray's shared memory on one machine, besides the images."""
ANSWER_SECONDS = 5.0
"""How long the cluster that ``RAY_ADDRESS`` names may take to accept a connection."""

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
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES + 2 * held_bytes}
    try:
        if not address:
            _own_token()
        ray.init(address=address or "local", **options)  # not whichever Ray this machine happens to run
        treat_as_ctrl_c()
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        where, hint = (f"RAY_ADDRESS={address}", TOKEN_HINT) if address else ("a Ray on this machine", "")
        raise ConfigError(f"{where}: cannot be used ({str(error).splitlines()[0]}){hint}") from error
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
        ray.shutdown()


def _own_token() -> None:
    """Ray makes one for its own cluster, which all users of the machine could read, and then run code here."""
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not given and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        make_token()


def _most(resource: str) -> float:
    """Of a resource, on the node that has most of it."""
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
