"""One stage more, as anybody may write one: the mean brightness of all images, to which the generator is shifted."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import ROUNDING_ROOM, BoundedSum, added
from dp_sinkhorn.privacy.curator import Curator, Draw
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.base import Released, SharingStage, StageFacts, State

BRIGHTEST = 1.0


class MeanBrightnessFacts(StageFacts):
    brightness: Annotated[float, Field(allow_inf_nan=False)]


class ShiftedGenerator(Generator):
    def __init__(self, generator: Generator, shift: Tensor) -> None:
        super().__init__(generator.shape, generator.num_classes, generator.latent_dim)
        self.generator, self.shift = generator, nn.Parameter(shift, requires_grad=False)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return (self.generator(latents, labels) + self.shift).clamp(-1.0, 1.0)

    @torch.no_grad()
    def sample(self, labels: Tensor, random: torch.Generator) -> Tensor:
        """Of the generator's own sample: it may reject images, which `forward` does not."""
        return (self.generator.sample(labels, random) + self.shift).clamp(-1.0, 1.0)


class MeanBrightness(SharingStage):
    name = "mean_brightness"
    facts_type = MeanBrightnessFacts
    layer = 5
    charged = (name,)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        if self.name not in state.learnt:
            state.learnt[self.name] = self.ask(curator, state, 1.0, summed_brightness)
            yield

    def finish(self, state: State) -> None:
        wanted = self.facts(state).brightness
        own = torch.cat(list(state.finished.samples_by_class(50, state.config.settings.seed))).mean()
        state.tensors[f"{self.name}.shift"] = (wanted - own).detach().view(1)

    def shapes(self, facts: StageFacts, of: Released) -> dict[str, tuple[int, ...]]:
        return {f"{self.name}.shift": (1,)}

    def planned_facts(self, config: RunConfig, dimensions: int) -> MeanBrightnessFacts:
        return MeanBrightnessFacts(brightness=0.0)

    def wrap(self, generator: Generator, facts: StageFacts, tensors: Mapping[str, Tensor]) -> Generator:
        return ShiftedGenerator(generator, tensors[f"{self.name}.shift"])

    def facts(self, state: State) -> MeanBrightnessFacts:
        mean = float(state.learnt[self.name]) / state.plan.num_records
        return MeanBrightnessFacts(brightness=min(BRIGHTEST, max(-BRIGHTEST, mean)))

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        yield from super().problems(facts, card)
        if abs(found := self.facts_of(facts, MeanBrightnessFacts).brightness) > BRIGHTEST:
            yield f"the card claims a mean brightness of {found:g}; pixels lie in [-1, 1]"

    def describe(self, facts: StageFacts) -> dict[str, str]:
        return {"mean brightness": f"{self.facts_of(facts, MeanBrightnessFacts).brightness:.3f}"}


def summed_brightness(draw: Draw) -> BoundedSum:
    """Each image's mean pixel, in [-1, 1], summed."""
    return added(
        BoundedSum((1.0 - ROUNDING_ROOM) * chunk.double().mean(1).sum().view(1), 1.0)
        for chunk in draw.images.float_chunks()
    )
