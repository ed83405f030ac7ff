"""When a schedule is due: a crontab's five fields, read on the clock of a time zone.

    cron = Cron("30 2 * * 1-5", "Europe/Berlin")
    cron.next_slot(datetime.now(UTC))

Fields mean what they mean to cron, where APScheduler alone would differ: 0 and 7 are Sunday, and where both the day of
the month and that of the week are given, one of them has to match. In the two nights in which clocks change:

- A time of day that does not exist comes as much later as the clocks went forward: 02:30 at 03:30.
- A time of day that comes twice counts once, the first time, unless the schedule runs in every hour of the day: that
  goes on in both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from fvae.config import ConfigError, require

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "day_of_week": (0, 7)}
"""In a crontab's order, with the lowest and highest value."""
NAMES = {"month": {name: 1 + place for place, name in enumerate(MONTHS)}} | {
    "day_of_week": {name: place for place, name in enumerate(WEEKDAYS)}
}
NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
KEPT = 500
"""Number of missed slots, the newest, that are recorded one by one."""

_ITEM = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\d+))?", re.ASCII)
_MINUTE = timedelta(minutes=1)
_NEAR = timedelta(hours=3)
"""Further from a clock change nothing is shifted: clocks are changed by less."""
_SLOT = "%Y%m%dT%H%MZ"


def slot_name(slot: datetime) -> str:
    """``20260329T0130Z``: in UTC, so that no two slots have one name; names sort as their times do."""
    return slot.astimezone(UTC).strftime(_SLOT)


def slot_time(name: str) -> datetime:
    """The inverse of :func:`slot_name`."""
    return datetime.strptime(name, _SLOT).replace(tzinfo=UTC)


class Cron:
    """A cron expression in a time zone. Raises ``ConfigError`` for one that cannot be read, or that is never due."""

    def __init__(self, expression: str, zone: str) -> None:
        try:
            self.zone = ZoneInfo(zone)
        except (OSError, ValueError, KeyError) as error:  # KeyError: not found
            raise ConfigError(f"--zone={zone!r}: no such time zone; give one like Europe/Berlin, or UTC") from error
        words = NICKNAMES.get(expression.strip().lower(), expression).split()
        what = f"--cron={expression!r}"
        require(
            len(words) == len(FIELDS),
            f"{what}: must be five fields (minute, hour, day of the month, month, day of the week), as in '0 3 * * *'",
        )
        values = {name: _values(what, name, word) for name, word in zip(FIELDS, words, strict=True)}
        self._every_hour = len(values["hour"]) == 24
        self._trigger = _trigger(words, values)
        require(self.next_slot(datetime.now(UTC)) is not None, f"{what}: this day never comes")

    def next_slot(self, after: datetime) -> datetime | None:
        """The first slot later than ``after``, in UTC; None where there is none any more."""
        # APScheduler counts on a clock without a zone: in one with a zone it loses times of day around clock changes.
        local = after.astimezone(self.zone).replace(tzinfo=UTC)
        first = next(_times(self._trigger, local), None)
        if first is None:
            return None
        change = max(self._change(after), self._change(first.replace(tzinfo=self.zone)))
        if not change:
            return self._slots(first)[0]
        # Near a change the order on the clock need not be the order in time.
        end = local + change
        found: list[datetime] = []
        for wall in _times(self._trigger, local - change - _MINUTE):
            if found and wall > end:
                break
            later = [slot for slot in self._slots(wall) if slot > after]
            if later and not found:
                end = wall + change
            found += later
        return min(found, default=None)

    def _slots(self, wall: datetime) -> list[datetime]:
        """When the zone's clock shows a time of day; where it never does, as much later as it went forward."""
        wall = wall.replace(tzinfo=None)
        slots = [wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
        if not self._every_hour:
            return slots[:1]
        shown = [slot for slot in slots if slot.astimezone(self.zone).replace(tzinfo=None) == wall]
        return sorted(set(shown))

    def _change(self, moment: datetime) -> timedelta:
        """By how much the zone's clock is changed near this moment; 0 if it is not."""
        near = [(moment.astimezone(UTC) + hours).astimezone(self.zone).utcoffset() for hours in (-_NEAR, _NEAR)]
        assert near[0] is not None
        assert near[1] is not None
        return abs(near[1] - near[0])

    def slots(self, after: datetime, until: datetime) -> list[datetime]:
        """The slots after ``after`` and up to ``until``, in order; at most the last :data:`KEPT`."""
        back = timedelta(hours=1)
        while True:
            begin = max(after, until - back)
            found: list[datetime] = []
            slot = self.next_slot(begin)
            while slot is not None and slot <= until:
                found.append(slot)
                slot = self.next_slot(slot)
            if begin == after or len(found) > KEPT:
                return found[-KEPT:]
            back *= 4


@functools.lru_cache(maxsize=256)
def cron(expression: str, zone: str) -> Cron:
    """A cached :class:`Cron`."""
    return Cron(expression, zone)


def _times(trigger: BaseTrigger, after: datetime) -> Iterator[datetime]:
    """All times of the trigger after ``after``, in order."""
    while (after := trigger.get_next_fire_time(None, after + timedelta(microseconds=1))) is not None:
        yield after


def _trigger(words: list[str], values: dict[str, list[int]]) -> BaseTrigger:
    """APScheduler's trigger; it gets plain lists of numbers, and weekdays by name, as it counts them from Monday."""
    texts = {name: ",".join(map(str, numbers)) for name, numbers in values.items()}
    texts["day_of_week"] = ",".join(WEEKDAYS[number] for number in values["day_of_week"])
    _, _, day, _, weekday = words
    if day.startswith("*") or weekday.startswith("*"):
        return CronTrigger(**texts, timezone=UTC)
    return OrTrigger(
        [CronTrigger(**(texts | {other: "*"}), timezone=UTC) for other in ("day", "day_of_week")],
    )


def _values(what: str, field: str, text: str) -> list[int]:
    """The numbers that a field stands for: ``*``, ``1``, ``1-5``, ``*/15``, ``0-30/10``, names, and lists of these."""
    least, most = FIELDS[field]
    names = NAMES.get(field, {})
    values: set[int] = set()
    for item in text.split(","):
        part = f"{what}: {item!r} ({field.replace('_', ' ')})"
        found = _ITEM.fullmatch(item)
        require(found is not None, f"{part} is no cron expression, such as *, 5, 1-5, */15 or 1,15")
        assert found is not None
        first, last, step = found["first"], found["last"], found["step"]
        require(step is None or int(step) > 0, f"{part}: a step must be at least 1")
        if first == "*":
            require(last is None, f"{part} is no cron expression, such as *, 5, 1-5, */15 or 1,15")
            low, high = least, most - (field == "day_of_week")
        else:
            require(step is None or last is not None, f"{part}: a step goes with * or with a range, as in 0-30/10")
            low, high = (_number(part, end, names, least, most) for end in (first, last or first))
            require(low <= high, f"{part}: a range must not end before it begins")
        values.update(range(low, high + 1, int(step or 1)))
    return sorted({value % 7 for value in values} if field == "day_of_week" else values)


def _number(part: str, text: str, names: dict[str, int], least: int, most: int) -> int:
    value = names.get(text.lower(), int(text) if text.isdecimal() else None)
    require(value is not None, f"{part}: {text!r} is no number" + (f", nor one of {', '.join(names)}" if names else ""))
    assert value is not None
    require(least <= value <= most, f"{part}: {value} is not from {least} to {most}")
    return value
