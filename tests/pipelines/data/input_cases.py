"""Inputs as people have them, kind by kind, and what ingest is to make of each.

``python -m benchmarks.ingest_cases`` makes a table of them.
"""

from __future__ import annotations

from tests.pipelines.data import input_cases_layouts, input_cases_names, input_cases_values
from tests.pipelines.data.input_case import Case, Made

__all__ = ["CASES", "Case", "Made"]

CASES = [*input_cases_names.CASES, *input_cases_values.CASES, *input_cases_layouts.CASES]
