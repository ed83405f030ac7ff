"""The files and folders of the services, below one data folder."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from fvae.config import ConfigError, require

_PLAIN = re.compile(r"[A-Za-z0-9_@+.,:=/ -]+")
_SOCKET_LENGTH = 80
"""Longest path of the socket: Linux allows 107, and supervisord makes it under a longer name first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """The files and folders of one data folder. Only this user can read them."""

    data: Path
    """Absolute."""

    @classmethod
    def below(cls, data: str) -> Places:
        """Those of ``data``, which need not exist. Raises ``ConfigError`` for a path that cannot be used."""
        path = Path(data).expanduser().resolve()
        require(
            _PLAIN.fullmatch(str(path)) is not None,
            f"--data={path}: may hold letters, digits, spaces and _@+.,:=- only (crontab and supervisord read it)",
        )
        places = cls(data=path)
        require(
            len(str(places.socket)) <= _SOCKET_LENGTH,
            f"--data={path}: too long by {len(str(places.socket)) - _SOCKET_LENGTH} characters for the name of a "
            "socket in it; give a shorter path",
        )
        return places

    def make(self) -> None:
        """Make the folders that are missing, and close the secrets to others. Raises ``ConfigError``."""
        try:
            for folder in (self.data, self.secrets, self.logs, self.supervisor.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.secrets.chmod(0o700)
            self.supervisor.parent.chmod(0o700)
            (self.data / f".{os.getpid()}.probe").touch()
            (self.data / f".{os.getpid()}.probe").unlink()
        except OSError as error:
            raise ConfigError(f"--data={self.data}: cannot be written ({error.strerror})") from error

    @property
    def settings(self) -> Path:
        """How the services run, as JSON."""
        return self.data / "services.json"

    @property
    def lock(self) -> Path:
        """Held by `up` and `down` while they run."""
        return self.data / ".services.lock"

    @property
    def database(self) -> Path:
        """MLflow's runs and models, where it is SQLite."""
        return self.data / "mlflow.db"

    @property
    def users(self) -> Path:
        """MLflow's users and what they may do, where it is SQLite."""
        return self.data / "mlflow-auth.db"

    @property
    def schedules(self) -> Path:
        """The scheduler's store."""
        return self.data / "schedules.db"

    @property
    def logs(self) -> Path:
        """Folder of a log per program, and supervisord's."""
        return self.data / "logs"

    @property
    def secrets(self) -> Path:
        """Folder of all that others must not read."""
        return self.data / "secrets"

    @property
    def supervisor(self) -> Path:
        """supervisord's configuration."""
        return self.data / "supervisor" / "supervisord.conf"

    @property
    def socket(self) -> Path:
        """What supervisord listens on."""
        return self.data / "supervisor" / "supervisor.sock"

    @property
    def pid(self) -> Path:
        """supervisord's process id."""
        return self.data / "supervisor" / "supervisord.pid"

    def log(self, program: str) -> Path:
        """The log of a program, or of supervisord."""
        return self.logs / f"{program}.log"
