"""Every block of README.md and docs/*.md is run as it is printed there, or checked as far as this machine can.

A shell reads each printed command, in a folder that looks like a fresh clone. What it would start is then done in this
process, with options behind the printed ones that make it small; or its options are read by the command that they are
for, and the files that it names are looked for. :mod:`tests.docs.accounts` says which, and why.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipelines.training.ray_environment  # noqa: F401  (before Ray is imported)
from pipelines.scheduling.store import Store
from pipelines.storage import open_storage
from tests.commands import call
from tests.docs.accounts import ACCOUNTS, Check, Run, misfits
from tests.docs.blocks import PAGES, ROOT, Block, Command, items
from tests.docs.printed import check, product
from tests.docs.terminal import Terminal
from tune.records.ledger import Ledger
from tune.records.training_time import SearchClock
from tune.run.budget import Budget
from tune.run.end_forecast import EndForecast
from tune.settings import SearchSettings
from tune.show.plan import Forecaster

pytestmark = pytest.mark.core

OF_THEIR_OWN = ("README.md", "docs/retraining.md")
"""Pages that have a test of their own."""
NO_ACCOUNT = Check("test_every_block_has_an_account reports it")


class Reader:
    """A reader of a page, who does what it says from top to bottom, in the terminal's clone."""

    def __init__(self, page: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        self.page, self.terminal, self._monkeypatch = page, terminal, monkeypatch
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._printed: list[str] = []
        monkeypatch.chdir(terminal.clone)
        monkeypatch.setenv("HOME", str(terminal.home))
        monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts a model's own code there

    def do(self, subtests: pytest.Subtests) -> None:
        """Do or check every item of the page."""
        for item in items(self.page):
            with subtests.test(item.place):
                account = ACCOUNTS[self.page].get(item.key, NO_ACCOUNT)
                if isinstance(item, Command):
                    self._type(item, account)
                elif isinstance(account, Run):
                    {"python": self._execute, "json": self._compare_json, "": self._compare_lines}[item.language](item)

    def _type(self, command: Command, account: Run | Check) -> None:
        for words in self.terminal.type(command.text):
            if "--help" not in words:
                check(words, self.terminal.clone)
            if isinstance(account, Run):
                for name, value in self.terminal.exported.items():
                    self._monkeypatch.setenv(name, value)
                self._printed.append(self._run(words, account.more.split()))

    def _run(self, words: list[str], more: list[str]) -> str:
        if words[0] == "curl":
            return self._ask(words)
        command = product(words)
        assert command is not None, f"{words}: no command of the product"
        called = call(command.main, command.settings, *command.options, *more)
        assert called.status == 0, called.out + called.err
        return called.out

    def _ask(self, words: list[str]) -> str:
        """What MLflow's scoring server answers to the request, for the model that the page has it serve."""
        import mlflow
        from mlflow.pyfunc import scoring_server

        (serving,) = (item for item in items(self.page) if item.key.startswith("mlflow models serve"))
        model = mlflow.pyfunc.load_model(serving.key.split()[serving.key.split().index("-m") + 1])
        kind = words[words.index("-H") + 1].removeprefix("Content-Type: ")
        body = words[words.index("-d") + 1]
        answer = scoring_server.invocations(body, kind, model, model.metadata.get_input_schema())
        assert answer.status == 200, answer.response
        return answer.response

    def _execute(self, block: Block) -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block.text, block.place, "exec"), self._names)
        self._printed.append(out.getvalue())

    def _compare_json(self, block: Block) -> None:
        """The answer before has the same keys and shapes."""
        shown, answer = json.loads(block.text), json.loads(self._printed[-1])
        assert {name: np.shape(value) for name, value in shown.items()} == {
            name: np.shape(value) for name, value in answer.items()
        }

    def _compare_lines(self, block: Block) -> None:
        """A search has printed lines that differ from these in figures alone, or would have if it took longer."""
        lines = [line for out in self._printed for line in out.splitlines()]
        printed = {_pattern(line) for line in [*lines, _forecast(self.terminal.home)]}
        for line in block.text.splitlines():
            assert line == "…" or _pattern(line) in printed, f"{line!r} is none of {sorted(printed)}"


def _pattern(line: str) -> str:
    """A line of a search without its figures, times, families and paths."""
    line = re.sub(r"/?\S*/runs/", "…/runs/", line)
    line = re.sub(r"\b(complete|stopped)( +\S+ left)?$", "ended", line)
    line = re.sub(r"\b(\d+h)?(\d+m)?\d+s\b", "TIME", line)
    line = re.sub(r"-(fvae|flow|vae)\b", "-FAMILY", line)
    return re.sub(r"\s+", " ", re.sub(r"\d[\d,.:]*", "N", line))


def _forecast(folder: Path) -> str:
    """What a search prints of its end, where that is at least half a minute away."""
    ledger = Ledger(open_storage(folder))
    budget = Budget(SearchSettings(), SearchClock(ledger.root), bins=17)
    outlook = EndForecast(seconds=99, low=9, high=999, complete=9, stopped=9, unfinished=0, held_seconds=99)
    return Forecaster(ledger, budget, 60, 2).line(outlook)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_an_account(page: str) -> None:
    assert misfits(page, items(page)) == []


def test_every_account_is_of_a_page_and_the_tests_that_it_names_are_there() -> None:
    assert set(ACCOUNTS) == set(PAGES)
    named = [
        path
        for accounts in ACCOUNTS.values()
        for account in accounts.values()
        if isinstance(account, Check)
        for path in re.findall(r"tests/[\w/*]+(?:\.py)?", account.why)
    ]
    assert named and not [path for path in named if not list(ROOT.glob(path))]


def test_readme(
    home: Path, ray_address: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    """From the first search to a model that is served, and to the schedule of the cluster."""
    s3_client.create_bucket(Bucket="bucket")
    terminal = Terminal(home)
    with tarfile.open(terminal.clone / "photos.tar.gz", "w:gz") as archive:
        for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (40, 40, 48, 3), dtype=np.uint8)):
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "PNG")
            member = tarfile.TarInfo(f"{number}.png")
            member.size = picture.tell()
            picture.seek(0)
            archive.addfile(member, picture)
    Reader("README.md", terminal, monkeypatch).do(subtests)


def test_retraining(home: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    """The schedule that the page adds is in the store, its job's options and all."""
    hook = home / "notify.sh"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o700)
    reader = Reader("docs/retraining.md", Terminal(home), monkeypatch)
    reader.do(subtests)
    store = Store("sqlite:///runs/schedules.db")
    (entry,) = store.entries()
    store.close()
    assert entry.schedule.exclusive == "fvae-photos" and entry.paused
    (add,) = (item for item in items(reader.page) if "pipelines.schedule add" in item.key)
    (words,) = reader.terminal.type(add.text)
    assert entry.schedule.command().endswith(shlex.join(words[words.index("--") + 1 :]))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OF_THEIR_OWN])
def test_other_pages(page: str, home: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests) -> None:
    Reader(page, Terminal(home), monkeypatch).do(subtests)
