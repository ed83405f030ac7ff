"""Sources of images: ``open_source`` chooses the reader of a folder, an archive or a file by its content."""

from __future__ import annotations

from pipelines.data.sources.base import BadFile, ImageFile, Item, Pixels, Source

__all__ = ["BadFile", "ImageFile", "Item", "Pixels", "Source", "open_source"]


def open_source(location: str, splits: str = "auto", *, anonymous: bool = False) -> Source:
    """The source at ``location``: a path, ``s3://bucket/prefix``, ``digits`` or ``photos``.

    A folder or a prefix, or one file (tar, zip, IDX, ``.npy``, ``.npz``, Parquet). What it is, is decided by
    looking at it. Raises ``ConfigError`` with one line for anything else, ``StorageError`` where a
    store does not answer.

    Args:
        location: where the images are.
        splits: ``auto`` takes the splits that names mean, ``none`` takes no name for a split, and
            ``train=FOLDER,val=FOLDER,test=FOLDER`` takes these alone.
        anonymous: whether a store is asked without credentials.
    """
    from pipelines.data.sources.opening import open_any  # the readers, and what they need, only where one is used

    return open_any(location, splits, anonymous=anonymous)
