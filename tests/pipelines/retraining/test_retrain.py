"""``python -m pipelines.retrain`` on a data set that grows: what it decides, why, and what is in service after."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fvae import Model, evaluate, load
from fvae.data.images import Dataset
from pipelines.data.datasets import load_dataset
from pipelines.evaluation.image_scores import Reading
from pipelines.retraining import failure_hooks
from pipelines.retraining.champion_rule import compare
from pipelines.retraining.paired_scores import Scorer
from pipelines.retraining.promotion import Promoter
from pipelines.storage import open_storage
from pipelines.storage.lease import exclusive
from pipelines.tracking.registry import model_location
from tests.commands import Called
from tests.pipelines.retraining.retrainings import MODEL, Registry, called, config_file, data_set, pixels
from tests.pipelines.training.one_process import without_ray
from tests.pipelines.training.training_cluster import HASTE

pytestmark = pytest.mark.core

NAN = {"learning_rate": 1e9}
"""The first step ends in NaN."""


class Step(NamedTuple):
    """One call of the command, and what was in service and decided after it."""

    said: Called
    champion: int | None
    challenger: int | None
    outcomes: list[str]
    tags: dict[str, str]
    """Of the last decision."""
    metrics: dict[str, float]
    hooked: int
    """How often the hook was told so far."""


class Story:
    """Nights of retraining."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.hook = folder / "hook.py"
        self.hook.write_text(
            "import json, os\n"
            f"with open({str(folder / 'hooked')!r}, 'a') as file:\n"
            "    file.write(json.dumps({k: v for k, v in os.environ.items() if k.startswith('FVAE_')}) + '\\n')\n"
        )
        self.steps: dict[str, Step] = {}

    def hooked(self) -> list[dict[str, str]]:
        file = self.folder / "hooked"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def data(self, images: int) -> str:
        return data_set(self.folder, pixels(images))

    def data_as_it_was(self, images: int) -> Dataset:
        """The data set of an earlier night."""
        return load_dataset(data_set(self.folder / f"of-{images}", pixels(images)))

    def images(self, images: int) -> np.ndarray:
        """Its test images."""
        return np.asarray(self.data_as_it_was(images).images("test"))

    def model(self, version: int) -> Model:
        """As MLflow serves it."""
        with model_location(f"models:/{MODEL}/{version}", f"sqlite:///{self.runs}/mlflow.db") as folder:
            return load(folder)

    def config(self, name: str, **train: float) -> str:
        return config_file(self.folder / f"{name}.json", train)

    def night(self, name: str, *options: str) -> Step:
        command = f"{shlex.quote(sys.executable)} {shlex.quote(str(self.hook))}"
        said = called(self.runs, *options, "--on-failure", command)
        registry = Registry.of(self.runs)
        last = registry.decisions()[-1].data
        self.steps[name] = Step(
            said,
            registry.alias(),
            registry.alias("challenger"),
            registry.outcomes(),
            dict(last.tags),
            dict(last.metrics),
            len(self.hooked()),
        )
        return self.steps[name]


@pytest.fixture(scope="module")
def story(shared_ray: str, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The first night on Ray's workers; what follows is trained and measured in this process."""
    story = Story(tmp_path_factory.mktemp("story"))
    story.runs.mkdir()
    shutil.copyfile(empty_database, story.runs / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("RAY_ADDRESS", shared_ray)
        for name, value in HASTE.items():
            patch.setenv(name, value)
        patch.chdir(story.folder)
        data = ("--dataset", story.data(500))
        story.night("first", *data, "--config", story.config("first", epochs=3), "--workers", "2")
        without_ray(patch)
        story.night("same", *data)
        story.data(800)
        better = ("--config", story.config("better", epochs=8))
        story.night("better", *data, *better, "--k", "1", "4")
        story.night("back", "--rollback", "--reason", "blurred faces")
        story.night("same after back", *data)
        story.night("again after back", *data, *better, "--again")
        story.data(900)
        story.night("worse", *data, "--config", story.config("worse", learning_rate=1e-7))
        story.data(1000)
        story.night("too large", *data, "--max-params", "100")
        story.night("broken", *data, "--config", story.config("broken", **NAN))
        story.night("still broken", *data)
        other = data_set(story.folder / "other", np.kron(pixels(60), np.ones((2, 2), np.uint8)))
        story.night("other images", "--dataset", other)
        story.data(1100)
        story.night("own configuration", *data, "--least-gain", "5")
        yield story


def test_the_first_sound_model_becomes_the_champion(story: Story) -> None:
    step = story.steps["first"]
    assert step.said.status == 0, step.said
    assert (step.champion, step.challenger, step.outcomes) == (1, 1, ["promoted"])
    assert step.tags["champion.before"] == "none" and step.tags["reason"].startswith("the first model: ")
    assert "promoted: version 1 is the champion" in step.said.out


def test_several_workers_train_and_measure_as_one_does(story: Story) -> None:
    step = story.steps["first"]
    assert "on 2 workers" in step.said.out
    # Each test image once, by one of them, with three kinds of noise.
    assert "Measuring the challenger, version 1: 375 samples" in step.said.out
    images, model = story.images(500), story.model(1)
    bits = [evaluate(model, images, seed=Reading(1, noise).seed(0, "test")).numpy() for noise in range(3)]
    assert len(images) == 125
    assert step.metrics["challenger/test_bpd"] == np.stack(bits).mean()


def test_nothing_new_and_nothing_is_trained(story: Story) -> None:
    step = story.steps["same"]
    assert step.said.status == 0 and "epoch" not in step.said.out
    assert (step.champion, step.outcomes) == (1, ["promoted", "unchanged"])
    assert "version 1 was trained on these very images" in step.tags["reason"]


def test_a_better_one_takes_its_place_with_figures_that_anyone_can_check(story: Story) -> None:
    step = story.steps["better"]
    assert step.said.status == 0, step.said
    assert (step.champion, step.outcomes[-1]) == (2, "promoted")
    assert Registry.of(story.runs).tags(2)["previous_champion"] == "1"
    assert step.metrics["difference/high"] < 0 and step.metrics["difference/high_iwae4"] < 0
    assert (step.tags["champion.before"], step.tags["champion.after"], step.tags["challenger"]) == ("1", "2", "2")
    assert step.tags["split"] == "test" and step.tags["k"] == "1 4" and step.tags["noise_seeds"] == "3"
    # The very figures, from the models that MLflow serves, on the images that it says.
    images, seeds = story.images(800), [Reading(1, noise).seed(0, "test") for noise in range(3)]
    assert step.tags["data.hash"] == story.data_as_it_was(800).content_hash()
    bits = [np.stack([evaluate(story.model(number), images, seed=seed).numpy() for seed in seeds]) for number in (2, 1)]
    found = compare(*bits)
    assert step.metrics["challenger/test_bpd"] == pytest.approx(found.challenger, abs=1e-6)
    assert step.metrics["champion/test_bpd"] == pytest.approx(found.champion, abs=1e-6)
    assert step.metrics["difference/low"] == pytest.approx(found.low, abs=1e-6)
    assert step.metrics["difference/high"] == pytest.approx(found.high, abs=1e-6)
    assert f"{found.difference:+.4f}" in step.said.out


def test_a_rollback_puts_the_one_before_back(story: Story) -> None:
    step = story.steps["back"]
    assert step.said.status == 0 and step.champion == 1
    assert (step.outcomes[-1], step.tags["reason"]) == ("rolled-back", "blurred faces")
    assert "rolled back: version 1 is the champion, in place of version 2" in step.said.out


def test_what_was_rolled_back_does_not_return(story: Story) -> None:
    same, again = story.steps["same after back"], story.steps["again after back"]
    assert same.outcomes[-1] == "unchanged" and "rolled-back, blurred faces" in same.tags["reason"]
    assert (same.champion, again.champion) == (1, 1)
    assert again.outcomes[-1] == "kept" and again.tags["challenger"] == "2"
    assert "version 2 was rolled back: blurred faces" in again.tags["reason"]
    assert again.metrics["difference/high"] < 0  # it is still better
    assert "epoch" not in again.said.out.replace("(k = 1, epoch", "")  # and was not trained a second time


def test_a_worse_one_does_not_take_its_place(story: Story) -> None:
    step = story.steps["worse"]
    assert step.said.status == 0, step.said
    assert (step.champion, step.challenger, step.outcomes[-1]) == (1, 3, "kept")
    assert step.metrics["difference/low"] > 0 and "is not better" in step.tags["reason"]
    assert step.tags["settled"] == "True"


def test_a_model_that_is_too_large_is_not_even_trained(story: Story) -> None:
    step = story.steps["too large"]
    assert step.said.status == 0 and "epoch" not in step.said.out
    assert (step.champion, step.outcomes[-1]) == (1, "kept")
    assert step.tags["reason"] == "1,080 parameters are more than --max-params 100: not trained"
    assert step.tags["settled"] == "False"


def test_a_training_that_fails_changes_nothing_and_is_told(story: Story) -> None:
    step = story.steps["broken"]
    assert step.said.status == 1
    assert (step.champion, step.outcomes[-1]) == (1, "failed")
    assert "loss nan" in step.tags["reason"] and "loss nan" in step.said.out
    assert (story.steps["too large"].hooked, step.hooked) == (0, 1)
    event = story.hooked()[0]
    assert event["FVAE_EVENT"] == "failed" and event["FVAE_MODEL"] == MODEL and event["FVAE_CHAMPION"] == "1"
    assert "loss nan" in event["FVAE_REASON"]


def test_a_failure_stays_one_but_is_told_once(story: Story) -> None:
    step = story.steps["still broken"]
    assert step.said.status == 1 and "Training" not in step.said.out
    assert (step.champion, step.outcomes[-1], step.hooked) == (1, "unchanged", 1)
    assert "were decided on: failed" in step.tags["reason"]


def test_images_of_another_shape_are_a_mistake_and_told(story: Story) -> None:
    step = story.steps["other images"]
    assert step.said.status == 2
    (line,) = step.said.err.splitlines()
    assert "images of 16×16×1, 256 levels; version 1 of fvae-scans is for 8×8×1, 256 levels" in line
    assert step.champion == 1 and step.outcomes == story.steps["still broken"].outcomes
    assert step.hooked == 2 and "16×16×1" in story.hooked()[-1]["FVAE_REASON"]


def test_by_itself_it_trains_the_champions_configuration_and_asks_for_the_least_gain(story: Story) -> None:
    step = story.steps["own configuration"]
    assert step.said.status == 0, step.said
    assert step.tags["config"] == "the configuration of version 1"
    training = Registry.of(story.runs).client.get_run(step.tags["training.run"]).data.params
    assert (training["train.epochs"], training["model.flow_depth"]) == ("3", "2")
    assert (step.champion, step.outcomes[-1]) == (1, "kept")
    assert "is not better by 5" in step.tags["reason"]
    # 275 test images with three kinds of noise.
    assert "Measuring the challenger, version 4: 825 samples" in step.said.out
    assert "Measuring the champion, version 1: 825 samples" in step.said.out


def test_no_decision_is_missing_and_none_is_there_twice(story: Story) -> None:
    assert Registry.of(story.runs).outcomes() == [
        "promoted",
        "unchanged",
        "promoted",
        "rolled-back",
        "unchanged",
        "kept",
        "kept",
        "kept",
        "failed",
        "unchanged",
        "kept",
    ]


def test_what_only_an_interrupted_job_needs_is_gone(story: Story) -> None:
    place = story.runs / f"retrain-{MODEL}"
    assert [path.name for path in place.rglob("*") if path.is_file()] == ["looks.json"]
    looks = json.loads((place / "looks.json").read_text())["looks"]
    assert len(looks) == len({look["pair"] for look in looks}) >= 1  # one for each two models that were compared
    trainings = list(story.runs.glob("retrain-scans-flow-*"))
    assert len(trainings) == 5
    finished = [run for run in trainings if (run / "model").exists()]
    assert len(finished) == 4 and not any(list((run / "checkpoints").glob("*")) for run in finished)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_a_dry_run_says_what_would_be_and_changes_nothing(story: Story, tmp_path: Path) -> None:
    data = story.data(1200)
    (story.folder / "hooked").unlink(missing_ok=True)
    before = files(story.folder)
    said = called(story.runs, "--dataset", data, "--dry-run")
    assert said.status == 0, said
    assert "The champion, version 1 of fvae-scans: " in said.out
    assert "Would train the configuration of version 1: flow of 1,080 parameters, 3 epochs" in said.out
    small = called(story.runs, "--dataset", data, "--dry-run", "--max-params", "9")
    assert "Nothing would be trained: 1,080 parameters are more than --max-params 9" in small.out
    search = called(story.runs, "--dataset", data, "--dry-run", "--search", "2h")
    assert "A search of 2h would choose the configuration" in search.out
    story_data = story.data(1100)
    same = called(story.runs, "--dataset", story_data, "--dry-run")
    assert "Nothing would be trained: these very images" in same.out and "were decided on: kept" in same.out
    back = called(story.runs, "--rollback", "--dry-run")
    assert back.status == 2 and "took no other's place" in back.err
    story.data(1200)
    after = files(story.folder)
    assert {path: what for path, what in after.items() if "/runs/" in path} == {
        path: what for path, what in before.items() if "/runs/" in path
    }
    nothing = called(tmp_path / "none", "--dataset", data, "--dry-run")
    assert nothing.status == 0 and "has no champion" in nothing.out and not (tmp_path / "none").exists()


def test_a_hook_that_fails_is_a_warning(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_hooks, "COMMAND_SECONDS", 10.0)
    said = called(story.runs, "--dataset", "/nowhere", "--on-failure", f"{sys.executable} -c 'raise SystemExit(3)'")
    assert said.status == 2 and f"warning: hook {sys.executable}: exit status 3" in said.out
    assert "/nowhere" in said.err


def test_who_waits_too_long_gives_up(tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(100))
    with exclusive(open_storage(runs).child(f"retrain-{MODEL}")):
        said = called(runs, "--dataset", data, "--wait", "1s")
    assert said.status == 1
    assert "error: another retraining of fvae-scans still runs after 1s of waiting" in said.err


# --- a hand in the registry -------------------------------------------------------------------------------------------


@pytest.fixture
def two(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, tuple[str, ...], Registry]:
    """Runs with version 1 in service and version 2, which is much better, on the shelf; a job whose data has grown."""
    without_ray(monkeypatch)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    runs, data = tmp_path / "runs", data_set(tmp_path, pixels(500))
    runs.mkdir()
    shutil.copyfile(empty_database, runs / "mlflow.db")
    assert called(runs, "--dataset", data, "--config", config_file(tmp_path / "first.json")).status == 0
    data_set(tmp_path, pixels(800))
    long = config_file(tmp_path / "long.json", {"epochs": 25})
    assert called(runs, "--dataset", data, "--config", long).status == 0
    assert called(runs, "--rollback").status == 0
    data_set(tmp_path, pixels(900))
    options = ("--dataset", data, "--config", config_file(tmp_path / "better.json", {"epochs": 6}))
    registry = Registry.of(runs)
    assert registry.alias() == 1
    return runs, options, registry


def test_a_champion_set_by_hand_meanwhile_is_what_the_challenger_must_beat(
    two: tuple[Path, tuple[str, ...], Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, options, registry = two
    score, calls = Scorer.score, []

    def scoring(self: Scorer, model: Any, what: str) -> Any:
        calls.append(what)
        if len(calls) == 2:  # while the champion is measured
            registry.client.set_registered_model_alias(MODEL, "champion", "2")
        return score(self, model, what)

    monkeypatch.setattr(Scorer, "score", scoring)
    said = called(runs, *options)
    assert said.status == 0, said
    assert "Another process has changed the champion meanwhile: deciding again" in said.out
    assert calls == ["challenger, version 3", "champion, version 1", "challenger, version 3", "champion, version 2"]
    assert said.out.count("Training ") == 1
    last = registry.decisions()[-1].data
    assert registry.outcomes() == ["promoted", "promoted", "rolled-back", "kept"]
    assert registry.alias() == 2 and last.tags["champion.before"] == last.tags["champion.after"] == "2"
    assert last.metrics["difference/low"] > 0

    # Somebody who never stops changing it is left alone.
    calls.clear()
    carry_out = Promoter.carry_out

    def interfering(self: Promoter, decision: Any, check: Any) -> Any:
        now = registry.alias()
        registry.client.set_registered_model_alias(MODEL, "champion", "1" if now == 2 else "2")
        return carry_out(self, decision, check)

    monkeypatch.setattr(Promoter, "carry_out", interfering)
    said = called(runs, *options, "--again")
    assert said.status == 1
    assert "the champion was changed 3 times while this was decided, and is left unchanged" in said.err
    assert registry.outcomes() == ["promoted", "promoted", "rolled-back", "kept"]
