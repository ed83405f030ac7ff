"""A retraining job: whether there is new data, what is trained, the comparison with the champion, the decision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np
from rich.console import Console

from fvae.config import ConfigError
from fvae.data.images import Dataset, image_source
from fvae.evaluation import NonFiniteError
from fvae.flops import parameters_and_flops
from fvae.model import Model
from pipelines.data.datasets import describe
from pipelines.evaluation.model_lookup import open_model, weights_digest
from pipelines.retraining.champion_rule import compare
from pipelines.retraining.decision import Decision, Outcome
from pipelines.retraining.holdout_reuse import (
    Look,
    Looks,
    explained_by_looking,
    image_hashes,
    in_part,
    require_parts,
    sketch,
)
from pipelines.retraining.paired_scores import SPLIT, Bits, Scorer
from pipelines.retraining.promotion import Promoter
from pipelines.retraining.recipe import Champion, recipe, require_fit, too_large
from pipelines.retraining.registered_model import CHALLENGER, ROLLED_BACK, RegisteredModel, Version
from pipelines.retraining.sanity import problems
from pipelines.retraining.search import NothingFound
from pipelines.retraining.settings import RetrainSettings
from pipelines.retraining.training import Trained, train
from pipelines.storage import Storage, StorageError
from pipelines.storage.json_objects import address
from pipelines.storage.lease import Lease
from pipelines.training.model_files import MODEL
from pipelines.training.worker_warnings import Notices

LOOKED_AT = 64
"""Images that the sanity checks use."""
DECISIONS = 3
"""How often the job decides again because the champion was changed by another process meanwhile."""


def champion_of(registered: RegisteredModel) -> Champion | None:
    """The champion and its configuration; None where there is none."""
    version = registered.champion()
    return None if version is None else Champion(version, registered.configs(version))


def nothing_new(
    settings: RetrainSettings, registered: RegisteredModel, dataset: Dataset, champion: Champion | None
) -> tuple[str, bool] | None:
    """Why nothing is to be trained, and whether that is because it failed; None where there is something new."""
    if settings.again:
        return None
    content_hash = dataset.content_hash()
    if champion is not None and champion.content_hash == content_hash:
        return f"version {champion.version.number} was trained on these very images (hash {content_hash})", False
    past = registered.settled(content_hash)
    if past is None or (champion is None and past["decision"] != "failed"):
        return None
    what = f"these very images (hash {content_hash}) were decided on: {past['decision']}, {past['reason']}"
    return f"{what}; --again goes through it again", past["decision"] == "failed"


class Job:
    """A retraining. Raises ``StorageError`` where a store, the workers or MLflow fail; the next start resumes it."""

    def __init__(
        self,
        settings: RetrainSettings,
        dataset: Dataset,
        registered: RegisteredModel,
        promoter: Promoter,
        place: Storage,
        lease: Lease,
        console: Console,
        notices: Notices,
    ) -> None:
        self._settings, self._dataset, self._registered, self._promoter = settings, dataset, registered, promoter
        self._place, self._lease, self._console, self._notices = place, lease, console, notices
        self._looks = Looks(place, lease.check)
        self._scorer = Scorer(settings, dataset, place.child("readings"), console)
        self._began = time.time()
        self._trained: Trained | None = None
        self._source = ""

    def carry_out(self) -> tuple[Decision, str]:
        """Train, decide and carry out the decision. Returns the decision and its run's id."""
        new = True
        for _ in range(DECISIONS):
            champion = champion_of(self._registered)
            decision = self._nothing_new(champion) if new else None
            new = False
            decision = decision or self._decide(champion)
            run_id = self._promoter.carry_out(decision, self._lease.check)
            if run_id is not None:
                self._clean_up()
                return decision, run_id
            self._notices.say("Another process has changed the champion meanwhile: deciding again, against the new one")
        raise StorageError(
            f"{self._registered.name}: the champion was changed {DECISIONS} times while this was decided, and is left "
            "unchanged; start the same command again"
        )

    def _nothing_new(self, champion: Champion | None) -> Decision | None:
        found = nothing_new(self._settings, self._registered, self._dataset, champion)
        if found is None:
            return None
        why, failed = found
        return self._decision(champion, "unchanged", [why], about={"failed_before": "True"} if failed else {})

    def _decide(self, champion: Champion | None) -> Decision:
        if champion is not None and champion.configs is not None:
            what = f"version {champion.version.number} of {self._settings.model}"
            require_fit(self._settings, self._dataset, champion.configs.model, what)
        if self._trained is None:
            if self._settings.rotate > 1:
                require_parts(self._hashes, self._settings.rotate)
            try:
                configs, self._source = recipe(self._settings, self._dataset, champion, self._notices.say)
            except NothingFound as nothing:
                return self._decision(champion, "kept", [str(nothing)])
            if problem := too_large(self._settings, configs.model):
                return self._decision(champion, "kept", [f"{line}: not trained" for line in problem])
            self._say(f"Training {self._source}")
            self._trained = train(self._settings, self._dataset, configs, self._console, self._notices)
            self._lease.check()
        trained = self._trained
        if trained.result.status == "failed":
            return self._decision(champion, "failed", [f"the training failed: {trained.result.reason}"], settled=True)
        assert trained.version is not None
        version = self._registered.version(trained.version)
        if version is None:
            raise StorageError(f"{self._registered.name}: version {trained.version}, just trained, was deleted")
        self._registered.set_alias(CHALLENGER, version.number)
        return self._against(champion, version, trained)

    def _against(self, champion: Champion | None, version: Version, trained: Trained) -> Decision:
        """The decision between a trained model and the champion."""
        settings, first = self._settings, self._settings.k[0]
        model = self._registered.load(version)
        parameters, flops = parameters_and_flops(model.config)
        figures: dict[str, float] = {"size/params": parameters, "size/flops_per_image": flops}

        def decided(outcome: Outcome, *reasons: str) -> Decision:
            return self._decision(champion, outcome, reasons, version=version, settled=True, figures=figures)

        if wrong := self._unsound(model, trained):
            return decided("failed", *(f"version {version.number} is unsound: {line}" for line in wrong))
        try:
            challenger = self._scorer.score(model, f"challenger, version {version.number}")
        except NonFiniteError as error:
            return decided("failed", f"version {version.number} is unsound: {error}")
        figures |= {f"challenger/{_figure(k)}": challenger.mean(k) for k in settings.k}
        against = too_large(settings, model.config)
        if ROLLED_BACK in version.tags:
            against.append(f"version {version.number} was rolled back: {version.tags[ROLLED_BACK]}")
        if champion is None:
            first_of_all = f"the first model: {challenger.mean(first):.4f} bits/dim, and sound"
            return decided("kept", *against) if against else decided("promoted", first_of_all)
        if champion.version.number == version.number:
            return decided("kept", f"version {version.number} is the champion already")
        try:
            theirs = self._scorer.score(
                self._registered.load(champion.version), f"champion, version {champion.version.number}"
            )
        except NonFiniteError as error:
            why = f"version {champion.version.number}, the champion, fails on these images: {error}"
            return decided("kept", *against) if against else decided("promoted", why)
        pair = f"{weights_digest(model)[:16]}-{champion.version.number}"
        better, why = self._compared(challenger, theirs, figures, pair)
        if not better:
            against.insert(0, why)
        return decided("kept", *against) if against else decided("promoted", why)

    @cached_property
    def _hashes(self) -> np.ndarray:
        return image_hashes(self._dataset.images(SPLIT))

    def _compared(self, challenger: Bits, champion: Bits, figures: dict[str, float], pair: str) -> tuple[bool, str]:
        """Whether the challenger is better, and the reason; adds to ``figures``, and records the look."""
        settings = self._settings
        part = self._looks.turn(pair, settings.rotate)
        chosen = in_part(self._hashes, part, settings.rotate)
        challenger, champion = (
            Bits({k: bits[:, chosen] for k, bits in each.by_k.items()}) for each in (challenger, champion)
        )
        looks = self._looks.add(
            Look(
                pair=pair,
                time=time.time(),
                part=part,
                parts=settings.rotate,
                images=int(chosen.sum()),
                sketch=sketch(self._hashes[chosen]),
            )
        )
        figures["test/looks"] = looks
        for k in settings.k:
            found = compare(challenger.by_k[k], champion.by_k[k])
            suffix = "" if k == 1 else f"_iwae{k}"
            figures[f"champion/{_figure(k)}"] = found.champion
            figures[f"difference/bpd{suffix}"] = found.difference
            figures[f"difference/low{suffix}"], figures[f"difference/high{suffix}"] = found.low, found.high
            figures[f"difference/standard_error_images{suffix}"] = found.standard_error_images
            if found.standard_error_noise is not None:
                figures[f"difference/standard_error_noise{suffix}"] = found.standard_error_noise
        found = compare(challenger.by_k[settings.k[0]], champion.by_k[settings.k[0]])
        better = found.better_by(settings.least_gain)
        gain = f" by {settings.least_gain:g}" if settings.least_gain else ""
        if warning := explained_by_looking(found, looks, settings.least_gain):
            self._notices.say(f"warning: {warning}")
        of_part = f" of part {part + 1} of {settings.rotate}" if settings.rotate > 1 else ""
        return better, (
            f"{found.challenger:.4f} bits/dim against the champion's {found.champion:.4f} on {found.images:,} test "
            f"images{of_part} (k = {settings.k[0]}): {found.difference:+.4f}, 95% from {found.low:+.4f} to "
            f"{found.high:+.4f}, is {'better' if better else 'not better'}{gain}"
        )

    def _unsound(self, model: Model, trained: Trained) -> list[str]:
        kept = open_model(address(trained.run, MODEL), self._settings.storage)
        if weights_digest(model) != weights_digest(kept.float()):
            return ["what MLflow has is not what was trained"]
        images = image_source(self._dataset.images(SPLIT)).first(LOOKED_AT).cpu()
        return problems(model, images, self._settings.seed)

    def _decision(
        self,
        champion: Champion | None,
        outcome: Outcome,
        reasons: Iterable[str],
        *,
        version: Version | None = None,
        settled: bool = False,
        figures: dict[str, float] | None = None,
        about: dict[str, str] | None = None,
    ) -> Decision:
        before = None if champion is None else champion.version.number
        figures = dict(figures or {}) | {"seconds": time.time() - self._began}
        tags = {"split": SPLIT, "k": " ".join(map(str, self._settings.k)), "seed": str(self._settings.seed)}
        tags["noise_seeds"] = str(self._settings.noise_seeds)
        if "difference/low" in figures:
            tags["interval"] = f"{figures['difference/low']:+.5f} to {figures['difference/high']:+.5f}"
        if champion is not None and champion.content_hash is not None:
            tags["champion.data.hash"] = champion.content_hash
        if self._trained is not None:
            tags |= {"config": self._source, "training": self._trained.name, "training.run": self._trained.run_id or ""}
        return Decision(
            model=self._settings.model,
            outcome=outcome,
            reasons=tuple(reasons),
            before=before,
            after=version.number if outcome == "promoted" and version is not None else before,
            challenger=None if version is None else version.number,
            dataset=describe(self._dataset),
            settled=settled,
            figures=figures,
            about=tags | (about or {}),
            began=self._began,
        )

    def _clean_up(self) -> None:
        """Remove what only an interrupted job would need. A failure to do so is reported, and does not end the job."""
        steps: list[Callable[[], None]] = [lambda: self._place.child("readings").delete_prefix("")]
        if self._trained is not None:
            steps.append(self._trained.clean_up)
        for step in steps:
            try:
                step()
            except (StorageError, ConfigError) as error:
                self._notices.say(f"not removed: {error}")

    def _say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def _figure(k: int) -> str:
    return "test_bpd" if k == 1 else f"test_bpd_iwae{k}"
