"""The tables and the picture of many replayed searches."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from synthetic_curves import table, write_rows

from benchmarks.search.others import METHODS
from benchmarks.search.pictures import draw
from benchmarks.search.quality import Settings, best_other, main, report
from benchmarks.search.replay import Trace, replay
from benchmarks.search.results import Conditions, quartiles, read_results, write_results
from fvae import ConfigError

pytestmark = pytest.mark.core

CURVES = table()
CONDITIONS = Conditions.of(CURVES, workers=8, seeds=4)


def searches(name: str) -> list[Trace]:
    return [replay(CURVES, METHODS[name](CURVES.blind(), seed), workers=8) for seed in range(4)]


@pytest.fixture(scope="module")
def traces() -> dict[str, list[Trace]]:
    return {name: searches(name) for name in ("random", "asha", "random stratified")}


def reaching(*epochs: float) -> list[Trace]:
    """Searches that have everything after so many epochs; infinite: that never have."""
    return [
        Trace(
            epochs=np.array([1 if math.isinf(count) else int(count)]),
            seconds=np.array([3600.0]),
            shares={target: np.array([0.5 if math.isinf(count) else 1.0]) for target in ("front", "map")},
            total_epochs=1,
            rows=(0,),
        )
        for count in epochs
    ]


def test_raw_results_give_the_same_times(traces, tmp_path):
    file = tmp_path / "raw" / "quality.parquet"
    write_results(file, CONDITIONS, traces)
    conditions, read = read_results(file)
    assert conditions == CONDITIONS
    assert list(read) == list(traces)
    for name, seeds in traces.items():
        for trace, again in zip(seeds, read[name], strict=True):
            for share in (0.5, 0.95, 0.99, 1.0):
                assert again.epochs_to("map", share) == trace.epochs_to("map", share)
                assert again.hours_to("front", share) == pytest.approx(trace.hours_to("front", share))


def test_quartiles_stand_what_is_never_reached():
    assert quartiles([1, 2, 3, math.inf]) == (1, 2, 3)
    assert quartiles([math.inf, 4, math.inf, math.inf]) == (4, math.inf, math.inf)


def test_the_verdict_holds_against_the_best_of_all_others_quartile_by_quartile():
    traces = {
        "ours": reaching(20, 20, 30, 40),
        "a": reaching(100, 100, 100, 100),
        "b": reaching(80, 80, 120, math.inf),
    }
    assert best_other(traces, "front", 0.95, ["ours"]) == (80, 80, 100)
    text = report(CONDITIONS, traces, ["ours"])
    assert "ours, against the others as released: at 95% 0.25 of the best's epochs (wanted: 0.25;" in text
    assert text.count("worse at no quartile") == 6  # both targets, three ways of the others
    with_designs = report(CONDITIONS, traces | {"b designs": reaching(10, 40, 40, 40)}, ["ours"])
    assert "against the others also repaired and from designs: at 95% 0.50 of the best's" in with_designs
    assert "against the others also repaired: at 95% 0.25 of the best's" in with_designs
    repaired = report(CONDITIONS, traces | {"b repaired": reaching(10, 40, 40, 40)}, ["ours"])
    assert "against the others also repaired: at 95% 0.50 of the best's" in repaired
    assert "against the others as released: at 95% 0.25 of the best's" in repaired
    traces["ours"] = reaching(20, 20, 110, 110)
    assert "worse at quartile 75%" in report(CONDITIONS, traces, ["ours"])
    assert "–" in report(CONDITIONS, {"a": reaching(math.inf, math.inf)}, [])


def test_the_picture_has_a_line_for_each_tool_and_for_ours(traces):
    figure = draw(CONDITIONS, traces | {"ours": traces["asha"]})
    for axes in figure.axes:
        assert len([line for line in axes.lines if len(line.get_xdata()) > 2]) == 3  # random in its better way
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "asha", "ours"]


def test_methods_asked_for_alone_join_the_kept_results(tmp_path, capsys):
    folder, output = tmp_path / "rows", tmp_path / "quality.txt"
    write_rows(CURVES, folder)
    settings = Settings(seeds=2, processes=1, curves=folder, output=output, methods=("asha", "random"))
    main(settings)
    kept = read_results(output.with_suffix(".parquet"))[1]["asha"]
    main(dataclasses.replace(settings, methods=("random stratified",)))
    conditions, traces = read_results(output.with_suffix(".parquet"))
    assert list(traces) == ["random", "asha", "random stratified"]  # in the order of METHODS
    assert [trace.epochs.tolist() for trace in traces["asha"]] == [trace.epochs.tolist() for trace in kept]
    assert output.read_text() == report(conditions, traces, [])
    assert capsys.readouterr().out.endswith(output.read_text())
    main(dataclasses.replace(settings, methods=("random",), workers=4))  # other conditions: nothing is kept
    assert list(read_results(output.with_suffix(".parquet"))[1]) == ["random"]


def test_an_unknown_method_is_named(tmp_path):
    with pytest.raises(ConfigError, match="'grid'"):
        main(Settings(methods=("grid",), curves=tmp_path))
