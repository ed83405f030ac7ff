"""The cluster's network on AWS: subnets in several availability zones, and two security groups."""

from __future__ import annotations

from typing import Any

from fvae.config import ConfigError, require
from pipelines.cluster.settings import ClusterSettings

CLUSTER_TAG = "ray-cluster-name"


def subnets_by_zone(ec2: Any, settings: ClusterSettings) -> tuple[str, dict[str, str]]:
    """The VPC, and one public subnet for each zone, in the order of preference.

    Raises ``ConfigError`` where a zone that the user named has none.
    """
    vpc = settings.vpc or _default_vpc(ec2, settings.region)
    found = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    public = sorted((s["AvailabilityZone"], s["SubnetId"]) for s in found if s["MapPublicIpOnLaunch"])
    by_zone: dict[str, str] = {}
    for zone, subnet in public:
        by_zone.setdefault(zone, subnet)
    require(bool(by_zone), f"provider.vpc={vpc}: has no subnet that gives its machines a public address")
    for zone in settings.zones:
        require(
            zone in by_zone,
            f"provider.availability_zone={zone}: {vpc} has no public subnet there; it has {', '.join(by_zone)}",
        )
    return vpc, {zone: by_zone[zone] for zone in settings.zones or by_zone}


def security_groups(ec2: Any, vpc: str, settings: ClusterSettings) -> tuple[str, str]:
    """The ids of the two groups, made where they are missing, with these rules and no others.

    The first is for every machine and lets the cluster's own machines talk to each other; the second is for the
    head alone and lets ``ssh_from`` reach port 22. A rule that was added by hand is removed.
    """
    cluster = _group(ec2, vpc, settings, "cluster", "The machines of one Ray cluster, among themselves")
    ssh = _group(ec2, vpc, settings, "ssh", "ssh to the head, from the networks in cluster.yaml")
    _set_rules(ec2, cluster, [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": cluster["GroupId"]}]}])
    _set_rules(ec2, ssh, [_ssh_from(network) for network in settings.ssh_from])
    return cluster["GroupId"], ssh["GroupId"]


def _default_vpc(ec2: Any, region: str) -> str:
    found = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not found:
        raise ConfigError(f"provider.vpc: missing, and {region} has no default VPC; give the id of one (vpc-…)")
    return found[0]["VpcId"]


def _group(ec2: Any, vpc: str, settings: ClusterSettings, role: str, description: str) -> dict[str, Any]:
    name = f"{settings.cluster_name}-{role}"
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
    found = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    if found:
        theirs = {tag["Key"]: tag["Value"] for tag in found[0].get("Tags", [])}
        require(
            theirs.get(CLUSTER_TAG) == settings.cluster_name,
            f"security group {name} ({found[0]['GroupId']}): is not this cluster's; "
            "give another cluster_name, or remove the group",
        )
        return found[0]
    tags = [{"Key": CLUSTER_TAG, "Value": settings.cluster_name}, {"Key": "Name", "Value": name}]
    made = ec2.create_security_group(
        GroupName=name,
        Description=description,
        VpcId=vpc,
        TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
    )
    return {"GroupId": made["GroupId"], "IpPermissions": []}


def _ssh_from(network: str) -> dict[str, Any]:
    reachable: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    if ":" in network:
        return reachable | {"Ipv6Ranges": [{"CidrIpv6": network, "Description": "ssh_from"}]}
    return reachable | {"IpRanges": [{"CidrIp": network, "Description": "ssh_from"}]}


def _set_rules(ec2: Any, group: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
    have = [one for rule in group["IpPermissions"] for one in _single_sources(rule)]
    keys = [_key(rule) for rule in wanted]
    extra = [rule for rule in have if _key(rule) not in keys]
    lacking = [rule for rule in wanted if _key(rule) not in [_key(one) for one in have]]
    if extra:
        ec2.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=extra)
    if lacking:
        ec2.authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=lacking)


_SOURCES = {
    "IpRanges": "CidrIp",
    "Ipv6Ranges": "CidrIpv6",
    "UserIdGroupPairs": "GroupId",
    "PrefixListIds": "PrefixListId",
}


def _single_sources(rule: dict[str, Any]) -> list[dict[str, Any]]:
    """EC2 answers with rules merged by port; one rule for each source."""
    ports = {name: rule[name] for name in ("IpProtocol", "FromPort", "ToPort") if name in rule}
    return [ports | {kind: [{key: one[key]}]} for kind, key in _SOURCES.items() for one in rule.get(kind, [])]


def _key(rule: dict[str, Any]) -> tuple[Any, ...]:
    source = next((kind, rule[kind][0][key]) for kind, key in _SOURCES.items() if rule.get(kind))
    return (rule["IpProtocol"], rule.get("FromPort", -1), rule.get("ToPort", -1), *source)
