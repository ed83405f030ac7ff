"""The reader of fenced blocks, and that nothing on a page escapes the tests of :mod:`tests.docs.test_documents`."""

from __future__ import annotations

import re
import textwrap

import pytest

from tests.docs.accounts import misfits
from tests.docs.blocks import PAGES, ROOT, blocks_of, commands, items_of

pytestmark = pytest.mark.core

PAGE = textwrap.dedent("""\
    # A page
    ```bash
    make search    # it's a comment
    python -c "print(1)" '# no comment' \\
        --more     # the end

    echo 'two
    lines'
    ```
    - in a list

      ~~~python
      if True:
          pass
      ~~~
    ````
    ```
    shown
    ````
    """)


def test_blocks_have_their_place_language_and_text() -> None:
    shell, python, shown = blocks_of("page.md", PAGE)
    assert (shell.place, shell.language) == ("page.md:2", "bash")
    assert (python.place, python.language, python.text) == ("page.md:12", "python", "if True:\n    pass\n")
    assert (shown.place, shown.language, shown.text) == ("page.md:16", "", "```\nshown\n")


def test_commands_end_with_their_line_quote_or_backslash() -> None:
    found = commands(blocks_of("page.md", PAGE)[0])
    assert [(command.place, command.key) for command in found] == [
        ("page.md:3", "make search"),
        ("page.md:4", """python -c "print(1)" '# no comment' --more"""),
        ("page.md:7", "echo 'two lines'"),
    ]
    assert found[2].text == "echo 'two\nlines'"  # as the shell gets it


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```bash\nmake search\n", r"page.md:1: this fence is never closed"),
        ("````\nmake search\n```\n", r"page.md:1: this fence is never closed"),
    ],
)
def test_a_fence_that_is_never_closed_is_an_error(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks_of("page.md", page)


@pytest.mark.parametrize("code", ["echo 'no end", "make search \\"])
def test_a_command_that_is_never_finished_is_an_error(code: str) -> None:
    (block,) = blocks_of("page.md", f"```bash\n{code}\n```\n")
    with pytest.raises(ValueError, match="page.md:2: this command is never finished"):
        commands(block)


@pytest.mark.parametrize("fence", ["bash", "sh", "console", "python", ""])
def test_a_block_that_is_new_has_no_account(fence: str) -> None:
    text = (ROOT / "README.md").read_text() + f"\n```{fence}\nmake everything\n```\n"
    (line,) = misfits("README.md", items_of(blocks_of("README.md", text)))
    assert re.fullmatch(r"README.md:\d+: no account in tests/docs/accounts.py for make everything", line)


def test_a_block_that_is_gone_leaves_an_account_too_many() -> None:
    text = (ROOT / "README.md").read_text().replace("make search    # search, and draw the map\n", "")
    assert misfits("README.md", items_of(blocks_of("README.md", text))) == [
        "README.md: tests/docs/accounts.py has an account for make search"
    ]


def test_every_page_is_read() -> None:
    assert {"README.md", "docs/cluster.md", "docs/training.md"} <= set(PAGES)


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    """To a file of the repository, and to a heading where it names one."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_target_of_make_is_there(page: str) -> None:
    """Also those that stand in a sentence or a comment."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|\(|^)make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named <= targets
