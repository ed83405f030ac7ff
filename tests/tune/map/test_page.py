"""The page loads nothing, escapes everything and survives every kind of search; so does the picture."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.storage import open_storage
from tests.tune.map.test_tradeoff import EDGE_CASES
from tests.tune.synthetic import SEARCH, failed, read_test, record, stopped, world, write_pictures
from tune.map import scaling
from tune.map.figures import size_figure
from tune.map.page import PICTURED, write_page
from tune.map.plots import write_plot
from tune.map.style import focus_range, format_count, format_seconds
from tune.map.tradeoff import build_tradeoff
from tune.records.ledger import TrialRecord

pytestmark = pytest.mark.core

HOSTILE = "<img src=http://evil.example/x onerror=alert(1)>'\"</script>&"


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """The fits get few resamples: ``test_scaling.py`` tests what they are for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "REPLICATES", 20)
        yield


@pytest.fixture(scope="module")
def records() -> list[TrialRecord]:
    complete = [read_test(trial) for trial in world(0.5, 8, families=("fvae", "flow", "vae"))]
    return [*complete, stopped(record(50, "flow", 70000, 2.6), 3), failed(51, "vae", 600, f"nan {HOSTILE}")]


@pytest.fixture(scope="module")
def tradeoff(records: list[TrialRecord]) -> dict[str, Any]:
    return build_tradeoff(records, SEARCH)


@pytest.fixture(scope="module")
def page(records: list[TrialRecord], tradeoff: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = tmp_path_factory.mktemp("run")
    hostile = tradeoff | {"dataset": SEARCH["dataset"] | {"name": HOSTILE}, "budget": {"note": HOSTILE}}
    first = tradeoff["trials"][0]
    hostile["trials"] = [first | {"config": first["config"] | {"coupling": HOSTILE}}, *tradeoff["trials"][1:]]
    write_pictures(run_dir / "trials" / tradeoff["fronts"]["fvae"][0])
    write_page(open_storage(run_dir), hostile, records)
    return (run_dir / "tradeoff.html").read_text(encoding="utf-8")


def test_page_loads_nothing(page: str) -> None:
    for tag, attributes in Tags(page).tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,"), (tag, name, str(value)[:80])
    # And a browser may load nothing, whatever Plotly's code may hold.
    policy = [attributes["content"] for tag, attributes in Tags(page).tags if "http-equiv" in attributes]
    assert policy and "default-src 'none'" in str(policy[0]) and "http" not in str(policy[0])
    assert "@import" not in page.split("<script>", 1)[0] and "url(" not in page.split("<script>", 1)[0]


def test_page_escapes_what_users_named(page: str) -> None:
    parsed = Tags(page)
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert HOSTILE in parsed.text  # shown as it was written
    # Inside the panels' scripts an end tag would end the script.
    assert "</script>'" not in page and HOSTILE not in page
    assert sum(tag == "script" for tag, _ in parsed.tags) == page.count("</script>")


def test_pictures_are_of_a_few_models_of_each_front(
    records: list[TrialRecord], tradeoff: dict[str, Any], tmp_path: Path
) -> None:
    front = tradeoff["fronts"]["flow"]
    assert len(front) > PICTURED
    for trial_id in front:
        write_pictures(tmp_path / "trials" / trial_id)
    write_page(open_storage(tmp_path), tradeoff, records)
    tags = Tags((tmp_path / "tradeoff.html").read_text(encoding="utf-8")).tags
    pictured = {str(attributes["alt"]).rpartition(" ")[2] for tag, attributes in tags if tag == "img"}
    assert len(pictured) == PICTURED and {front[0], front[-1]} <= pictured <= set(front)


def test_hover_shows_the_configuration_escaped(tradeoff: dict[str, Any]) -> None:
    trial = tradeoff["trials"][0]
    hostile = tradeoff | {"trials": [trial | {"id": HOSTILE, "config": {"coupling": HOSTILE}}]}
    hover = [text for trace in size_figure(hostile).data for text in trace.hovertext or ()]
    assert len(hover) == 1
    assert "coupling = &lt;img" in hover[0] and "<img" not in hover[0]
    assert f"{trial['val_bpd']:.4f}" in hover[0] and f"{trial['test_bpd']:.4f}" in hover[0]


def test_page_shows_the_whole_map(page: str, tradeoff: dict[str, Any]) -> None:
    parsed = Tags(page)
    claim = tradeoff["claim"]
    assert claim["why"] in parsed.text and claim["would_decide"] in parsed.text and claim["verdict"] in parsed.text
    assert sum(tag == "img" for tag, _ in parsed.tags) == 2  # one front model left its pictures
    assert page.count('class="plotly-graph-div"') == 5
    for trial_id in sum(tradeoff["fronts"].values(), []):
        assert trial_id in parsed.text
    assert SEARCH["dataset"]["hash"] in parsed.text
    unhappy = [trial for trial in tradeoff["trials"] if trial["status"] != "complete"]
    assert len(unhappy) == 2 and all(trial["reason"] in parsed.text for trial in unhappy)


@pytest.mark.parametrize("name", EDGE_CASES)
def test_every_kind_of_search_has_a_page_and_a_picture(name: str, tmp_path: Path) -> None:
    records = EDGE_CASES[name]
    tradeoff = build_tradeoff(records, SEARCH)
    run = open_storage(tmp_path)
    write_page(run, tradeoff, records)
    text = Tags((tmp_path / "tradeoff.html").read_text(encoding="utf-8")).text
    assert tradeoff["claim"]["why"] in text
    write_plot(run, tradeoff, records)
    with Image.open(tmp_path / "tradeoff.png") as picture:
        assert picture.format == "PNG" and picture.width == 1600


def test_picture_of_a_full_search(records: list[TrialRecord], tradeoff: dict[str, Any], tmp_path: Path) -> None:
    # A lone $ would begin a formula, which this is none.
    named = tradeoff | {"dataset": SEARCH["dataset"] | {"name": "a $x_ data set"}}
    write_plot(open_storage(tmp_path), named, records)
    with Image.open(tmp_path / "tradeoff.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(maxcolors=2**24) or []}
    # Each family is drawn in its own colour.
    assert {(213, 94, 0), (0, 114, 178), (0, 158, 115)} <= colors


def test_numbers_are_short() -> None:
    assert [format_count(value) for value in (950, 12_345, 999_950, 1_234_567, 95.8e6)] == [
        "950", "12.3k", "1M", "1.23M", "95.8M",
    ]  # fmt: skip
    assert [format_seconds(value) for value in (48.2, 210, 7560)] == ["48.2 s", "3.5 min", "2.1 h"]


def test_axis_is_not_flattened_by_an_outlier() -> None:
    limits = focus_range([2.0, 2.1, 2.2, 2.3, 9.0])
    assert limits is not None and limits[0] < 2.0 and 2.3 < limits[1] < 2.5
    assert focus_range([]) is None
    assert focus_range([2.5]) == (2.45, 2.55)
