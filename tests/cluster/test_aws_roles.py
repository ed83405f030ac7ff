"""The two roles' policies: all that a cluster's machines do is allowed, and nothing beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from pipelines.cluster.aws_roles import ROLES, Role, role_policy
from tests.cluster.aws_account import BUCKET, CLUSTER_FILE, KEY, OURS, REGION, Account
from tests.cluster.iam_rules import Context, allows

pytestmark = pytest.mark.core

ACCOUNT = "123456789012"
EC2 = f"arn:aws:ec2:{REGION}:{ACCOUNT}"
S3 = f"arn:aws:s3:::{BUCKET}"
IN_REGION = {"aws:RequestedRegion": REGION}
LAUNCH = {
    "aws:RequestTag/ray-cluster-name": "fvae",
    "aws:RequestTag/ray-node-type": "worker",
    "ec2:InstanceType": "g6.xlarge",
    "ec2:InstanceProfile": f"arn:aws:iam::{ACCOUNT}:instance-profile/fvae-worker",
    "ec2:MetadataHttpTokens": "required",
}
OUR_WORKER = {"ec2:ResourceTag/ray-cluster-name": "fvae", "ec2:ResourceTag/ray-node-type": "worker"}
OUR_HEAD = OUR_WORKER | {"ec2:ResourceTag/ray-node-type": "head"}
TAG_STATE = OUR_WORKER | {"aws:TagKeys": ["ray-node-status", "ray-runtime-config"]}
TO_EC2 = {"iam:PassedToService": "ec2.amazonaws.com"}


def policy(role: Role) -> dict[str, Any]:
    config = yaml.safe_load(CLUSTER_FILE.read_text())
    config["provider"] |= {"region": REGION, "bucket": BUCKET, "ssh_from": OURS, "key_pair": {"key_name": KEY}}
    return role_policy(role, config, ACCOUNT)


HEAD_MAY: list[tuple[str, str, Context]] = [
    ("ec2:DescribeInstances", "*", IN_REGION),
    ("ec2:RunInstances", f"{EC2}:instance/i-1", LAUNCH),
    ("ec2:RunInstances", f"{EC2}:instance/i-1", LAUNCH | {"ec2:InstanceType": "g6.12xlarge"}),
    ("ec2:RunInstances", f"{EC2}:instance/i-1", LAUNCH | {"ec2:InstanceType": "c6i.4xlarge"}),
    ("ec2:RunInstances", f"{EC2}:volume/vol-1", {"ec2:Encrypted": "true"}),
    ("ec2:RunInstances", f"{EC2}:security-group/sg-1", {"ec2:ResourceTag/ray-cluster-name": "fvae"}),
    ("ec2:RunInstances", f"{EC2}:subnet/subnet-1", {}),
    ("ec2:RunInstances", f"{EC2}:network-interface/eni-1", {}),
    ("ec2:RunInstances", f"{EC2}:spot-instances-request/sir-1", {}),
    ("ec2:RunInstances", f"{EC2}:key-pair/{KEY}", {}),
    ("ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/ami-1", {}),
    ("ec2:CreateTags", f"{EC2}:instance/i-1", LAUNCH | {"ec2:CreateAction": "RunInstances"}),
    ("ec2:CreateTags", f"{EC2}:volume/vol-1", LAUNCH | {"ec2:CreateAction": "RunInstances"}),
    ("ec2:CreateTags", f"{EC2}:instance/i-1", TAG_STATE),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", OUR_WORKER),
    ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/fvae-worker", TO_EC2),
    ("s3:ListBucket", S3, {}),
    ("s3:GetObject", f"{S3}/mlflow/1/model", {}),
    ("s3:PutObject", f"{S3}/runs/digits/ledger", {}),
    ("s3:DeleteObject", f"{S3}/runs/digits/lease", {}),
]
HEAD_MAY_NOT: list[tuple[str, str, Context]] = [
    ("ec2:DescribeInstances", "*", {"aws:RequestedRegion": "eu-west-1"}),
    ("ec2:RunInstances", f"{EC2}:instance/i-1", LAUNCH | {"ec2:InstanceType": "p5.48xlarge"}),
    ("ec2:RunInstances", f"{EC2}:instance/i-1", LAUNCH | {"ec2:MetadataHttpTokens": "optional"}),
    ("ec2:RunInstances", f"{EC2}:instance/i-1", LAUNCH | {"aws:RequestTag/ray-cluster-name": "another"}),
    ("ec2:RunInstances", f"{EC2}:instance/i-1", LAUNCH | {"aws:RequestTag/ray-node-type": "head"}),
    (
        "ec2:RunInstances",
        f"{EC2}:instance/i-1",
        LAUNCH | {"ec2:InstanceProfile": f"arn:aws:iam::{ACCOUNT}:instance-profile/fvae-head"},
    ),
    ("ec2:RunInstances", f"{EC2}:instance/i-1", {k: v for k, v in LAUNCH.items() if k != "ec2:InstanceProfile"}),
    ("ec2:RunInstances", f"{EC2.replace(REGION, 'eu-west-1')}:instance/i-1", LAUNCH),
    ("ec2:RunInstances", f"{EC2}:security-group/sg-1", {}),
    ("ec2:RunInstances", f"{EC2}:security-group/sg-1", {"ec2:ResourceTag/ray-cluster-name": "another"}),
    ("ec2:RunInstances", f"{EC2}:volume/vol-1", {"ec2:Encrypted": "false"}),
    ("ec2:RunInstances", f"{EC2}:key-pair/another", {}),
    ("ec2:CreateTags", f"{EC2}:instance/i-1", {"aws:TagKeys": ["ray-node-status"]}),
    ("ec2:CreateTags", f"{EC2}:instance/i-1", TAG_STATE | {"aws:TagKeys": ["ray-cluster-name"]}),
    ("ec2:CreateTags", f"{EC2}:instance/i-1", OUR_HEAD | {"aws:TagKeys": ["ray-node-status"]}),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", {}),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", OUR_WORKER | {"ec2:ResourceTag/ray-cluster-name": "another"}),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", OUR_HEAD),
    ("ec2:AuthorizeSecurityGroupIngress", f"{EC2}:security-group/sg-1", OUR_WORKER),
    ("ec2:DeleteVolume", f"{EC2}:volume/vol-1", OUR_WORKER),
    ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/fvae-head", TO_EC2),
    ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/fvae-worker", {"iam:PassedToService": "lambda.amazonaws.com"}),
    ("iam:PutRolePolicy", f"arn:aws:iam::{ACCOUNT}:role/fvae-worker", {}),
    ("sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/admin", {}),
    ("s3:GetObject", "arn:aws:s3:::our-bucket-2/runs/x", {}),
    ("s3:GetObject", "arn:aws:s3:::another/runs/x", {}),
    ("s3:ListBucket", "arn:aws:s3:::another", {}),
    ("s3:DeleteBucket", S3, {}),
    ("s3:PutBucketPolicy", S3, {}),
]
WORKER_MAY: list[tuple[str, str, Context]] = [
    ("s3:ListBucket", S3, {}),
    ("s3:GetObject", f"{S3}/data/photos/manifest.json", {}),
    ("s3:GetObject", f"{S3}/runs/digits/trials/1", {}),
    ("s3:PutObject", f"{S3}/runs/digits/trials/1", {}),
    ("s3:DeleteObject", f"{S3}/runs/digits/trials/1", {}),
    ("s3:AbortMultipartUpload", f"{S3}/runs/digits/trials/1", {}),
]
WORKER_MAY_NOT: list[tuple[str, str, Context]] = [
    ("s3:ListBucket", "arn:aws:s3:::another", {}),
    ("s3:ListBucketMultipartUploads", S3, {}),
    ("s3:PutObject", f"{S3}/data/photos/manifest.json", {}),
    ("s3:DeleteObject", f"{S3}/data/photos/manifest.json", {}),
    ("s3:GetObject", f"{S3}/mlflow/1/model", {}),
    ("s3:PutObject", f"{S3}/mlflow/1/model", {}),
    ("s3:GetObject", "arn:aws:s3:::another/runs/x", {}),
    ("ec2:DescribeInstances", "*", IN_REGION),
    ("ec2:RunInstances", f"{EC2}:instance/i-1", LAUNCH),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", OUR_WORKER),
    ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/fvae-worker", TO_EC2),
]


@pytest.mark.parametrize(
    ("role", "may", "asked"),
    [
        ("head", True, HEAD_MAY),
        ("head", False, HEAD_MAY_NOT),
        ("worker", True, WORKER_MAY),
        ("worker", False, WORKER_MAY_NOT),
    ],
)
def test_what_a_role_may(role: Role, may: bool, asked: list[tuple[str, str, Context]]) -> None:
    wrong = [one for one in asked if allows(policy(role), *one) is not may]
    assert wrong == []


def test_nothing_is_allowed_on_everything() -> None:
    for role in ROLES:
        for statement in policy(role)["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
            assert not any("*" in action for action in actions), statement
            if "*" in resources:  # EC2 knows no narrower one for it, so the region is asked for
                assert actions == ["ec2:DescribeInstances"], statement
                assert statement["Condition"] == {"StringEquals": {"aws:RequestedRegion": REGION}}
            for resource in resources:
                assert resource == "*" or REGION in resource or BUCKET in resource or ACCOUNT in resource, statement


def test_print_shows_them_and_makes_nothing(account: Account) -> None:
    path = account.fill_in()
    shown = account.run("python", "-m", "pipelines.cluster.roles", str(path), "--print")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["head"] == policy("head")
    assert account.made()["roles"] == []


def test_making_them_again_brings_them_up_to_date(account: Account) -> None:
    path = account.fill_in()
    first = account.make_roles(path)
    assert "made the role fvae-head" in first.stdout, first.stderr
    assert "made the service role of spot.amazonaws.com" in first.stdout
    assert account.make_roles(path).stdout.startswith("nothing to do")
    account.client("iam").delete_role_policy(RoleName="fvae-worker", PolicyName="fvae-worker")
    assert account.make_roles(path).stdout == "wrote the policy of fvae-worker\n"
    iam = account.client("iam")
    iam.put_role_policy(RoleName="fvae-head", PolicyName="more", PolicyDocument=json.dumps(policy("worker")))
    refused = account.make_roles(path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: role fvae-head: has policies of others (more)")


def test_only_machines_take_the_roles(account: Account) -> None:
    account.make_roles(account.fill_in())
    for name in ("fvae-head", "fvae-worker"):
        trust = account.client("iam").get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]
        assert [s["Principal"] for s in trust["Statement"]] == [{"Service": "ec2.amazonaws.com"}]


def test_a_file_that_is_none(account: Account) -> None:
    (account.folder / "broken.yaml").write_text("provider: [")
    result = account.make_roles(account.folder / "broken.yaml")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert account.make_roles(CLUSTER_FILE).stderr == "error: provider.region: missing; give a name such as us-east-1\n"
