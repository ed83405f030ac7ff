"""Activation checkpointing changes memory and nothing else; what a training takes is known before it is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from fvae import ConfigError, Model, ModelConfig, TrainConfig, Trainer, build, evaluate
from fvae.activation_checkpointing import RecomputableLayer, set_activation_checkpointing
from fvae.compilation import compile_layers
from fvae.memory import training_memory
from fvae.model import images_at_once
from fvae.networks import ResidualBlock

pytestmark = pytest.mark.core

FAMILIES = ("vae", "flow", "fvae")
PRECISIONS = ("float32", "bf16")


def config(family: str, **changes: object) -> ModelConfig:
    shape = {"channels": 3, "height": 16, "width": 16, "flow_depth": 3, "encoder_blocks": 3}
    return ModelConfig(family=family, **{**shape, **changes})  # type: ignore[arg-type]


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained_a_little(family: str, **changes: object) -> Model:
    """A model whose zero-initialised convolutions have moved, so that every activation matters."""
    torch.manual_seed(0)
    model = build(config(family, **changes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.initialize(images(8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def loss_of(model: nn.Module, precision: str, count: int = 8) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return model(images(count), torch.Generator().manual_seed(1)).mean()


def step(model: nn.Module, precision: str) -> list[Tensor]:
    """The loss and every gradient."""
    loss = loss_of(model, precision)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]  # type: ignore[list-item]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def checkpointed(model: Model) -> Model:
    model = copy.deepcopy(model)
    set_activation_checkpointing(model, True)
    return model


def layers_run(model: Model) -> list[int]:
    """Counts, in its one entry, the runs of layers that can be recomputed."""
    runs = [0]
    for layer in model.modules():
        if isinstance(layer, RecomputableLayer):
            original = layer.compute

            def counted(*inputs: Tensor, original=original) -> object:  # type: ignore[no-untyped-def]
                runs[0] += 1
                return original(*inputs)

            layer.compute = counted  # type: ignore[method-assign]
    return runs


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_same_loss_and_gradients_to_the_bit(family: str, precision: str) -> None:
    model = trained_a_little(family)
    assert equal(step(model, precision), step(checkpointed(model), precision))


def test_every_layer_runs_twice_where_there_is_a_backward_pass_and_once_elsewhere() -> None:
    model = checkpointed(trained_a_little("fvae"))
    layers = 2 * 3 + 2 * 3  # flow steps; residual blocks of E and of G
    runs = layers_run(model)
    step(model, "float32")
    assert runs == [2 * layers]
    with torch.no_grad():
        loss_of(model, "float32")
    assert runs == [3 * layers]
    set_activation_checkpointing(model, False)
    step(model, "float32")
    assert runs == [4 * layers]


def test_checkpointing_is_no_part_of_what_is_saved() -> None:
    model = trained_a_little("fvae")
    assert list(checkpointed(model).state_dict()) == list(model.state_dict())


def test_layers_are_compiled_once_for_all_of_their_kind() -> None:
    """With their backward pass, in the product's own way; a step of two levels and a residual block, whose shapes are
    three, make three graphs."""
    model = trained_a_little("fvae")
    compiled = copy.deepcopy(model)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(compiled, backend="aot_eager")
    for ours, plain in zip(step(compiled, "float32"), step(model, "float32"), strict=True):
        torch.testing.assert_close(ours, plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] < 6
    assert not torch._dynamo.utils.counters["graph_break"]


def test_every_shape_of_a_layer_is_compiled() -> None:
    """torch.compile gives up on code that it has compiled eight times: a layer would run uncompiled, and slowly."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    blocks = torch.nn.ModuleList(ResidualBlock(width) for width in range(1, 13))
    compile_layers(blocks, backend="eager")
    for width, block in enumerate(blocks, start=1):
        block(torch.zeros(1, 2, 2, width))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 12


def test_checkpointing_under_torch_compile() -> None:
    """Traced, with its backward pass, and run by torch's own kernels: generated code would round differently."""
    model = trained_a_little("fvae", flow_levels=1, flow_depth=1, encoder_blocks=1)
    compiled = torch.compile(checkpointed(model), backend="aot_eager")
    for ours, plain in zip(step(compiled, "float32"), step(model, "float32"), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_checkpointing_under_data_parallel(one_process_group: None) -> None:
    model = trained_a_little("fvae")
    parallel = DistributedDataParallel(checkpointed(model), gradient_as_bucket_view=True)
    with parallel.no_sync():
        step(parallel, "float32")
    twice = step(parallel, "float32")  # added to the first micro-batch's
    step(model, "float32")
    assert equal(twice, step(model, "float32"))


def drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def peak_allocated(work: Callable[[], object]) -> int:
    """Bytes that torch's allocator has handed out at once, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    live = most = 0
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_the_allocator_sees(family: str, precision: str, checkpointing: bool) -> None:
    model = trained_a_little(family)
    set_activation_checkpointing(model, checkpointing)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(drop_gradient)
    allocated = peak_allocated(lambda: loss_of(model, precision, 16).backward())
    computed = training_memory(model.config, 16, precision=precision, checkpoint_activations=checkpointing)  # type: ignore[arg-type]
    assert computed.activations == pytest.approx(allocated, rel=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_evaluations_activations_are_what_the_allocator_sees(family: str) -> None:
    model = trained_a_little(family)
    validation = images(images_at_once(model.config))
    allocated = peak_allocated(lambda: evaluate(model, validation))
    assert training_memory(model.config, 1).evaluation == pytest.approx(allocated, rel=0.03)


def test_weights_gradients_and_moments_are_the_trainers() -> None:
    train = TrainConfig(epochs=2, batch_size=8)
    trainer = Trainer(config("fvae", mixing="permutation"), train, images(8), images(8))
    trainer.train_epoch()
    memory = training_memory(trainer.model.config, 8)
    moments = [
        state[name] for state in trainer._optimizer_step.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    held = [trainer.ema.state_dict().values(), trainer._best.values()]
    assert memory.weights == sum(tensor.nbytes for tensor in trainer.model.state_dict().values())
    assert memory.gradients == 4 * trainer.model.parameter_count()
    assert memory.optimizer == sum(tensor.nbytes for tensor in moments)
    assert memory.averaged == sum(tensor.nbytes for tensors in held for tensor in tensors)
    assert memory.total == 3 * memory.weights + 3 * memory.gradients + max(memory.activations, memory.evaluation)


def test_counting_allocates_little_and_moves_no_random_state() -> None:
    """2 million images would be 6 GB as pixels alone."""
    before = torch.random.get_rng_state()
    with torch.no_grad():  # the caller's business
        memory = training_memory(config("fvae", bins=17), 2**21)
    assert memory.activations > 2**21 * 3 * 16 * 16 and memory.total > memory.activations
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("images", "precision", "message"), [(0, "float32", "images=0"), (8, "fp16", "fp16")])
def test_impossible_settings_are_named(images: int, precision: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training_memory(config("fvae"), images, precision=precision)  # type: ignore[arg-type]
