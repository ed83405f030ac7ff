"""The head's data disk: an EBS volume of its own, which outlives every head."""

from __future__ import annotations

from typing import Any

from fvae.config import require
from pipelines.cluster.aws_network import CLUSTER_TAG

DEVICE = "/dev/sdf"
_WAIT = {"Delay": 5, "MaxAttempts": 120}
"""Up to ten minutes for a disk that the head before still holds."""


def find_disk(ec2: Any, cluster_name: str) -> dict[str, Any] | None:
    """The cluster's volume, as EC2 describes it, or ``None``. Raises ``ConfigError`` where there are two."""
    filters = [
        {"Name": f"tag:{CLUSTER_TAG}", "Values": [cluster_name]},
        {"Name": "tag:Name", "Values": [_name(cluster_name)]},
        {"Name": "status", "Values": ["creating", "available", "in-use"]},
    ]
    found = ec2.describe_volumes(Filters=filters)["Volumes"]
    require(
        len(found) < 2,
        f"{', '.join(sorted(volume['VolumeId'] for volume in found))}: more than one volume is named "
        f"{_name(cluster_name)}; remove the tag ray-cluster-name from all but the one with your runs",
    )
    return found[0] if found else None


def make_disk(ec2: Any, cluster_name: str, zone: str, gibibytes: int) -> str:
    """The id of a new, encrypted volume in ``zone``."""
    tags = [{"Key": CLUSTER_TAG, "Value": cluster_name}, {"Key": "Name", "Value": _name(cluster_name)}]
    volume = ec2.create_volume(
        AvailabilityZone=zone,
        Size=gibibytes,
        VolumeType="gp3",
        Encrypted=True,
        TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
    )
    return volume["VolumeId"]


def attach_disk(ec2: Any, volume: str, instance: str) -> None:
    """Attach it, once the instance runs and the head before has let go of it. Raises what botocore raises."""
    ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig=_WAIT)
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig=_WAIT)
    ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device=DEVICE)


def _name(cluster_name: str) -> str:
    return f"{cluster_name}-data"
