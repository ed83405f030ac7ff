"""The device of these tests: a CUDA GPU, or with ``--device cpu`` the tests themselves are tried without one."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--device``."""
    parser.addoption("--device", choices=("cuda", "cpu"), default="cuda")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """``cuda``, or what ``--device`` names."""
    return str(request.config.getoption("--device"))
