"""Compiling where it is measured to pay."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from fvae import ModelConfig, TrainConfig, Trainer, compilation
from fvae.activation_checkpointing import RecomputableLayer
from fvae.compilation import WORTH_SECONDS, MeasuredCompilation
from fvae.model import build

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """What compiling sets for the whole process is set back."""
    import torch._inductor.config

    with torch._dynamo.config.patch(suppress_errors=False), torch._inductor.config.patch(compile_threads=1):
        yield


CONFIG = ModelConfig(family="fvae", channels=1, height=4, width=4, bins=17, flow_levels=1, flow_depth=2)


def compiled_layers(model: torch.nn.Module) -> set[bool]:
    return {"compute" in vars(layer) for layer in model.modules() if isinstance(layer, RecomputableLayer)}


def measured() -> MeasuredCompilation:
    return MeasuredCompilation(build(CONFIG), backend="eager")


def test_a_short_training_is_never_compiled() -> None:
    way = measured()
    assert [way.after_epoch(1.0, left) for left in range(100, 0, -1)] == [False] * 100
    assert compiled_layers(way.model) == {False}


@pytest.mark.parametrize(("seconds", "kept"), [(1.9, True), (2.0, False), (30.0, False)])
def test_it_is_kept_where_epochs_become_shorter(seconds: float, kept: bool) -> None:
    """The first epoch of each kind is not measured: it compiles, captures and loads."""
    way, left = measured(), int(WORTH_SECONDS)
    assert not way.after_epoch(90.0, left)
    assert way.after_epoch(2.0, left)
    assert compiled_layers(way.model) == {True}
    assert not way.after_epoch(90.0, left)
    assert way.after_epoch(seconds, left) is not kept
    assert compiled_layers(way.model) == {kept}
    assert not any(way.after_epoch(2.0, left) for _ in range(5))  # decided
    assert compiled_layers(way.model) == {kept}


@pytest.mark.parametrize("graph", [False, True])
def test_a_training_that_compiles_by_itself_reaches_the_same(monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    monkeypatch.setattr(compilation, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr("fvae.train.MeasuredCompilation", functools.partial(MeasuredCompilation, backend="eager"))
    images = torch.randint(0, 17, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    reached = {}
    for way in (False, "auto"):
        torch.compiler.reset()
        trainer = Trainer(CONFIG, TrainConfig(epochs=5, batch_size=16), images, images, compile=way, graph=graph)
        compiled = []
        while not trainer.finished:
            reached[way] = trainer.train_epoch().val_bpd
            compiled.append(compiled_layers(trainer.model) == {True})
        assert compiled[:3] == [False, way == "auto", way == "auto"]
    assert reached["auto"] == pytest.approx(reached[False], abs=1e-5)


def test_a_machine_without_a_compiler_trains_on() -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    torch.compiler.reset()
    way = MeasuredCompilation(build(CONFIG), backend=broken)
    way.after_epoch(2.0, 1000)
    assert way.after_epoch(2.0, 1000)
    noise = way.model.noise(2, torch.Generator().manual_seed(0))
    assert way.model(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), noise=noise).isfinite().all()
