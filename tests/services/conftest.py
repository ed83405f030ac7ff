"""Head machines for the tests of the services."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.services.head import Head

MIGRATE = """
import sys
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore as Users
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Runs
Runs(f"sqlite:///{sys.argv[1]}/mlflow.db", "mlflow-artifacts:/").engine.dispose()
users = Users()
users.init_db(f"sqlite:///{sys.argv[1]}/mlflow-auth.db")
users.engine.dispose()
"""


@contextlib.contextmanager
def new_head(migrated: Path | None = None, **environment: str) -> Iterator[Head]:
    """A head machine, with copies of the databases in ``migrated``; its services are ended with it."""
    with tempfile.TemporaryDirectory(prefix="sv-") as folder:  # pytest's folders are too long for a socket's name
        head = Head(Path(folder), environment)
        if migrated is not None:
            shutil.copytree(migrated, head.data)
        with contextlib.closing(head):
            yield head


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with MLflow's tables and nothing in them, made once: its migrations cost seconds."""
    folder = tmp_path_factory.mktemp("migrated")
    subprocess.run([sys.executable, "-c", MIGRATE, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def head() -> Iterator[Head]:
    """A head machine with nothing on it."""
    with new_head() as head:
        yield head


@pytest.fixture
def migrated_head(migrated: Path) -> Iterator[Head]:
    """A head machine on which nothing runs yet, and whose databases need no migrations."""
    with new_head(migrated) as head:
        yield head


@pytest.fixture(scope="session")
def shared_head() -> Iterator[Head]:
    """A head machine whose services started from nothing. Tests that share it leave them running."""
    with new_head() as head:
        head.first_up("--programs", "mlflow", "scheduler")
        yield head


@pytest.fixture
def make_head() -> Iterator[Callable[..., Head]]:
    """``make_head(AWS_ENDPOINT_URL=…)``: a head machine with these variables."""
    with contextlib.ExitStack() as stack:
        yield lambda **environment: stack.enter_context(new_head(**environment))
