"""The settings in ``cluster.yaml`` that its user gives, and their checks."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml

from fvae.config import ConfigError, one_line, require
from pipelines.cli.command_line import BAD_INPUT
from pipelines.training.auth_token import TOKEN

_REGION = r"[a-z]{2}(-[a-z]+)+-\d"
_BUCKET = r"(?!\d+\.\d+\.\d+\.\d+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_NAME = r"[a-z][a-z0-9-]{0,39}"
_WIDEST = {4: 8, 6: 32}
"""Shortest prefix that may reach port 22: a provider's whole network, not half of the internet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Region, network and bucket of a cluster. Raises ``ConfigError`` for what is missing or cannot work."""

    cluster_name: str
    """Every resource on AWS carries it, in its name and as the tag ``ray-cluster-name``."""
    region: str
    """Such as ``us-east-1``."""
    bucket: str
    """The one S3 bucket: ``data/``, ``runs/`` and ``mlflow/``."""
    ssh_from: tuple[str, ...]
    """Networks in CIDR notation that may reach the head's port 22; nothing else is open."""
    key_name: str
    """EC2 key pair; its private part is ``~/.ssh/KEY_NAME.pem``."""
    zones: tuple[str, ...] = ()
    """Availability zones, in order of preference. Empty: every zone of the region."""
    vpc: str | None = None
    """The network. ``None``: the region's default VPC."""

    def __post_init__(self) -> None:
        self._require_pattern("cluster_name", self.cluster_name, _NAME, "lower-case letters, digits and dashes")
        self._require_pattern("provider.region", self.region, _REGION, "such as us-east-1")
        self._require_pattern("provider.bucket", self.bucket, _BUCKET, "the name of an S3 bucket, without s3://")
        self._require_pattern("provider.key_pair.key_name", self.key_name, r"[\w.-]+", "the name of an EC2 key pair")
        require(bool(self.ssh_from), "provider.ssh_from: missing; give your network, such as 203.0.113.7/32")
        for network in self.ssh_from:
            _require_network(network)
        for zone in self.zones:
            require(
                re.fullmatch(re.escape(self.region) + "[a-z]", zone) is not None,
                f"provider.availability_zone={zone}: not in the region {self.region}; such as {self.region}a",
            )

    @staticmethod
    def _require_pattern(name: str, value: Any, pattern: str, what: str) -> None:
        require(value is not None and value != "", f"{name}: missing; give {_article(what)}")
        require(isinstance(value, str) and re.fullmatch(pattern, value) is not None, f"{name}={value}: must be {what}")

    @property
    def private_key(self) -> Path:
        """Where ssh finds the key on this machine."""
        return Path("~/.ssh").expanduser() / f"{self.key_name}.pem"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ClusterSettings:
        """From the contents of ``cluster.yaml``."""
        provider = config.get("provider") or {}
        ssh_from = provider.get("ssh_from") or ()
        zones = provider.get("availability_zone") or ""
        return cls(
            cluster_name=config.get("cluster_name", ""),
            region=provider.get("region", ""),
            bucket=provider.get("bucket", ""),
            ssh_from=tuple([ssh_from] if isinstance(ssh_from, str) else ssh_from),
            key_name=(provider.get("key_pair") or {}).get("key_name", ""),
            zones=tuple(zone.strip() for zone in zones.split(",") if zone.strip()),
            vpc=provider.get("vpc"),
        )


def read_config(path: Path) -> dict[str, Any]:
    """The contents of a cluster file. Raises ``ConfigError`` where it is none."""
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML ({one_line(error)})") from error
    require(isinstance(config, dict) and "provider" in config, f"{path}: is no cluster file; it has no provider")
    return config


def require_file_mounts(config: dict[str, Any]) -> None:
    """Raise ``ConfigError`` where a file that ``ray up`` copies to the machines is missing here."""
    for local in (config.get("file_mounts") or {}).values():
        if Path(local) != TOKEN:  # made where it is missing
            exists = Path(local).expanduser().exists()
            require(exists, f"file_mounts: there is no {local} here; run ray up in the folder of the cluster file")


def refuse(error: ConfigError) -> NoReturn:
    """End the process with one line and exit status 2: other exceptions Ray catches or shows as a traceback."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


def _article(what: str) -> str:
    return f"a name {what}" if what.startswith("such") else what


def _require_network(network: Any) -> None:
    name = f"provider.ssh_from={network}"
    try:
        found = ipaddress.ip_network(network, strict=False)
    except ValueError:
        raise ConfigError(f"{name}: must be a network such as 203.0.113.7/32 or 198.51.100.0/24") from None
    require(found.prefixlen > 0, f"{name}: would open ssh to the whole internet; give your own network")
    require(
        found.prefixlen >= _WIDEST[found.version],
        f"{name}: would open ssh to {found.num_addresses:,} addresses; give your own network",
    )
    require(str(found) == str(network), f"{name}: is an address within {found}; write {found}, or the address with /32")
