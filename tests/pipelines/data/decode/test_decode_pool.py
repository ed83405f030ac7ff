"""Decoding in several processes: the same batches as one by one, in order, with little read ahead; and how it ends."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fvae import ConfigError
from pipelines.data.decode import pool as decode_pool
from pipelines.data.decode.image import BadImage, Conversion, decode
from pipelines.data.decode.pool import DecodedBatch, decode_many
from pipelines.data.sources import ImageFile
from tests.images import saved

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def file(number: int, mixed: bool = True) -> ImageFile:
    """Number ``number`` of an input in which, where ``mixed``, some are grey, transparent or bad."""
    image = np.roll(COLOUR, number, axis=0) ^ np.uint8(number % 256)
    if mixed:
        image = {3: image[..., 0], 4: np.dstack([image, image[..., 0]])}.get(number % 7, image)
    content = b"no image" if mixed and number % 50 == 5 else saved(image, "PNG")
    return ImageFile(f"f{number}", content, ("train", None)[number % 2], f"class {number % 3}")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tasks, and no input so small that it is decoded here."""
    for name, value in {"TASK_FILES": 16, "ALONE_FILES": 0}.items():
        monkeypatch.setattr(decode_pool, name, value)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """The decoding processes."""
    processes: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def start(*args, **options) -> subprocess.Popen:
        processes.append(popen(*args, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return processes


def check(files: list[ImageFile], batches: list[DecodedBatch], conversion: Conversion) -> None:
    """Everything that the batches say, against decoding one by one."""
    good, bad, notes = [], [], Counter()
    for one in files:
        try:
            decoded = decode(one.content, conversion)
        except BadImage as cause:
            bad.append((one.path, str(cause)))
        else:
            notes.update(decoded.notes)
            pixels = np.atleast_3d(decoded.pixels).transpose(2, 0, 1)
            good.append((one.path, one.split, one.label, pixels))
    assert [(path, split, label) for path, split, label, _ in good] == [
        row for batch in batches for row in zip(batch.paths, batch.splits, batch.labels, strict=True)
    ]
    images = [image for batch in batches for image in batch.images]
    digests = [digest.tobytes() for batch in batches for digest in batch.digests]
    assert len(images) == len(digests) == len(good)
    for image, digest, (*_, pixels) in zip(images, digests, good, strict=True):
        assert np.array_equal(image, pixels)
        assert hashlib.sha256(np.ascontiguousarray(pixels)).digest() == digest
    assert [cause for batch in batches for cause in batch.bad] == bad
    assert sum((batch.notes for batch in batches), Counter()) == notes


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.usefixtures("small")
def test_in_order_whatever_the_number_of_processes(processes: int, started: list) -> None:
    files = [file(number) for number in range(203)]
    for conversion in (Conversion(), Conversion(size=4, channels=1)):
        check(files, list(decode_many(iter(files), conversion, processes)), conversion)
    assert len(started) == 2 * processes
    assert all(process.returncode == 0 for process in started)


def test_small_inputs_need_no_processes(started: list) -> None:
    files = [file(number) for number in range(203)]
    check(files, list(decode_many(iter(files), Conversion(), 2)), Conversion())
    assert list(decode_many([], Conversion(), 2)) == []
    assert not started


def test_many_files_are_decoded_elsewhere(started: list) -> None:
    one = file(0, mixed=False)
    batches = list(decode_many((one for _ in range(1300)), Conversion(), 2))
    assert [len(batch.images) for batch in batches] == [256] * 5 + [20]
    assert all(isinstance(batch.images, np.ndarray) and batch.images.shape[1:] == (3, 6, 8) for batch in batches)
    assert len(started) == 2


@pytest.mark.usefixtures("small")
def test_little_is_read_ahead() -> None:
    read = 0

    def files() -> Iterator[ImageFile]:
        nonlocal read
        while read < 1000:
            read += 1
            yield file(0, mixed=False)

    taken = 0
    for batch in decode_many(files(), Conversion(), 2):
        taken += len(batch.images)
        assert read - taken <= 16 * (decode_pool.AHEAD * 2 + 1)
    assert taken == 1000


@pytest.mark.usefixtures("small")
def test_large_images_come_in_parts(started: list) -> None:
    files = [
        ImageFile(f"f{number}", saved(np.full((500, 700, 3), number, np.uint8), "PNG"), None, None)
        for number in range(9)
    ]
    files.insert(1, ImageFile("bad", b"no image", None, None))
    batches = list(decode_many(files, Conversion(), 2))
    check(files, batches, Conversion())
    assert [len(batch.images) for batch in batches] == [2, 2, 2, 2, 1]  # the first of which holds 2 MB
    assert len(started) == 2


@pytest.mark.usefixtures("small")
def test_an_error_of_the_program_is_shown_and_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="a decoding process ended with exit status 1 at f0 … f15"):
        list(decode_many([file(number) for number in range(64)], None, 2))
    assert "AttributeError" in capfd.readouterr().err


@pytest.mark.usefixtures("small")
def test_refused_memory_is_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """In decoding processes whose address space has no room for the images."""
    small = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({1 << 30}, {1 << 30})); "
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: popen([*command[:2], small + command[2]], **options)
    )
    content = saved(np.zeros((7000, 7000), np.uint8), "PNG", compress_level=1)
    files = [ImageFile(f"f{number}", content, None, None) for number in range(9)]
    with pytest.raises(ConfigError, match=r"ended \(out of memory\) at f\d.*; free some memory, take fewer"):
        list(decode_many(files, Conversion(channels=3), 1))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("after", [0, 100])
def test_a_process_that_is_ended_is_an_error_at_once(after: int, started: list) -> None:
    def files() -> Iterator[ImageFile]:
        for number in range(1000):
            if number == after + 40:
                started[0].kill()
                started[0].wait()
            yield file(number)

    with pytest.raises(
        ConfigError, match=r"a decoding process was ended \(SIGKILL.*\) at f\d+ … f\d+; free some memory"
    ):
        list(decode_many(files(), Conversion(), 2))
    assert all(process.returncode is not None for process in started)


def test_a_process_that_is_ended_after_its_last_part_is_the_same_error(started: list) -> None:
    task = [file(number, mixed=False) for number in range(3)]
    names = decode_pool._Names((one.path, one.split, one.label) for one in task)
    for part in decode_pool.decode_task([one.content for one in task], Conversion()):
        names.batch(part)
    worker = decode_pool._Worker(Conversion())
    started[0].kill()
    with pytest.raises(ConfigError, match=r"was ended \(SIGKILL.*\) at f2; free some memory"):
        worker.receive(names)
    worker.end()


@pytest.mark.usefixtures("small")
def test_leaving_early_and_errors_of_the_source_end_the_processes(started: list) -> None:
    batches = decode_many((file(number) for number in range(1000)), Conversion(), 2)
    next(batches)
    batches.close()
    assert [process.returncode for process in started] == [0, 0]

    def failing() -> Iterator[ImageFile]:
        yield from (file(number) for number in range(60))
        raise OSError("the archive ends here")

    with pytest.raises(OSError, match="the archive ends here"):
        list(decode_many(failing(), Conversion(), 2))
    assert [process.returncode for process in started] == [0, 0, 0, 0]


def test_processes_go_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(file(0, mixed=False).content)
    program = tmp_path / "program.py"
    program.write_text(
        "import itertools, os, pathlib, sys, time\n"
        f"sys.path[:] = {sys.path!r}\n"
        "from pipelines.data.decode import pool as decode_pool\n"
        "from pipelines.data.decode.image import Conversion\n"
        "from pipelines.data.sources.base import ImageFile\n"
        "print('main module', flush=True)\n"
        f"content = pathlib.Path({str(tmp_path / 'image.png')!r}).read_bytes()\n"
        "files = (ImageFile('f', content, None, None) for _ in itertools.count())\n"
        "next(decode_pool.decode_many(files, Conversion(), 2))\n"
        "batches = decode_pool.decode_many(files, Conversion(), 2)\n"
        "next(batches)\n"
        "print(*[worker._process.pid for worker in batches.gi_frame.f_locals['workers']], flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "main module\n"
        pids = [int(pid) for pid in parent.stdout.readline().split()]  # next: the main module ran only once
        parent.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a decoding process outlives its parent"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("small")
def test_damaged_tiffs_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    content = saved(COLOUR, "TIFF", compression="tiff_lzw")
    file_ = ImageFile("a.tif", content[: len(content) // 2], None, None)
    (batch,) = decode_many([file_], Conversion(), 2)
    assert len(batch.bad) == 1
    assert capfd.readouterr() == ("", "")
