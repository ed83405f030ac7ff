"""The head's autoscaler on AWS, with the file that ``ray up`` put on the head: what it launches, also without spot."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
import yaml
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

from tests.cluster.aws_account import REGION, Account, forget, tags
from tests.cluster.ec2_proxy import Launch, ec2_proxy
from tests.cluster.iam_rules import Context, allows

pytestmark = [pytest.mark.core, pytest.mark.xdist_group("aws")]

DEADLINE = 540.0


@pytest.fixture(autouse=True)
def fresh(up: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On the head: its home folder, no client of another test, and no workers left."""
    for name, value in up.environment().items():
        if name not in ("PATH", "TMPDIR"):
            monkeypatch.setenv(name, value)
    forget()
    yield
    forget()
    if left := [one["InstanceId"] for one in workers(up)]:
        up.client("ec2").terminate_instances(InstanceIds=left)


def workers(account: Account) -> list[dict[str, Any]]:
    return [one for one in account.instances() if tags(one)["ray-node-type"] == "worker"]


def autoscaler(account: Account, **changes: Any) -> NodeProviderAdapter:
    """The autoscaler's own view of EC2, as Ray's monitor makes it on the head."""
    path = account.home / "on_the_head.yaml"
    config = yaml.safe_load(path.read_text())
    config["file_mounts"] = {}
    config["auth"]["ssh_private_key"] = str(account.home / ".ssh" / "fvae-key.pem")
    config["provider"] |= changes
    config["provider"].pop("_config_cache_path", None)
    changed = account.folder / "bootstrap.yaml"
    changed.write_text(yaml.safe_dump(config))
    reader = FileConfigReader(str(changed))
    resolved = reader.get_cached_autoscaling_config()
    provider = _get_node_provider(resolved.get_provider_config(), resolved.get_config("cluster_name"), use_cache=False)
    return NodeProviderAdapter(provider, reader)


def launch(adapter: NodeProviderAdapter, shape: dict[str, int], launched: int) -> list[Exception]:
    """Launch, and wait until as many machines are there or it has failed; the errors."""
    adapter.launch(shape, "a-request")
    errors: list[Exception] = []
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        errors += adapter.poll_errors()
        there = [one for one in adapter.get_non_terminated().values() if one.node_type in shape]
        if errors or len(there) >= launched:
            return errors
        time.sleep(0.1)
    raise AssertionError(f"neither launched nor failed in {DEADLINE:.0f} s")


def is_spot(asked: Launch) -> bool:
    return asked.get("InstanceMarketOptions.MarketType") == "spot"


def test_every_worker_is_on_spot_closed_and_encrypted(up: Account) -> None:
    assert launch(autoscaler(up), {"cpu": 1, "one_gpu": 2, "four_gpu": 1}, 4) == []
    found = workers(up)
    assert sorted(one["InstanceType"] for one in found) == ["c6i.4xlarge", "g6.12xlarge", "g6.xlarge", "g6.xlarge"]
    volumes = {one["VolumeId"]: one for one in up.client("ec2").describe_volumes()["Volumes"]}
    for one in found:
        assert one["InstanceLifecycle"] == "spot"
        assert [group["GroupName"] for group in one["SecurityGroups"]] == ["fvae-cluster"], "no ssh from outside"
        assert one["IamInstanceProfile"]["Arn"].endswith(":instance-profile/fvae-worker")
        assert one["MetadataOptions"]["HttpTokens"] == "required"
        gpu = one["InstanceType"].startswith("g6")
        assert one["ImageId"] == ("ami-00000000000000003" if gpu else "ami-00000000000000001")
        (disk,) = one["BlockDeviceMappings"]
        volume = volumes[disk["Ebs"]["VolumeId"]]
        assert (volume["Encrypted"], volume["Size"], volume["VolumeType"]) == (True, 150, "gp3")
        assert disk["Ebs"]["DeleteOnTermination"] is True


def test_a_worker_is_set_up_once_and_watches_for_spot_notices(up: Account) -> None:
    autoscaler(up)
    config = FileConfigReader(str(up.folder / "bootstrap.yaml")).get_cached_autoscaling_config()
    set_up = [command.split("; ")[-1] for command in config.get_worker_setup_commands("one_gpu")]
    assert set_up == [f"bash ~/fvae/pipelines/cluster/{name}" for name in ("aws_machine.sh", "set_up.sh")]
    joins, watches = config.get_worker_start_ray_commands()
    assert f"export AWS_DEFAULT_REGION={REGION};" in joins
    assert "ray start --address=$RAY_HEAD_IP:6379" in joins
    assert "supervisord -c $watcher" in watches


def test_without_spot_capacity_in_any_zone_it_launches_on_demand(up: Account) -> None:
    def no_spot(asked: Launch) -> str | None:
        return "InsufficientInstanceCapacity" if is_spot(asked) else None

    with ec2_proxy(up.endpoint, no_spot) as (url, launches), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_EC2", url)
        forget()
        assert launch(autoscaler(up), {"one_gpu": 2}, 2) == []
    found = workers(up)
    assert len(found) == 2
    assert all("InstanceLifecycle" not in one for one in found)
    spot = [asked for asked in launches if is_spot(asked)]
    assert len({asked["SubnetId"] for asked in spot}) >= 3, "every zone was asked for spot before"


def test_a_zone_without_capacity_is_passed_over(up: Account) -> None:
    first: list[str] = []

    def not_in_the_first_zone(asked: Launch) -> str | None:
        first.append(asked["SubnetId"])
        return "InsufficientInstanceCapacity" if asked["SubnetId"] == first[0] else None

    with ec2_proxy(up.endpoint, not_in_the_first_zone) as (url, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_EC2", url)
        forget()
        assert launch(autoscaler(up), {"four_gpu": 1}, 1) == []
    (one,) = workers(up)
    assert one["InstanceLifecycle"] == "spot"
    assert one["SubnetId"] != first[0]


def test_where_there_is_spot_for_a_part_the_rest_is_on_demand(up: Account) -> None:
    def one_spot(asked: Launch) -> str | None:
        return "MaxSpotInstanceCountExceeded" if is_spot(asked) and len(workers(up)) == 1 else None

    with ec2_proxy(up.endpoint, one_spot) as (url, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_EC2", url)
        forget()
        assert launch(autoscaler(up), {"one_gpu": 3}, 3) == []
    markets = [one.get("InstanceLifecycle", "on demand") for one in workers(up)]
    assert sorted(markets) == ["on demand", "on demand", "spot"]


def test_the_fallback_can_be_turned_off_and_failures_reach_the_autoscaler(up: Account) -> None:
    with (
        ec2_proxy(up.endpoint, lambda asked: "InsufficientInstanceCapacity") as (url, launches),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL_EC2", url)
        forget()
        (error,) = launch(autoscaler(up, on_demand_fallback=False), {"one_gpu": 1}, 1)
        assert "InsufficientInstanceCapacity" in str(error.__cause__)
        assert all(is_spot(asked) for asked in launches)
        (error,) = launch(autoscaler(up), {"one_gpu": 1}, 1)
        assert "InsufficientInstanceCapacity" in str(error.__cause__)
    assert workers(up) == []


def head_policy(account: Account) -> dict[str, Any]:
    return account.client("iam").get_role_policy(RoleName="fvae-head", PolicyName="fvae-head")["PolicyDocument"]


def test_the_launches_that_it_makes_are_those_that_its_role_allows(up: Account) -> None:
    with ec2_proxy(up.endpoint, lambda asked: None) as (url, launches), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_EC2", url)
        forget()
        assert launch(autoscaler(up), {"cpu": 1, "one_gpu": 1, "four_gpu": 1}, 3) == []
    policy, account_id = head_policy(up), "123456789012"
    ec2 = f"arn:aws:ec2:{REGION}:{account_id}"
    groups = {one["GroupId"]: tags(one) for one in up.client("ec2").describe_security_groups()["SecurityGroups"]}
    assert len(launches) == 3
    for asked in launches:
        given = [tags_in(asked, number) for number in (1, 2)]
        by_kind = {asked[f"TagSpecification.{number}.ResourceType"]: given[number - 1] for number in (1, 2)}
        instance = by_kind["instance"] | {
            "ec2:InstanceType": asked["InstanceType"],
            "ec2:InstanceProfile": f"arn:aws:iam::{account_id}:instance-profile/{asked['IamInstanceProfile.Name']}",
            "ec2:MetadataHttpTokens": asked["MetadataOptions.HttpTokens"],
        }
        group = {f"ec2:ResourceTag/{k}": v for k, v in groups[asked["SecurityGroupId.1"]].items()}
        assert "SecurityGroupId.2" not in asked
        needed: list[tuple[str, str, Context]] = [
            ("ec2:RunInstances", f"{ec2}:instance/i-1", instance),
            ("ec2:RunInstances", f"{ec2}:security-group/{asked['SecurityGroupId.1']}", group),
            (
                "ec2:RunInstances",
                f"{ec2}:volume/vol-1",
                {"ec2:Encrypted": asked["BlockDeviceMapping.1.Ebs.Encrypted"]},
            ),
            ("ec2:RunInstances", f"{ec2}:subnet/{asked['SubnetId']}", {}),
            ("ec2:RunInstances", f"{ec2}:key-pair/{asked['KeyName']}", {}),
            ("ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/{asked['ImageId']}", {}),
            ("ec2:CreateTags", f"{ec2}:instance/i-1", by_kind["instance"] | {"ec2:CreateAction": "RunInstances"}),
            ("ec2:CreateTags", f"{ec2}:volume/vol-1", by_kind["volume"] | {"ec2:CreateAction": "RunInstances"}),
        ]
        assert [one for one in needed if not allows(policy, *one)] == []


def tags_in(asked: Launch, number: int) -> dict[str, str]:
    """Tags of one part of a launch, as condition keys."""
    prefix = f"TagSpecification.{number}.Tag."
    names = {name.removeprefix(prefix).split(".")[0] for name in asked if name.startswith(prefix)}
    return {f"aws:RequestTag/{asked[f'{prefix}{n}.Key']}": asked[f"{prefix}{n}.Value"] for n in names}


def test_with_the_heads_role_it_scales_up_and_down_and_can_do_no_more(up: Account) -> None:
    iam = up.client("iam")
    policy = head_policy(up)  # moto knows actions only: resources and conditions are the test's before
    actions = [{"Effect": "Allow", "Action": one["Action"], "Resource": "*"} for one in policy["Statement"]]
    widened = json.dumps(policy | {"Statement": actions})
    iam.put_role_policy(RoleName="fvae-head", PolicyName="fvae-head", PolicyDocument=widened)
    arn = iam.get_role(RoleName="fvae-head")["Role"]["Arn"]
    role = up.client("sts").assume_role(RoleArn=arn, RoleSessionName="head")["Credentials"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", role["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", role["SecretAccessKey"])
        patch.setenv("AWS_SESSION_TOKEN", role["SessionToken"])
        forget()
        check_from(up, "0")
        try:
            adapter = autoscaler(up)
            assert launch(adapter, {"cpu": 1}, 1) == []
            (node,) = [name for name, one in adapter.get_non_terminated().items() if one.node_type == "cpu"]
            adapter.v1_provider.set_node_tags(node, {"ray-node-status": "setting-up"})
            adapter.terminate([node], "another-request")
            end = time.monotonic() + DEADLINE
            while node in adapter.get_non_terminated():
                assert time.monotonic() < end
                time.sleep(0.1)
            ec2 = boto3.client("ec2", region_name=REGION)
            for forbidden in (ec2.describe_volumes, ec2.describe_security_groups, ec2.describe_key_pairs):
                with pytest.raises(ec2.exceptions.ClientError, match="not authorized"):
                    forbidden()
        finally:
            check_from(up, "inf")
    iam.put_role_policy(RoleName="fvae-head", PolicyName="fvae-head", PolicyDocument=json.dumps(policy))
    assert workers(up) == []


def check_from(account: Account, request: str) -> None:
    """From the request of that number on, moto asks IAM whether an action is allowed to whom it is signed by."""
    url = f"{account.endpoint}/moto-api/reset-auth"
    plain = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, request.encode(), plain, method="POST")).close()
