"""A decision about a registered model: JSON while it is carried out, then a tagged MLflow run."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import uuid
from typing import Any, Literal

from fvae.config import from_fields
from fvae.files import parse_json

Outcome = Literal["promoted", "kept", "unchanged", "failed", "rolled-back"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """The outcome of a job, and its reasons."""

    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    """Unique; identifies the decision's run in MLflow."""
    model: str
    """The registered model."""
    outcome: Outcome
    reasons: tuple[str, ...]
    """Why, a sentence each."""
    before: int | None
    """The champion's version when this was decided. It holds only as long as that is the champion."""
    after: int | None
    """The champion's version from then on."""
    challenger: int | None = None
    """The version that was compared, where there was one."""
    dataset: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The data set, as :func:`pipelines.data.datasets.describe` returns it; for a rollback, its known parts."""
    settled: bool = False
    """Whether nothing is trained again as long as the data set stays the same."""
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    """MLflow's metrics."""
    about: dict[str, str] = dataclasses.field(default_factory=dict)
    """More tags: what the figures were measured on and how, and the training's run."""
    began: float = dataclasses.field(default_factory=time.time)
    """When the job began, seconds since 1970."""

    @property
    def moves(self) -> bool:
        """Whether another version becomes the champion."""
        return self.after != self.before

    @property
    def status(self) -> int:
        """The job's exit status."""
        return 1 if self.outcome == "failed" else 0

    def text(self) -> str:
        """One line: the outcome and the reasons."""
        return f"{self.headline()}: {'; '.join(self.reasons)}"

    def headline(self) -> str:
        """The outcome, in a few words."""
        champion = "there is no champion" if self.after is None else f"version {self.after} stays the champion"
        return {
            "promoted": f"promoted: version {self.after} is the champion"
            + (f", in place of version {self.before}" if self.before else ""),
            "kept": f"kept: {champion}",
            "unchanged": f"unchanged: {champion}",
            "failed": f"failed: {champion}",
            "rolled-back": f"rolled back: version {self.after} is the champion, in place of version {self.before}",
        }[self.outcome]

    def tags(self) -> dict[str, str]:
        """Tags of the decision's run."""
        texts = {
            "decision": self.outcome,
            "reason": "; ".join(self.reasons),
            "model": self.model,
            "champion.before": _version(self.before),
            "champion.after": _version(self.after),
            "challenger": _version(self.challenger),
            "settled": str(self.settled),
            **{f"data.{name}": str(self.dataset[name]) for name in ("name", "hash") if name in self.dataset},
            **{f"data.{name}": str(self.dataset[name]) for name in ("train", "val", "test") if name in self.dataset},
            **self.about,
        }
        return {name: text[:4000] for name, text in texts.items()}

    def metrics(self) -> dict[str, float]:
        """Metrics of the decision's run: the figures that are finite."""
        return {name: float(value) for name, value in self.figures.items() if math.isfinite(value)}

    def to_json(self) -> bytes:
        """The decision as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Decision:
        """The inverse of :meth:`to_json`. Raises ``ConfigError`` that names ``where`` for anything else."""
        values = parse_json(content, where)
        return from_fields(cls, values | {"reasons": tuple(values.get("reasons", ()))})


def _version(number: int | None) -> str:
    return "none" if number is None else str(number)
