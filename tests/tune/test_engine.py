"""How a search meets a cluster: what its processes are told, and what they are never told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[2]
SEARCH_ON_A_CLUSTER = """
import json, os
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
import pipelines.ray_environment
import ray
from ray.cluster_utils import Cluster
from pipelines.datasets import load_dataset
from tune import engine
from tune.settings import SearchSettings

def of_a_node():
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
os.environ |= {
    "RAY_ADDRESS": cluster.address, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "eu-north-1",
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token",
}
with engine.search_session(SearchSettings(), load_dataset("digits")):
    print(json.dumps(ray.get(ray.remote(of_a_node).remote())))
cluster.shutdown()
"""


def test_a_cluster_s_processes_find_the_same_store_with_credentials_of_their_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEARCH_ON_A_CLUSTER], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "eu-north-1"}
