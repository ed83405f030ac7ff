"""Options of ``python -m pipelines.services``, and the settings of the services that follow from them."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from fvae.config import ConfigError, require, require_choice, require_integer, require_positive
from pipelines.cli.quantities import parse_bytes
from pipelines.services.paths import Places
from pipelines.storage import is_remote, open_storage

Program = Literal["mlflow", "scheduler"]
PROGRAMS: tuple[Program, ...] = get_args(Program)

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How the services of one data folder run. Kept there as JSON, without any secret."""

    artifacts: str
    """MLflow's artifacts: ``s3://bucket/prefix`` or a folder's absolute path."""
    database: str | None = None
    """MLflow's database, ``postgresql+psycopg2://user@host/name`` without its password; ``None``: SQLite."""
    host: str = "127.0.0.1"
    """Address that MLflow listens on."""
    port: int = 5000
    """Port that MLflow listens on."""
    public_names: tuple[str, ...] = ()
    """Host names, beside localhost, by which browsers may reach MLflow."""
    programs: tuple[Program, ...] = PROGRAMS
    """Which services run here."""
    log_size: str = "10MiB"
    """Size at which a log is rotated."""
    log_copies: int = 5
    """Rotated logs kept of each program."""
    at_boot: bool = False
    """Whether they come back when the machine starts."""

    def __post_init__(self) -> None:
        if is_remote(self.artifacts):
            open_storage(self.artifacts)  # raises where it is no location
        require_integer("--port", self.port, 1)
        require(self.port <= 65535, f"--port={self.port}: must be from 1 to 65535")
        require_integer("--log-copies", self.log_copies, 1)
        parse_bytes("--log-size", self.log_size)
        require(self.programs != (), "--programs: name at least one of mlflow, scheduler")
        for program in self.programs:
            require_choice("--programs", program, PROGRAMS)
        for name in self.public_names:
            require(
                _NAME.fullmatch(name) is not None,
                f"--public-names={name}: must be plain host names, such as mlflow.example.org",
            )
        require(
            _is_loopback(self.host) or self.public_names != (),
            f"--host={self.host}: others could reach it, and passwords would cross the network in the clear; keep "
            "127.0.0.1 and use an ssh tunnel, or name the host that a TLS proxy serves with --public-names",
        )

    @property
    def url(self) -> str:
        """MLflow's URL for clients on this machine."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{host}:{self.port}"

    @property
    def log_bytes(self) -> int:
        """Bytes at which a log is rotated."""
        return parse_bytes("--log-size", self.log_size)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ServiceSettings:
        """The settings that :meth:`to_dict` wrote. Raises ``ConfigError`` for anything else."""
        try:
            tuples = {name: tuple(values[name]) for name in ("public_names", "programs")}
            return cls(**values | tuples)
        except (TypeError, KeyError) as error:
            raise ConfigError(f"services.json: not the settings of this version's services ({error})") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise ConfigError(f"--host={host}: must be an IPv4 address of this machine, such as 127.0.0.1") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _DataFolder:
    data: str = "~/fvae-data"
    """Folder of what must survive: databases, secrets, logs."""

    def __post_init__(self) -> None:
        self.places()

    def places(self) -> Places:
        """Where everything lies below the data folder. Raises ``ConfigError``."""
        return Places.below(self.data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Up(_DataFolder):
    """Start the services, or bring them up to date: only what changed is restarted.

    Settings that are not given are as they were at the last `up`; at the first, the defaults in brackets. A database's
    password comes from ~/.pgpass, or from a URI in MLFLOW_BACKEND_STORE_URI: on a command line others could read it.
    """

    artifacts: str | None = None
    """Where MLflow keeps artifacts: s3://BUCKET/prefix or a folder. [DATA/artifacts]"""
    database: str | None = None
    """postgresql://USER@HOST/NAME. [SQLite in DATA]"""
    host: str | None = None
    """Address that MLflow listens on. [127.0.0.1]"""
    port: int | None = None
    """Port that MLflow listens on. [5000]"""
    public_names: tuple[str, ...] | None = None
    """Host names by which browsers reach MLflow beside localhost, such as a TLS proxy's. [none]"""
    programs: tuple[Program, ...] | None = None
    """Which services run here. [mlflow scheduler]"""
    log_size: str | None = None
    """Size at which a log is rotated. [10MiB]"""
    log_copies: int | None = None
    """Rotated logs kept of each program. [5]"""
    at_boot: bool = False
    """Start them at every boot too, until `down`: by systemd, or by a line in the crontab."""
    reset_password: bool = False
    """Give MLflow's user admin a new password."""
    moved: bool = False
    """The contents of the previous --artifacts or --database were moved to the new one."""
    patience: float = 180.0
    """Seconds until the services must answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("--patience", self.patience)

    def settings(self, before: ServiceSettings | None, database: str | None) -> ServiceSettings:
        """The services' new settings, given those ``before``. Raises ``ConfigError``.

        ``database`` is the requested URI, without its password; ``None``: none was requested.
        """
        values = {} if before is None else before.to_dict()
        artifacts = self.artifacts
        if artifacts is None and before is None:
            artifacts = str(self.places().data / "artifacts")
        elif artifacts is not None and not is_remote(artifacts):
            artifacts = str(Path(artifacts).expanduser().resolve())
        given = {
            "artifacts": artifacts.rstrip("/") if artifacts else None,
            "database": database,
            "host": self.host,
            "port": self.port,
            "public_names": self.public_names,
            "programs": self.programs,
            "log_size": self.log_size,
            "log_copies": self.log_copies,
            "at_boot": self.at_boot or None,
        }
        settings = ServiceSettings.from_dict(
            {"public_names": (), "programs": PROGRAMS}
            | values
            | {name: value for name, value in given.items() if value is not None}
        )
        if before is not None and not self.moved:
            for name in ("artifacts", "database"):
                was, now = getattr(before, name), getattr(settings, name)
                require(
                    was == now,
                    f"--{name}={now}: the runs so far are in {was or 'SQLite'}; move them there and add --moved, "
                    "or give another --data",
                )
        return settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status(_DataFolder):
    """Show the services. Exit status 1 where one is down."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Down(_DataFolder):
    """Stop the services and what supervises them, until the next `up`. Nothing is deleted."""

    patience: float = 90.0
    """Seconds until they must have ended."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("--patience", self.patience)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """MLflow's server and the scheduler on a head machine, kept up by supervisord."""

    command: Annotated[
        Annotated[Up, tyro.conf.subcommand("up")]
        | Annotated[Status, tyro.conf.subcommand("status")]
        | Annotated[Down, tyro.conf.subcommand("down")],
        tyro.conf.arg(name=""),
    ]
