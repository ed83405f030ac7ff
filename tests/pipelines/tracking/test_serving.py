"""A registered model behind ``mlflow models serve``: the library's own figures, and a clear 4xx for bad requests."""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ParamSchema, ParamSpec

import fvae
from fvae import ConfigError, ModelConfig, build, load, save
from fvae.scores import score
from pipelines.storage import open_storage
from pipelines.tracking import pyfunc_model
from pipelines.tracking.model_folder import REQUIREMENTS, write_model_folder
from pipelines.tracking.settings import default_tracking_uri, server_environment
from pipelines.tracking.tracker import Artifact, RunTracker, TrialSnapshot

pytestmark = pytest.mark.core

PROJECT = Path(__file__).resolve().parents[3]
SHAPE, BINS = (1, 8, 8), 17


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, BINS, (5, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, images) -> Path:
    """What ``fvae.save`` wrote of a small f-VAE."""
    torch.manual_seed(3)
    config = ModelConfig(family="fvae", channels=1, height=8, width=8, bins=BINS, flow_depth=1, encoder_width=4)
    model = build(config)
    model.initialize(torch.from_numpy(images))
    folder = tmp_path_factory.mktemp("saved") / "of any name"
    save(model, folder)
    return folder


@pytest.fixture(scope="module")
def folder(saved) -> Path:
    """The same as an MLflow model."""
    path = saved.parent / "model"
    write_model_folder(saved, path, dataset_name="digits")
    return path


@pytest.fixture(scope="module")
def server(folder, empty_database) -> Iterator[str]:
    """The URL of ``mlflow models serve`` for the model, registered in a database; ended by its id."""
    runs = folder.parent / "runs"
    runs.mkdir()
    shutil.copyfile(empty_database, runs / "mlflow.db")
    uri = default_tracking_uri(open_storage(runs))
    tracker = RunTracker(storage=open_storage(runs), dataset_name="digits", run_name="train-digits", tracking_uri=uri)
    tracker.start()
    artifacts = (Artifact(open_storage(folder.parent), folder.name),)
    tracker.record(
        TrialSnapshot(id="run", family="fvae", status="complete", artifacts=artifacts, registered_as="fvae-digits")
    )
    tracker.close(timeout=150)
    assert tracker.problems == []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/fvae-digits/{tracker.model_version}"]
    command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port), "--workers", "1"]
    # Without this project on its path: the model's own code must do.
    environment = server_environment() | {"MLFLOW_TRACKING_URI": uri}
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment["PATH"]))
    log = folder.parent / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=runs, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 400
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=60).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"no server: {log.read_text()}")


def ask(server: str, body, content_type: str = "application/json") -> tuple[int, dict]:
    """Status and answer."""
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    request = urllib.request.Request(server, data, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else {"message": text}


def predictions(server: str, inputs, **params) -> np.ndarray:
    status, answer = ask(server, {"inputs": inputs, "params": params} if params else {"inputs": inputs})
    assert status == 200, answer
    return np.array(answer["predictions"])


@pytest.mark.parametrize(("k", "seed"), [(1, 0), (5, 0), (1, 7)])
def test_scores_are_those_of_the_library(server, saved, images, k, seed):
    expected = score(load(saved), torch.from_numpy(images), k=k, seed=seed).numpy()
    found = predictions(server, images.tolist(), task="score", k=k, seed=seed)
    np.testing.assert_array_equal(found, expected)


def test_a_request_without_params_is_scored(server, saved, images):
    expected = score(load(saved), torch.from_numpy(images))
    np.testing.assert_array_equal(predictions(server, images.tolist()), expected)


@pytest.mark.parametrize("task", ["score", "reconstruct", "encode"])
def test_an_image_has_one_answer_whatever_is_sent_with_it(server, images, task):
    alone = [predictions(server, images[:1].tolist(), task=task)[0]]
    for others in (images[:3], images[2::-1], np.repeat(images[:1], 65, 0)):
        found = predictions(server, others.tolist(), task=task)
        alone += [answer for image, answer in zip(others, found, strict=True) if (image == images[0]).all()]
    assert len(alone) == 68
    for each in alone:
        np.testing.assert_array_equal(each, alone[0])


def test_samples_depend_on_the_seed_alone(server, saved):
    first = predictions(server, [], task="sample", count=3, seed=5)
    expected = load(saved).sample(3, generator=torch.Generator().manual_seed(5))
    np.testing.assert_array_equal(first, expected)
    assert (predictions(server, [], task="sample", count=3, seed=6) != first).any()
    cold = load(saved).sample(3, temperature=0.0)
    np.testing.assert_array_equal(predictions(server, [], task="sample", count=3, temperature=0), cold)


def test_reconstructions_and_latents(server, saved, images):
    model, levels = load(saved), torch.from_numpy(images)
    np.testing.assert_array_equal(predictions(server, images.tolist(), task="reconstruct"), model.reconstruct(levels))
    found = predictions(server, images.tolist(), task="encode")
    np.testing.assert_allclose(found, model.encode(levels), rtol=1e-5, atol=1e-5)


def image(level) -> list:
    """One image with this in a corner."""
    levels = [[[[0] * 8 for _ in range(8)]]]
    levels[0][0][0][0] = level
    return levels


REFUSED = {
    "one image without its batch": ({"inputs": image(0)[0]}, "shape [1, 8, 8]; send images as [N, 1, 8, 8]"),
    "another size": ({"inputs": np.zeros((1, 1, 8, 7), int).tolist()}, "[1, 1, 8, 7]"),
    "no image": ({"inputs": []}, "N at least 1"),
    "unequal rows": ({"inputs": [[[[0] * 8] * 7 + [[0] * 7]]]}, "unequal length"),
    "a level above": ({"inputs": image(17)}, "levels from 0 to 17; this model has 0 to 16"),
    "a level that uint8 would wrap": ({"inputs": image(300)}, "300"),
    "a level below": ({"inputs": image(-1)}, "levels from -1"),
    "a level beyond 64 bits": ({"inputs": image(10**30)}, "integers from 0 to 16"),
    "a decimal": ({"inputs": image(1.5)}, "decimal numbers"),
    "a whole decimal": ({"inputs": image(1.0)}, "decimal numbers"),
    "NaN": ({"inputs": image(float("nan"))}, "decimal numbers"),
    "null": ({"inputs": image(None)}, "no numbers"),
    "text": ({"inputs": image("1")}, "text"),
    "a word": ({"inputs": "image"}, "shape []"),
    "an object": ({"inputs": {"a": 1}}, "shape []"),
    "an object among the levels": ({"inputs": image({"a": 1})}, "no numbers"),
    "true": ({"inputs": np.ones((1, *SHAPE), bool).tolist()}, "true or false"),
    "no such task": ({"inputs": image(0), "params": {"task": "paint"}}, "score, sample, reconstruct, encode"),
    "k of zero": ({"inputs": image(0), "params": {"k": 0}}, "k=0; use an integer from 1"),
    "k that is no integer": ({"inputs": image(0), "params": {"k": "many"}}, "k='many'; use an integer from 1"),
    "k as text": ({"inputs": image(0) * 50, "params": {"k": "64"}}, "k='64'; use an integer from 1"),
    "k that is true": ({"inputs": image(0), "params": {"k": True}}, "k=True; use an integer from 1"),
    "k as a decimal": ({"inputs": image(0), "params": {"k": 64.0}}, "k=64.0; use an integer from 1"),
    "a long k": ({"inputs": image(0), "params": {"k": "1" * 1000}}, "…; use an integer from 1"),
    "a param that is none": ({"inputs": image(0), "params": {"K": 64}}, "'K' is none; use task, k, seed, count, tem"),
    "a task that is a list": ({"inputs": image(0), "params": {"task": ["score"]}}, "task=['score']; use one of"),
    "a temperature as text": ({"inputs": [], "params": {"task": "sample", "temperature": "1"}}, "temperature='1'"),
    "k without end": ({"inputs": image(0), "params": {"k": 10**30}}, "k"),
    "a seed below zero": ({"inputs": image(0), "params": {"seed": -1}}, "seed=-1"),
    "no samples": ({"inputs": [], "params": {"task": "sample", "count": 0}}, "count=0"),
    "a temperature of NaN": ({"inputs": [], "params": {"task": "sample", "temperature": float("nan")}}, "temperature"),
    "params that are a list": ({"inputs": image(0), "params": [1]}, "dictionary"),
    "no inputs": ({"params": {"task": "score"}}, "inputs"),
    "instances": ({"instances": image(0)}, "'inputs' key"),
    "a frame": ({"dataframe_split": {"data": [[1]]}}, "'inputs' key"),
    "a list": ([1, 2], "JSON dictionary"),
    "no JSON": ("{", "valid JSON"),
    "a chat": ({"messages": []}, "shape []"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_a_clear_400(server, case):
    body, expected = REFUSED[case]
    status, answer = ask(server, body)
    assert status == 400, answer
    assert expected in answer["message"]
    if answer["message"].startswith(("inputs", "params")):  # ours, not MLflow's
        assert set(answer) == {"error_code", "message"} and "\n" not in answer["message"]
        assert len(answer["message"]) < 200


@pytest.mark.parametrize(("content_type", "status"), [("text/csv", 400), ("image/png", 415)])
def test_another_content_type_is_refused(server, content_type, status):
    assert ask(server, "1,2", content_type)[0] == status


def test_the_server_goes_on_after_bad_requests(server, images):
    assert ask(server, {"inputs": image("x")})[0] == 400
    assert predictions(server, images.tolist()).shape == (5,)


def test_the_folder_is_whole_and_says_nothing_of_where_it_was_made(folder, saved):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "pyfunc_model.py", "code/fvae/model.py", "requirements.txt"} <= files
    assert {"artifacts/weights/model.safetensors", "artifacts/weights/config.json"} <= files
    assert not [name for name in files if "pycache" in name or name.endswith((".pkl", ".pyc"))]
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert str(PROJECT).encode() not in content and str(saved.parent).encode() not in content, path
    assert load(folder / "artifacts/weights").config == load(saved).config


def test_a_moved_folder_works_where_this_project_is_not(folder, saved, images, tmp_path):
    """In a process of its own, with no `fvae` to import but the folder's."""
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    np.save(tmp_path / "images.npy", images)
    program = f"""
import sys
sys.path = [path for path in sys.path if path not in ("", {str(PROJECT)!r})]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import mlflow.pyfunc, numpy
model = mlflow.pyfunc.load_model({str(moved)!r})
import fvae
assert fvae.__file__.startswith({str(moved)!r}), fvae.__file__
print(model.predict(numpy.load("images.npy"), params={{"k": 2}}).tolist())
"""
    environment = {key: value for key, value in server_environment().items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        ast.literal_eval(done.stdout), score(load(saved), torch.from_numpy(images), k=2), rtol=1e-6
    )


def test_writing_the_folder_again_replaces_it_and_leaves_nothing_else(saved, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    write_model_folder(saved, tmp_path / "model", dataset_name="digits")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "old").exists()
    with pytest.raises(ConfigError, match="config.json|model.safetensors"):
        write_model_folder(tmp_path, tmp_path / "another", dataset_name="digits")
    assert not (tmp_path / "another").exists()


def test_requirements_are_those_of_the_project():
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(REQUIREMENTS) == set(declared)
    assert {text.split(">=")[0] for text in REQUIREMENTS} == {"torch", "numpy", "safetensors"}
    assert Path(fvae.__file__).parent == PROJECT / "fvae"


def test_the_private_parts_of_mlflow_are_there_and_do_what_serving_needs():
    """Of ``pyfunc_model.py``, one by one: where MLflow changes one, this says which."""
    theirs = mlflow.pyfunc._enforce_params_schema  # the model's own check around it, or MLflow's
    assert list(inspect.signature(theirs).parameters) == ["params", "schema"]
    schema = ParamSchema([ParamSpec("k", "long", 1)])
    assert theirs({"k": 2, "other": 3}, schema) == {"k": 2}  # other models' params are MLflow's to check

    signature = ModelSignature(params=schema)
    pyfunc_model.pass_inputs_unconverted(signature)
    written = Model(signature=signature).to_dict()
    assert written["is_signature_from_type_hint"] is True
    assert Model.from_dict(written)._is_signature_from_type_hint() is True

    def predict(self, context, model_input: list[str], params=None):
        raise AssertionError

    left = type("Left", (PythonModel,), {"predict": predict, "_skip_type_hint_validation": True})
    wrapped = type("Wrapped", (PythonModel,), {"predict": predict})
    assert left.predict is predict is not wrapped.predict
    assert not hasattr(pyfunc_model.ImageModel.predict, "_is_pyfunc")
    assert hasattr(wrapped.predict, "_is_pyfunc")
