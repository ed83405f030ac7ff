"""Start supervisord when the machine starts: by systemd where it runs, else by a line in the crontab.

root has a system unit. Another user has a user unit where systemd lets their services run without a session
(``loginctl enable-linger``), which most distributions allow to administrators only; otherwise it is the crontab.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from fvae.config import ConfigError
from fvae.files import write_text
from pipelines.cluster import crontab
from pipelines.services import supervision
from pipelines.services.paths import Places

_SYSTEMD = Path("/run/systemd/system")
_LINGERING = Path("/var/lib/systemd/linger")


def install(places: Places) -> str:
    """Have the services started at every boot; returns how, for a message. Calling it again changes nothing.

    Raises ``ConfigError`` where the machine has neither systemd nor cron.
    """
    if _SYSTEMD.is_dir() and _may_linger():
        return _install_unit(places)
    if crontab.installed():
        crontab.set_line(crontab_line(places), _is_ours(places))
        return "crontab"
    raise ConfigError(
        f"--at-boot: there is neither systemd nor crontab for this user; have this run at boot: "
        f"{shlex.join(supervision.command(places))}"
    )


def remove(places: Places) -> None:
    """Undo :func:`install`; nothing happens where there is nothing to undo."""
    unit = _unit_path(places)
    if unit.exists():
        _wanted(unit).unlink(missing_ok=True)
        unit.unlink()
        _reload()
    if crontab.installed():
        crontab.set_line(None, _is_ours(places))


def unit(places: Places) -> str:
    """A unit for systemd that starts supervisord at boot, and again if it is killed."""
    words = " ".join(f'"{word}"' for word in [*supervision.command(places), "--nodaemon"])
    target = "multi-user.target" if os.geteuid() == 0 else "default.target"
    return (
        f"[Unit]\nDescription=MLflow and the scheduler of {places.data}\n"
        "Wants=network-online.target\nAfter=network-online.target\n\n"
        f"[Service]\nExecStart={words}\nKillMode=mixed\nTimeoutStopSec=60\nRestart=on-failure\nRestartSec=5\n\n"
        f"[Install]\nWantedBy={target}\n"
    )


def crontab_line(places: Places) -> str:
    """A line for a crontab that starts supervisord at boot."""
    return f"@reboot {shlex.join(supervision.command(places))} {_mark(places)}"


def _install_unit(places: Places) -> str:
    path = _unit_path(places)
    write_text(path, unit(places))
    wanted = _wanted(path)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if not wanted.is_symlink():
        wanted.symlink_to(path)
    _reload()
    return f"systemd ({path})"


def _unit_path(places: Places) -> Path:
    folder = Path("/etc/systemd/system") if os.geteuid() == 0 else Path.home() / ".config" / "systemd" / "user"
    return folder / f"fvae-services-{hashlib.sha256(str(places.data).encode()).hexdigest()[:8]}.service"


def _wanted(unit: Path) -> Path:
    target = "multi-user.target" if os.geteuid() == 0 else "default.target"
    return unit.parent / f"{target}.wants" / unit.name


def _may_linger() -> bool:
    if os.geteuid() == 0:
        return True
    user = pwd.getpwuid(os.getuid()).pw_name
    return (_LINGERING / user).exists() or _run(["loginctl", "--no-ask-password", "enable-linger", user])


def _reload() -> None:
    """Have systemd read its units now, if it can be reached; at boot it does anyway."""
    _run(["systemctl", *([] if os.geteuid() == 0 else ["--user"]), "daemon-reload"])


def _mark(places: Places) -> str:
    return f"# services of {places.data}"


def _is_ours(places: Places) -> Callable[[str], bool]:
    return lambda line: line.rstrip().endswith(_mark(places))


def _run(words: list[str]) -> bool:
    try:
        return subprocess.run(words, capture_output=True, check=False, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
