"""The two roles of the cluster's machines: their policies, filled in from ``cluster.yaml``, and how they are made."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fvae.config import require
from pipelines.cluster.settings import ClusterSettings

Role = Literal["head", "worker"]
ROLES: tuple[Role, ...] = ("head", "worker")
_POLICIES = Path(__file__).parent / "policies"
_SPOT = "spot.amazonaws.com"


def profile_name(cluster_name: str, role: Role) -> str:
    """The name of the instance profile and of its role."""
    return f"{cluster_name}-{role}"


def worker_instance_types(config: Mapping[str, Any]) -> list[str]:
    """The instance types that the head may launch: those of the file's worker types."""
    types = config["available_node_types"]
    return sorted({t["node_config"]["InstanceType"] for name, t in types.items() if name != config["head_node_type"]})


def trust_policy() -> dict[str, Any]:
    """The trust policy of both roles: EC2 instances may assume them."""
    return json.loads((_POLICIES / "trust.json").read_text())


def role_policy(role: Role, config: Mapping[str, Any], account: str, partition: str = "aws") -> dict[str, Any]:
    """``policies/ROLE.json`` with the account, region, bucket, key and instance types of this cluster."""
    settings = ClusterSettings.from_config(dict(config))
    values = {
        "account": account,
        "partition": partition,
        "region": settings.region,
        "bucket": settings.bucket,
        "cluster": settings.cluster_name,
        "key": settings.key_name,
    }
    types = worker_instance_types(config)
    return _filled(json.loads((_POLICIES / f"{role}.json").read_text()), values, types)


def _filled(part: Any, values: Mapping[str, str], instance_types: list[str]) -> Any:
    if part == "${instance_types}":
        return instance_types
    if isinstance(part, str):
        return string.Template(part).substitute(values)
    if isinstance(part, list):
        return [_filled(one, values, instance_types) for one in part]
    if isinstance(part, dict):
        return {key: _filled(one, values, instance_types) for key, one in part.items()}
    return part


def make_roles(iam: Any, config: Mapping[str, Any], account: str, partition: str) -> list[str]:
    """Make or update both roles and profiles. Returns what was done, a line each; none where all was up to date.

    Also makes EC2's own service role for spot instances, which an account has from its first spot request on.
    Raises ``ConfigError`` where a role of that name carries policies that are not ours.
    """
    done = []
    for role in ROLES:
        name = profile_name(config["cluster_name"], role)
        done += _make_role(iam, name, role_policy(role, config, account, partition))
        done += _make_profile(iam, name)
    if not iam.list_roles(PathPrefix=f"/aws-service-role/{_SPOT}/")["Roles"]:
        iam.create_service_linked_role(AWSServiceName=_SPOT)
        done.append(f"made the service role of {_SPOT}")
    return done


def stale_roles(iam: Any, config: Mapping[str, Any], account: str, partition: str) -> list[str]:
    """Why the roles do not fit the file, a reason each; none where ``ray up`` may proceed."""
    reasons = []
    for role in ROLES:
        name = profile_name(config["cluster_name"], role)
        try:
            profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
            held = iam.get_role_policy(RoleName=name, PolicyName=name)["PolicyDocument"]
        except iam.exceptions.NoSuchEntityException:
            reasons.append(f"instance profile {name} does not exist")
            continue
        if [one["RoleName"] for one in profile["Roles"]] != [name]:
            reasons.append(f"instance profile {name} is without its role")
        elif held != role_policy(role, config, account, partition):
            reasons.append(f"role {name} has another policy than this file needs")
        elif foreign := _foreign_policies(iam, name):
            reasons.append(f"role {name} has policies of others ({', '.join(foreign)})")
    return reasons


def _make_role(iam: Any, name: str, policy: dict[str, Any]) -> list[str]:
    done = []
    try:
        iam.get_role(RoleName=name)
    except iam.exceptions.NoSuchEntityException:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust_policy()))
        done.append(f"made the role {name}")
    foreign = _foreign_policies(iam, name)
    require(
        not foreign, f"role {name}: has policies of others ({', '.join(foreign)}); detach them, or rename the cluster"
    )
    try:
        held = iam.get_role_policy(RoleName=name, PolicyName=name)["PolicyDocument"]
    except iam.exceptions.NoSuchEntityException:
        held = None
    if held != policy:
        iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=json.dumps(policy))
        done.append(f"wrote the policy of {name}")
    return done


def _foreign_policies(iam: Any, name: str) -> list[str]:
    attached = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
    inline = iam.list_role_policies(RoleName=name)["PolicyNames"]
    return [one["PolicyName"] for one in attached] + [one for one in inline if one != name]


def _make_profile(iam: Any, name: str) -> list[str]:
    try:
        profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    except iam.exceptions.NoSuchEntityException:
        profile = iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    roles = [one["RoleName"] for one in profile["Roles"]]
    if roles == [name]:
        return []
    for other in roles:
        iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=other)
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return [f"put the role into the instance profile {name}"]
