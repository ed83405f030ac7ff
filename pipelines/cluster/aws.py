"""Ray's AWS launcher, extended by checks before anything is made, security groups, roles and a data disk.

Ray finds :class:`Provider` by ``provider.module`` in ``cluster.yaml``: on the machine that runs ``ray up``, where it
resolves the file, and in the autoscaler on the head, where it launches and ends workers.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, WaiterError
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import with_envs
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND

from fvae.config import ConfigError, require
from pipelines.cluster.aws_instances import attach_disk, find_disk, image_id, make_disk, zones_offering
from pipelines.cluster.aws_network import CLUSTER_TAG, security_groups, subnets_by_zone
from pipelines.cluster.aws_roles import profile_name, stale_roles
from pipelines.cluster.settings import ClusterSettings, refuse, require_file_mounts
from pipelines.training.auth_token import make_token

logger = logging.getLogger(__name__)


class Provider(AWSNodeProvider):
    """Ray's node provider for AWS, with the settings of ``cluster.yaml``."""

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Check the file, as Ray calls this first. The resources of each node type are those in the file."""
        try:
            _require_complete(cluster_config)
        except ConfigError as error:
            refuse(error)
        return cluster_config

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The file with everything filled in that Ray needs to launch machines.

        Checks come first, then what is made: token, groups, disk, key pair. A user's mistake ends the process with one
        line and status 2, before anything was made.
        """
        try:
            return _resolve(copy.deepcopy(cluster_config))
        except ConfigError as error:
            refuse(error)
        except (BotoCoreError, ClientError) as error:
            refuse(ConfigError(f"AWS: {error}"))

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch machines; the head gets its data disk."""
        created = super().create_node(node_config, tags, count)
        if tags.get(TAG_RAY_NODE_KIND) == NODE_KIND_HEAD:
            for instance in created:
                self._attach(instance)
        return created

    def _attach(self, instance: str) -> None:
        ec2 = self.ec2.meta.client
        try:
            attach_disk(ec2, self.provider_config["data_disk"]["volume"], instance)
        except (ClientError, WaiterError) as error:
            ec2.terminate_instances(InstanceIds=[instance])  # a head without its disk would start without its data
            refuse(ConfigError(f"data disk {self.provider_config['data_disk']['volume']}: not attached ({error})"))

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch spot instances in any zone, and the rest on demand, unless ``on_demand_fallback`` is off.

        Ray's autoscaler itself never falls back: a launch that EC2 refuses at once does not count against the type, and
        is tried again as it was. And EC2 may launch fewer machines than are requested.
        """
        markets = [node_config]
        if "InstanceMarketOptions" in node_config and self.provider_config.get("on_demand_fallback", True):
            markets.append({name: value for name, value in node_config.items() if name != "InstanceMarketOptions"})
        created: dict[str, Any] = {}
        refusal: Exception | None = None
        for market in markets:
            try:
                while len(created) < count:  # each turn launches one at least, or raises
                    created |= super()._create_node(market, tags, count - len(created))
            except (NodeLaunchException, ClientError) as error:
                kind = "spot" if "InstanceMarketOptions" in market else "on-demand"
                logger.warning("No %s %s: %s", kind, market["InstanceType"], error)
                refusal = error
        if refusal and not created:
            raise refusal
        return created


def _require_complete(config: dict[str, Any]) -> ClusterSettings:
    settings = ClusterSettings.from_config(config)
    require_file_mounts(config)
    disk = config["provider"].get("data_disk")
    require(
        isinstance(disk, dict) and isinstance(disk.get("gibibytes"), int) and disk["gibibytes"] > 0,
        f"provider.data_disk={disk}: must have gibibytes, a whole number above 0",
    )
    return settings


def _resolve(config: dict[str, Any]) -> dict[str, Any]:
    settings = _require_complete(config)
    session = boto3.Session(region_name=settings.region)
    ec2 = session.client("ec2")
    identity = session.client("sts").get_caller_identity()
    stale = stale_roles(session.client("iam"), config, identity["Account"], identity["Arn"].split(":")[1])
    require(
        not stale,
        f"{'; '.join(stale)}: an administrator runs `python -m pipelines.cluster.roles CLUSTER_FILE`, once",
    )
    _require_bucket(session.client("s3"), settings.bucket)
    _require_key(ec2, settings)
    vpc, subnets = subnets_by_zone(ec2, settings)
    disk = find_disk(ec2, settings.cluster_name)
    for name, node_type in config["available_node_types"].items():
        head = name == config["head_node_type"]
        node = node_type["node_config"]
        zones = [disk["AvailabilityZone"]] if head and disk else list(subnets)
        require(
            all(zone in subnets for zone in zones),
            f"provider.availability_zone: leaves out {', '.join(zones)}, where the cluster's data disk is",
        )
        zones = zones_offering(ec2, node["InstanceType"], zones)
        node["SubnetIds"] = [subnets[zone] for zone in (zones[:1] if head else zones)]  # a disk is in one zone
        if not str(node["ImageId"]).startswith("ami-"):
            node["ImageId"] = image_id(ec2, node["ImageId"])
        volume_tags = [{"Key": CLUSTER_TAG, "Value": settings.cluster_name}]
        node["TagSpecifications"] = [{"ResourceType": "volume", "Tags": volume_tags}]
        node["IamInstanceProfile"] = {"Name": profile_name(settings.cluster_name, "head" if head else "worker")}
        if head:
            head_zone, head_node = zones[0], node

    make_token()
    cluster_group, ssh_group = security_groups(ec2, vpc, settings)
    for node_type in config["available_node_types"].values():
        node_type["node_config"]["SecurityGroupIds"] = [cluster_group]
    head_node["SecurityGroupIds"] = [cluster_group, ssh_group]
    disk_size = config["provider"]["data_disk"]["gibibytes"]
    volume = disk["VolumeId"] if disk else make_disk(ec2, settings.cluster_name, head_zone, disk_size)
    config["provider"]["data_disk"]["volume"] = volume
    return _with_variables(bootstrap_aws(config), settings, volume)


def _with_variables(config: dict[str, Any], settings: ClusterSettings, volume: str) -> dict[str, Any]:
    """The file, whose commands set the shell variables that they use."""
    variables = {"AWS_DEFAULT_REGION": settings.region, "BUCKET": settings.bucket, "DATA_VOLUME": volume}
    for name in (
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ):
        config[name] = with_envs(config[name], variables)
    config["setup_commands"] = []  # they are in the other two already; the head's autoscaler would add them again
    return config


def _require_bucket(s3: Any, bucket: str) -> None:
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        why = {"404": "does not exist", "403": "is not yours to use"}.get(error.response["Error"]["Code"], str(error))
        raise ConfigError(f"provider.bucket={bucket}: {why}; `aws s3 mb s3://NAME` makes one") from error


def _require_key(ec2: Any, settings: ClusterSettings) -> None:
    """Raise ``ConfigError`` where only one half of the key exists; Ray makes both where there is neither."""
    found = ec2.describe_key_pairs(Filters=[{"Name": "key-name", "Values": [settings.key_name]}])["KeyPairs"]
    here = settings.private_key.exists()
    name = f"provider.key_pair.key_name={settings.key_name}"
    require(here or not found, f"{name}: EC2 has this key pair, but {settings.private_key} is not here; copy it here")
    require(bool(found) or not here, f"{name}: {settings.private_key} is here, but EC2 has no such key pair; import it")
