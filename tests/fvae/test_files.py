"""JSON that is whole or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fvae.config import ConfigError
from fvae.files import parse_json, read_json

pytestmark = pytest.mark.core


def test_an_object_is_read(tmp_path: Path) -> None:
    content = '{"name": "Größe", "parts": [1, 2.5, null]}'.encode()
    (tmp_path / "a.json").write_bytes(content)
    expected = {"name": "Größe", "parts": [1, 2.5, None]}
    assert parse_json(content, "a.json") == read_json(tmp_path / "a.json") == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b'{"name": "a', "not JSON"),
        (b'{"name": "\xff"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^s3://runs/a.json: damaged, {said}.*; restore it or remove it$"):
        parse_json(content, "s3://runs/a.json")
    with pytest.raises(ConfigError, match=f"^{path}: damaged, {said}.*; restore it or remove it$"):
        read_json(path)
