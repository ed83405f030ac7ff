"""Submission of a command as a Ray job, where ``RAY_ADDRESS`` is the URL of a cluster's job server.

    export RAY_ADDRESS=http://127.0.0.1:8265      # `ray dashboard cluster.yaml` keeps the tunnel to the head open
    python tune/search.py --dataset s3://bucket/photos --storage s3://bucket/runs

The job gets the code and the lock file, its output is printed line by line, and the exit status is the job's. Ctrl-C
leaves the job running; the same command follows it again.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fvae.config import ConfigError, one_line, require
from pipelines.cli.run_settings import RunSettings
from pipelines.cluster.shipped_files import LOCK, ROOT, shipped_files, staged
from pipelines.cluster.shipped_files import SHIPPED as SHIPPED
from pipelines.storage import is_remote
from pipelines.training.ray_environment import PASSED_ON

if TYPE_CHECKING:  # Ray takes seconds to import
    from ray.job_submission import JobSubmissionClient

Settings = TypeVar("Settings", bound=RunSettings)

JOB_FOLDER = "/runtime_resources/working_dir_files/"
"""Part of the path of a job's working directory, which Ray may remove after the job."""
LIVE = ("PENDING", "RUNNING")


def run_or_submit(main: Callable[[Settings], int]) -> Callable[[Settings], int]:
    """Decorate ``main``: where ``RAY_ADDRESS`` is a URL, the same command is submitted as a job there."""

    def run(settings: Settings) -> int:
        address = os.environ.get("RAY_ADDRESS", "")
        if address.startswith(("http://", "https://")):
            require_reachable(settings, "is a folder of this machine, which the cluster does not see")
            if settings.dry_run:
                return show(address, this_command(), _config_of(settings))
            return submit(address, this_command(), _config_of(settings))
        if JOB_FOLDER in f"{Path.cwd()}/":
            require_reachable(settings, "lies in the job's copy of the code, which goes with the job")
            for line in other_packages(Path(LOCK)):
                print(f"warning: {line}; `ray up` brings every machine to the lock file", flush=True)
        return main(settings)

    return run


def require_reachable(settings: RunSettings, why: str) -> None:
    """Raise ``ConfigError`` where the run's storage or data set is a relative path."""
    better = "give s3://bucket/prefix, or the absolute path of a folder that every machine sees"
    for option, place in (("--storage", settings.storage), ("--dataset", settings.dataset)):
        embedded = option == "--dataset" and place in ("digits", "photos")
        require(embedded or is_remote(place) or Path(place).is_absolute(), f"{option}={place}: {why}; {better}")
    config = _config_of(settings)
    if config and JOB_FOLDER not in f"{Path.cwd()}/":
        advice = f"only files in configs/ are sent; put it into {ROOT / 'configs'}, and start the command in {ROOT}"
        require(
            (ROOT / config).resolve() == Path(config).resolve()  # the job starts in the folder of the code
            and (ROOT / config).resolve().is_relative_to(ROOT / "configs"),
            f"--config={config}: {advice}",
        )


def _config_of(settings: RunSettings) -> str | None:
    """The file of ``--config`` to send with the job; None where there is none, or its path is absolute."""
    config = getattr(settings, "config", None)
    return config if config and not Path(config).is_absolute() else None


def show(address: str, command: list[str], config: str | None = None) -> int:
    """Print the job that ``command`` would become, and every file that it would get. Returns the exit status."""
    print(f"Nothing is submitted. To {address} would go the job: {shlex.join(command)}")
    names = shipped_files(config=config)
    print(f"and {len(names)} files of {ROOT}:", *(f"  {name}" for name in names), sep="\n")
    return 0


def this_command() -> list[str]:
    """The command of this process, as the head runs it in the folder of the code."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec:
        return ["python", "-m", spec.name, *sys.argv[1:]]
    return ["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]


def submit(address: str, command: list[str], config: str | None = None) -> int:
    """Submit ``command``, or find its running job, and print its output to the end.

    ``config`` is one more file to send, relative to the folder of the code.

    Returns the job's exit status; 1 after Ctrl-C. Raises ``ConfigError`` where the server does not answer, or refuses.
    """
    from aiohttp import ClientError

    logging.disable(logging.WARNING)  # Ray logs every file that it leaves out
    entrypoint = shlex.join(command)
    client = connect(address)
    job, live = find_job(client, entrypoint)
    if live:
        print(f"The job {job} runs already: following it.", flush=True)
    else:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env(config))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"RAY_ADDRESS={address}: the job is refused ({_line(error)})") from error
        print(f"Submitted as the job {job}. Ctrl-C leaves it running.", flush=True)
    try:
        asyncio.run(_show(client, job))
        info = client.get_job_info(job)
    except KeyboardInterrupt:
        print(f"\nDetached; the job {job} goes on. {_reattach_hint(address, job)}", flush=True)
        return 1
    except (RuntimeError, OSError, ClientError) as error:
        return _lost(address, job, error)
    if info.status in LIVE:
        return _lost(address, job, "it has closed the connection")
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None or info.driver_exit_code <= 0:  # Ray has ended it, or a signal
        print(f"error: the job {job} has ended as {info.status}: {_line(info.message)}", file=sys.stderr)
        return 1
    return int(info.driver_exit_code)


def _reattach_hint(address: str, job: str) -> str:
    """One line with the commands that follow or end the job."""
    server = f"--address {address}"
    return (
        f"The same command follows it again, and so does `ray job logs {server} --follow {job}`; "
        f"`ray job stop {server} {job}` ends it."
    )


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server. Raises ``ConfigError`` where it does not answer, or refuses."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    where = f"RAY_ADDRESS={address}"
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ConfigError(
            f"{where}: refused; RAY_AUTH_MODE=token and the cluster's token in ~/.ray/auth_token are needed"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"{where}: no job server answers there ({_line(error)}); `ray dashboard CLUSTER_FILE` opens the way to it"
        ) from error


def find_job(client: JobSubmissionClient, entrypoint: str) -> tuple[str, bool]:
    """The id of this command's job, and whether that runs. After jobs that have ended it is the next free id."""
    words = shlex.split(entrypoint)
    program = Path(words[1]).stem if words[1] != "-m" else words[2].rpartition(".")[2]
    base = f"{program}-{hashlib.sha256(entrypoint.encode()).hexdigest()[:8]}"
    status = {job.submission_id: job.status for job in client.list_jobs()}
    job, tries = base, 1
    while job in status:
        if status[job] in LIVE:
            return job, True
        tries += 1
        job = f"{base}-{tries}"
    return job, False


def runtime_env(config: str | None = None) -> dict[str, Any]:
    """Ray's runtime environment: the code and the lock file, and the variables for access to the same store."""
    folder = staged(config=config)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {
        "working_dir": str(folder),
        "excludes": [],
        "env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"PYTHONUNBUFFERED": "1"},
    }


def other_packages(lock: Path) -> list[str]:
    """The packages installed here in another version than the lock file's; a line each, at most three."""
    found = []
    for line in lock.read_text().splitlines() if lock.exists() else ():
        name, _, wanted = line.partition("==")
        if not wanted or line.startswith(("#", " ")):
            continue
        try:
            have = metadata.version(name.partition("[")[0])
        except metadata.PackageNotFoundError:
            have = "no version"
        if have.partition("+")[0] != wanted.split(";")[0].strip():
            found.append(f"{LOCK} requires {name} {wanted.strip()}, and the machine has {have}")
    return found[:3]


async def _show(client: JobSubmissionClient, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def _lost(address: str, job: str, why: object) -> int:
    print(f"error: {address} is gone ({_line(why)}). {_reattach_hint(address, job)}", file=sys.stderr)
    return 1


def _line(error: object) -> str:
    return one_line(error, 300) or type(error).__name__
