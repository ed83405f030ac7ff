"""What EC2 instances of the cluster need: zones that offer their type, their images, and the head's data disk.

Images are given by their full, dated names, which are the same in every region. The data disk is an EBS volume of its
own, which outlives every head.
"""

from __future__ import annotations

import re
from typing import Any

from fvae.config import ConfigError, require
from pipelines.cluster.aws_network import CLUSTER_TAG

OWNERS = {"ubuntu/": "099720109477", "Deep Learning ": "amazon"}
"""The owner of the images that a name begins so. Images of other owners by the same name are ignored."""
DEVICE = "/dev/sdf"
_WAIT = {"Delay": 5, "MaxAttempts": 120}
"""Up to ten minutes for a disk that is still attached to the previous head."""


def zones_offering(ec2: Any, instance_type: str, zones: list[str]) -> list[str]:
    """Those of ``zones`` where EC2 offers the instance type. Raises ``ConfigError`` where there is none."""
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [instance_type]}]
    )
    offering = {offer["Location"] for page in pages for offer in page["InstanceTypeOfferings"]}
    left = [zone for zone in zones if zone in offering]
    require(
        bool(left),
        f"InstanceType={instance_type}: is not offered in {', '.join(zones)}"
        + (f"; it is in {', '.join(sorted(offering))}" if offering else ""),
    )
    return left


def image_id(ec2: Any, name: str) -> str:
    """The id of the image of that name in this region.

    Raises ``ConfigError`` where there is none; its message names the newest that differs in its date only.
    """
    owner = next((owner for prefix, owner in OWNERS.items() if name.startswith(prefix)), None)
    if owner is None:
        raise ConfigError(f"ImageId={name}: give an ami-… id, or a name that begins with {' or '.join(OWNERS)}")
    if found := _images(ec2, owner, name):
        return found[-1]["ImageId"]
    undated = re.sub(r"\d{8}(\.\d+)?$", "*", name)
    require(undated != name, f"ImageId={name}: must end with its date (a name without is not pinned)")
    others = _images(ec2, owner, undated)
    newest = f"; the newest there is '{others[-1]['Name']}'" if others else ""
    raise ConfigError(f"ImageId={name}: there is no such image in this region{newest}")


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
    """Attach it, once the instance runs and it is detached from the previous head. Raises what botocore raises."""
    ec2.get_waiter("instance_running").wait(InstanceIds=[instance], WaiterConfig=_WAIT)
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume], WaiterConfig=_WAIT)
    ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device=DEVICE)


def _images(ec2: Any, owner: str, name: str) -> list[dict[str, Any]]:
    filters = [{"Name": "name", "Values": [name]}, {"Name": "state", "Values": ["available"]}]
    found = ec2.describe_images(Owners=[owner], Filters=filters)["Images"]
    return sorted(found, key=lambda image: (image["CreationDate"], image["Name"]))


def _name(cluster_name: str) -> str:
    return f"{cluster_name}-data"
