"""What goes along with a command that becomes a job on a cluster: this product's files, by path, and nothing else.

Ray would pack a folder less what patterns exclude, so a folder whose name is no plain pattern would be packed too.
Here the files that belong are copied to an empty folder, and that folder is what Ray packs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fvae.config import ConfigError

ROOT = Path(__file__).parents[1]
LOCK = "requirements.lock"
SUFFIXES = {
    "fvae": {".py"},
    "pipelines": {".py", ".sh", ".conf", ".json"},
    "tune": {".py", ".html", ".js"},
    "configs": {".toml", ".json"},
}
"""Of each folder that goes along, the kinds of files that are this product's."""
FILES = ("pyproject.toml", LOCK, "README.md")
"""Files beside them that go along too."""
SHIPPED = (*SUFFIXES, *FILES)
"""What a job finds in its folder at most."""


def shipped_files(root: Path = ROOT) -> list[str]:
    """The files that go along, as paths relative to ``root``, sorted: nothing that a user keeps beside or among them.

    Hidden files, caches, other kinds of files and links that lead out of ``root`` stay here.
    """
    return sorted(_belonging(root.resolve()))


def staged(root: Path = ROOT) -> Path:
    """A new folder with a copy of every file of :func:`shipped_files`; the caller removes it.

    Raises ``ConfigError`` where a file cannot be read, or the copy cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="fvae-submission-"))
    try:
        for name in shipped_files(root):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(f"{error.filename}: cannot be sent along ({error.strerror})") from error
    return folder


def _belonging(root: Path) -> Iterator[str]:
    for name in FILES:
        if _is_ours(root / name, root):
            yield name
    for top, suffixes in SUFFIXES.items():
        for folder, below, names in os.walk(root / top):
            below[:] = [name for name in below if name.isidentifier() and name != "__pycache__"]
            for name in names:
                path = Path(folder, name)
                if path.suffix in suffixes and not name.startswith(".") and _is_ours(path, root):
                    yield path.relative_to(root).as_posix()


def _is_ours(path: Path, root: Path) -> bool:
    return path.is_file() and path.resolve().is_relative_to(root)
