"""The report of a GPU survives being cut off: every part ends by itself, and what it has measured is kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_map, gpu_report, gpu_steps

pytestmark = pytest.mark.core


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_report.Report:
    """A report that has begun."""
    monkeypatch.setattr(sys, "argv", ["gpu_report", "--device", "cpu", "--quick", "--out", str(tmp_path)])
    report = gpu_report.Report(tmp_path / "gpu.json")
    report.begin(gpu_report.arguments())
    return report


def test_a_part_whose_time_is_up_is_ended_and_said(
    report: gpu_report.Report, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu_report.SECONDS, "steps", 0)
    report.add("steps", {"kind": "peak", "float32": 1e12, "TF32": 2e12, "bf16": 3e12})
    gpu_report.supervise("steps", report)
    assert "steps (its time was up, " in report.text()
    assert "matrix product: float32 1.0 TFLOP/s, TF32 2.0 TFLOP/s, bf16 3.0 TFLOP/s" in report.text()
    assert json.loads(report.path.read_text())["parts"]["steps"]["ended"] == "its time was up"


def test_what_was_measured_before_a_cut_is_shown(report: gpu_report.Report) -> None:
    report.add("map", {"kind": "packing", "models": 3, "seconds": {"one after another": 0.2, "side by side": 0.1}})
    assert "map (was cut off)" in report.text()
    line = "3 models, a step of each: 200.0 ms one after another (1.00 ×), 100.0 ms side by side (2.00 ×)"
    assert line in report.text()


def test_every_row_of_a_map_has_its_line(report: gpu_report.Report) -> None:
    rows: list[dict[str, Any]] = []
    gpu_map.run(rows.append, "cpu", quick=True, mnist=None, seconds=1.0)
    assert [row["kind"] for row in rows] == ["packing"] + ["model"] * len(gpu_map.KINDS)
    assert all(row["failure"] is None for row in rows[1:])
    assert len(gpu_map.table(rows)) == 2 + len(gpu_map.KINDS)


def test_a_way_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """normflows may be absent, a graph impossible: the others are measured all the same."""

    def absent(*arguments: Any) -> None:
        raise ImportError("No module named 'normflows'")

    monkeypatch.setattr(gpu_steps, "glow_step", absent)
    monkeypatch.setattr(gpu_steps, "VARIANTS", {"float32": gpu_steps.Variant("float32")})
    rows: list[dict[str, Any]] = []
    gpu_steps.run(rows.append, "cpu", quick=True)
    table = gpu_steps.table(rows)
    assert len(rows) == 1 + 3
    assert "ImportError: No module named 'normflows'" in table[2]
    assert "11,370" in table[-1]


def test_without_a_gpu_it_says_what_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_report.torch.cuda, "is_available", lambda: False)
    for arguments, line in (
        ([], "--device=cuda: torch sees no GPU; give --device cpu --quick"),
        (["--device", "cpu", "--mnist", "/nowhere"], "--mnist=/nowhere: no manifest.json there"),
    ):
        monkeypatch.setattr(sys, "argv", ["gpu_report", *arguments])
        with pytest.raises(SystemExit, match="2"):
            gpu_report.arguments()
        assert line in capsys.readouterr().err


def test_each_test_s_outcome_is_kept(report: gpu_report.Report, monkeypatch: pytest.MonkeyPatch) -> None:
    options = gpu_report.arguments()
    assert gpu_report.carry_out("tests", report, options) == 0
    rows = report.read()["parts"]["tests"]["rows"]
    assert len(rows) > 10
    assert {row["outcome"] for row in rows} == {"passed"}
    assert f"{len(rows)} passed" in report.text()
