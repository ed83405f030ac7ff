"""Whether the values of the images use the levels that their type has, and what is asked where they do not."""

from __future__ import annotations

from fvae.config import require
from pipelines.ingest_settings import IngestSettings
from pipelines.sources.base import Question, Source
from pipelines.value_levels import NARROW, TOP, Seen

WIDE_TOP = 65535


def require_range(source: Source, settings: IngestSettings) -> None:
    """Raise ``Question`` where the values have a type that says nothing about white, and no option says it."""
    if source.needs_range and not settings.levels().given:
        raise Question(
            f"{settings.source}: holds {source.needs_range}; say which values are black and white, such as "
            "--value-range 0:1, or save it as uint8"
        )


def judge(seen: Seen, source: Source, settings: IngestSettings) -> tuple[int, list[str]]:
    """The levels of a pixel, and what was found and decided about the values of all images, a line each.

    Raises ``Question`` where the values use less than an eighth of the levels that their type has.
    """
    levels = settings.levels()
    if levels.given:
        low, high = levels.span
        bins = levels.bins or TOP + 1
        found = "".join(f"; the files hold {a:,.9g} … {b:,.9g}" for a, b in seen.stored.values())
        return bins, [f"values {low:,.9g} … {high:,.9g} spread over {bins} levels, as asked for{found}"]
    if source.knows_levels:
        return source.bins, [f"values {seen.low} … {seen.high} of {source.bins} levels"]
    for bits, (low, high) in sorted(seen.stored.items(), reverse=True):
        if bits:
            require_wide(settings.source, low, high, WIDE_TOP)
        elif low < 0 or high > TOP:
            require_wide(settings.source, low, high, TOP)
    if any(seen.stored):
        ranges = " and ".join(f"{low:,.9g} … {high:,.9g}" for low, high in seen.stored.values())
        return TOP + 1, [f"values {ranges} in the files, on 256 levels"]
    if seen.high == 1:
        return 2, ["every value is 0 or 1: 2 levels (--bins 256 takes them as two of 256 dark levels)"]
    require_wide(settings.source, seen.low, seen.high, TOP)
    decisions = [f"values {seen.low} … {seen.high} of 256 levels"]
    if seen.distinct is not None and len(seen.distinct) == 2:
        low, high = sorted(seen.distinct)
        decisions[0] = (
            f"every value is {low} or {high}: kept as two of 256 levels, as the files have them; "
            f"--bins 2 --value-range {low}:{high} makes a data set of 2 levels"
        )
    return TOP + 1, decisions


def require_wide(where: str, low: float, high: float, top: int) -> None:
    """Raise ``Question`` where values from ``low`` to ``high`` use less than an eighth of the levels 0 … ``top``."""
    require(high >= low, f"{where}: no values")
    fits = low >= 0 and high <= top
    if fits and NARROW * (high - low + 1) >= top + 1:
        return
    whole = max(TOP, 2 ** int(high).bit_length() - 1) if max(top, high) > TOP else int(high)
    meant = [(0, whole)] if low == 0 else [(0, whole), (low, high)] if low > 0 else [(low, high)]
    answers = " or ".join(f"--value-range {a:.9g}:{b:.9g}" for a, b in meant)
    bins = f", --bins {int(high) + 1} for {int(high) + 1} levels" if low >= 0 and high < TOP else ""
    as_is = f", or --value-range 0:{top} to take them as they are" if fits else ""
    what = f"less than an eighth of the {top + 1:,} levels of their type" if fits else f"not in 0 … {top}"
    found = f"{where}: the values are {low:,.9g} … {high:,.9g}, {what}"
    raise Question(f"{found}; say which are black and white: {answers}{bins}{as_is}")
