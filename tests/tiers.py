"""Tiers of tests: every test is in exactly one, by a marker of its name, and the tests of one file stay together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

TIERS = ("core", "system", "faults", "gpu")
"""``make test``, ``make test-system``, ``make test-faults`` and ``make test-gpu``."""

RAY = "ray"
"""The group of the files that share a Ray."""
SHARED_RAY = "shared_ray"
"""The fixture of the Ray that all tests share. Tests with it run in one process, or each process would have its own."""


def misplaced(items: Iterable[pytest.Item]) -> list[str]:
    """A line for each test that is in no tier, or in two."""
    lines = []
    for item in items:
        tiers = sorted({marker.name for marker in item.iter_markers()} & set(TIERS))
        if len(tiers) != 1:
            found = f"in {len(tiers)} tiers ({', '.join(tiers)})" if tiers else "in no tier"
            lines.append(f"{item.nodeid} is {found}; mark it with one of {', '.join(TIERS)} (see CONTRIBUTING.md)")
    return lines


def group(items: Sequence[pytest.Item]) -> None:
    """Keep the tests of one file in one process of pytest-xdist, and the files that share a Ray in one for all of them.

    Files whose tests share something else name a group of their own: ``pytest.mark.xdist_group("services")``.
    """
    sharing = {_file(item) for item in items if SHARED_RAY in getattr(item, "fixturenames", ())}
    for item in items:
        if group_of(item) is None:
            item.add_marker(pytest.mark.xdist_group(RAY if _file(item) in sharing else _file(item)))


def group_of(item: pytest.Item) -> str | None:
    """The group of a test, or None before it has one."""
    marker = item.get_closest_marker("xdist_group")
    return marker.args[0] if marker else None


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
