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
from pipelines.data.decode.value_levels import to_8_bits
from pipelines.data.sources import Pixels, open_source
from tests.pipelines.data.source_builders import bad_of, pixels_of, stored

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
    monkeypatch.setattr("pipelines.data.sources.streams.CHUNK_BYTES", 7 * array[0].nbytes)
    source = open_source(saved(tmp_path / "set.npy", array))
    assert (source.name, source.kind, source.count(), source.bins) == ("set", "NumPy arrays", 20, None)
    items = [item for item in source.items() if isinstance(item, Pixels)]
    assert [len(item.images) for item in items] == [7, 7, 6]
    assert (pixels_of(source)[None][0] == expected).all()
    assert source.notes == ([f"arrays of four dimensions read as {layout}"] if layout else [])


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_and_booleans_become_8_bits(tmp_path: Path, order: str) -> None:
    wide = np.arange(65536, dtype=f"{order}u2").reshape(-1, 64, 64)
    source = open_source(saved(tmp_path / "a.npy", wide))
    assert (pixels_of(source)[None][0] == np.rint(wide / 257).astype(np.uint8)).all()
    source = open_source(saved(tmp_path / "b.npy", GREY > 99))
    assert (pixels_of(source)[None][0] == np.where(GREY > 99, 255, 0)).all()


def test_fortran_order_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.data.sources.npy_format.CHUNK_BYTES", 7 * 90)
    for array in (GREY, COLOUR):
        path = saved(tmp_path / "a.npy", np.asfortranarray(array))
        source = open_source(path)
        assert (pixels_of(source)[None][0] == array).all()
    assert len(list(source.items())) == 3
    content = Path(path).read_bytes()
    for damaged in (content[:-1], content + b"x"):
        Path(path).write_bytes(damaged)
        with pytest.raises(ConfigError, match="cut short or more bytes"):
            list(open_source(path).items())


def test_flat_rows_are_square_images(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (20, 9, 9), dtype=np.uint8)
    source = open_source(saved(tmp_path / "a.npy", grey.reshape(20, -1)))
    assert (pixels_of(source)[None][0] == grey).all()
    assert source.notes == ["rows of 81 values read as 9×9"]
    colour = RNG.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    rows = colour.transpose(0, 3, 1, 2).reshape(20, -1)
    with pytest.raises(ConfigError, match=r"may be 8×8×3 or 3×8×8; save x.reshape\(-1, 8, 8, 3\)") as caught:
        open_source(saved(tmp_path / "b.npy", rows))
    assert "\n" not in str(caught.value)
    np.savez(tmp_path / "c.npz", data=rows, labels=np.arange(20), mean=np.zeros(192))  # as ImageNet is published
    source = open_source(str(tmp_path / "c.npz"))
    assert (pixels_of(source)[None][0] == colour).all()
    assert "rows of 192 values read as 3×8×8, one channel after the other" in source.notes


def test_positions_name_images_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", COLOUR, np.arange(20) % 3)
    images, labels = pixels_of(open_source(str(tmp_path / "a.npz")))[None]
    assert (images == COLOUR).all()
    assert labels == [str(row % 3) for row in range(20)]
    np.savez(tmp_path / "b.npz", np.arange(20), GREY)
    assert (pixels_of(open_source(str(tmp_path / "b.npz")))[None][0] == GREY).all()
    np.savez(tmp_path / "c.npz", GREY, COLOUR)
    with pytest.raises(ConfigError, match="holds arr_0, arr_1; needs images"):
        open_source(str(tmp_path / "c.npz"))


def test_arrays_that_are_no_images_may_hold_anything(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", imgs=GREY, metadata=np.array({"a": 1}, dtype=object), latents=np.zeros((20, 6)))
    source = open_source(str(tmp_path / "a.npz"))
    assert (pixels_of(source)[None][0] == GREY).all()
    assert source.notes == ["arrays that are neither images nor labels ignored: metadata, latents"]


@pytest.mark.parametrize(
    ("labels", "expected", "note"),
    [
        (np.arange(20) % 2 == 0, ["True", "False"] * 10, ""),
        (np.arange(20, dtype=np.float32), [str(row) for row in range(20)], ""),
        (np.array([np.nan, 1.0] * 10), [None, "1"] * 10, ""),
        (np.array([b"cat", b"dog"] * 10), ["cat", "dog"] * 10, ""),
        (np.arange(20) / 8, None, "labels left out: labels that are not whole numbers"),
        (np.zeros((20, 14), np.uint8), None, "labels left out: labels of shape [20, 14], not one for each image"),
        (np.zeros(20, "M8[s]"), None, "labels left out: labels of type datetime64[s], neither whole numbers nor texts"),
    ],
)
def test_labels_are_cast_or_left_out_and_never_cost_the_images(
    tmp_path: Path, labels: np.ndarray, expected: list[str | None] | None, note: str
) -> None:
    np.savez(tmp_path / "a.npz", images=GREY, labels=labels)
    source = open_source(str(tmp_path / "a.npz"))
    images, found = pixels_of(source)[None]
    assert (images == GREY).all()
    assert found == expected
    assert source.notes == ([note] if note else [])


def test_folders_of_arrays(tmp_path: Path) -> None:
    parts = {"train_data_batch_1": GREY[:8], "train_data_batch_2": GREY[8:15], "val_data": GREY[15:]}
    (tmp_path / "npz").mkdir()
    for name, images in parts.items():
        np.savez(tmp_path / "npz" / f"{name}.npz", data=images, labels=np.arange(len(images)))
    source = open_source(str(tmp_path / "npz"))
    found = pixels_of(source)
    assert (found["train"][0] == GREY[:15]).all()
    assert (found["val"][0] == GREY[15:]).all()
    assert dict(source.origins) == {"train": ["train_data_batch_1", "train_data_batch_2"], "val": ["val_data"]}

    (tmp_path / "keras").mkdir()
    for name, array in (("x_train", GREY[:15]), ("y_train", np.arange(15)), ("x_test", GREY[15:])):
        np.save(tmp_path / "keras" / f"{name}.npy", array)
    found = pixels_of(open_source(str(tmp_path / "keras")))
    assert (found["train"][0] == GREY[:15]).all()
    assert found["train"][1] == [str(row) for row in range(15)]
    assert (found["test"][0] == GREY[15:]).all()

    for split, rows in (("train", GREY[:15]), ("test", GREY[15:])):  # a class each
        for number, name in enumerate(("cat", "dog")):
            path = tmp_path / "classes" / split / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rows[number::2])
    found = pixels_of(open_source(str(tmp_path / "classes")))
    assert found["train"][1] == ["cat"] * 8 + ["dog"] * 7
    assert (found["test"][0] == np.concatenate([GREY[15::2], GREY[16::2]])).all()

    for number, image in enumerate(COLOUR):  # an image each
        path = tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number:02}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, image)
    source = open_source(str(tmp_path / "images"))
    images, labels = pixels_of(source)[None]
    assert (images == np.concatenate([COLOUR[::2], COLOUR[1::2]])).all()
    assert labels == ["cat"] * 10 + ["dog"] * 10
    assert source.count() == 20
    assert source.notes == ["each .npy file is one image"]
    (tmp_path / "images" / "cat" / "bad.npy").write_bytes(b"no array")
    cut = tmp_path / "images" / "cat" / "00.npy"
    cut.write_bytes(cut.read_bytes()[:-1])
    bad = bad_of(open_source(str(tmp_path / "images")))
    assert set(bad) == {"cat/bad.npy", "00.npy"}
    assert bad["cat/bad.npy"].startswith("not a complete .npy file")
    assert bad["00.npy"].startswith("cut short")


@given(st.lists(st.integers(0, 65535), min_size=1))
def test_16_bits_are_rounded_to_the_nearest(values: list[int]) -> None:
    given_ = np.array(values, np.uint16)
    exact = given_.astype(np.float64) / 257
    assert (np.abs(to_8_bits(given_) - exact) <= 0.5).all()


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
        (GREY.astype(complex), "complex128"),
        (GREY[0], "shape 6×5"),
        (GREY.reshape(20, 30), "shape 20×30"),
        (GREY[None, None], "shape 1×1×20×6×5"),
        (np.uint8(3), r"shape \(\)"),
        (GREY[:0], "empty"),
        (COLOUR[0], "one picture or many that are 3 wide"),
        (np.zeros((9, 3, 8, 3), np.uint8), "channels first or last"),
        (np.zeros((9, 8, 8, 4), np.uint8), "alpha"),
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
        (whole[:30], "not a complete .npy"),
        (whole.replace(b"'shape'", b"'shap!'"), "not a complete .npy"),
        (whole.replace(b"(20, 6, 5)", b"(20,-6, 5)"), "damaged|empty|whole"),
        (whole.replace(b"(20, 6, 5)", b"(2,99999999,9)"), "promises"),
        (b"\x93NUMPY\x09\x00" + whole[8:], "not a complete .npy|version"),
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
