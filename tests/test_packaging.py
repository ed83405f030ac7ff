"""What ``pip install .`` puts on a machine: every module, and with the library's own dependencies ``fvae`` alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import fvae
from pipelines.cluster.shipped_files import OTHERS, PACKAGES, shipped_files

pytestmark = [pytest.mark.core, pytest.mark.xdist_group("packaging")]

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLUSTER_ALONE = ("aiohttp", "apscheduler", "flask", "psycopg2", "supervisor", "yaml")
"""Modules of the extra ``cluster``, which the commands of the extra ``search`` do not import."""
LIBRARY_ALONE = {"torch", "numpy", "safetensors"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wheel of this project was installed into, without any dependency."""
    folder = tmp_path_factory.mktemp("packaging")
    source, wheels, target = folder / "source", folder / "wheels", folder / "installed"
    for name in shipped_files():  # building writes beside its sources
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    for command in (
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels), str(source)],
        [*pip, "install", "--no-deps", "--no-index", "--find-links", str(wheels), "--target", str(target), "fvae"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return target


def python(installed: Path, program: str, *, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``program`` with the installed packages, as on a machine that lacks the modules of ``without``."""
    lacking = f"import sys\nsys.modules.update(dict.fromkeys({without!r}))\nsys.path.insert(0, {str(installed)!r})\n"
    command = [sys.executable, "-P", "-c", lacking + program]
    return subprocess.run(command, cwd=installed, env={"HOME": str(installed)}, capture_output=True, text=True)


def test_every_module_is_installed_with_its_data_and_types(installed: Path) -> None:
    found = {
        path.relative_to(installed).as_posix() for package in PACKAGES for path in (installed / package).rglob("*")
    }
    assert {name for name in shipped_files() if name.partition("/")[0] in PACKAGES} <= found
    assert {f"{package}/py.typed" for package in PACKAGES} <= found
    (metadata,) = installed.glob("fvae-*.dist-info")
    assert metadata.name == f"fvae-{fvae.__version__}.dist-info"
    assert (metadata / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_library_works_with_its_own_dependencies_alone(installed: Path) -> None:
    """No module of another package is there, and every module of ``fvae`` can be imported and trains a model."""
    names = {re.split(r"[\[>=<]", text)[0] for text in PROJECT["dependencies"]}
    assert names == LIBRARY_ALONE
    extras = ("ray", "optuna", "mlflow", "boto3", "pyarrow", "sklearn", "scipy", "PIL", "pandas", "rich", "tyro")
    program = """
import importlib, pkgutil
import numpy as np
import fvae
for module in pkgutil.walk_packages(fvae.__path__, "fvae."):
    importlib.import_module(module.name)
images = np.random.default_rng(0).integers(0, 4, (8, 1, 4, 4), dtype=np.uint8)
config = fvae.ModelConfig(family="fvae", channels=1, height=4, width=4, bins=4, flow_levels=1, flow_depth=1)
trainer = fvae.Trainer(config, fvae.TrainConfig(epochs=1), images[:4], images[4:])
trainer.train_epoch()
fvae.save(trainer.best_model(), "model")
print(fvae.__file__, tuple(fvae.load("model").sample(1).shape))
"""
    done = python(installed, program, without=extras)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{installed}/fvae/__init__.py (1, 1, 4, 4)\n"


@pytest.mark.parametrize(
    ("module", "without", "named"),
    [
        ("tune.search", ("ray", "tyro"), "ray, tyro"),
        ("pipelines.train", ("mlflow", "rich"), "mlflow, rich"),
        ("pipelines.cluster.roles", ("boto3", "botocore"), "boto3"),
        ("pipelines.schedule", ("apscheduler",), "apscheduler"),
        ("pipelines.services", ("supervisor",), "supervisor"),
    ],
)
def test_a_command_without_its_packages_says_how_to_install_them(
    installed: Path, module: str, without: tuple[str, ...], named: str
) -> None:
    as_command = f"import runpy\nsys.argv[0] = '-m'\nrunpy.run_module({module!r}, run_name='__main__')"
    done = python(installed, as_command, without=without)
    line = f"error: {named}: not installed; pip install '.[search,cluster]' in the folder of pyproject.toml\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_an_import_without_its_packages_is_an_import_error(installed: Path) -> None:
    program = """
try:
    from pipelines.data.datasets import load_dataset
except ImportError as error:
    print(error)
"""
    done = python(installed, program, without=("mlflow",))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("mlflow: not installed; pip install")


def test_searching_training_and_evaluating_need_nothing_of_the_extra_cluster(installed: Path) -> None:
    program = "import tune.search_run, pipelines.train, pipelines.evaluate, pipelines.ingest, pipelines.retrain"
    done = python(installed, f"{program}\nprint('imported')", without=CLUSTER_ALONE)
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr


def test_the_lock_files_hold_every_dependency() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"search", "cluster", "dev"}
    wanted = {"requirements.lock": ("search", "cluster"), "requirements-dev.lock": ("search", "cluster", "dev")}
    for lock, names in wanted.items():
        pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
        texts = [*PROJECT["dependencies"], *(text for name in names for text in extras[name])]
        assert {re.split(r"[\[>=<]", text)[0].lower() for text in texts} <= pinned, lock


def test_what_a_wheel_is_made_of_goes_to_a_cluster_too() -> None:
    assert {"pyproject.toml", "README.md", "LICENSE"} <= set(OTHERS)


def test_contributing_names_every_package_and_only_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^    ((?:fvae|pipelines|tune)/[\w/]*?)/? +\w", text, re.MULTILINE))
    inits = (path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py"))
    packages = {path.parent.relative_to(ROOT).as_posix() for path in inits}
    assert {name.rstrip("/") for name in named} == packages
    for path in re.findall(r"`([\w/]+\.(?:py|toml|txt))`", text):
        assert (ROOT / path).is_file(), path


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (fvae.__version__, PROJECT["license"])
    assert f" {fvae.__version__}" in (ROOT / "CHANGELOG.md").read_text()
