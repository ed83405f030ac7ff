"""System metrics of the workers' machines during an epoch, under the names that MLflow shows."""

from __future__ import annotations

import resource
import sys
import time

import torch

from fvae.workers import Workers


class WorkerFigures:
    """Measures each worker from one call to the next."""

    def __init__(self, workers: Workers, device: torch.device) -> None:
        self.workers, self.device = workers, device
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def since_last(self) -> dict[str, float]:
        """Called by every worker; every one gets the same: memory of the worker with most, CPU use of their mean."""
        wall, cpu = time.monotonic(), time.process_time()
        used = 100 * (cpu - self._cpu) / max(wall - self._wall, 1e-9)
        self._wall, self._cpu = wall, cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        on_gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        table = torch.zeros(self.workers.count, 3, dtype=torch.float64, device=self.device)
        table[self.workers.rank] = torch.tensor([used, peak / 2**20, on_gpu / 2**20], dtype=torch.float64)
        table = self.workers.all_reduce(table).cpu()  # a row per worker
        figures = {
            "system/workers": float(self.workers.count),
            "system/cpu_utilization_percentage": float(table[:, 0].mean()),
            "system/peak_memory_megabytes": float(table[:, 1].max()),
        }
        if self.device.type == "cuda":
            figures["system/gpu_peak_memory_megabytes"] = float(table[:, 2].max())
        return figures
