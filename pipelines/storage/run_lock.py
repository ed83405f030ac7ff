"""The lock of a run's folder or prefix, and errors of a full or read-only disk in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from fvae.config import ConfigError
from fvae.files import write_text
from pipelines.storage import Storage, StorageError
from pipelines.storage.lease import Lease, LeaseTaken, exclusive


@contextmanager
def locked(run: Storage, what: str) -> Iterator[Lease]:
    """Hold the run's lease while the block runs, so that one ``what`` ("search") at a time works on it.

    A local folder that is empty afterwards is removed. Raises ``ConfigError`` where another process holds the lease, or
    where nothing can be written.
    """
    require_writable(run)
    try:
        with exclusive(run) as lease:
            yield lease
    except LeaseTaken as taken:
        raise ConfigError(f"another {what} is running: {taken}, or give another --name") from taken
    finally:
        if run.local_path is not None:
            with contextlib.suppress(OSError):
                run.local_path.rmdir()  # only an empty one


@contextmanager
def explained_disk(run: Storage) -> Iterator[None]:
    """Turn what a full or read-only disk raises within the block into one line."""
    try:
        yield
    except OSError as error:
        if what := disk_trouble(error, run):
            raise ConfigError(
                f"--storage: cannot be written: {what}; make room and run the same command again"
            ) from error
        raise


def disk_trouble(error: OSError, run: Storage) -> str | None:
    """A full or read-only disk, in a few words; None where the error is another, such as a remote store's."""
    if isinstance(error, StorageError):
        its_own = run.local_path is not None and str(error).startswith(run.uri)
        return str(error) if its_own else None
    if error.errno is None or isinstance(error, ConnectionError):
        return None
    return f"{error.filename} ({error.strerror})" if error.filename else f"({error.strerror})"


def require_writable(run: Storage) -> None:
    """Raise ``ConfigError`` where a local folder cannot be written; a remote store raises when the lease is taken."""
    if run.local_path is not None:
        try:
            write_text(run.local_path / ".writable", "")
            (run.local_path / ".writable").unlink(missing_ok=True)  # another process may check, too
        except OSError as error:
            raise ConfigError(
                f"--storage: {run.uri} cannot be written ({error.strerror}); give another folder"
            ) from error
