"""``ray up cluster.yaml``, as a user runs it, in an AWS account: what it made, what it did not, what it does again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.aws_account import BUCKET, KEY, OURS, REGION, Account, tags

pytestmark = [pytest.mark.core, pytest.mark.xdist_group("aws")]


@pytest.fixture(scope="module")
def head(up: Account) -> dict[str, Any]:
    """The head as EC2 describes it."""
    (instance,) = up.instances()
    return instance


def rules(account: Account, name: str) -> list[dict[str, Any]]:
    groups = account.client("ec2").describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])
    (group,) = groups["SecurityGroups"]
    kinds = ("UserIdGroupPairs", "IpRanges", "Ipv6Ranges", "PrefixListIds")
    return [{key: value for key, value in rule.items() if value or key not in kinds} for rule in group["IpPermissions"]]


def group_id(account: Account, name: str) -> str:
    groups = account.client("ec2").describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])
    return groups["SecurityGroups"][0]["GroupId"]


def test_one_port_is_open_to_one_network(up: Account) -> None:
    (ssh,) = rules(up, "fvae-ssh")
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22)
    assert [one["CidrIp"] for one in ssh["IpRanges"]] == [OURS]
    (inside,) = rules(up, "fvae-cluster")
    assert inside["IpProtocol"] == "-1"
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [group_id(up, "fvae-cluster")]
    assert "IpRanges" not in inside, "no address outside reaches the machines but by ssh"
    assert "Ipv6Ranges" not in inside


def test_no_group_is_open_to_the_world(up: Account) -> None:
    groups = up.client("ec2").describe_security_groups()["SecurityGroups"]
    assert sorted(group["GroupName"] for group in groups) == ["default", "fvae-cluster", "fvae-ssh"]
    for group in groups:
        allowed = json.dumps(group["IpPermissions"])
        assert "0.0.0.0/0" not in allowed
        assert "::/0" not in allowed


def test_the_head_is_as_the_file_says(up: Account, head: dict[str, Any]) -> None:
    assert head["InstanceType"] == "m6i.large"
    assert head["ImageId"] == "ami-00000000000000001", "the pinned image: not the newest, not a stranger's"
    assert head["KeyName"] == KEY
    assert head["IamInstanceProfile"]["Arn"].endswith(":instance-profile/fvae-head")
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert head["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert "InstanceLifecycle" not in head, "a head on spot would take the cluster with it"
    assert {group["GroupName"] for group in head["SecurityGroups"]} == {"fvae-cluster", "fvae-ssh"}
    assert tags(head)["ray-cluster-name"] == "fvae"


def test_the_disks_are_encrypted_and_the_data_outlives_the_head(up: Account, head: dict[str, Any]) -> None:
    disks = {one["DeviceName"]: one["Ebs"] for one in head["BlockDeviceMappings"]}
    assert disks["/dev/sda1"]["DeleteOnTermination"] is True
    assert disks["/dev/sdf"]["DeleteOnTermination"] is False
    volumes = up.client("ec2").describe_volumes()["Volumes"]
    found = {volume["VolumeId"]: volume for volume in volumes}
    for device, gibibytes in (("/dev/sda1", 50), ("/dev/sdf", 50)):
        volume = found[disks[device]["VolumeId"]]
        assert (volume["Encrypted"], volume["Size"], volume["VolumeType"]) == (True, gibibytes, "gp3")
        assert tags(volume)["ray-cluster-name"] == "fvae"
        assert volume["AvailabilityZone"] == head["Placement"]["AvailabilityZone"]


def test_the_roles_have_our_policies_and_no_others(up: Account) -> None:
    iam = up.client("iam")
    ours = [role["RoleName"] for role in iam.list_roles()["Roles"] if role["RoleName"].startswith("fvae")]
    assert sorted(ours) == ["fvae-head", "fvae-worker"]
    for name in ours:
        assert iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"] == [], "no …FullAccess"
        assert iam.list_role_policies(RoleName=name)["PolicyNames"] == [name]
        policy = json.dumps(iam.get_role_policy(RoleName=name, PolicyName=name)["PolicyDocument"])
        assert f":s3:::{BUCKET}/" in policy
        assert "${" not in policy, "everything is filled in"
        (profile,) = iam.list_instance_profiles_for_role(RoleName=name)["InstanceProfiles"]
        assert profile["InstanceProfileName"] == name


def test_workers_are_told_apart_by_size_and_stand_in_several_zones(up: Account) -> None:
    config = yaml.safe_load((up.home / "on_the_head.yaml").read_text())
    zones = {s["SubnetId"]: s["AvailabilityZone"] for s in up.client("ec2").describe_subnets()["Subnets"]}
    workers = {name: one for name, one in config["available_node_types"].items() if name != "head"}
    assert {name: one["resources"].get("GPU", 0) for name, one in workers.items()} == {
        "cpu": 0,
        "one_gpu": 1,
        "four_gpu": 4,
    }
    for one in workers.values():
        assert one["min_workers"] == 0
        assert len({zones[subnet] for subnet in one["node_config"]["SubnetIds"]}) >= 2
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}, "no training on the head"
    assert config["provider"]["region"] == REGION
    assert config["idle_timeout_minutes"] == 10


def test_the_token_is_made_once_kept_private_and_carried_to_every_machine(up: Account) -> None:
    token = up.home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) >= 32
    carried = [call for call in up.asked() if call[0] == "rsync" and call[-1].endswith(":~/.ray/auth_token")]
    assert carried
    assert carried[0][-2] == str(token)
    config = yaml.safe_load((up.home / "on_the_head.yaml").read_text())
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token", "the head carries it on to workers"
    secret = token.read_text()
    assert secret not in (up.home / "asked.jsonl").read_text()
    assert secret not in (up.home / "on_the_head.yaml").read_text()


def on_the_head(account: Account) -> list[str]:
    return [call[-1] for call in account.asked() if call[0] == "ssh"]


def test_commands_come_in_order_with_their_values(up: Account) -> None:
    said = on_the_head(up)
    order = ("aws_machine.sh", "set_up.sh", "data_disk.sh", "start_head", "pipelines.services up")
    places = [next(i for i, command in enumerate(said) if what in command) for what in order]
    assert places == sorted(places)
    start, services = said[places[3]], said[places[4]]
    assert "--dashboard-host=127.0.0.1" in start
    assert "export RAY_OVERRIDE_RESOURCES=" in start, "which is how Ray passes CPU: 0 on"
    assert f"export BUCKET={BUCKET};" in services
    assert "--artifacts s3://$BUCKET/mlflow" in services


def test_again_with_no_change_it_changes_nothing(up: Account, head: dict[str, Any]) -> None:
    before, said = up.made(), len(on_the_head(up))
    policies = up.make_roles(up.folder / "cluster.yaml")
    assert policies.stdout.startswith("nothing to do"), policies.stdout + policies.stderr
    result = up.ray("up", up.folder / "cluster.yaml", "--no-config-cache")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Configuration already up to date" in result.stdout
    assert up.made() == before
    (still,) = up.instances()
    assert still["InstanceId"] == head["InstanceId"]
    assert tags(still) == tags(head)
    again = on_the_head(up)[said:]
    assert not any("ray stop" in command or "set_up.sh" in command for command in again), again


def test_another_network_for_ssh_takes_the_old_one_away(up: Account, head: dict[str, Any]) -> None:
    path = up.fill_in(ssh_from=["203.0.113.7/32", "2001:db8:7::/48"])
    ec2 = up.client("ec2")
    ec2.authorize_security_group_ingress(  # by hand, and forgotten
        GroupId=group_id(up, "fvae-ssh"),
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 8265, "ToPort": 8265, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
    )
    up.up(path)
    found = json.dumps(rules(up, "fvae-ssh"))
    assert "203.0.113.7/32" in found
    assert "2001:db8:7::/48" in found
    assert OURS not in found
    assert "8265" not in found
    assert [one["InstanceId"] for one in up.instances()] == [head["InstanceId"]]


def test_after_down_the_data_disk_is_left_and_the_next_head_gets_it(up: Account, head: dict[str, Any]) -> None:
    path = up.folder / "cluster.yaml"
    data = next(d["Ebs"]["VolumeId"] for d in head["BlockDeviceMappings"] if d["DeviceName"] == "/dev/sdf")
    up.down(path)
    assert up.instances() == []
    assert data in up.made()["volumes"]
    config = yaml.safe_load(Path(path).read_text())
    zone = head["Placement"]["AvailabilityZone"]
    config["provider"]["availability_zone"] = f"{REGION}d,{zone}"  # the first choice is another zone by now
    path.write_text(yaml.safe_dump(config))
    up.up(path)
    (new,) = up.instances()
    assert new["InstanceId"] != head["InstanceId"]
    assert new["Placement"]["AvailabilityZone"] == zone, "where the disk is"
    assert data in [one["Ebs"]["VolumeId"] for one in new["BlockDeviceMappings"]]
    up.up(up.fill_in())
