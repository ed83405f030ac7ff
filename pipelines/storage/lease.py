"""Leases: a lock on a folder or a prefix of a bucket, which one process holds at a time, and none after a crash."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fvae.config import ConfigError
from pipelines.storage import ChangedError, Storage, StorageError
from pipelines.storage.lease_holder import Holder

RENEW_SECONDS = 15.0
"""How often the holder of a remote lease writes that it is still there."""
EXPIRES_SECONDS = 180.0
"""A remote lease that was not renewed for so long, by the store's clock, may be taken over. Longer than a request is
tried again: a store that is away for a while must not cost its holder the lease."""

RELEASE_SECONDS = 10.0
"""After so long a failing store is no longer asked to remove a lease, which expires by itself."""

log = logging.getLogger("pipelines.storage")

_abandoned: set[str] = set()
"""Tokens of leases that this process could not release: it may take them again at once."""


class LeaseTaken(ConfigError):
    """Another process holds the lease. ``str(error)`` is one line: the place, the process, its host and since when."""


class Lease:
    """A lease that is held; a local one is never lost."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        """URI of the lease itself."""

    @property
    def lost(self) -> bool:
        """Whether another process may hold it by now: it was taken over, or could not be renewed in time."""
        return False

    def check(self) -> None:
        """Raise ``StorageError`` if the lease is lost: to be called before each step that only its holder may take."""
        if self.lost:
            raise StorageError(
                f"{self.uri}: the lock was lost: the store took no renewal for {EXPIRES_SECONDS:g} s, or another "
                "process has taken it over; start the same command again to go on"
            )


@contextlib.contextmanager
def exclusive(storage: Storage, key: str = ".lock") -> Iterator[Lease]:
    """Hold ``storage`` alone (more exactly: the lease ``key`` in it) while the block runs.

    On a local folder the lease goes with the process, however that ends. On a remote store it is an object that a
    thread renews; after a crash it is free again at once for the same machine, and for others after
    ``EXPIRES_SECONDS``. Raises ``LeaseTaken`` at once where another process holds it, and what ``storage`` raises.
    """
    held = _remote(storage, key) if storage.local_path is None else _local(storage.local_path / key)
    with held as lease:
        yield lease


@contextlib.contextmanager
def _local(path: Path) -> Iterator[Lease]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot lock: {error.strerror or error}") from error
    with file:
        try:
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), Holder.this_process().to_bytes())
            yield Lease(str(path))
        finally:
            path.unlink(missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_UN)  # to close it is not enough where a forked child has it open too


def _locked(path: Path) -> BinaryIO:
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            file.close()  # its holder removed it between our open and our lock
        except BlockingIOError:
            with file:
                file.seek(0)
                raise LeaseTaken(_taken(str(path.parent), Holder.from_bytes(file.read()))) from None
        except BaseException:
            file.close()
            raise


def _taken(place: str, holder: Holder) -> str:
    return f"{place}: in use by {holder}; wait until it has ended"


@contextlib.contextmanager
def _remote(storage: Storage, key: str) -> Iterator[Lease]:
    lease = _RemoteLease(storage, key)
    try:
        lease.take()
        yield lease
    finally:
        lease.release()


class _RemoteLease(Lease):
    """A lease as an object that names its holder. Only a process that has read its latest version can replace it."""

    def __init__(self, storage: Storage, key: str) -> None:
        super().__init__(f"{storage.uri}/{key}")
        self._storage = storage
        self._key = key
        self._holder = Holder.this_process(uuid.uuid4().hex)
        self._version: str | None = None
        self._renewed = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        # Late, and it may be taken over; a renewal that succeeds after all shows that it was not.
        return self._version is None or _clock() - self._renewed > EXPIRES_SECONDS

    def take(self) -> None:
        holder = Holder()
        for _ in range(3):  # between any two requests it may be released, or taken by another that waits
            self._renewed = _clock()
            if self._storage.create(self._key, self._holder.to_bytes()):
                self._version = ""  # held, whatever happens to the next request
                self._version = self._storage.info(self._key).version
            else:
                with contextlib.suppress(FileNotFoundError, ChangedError):
                    version, holder = self._look()
                    gone = holder.gone or holder.token in _abandoned
                    if self._storage.age(self._key) <= EXPIRES_SECONDS and not gone:
                        break
                    self._version = self._storage.replace(self._key, self._holder.to_bytes(), version)
                    if self._version is not None:
                        log.warning("%s: taken over from %s, which is gone", self.uri, holder)
            if self._version is not None:
                self._thread = threading.Thread(target=self._renew_until_stopped, name="lease", daemon=True)
                self._thread.start()
                return
        raise LeaseTaken(_taken(self._storage.uri, holder))

    def release(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._version is None:
            return
        late = threading.Event()
        timer = threading.Timer(RELEASE_SECONDS, late.set)
        timer.start()
        try:
            with self._storage.cancelled_by(late), contextlib.suppress(FileNotFoundError):
                if self._look()[1].token == self._holder.token:
                    self._storage.delete(self._key)
        except (OSError, ConfigError) as error:  # never in place of the block's own error; it expires by itself
            _abandoned.add(self._holder.token)
            log.warning("%s: the lock was not removed: %s", self.uri, error)
        finally:
            timer.cancel()

    def _renew_until_stopped(self) -> None:
        with self._storage.cancelled_by(self._stop):
            while not self._stop.wait(RENEW_SECONDS) and self._version is not None:
                try:
                    self._renew(self._version)
                except (OSError, ConfigError) as error:
                    if not self._stop.is_set():
                        log.warning("%s: the lock was not renewed: %s", self.uri, error)

    def _renew(self, version: str) -> None:
        now = _clock()
        self._holder = dataclasses.replace(self._holder, renewals=self._holder.renewals + 1)
        renewed = self._storage.replace(self._key, self._holder.to_bytes(), version)
        if renewed is None:
            try:
                found, holder = self._look()
            except FileNotFoundError:
                found, holder = "", Holder()
            if holder.token != self._holder.token:
                self._version = None
                log.warning("%s: the lock was lost to %s", self.uri, holder)
            else:
                self._version = found  # an earlier renewal did arrive, though its answers were lost: again from there
            return
        self._version, self._renewed = renewed, now

    def _look(self) -> tuple[str, Holder]:
        found = self._storage.info(self._key)
        content = self._storage.read_range(self._key, 0, found.size, found.version)
        return found.version, Holder.from_bytes(content)


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
