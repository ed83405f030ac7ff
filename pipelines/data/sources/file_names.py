"""Image suffixes, and system or hidden files (``.DS_Store``, ``Thumbs.db`` …), by the names of files."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from pipelines.data.sources.base import suffix_of

IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".gif", ".avif", ".avifs", ".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".jpx"),
)
"""Suffixes of image files that are decoded."""
OTHER_IMAGES = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".psd", ".psb", ".tga", ".exr", ".pfm", ".dcm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)
"""Suffixes of image files that are not decoded: such a file counts as a bad one."""
_ALL_IMAGES = IMAGE_SUFFIXES + OTHER_IMAGES
_OTHER_FILES = """
    .txt .csv .tsv .json .jsonl .ndjson .xml .yaml .yml .toml .md .rst .html .htm .pdf .doc .docx .xls .xlsx .odt .ods
    .py .ipynb .r .m .c .h .cpp .js .ts .css .sh .bat .log .ini .cfg .conf .lock .url .mat .npy .npz .parquet .arrow
    .feather .pkl .pickle .h5 .hdf5 .lmdb .mdb .db .sqlite .tfrecord .rec .lst .idx .cls .tar .gz .tgz .bz2 .tbz .xz
    .txz .zip .7z .rar .zst .mp4 .avi .mov .mkv .webm .mpg .wav .mp3 .flac .ogg .pt .pth .ckpt .safetensors .onnx
    .ico .cur .icns .svg .svgz .eps .ps .ai .xcf .fits .fit .nii .aux .ovr .prj .tfw
    .crc .md5 .sha1 .sha256 .sig .asc .tmp .part .bib .tex .license
"""
_NO_IMAGES = frozenset(_OTHER_FILES.split())
_SYSTEM_NAMES = """
    .ds_store|thumbs.db|ehthumbs.db|ehthumbs_vista.db|desktop.ini|icon|__macosx|@eadir|@synoresource|#recycle|#snapshot
    |@recycle|@recently-snapshot|.@__thumb|.snapshot|.zfs|$recycle.bin|system volume information
    |found.000|found.001|pagefile.sys|hiberfil.sys|lost+found|.trash|.trashes|network trash folder|temporary items
    |.temporaryitems|.spotlight-v100|.fseventsd|.documentrevisions-v100|.appledouble|.appledb|.appledesktop
    |.volumeicon.icns|.localized|.thumbnails|.directory|.nomedia|picasa.ini|.picasa.ini|.picasaoriginals|__pycache__
    |.ipynb_checkpoints|.git|.svn|.hg|.dvc|.cache|.dropbox|.dropbox.cache|.stfolder|.stversions|.sync
"""
_SYSTEM = frozenset(name.strip() for name in _SYSTEM_NAMES.split("|")) - {"icon"} | {"icon\r"}
"""Names that operating systems, disk stations and tools give, in small letters."""
_SYSTEM_CAPITALS = ("RECYCLER", "RECYCLED")  # in small letters they may be a class
_SYSTEM_STARTS = ("._", "~$", ".trash-", ".nfs", ".fuse_hidden", ".goutputstream-", ".com.apple.", "thumbs.db:")
_SYSTEM_ENDS = (":zone.identifier", "@synoeastream")
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II[*+]\0|MM\0[*+]|RIFF....WEBP|BM....\0\0\0\0|P[1-6][ \n\r\t]"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftyp(?:avi[fs]|hei[cxms]|he[vi][cmx]|mif1|msf1)|8BPS\0\x01|\xff\x0a"
    rb"|\0\0\0\x0cJXL |#\?R(?:ADIANCE|GBE)",
    re.DOTALL,
)
HEAD = 16
"""Bytes of a file that :func:`is_image_content` needs."""


def is_image(name: str) -> bool:
    """Whether the suffix is that of an image file, decoded or not."""
    return name.lower().endswith(_ALL_IMAGES)


def may_be_image(name: str) -> bool:
    """Whether the suffix leaves open what the file is: none, or one that no usual kind of file has."""
    return suffix_of(name) not in _NO_IMAGES and not is_image(name)


def is_image_content(head: bytes) -> bool:
    """Whether a file that starts with ``head`` is an image."""
    return _MAGIC.match(head) is not None


def is_system_name(name: str) -> bool:
    """Whether an operating system or a tool gave this name to a file or a folder: no user means it."""
    small = name.lower()
    return (
        small in _SYSTEM or name in _SYSTEM_CAPITALS or small.startswith(_SYSTEM_STARTS) or small.endswith(_SYSTEM_ENDS)
    )


def is_hidden_name(name: str) -> bool:
    """Whether a name starts with a dot and is neither ``.`` nor ``..``."""
    return name.startswith(".") and name not in (".", "..")


def is_clutter(path: str, *, hidden: bool = True) -> bool:
    """Whether a file, or a folder around it, has a system's name or, with ``hidden``, a hidden one."""
    return _clutter_part(path, hidden) is not None


@functools.lru_cache(4096)  # of folders, which many files share
def _clutter_folder(folder: str, hidden: bool) -> str | None:
    return _clutter_part(folder, hidden) if folder else None


def _clutter_part(path: str, hidden: bool) -> str | None:
    """The path up to the first name that makes it clutter."""
    folder, slash, name = path.rpartition("/")
    if slash and (part := _clutter_folder(folder, hidden)) is not None:
        return part
    return path if is_system_name(name) or (hidden and is_hidden_name(name)) else None


class Clutter:
    """Sorts out what is clutter, and counts it.

    Args:
        hidden: whether hidden files and folders are clutter, too. Where nothing else is there, they are the images.
    """

    def __init__(self, *, hidden: bool = True) -> None:
        self._hidden = hidden
        self._found: set[str] = set()

    def takes(self, name: str, folder: str = "") -> bool:
        """Whether ``name`` (a path, or a name in a ``folder`` that is no clutter) is clutter."""
        part = _clutter_part(name, self._hidden)
        if part is None:
            return False
        self._found.add(folder + part)
        return True

    def notes(self) -> list[str]:
        """The line that says what was ignored, by name; none where nothing was."""
        return clutter_line(self._found)


def clutter_line(paths: Iterable[str]) -> list[str]:
    """``3 system or hidden files and folders ignored: .DS_Store, …``; nothing where there are none."""
    paths = list(paths)
    if not paths:
        return []
    names = sorted({path.rpartition("/")[2].strip() for path in paths})
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more names" if len(names) > 6 else "")
    what = "file or folder" if len(paths) == 1 else "files and folders"
    return [f"{len(paths):,} system or hidden {what} ignored: {shown}"]
