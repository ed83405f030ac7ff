"""The range of the pixel values: the number of levels that it gives, and the question where it is too narrow."""

from __future__ import annotations

from fvae.config import require
from pipelines.data.decode.value_levels import NARROW, TOP, Seen, exact
from pipelines.data.settings import IngestSettings
from pipelines.data.sources.base import Question, Source


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
        _require_white(settings.source, seen, high)
        found = "".join(f"; the files hold {_shown(*held)}" for held in seen.stored.values())
        return bins, [f"values {_shown(low, high)} spread over {bins} levels, as asked for{found}"]
    if source.bins is not None:
        return source.bins, [f"values {seen.low} … {seen.high} of {source.bins} levels"]
    for top, (low, high) in sorted(seen.stored.items(), reverse=True):
        if top or low < 0 or high > TOP:
            require_wide(settings.source, low, high, top or TOP, beside_bytes=seen.plain)
    if any(seen.stored):
        ranges = " and ".join(_shown(*held) for held in seen.stored.values())
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


def _shown(low: float, high: float) -> str:
    return " … ".join(f"{int(value):,}" if float(value).is_integer() else exact(value) for value in (low, high))


def _require_white(where: str, seen: Seen, high: float) -> None:
    """Raise ``Question`` where white as asked for lies far above the white that some of the files can hold."""
    for top, held in seen.stored.items():
        if top and high >= 2 * (top + 1):
            others = len(seen.stored) > 1
            answer = (
                "save all images with the same number of bits per channel, or ingest those of each number by themselves"
                if others
                else f"give a range within 0:{top}"
            )
            raise Question(
                f"{where}: {'some images are' if others else 'the images are'} of {top + 1:,} levels (values "
                f"{_shown(*held)}) and would be all but black where {exact(high)} is white; {answer}"
            )


def require_wide(where: str, low: float, high: float, top: int, *, beside_bytes: bool = False) -> None:
    """Raise ``Question`` where values from ``low`` to ``high`` use less than an eighth of the levels 0 … ``top``.

    ``beside_bytes``: whether other images of the source have 8 bits, to which a range that is given applies, too.
    """
    require(high >= low, f"{where}: no values")
    fits = low >= 0 and high <= top
    if fits and NARROW * (high - low + 1) >= top + 1:
        return
    whole = max(TOP, 2 ** int(high).bit_length() - 1) if max(top, high) > TOP else high
    meant = [(0, whole)] if low == 0 else [(0, whole), (low, high)] if low > 0 else [(low, high)]
    found = f"{where}: the values are {_shown(low, high)}, "
    found += f"less than an eighth of the {top + 1:,} levels of their type" if fits else f"not in 0 … {top}"
    if beside_bytes and max(top, high) > TOP and whole >= 2 * (TOP + 1):
        raise Question(
            f"{found}, and images of 8 bits lie among them, which no range fits as well; save all images with 8 bits "
            "per channel, or ingest those of each number of bits by themselves"
        )
    answers = [f"--value-range {exact(a)}:{exact(b)}" for a, b in meant if a < b]
    if low >= 0 and 1 <= high < TOP:
        answers.append(f"--bins {int(high) + 1} for {int(high) + 1} levels")
    if fits and not (beside_bytes and top > TOP):
        answers.append(f"--value-range 0:{top} to take them as they are")
    if not answers:  # one negative value
        answers.append(f"--value-range {exact(low)}:{exact(low + 1)}")
    raise Question(f"{found}; say which are black and white: {_alternatives(answers)}")


def _alternatives(answers: list[str]) -> str:
    return answers[0] if len(answers) == 1 else f"{', '.join(answers[:-1])}, or {answers[-1]}"
