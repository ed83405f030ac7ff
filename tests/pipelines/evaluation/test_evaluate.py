"""Any model, measured on any split: the figures, their standard errors, the pictures, and what is said of mistakes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from fvae import ModelConfig, TrainConfig, Trainer, build, evaluate, load, save
from fvae.data.images import derived_seed
from fvae.evaluation import standard_error
from fvae.training_state import TrainingState
from pipelines.cli import command_line
from pipelines.data.datasets import load_dataset
from pipelines.evaluate import main
from pipelines.evaluation import image_scores
from pipelines.evaluation.image_scores import KeptReadings, Measured, Reading
from pipelines.evaluation.model_lookup import open_model, short_name, weights_digest
from pipelines.evaluation.report import figures, table
from pipelines.evaluation.settings import EvaluateSettings
from pipelines.storage import open_storage
from pipelines.tracking.model_folder import write_model_folder
from pipelines.tracking.settings import default_tracking_uri
from pipelines.training.checkpoints import CheckpointStore
from pipelines.training.image_grids import png_rows
from tests.commands import call

pytestmark = pytest.mark.core

SHAPE = {"channels": 1, "height": 8, "width": 8, "bins": 17}
CONFIG = ModelConfig(family="fvae", **SHAPE, flow_levels=1, flow_depth=1, coupling_width=8, encoder_width=4)
FILES = {"evaluation.json", "bits.parquet", "samples.png", "reconstructions.png", "interpolations.png"}
FILES |= {"temperatures.png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training's folder: ``model/``, and the checkpoints ``early`` (in its first epoch) and ``last``."""
    folder = tmp_path_factory.mktemp("run")
    images = load_dataset("digits")
    trainer = Trainer(CONFIG, TrainConfig(epochs=1, batch_size=64), images.images("train")[:128], images.images("val"))
    trainer.train_step()
    trainer.save(folder / "early.safetensors")
    trainer.train_epoch()
    trainer.save(folder / "last.safetensors")
    save(trainer.best_model(), folder / "model")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default outputs go there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def measured(model: Path | str, output: Path | str = "out", **options: Any) -> dict[str, Any]:
    """The report of an evaluation."""
    options = {"k": (1,), "noise_seeds": 1, "samples": 3, "temperatures": (0.5, 1.0), "device": "cpu"} | options
    assert main(EvaluateSettings(model=str(model), output=str(output), **options)) == 0
    return json.loads(open_storage(output).read("evaluation.json"))


def command(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Status and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(main, EvaluateSettings)
    return int(exit_.value.code or 0), capsys.readouterr().err


# --- the figures --------------------------------------------------------------------------------------------


def test_figures_and_standard_errors(run: Path, tmp_path: Path) -> None:
    report = measured(run / "model", k=(1, 3), noise_seeds=3, split="val", seed=5)
    images, model = load_dataset("digits").images("val"), load(run / "model")
    bits = pq.read_table(tmp_path / "out" / "bits.parquet")
    assert len(report["results"]) == 2
    for result in report["results"]:
        k = result["k"]
        seeds = [derived_seed(5, purpose) for purpose in (f"val/{k}", f"val/{k}/1", f"val/{k}/2")]
        expected = np.stack([evaluate(model, images, k=k, seed=seed).numpy() for seed in seeds])
        for noise, row in enumerate(expected):
            assert np.array_equal(bits[f"k{k}_noise{noise}"].to_numpy(), row)
        assert [each["seed"] for each in result["readings"]] == seeds
        assert [each["bits_per_dim"] for each in result["readings"]] == pytest.approx(expected.mean(axis=1), abs=1e-12)
        assert result["bits_per_dim"] == pytest.approx(expected.mean(), abs=1e-12)
        of_image = expected.mean(axis=0)
        assert result["standard_error_images"] == pytest.approx(np.sqrt(of_image.var(ddof=1) / 180))
        assert result["standard_error_noise"] == pytest.approx(np.sqrt(expected.mean(axis=1).var(ddof=1) / 3))
        assert result["images"] == 180
    first, second = (result["bits_per_dim"] for result in report["results"])
    assert second < first  # the bound is tighter


def test_one_reading_has_no_standard_error_over_noise() -> None:
    bits = np.array([1.0, 2.0, 4.0])
    found = figures([Measured(Reading(1, 0), bits, 1.0)], [7])
    assert found["standard_error_noise"] is None
    assert found["standard_error_images"] == pytest.approx(standard_error(torch.from_numpy(bits)))
    assert figures([Measured(Reading(1, 0), bits[:1], 1.0)], [7])["standard_error_images"] is None


def test_the_report_says_what_was_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = measured(run / "model", noise_seeds=2)
    model = load(run / "model")
    assert report["model"]["weights"] == weights_digest(model)
    assert report["model"]["parameters"] == model.parameter_count()
    assert report["model"]["flops_per_image"] > 0
    assert report["dataset"]["hash"] == load_dataset("digits").content_hash()
    assert (report["dataset"]["split"], report["dataset"]["test"]) == ("test", 360)
    assert report["software"]["torch"] == torch.__version__
    row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["1"])
    (result,) = report["results"]
    assert row.split()[1:6] == [
        *(f"{result[name]:.4f}" for name in ("bits_per_dim", "standard_error_images", "standard_error_noise")),
        *("360", "2"),
    ]


def test_streamed_images_give_the_same_figures(run: Path, tmp_path: Path) -> None:
    from tests.pipelines.data.test_ingest import make

    make("digits", tmp_path / "set")
    (result,) = measured(run / "model", "held", dataset=str(tmp_path / "set"))["results"]
    (streamed,) = measured(run / "model", "streamed", dataset=str(tmp_path / "set"), streaming="always")["results"]
    assert streamed["bits_per_dim"] == result["bits_per_dim"]


# --- pictures -----------------------------------------------------------------------------------------------


def test_pictures(run: Path, tmp_path: Path) -> None:
    measured(run / "model", samples=20, temperatures=(0.0, 0.5, 1.0))
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    sizes = {name: Image.open(tmp_path / "out" / name).size for name in sorted(FILES) if name.endswith(".png")}
    cell, gap = 64 + 2, 2  # 8×8 pixels, enlarged eight times
    assert sizes["samples.png"] == (16 * cell + gap, 2 * cell + gap)
    assert sizes["interpolations.png"] == (12 * cell + gap, 4 * cell + gap)
    assert sizes["temperatures.png"][1] == 3 * (cell + gap)
    assert sizes["temperatures.png"][0] > 12 * cell + gap  # with room for the labels
    assert sizes["reconstructions.png"][1] == 4 * (cell + gap)
    rows = np.asarray(Image.open(tmp_path / "out" / "temperatures.png").convert("L"))
    left = sizes["temperatures.png"][0] - 12 * cell - gap
    coldest = rows[2 : 2 + 64, left + gap :]
    assert np.array_equal(coldest[:, :64], coldest[:, cell : cell + 64])  # at 0 every sample is the same
    warmest = rows[2 * (cell + gap) + 2 :][:64, left + gap :]
    assert not np.array_equal(warmest[:, :64], warmest[:, cell : cell + 64])
    assert (rows[:, : left - gap] < 128).any()  # the labels


@pytest.mark.parametrize("channels", [1, 3])
def test_labelled_rows_keep_every_pixel(channels: int) -> None:
    for columns in range(1, 30):
        images = np.random.default_rng(columns).integers(0, 256, (columns, channels, 9, 7), dtype=np.uint8)
        picture = Image.open(io.BytesIO(png_rows([("a", images), ("longer", images)], 256, minimum_side=1)))
        pixels = np.asarray(picture.convert("RGB"))
        width, height = columns * 9 + 2, 11 + 2  # of a row: 7×9 pixels each, and their gaps
        assert pixels.shape[0] == 2 * height
        row = pixels[height:, -width:]
        assert np.array_equal(row[2:11, 2:9], images[0].transpose(1, 2, 0).repeat(3 // channels, axis=2))
        assert np.array_equal(row[2:11, -9:-2], images[-1].transpose(1, 2, 0).repeat(3 // channels, axis=2))


# --- any model ----------------------------------------------------------------------------------------------


def registered(run: Path, storage: Path) -> tuple[str, str]:
    """``models:/…@…`` and ``runs:/…`` of the model, logged and registered in the database beside ``storage``."""
    from mlflow import MlflowClient

    uri = default_tracking_uri(open_storage(storage))
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.create_experiment("fvae/digits", artifact_location=(storage / "mlartifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    write_model_folder(run / "model", storage / "made" / "model", dataset_name="digits")
    client.log_artifact(run_id, str(storage / "made" / "model"))
    client.create_registered_model("fvae-digits")
    client.create_model_version("fvae-digits", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("fvae-digits", "champion", "1")
    return "models:/fvae-digits@champion", f"runs:/{run_id}/model"


def test_every_location_gives_the_same_model(run: Path, tmp_path: Path, bucket: str, empty_database: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copyfile(empty_database, runs / "mlflow.db")
    open_storage(f"{bucket}/runs").upload(run, "digits")
    CheckpointStore(open_storage(tmp_path / "training" / "checkpoints"), 1).put(
        TrainingState.read(run / "last.safetensors"), 3.25
    )
    locations = [
        str(run),
        f"{run}/",
        str(run / "model"),
        str(run / "model" / "model.safetensors"),
        str(run / "last.safetensors"),
        str(tmp_path / "training"),
        f"{bucket}/runs/digits",
        f"{bucket}/runs/digits/model",
        f"{bucket}/runs/digits/last.safetensors",
        *registered(run, runs),
        "models:/fvae-digits/1",
    ]
    expected = weights_digest(load(run / "model"))
    for location in locations:
        model = open_model(location, str(runs))
        assert weights_digest(model) == expected, location
        assert not model.training


def test_a_checkpoint_gives_its_best_weights(run: Path, tmp_path: Path) -> None:
    state = TrainingState.read(run / "last.safetensors")
    later = {
        name: tensor + 1 if name.endswith("log_sigma2") else tensor for name, tensor in state.under("ema/").items()
    }
    tensors = state.tensors | {f"ema/{name}": tensor for name, tensor in later.items()}
    TrainingState(tensors=tensors, metadata=state.metadata).write(tmp_path / "later.safetensors")
    assert weights_digest(open_model("later.safetensors", "runs")) == weights_digest(load(run / "model"))


def test_a_checkpoint_before_the_first_epoch_gives_its_averaged_weights(run: Path) -> None:
    state = TrainingState.read(run / "early.safetensors")
    assert not state.under("best/")
    model = open_model(str(run / "early.safetensors"), "runs")
    assert all(torch.equal(tensor, state.under("ema/")[name]) for name, tensor in model.state_dict().items())


def test_weights_have_other_digests_where_one_number_differs(run: Path) -> None:
    model = load(run / "model")
    before = weights_digest(model)
    with torch.no_grad():
        model.log_sigma2 += 1e-6
    assert weights_digest(model) != before


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("runs/digits/trials/0007-fvae", "0007-fvae"),
        ("runs/digits/trials/0007-fvae/model/", "0007-fvae"),
        ("s3://bucket/runs/train/checkpoints/step-7.safetensors", "step-7"),
        ("models:/fvae-digits/3", "fvae-digits-3"),
        ("models:/fvae-digits@champion", "fvae-digits-champion"),
        ("runs:/8f2c/model", "8f2c"),
    ],
)
def test_names(location: str, name: str) -> None:
    assert short_name(location) == name


def test_results_on_s3(run: Path, bucket: str) -> None:
    report = measured(run, f"{bucket}/out")
    assert {entry.key for entry in open_storage(f"{bucket}/out").list()} == FILES
    assert report["results"] == measured(run, f"{bucket}/out")["results"]


# --- the same command again ---------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(k, seed) of every evaluation that really ran."""
    seen: list[tuple[int, int]] = []

    def watched(*arguments: Any, k: int, seed: int, **options: Any) -> torch.Tensor:
        seen.append((k, seed))
        return evaluate(*arguments, k=k, seed=seed, **options)

    monkeypatch.setattr(image_scores, "evaluate", watched)
    return seen


def test_what_is_finished_is_shown_and_more_is_added(run: Path, tmp_path: Path, taken: list) -> None:
    first = measured(run / "model", noise_seeds=2)
    assert len(taken) == 2
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert measured(run, noise_seeds=2) == first  # by another way to the same weights
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == written
    more = measured(run / "model", noise_seeds=2, k=(1, 2))
    assert [k for k, _ in taken] == [1, 1, 2, 2]
    assert more["results"][0] == first["results"][0]
    (tmp_path / "out" / "samples.png").unlink()
    measured(run / "model", noise_seeds=2, k=(1, 2))
    assert len(taken) == 4
    assert (tmp_path / "out" / "samples.png").exists()
    again = measured(run / "model", noise_seeds=2, again=True)
    assert len(taken) == 6
    assert again["results"][0]["bits_per_dim"] == first["results"][0]["bits_per_dim"]


def test_the_default_place_tells_models_apart(run: Path, tmp_path: Path) -> None:
    for name in ("early", "last"):
        settings = {"k": (1,), "noise_seeds": 1, "samples": 1, "temperatures": (1.0,), "device": "cpu"}
        assert main(EvaluateSettings(model=str(run / f"{name}.safetensors"), **settings)) == 0
    places = sorted(path.name for path in (tmp_path / "evaluations" / "digits-test").iterdir())
    digests = [weights_digest(open_model(str(run / f"{name}.safetensors"), "runs")) for name in ("early", "last")]
    assert places == [f"early-{digests[0][:8]}", f"last-{digests[1][:8]}"]


def test_an_interrupted_evaluation_goes_on(
    run: Path, tmp_path: Path, taken: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = KeptReadings.add

    def interrupted(self: KeptReadings, done: Measured) -> None:
        keep(self, done)
        if done.reading == Reading(1, 1):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(KeptReadings, "add", interrupted)
    settings = {"k": (1,), "noise_seeds": 3, "samples": 1, "temperatures": (1.0,), "device": "cpu"}
    assert main(EvaluateSettings(model=str(run), output="out", **settings)) == 1
    assert "Interrupted. The same command goes on" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bits.parquet"}
    monkeypatch.setattr(KeptReadings, "add", keep)
    result = measured(run, **settings)["results"][0]
    assert len(taken) == 3
    assert len({seed for _, seed in taken}) == 3
    assert result["bits_per_dim"] == measured(run, "other", **settings)["results"][0]["bits_per_dim"]


def test_damaged_readings_are_measured_again(run: Path, tmp_path: Path, taken: list) -> None:
    expected = measured(run)["results"][0]["bits_per_dim"]
    path = tmp_path / "out" / "bits.parquet"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[40] ^= 1  # in the first page of figures
    for damage in (content[: len(content) // 2], bytes(flipped), b""):
        path.write_bytes(damage)
        (tmp_path / "out" / "evaluation.json").unlink()
        taken.clear()
        assert measured(run)["results"][0]["bits_per_dim"] == expected
        assert len(taken) == 1


# --- mistakes -----------------------------------------------------------------------------------------------


def spoilt(run: Path, folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    shutil.copytree(run, folder)
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "nothing/here"], r"nothing/here: no model there"),
        (["--model", "here.safetensors"], r"here\.safetensors: no model there; no such file"),
        (["--model", "gs://bucket/model"], r"cannot use gs://"),
        (["--model", "models:/fvae-digits/1"], r"models:/fvae-digits/1: no runs there"),
        (["--model", "{run}", "--dataset", "photos"], r"8×8×1, 17 levels; --dataset photos has images of 16×16×3, 256"),
        (["--model", "{run}", "--k", "0"], r"--k=0: must be an integer of at least 1"),
        (["--model", "{run}", "--k"], r"--k: name at least one"),
        (["--model", "{run}", "--k", "2", "2"], r"--k: each at most once"),
        (["--model", "{run}", "--split", "tset"], r"--split='tset': must be one of train, val, test"),
        (["--model", "{run}", "--noise-seeds", "0"], r"--noise-seeds=0"),
        (["--model", "{run}", "--temperatures", "-1"], r"--temperatures=-1\.0"),
        (["--model", "{run}", "--temperatures", "nan"], r"--temperatures=nan"),
        (["--model", "{run}", "--samples", "0"], r"--samples=0"),
        (["--model", "{run}", "--dataset", "no-such-set"], r"no-such-set"),
        (["--model", "{run}", "--output", "gs://x/y"], r"--output: gs://x/y: cannot use gs://"),
        (["--model", "{run}", "--workers", "0"], r"--workers=0"),
        (["--model", "{run}", "--gpus-per-worker", "1"], r"--gpus-per-worker=1: for several --workers"),
        (["--model", "{run}", "--workers", "2", "--device", "cuda"], r"--device cuda --gpus-per-worker 0"),
        (["--model", ""], r"--model: empty"),
        ([], r"--model"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], line: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.replace("{run}", str(run)) for argument in arguments]
    status, said = command(*filled, monkeypatch=monkeypatch, capsys=capsys)
    assert status == 2
    assert said.count("\n") == 1
    assert re.search(line, said), said


@pytest.mark.parametrize("name", ["model/model.safetensors", "last.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_weights_are_one_line(
    name: str,
    damage: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = (run / "last.safetensors" if name.startswith("model") else run / "model/model.safetensors").read_bytes()
    change = {"cut": lambda whole: whole[: len(whole) // 2], "empty": lambda _: b"", "other": lambda _: other}[damage]
    folder = spoilt(run, tmp_path / "spoilt", name, change)
    place = folder / name if name == "last.safetensors" else folder
    status, said = command("--model", str(place), monkeypatch=monkeypatch, capsys=capsys)
    assert (status, said.count("\n")) == (2, 1)
    assert name in said or "model.safetensors" in said


def test_another_evaluation_s_place_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(run)
    before = (tmp_path / "out" / "bits.parquet").read_bytes()
    for options in (["--split", "val"], ["--seed", "1"], ["--model", str(run / "early.safetensors")]):
        arguments = ["--model", str(run), "--output", "out", "--device", "cpu", *options]
        status, said = command(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert (status, said.count("\n")) == (2, 1)
        assert "holds another evaluation" in said
        assert "--again" in said
    assert (tmp_path / "out" / "bits.parquet").read_bytes() == before
    report = measured(run, split="val", again=True)
    assert report["dataset"]["split"] == "val"


def test_pictures_of_something_else_are_left_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "samples.png").write_bytes(b"a trial's")
    for options in ([], ["--again"]):
        arguments = ["--model", str(run), "--output", "trial", "--device", "cpu", *options]
        status, said = command(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert (status, said.count("\n")) == (2, 1)
        assert "holds pictures of something else" in said
    assert (tmp_path / "trial" / "samples.png").read_bytes() == b"a trial's"


def test_a_figure_that_is_not_finite_ends_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(run / "model")
    with torch.no_grad():
        model.log_sigma2.fill_(float("nan"))
    save(model, tmp_path / "bad")
    arguments = ["--model", str(tmp_path / "bad"), "--output", "out", "--device", "cpu", "--k", "2"]
    status, said = command(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert status == 1
    assert said.count("\n") == 1
    assert "k = 2, noise 0: bits/dim of 360 of 360 images is not finite" in said
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_the_table_fits_a_terminal(run: Path) -> None:
    report = measured(run)
    console = Console(width=80, file=io.StringIO())
    console.print(table(report))
    assert all(len(line) <= 80 for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def test_an_evaluation_that_has_lost_its_place_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(ModelConfig(family="flow", channels=1, height=8, width=8, bins=17))
    save(model, tmp_path / "model")
    options = ("--model", str(tmp_path / "model"), "--dataset", "digits", "--output", str(tmp_path / "out"))
    monkeypatch.setattr("pipelines.storage.lease.Lease.lost", property(lambda self: True))
    done = call(main, EvaluateSettings, *options)
    assert done.status == 1
    assert "the lock was lost" in done.err and done.err.count("\n") == 1
    assert {path.name for path in tmp_path.rglob("out/*")} <= {".lock"}
