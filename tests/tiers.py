"""Tiers of tests: every test is in exactly one, by a marker of its name, and the tests of one file stay together."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

TIERS = ("core", "system", "faults", "gpu")
"""``make test``, ``make test-system``, ``make test-faults`` and ``make test-gpu``."""

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


def group(items: Iterable[pytest.Item]) -> None:
    """Keep the tests of one file in one process of pytest-xdist, and those that share a Ray in one for all of them.

    Files whose tests share something else name a group of their own: ``pytest.mark.xdist_group("services")``.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shares_ray = SHARED_RAY in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("ray" if shares_ray else item.nodeid.partition("::")[0]))
