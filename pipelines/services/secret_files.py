"""Secrets of the services: passwords, keys, credentials from the environment. Files of mode 600, made once."""

from __future__ import annotations

import json
import os
import pwd
import secrets
from collections.abc import Mapping
from pathlib import Path

from fvae.config import require
from fvae.files import read_json, write_text
from pipelines.services.paths import Places

ADMIN = "admin"
"""MLflow's user with all permissions; jobs on the head machine log in as this user."""

_PREFIXES = ("AWS_", "PG", "MLFLOW_S3_")
_NAMES = frozenset(
    {
        "HOME",
        "MLFLOW_TRACKING_URI",
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "REQUESTS_CA_BUNDLE",
    }
    | {"SSL_CERT_FILE", "CURL_CA_BUNDLE"}
    | {name for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY") for name in (proxy, proxy.lower())}
)


def admin_password(places: Places, *, new: bool = False) -> str:
    """The password of MLflow's user admin: random, made where there is none yet or a ``new`` one is requested."""
    return _kept(places.secrets / "mlflow-admin-password", new)


def flask_key(places: Places) -> str:
    """The key with which MLflow's server signs the forms of its pages."""
    return _kept(places.secrets / "flask-secret-key", new=False)


def keep_environment(places: Places, environment: Mapping[str, str]) -> None:
    """Keep those variables of ``environment`` that a service needs: credentials, endpoints, proxies.

    A service that starts again after a reboot would not have them.
    """
    kept = {name: text for name, text in environment.items() if name in _NAMES or name.startswith(_PREFIXES)}
    kept.setdefault("HOME", pwd.getpwuid(os.getuid()).pw_dir)
    _write(places.secrets / "environment.json", json.dumps(kept, indent=1, sort_keys=True))


def kept_environment(places: Places) -> dict[str, str]:
    """The variables that :func:`keep_environment` kept last."""
    return read_json(places.secrets / "environment.json")


def keep_database(places: Places, uri: str) -> None:
    """Keep MLflow's database URI with its password, if it has one."""
    _write(places.secrets / "database-uri", uri)


def database_uri(places: Places) -> str | None:
    """The URI that :func:`keep_database` kept last."""
    path = places.secrets / "database-uri"
    return path.read_text().strip() if path.exists() else None


def server_users_file(places: Places) -> Path:
    """The configuration of MLflow's authentication."""
    return places.secrets / "mlflow-auth.ini"


def write_server_users_file(places: Places, database: str, password: str) -> None:
    """Write the authentication settings of MLflow's server: users are in ``database``; admin is made at first start.

    Every user reads all runs and models and changes their own. To check a password takes the server a quarter of a
    second at each request, so it is cached for a minute. As there is one server process, changes by MLflow's own pages
    and calls take effect at once all the same.
    """
    _write(
        server_users_file(places),
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {database.replace('%', '%%')}\n"
        f"admin_username = {ADMIN}\n"
        f"admin_password = {password}\n"
        "authorization_function = pipelines.services.mlflow_users:authenticate\n"
        "auth_cache_ttl_seconds = 60\n",
    )


def write_client_files(places: Places, url: str, password: str) -> str | None:
    """Write what clients on this machine need: variables for a shell, and MLflow's own file of credentials.

    Returns a note where that file, ``~/.mlflow/credentials``, is the user's own and is left unchanged.
    """
    variables = places.secrets / "client.env"
    _write(
        variables,
        f"MLFLOW_TRACKING_URI={url}\nMLFLOW_TRACKING_USERNAME={ADMIN}\nMLFLOW_TRACKING_PASSWORD={password}\n",
    )
    ours = f"# Of the services in {places.data}: python -m pipelines.services up\n"
    path = Path(kept_environment(places)["HOME"]) / ".mlflow" / "credentials"
    if path.exists() and not path.read_text().startswith(ours):
        return f"{path} was not written by these services and is left unchanged: clients need `set -a; . {variables}`"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _write(path, f"{ours}[mlflow]\nmlflow_tracking_username = {ADMIN}\nmlflow_tracking_password = {password}\n")
    return None


def _kept(path: Path, new: bool) -> str:
    if new or not path.exists():
        _write(path, secrets.token_urlsafe(32))
    text = path.read_text().strip()
    require(text != "", f"{path}: empty; remove it, and `up` makes another")
    return text


def _write(path: Path, text: str) -> None:
    """Write a file atomically, and never readable by others, not even for a moment."""
    before = os.umask(0o077)
    try:
        if not path.exists() or path.read_text() != text:
            write_text(path, text)
        path.chmod(0o600)
    finally:
        os.umask(before)
