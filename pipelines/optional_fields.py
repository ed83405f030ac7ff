"""Options of a command that override a config's fields, made from the config itself."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Annotated, Any, get_type_hints

import tyro


def field_docs(config: type) -> dict[str, str]:
    """The string below each field of a dataclass, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docs[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[union-attr]
    return docs


def optional_fields(config: type, without: tuple[str, ...] = ()) -> type:
    """A frozen dataclass with ``config``'s fields, each None unless it is given; its help is the config's own."""
    hints, docs = get_type_hints(config), field_docs(config)
    fields: list[Any] = []
    for field in dataclasses.fields(config):
        if field.name in without:
            continue
        default = "" if field.default is dataclasses.MISSING else f" (default: {field.default})"
        hint = Annotated[
            hints[field.name] | None, tyro.conf.arg(help=docs[field.name] + default, help_behavior_hint="")
        ]
        fields.append((field.name, hint, dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(f"{config.__name__}Options", fields, frozen=True, kw_only=True)
    made.__doc__ = "What is given here stands above the file's or the run's."
    return made


def given(options: Any) -> dict[str, Any]:
    """The fields that were given."""
    return {name: value for name, value in vars(options).items() if value is not None}
