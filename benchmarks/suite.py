"""What the tiers of the tests cost: their tests, their minutes, their slowest files and tests.

    make test ARGS="--junitxml=core.xml"; make test-system ARGS="--junitxml=system.xml"; …
    python -m benchmarks.suite core.xml system.xml faults.xml > benchmarks/results/tests.txt

Seconds of a test are those of its set-up, its call and its tear-down, in one of two processes side by side; what a
module's or a session's fixtures cost counts for the test that came first.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key")
SLOWEST = 20


def times(report: Path) -> tuple[float, dict[tuple[str, str], float]]:
    """The wall seconds of a run of pytest, and by file and test the seconds of each, from its JUnit XML."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None, f"{report}: no JUnit XML"
    tests = {(case.get("classname", ""), case.get("name", "")): float(case.get("time", 0)) for case in suite}
    return float(suite.get("time", 0)), tests


def table(reports: Sequence[Path]) -> list[str]:
    """The lines of the table."""
    lines = [f"{'tier':<12}{'tests':>7}{'minutes':>9}{'test seconds':>14}"]
    everything: dict[tuple[str, str, str], float] = {}
    files: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        wall, tests = times(report)
        lines.append(f"{report.stem:<12}{len(tests):>7,}{wall / 60:>9.1f}{sum(tests.values()):>14,.0f}")
        everything |= {(report.stem, *test): seconds for test, seconds in tests.items()}
        for (file, _), seconds in tests.items():
            files[f"{report.stem}: {file}"] += seconds
    lines += ["", f"The {SLOWEST} slowest tests, in seconds"]
    for (tier, file, name), seconds in _largest(everything):
        lines.append(f"{seconds:8.1f}  {tier}: {file}::{name}")
    lines += ["", f"The {SLOWEST} slowest files, in seconds"]
    return lines + [f"{seconds:8.1f}  {file}" for file, seconds in _largest(files)]


def _largest(seconds: Mapping[Key, float]) -> list[tuple[Key, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])[:SLOWEST]


if __name__ == "__main__":
    print(*table([Path(name) for name in sys.argv[1:]]), sep="\n")
