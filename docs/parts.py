"""Draws docs/parts.png, the parts of a cluster: python docs/parts.py"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, GREY, LINE = "#1f2328", "#57606a", "#8c959f"
FILL = {"laptop": "#ddf4ff", "head": "#fff8c5", "worker": "#dafbe1", "store": "#fbefff", "part": "#ffffff"}


def box(axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str = "", fill: str = "part"):
    """A box with its title and what it holds; x and y are its lower left corner."""
    patch = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=FILL[fill],
        edgecolor=LINE,
        linewidth=1,
    )
    axes.add_patch(patch)
    axes.text(x + 0.15, y + height - 0.16, title, va="top", ha="left", fontsize=10, fontweight="bold", color=INK)
    if text:
        axes.text(x + 0.15, y + height - 0.46, text, va="top", ha="left", fontsize=8.6, color=GREY, linespacing=1.45)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str, at: tuple[float, float]):
    """An arrow, and what goes along it."""
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "linewidth": 1.2, "color": INK}
    axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))
    axes.text(*at, text, fontsize=8.6, color=INK, ha="center", va="center", linespacing=1.4)


def draw() -> Figure:
    """The picture."""
    figure = Figure(figsize=(10.4, 5.0), dpi=160, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 13)
    axes.set_ylim(0, 6.25)
    axes.set_axis_off()
    box(axes, 0.2, 2.0, 2.5, 3.2, "Laptop", fill="laptop")
    box(axes, 0.4, 3.75, 2.1, 0.95, "ray up cluster.yaml", "the cluster, from one file")
    box(axes, 0.4, 2.2, 2.1, 1.35, "tune/search.py", "pipelines.train\nRAY_ADDRESS=http://…\nmake search: no cluster")
    box(axes, 4.3, 1.35, 3.9, 4.7, "Head: small, trains nothing", fill="head")
    box(axes, 4.5, 4.55, 3.5, 1.05, "Ray", "jobs :8265, token authentication\nstarts and ends workers (none when idle)")
    box(
        axes,
        4.5,
        3.05,
        3.5,
        1.3,
        "scheduler",
        "pipelines.schedule: cron → pipelines.retrain\npromotes a model only if it is better\nby more than the noise",
    )
    box(
        axes,
        4.5,
        1.55,
        3.5,
        1.3,
        "MLflow server :5000",
        "password, host check\nSQLite on the head's disk, or PostgreSQL\nchampion and challenger",
    )
    box(
        axes,
        9.7,
        4.05,
        3.1,
        2.0,
        "GPU workers",
        "spot, else on demand; several zones\nRay Train, Ray Tune trials\na spot notice drains the node:\n"
        "it checkpoints first",
        fill="worker",
    )
    box(
        axes,
        9.7,
        1.35,
        3.1,
        2.0,
        "S3: one bucket",
        "data sets (Parquet shards)\nruns, checkpoints, maps\nMLflow's artifacts",
        fill="store",
    )
    box(
        axes,
        4.3,
        0.15,
        8.5,
        0.85,
        "On premises",
        "cluster.onprem.yaml: the same parts on machines reached by ssh; a shared folder or any S3 store",
    )
    arrow(axes, (2.7, 4.2), (4.3, 4.2), "ssh, one\naddress range", (3.5, 4.62))
    arrow(axes, (2.7, 2.6), (4.3, 2.6), "ssh tunnel\n:8265  :5000", (3.5, 2.98))
    arrow(axes, (8.2, 5.35), (9.7, 5.35), "trials", (8.95, 5.53))
    arrow(axes, (9.7, 4.7), (8.2, 4.7), "figures of\neach epoch", (8.95, 5.0))
    arrow(axes, (8.2, 1.9), (9.7, 1.9), "artifacts", (8.95, 2.08))
    arrow(axes, (11.25, 4.05), (11.25, 3.35), "images, checkpoints", (12.1, 3.7))
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_name("parts.png"))
