"""What the cluster of a cluster file costs: an hour and a night without work, and an hour with every machine up.

    python benchmarks/cluster/cost.py cluster.yaml --output benchmarks/results/cluster_cost.txt

On-demand list prices of us-east-1 for Linux, November 2026; other regions are up to a third dearer. Spot machines cost
less, by zone and hour, so "full" is a ceiling. Traffic within a zone, to S3 in the region, and what lies in S3 are not
in it: S3 costs 0.023 a GB and month, traffic between zones 0.01 a GB each way, to the internet 0.09.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from fvae.config import require
from pipelines.cli.command_line import run
from pipelines.cluster.settings import read_config

HOURLY = {
    "t3.large": 0.0832,
    "m6i.large": 0.096,
    "c6i.4xlarge": 0.68,
    "g5.xlarge": 1.006,
    "g5.12xlarge": 5.672,
    "g6.xlarge": 0.8048,
    "g6.12xlarge": 4.6016,
}
"""US dollars for an hour of an instance."""
GP3_MONTH = 0.08
"""US dollars for a gibibyte of gp3 disk and month."""
MONTH_HOURS = 730
ADDRESS_HOUR = 0.005
"""US dollars for an hour of a public IPv4 address."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostSettings:
    """Of which cluster, and how long a night is."""

    cluster_file: tyro.conf.Positional[Path] = Path("cluster.yaml")
    """The file for ``ray up``."""
    night: Annotated[float, tyro.conf.arg(name="night-hours")] = 12.0
    """Hours without work."""
    output: Path | None = None
    """Where to write the table besides; ``None``: nowhere."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """US dollars."""

    head_hour: float
    """The head's instance, disk and address."""
    data_hour: float
    """The data disk, which is also there when the cluster is down."""
    worker_hours: dict[str, tuple[int, float]]
    """By worker type: the most machines, and what one costs an hour on demand."""

    @property
    def idle_hour(self) -> float:
        """With no worker up."""
        return self.head_hour + self.data_hour

    @property
    def full_hour(self) -> float:
        """With every worker up, on demand."""
        return self.idle_hour + sum(most * each for most, each in self.worker_hours.values())

    @property
    def down_month(self) -> float:
        """After ``ray down``."""
        return self.data_hour * MONTH_HOURS


def machine_hour(node: Mapping[str, Any]) -> float:
    """US dollars for an hour of one machine with its disks and address. Raises ``ConfigError`` without its price."""
    kind = node["InstanceType"]
    require(kind in HOURLY, f"InstanceType={kind}: its price is not in benchmarks/cluster/cost.py; add it to HOURLY")
    gibibytes = sum(disk["Ebs"]["VolumeSize"] for disk in node["BlockDeviceMappings"])
    return HOURLY[kind] + ADDRESS_HOUR + gibibytes * GP3_MONTH / MONTH_HOURS


def cost_of(config: Mapping[str, Any]) -> Cost:
    """Of a cluster file's contents. Raises ``ConfigError`` for an instance type without a price."""
    types, head = config["available_node_types"], config["head_node_type"]
    return Cost(
        head_hour=machine_hour(types[head]["node_config"]),
        data_hour=config["provider"]["data_disk"]["gibibytes"] * GP3_MONTH / MONTH_HOURS,
        worker_hours={
            name: (one["max_workers"], machine_hour(one["node_config"])) for name, one in types.items() if name != head
        },
    )


def table(cost: Cost, night: float) -> str:
    """The costs as text."""
    lines = ["on-demand list prices of us-east-1 in US dollars, November 2026", ""]
    lines.append(f"{'':<24}{'at most':>8}{'an hour':>10}")
    lines.append(f"{'head, disk, address':<24}{1:>8}{cost.head_hour:>10.4f}")
    lines.append(f"{'data disk':<24}{1:>8}{cost.data_hour:>10.4f}")
    for name, (most, each) in cost.worker_hours.items():
        lines.append(f"{name:<24}{most:>8}{each:>10.4f}")
    lines += [
        "",
        f"idle, an hour                   {cost.idle_hour:>10.2f}",
        f"idle, a night of {night:g} hours       {cost.idle_hour * night:>10.2f}",
        f"full, an hour, all on demand    {cost.full_hour:>10.2f}",
        f"after ray down, a month         {cost.down_month:>10.2f}",
    ]
    return "\n".join(lines) + "\n"


def main(settings: CostSettings) -> int:
    """Print the table."""
    text = table(cost_of(read_config(settings.cluster_file)), settings.night)
    sys.stdout.write(text)
    if settings.output:
        settings.output.write_text(text)
    return 0


if __name__ == "__main__":
    run(main, CostSettings)
