"""``cluster.yaml`` itself: Ray's own validation, the costs in its comment, its commands."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from fvae.config import ConfigError
from tests.cluster.aws_account import CLUSTER_FILE, KEY, OURS, REGION, ROOT

pytestmark = pytest.mark.core

TEXT = CLUSTER_FILE.read_text()
COST = ROOT / "benchmarks" / "cluster" / "cost.py"


def filled() -> dict[str, Any]:
    config = yaml.safe_load(TEXT)
    config["provider"] |= {"region": REGION, "bucket": "b", "ssh_from": OURS, "key_pair": {"key_name": KEY}}
    return config


def cost_script() -> Any:
    spec = importlib.util.spec_from_file_location("cluster_cost", COST)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["cluster_cost"] = module
    spec.loader.exec_module(module)
    return module


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(filled()))


def test_what_a_user_fills_in_stands_first() -> None:
    lines = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    assert [line.split(":")[0].strip() for line in lines[:6]] == [
        "cluster_name",
        "provider",
        "region",
        "bucket",
        "ssh_from",
        "key_pair",
    ]
    provider = yaml.safe_load(TEXT)["provider"]
    assert [provider["region"], provider["bucket"], provider["ssh_from"]] == [None, None, None]
    assert provider["key_pair"] == {"key_name": None}


def test_the_costs_in_its_comment_are_those_of_its_machines() -> None:
    cost = cost_script().cost_of(filled())
    comment = " ".join(line.removeprefix("#").strip() for line in TEXT.splitlines() if line.startswith("#"))
    found = {
        "idle": re.search(r"idle .*? address +(\d+\.\d\d)", comment),
        "full": re.search(r"the ceiling +(\d+\.\d\d)", comment),
        "night": re.search(r"without work costs (\d+\.\d\d)", comment),
        "down": re.search(r"at (\d+\.\d\d) a month", comment),
    }
    said = {name: match[1] for name, match in found.items() if match}
    assert said == {
        "idle": f"{cost.idle_hour:.2f}",
        "full": f"{cost.full_hour:.2f}",
        "night": f"{12 * cost.idle_hour:.2f}",
        "down": f"{cost.down_month:.2f}",
    }
    counts = re.search(r"(\d+) cpu \+ (\d+) one_gpu \+ (\d+) four_gpu", comment)
    assert counts
    assert [int(one) for one in counts.groups()] == [most for most, _ in cost.worker_hours.values()]


def test_the_kept_table_of_costs_is_the_files(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, str(COST), str(CLUSTER_FILE), "--output", str(tmp_path / "cost.txt")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown == (tmp_path / "cost.txt").read_text()
    assert shown == (ROOT / "benchmarks" / "results" / "cluster_cost.txt").read_text()


def test_a_machine_without_a_price_is_said() -> None:
    config = filled()
    config["available_node_types"]["cpu"]["node_config"]["InstanceType"] = "x9.huge"
    with pytest.raises(ConfigError, match="InstanceType=x9.huge: its price is not in"):
        cost_script().cost_of(config)


@pytest.mark.parametrize("list_", [name for name in yaml.safe_load(TEXT) if name.endswith("_commands")])
def test_commands_are_shell_also_as_ray_wraps_them(list_: str) -> None:
    for command in yaml.safe_load(TEXT)[list_]:
        wrapped = f"source ~/.bashrc; export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && ({command})"
        subprocess.run(["bash", "-n", "-c", wrapped], check=True)
        for script in re.findall(r"~/fvae/(pipelines/cluster/[\w.]+)", command):
            assert (ROOT / script).exists(), script


def test_no_command_ends_what_runs_on_the_head() -> None:
    config = yaml.safe_load(TEXT)
    for command in config["setup_commands"] + config["head_setup_commands"] + config["head_start_ray_commands"]:
        assert "ray stop" not in command
        assert "pkill" not in command


def test_the_environment_of_every_command(tmp_path: Path) -> None:
    asked = "RAY_AUTH_MODE RAY_USAGE_STATS_ENABLED MLFLOW_DISABLE_TELEMETRY OMP_NUM_THREADS PATH"
    show = f"for name in {asked}; do echo $name=${{!name-unset}}; done"
    script = ROOT / "pipelines" / "cluster" / "environment.sh"
    environment = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(
        ["bash", "-c", f". {script}; {show}"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    found = dict(line.split("=", 1) for line in said.splitlines())
    assert found.pop("PATH").startswith(f"{tmp_path}/fvae/.venv/bin:")
    assert found == {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "unset",
    }
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in yaml.safe_load(TEXT)[name]:
            assert ". ~/fvae/pipelines/cluster/environment.sh;" in command
            assert "ray start" not in command or "ulimit -n 65536;" in command
