"""The files that a job on a cluster gets as its working directory: this product's files, and nothing else.

Ray packs a folder except for what patterns exclude, so a folder whose name is no plain pattern would be packed too.
Here the files are copied to an empty folder, which Ray packs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from fvae.config import ConfigError

ROOT = Path(__file__).parents[2]
LOCK = "requirements.lock"
FILES = ("pyproject.toml", LOCK, "README.md", "LICENSE")
PACKAGES = ("fvae", "pipelines", "tune")
OTHERS = (
    "fvae/py.typed",
    "pipelines/py.typed",
    "tune/py.typed",
    "pipelines/cluster/aws_machine.sh",
    "pipelines/cluster/data_disk.sh",
    "pipelines/cluster/environment.sh",
    "pipelines/cluster/set_up.sh",
    "pipelines/cluster/spot_watcher.conf",
    "pipelines/cluster/policies/head.json",
    "pipelines/cluster/policies/trust.json",
    "pipelines/cluster/policies/worker.json",
    "tune/map/page.html",
    "tune/map/plotly-basic.min.js",
    "configs/mnist-28x28.toml",
    "configs/paper-64x64.toml",
    *FILES,
)
"""Files other than Python modules that a job may read."""
SHIPPED = tuple(dict.fromkeys((*PACKAGES, *(name.partition("/")[0] for name in OTHERS))))
"""What a job finds in its folder."""


def shipped_files(root: Path = ROOT, config: str | None = None) -> list[str]:
    """The files of a job, as paths relative to ``root``, sorted: nothing that a user keeps beside or among them.

    ``config`` is the path of one more file, relative to ``root``. Hidden files and links that lead out of ``root`` are
    left out.
    """
    root = root.resolve()
    modules = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    found = {path for path in modules if (path.parent / "__init__.py").exists() and not path.name.startswith(".")}
    found |= {root / name for name in OTHERS}
    if config is not None:
        found.add(root / os.path.normpath(config))
    ours = (path for path in found if path.is_file() and path.resolve().is_relative_to(root))
    return sorted(path.relative_to(root).as_posix() for path in ours)


def staged(root: Path = ROOT, config: str | None = None) -> Path:
    """A new folder with a copy of every file of :func:`shipped_files`; the caller removes it.

    Raises ``ConfigError`` where a file cannot be read, or the copy cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="fvae-submission-"))
    try:
        for name in shipped_files(root, config):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(f"{error.filename}: cannot be sent with the job ({error.strerror})") from error
    return folder
