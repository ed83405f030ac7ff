"""An AWS account to try ``cluster.yaml`` in: moto's EC2, IAM, STS and S3 over HTTP, and ``ray up`` as a user runs it.

Only ssh and rsync are stood in for, as no machine is behind moto's addresses: they write down what they are asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import yaml
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import utils
from ray.autoscaler._private.providers import _clear_provider_cache

from tests.s3 import CREDENTIALS, moto_server

ROOT = Path(__file__).parents[2]
CLUSTER_FILE = ROOT / "cluster.yaml"
REGION = "us-east-1"
BUCKET = "our-bucket"
OURS = "198.51.100.0/24"
KEY = "fvae-key"

SSH = """#!/usr/bin/env python3
import json, os, pathlib, shutil, sys
home = pathlib.Path(os.environ["HOME"])
with (home / "asked.jsonl").open("a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if os.path.basename(sys.argv[0]) == "rsync":
    source, target = sys.argv[-2:]
    if target.endswith("ray_bootstrap_config.yaml"):
        shutil.copy(source, home / "on_the_head.yaml")
"""


def images() -> list[dict[str, Any]]:
    """The images that the file pins, and what else a search by name could find."""
    canonical, amazon = "099720109477", "898082745236"
    ubuntu = "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-"
    gpu = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) "
    named = [
        ("ami-00000000000000001", canonical, f"{ubuntu}20260904"),
        ("ami-00000000000000002", canonical, f"{ubuntu}20261110"),
        ("ami-00000000000000003", amazon, f"{gpu}20261006"),
        ("ami-0000000000000bad1", "666666666666", f"{ubuntu}20260904"),
    ]
    same = {
        "state": "available",
        "public": True,
        "image_location": "amazon/x",
        "sriov": "simple",
        "root_device_type": "ebs",
        "root_device_name": "/dev/sda1",
        "description": "",
        "image_type": "machine",
        "platform": None,
        "architecture": "x86_64",
        "virtualization_type": "hvm",
        "hypervisor": "xen",
    }
    return [same | {"ami_id": ami, "owner_id": owner, "name": name} for ami, owner, name in named]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """One user's machine and AWS account."""

    endpoint: str
    folder: Path

    @property
    def home(self) -> Path:
        """The user's home folder."""
        return self.folder / "home"

    def client(self, service: str) -> Any:
        """An administrator's client."""
        return boto3.Session(
            CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"], region_name=REGION
        ).client(service, endpoint_url=self.endpoint)

    def reset(self) -> None:
        """Everything as in a new account, with a bucket."""
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/moto-api/reset", method="POST")).close()
        self.client("s3").create_bucket(Bucket=BUCKET)
        self.home.mkdir()
        programs = self.folder / "bin"
        programs.mkdir()
        for name in ("ssh", "rsync"):
            (programs / name).write_text(SSH)
            (programs / name).chmod(0o755)

    def fill_in(self, **changes: Any) -> Path:
        """``cluster.yaml`` with its four lines filled in; ``changes`` are of ``provider``, ``None`` takes a key out."""
        config = yaml.safe_load(CLUSTER_FILE.read_text())
        given = {"region": REGION, "bucket": BUCKET, "ssh_from": OURS, "key_pair": {"key_name": KEY}} | changes
        config["provider"] |= given
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def environment(self) -> dict[str, str]:
        """Of the user's shell."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        path = os.pathsep.join((str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
        ours = {"HOME": str(self.home), "TMPDIR": str(self.folder), "PATH": path, "AWS_ENDPOINT_URL": self.endpoint}
        return kept | CREDENTIALS | ours | {"RAY_USAGE_STATS_ENABLED": "0"}

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command of the user's, in this project's folder."""
        return subprocess.run(
            command, cwd=ROOT, env=self.environment() | more, capture_output=True, text=True, timeout=540, check=False
        )

    def make_roles(self, path: Path) -> subprocess.CompletedProcess[str]:
        """What the administrator does once."""
        return self.run(sys.executable, "-m", "pipelines.cluster.roles", str(path))

    def up(self, path: Path) -> str:
        """``ray up --yes --no-config-cache`` in this process, which is three seconds faster; its output.

        Raises ``SystemExit`` where it refuses.
        """
        options = {"no_restart": False, "restart_only": False, "yes": True, "no_config_cache": True}
        return self._in_process(
            lambda: commands.create_or_update_cluster(
                str(path), override_min_workers=None, override_max_workers=None, **options
            )
        )

    def down(self, path: Path) -> str:
        """``ray down --yes`` in this process; its output."""
        options = {"workers_only": False, "keep_min_workers": False}
        return self._in_process(
            lambda: commands.teardown_cluster(str(path), yes=True, override_cluster_name=None, **options)
        )

    def _in_process(self, command: Callable[[], object]) -> str:
        forget()
        with (
            tempfile.TemporaryFile("w+") as printed,  # a file, which ssh and rsync print to as well
            mock.patch.dict(os.environ, self.environment(), clear=True),
            contextlib.chdir(ROOT),
            contextlib.redirect_stdout(printed),
        ):
            command()
            printed.seek(0)
            return printed.read()

    def ray(self, verb: str, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """``ray up`` and the like."""
        return self.run("ray", verb, str(path), "--yes", *options)

    def asked(self) -> list[list[str]]:
        """Every call of ssh and rsync so far."""
        path = self.home / "asked.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def instances(self) -> list[dict[str, Any]]:
        """Those that are not terminated, in order of launch."""
        reservations = self.client("ec2").describe_instances()["Reservations"]
        found = [instance for reservation in reservations for instance in reservation["Instances"]]
        return [one for one in found if one["State"]["Name"] in ("pending", "running")]

    def made(self) -> dict[str, list[str]]:
        """Names of what there is beyond what a new account has."""
        ec2, iam = self.client("ec2"), self.client("iam")
        groups = ec2.describe_security_groups()["SecurityGroups"]
        return {
            "instances": [one["InstanceId"] for one in self.instances()],
            "volumes": [one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]],
            "groups": [one["GroupName"] for one in groups if one["GroupName"] != "default"],
            "keys": [one["KeyName"] for one in ec2.describe_key_pairs()["KeyPairs"]],
            "roles": [one["RoleName"] for one in iam.list_roles()["Roles"]],
            "files": sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()),
        }


@contextlib.contextmanager
def aws_server(folder: Path) -> Iterator[str]:
    """The URL of a moto server whose EC2 has the images that ``cluster.yaml`` pins; the credentials are set for it."""
    (folder / "images.json").write_text(json.dumps(images()))
    variables = CREDENTIALS | {"MOTO_AMIS_PATH": str(folder / "images.json")}
    with mock.patch.dict(os.environ, variables), moto_server(folder) as url:
        yield url


def forget() -> None:
    """Let Ray's launcher make its clients anew."""
    utils.resource_cache.cache_clear()
    utils.client_cache.cache_clear()
    boto3.setup_default_session()
    _clear_provider_cache()


def tags(resource: dict[str, Any]) -> dict[str, str]:
    """Tags as a dict."""
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags", [])}
