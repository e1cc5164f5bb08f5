"""Small runs of every mode, a curator that records its queries, and states: what tests of stages share."""

import copy
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dp_sinkhorn import method
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.optimiser import Optimiser
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier
from dp_sinkhorn.privacy.curator import Curator, Draw, HeldRecords, Query, View
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import write_release
from dp_sinkhorn.settings import DataFacts, RunConfig, StageRules
from dp_sinkhorn.stages.base import Stages, State, Worst
from dp_sinkhorn.training.loop import Run
from support.mean_brightness import MeanBrightness

STAGES = Stages.of(*method.STAGES.values(), MeanBrightness(share=0.02))
MODES = ("record", "embedding", "batch")
SHAPE, NAMES, RECORDS = (1, 8, 8), ("cat", "dog"), 200
FACTS = DataFacts(source="toy", num_records=RECORDS, shape=SHAPE, class_names=NAMES)

_WIDE = {
    "target_epsilon": 1.0, "generator": "mlp", "latent_dim": 4, "width": 8, "num_steps": 5, "num_generated": 16,
    "expected_batch_size": 40,
}  # fmt: skip
_SMALL = {"class_embedding": {"num_frequencies": 40}, "principal_subspace": {"min_dimensions": 4}}
# At a tiny budget a run has all stages if the embedding is given a share.
SETTINGS: dict[str, dict[str, Any]] = {
    "record": {
        **_WIDE,
        "mode": "record",
        **_SMALL,
        "class_embedding": {"num_frequencies": 40, "budget_share": 0.1},
        "transport_steps": {"num_reference": 16},
        "fine_tuning": {"num_steps": 4, "embedding_steps": 4},
    },
    "embedding": {**_WIDE, "mode": "embedding", **_SMALL, "fine_tuning": {"num_steps": 4}},
    "batch": {**_WIDE, "mode": "batch", "batch_steps": {"queries_per_step": 3, "sinkhorn_iterations": 5}},
}


def toy(count: int = RECORDS, classes: int = 2, seed: int = 0) -> LabelledImages:
    """Class k has a bright block in its own quarter, with noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 60, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    for k in range(classes):
        pixels[labels == k, :, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 150
    names = NAMES if classes == len(NAMES) else tuple(map(str, range(classes)))
    return LabelledImages(pixels, labels, names)


def very_different(count: int = RECORDS) -> LabelledImages:
    """Nearly all of one class: stripes and black or white pixels."""
    random = torch.Generator().manual_seed(5)
    pixels = 255 * torch.randint(2, (count, *SHAPE), generator=random, dtype=torch.uint8)
    pixels[::2, :, ::2] = 255
    return LabelledImages(pixels, (torch.arange(count) < count - 3).long(), NAMES)


@cache
def config_of(mode: str) -> RunConfig:
    """A run with all stages of the mode and one more. It spends about its target."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "step_noise_multiplier", quick_noise)
        return method.resolve(method.settings_of(None, SETTINGS[mode], STAGES), FACTS, STAGES)


@dataclass(frozen=True)
class Heard:
    """A query, the records that it was asked on, and its noisy answer."""

    query: Query
    draw: Draw
    answer: Tensor


class StandInCurator(Curator):
    """Charges, sums and adds noise as usual and keeps the answer. Returns one from public records and known noise.

    So a run learns from plausible answers that do not depend on its own records.
    """

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.heard: list[Heard] = []
        self._public, self._known = HeldRecords(toy(seed=9)), CryptoRandom(test_seed=1)
        self._drawn: Draw | None = None

    def ask(self, query: Query) -> Tensor:
        answer = super().ask(query)
        assert self._drawn is not None
        self.heard.append(Heard(query, self._drawn, answer))
        held, random = self.held, self.random
        self.held, self.random = self._public, self._known
        try:
            total = query.contribute(self._draw(query))
            return GaussianMechanism(query.sensitivity, query.charge.noise_multiplier)(total, self.random)
        finally:
            self.held, self.random = held, random

    def _draw(self, query: Query) -> Draw:
        self._drawn = super()._draw(query)
        return self._drawn


@dataclass(frozen=True)
class Made:
    """A whole run and its results."""

    folder: Path
    run: Run
    state: State
    card: PrivacyCard

    @property
    def heard(self) -> list[Heard]:
        assert isinstance(self.run.curator, StandInCurator)
        return self.run.curator.heard

    def queries(self, stage: str) -> list[Heard]:
        """The first, middle and last query of each charge of a stage."""
        found: dict[str, list[Heard]] = {}
        for heard in self.heard:
            if heard.query.charge.name.partition(".")[0] == stage:
                found.setdefault(heard.query.charge.name, []).append(heard)
        return [all_[place] for all_ in found.values() for place in sorted({0, len(all_) // 2, len(all_) - 1})]


def make_run(config: RunConfig, records: LabelledImages, folder: Path) -> Made:
    """Run all stages, finish, and write the release."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "private").mkdir(parents=True)
    run = Run(config, records, folder, STAGES, StandInCurator)
    run.train()
    state = run.finish(lambda progress: None, lambda state: None)
    return Made(folder, run, state, write_release(folder / "release", state, run.ledger.charges, STAGES))


def watched(config: RunConfig, read: set[tuple[str, str]]) -> RunConfig:
    """The same run. The constants of its stages that are read are noted, by stage and name."""

    def watch(stage: str, rules: StageRules) -> StageRules:
        kind = type(rules)

        class Watched(kind):  # type: ignore[valid-type,misc]
            def __getattribute__(self, key: str) -> object:
                if key in kind.model_fields:
                    read.add((stage, key))
                return super().__getattribute__(key)

        return Watched.model_construct(**dict(rules))

    return config.model_copy(update={"rules": {name: watch(name, rules) for name, rules in config.rules.items()}})


class World(HeldRecords):
    """Records, perhaps with the worst record of a stage among them."""

    def __init__(self, images: LabelledImages, factors: Mapping[str, float], place: int | None = None) -> None:
        super().__init__(images)
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "place", place)

    def compute(self, view: View) -> Tensor:
        rows = super().compute(view).clone()
        if self.place is not None and view.name in self.factors:
            rows[self.place] *= self.factors[view.name]
        return rows

    @classmethod
    def beside(cls, images: LabelledImages, worst: Worst, place: int, label: int) -> "World":
        """The images, with the worst record inserted."""
        more = LabelledImages(
            torch.cat([images.pixels[:place], worst.pixels, images.pixels[place:]]),
            torch.cat([images.labels[:place], torch.tensor([label]), images.labels[place:]]),
            images.class_names,
        )
        return cls(more, worst.factors, place)

    def drawn(self, query: Query, index: Tensor | None = None) -> Draw:
        """A draw of all records, or of those at `index`; padded if the query pads."""
        all_ = torch.arange(len(self.images)) if index is None else index
        if query.capacity is not None:
            room = len(self.images) + 2
            padded = torch.zeros(query.charge.count, room, dtype=torch.int64)
            padded[:, : len(all_)] = all_
            return Draw(self, padded, (torch.arange(room) < len(all_)).expand(query.charge.count, -1))
        if query.charge.sample_rate == 1.0:
            assert index is None
            return Draw(self)
        return Draw(self, all_)


class MemoryLedger(Ledger):
    """Counts charges, and writes nothing."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere/ledger.jsonl"))

    def charge(self, charge: Charge) -> None:
        self.charges.append(charge)


def curator_of(config: RunConfig, held: HeldRecords | LabelledImages, seed: int = 0) -> Curator:
    """A curator of these records, or of a world with its own views, with a ledger in memory."""
    images = held if isinstance(held, LabelledImages) else held.images
    curator = Curator(images, config.plan.charges, MemoryLedger(), CryptoRandom(test_seed=seed))
    if isinstance(held, HeldRecords):
        curator.held = held
    return curator


def with_noise(config: RunConfig, name: str, noise: float, sample_rate: float | None = None) -> RunConfig:
    """The run with another noise multiplier (and sample rate) for the charge of this name, without accounting."""
    changes: dict[str, float] = {"noise_multiplier": noise}
    changes |= {} if sample_rate is None else {"sample_rate": sample_rate}
    charges: Iterable[Charge] = (
        charge.model_copy(update=changes) if charge.name == name else charge for charge in config.plan.charges
    )
    plan: dict[str, Any] = {"charges": tuple(charges)}
    if name == config.plan.learns:
        plan |= changes
    return config.model_copy(update={"plan": config.plan.model_copy(update=plan)})


def plain_descent(config: RunConfig, generator: Generator, **learnt: Tensor) -> State:
    """A state whose updates are plain gradient descent at rate 1."""
    settings = config.settings.model_copy(update={"warmup": 0.0, "schedule": "constant"})
    config = config.model_copy(update={"settings": settings, "learning_rate": 1.0})
    optimiser = Optimiser(torch.optim.SGD(generator.parameters(), lr=1.0))
    return State(config, generator, copy.deepcopy(generator), optimiser, learnt=learnt)


def quick_noise(
    target_epsilon: float, target_delta: float, sample_rate: float, count: int, charges: Iterable[Charge] = ()
) -> float:
    """About `calibration.step_noise_multiplier`, by adding up μ², for tests of rules that follow from noise."""
    left = gaussian_noise_multiplier(target_epsilon, target_delta) ** -2
    for charge in charges:
        one = charge.noise_multiplier**-2
        left -= one if charge.sample_rate == 1.0 else charge.sample_rate**2 * charge.count * math.expm1(one)
    if sample_rate == 1.0 and count == 1:
        return left**-0.5
    return math.log1p(left / (sample_rate**2 * count)) ** -0.5
