"""What trials ask of a cluster, the share of a card that a model needs, and what a cluster's processes are given."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from fvae import ConfigError, ModelConfig, TrainConfig
from fvae.memory import training_memory
from pipelines.data.datasets import load_dataset
from tests.s3 import CREDENTIALS
from tune.run.callbacks import PeakMemory
from tune.run.gpu_shares import CONTEXT_BYTES, SAFETY, GpuShares, limit_to_share, smallest_card_bytes
from tune.run.resources import placement, search_session, trials_at_once
from tune.settings import SearchSettings

pytestmark = pytest.mark.core

STORE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "eu-north-1"}
SECRETS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"}

MODEL = ModelConfig(
    family="fvae",
    channels=1,
    height=8,
    width=8,
    bins=17,
    flow_levels=1,
    flow_depth=1,
    coupling_width=8,
    encoder_width=8,
)
TRAIN = TrainConfig(batch_size=16)
CONFIG: tuple[dict[str, Any], dict[str, Any]] = (MODEL.to_dict(), TRAIN.to_dict())
TENSORS = training_memory(MODEL, 16).total_with_graph


def several(workers: int, cpus: int = 1, gpus: float = 0) -> SearchSettings:
    return SearchSettings(workers_per_trial=workers, cpus_per_trial=cpus, gpus_per_trial=gpus)


def test_a_trial_of_one_worker_is_one_bundle() -> None:
    request = placement(SearchSettings(), 0.25)
    assert request.bundles == [{"CPU": 1, "GPU": 0.25}] and not request.head_bundle_is_empty


def test_a_trial_of_several_is_one_placement_group_whose_coordinator_takes_nothing() -> None:
    request = placement(several(3, cpus=2), 1)
    assert request.bundles == [{"CPU": 2, "GPU": 1}] * 3 and request.head_bundle_is_empty


@pytest.mark.parametrize(
    ("settings", "nodes", "trials"),
    [
        (several(2), [{"CPU": 4}], 2),
        (several(3), [{"CPU": 4}], 1),
        (several(3), [{"CPU": 1}, {"CPU": 2}, {"memory": 9}], 1),
        (several(2, cpus=2), [{"CPU": 3}, {"CPU": 3}, {"CPU": 3}, {"CPU": 3}], 2),  # 12 cores, room for 4 workers
        (several(2, gpus=1), [{"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 8}], 1),
        (several(2, gpus=1), [{"CPU": 8, "GPU": 4}], 2),
    ],
)
def test_room_is_counted_node_by_node(settings: SearchSettings, nodes: list[dict[str, float]], trials: int) -> None:
    assert trials_at_once(settings, nodes) == trials


@pytest.mark.parametrize(
    ("settings", "nodes", "line"),
    [
        (several(3), [{"CPU": 2}], "--workers-per-trial=3: needs 3 times 1 CPU, each on one node, .* room for 2;"),
        (several(2, cpus=2), [{"CPU": 3}, {"CPU": 1}], "needs 2 times 2 CPUs, .* room for 1;"),
        (several(2, gpus=1), [{"CPU": 8, "GPU": 1}, {"GPU": 1}], "2 times 1 CPU and 1 GPU, .* room for 1;"),
    ],
)
def test_what_never_fits_is_refused(settings: SearchSettings, nodes: list[dict[str, float]], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        trials_at_once(settings, nodes)


@pytest.mark.parametrize(
    "options",
    [
        {"workers_per_trial": 0},
        {"workers_per_trial": 2, "gpus_per_trial": 0.5},
        {"workers_per_trial": 2, "gpus_per_trial": "auto"},
        {"gpus_per_trial": 1.5},
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="-per-trial="):
        SearchSettings(**options)


# --- the share of a card ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cards", "share"),
    [(0.5, 1), (1, 1), (1.9, 1), (2.1, 0.5), (3.9, 0.5), (4.1, 0.25), (16.5, 0.0625), (33, 0.0312), (70, 0.0156)],
)
def test_shares_fill_a_card(cards: float, share: float) -> None:
    """``cards``: a card's memory in times of what the trial needs."""
    needed = CONTEXT_BYTES + SAFETY * TENSORS
    assert GpuShares(int(cards * needed), 0).share(*CONFIG) == share
    assert share * 10_000 == int(share * 10_000)  # as Ray counts


def test_images_held_on_the_card_count() -> None:
    card = 4 * CONTEXT_BYTES
    assert GpuShares(card, 0).share(*CONFIG) == 0.5
    assert GpuShares(card, CONTEXT_BYTES).share(*CONFIG) == 1


def test_later_shares_follow_the_worst_that_was_measured() -> None:
    shares = GpuShares(int(4.1 * (CONTEXT_BYTES + SAFETY * TENSORS)), 0)
    watch = PeakMemory(shares)
    trial = SimpleNamespace(config={"model": CONFIG[0], "train": CONFIG[1]})

    def result(**measured: int) -> float:
        watch.on_trial_result(1, [trial], trial, {"epoch": 1, **measured})
        return shares.share(*CONFIG)

    assert result() == 0.25
    assert result(peak_gpu_bytes=TENSORS // 2) == 0.25 and shares.uncounted_bytes == 0
    much = CONTEXT_BYTES // 2
    assert result(peak_gpu_bytes=much) == 0.5
    assert shares.uncounted_bytes == much - TENSORS
    assert result(peak_gpu_bytes=TENSORS) == 0.5


@pytest.mark.parametrize("cards", [8.1, 33.0, 70.0])
def test_a_share_that_did_not_hold_its_trial_is_doubled(cards: float) -> None:
    """And so on, up to the whole card, also where Ray's shares are not exact; a smaller model's stay as they are."""
    shares = GpuShares(int(cards * (CONTEXT_BYTES + SAFETY * TENSORS)), 0)
    smaller = (
        dataclasses.replace(ModelConfig.from_dict(CONFIG[0]), coupling_width=4, encoder_width=4).to_dict(),
        CONFIG[1],
    )
    of_smaller = shares.share(*smaller)
    watch = PeakMemory(shares)
    given = [shares.share(*CONFIG)]
    while given[-1] < 1:
        held = SimpleNamespace(bundles=[{"CPU": 1, "GPU": given[-1]}])
        trial = SimpleNamespace(config={"model": CONFIG[0], "train": CONFIG[1]}, placement_group_factory=held)
        watch.on_trial_result(1, [trial], trial, {"epoch": 0, "out_of_memory": True, "done": True})
        given.append(shares.share(*CONFIG))
    assert given[1:] == pytest.approx([2 * share for share in given[:-1]], rel=0.01)
    assert given[-1] == 1.0
    assert shares.share(*smaller) == of_smaller


def test_a_process_keeps_to_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides the allocator's part, CUDA's context takes some of the share."""
    limits: list[float] = []
    card = SimpleNamespace(total_memory=8 * CONTEXT_BYTES)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    for assigned, share in (({"GPU": 1.0}, 1.0), ({"CPU": 1.0, "GPU_group_0_ab": 0.5, "GPU_group_ab": 0.5}, 0.5)):
        context = SimpleNamespace(get_assigned_resources=lambda assigned=assigned: assigned)
        monkeypatch.setattr(ray, "get_runtime_context", lambda context=context: context)
        assert limit_to_share("cuda") == share
    assert limits == [0.5 - 1 / 8]
    assert limit_to_share("cpu") == 1


def test_a_cluster_without_a_card_has_no_shares() -> None:
    with pytest.raises(ConfigError, match="--gpus-per-trial=auto: there is no GPU"):
        smallest_card_bytes([{"NodeID": "a", "Resources": {"CPU": 2.0}}])


def test_a_cluster_s_processes_find_the_same_store_with_credentials_of_their_own(
    ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_a_node() -> dict[str, str]:
        import os

        return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    for name, value in (STORE | SECRETS).items():
        monkeypatch.setenv(name, value)
    with search_session(SearchSettings(), load_dataset("digits")):
        environment = ray.get(ray.remote(of_a_node).remote())
    assert environment == environment | CREDENTIALS | STORE
    assert not set(SECRETS.values()) & set(environment.values())
