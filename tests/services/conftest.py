"""Head machines for the tests of the services."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.services.head import Head


@contextlib.contextmanager
def new_head(**environment: str) -> Iterator[Head]:
    """A head machine; its services are ended with it."""
    with tempfile.TemporaryDirectory(prefix="sv-") as folder:  # pytest's folders are too long for a socket's name
        head = Head(Path(folder), environment)
        with contextlib.closing(head):
            yield head


@pytest.fixture
def head() -> Iterator[Head]:
    """A head machine on which nothing runs yet."""
    with new_head() as head:
        yield head


@pytest.fixture(scope="module")
def shared_head() -> Iterator[Head]:
    """A head machine with MLflow, which a module's tests share: they leave its settings as they are."""
    with new_head() as head:
        head.first_up()
        yield head


@pytest.fixture
def make_head() -> Iterator[Callable[..., Head]]:
    """``make_head(AWS_ENDPOINT_URL=…)``: a head machine with these variables."""
    with contextlib.ExitStack() as stack:
        yield lambda **environment: stack.enter_context(new_head(**environment))
