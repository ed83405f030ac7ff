"""A test in no tier or in two is an error before any test runs, and tests that share something run in one process."""

from __future__ import annotations

import pytest

import tests.conftest  # noqa: F401  (once here, and not again in every run below)

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.core

CONFTEST = "from tests.conftest import pytest_collection_modifyitems"


class Groups:
    """A plugin that notes the groups of pytest-xdist that tests are in."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.found[item.name] = [mark.args[0] for mark in item.iter_markers("xdist_group")]


def run(pytester: pytest.Pytester, *options: str, **files: str) -> pytest.RunResult:
    """Run pytest on ``files``, which this suite's hook sorts into tiers."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(**{name: f"import pytest\n{text}" for name, text in files.items()})
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)


def test_a_test_in_no_tier_is_an_error_also_where_another_tier_is_asked_for(pytester: pytest.Pytester) -> None:
    text = "@pytest.mark.core\ndef test_one(): pass\n@pytest.mark.slow\ndef test_two(): pass\n"
    for options in ((), ("-m", "core")):
        result = run(pytester, *options, test_file=text)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        line = "test_file.py::test_two is in no tier; mark it with one of core, system, faults, gpu"
        result.stderr.fnmatch_lines([f"ERROR: {line} (see CONTRIBUTING.md)"])
        assert "test_one" not in result.stderr.str()


def test_a_test_in_two_tiers_is_an_error_wherever_its_marks_stand(pytester: pytest.Pytester) -> None:
    module = "pytestmark = pytest.mark.core\n@pytest.mark.faults\ndef test_it(): pass\n"
    parameters = "@pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.gpu)])\n"
    result = run(
        pytester, test_module=module, test_parameter=f"{parameters}@pytest.mark.system\ndef test_it(n): pass\n"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: test_module.py::test_it is in 2 tiers (core, faults); *",
            "ERROR: test_parameter.py::test_it?1? is in 2 tiers (gpu, system); *",
        ]
    )


def test_a_tier_runs_its_tests_and_no_others(pytester: pytest.Pytester) -> None:
    parameters = "@pytest.mark.parametrize('n', [pytest.param(tier, marks=getattr(pytest.mark, tier)) for tier in "
    text = f"{parameters}('core', 'system', 'faults', 'gpu')])\ndef test_it(n): pass\n"
    run(pytester, test_file=text).assert_outcomes(passed=4)
    for tier in ("core", "system", "faults", "gpu"):
        result = run(pytester, "-v", "-m", tier, test_file=text)
        result.assert_outcomes(passed=1, deselected=3)
        result.stdout.fnmatch_lines([f"*::test_it?{tier}? PASSED*"])


def test_tests_of_a_file_stay_together_and_so_do_files_that_share_a_ray_or_name_a_group(
    pytester: pytest.Pytester,
) -> None:
    ray = "@pytest.fixture\ndef shared_ray(): pass\n@pytest.fixture\ndef address(shared_ray): pass\n"
    core = "pytestmark = pytest.mark.core\n"
    groups = Groups()
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        test_a=f"import pytest\n{core}{ray}def test_ray(address): pass\ndef test_a1(): pass\ndef test_a2(): pass\n",
        test_b=f"import pytest\n{core}{ray}def test_b(): pass\n",
        test_d=f"import pytest\n{core}{ray}def test_ray_too(shared_ray): pass\n",
        test_c="import pytest\npytestmark = [pytest.mark.core, pytest.mark.xdist_group('c')]\ndef test_c(): pass\n",
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", plugins=[groups])
    result.assert_outcomes(passed=6)
    assert groups.found == {
        "test_ray": ["ray"],
        "test_a1": ["ray"],
        "test_a2": ["ray"],
        "test_ray_too": ["ray"],
        "test_b": ["test_b.py"],
        "test_c": ["c"],
    }


def test_pytest_xdist_runs_each_group_in_one_process(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    text = """
        import os
        import pathlib
        import pytest

        pytestmark = pytest.mark.core

        @pytest.fixture
        def shared_ray(): pass

        @pytest.mark.parametrize("number", range(8))
        def test_it(number{fixture}):
            with pathlib.Path({where!r}, {group!r}).open("a") as file:
                file.write(os.environ["PYTEST_XDIST_WORKER"] + " ")
    """
    for name, group, fixture in (("a", "ray", ", shared_ray"), ("b", "b", ""), ("c", "ray", ", shared_ray")):
        source = text.format(fixture=fixture, where=str(pytester.path), group=group)
        pytester.makepyfile(**{f"test_{name}": source})
    result = pytester.runpytest_subprocess("-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=24)
    found = {group: (pytester.path / group).read_text().split() for group in ("ray", "b")}
    assert {group: (len(ran), len(set(ran))) for group, ran in found.items()} == {"ray": (16, 1), "b": (8, 1)}
