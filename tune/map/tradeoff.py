"""The trade-off map as data: ``tradeoff.json`` and ``trials.csv``."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fvae.config import FAMILIES, fields_in_use, scales_in_bins
from fvae.epoch_metrics import EpochMetrics
from fvae.likelihood import uniform_bits_per_dim
from pipelines.storage import Storage
from tune.map import claim_text
from tune.map.claim import build_claim
from tune.map.image_noise import BitsOfImages
from tune.map.importance import parameter_importance
from tune.map.scaling import fit_family, saturation
from tune.map.training_compute import training_flops
from tune.records.accounting import account, trial_account
from tune.records.ledger import TrialRecord
from tune.stats.pareto import complete_trials, fronts, hypervolume, size_and_bits
from tune.stats.replicates import spread


def build_tradeoff(
    records: Sequence[TrialRecord],
    search: Mapping[str, Any],
    bits_of_images: BitsOfImages = lambda record: None,
) -> dict[str, Any]:
    """Everything that the search found, JSON-ready: no NaN, no infinity.

    ``search`` holds ``dataset`` (name, hash, shape, bins, train, val, test), ``seed``, ``budget`` and, where they are
    known, ``seconds``: the search's wall time, and ``options``: words of the command that goes on with it, without its
    budget (None where it would decide nothing). Trials that are still running are not part of the map; their ids are
    in ``unfinished``, and what they cost is in ``accounting`` like everything else (:mod:`tune.records.accounting`).
    Part-trained trials and further seeds are among ``trials``, but fronts, hypervolume, fits, claim and importance
    rest on first seeds' complete ones alone; ``seeds`` holds the spread over the others. Raises ``ValueError``
    for a complete trial with a bits/dim that is not finite.
    """
    dataset, seed = search["dataset"], int(search["seed"])
    ended = [record for record in records if record.status != "running"]
    claim = build_claim(
        ended,
        seed,
        epochs=search["budget"].get("epochs"),
        bins=int(dataset["bins"]),
        competed=search["budget"].get("goal") == "front",
        bits_of_images=bits_of_images,
    )
    if (advice := _command(claim, records, search)) is not None:
        claim["would_decide"] += f" {advice}"
    return {
        "dataset": dict(dataset),
        "seed": seed,
        "budget": dict(search["budget"]),
        "accounting": account(records, search.get("seconds")),
        "trials": [_trial(record, dataset["hash"]) for record in ended],
        "unfinished": [record.id for record in records if record.status == "running"],
        "fronts": fronts(ended),
        "seeds": spread(ended),
        "hypervolume": _hypervolumes(ended, int(dataset["bins"])),
        "fits": {
            family: fit_family(ended, family, seed) | {"saturation": saturation(ended, family)} for family in FAMILIES
        },
        "claim": claim,
        "importance": parameter_importance(ended),
    }


def _command(claim: Mapping[str, Any], records: Sequence[TrialRecord], search: Mapping[str, Any]) -> str | None:
    """The command that would settle what the claim leaves open; None where there is none, or it is not known."""
    factor = claim_text.trials_needed(claim)
    started = sum(record.replicate_of is None for record in records)
    budget = search["budget"]
    decides = budget.get("ended") and budget.get("goal") != "front"  # its trials would decide nothing
    if factor is None or not search.get("options") or not started or not decides:
        return None
    trials = math.ceil(factor * started)
    seconds = search.get("seconds")
    cost = None if not seconds else seconds * (trials - started) / started
    return claim_text.command(search["options"], trials, cost)


def write_tradeoff(run: Storage, tradeoff: Mapping[str, Any]) -> None:
    """Write ``tradeoff.json`` and ``trials.csv`` into the run's storage. Raises ``OSError`` where it cannot."""
    run.write("tradeoff.json", (json.dumps(tradeoff, indent=1, allow_nan=False) + "\n").encode())
    run.write("trials.csv", _csv(tradeoff["trials"]).encode())


def _trial(record: TrialRecord, dataset_hash: str) -> dict[str, Any]:
    kept = _kept_epoch(record)
    images = record.history[-1].images if record.history else 0
    sigma1_init = record.config.get("sigma1_init")
    # A flow has one fixed σ, which is both.
    sigma2_init = sigma1_init if record.family == "flow" else record.config.get("sigma2_init")
    sigma1, sigma2 = (_finite(kept.sigma1), _finite(kept.sigma2)) if kept else (None, None)
    init_in_bins = scales_in_bins(record.config, sigma1_init, sigma2_init)
    test, cost = record.test, trial_account(record)
    return {
        "id": record.id,
        "family": record.family,
        "replicate_of": record.replicate_of,
        "params": record.params,
        "flops_per_image": record.flops_per_image,
        "status": record.status,
        "reason": record.reason,
        "epochs": record.epochs,
        "best_epoch": record.best_epoch,
        "images": images,
        "training_flops": training_flops(record.flops_per_image, images),
        "seconds": record.seconds,
        "attempts": cost["attempts"],
        "epochs_trained": cost["epochs"],
        "images_trained": cost["images"],
        "core_seconds": cost["core_seconds"],
        "gpu_seconds": cost["gpu_seconds"],
        "val_bpd": _finite(record.val_bpd),
        "test_bpd": test.bpd if test else None,
        "test_bpd_standard_error": _finite(test.standard_error) if test else None,
        "test_bpd_iwae64": test.bpd_iwae64 if test else None,
        "test_bpd_iwae64_standard_error": _finite(test.standard_error_iwae64) if test else None,
        "sigma1": sigma1,
        "sigma2": sigma2,
        **scales_in_bins(record.config, sigma1, sigma2),
        "sigma1_init": sigma1_init,
        "sigma2_init": sigma2_init,
        **{name.replace("_bins", "_init_bins"): value for name, value in init_in_bins.items()},
        "figures": _figures(record, dataset_hash),
        "config": fields_in_use(record.config),
        "train": record.train,
        "suggestion": record.suggestion,
    }


def _figures(record: TrialRecord, dataset_hash: str) -> dict[str, dict[str, Any]]:
    """What each of the trial's bits/dim was measured on, and how.

    ``seed`` is the search's; the noise's own is derived from it and the purpose (``fvae.data.images.derived_seed``).
    """
    common = {"dataset_hash": dataset_hash, "fully_trained": record.status == "complete"}
    figures = {}
    if record.val_bpd is not None:
        samples = record.train.get("validation_samples", 1)
        figures["val_bpd"] = common | {"split": "val", "k": 1, "samples": samples, "seed": record.train.get("seed")}
    if record.test:
        on_test = common | {"split": "test", "seed": record.test.seed}
        figures["test_bpd"] = on_test | {"k": 1}
        figures["test_bpd_iwae64"] = on_test | {"k": 64}
    return figures


def _kept_epoch(record: TrialRecord) -> EpochMetrics | None:
    """The epoch whose weights a complete trial kept; otherwise the last one."""
    if not record.history:
        return None
    return next((epoch for epoch in record.history if epoch.epoch == record.best_epoch), record.history[-1])


def _finite(value: float | None) -> float | None:
    """None for a NaN, which JSON lacks. Only a trial that failed on one has it, and its reason names it."""
    return value if value is not None and math.isfinite(value) else None


def _hypervolumes(records: Sequence[TrialRecord], bins: int) -> dict[str, Any]:
    """Area dominated in (log10 parameters, validation bits/dim), in decades × bits/dim; larger is better.

    The reference point is the same for all: the largest complete trial's parameters, and log2(bins),
    the bits/dim of a uniform guess.
    """
    complete = complete_trials(records)
    if not complete:
        return {"all": None, **dict.fromkeys(FAMILIES), "reference": None}
    largest = max(record.params for record in complete)
    reference = (math.log10(largest), uniform_bits_per_dim(bins))

    def of(trials: Sequence[TrialRecord]) -> float:
        return hypervolume([(math.log10(params), bits) for params, bits in size_and_bits(trials)], reference)

    return {
        "all": of(complete),
        **{family: of(complete_trials(records, family)) for family in FAMILIES},
        "reference": {"params": largest, "log10_params": reference[0], "val_bpd": reference[1]},
    }


def _csv(trials: Sequence[Mapping[str, Any]]) -> str:
    """One row a trial; the configuration's fields as ``model.*``, the training's as ``train.*``."""
    rows = []
    for trial in trials:
        row = {name: value for name, value in trial.items() if not isinstance(value, Mapping)}
        row |= {f"model.{name}": value for name, value in trial["config"].items()}
        row |= {f"train.{name}": value for name, value in trial["train"].items()}
        for name, figure in trial["figures"].items():
            row |= {f"{name}.{key}": value for key, value in figure.items()}
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["id"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
