"""Machine images by their full, dated names, which are the same in every region."""

from __future__ import annotations

import re
from typing import Any

from fvae.config import ConfigError, require

OWNERS = {"ubuntu/": "099720109477", "Deep Learning ": "amazon"}
"""Whose image a name means. An image of anybody else by the same name is none of ours."""


def image_id(ec2: Any, name: str) -> str:
    """The id of the image of that name in this region.

    Raises ``ConfigError`` where there is none, with the newest that differs in its date only.
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


def _images(ec2: Any, owner: str, name: str) -> list[dict[str, Any]]:
    filters = [{"Name": "name", "Values": [name]}, {"Name": "state", "Values": ["available"]}]
    found = ec2.describe_images(Owners=[owner], Filters=filters)["Images"]
    return sorted(found, key=lambda image: (image["CreationDate"], image["Name"]))
