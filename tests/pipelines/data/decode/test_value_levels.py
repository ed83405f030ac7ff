"""From stored values to levels: exact where it can be, the nearest level elsewhere; and what was seen on the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae import ConfigError
from pipelines.data.decode.conversion import Conversion, convert
from pipelines.data.decode.image import BadImage, decode
from pipelines.data.decode.value_levels import Levels, Seen, Stored
from pipelines.data.settings import IngestSettings, parse_range
from pipelines.data.value_range import require_wide
from tests.images import chunk, saved
from tests.pipelines.data.input_builders import grey_palette, png_of_4_bits, pnm

pytestmark = pytest.mark.core


@given(st.integers(2, 256))
def test_levels_come_back_exactly(bins: int) -> None:
    values = np.arange(bins, dtype=np.uint8)
    levels = Levels(bins=bins)
    assert (levels.reduce(levels.spread(values)) == values).all()


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.lists(st.floats(0, 1), min_size=1, max_size=50),
    st.sampled_from(["f8", "f4"]),
)
def test_spread_values_are_the_nearest_levels(low: float, width: float, shares: list[float], kind: str) -> None:
    values = np.clip(low + width * np.array(shares), low, low + width)
    found = Levels(low=low, high=low + width).spread(values).astype(float)
    assert (np.abs(found - (values - low) * 255 / width) <= 0.5 + 1e-6 * (1 + abs(low) / width)).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32])
def test_types_spread_alike(kind: type) -> None:
    values = np.arange(0, 256, dtype=kind).reshape(16, 16)
    assert (Levels(low=0, high=255).spread(values) == np.arange(256, dtype=np.uint8).reshape(16, 16)).all()
    with pytest.raises(BadImage, match=r"holds 255, which lies outside of the values 0 … 100 asked for"):
        Levels(low=0, high=100).spread(values)
    with pytest.raises(BadImage, match=r"holds 0, which lies outside"):
        Levels(low=1, high=300).spread(values)


def test_not_a_number_is_no_value() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(BadImage, match="not finite"):
            convert(np.array([[0.5, bad]]), Conversion(levels=Levels(low=0, high=1)))


def test_images_of_every_kind_take_the_range() -> None:
    grey = np.arange(0, 100, dtype=np.uint8).reshape(10, 10)
    asked = Conversion(levels=Levels(low=0, high=99))
    expected = np.floor(grey * (255 / 99) + 0.5).astype(np.uint8)
    colour = np.dstack([grey] * 3)
    for content in (saved(grey, "PNG"), saved(grey, "BMP"), saved(grey.astype(np.uint16), "PNG"), saved(grey, "PPM")):
        assert (decode(content, asked).pixels == expected).all()
    for file_format in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
        alpha = np.dstack([colour, np.full_like(grey, 255)])
        for image in (colour, alpha):
            assert (decode(saved(image, file_format, **options), asked).pixels == expected[..., None]).all()
    for kind in (np.int32, np.float32):
        assert (decode(saved(grey.astype(kind), "TIFF"), asked).pixels == expected).all()
    assert (convert(grey.astype(np.int64), asked).pixels == expected).all()


def test_few_levels_are_made_after_the_size() -> None:
    image = np.zeros((4, 4), np.uint8)
    image[:2] = 200
    made = convert(image, Conversion(size=2, levels=Levels(low=0, high=255, bins=2)))
    assert made.pixels.tolist() == [[1, 1], [0, 0]]
    image[0] = 0  # half of the upper pixels is 100: less than the middle
    assert convert(image, Conversion(size=2, levels=Levels(low=0, high=255, bins=2))).pixels.tolist() == [[0, 0]] * 2


def test_one_bit_is_black_and_white_whatever_is_asked() -> None:
    bits = np.arange(64).reshape(8, 8) % 3 == 0
    for levels in (Levels(bins=2), Levels(low=0, high=255, bins=2)):
        assert (decode(saved(bits, "PNG"), Conversion(levels=levels)).pixels == bits).all()
        assert (convert(bits, Conversion(levels=levels)).pixels == bits).all()


PARTS = st.lists(st.lists(st.sampled_from([0, 1, 7, 255]), min_size=1, max_size=6), min_size=1, max_size=5)


@given(PARTS)
def test_what_is_seen_in_parts_is_what_is_seen_at_once(parts: list[list[int]]) -> None:
    merged = Seen()
    for part in parts:
        one = Seen()
        one.add_pixels(np.array(part, np.uint8))
        one.add([Stored(65535, min(part), max(part))])
        merged.merge(one)
    everything = {value for part in parts for value in part}
    assert (merged.low, merged.high) == (min(everything), max(everything))
    assert merged.distinct == (everything if len(everything) <= 2 else None)
    assert merged.stored == {65535: (min(everything), max(everything))}


@pytest.mark.parametrize(
    ("low", "high", "top", "said"),
    [
        (0, 255, 65535, "--value-range 0:255, or --value-range 0:65535 to take them as they are"),
        (0, 4000, 65535, "--value-range 0:4095, or --value-range 0:65535"),
        (900, 1200, 65535, "--value-range 0:2047, --value-range 900:1200, or --value-range 0:65535"),
        (0, 16, 255, "--value-range 0:16, --bins 17 for 17 levels, or --value-range 0:255"),
        (200, 210, 255, "--value-range 0:210, --value-range 200:210, --bins 211"),
        (-5, 90, 255, "not in 0 … 255; say which are black and white: --value-range -5:90"),
        (0, 4000, 255, "--value-range 0:4095"),
        (7, 7, 255, "white: --value-range 0:7, --bins 8 for 8 levels, or --value-range 0:255"),
        (0, 0, 255, "white: --value-range 0:255 to take them as they are"),
        (-3, -3, 255, "white: --value-range -3:-2"),
        (1_000_000_001, 1_234_567_894, 65535, "--value-range 1000000001:1234567894"),
        (0, 16, 200, "--value-range 0:16, --bins 17 for 17 levels, or --value-range 0:200"),
    ],
)
def test_the_question_has_answers_that_work(low: int, high: int, top: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_wide("set", low, high, top)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    for word in str(caught.value).split("--value-range ")[1:]:
        found = parse_range(word.split(" ")[0].rstrip(","))
        assert found is not None
        assert found[0] <= low
        assert high <= found[1]
    assert "--bins 1 " not in str(caught.value)


def test_a_value_just_outside_is_said_to_all_its_digits() -> None:
    for value, said in ((np.float32(1.0000001), "holds 1.0000001,"), (np.float64(1.5), "holds 1.5,")):
        with pytest.raises(BadImage, match=said):
            Levels(low=0, high=1).spread(np.array([[value]]))
    with pytest.raises(BadImage, match="holds 1234567895, which lies outside of the values 0 … 1234567894"):
        Levels(low=0, high=1_234_567_894).spread(np.array([[1_234_567_895]]))


def test_a_range_that_is_wide_enough_is_no_question() -> None:
    for low, high, top in ((0, 31, 255), (0, 8191, 65535), (100, 131, 255)):
        require_wide("set", low, high, top)


@pytest.mark.parametrize(
    "options",
    [{"value_range": text} for text in ("255", "5:5", "9:1", "a:b", "0:nan", "0:inf", "1:2:3")]
    + [{"bins": number} for number in (0, 1, 257)],
)
def test_ranges_that_cannot_be_are_said(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--value-range=|--bins") as caught:
        IngestSettings(source="a", dest="b", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


LEVELS = (np.arange(256, dtype=np.uint8).reshape(16, 16) * 7) % 17


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF"])
def test_a_palette_takes_the_range(file_format: str) -> None:
    content = grey_palette(LEVELS, file_format)
    assert np.array_equal(decode(content, Conversion()).pixels, LEVELS)
    assert np.array_equal(decode(content, Conversion(levels=Levels(bins=17))).pixels, LEVELS)
    white = decode(content, Conversion(levels=Levels(low=0, high=16))).pixels
    assert np.array_equal(white, np.floor(LEVELS * (255 / 16) + 0.5))


def test_a_palette_with_transparency_takes_the_range() -> None:
    content = grey_palette(LEVELS, "PNG")
    start = content.index(b"IDAT") - 4
    content = content[:start] + chunk(b"tRNS", b"\0") + content[start:]
    found = decode(content, Conversion(levels=Levels(low=0, high=16))).pixels
    expected = np.where(LEVELS == 0, 255, np.floor(LEVELS * (255 / 16) + 0.5))
    assert np.array_equal(found, np.dstack([expected] * 3))


@pytest.mark.parametrize("top", [16, 100, 1023, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_anymap_has_the_values_of_its_file(top: int, channels: int) -> None:
    shape = (16, 16) if channels == 1 else (16, 16, 3)
    values = np.random.default_rng(top).integers(0, top + 1, shape).astype(np.uint16)
    values.flat[:2] = 0, top
    text = f"P{2 if channels == 1 else 3} 16 16 # wide\n{top}\n{' '.join(map(str, values.reshape(-1)))}\n".encode()
    for content in (pnm(values, top), text):
        decoded = decode(content, Conversion())
        assert np.array_equal(decoded.pixels, np.floor(values * (255 / top) + 0.5))
        assert decoded.notes == (("16-bit",) if top > 255 else ())
        assert decoded.stored == ((top, 0, top),)
        asked = decode(content, Conversion(levels=Levels(low=0, high=top)))
        assert np.array_equal(asked.pixels, decoded.pixels)
        if top < 256:
            assert np.array_equal(decode(content, Conversion(levels=Levels(bins=top + 1))).pixels, values)
            assert np.array_equal(decode(content, Conversion(levels=Levels(low=0, high=255))).pixels, decoded.pixels)
    with pytest.raises(BadImage, match="truncated PPM"):
        decode(pnm(values, top)[:-3], Conversion())
    with pytest.raises(BadImage, match="damaged PPM: holds values outside"):
        decode(text.replace(f"\n{top}\n".encode(), f"\n{top - 1}\n".encode(), 1), Conversion())
    with pytest.raises(BadImage, match="something else than numbers"):
        decode(text.replace(f"\n0 {top} ".encode(), b"\nx -1 ", 1), Conversion())


def test_a_range_that_fits_four_bits_is_one_of_the_values_in_the_file() -> None:
    values = LEVELS % 16
    content = png_of_4_bits(values)
    assert np.array_equal(decode(content, Conversion()).pixels, values * 17)
    assert np.array_equal(decode(content, Conversion(levels=Levels(bins=16))).pixels, values)
    assert np.array_equal(decode(content, Conversion(levels=Levels(low=0, high=15))).pixels, values * 17)
    assert np.array_equal(decode(content, Conversion(levels=Levels(low=0, high=255))).pixels, values * 17)
