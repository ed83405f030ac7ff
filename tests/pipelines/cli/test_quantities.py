"""Times and sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae import ConfigError
from pipelines.cli.quantities import duration, parse_bytes, parse_duration

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400), ("2d", 172_800), (" 1H5s ", 3605)],
)
def test_a_time(text: str, seconds: float) -> None:
    assert parse_duration("--time-budget", text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "30m1h", "1h30", "-2h", "0h", "2hours", "nan", "1h1h", "∞h"])
def test_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--time-budget='.*': give a time such as 2h") as caught:
        parse_duration("--time-budget", text)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 359_999))
def test_what_is_shown_can_be_given(seconds: int) -> None:
    """Where hours are shown, seconds are not."""
    assert parse_duration("--time-budget", duration(seconds)) == pytest.approx(
        seconds, abs=60 if seconds >= 3600 else 0
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GiB", 2**31), ("512MiB", 2**29), ("800MB", 800_000_000), ("1.5 gib", 3 * 2**29), ("10kb", 10_000), ("7B", 7)],
)
def test_a_size(text: str, count: int) -> None:
    assert parse_bytes("--max-memory", text) == count


@pytest.mark.parametrize("text", ["", "2", "2G", "GiB", "-1GiB", "0MB", "0.1B", "2 Gi B", "nanB", "1e9B"])
def test_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--max-memory='.*': give a size such as 2GiB"):
        parse_bytes("--max-memory", text)
