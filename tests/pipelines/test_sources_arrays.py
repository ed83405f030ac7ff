""".npy and .npz: what each array is taken for, to the pixel, and what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae import ConfigError
from pipelines.sources import Pixels, open_source
from pipelines.sources.arrays import _to_bytes
from tests.pipelines.source_builders import pixels_of, stored

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def saved(path: Path, array: np.ndarray) -> str:
    path.write_bytes(npy(array))
    return str(path)


@pytest.mark.parametrize(
    ("array", "expected", "layout"),
    [
        (GREY, GREY, ""),
        (GREY[..., None], GREY, "[N, H, W, C]"),
        (GREY[:, None], GREY, "[N, C, H, W]"),
        (COLOUR, COLOUR, "[N, H, W, C]"),
        (np.ascontiguousarray(COLOUR.transpose(0, 3, 1, 2)), COLOUR, "[N, C, H, W]"),
        (GREY.astype(np.int64), GREY, ""),
        (GREY.astype(">u4"), GREY, ""),
    ],
)
def test_layouts_and_types(
    tmp_path: Path, array: np.ndarray, expected: np.ndarray, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.sources.chunks.CHUNK_BYTES", 7 * array[0].nbytes)
    source = open_source(saved(tmp_path / "set.npy", array))
    assert (source.name, source.kind, source.count(), source.bins) == ("set", "NumPy arrays", 20, 256)
    items = [item for item in source.items() if isinstance(item, Pixels)]
    assert [len(item.images) for item in items] == [7, 7, 6]
    assert (pixels_of(source)[None][0] == expected).all()
    assert source.notes == ([f"arrays of four dimensions read as {layout}"] if layout else [])


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_and_booleans_become_8_bits(tmp_path: Path, order: str) -> None:
    wide = np.arange(65536, dtype=f"{order}u2").reshape(-1, 64, 64)
    source = open_source(saved(tmp_path / "a.npy", wide))
    assert (pixels_of(source)[None][0] == np.rint(wide / 257).astype(np.uint8)).all()
    assert source.notes == ["16 images of 16 bits: rounded to 8 bits (lossy)"]
    source = open_source(saved(tmp_path / "b.npy", GREY > 99))
    assert (pixels_of(source)[None][0] == np.where(GREY > 99, 255, 0)).all()
    assert source.notes == ["20 images of booleans: 0 and 255"]


@given(st.lists(st.integers(0, 65535), min_size=1))
def test_16_bits_are_rounded_to_the_nearest(values: list[int]) -> None:
    given_ = np.array(values, np.uint16)
    exact = given_.astype(np.float64) / 257
    assert (np.abs(_to_bytes(given_, "a") - exact) <= 0.5).all()


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
        ("train", "train_labels", "val", "val_labels", "test", "test_labels"),
        ("train_images", "train_labels", "valid_images", "valid_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_validation", "Y_validation", "X_test", "Y_test"),
    ],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_npz_names_splits(tmp_path: Path, keys: tuple[str, ...], compressed: bool) -> None:
    arrays = {}
    for start, images, labels in zip((0, 10, 15), keys[::2], keys[1::2], strict=True):
        arrays[images] = GREY[start:][:5]
        arrays[labels] = np.arange(start, start + 5)[:, None]  # as Keras has them
    (np.savez_compressed if compressed else np.savez)(tmp_path / "set.npz", mean=np.zeros(3), **arrays)
    source = open_source(str(tmp_path / "set.npz"))
    assert source.count() == 15
    found = pixels_of(source)
    assert set(found) == {"train", "val", "test"}
    for split, start in (("train", 0), ("val", 10), ("test", 15)):
        assert (found[split][0] == GREY[start:][:5]).all()
        assert found[split][1] == [str(label) for label in range(start, start + 5)]
    assert source.notes == ["arrays that are neither images nor labels ignored: mean"]


@pytest.mark.parametrize("key", ["images", "x", "arr_0", "anything"])
def test_npz_with_one_array_of_images(tmp_path: Path, key: str, bucket: str) -> None:
    np.savez(tmp_path / "set.npz", **{key: COLOUR})
    here = open_source(str(tmp_path / "set.npz"))
    assert (pixels_of(here)[None][0] == COLOUR).all()
    stored(bucket, {"set.npz": (tmp_path / "set.npz").read_bytes()})
    there = open_source(f"{bucket}/set.npz")
    assert (pixels_of(there)[None][0] == COLOUR).all()
    assert there.name == here.name == "set"


def test_texts_are_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=GREY, labels=np.array(["cat", "größe"] * 10))
    assert pixels_of(open_source(str(tmp_path / "a.npz")))[None][1] == ["cat", "größe"] * 10


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (GREY / 255, r"float64; .* \(255 \* x\)\.round\(\)"),
        (GREY.astype(complex), "complex128"),
        (GREY.astype(np.int16) - 1, r"from -1 to 254; levels are 0 … 255"),
        (GREY.astype(np.int32) * 2, "int32 with values from 0 to 510"),
        (GREY[0], "shape 6×5"),
        (GREY.reshape(20, 30), "shape 20×30"),
        (GREY[None, None], "shape 1×1×20×6×5"),
        (np.uint8(3), r"shape \(\)"),
        (GREY[:0], "empty"),
        (COLOUR[0], "one picture or many that are 3 wide"),
        (np.zeros((9, 3, 8, 3), np.uint8), "channels first or last"),
        (np.zeros((9, 8, 8, 4), np.uint8), "alpha"),
        (np.asfortranarray(GREY), "Fortran order"),
        (np.zeros(3, np.uint8), "shape 3"),
        (np.zeros((3, 4, 4), [("a", "u1")]), "whole numbers"),
        (np.array(["a"] * 8).reshape(2, 2, 2), "whole numbers"),
        (np.zeros((3, 4, 4), "M8[s]"), "whole numbers"),
        (np.array([[[{}]] * 2] * 2, object), "array of objects"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    path = saved(tmp_path / "a.npy", array)
    with pytest.raises(ConfigError, match=said) as caught:
        list(open_source(path).items())
    assert "\n" not in str(caught.value)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> object:
            return Path.touch, (tmp_path / "pwned",)

    path = saved(tmp_path / "a.npy", np.array([[[Touch()] * 4] * 4], object))
    with pytest.raises(ConfigError, match="objects"):
        open_source(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"p": GREY, "q": GREY}, "holds p, q; needs images"),
        ({"x_train": GREY, "images": GREY}, "images belongs to no split, beside x_train"),
        ({"x_train": GREY, "train_images": GREY}, "both mean the same"),
        ({"images": GREY, "labels": np.arange(19)}, "labels of shape"),
        ({"images": GREY, "labels": np.zeros((20, 2), int)}, "labels of shape"),
        ({"images": GREY, "labels": np.zeros(20)}, "labels of type float64"),
        ({"x_train": GREY, "y_test": np.arange(20)}, "y_test: labels without images"),
    ],
)
def test_npz_that_cannot_be_understood(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        open_source(str(tmp_path / "a.npz"))


def test_damaged_files(tmp_path: Path) -> None:
    whole = npy(GREY)
    path = tmp_path / "a.npy"
    for content, said in [
        (whole[:-1], "cut short: holds 19 of the 20 rows"),
        (whole + whole, "more bytes"),
        (whole[:30], "no whole .npy"),
        (whole.replace(b"'shape'", b"'shap!'"), "no whole .npy"),
        (whole.replace(b"(20, 6, 5)", b"(20,-6, 5)"), "damaged|empty|whole"),
        (whole.replace(b"(20, 6, 5)", b"(2,99999999,9)"), "promises"),
        (b"\x93NUMPY\x09\x00" + whole[8:], "no whole .npy|version"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=said) as caught:
            list(open_source(str(path)).items())
        assert "\n" not in str(caught.value)
    path = tmp_path / "a.npz"
    np.savez(path, images=GREY)
    content_ = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content_[archive.infolist()[0].header_offset + 300] ^= 1
    path.write_bytes(content_)
    with pytest.raises(ConfigError, match="damaged .*CRC"):
        list(open_source(str(path)).items())
