"""A trial on several workers: one process that speaks with Tune, and the workers that train together for it.

All of them live in the trial's own placement group, which is reserved whole or not at all: no two trials can each
hold a part of what the other waits for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import ray
import torch
import torch.distributed as distributed
from ray import tune
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fvae.data.images import image_source
from fvae.workers import Workers
from pipelines.training.rendezvous import MEETING, have_met
from pipelines.training.worker_warnings import keep_warnings
from tune.run.trial import TrialTraining

SharedImages = dict[str, ray.ObjectRef]
"""``train`` and ``val`` in Ray's object store, each uint8 ``[N, C, H, W]`` or a streamed source."""


class TrialCoordinator(tune.Trainable):
    """Trains the trial that its config names on the workers of its placement group, one in each bundle.

    An epoch a step, as :class:`tune.run.trial.TrialProcess` does; the workers stay for the next trial. Ray ends them
    with this process, however it ends, because it owns them.
    """

    restored: bool
    """Whether the workers have continued from the trial's checkpoint."""

    def setup(  # type: ignore[override]  # with_parameters supplies all but the config
        self, config: dict[str, Any], images: SharedImages, device: str, threads: int
    ) -> None:
        """Start the workers, each with so many torch threads, and give them the trial."""
        self.group = WorkerGroup(images, device, threads)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial, with the workers of the last where they live."""
        self._leave()
        try:
            self._begin(new_config)
        except RuntimeError:  # Tune gives a trial that fails here no second chance
            self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch on all workers: :meth:`TrialTraining.step`. Raises ``RuntimeError`` where a worker died."""
        if not self.restored:
            # The first removes a damaged checkpoint, before the others look.
            results = self.group.call("restore", ranks=[0])
            if not self.group.gave_up(results[0]):
                results += self.group.call("restore", ranks=range(1, self.group.count))
            if self.group.gave_up(results[-1]):
                return results[-1]
            if len({result["restored_step"] for result in results}) > 1:
                raise RuntimeError("the trial's workers did not find the same checkpoint")
            self.restored = True
        else:
            results = []
        step = self.group.call("step")
        warnings = [line for result in [*results, *step] for line in result.get("warnings", ())]
        return step[0] | ({"warnings": warnings} if warnings else {})

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to do: the trial's checkpoint lies in the search's own storage."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to do: the first :meth:`step` restores."""

    def cleanup(self) -> None:
        """End the workers."""
        self._leave()
        self.group.end()

    def _leave(self) -> None:
        with contextlib.suppress(RuntimeError):  # a worker died: what it would have kept is trained again
            if self.group.alive:
                self.group.call("leave")

    def _begin(self, config: dict[str, Any]) -> None:
        self.restored = False
        self.group.call("begin", config)


class TrialWorker:
    """One of a trial's workers, an actor."""

    def __init__(self, workers: Workers, images: SharedImages, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_warnings()
        self.workers, self.device = workers, device
        self.images = {split: image_source(ray.get(each)) for split, each in images.items()}
        self.training: TrialTraining | None = None

    def open_meeting(self) -> tuple[str, int]:
        """Open the place where the workers meet, at the first of them. Returns its address and port."""
        address = ray.util.get_node_ip_address()
        self.store = distributed.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=MEETING)
        return address, self.store.port

    def join(self, address: str, port: int) -> None:
        """Meet the others: ``torch.distributed``'s process group."""
        if self.workers.rank:
            self.store = distributed.TCPStore(address, port, is_master=False, timeout=MEETING)
        distributed.init_process_group(
            "nccl" if self.device == "cuda" else "gloo",
            store=self.store,
            rank=self.workers.rank,
            world_size=self.workers.count,
            timeout=MEETING,
        )
        have_met()

    def begin(self, config: dict[str, Any]) -> None:
        """Take a trial."""
        self.training = None  # its memory goes before the next one's comes
        self.training = TrialTraining(config, self.images, self.device, self.workers)

    def restore(self) -> dict[str, Any]:
        """:meth:`TrialTraining.restore` of the trial at hand."""
        assert self.training is not None
        return self.training.restore()

    def step(self) -> dict[str, Any]:
        """:meth:`TrialTraining.step` of the trial at hand."""
        assert self.training is not None
        return self.training.step()

    def leave(self) -> None:
        """:meth:`TrialTraining.leave` of the trial at hand, where there is one."""
        if self.training is not None:
            self.training.leave()


class WorkerGroup:
    """The workers in the placement group of this process: started when they are needed, ended together."""

    def __init__(self, images: SharedImages, device: str, threads: int) -> None:
        self.arguments = images, device, threads
        placement_group = ray.util.get_current_placement_group()
        assert placement_group is not None  # Tune has made one for the trial
        self.placement_group = placement_group
        self.count: int = placement_group.bundle_count
        self._actors: list[Any] = []

    def call(self, method: str, *arguments: Any, ranks: Iterable[int] | None = None) -> list[Any]:
        """What ``method`` of each worker (or of those of ``ranks``) returns, in order of rank.

        Where one fails the others may wait for it forever, so all are ended, and new ones start at the next call.
        Raises ``RuntimeError`` for one that died; the result of one that :meth:`gave_up` is all that is returned.
        """
        if not self._actors:
            self._start()
        return self._results(method, arguments, range(self.count) if ranks is None else ranks)

    @property
    def alive(self) -> bool:
        """Whether the workers have been started and none is known to have ended."""
        return bool(self._actors)

    def end(self) -> None:
        """End all workers, whatever they are doing."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _start(self) -> None:
        for rank, bundle in enumerate(self.placement_group.bundle_specs):
            place = PlacementGroupSchedulingStrategy(self.placement_group, placement_group_bundle_index=rank)
            worker = ray.remote(TrialWorker).options(
                num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), scheduling_strategy=place
            )
            workers = Workers(rank=rank, count=self.count)
            self._actors.append(worker.remote(workers, *self.arguments))
        (meeting,) = self._results("open_meeting", (), [0])
        self._results("join", meeting, range(self.count))

    def _results(self, method: str, arguments: Iterable[Any], ranks: Iterable[int]) -> list[Any]:
        waiting = {getattr(self._actors[rank], method).remote(*arguments): rank for rank in ranks}
        results: dict[int, Any] = {}
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            rank = waiting.pop(done)
            try:
                result = results[rank] = ray.get(done)
            except RayError as error:
                self.end()
                died = isinstance(error, RayActorError)
                what = "its process died" if died else str(error).strip().splitlines()[-1]
                raise RuntimeError(f"worker {rank} of {self.count}: {what}") from None
            if isinstance(result, dict) and self.gave_up(result):
                self.end()
                return [result]
        return [results[rank] for rank in sorted(results)]

    @staticmethod
    def gave_up(result: dict[str, Any]) -> bool:
        """Whether a worker's result reports that it does not go on."""
        return not result.keys().isdisjoint(("failure", "trouble"))
