"""Options without a default: those that override a config's fields, made from the config itself, and single ones."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

import tyro

from fvae.config import one_line


def without_default(metavar: str) -> Any:
    """tyro's settings of an option whose help names no default: its own text says what leaving it out means."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def field_docs(config: type) -> dict[str, str]:
    """The string below each field of a dataclass, on one line."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, below in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docs[ast.unparse(field.target)] = one_line(below.value.value)
    return docs


def optional_fields(config: type, without: tuple[str, ...] = (), more: Mapping[str, str] | None = None) -> type:
    """A frozen dataclass with ``config``'s fields, each None unless it is given; its help is the config's own.

    ``more`` are further options that take a number, each with its help.
    """
    hints, docs = get_type_hints(config), field_docs(config)
    fields: list[Any] = []
    for field in dataclasses.fields(config):
        if field.name in without:
            continue
        default = "" if field.default is dataclasses.MISSING else f" (default: {field.default})"
        shown = tyro.conf.arg(help=docs[field.name] + default, help_behavior_hint="")
        fields.append((field.name, Annotated[hints[field.name] | None, shown], dataclasses.field(default=None)))
    for name, text in (more or {}).items():
        shown = tyro.conf.arg(help=text, help_behavior_hint="")
        fields.append((name, Annotated[float | None, shown], dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(f"{config.__name__}Options", fields, frozen=True, kw_only=True)
    made.__doc__ = "An option given here overrides the file's or the run's."
    return made


def given(options: Any) -> dict[str, Any]:
    """The fields that were given."""
    return {name: value for name, value in vars(options).items() if value is not None}
