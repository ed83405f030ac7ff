"""Every image of a source as pixels, whether the source holds encoded files or arrays."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from pipelines.data.decode.image import BadImage, Conversion, convert
from pipelines.data.decode.pool import DecodedBatch, channels_first, decode_many
from pipelines.data.decode.value_levels import Seen
from pipelines.data.sources import BadFile, ImageFile, Item, Pixels, Source


def decode_source(source: Source, conversion: Conversion, processes: int | None = None) -> Iterator[DecodedBatch]:
    """Decode and convert all of a source, in its order.

    Raises what the source raises, and ``ConfigError`` where a decoding process dies.
    """
    for is_pixels, items in itertools.groupby(source.items(), lambda item: isinstance(item, Pixels)):
        if is_pixels:
            yield from (_converted(item, conversion) for item in items if isinstance(item, Pixels))
        else:
            yield from _decoded(items, conversion, processes)


def _decoded(items: Iterable[Item], conversion: Conversion, processes: int | None) -> Iterator[DecodedBatch]:
    bad: list[tuple[str, str]] = []  # what could not even be handed over

    def files() -> Iterator[ImageFile]:
        for item in items:
            if isinstance(item, BadFile):
                bad.append((item.path, item.cause))
            elif isinstance(item, ImageFile):
                yield item

    yield from decode_many(files(), conversion, processes)
    if bad:
        yield DecodedBatch([], [], [], *channels_first([]), Counter(), bad, Seen())


def _converted(item: Pixels, conversion: Conversion) -> DecodedBatch:
    count = len(item.images)
    paths = [f"{item.path}[{row}]" for row in range(count)]
    labels = list(item.labels) if item.labels else [None] * count
    notes: Counter[str] = Counter()
    seen = Seen()
    bad, kept, pixels = [], [], []
    for row, image in enumerate(item.images):
        try:
            converted = convert(image, conversion)
        except BadImage as cause:
            bad.append((paths[row], str(cause)))
            continue
        notes.update(converted.notes)
        seen.add(converted.stored)
        kept.append(row)
        pixels.append(converted.pixels)
    images, digests = channels_first(pixels)
    seen.add_pixels(images)
    return DecodedBatch(
        [paths[row] for row in kept],
        [item.split] * len(kept),
        [labels[row] for row in kept],
        images,
        digests,
        notes,
        bad,
        seen,
    )
