"""When a cron expression is due: as a crontab means it, on the clock of any zone, in the nights when clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fvae.config import ConfigError
from pipelines.scheduling.cron import KEPT, Cron, slot_name, slot_time

pytestmark = pytest.mark.core

MINUTE = timedelta(minutes=1)


def local(cron: Cron, after: datetime, count: int) -> list[str]:
    """The next slots, on the zone's clock."""
    found = []
    for _ in range(count):
        slot = cron.next_slot(after)
        assert slot is not None
        found.append(slot.astimezone(cron.zone).strftime("%m-%d %H:%M %Z"))
        after = slot
    return found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["03-28 02:30 CET", "03-29 03:30 CEST", "03-30 02:30 CEST"]),  # 02:30 is not there on the 29th
        ("0,30 2,3 * * *", ["03-28 02:00 CET", "03-28 02:30 CET", "03-28 03:00 CET", "03-28 03:30 CET"]
         + ["03-29 03:00 CEST", "03-29 03:30 CEST", "03-30 02:00 CEST"]),  # each once
    ],
)  # fmt: skip
def test_a_time_that_does_not_exist_comes_later(expression: str, expected: list[str]) -> None:
    cron = Cron(expression, "Europe/Berlin")
    assert local(cron, datetime(2026, 3, 27, 12, tzinfo=UTC), len(expected)) == expected


def test_midnight_that_does_not_exist_is_not_left_out() -> None:
    expected = ["04-23 00:00 EET", "04-24 01:00 EEST", "04-25 00:00 EEST"]
    assert local(Cron("@daily", "Africa/Cairo"), datetime(2026, 4, 22, 12, tzinfo=UTC), 3) == expected


def test_a_time_that_comes_twice_counts_once_unless_it_is_every_hour() -> None:
    before = datetime(2026, 10, 24, 12, tzinfo=UTC)
    nightly = ["10-25 02:30 CEST", "10-26 02:30 CET"]
    assert local(Cron("30 2 * * *", "Europe/Berlin"), before, 2) == nightly
    hourly = ["10-25 01:30 CEST", "10-25 02:30 CEST", "10-25 02:30 CET", "10-25 03:30 CET"]
    assert local(Cron("30 * * * *", "Europe/Berlin"), datetime(2026, 10, 24, 23, tzinfo=UTC), 4) == hourly


def test_clocks_that_are_changed_by_half_an_hour_or_at_a_quarter_to() -> None:
    # Lord Howe: 02:00 to 02:29 are not there; 02:10 comes at 02:40, after 02:35, which is.
    before = datetime(2026, 10, 3, 3, tzinfo=UTC)
    assert local(Cron("10,35 2 * * *", "Australia/Lord_Howe"), before, 2) == ["10-04 02:35 +11", "10-04 02:40 +11"]
    # Chatham: 02:45 to 03:44 come twice, and a schedule of every hour goes on in both.
    hourly = Cron("45 * * * *", "Pacific/Chatham").slots(
        datetime(2026, 4, 4, 12, 30, tzinfo=UTC), datetime(2026, 4, 4, 16, 30, tzinfo=UTC)
    )
    assert [slot.hour for slot in hourly] == [13, 14, 15, 16]


def test_weekdays_and_days_are_a_crontab_s() -> None:
    after = datetime(2026, 11, 1, tzinfo=UTC)  # a Sunday
    assert local(Cron("0 9 * * 0", "UTC"), after, 2) == ["11-01 09:00 UTC", "11-08 09:00 UTC"]
    assert local(Cron("0 9 * * 7", "UTC"), after, 1) == ["11-01 09:00 UTC"]
    assert local(Cron("0 9 * * sun-tue", "UTC"), after, 3) == ["11-01 09:00 UTC", "11-02 09:00 UTC", "11-03 09:00 UTC"]
    assert local(Cron("0 9 * * */3", "UTC"), after, 3) == ["11-01 09:00 UTC", "11-04 09:00 UTC", "11-07 09:00 UTC"]
    # With both, either will do: the 13th, and every Friday.
    assert local(Cron("0 9 12 * 5", "UTC"), after, 3) == ["11-06 09:00 UTC", "11-12 09:00 UTC", "11-13 09:00 UTC"]
    assert local(Cron("0 0 29 feb *", "UTC"), after, 1) == ["02-29 00:00 UTC"]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("* * * *", "five fields"),
        ("", "five fields"),
        ("60 * * * *", "60 is not from 0 to 59"),
        ("* * 0 * *", "0 is not from 1 to 31"),
        ("* * * 13 *", "13 is not from 1 to 12"),
        ("* * * * 8", "8 is not from 0 to 7"),
        ("* * * * fri-mon", "must not end before it begins"),
        ("*/0 * * * *", "at least 1"),
        ("5/15 * * * *", "with * or with a range"),
        ("1-2-3 * * * *", "no cron expression"),
        ("jan * * * *", "'jan' is no number"),
        ("* * * foo *", "nor one of jan"),
        ("1,,2 * * * *", "no cron expression"),
        ("¼ * * * *", "no cron expression"),
        ("0 0 31 4 *", "never comes"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(expression: str, names: str) -> None:
    with pytest.raises(ConfigError, match="--cron=") as error:
        Cron(expression, "UTC")
    assert names in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zone", ["Mars/Phobos", "", "../../etc/passwd", "/etc/localtime", "Europe", "\0"])
def test_an_unknown_zone_is_one_line(zone: str) -> None:
    with pytest.raises(ConfigError, match="--zone="):
        Cron("@daily", zone)


def test_a_slot_that_comes_in_half_a_second_is_the_next() -> None:
    minutely, noon = Cron("* * * * *", "UTC"), datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert minutely.next_slot(noon - timedelta(seconds=0.5)) == noon
    assert minutely.next_slot(noon) == noon + MINUTE
    assert minutely.next_slot(noon + timedelta(seconds=0.5)) == noon + MINUTE


def test_names_of_slots_sort_as_their_times_and_are_unique_where_clocks_go_back() -> None:
    after = datetime(2026, 10, 24, 23, 0, tzinfo=UTC)
    slots = Cron("30 * * * *", "Europe/Berlin").slots(after, after + timedelta(hours=6))
    names = [slot_name(slot) for slot in slots]
    assert names == sorted(set(names))
    assert [slot_time(name) for name in names] == slots


def test_of_many_missed_slots_the_last_are_recorded() -> None:
    until = datetime(2026, 11, 22, 12, 0, 30, tzinfo=UTC)
    slots = Cron("* * * * *", "UTC").slots(until - timedelta(days=400), until)
    assert len(slots) == KEPT
    assert slots[-1] == until.replace(second=0)
    assert slots[0] == slots[-1] - (KEPT - 1) * MINUTE
    monthly = Cron("0 3 1 * *", "UTC").slots(until - timedelta(days=70), until)  # old ones are found all the same
    assert [slot.month for slot in monthly] == [10, 11]


ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo", "Australia/Lord_Howe", "Asia/Kathmandu",
         "America/St_Johns", "Pacific/Chatham", "America/Santiago")  # fmt: skip


@st.composite
def field(draw: st.DrawFn, low: int, high: int) -> tuple[str, set[int]]:
    """A field of a cron expression, and what it means."""
    kind = draw(st.sampled_from(["*", "list", "range", "step"]))
    if kind == "*":
        return "*", set(range(low, high + 1))
    if kind == "list":
        values = draw(st.sets(st.integers(low, high), min_size=1, max_size=4))
        return ",".join(map(str, sorted(values))), values
    step = draw(st.integers(1, 20))
    if kind == "step":
        return f"*/{step}", set(range(low, high + 1, step))
    first, last = sorted(draw(st.tuples(st.integers(low, high), st.integers(low, high))))
    return f"{first}-{last}/{step}", set(range(first, last + 1, step))


def clock_changes(zone: str) -> list[datetime]:
    """The hours of two years in which a zone's clocks are put forward or back; some hour where they never are."""
    clock, start = ZoneInfo(zone), datetime(2026, 1, 1, tzinfo=UTC)
    hours = [start + timedelta(hours=hour) for hour in range(2 * 365 * 24)]
    offsets = [hour.astimezone(clock).utcoffset() for hour in hours]
    return [hours[place] for place in range(1, len(hours)) if offsets[place] != offsets[place - 1]] or [start]


LENGTH, BEFORE = 12 * 60, 3 * 60
"""Minutes in which the clock is read, from the start on and before it: no change is of more than two hours."""
CHANGES = [(zone, change) for zone in ZONES for change in clock_changes(zone)]


EVERY_MINUTE, EVEN_HOURS, ANY_DAY = ("*", set(range(60))), ("*/2", set(range(0, 24, 2))), ("*", set(range(7)))
BERLIN = ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC))


@settings(max_examples=40, deadline=None)
@example(minutes=EVERY_MINUTE, hours=EVEN_HOURS, weekdays=ANY_DAY, change=BERLIN, before=0)
@given(
    minutes=field(0, 59),
    hours=field(0, 23),
    weekdays=field(0, 6),
    change=st.sampled_from(CHANGES),
    before=st.integers(0, 6 * 60),
)
def test_slots_are_those_that_a_clock_shows(
    minutes: tuple[str, set[int]],
    hours: tuple[str, set[int]],
    weekdays: tuple[str, set[int]],
    change: tuple[str, datetime],
    before: int,
) -> None:
    """Against reading a zone's clock in every minute of half a day in which it is changed."""
    zone, start = change[0], change[1] - before * MINUTE
    clock = ZoneInfo(zone)
    expected, seen = [], set()
    for passed in range(1 - BEFORE, LENGTH + 1):  # what a change just before the start puts off comes after it
        moment = start + passed * MINUTE
        shown = moment.astimezone(clock)
        last = (moment - MINUTE).astimezone(clock)
        # All that the clock has shown since the minute before; more than one where it was put forward.
        wall, walls = last.replace(tzinfo=None) + MINUTE, []
        while wall <= shown.replace(tzinfo=None):
            walls.append(wall)
            wall += MINUTE
        for wall in walls or [shown.replace(tzinfo=None)]:
            skipped = len(walls) > 1 and wall != walls[-1]
            due = wall.minute in minutes[1] and wall.hour in hours[1] and wall.isoweekday() % 7 in weekdays[1]
            again = shown.fold == 1 and len(hours[1]) < 24
            if due and not again and not (skipped and len(hours[1]) == 24):
                came = moment + (walls[-1] - walls[0]) - (walls[-1] - wall) if skipped else moment
                if came not in seen:
                    seen.add(came)
                    expected.append(came)
    cron = Cron(f"{minutes[0]} {hours[0]} * * {weekdays[0]}", zone)
    end = start + LENGTH * MINUTE - timedelta(hours=3)  # what was shifted past the end is not counted above
    found, slot = [], start
    while (slot := cron.next_slot(slot)) is not None and slot <= end:  # type: ignore[assignment]
        found.append(slot)
    assert found == sorted(moment for moment in expected if start < moment <= end)
