"""Make the cluster's roles, once, as an administrator of the AWS account.

    python -m pipelines.cluster.roles cluster.yaml            # make them, or bring them up to date
    python -m pipelines.cluster.roles cluster.yaml --print    # only show the policies, filled in

``ray up`` then needs no rights over IAM but to read these roles and to pass them on.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import boto3
import tyro
from botocore.exceptions import BotoCoreError, ClientError

from fvae.config import ConfigError
from pipelines.cli.command_line import run
from pipelines.cluster.aws_roles import ROLES, make_roles, role_policy, trust_policy
from pipelines.cluster.settings import ClusterSettings, read_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolesSettings:
    """Which cluster's roles, and whether to make them."""

    cluster_file: tyro.conf.Positional[Path] = Path("cluster.yaml")
    """The file for ``ray up``."""
    print_only: Annotated[bool, tyro.conf.arg(name="print")] = False
    """Show the filled-in policies as JSON and change nothing."""


def main(settings: RolesSettings) -> int:
    """Make the roles and print what was done. Raises ``ConfigError`` for a file or an account that cannot be used."""
    config = read_config(settings.cluster_file)
    cluster = ClusterSettings.from_config(config)
    try:
        session = boto3.Session(region_name=cluster.region)
        identity = session.client("sts").get_caller_identity()
        account, partition = identity["Account"], identity["Arn"].split(":")[1]
        if settings.print_only:
            policies = {role: role_policy(role, config, account, partition) for role in ROLES}
            print(json.dumps({"trust": trust_policy(), **policies}, indent=2))
            return 0
        done = make_roles(session.client("iam"), config, account, partition)
    except (BotoCoreError, ClientError) as error:
        raise ConfigError(f"AWS: {error}") from error
    for line in done or ["nothing to do: the roles are as the file says"]:
        print(line)
    return 0


if __name__ == "__main__":
    run(main, RolesSettings)
