"""What ``ray up cluster.yaml`` refuses: one line, status 2, and nothing was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster.aws_roles import make_roles
from tests.cluster.aws_account import CLUSTER_FILE, KEY, OURS, REGION, Account

pytestmark = pytest.mark.core

ANYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
UNTOUCHED = {"instances": [], "volumes": [], "groups": [], "keys": [], "roles": [], "files": []}


def give_roles(path: Path, account: Account) -> None:
    """``python -m pipelines.cluster.roles``, in this process."""
    make_roles(account.client("iam"), yaml.safe_load(path.read_text()), "123456789012", "aws")


def refused(path: Path, account: Account, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        account.up(path)
    assert exit_.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_the_file_as_it_comes_says_what_to_fill_in(account: Account) -> None:
    result = account.ray("up", CLUSTER_FILE)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: provider.region: missing; give a name such as us-east-1"
    assert "Traceback" not in result.stdout + result.stderr
    assert account.made() == UNTOUCHED


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"region": None}, "provider.region: missing"),
        ({"region": "Virginia"}, "provider.region=Virginia: must be such as us-east-1"),
        ({"bucket": None}, "provider.bucket: missing"),
        ({"bucket": "s3://our-bucket"}, "provider.bucket=s3://our-bucket: must be"),
        ({"bucket": "nobodys-bucket"}, "provider.bucket=nobodys-bucket: does not exist"),
        ({"ssh_from": None}, "provider.ssh_from: missing"),
        ({"ssh_from": []}, "provider.ssh_from: missing"),
        ({"ssh_from": "0.0.0.0/0"}, "provider.ssh_from=0.0.0.0/0: would open ssh to the whole internet"),
        ({"ssh_from": "::/0"}, "provider.ssh_from=::/0: would open ssh to the whole internet"),
        ({"ssh_from": [OURS, "0.0.0.0/0"]}, "provider.ssh_from=0.0.0.0/0: would open ssh to the whole internet"),
        ({"ssh_from": ["0.0.0.0/1", "128.0.0.0/1"]}, "provider.ssh_from=0.0.0.0/1: would open ssh to 2,147,483,648"),
        ({"ssh_from": "198.51.100.7/24"}, "provider.ssh_from=198.51.100.7/24: is an address within 198.51.100.0/24"),
        ({"ssh_from": "home"}, "provider.ssh_from=home: must be a network"),
        ({"key_pair": {"key_name": None}}, "provider.key_pair.key_name: missing"),
        ({"key_pair": None}, "provider.key_pair.key_name: missing"),
        ({"availability_zone": "eu-west-1a"}, "provider.availability_zone=eu-west-1a: not in the region us-east-1"),
        ({"availability_zone": f"{REGION}a,{REGION}z"}, f"provider.availability_zone={REGION}z: vpc-"),
        ({"data_disk": {}}, "provider.data_disk={}: must have gibibytes"),
    ],
)
def test_a_line_that_is_missing_or_wrong(
    change: dict[str, Any],
    says: str,
    account: Account,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good_but_for_the_bucket = change if change == {"bucket": "nobodys-bucket"} else {}
    give_roles(account.fill_in(**good_but_for_the_bucket), account)
    before = account.made()
    assert says in refused(account.fill_in(**change), account, capsys)
    assert account.made() == before


def test_without_roles_it_says_who_makes_them(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(account.fill_in(), account, capsys)
    assert "instance profile fvae-head does not exist" in line
    assert "python -m pipelines.cluster.roles" in line
    assert account.made() == UNTOUCHED


def test_roles_that_do_not_fit_the_file_any_more(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    path = account.fill_in()
    give_roles(path, account)
    config = yaml.safe_load(path.read_text())
    config["available_node_types"]["one_gpu"]["node_config"]["InstanceType"] = "g5.xlarge"
    path.write_text(yaml.safe_dump(config))
    assert "role fvae-head has another policy" in refused(path, account, capsys)
    give_roles(path, account)
    iam = account.client("iam")
    full = iam.create_policy(PolicyName="AmazonS3FullAccess", PolicyDocument=json.dumps(ANYTHING))
    iam.attach_role_policy(RoleName="fvae-worker", PolicyArn=full["Policy"]["Arn"])
    line = refused(path, account, capsys)
    assert "role fvae-worker has policies of others (AmazonS3FullAccess)" in line


@pytest.mark.parametrize("half", ["here", "there"])
def test_half_a_key(half: str, account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    path = account.fill_in()
    give_roles(path, account)
    if half == "here":
        (account.home / ".ssh").mkdir()
        (account.home / ".ssh" / f"{KEY}.pem").write_text("a key")
    else:
        account.client("ec2").create_key_pair(KeyName=KEY)
    before = account.made()
    line = refused(path, account, capsys)
    assert f"provider.key_pair.key_name={KEY}" in line
    assert account.made() == before


def test_images_and_types_that_are_not_there(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    path = account.fill_in()
    config = yaml.safe_load(path.read_text())
    node = config["available_node_types"]["cpu"]["node_config"]
    wrong = {
        "ImageId": {
            "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20250101": "the newest there is 'ubuntu/images/"
            "hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20261110'",
            "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server": "must end with its date",
            "my-image": "give an ami-… id, or a name that begins with",
        },
        "InstanceType": {"c6i.4xlarge": f"InstanceType=c6i.4xlarge: is not offered in {REGION}e; it is in {REGION}a"},
    }
    config["provider"]["availability_zone"] = f"{REGION}e"  # an old zone without newer machines
    for name in config["available_node_types"]:
        config["available_node_types"][name]["node_config"]["InstanceType"] = "t2.medium"
    right = dict(node)
    for field, values in wrong.items():
        for value, says in values.items():
            node |= right | {field: value}
            path.write_text(yaml.safe_dump(config))
            give_roles(path, account)
            before = account.made()
            assert says in refused(path, account, capsys)
            assert account.made() == before


def test_somebody_elses_group_of_that_name_is_left_alone(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    path = account.fill_in()
    give_roles(path, account)
    account.client("ec2").create_security_group(GroupName="fvae-cluster", Description="of another team")
    assert "is not this cluster's" in refused(path, account, capsys)
    assert account.instances() == []


def test_files_that_are_not_here(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    path = account.fill_in()
    config = yaml.safe_load(path.read_text())
    config["file_mounts"]["~/fvae/more"] = "nothing-here"
    path.write_text(yaml.safe_dump(config))
    line = refused(path, account, capsys)
    assert line == "error: file_mounts: there is no nothing-here here; run ray up in the folder of the cluster file"
    assert account.made() == UNTOUCHED


def test_an_account_that_cannot_be_asked(
    account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = account.fill_in()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setattr("tests.cluster.aws_account.CREDENTIALS", {"AWS_EC2_METADATA_DISABLED": "true"})
        monkeypatch.delenv(name, raising=False)
    assert refused(path, account, capsys) == "error: AWS: Unable to locate credentials"
