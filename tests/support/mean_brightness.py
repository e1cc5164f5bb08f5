"""An example of a new stage: it releases the mean brightness of all images and shifts the generator to it."""

import copy
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import ROUNDING_ROOM, BoundedSum, added
from dp_sinkhorn.privacy.curator import Curator, Draw
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.stages.base import SharingStage, StageFacts, State

BRIGHTEST = 1.0


class MeanBrightnessFacts(StageFacts):
    brightness: Annotated[float, Field(allow_inf_nan=False)]


class MeanBrightness(SharingStage):
    name = "mean_brightness"
    facts_type = MeanBrightnessFacts
    charged = (name,)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        if self.name not in state.learnt:
            state.learnt[self.name] = self.ask(curator, state, 1.0, summed_brightness)
            yield

    def finish(self, state: State) -> None:
        """Move the last bias until the generator's images are as bright, by bisection."""
        wanted, low, high = self.facts(state).brightness, -4.0, 4.0
        for _ in range(12):
            middle = 0.5 * (low + high)
            moved = shifted(state.finished, middle)
            own = torch.cat(list(moved.samples_by_class(50, state.config.settings.seed))).mean()
            low, high = (middle, high) if own < wanted else (low, middle)
        state.finished = shifted(state.finished, 0.5 * (low + high))

    def facts(self, state: State) -> MeanBrightnessFacts:
        mean = float(state.learnt[self.name]) / state.plan.num_records
        return MeanBrightnessFacts(brightness=min(BRIGHTEST, max(-BRIGHTEST, mean)))

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        yield from super().problems(facts, card)
        if abs(found := self.facts_of(facts, MeanBrightnessFacts).brightness) > BRIGHTEST:
            yield f"the card claims a mean brightness of {found:g}; pixels lie in [-1, 1]"

    def describe(self, facts: StageFacts) -> dict[str, str]:
        return {"mean brightness": f"{self.facts_of(facts, MeanBrightnessFacts).brightness:.3f}"}


@torch.no_grad()
def shifted(generator: Generator, by: float) -> Generator:
    moved = copy.deepcopy(generator)
    list(moved.parameters())[-1].add_(by)
    return moved


def summed_brightness(draw: Draw) -> BoundedSum:
    """The sum of the mean pixels of all images, in [-1, 1]."""
    return added(
        BoundedSum((1.0 - ROUNDING_ROOM) * chunk.double().mean(1).sum().view(1), 1.0)
        for chunk in draw.images.float_chunks()
    )
