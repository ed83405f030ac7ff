"""The script that mounts the head's data disk, on a real block device. Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.aws_account import ROOT

pytestmark = pytest.mark.system

SCRIPT = ROOT / "pipelines" / "cluster" / "data_disk.sh"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A new, empty disk."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    name = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=True
    ).stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where it is to be mounted."""
    folder = tmp_path / "fvae-data"
    yield folder
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def mount(device: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LIBMOUNT_FSTAB": str(folder.parent / "fstab")}
    command = ["bash", str(SCRIPT), device, str(folder), "nobody", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)


def test_an_empty_disk_gets_a_file_system_once_and_keeps_what_is_on_it(device: str, folder: Path) -> None:
    result = mount(device, folder)
    assert result.returncode == 0, result.stderr
    assert folder.is_mount()
    assert list(folder.iterdir()) == []
    assert (folder.stat().st_mode & 0o777, folder.owner()) == (0o700, "nobody")
    (folder / "mlflow.db").write_text("every run")
    fstab = (folder.parent / "fstab").read_text()
    assert f" {folder} ext4 defaults,nofail" in fstab, "it comes back after a reboot, and a lost disk does not stop it"
    assert mount(device, folder).returncode == 0, "ray up again"
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()
    result = mount(device, folder)  # on the next head
    assert result.returncode == 0, result.stderr
    assert (folder / "mlflow.db").read_text() == "every run"
    assert (folder.parent / "fstab").read_text() == fstab


def test_a_disk_with_something_else_on_it_is_left_alone(device: str, folder: Path) -> None:
    subprocess.run(["mkfs.ext2", "-q", device], check=True)
    before = Path(device).read_bytes()
    result = mount(device, folder)
    assert result.returncode == 2
    assert result.stderr == f"error: {device}: holds ext2, not ext4; it is left alone\n"
    assert Path(device).read_bytes() == before


def test_a_disk_with_unknown_bytes_on_it_is_left_alone(device: str, folder: Path) -> None:
    with Path(device).open("r+b") as file:
        file.write(b"x" * 4096)
    result = mount(device, folder)
    assert result.returncode == 2
    assert "holds something that is no file system" in result.stderr
    assert Path(device).read_bytes()[:4096] == b"x" * 4096


def test_files_below_the_mount_point_are_not_hidden(device: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "mlflow.db").write_text("written before the disk was there")
    result = mount(device, folder)
    assert result.returncode == 2
    assert "is not empty, and its disk is not mounted" in result.stderr
    assert (folder / "mlflow.db").exists()


def test_a_disk_that_is_not_attached_is_one_line(folder: Path) -> None:
    result = mount("/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0", folder)
    assert result.returncode == 2
    assert result.stderr.endswith("the data disk is not attached\n")
    assert result.stderr.count("\n") == 1
