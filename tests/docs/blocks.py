"""The fenced blocks of the documents, and the shell commands in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

PAGES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))
"""Every page whose blocks are tested, relative to the repository."""

_FENCE = re.compile(r" *(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[^\s`]*)")


class Block(NamedTuple):
    """A fenced block."""

    page: str
    """The page that it stands on, relative to the repository."""
    line: int
    """The line of its first fence, from 1."""
    language: str
    """What follows the fence: ``bash``, ``python``, or nothing."""
    text: str
    """What stands between the fences, without their indentation."""

    @property
    def place(self) -> str:
        """``page:line``."""
        return f"{self.page}:{self.line}"

    @property
    def key(self) -> str:
        """The first line, by which a test names the block."""
        return self.text.splitlines()[0]


class Command(NamedTuple):
    """A command of a shell block, over as many lines as it takes."""

    place: str
    """``page:line`` of its first line."""
    text: str
    """The command as it is printed, without the comment behind it."""

    @property
    def key(self) -> str:
        """The command on one line, by which a test names it."""
        return " ".join(re.sub(r"\\\n", " ", self.text).split())


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order. Raises ``ValueError`` for a fence that no other closes."""
    return blocks_of(page, (ROOT / page).read_text())


def blocks_of(page: str, text: str) -> list[Block]:
    """The same of a page with this text."""
    found: list[Block] = []
    lines = enumerate(text.splitlines(), start=1)
    for number, line in lines:
        if not (fence := _FENCE.match(line)):
            continue
        inside: list[str] = []
        for _, next_line in lines:
            if re.fullmatch(rf" *{fence['fence']}{fence['fence'][0]}*\s*", next_line):
                break
            inside.append(next_line)
        else:
            raise ValueError(f"{page}:{number}: this fence is never closed")
        found.append(Block(page, number, fence["language"], textwrap.dedent("\n".join(inside)) + "\n"))
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a shell block, in order. A command ends with its line, unless a quote or a backslash goes on."""
    found: list[Command] = []
    begun, pending = 0, ""
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        begun, pending = (begun, f"{pending}\n{line}") if pending else (number, line)
        code = without_comment(pending)
        if code is None or code.endswith("\\"):
            continue
        if code.strip():
            found.append(Command(f"{block.page}:{begun}", code.strip()))
        pending = ""
    if pending:
        raise ValueError(f"{block.page}:{begun}: this command is never finished")
    return found


def items_of(found: list[Block]) -> list[Command | Block]:
    """What blocks ask their reader to do, or show: the commands of shell blocks, and the other blocks whole."""
    return [item for block in found for item in (commands(block) if block.language == "bash" else [block])]


def items(page: str) -> list[Command | Block]:
    """The same of a page's blocks."""
    return items_of(blocks(page))


def without_comment(code: str) -> str | None:
    """Shell code without the comment at its end; None where a quote is still open."""
    for place in [hash_.start() for hash_ in re.finditer(r"(?<!\S)#", code)] + [len(code)]:
        try:
            shlex.split(code[:place].rstrip().removesuffix("\\"))
        except ValueError:  # the hash stands between quotes
            continue
        return code[:place].rstrip()
    return None
