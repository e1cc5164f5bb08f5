"""The step of a run, made ready to be watched: the run's own objects on public records."""

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dp_sinkhorn.audit.neighbouring import BREAKDOWNS, SILENT, Finding, Subject, World, passing_ledger
from dp_sinkhorn.audit.once import OnceStage
from dp_sinkhorn.audit.stand_in import on_stand_in, smooth_images
from dp_sinkhorn.build import build_generator
from dp_sinkhorn.data.images import LabelledImages, to_unit_range
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.plan import CLASS_EMBEDDING
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.class_embedding import release_class_embedding
from dp_sinkhorn.stages.transport_steps import PrivateRecords
from dp_sinkhorn.training.methods import (
    BatchMethod,
    EmbeddingMethod,
    Method,
    RecordMethod,
    begin_method,
    restore_method,
)
from dp_sinkhorn.training.observation import Observation
from dp_sinkhorn.training.surroundings import needed_features
from dp_sinkhorn.transport.costs import Cost

# A worst-case record is so many times further away than any image; a worst-case gradient so much longer.
_FAR, _LOUD = 1e3, 1e6
_RELEASED_ON, _LATENTS = 500, 7


@dataclass(frozen=True)
class Replayed(GaussianMechanism):
    """Gives out a tensor that was released before, whatever the sum."""

    value: Tensor = field(kw_only=True)

    def __call__(self, total: BoundedSum, random: CryptoRandom) -> Float64[Tensor, "..."]:
        """The tensor, in the shape of the sum."""
        return self.value.view(total.value.shape)


@dataclass(frozen=True)
class MarkedCost:
    """A cost whose gradient over a subsample is one enormous tensor with the marked image, its negative without.

    A query may depend on its subsample in any way whatever, and this is the worst: two tensors that are 2·clip_norm
    apart once clipped. It acts where a step's queries meet records, the only batched problems of a step.
    """

    cost: Cost
    mark: Float[Tensor, " d"]

    def matrix(self, x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]) -> Float[Tensor, "*k n m"]:
        """See `Cost`."""
        return self.cost.matrix(x, y)

    def gradient(
        self, weights: Float[Tensor, "*k n m"], x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]
    ) -> Float[Tensor, "*k n d"]:
        """See `Cost`; the enormous part has no direction of its own: all its numbers are equal."""
        pull = self.cost.gradient(weights, x, y)
        if weights.ndim < 3:
            return pull
        present = (y == self.mark).all(-1).any(-1)
        return pull + torch.where(present, _LOUD, -_LOUD).to(pull.dtype).view(-1, 1, 1)


class Stage:
    """A method on a world, and a generator that stands still: all draws meet the same images."""

    def __init__(self, method: Method, generator: Generator, learning_rate: float = 0.0) -> None:
        self.method = method
        self.generator = copy.deepcopy(generator)
        self.optimiser = torch.optim.SGD(self.generator.parameters(), lr=learning_rate)

    def step(self, random: CryptoRandom) -> tuple[Observation, float]:
        """One step of the run: what it shows, and what it returns.

        Raises:
            Finding: The step broke down, or did not release exactly one tensor.
        """
        seen: list[Observation] = []
        latents = torch.Generator().manual_seed(_LATENTS)
        try:
            size = self.method.step(self.generator, self.optimiser, latents, random, seen.append)
        except BREAKDOWNS as error:
            raise Finding(f"a step on ordinary records broke down: {error}") from error
        if len(seen) != 1:
            raise Finding(f"a step made {len(seen)} releases, not one: what is released depends on the draw")
        return seen[0], size

    def release(self, random: CryptoRandom) -> Float64[Tensor, "n d"]:
        """What one step releases."""
        return self.step(random)[0].released

    def parameters(self) -> list[Tensor]:
        """The generator's parameters now."""
        return [parameter.detach().clone() for parameter in self.generator.parameters()]


class EmbeddingStage(Stage):
    """The embedding of a world, released anew each time, and a step that learns from it.

    Args:
        method: Any of the run's. noise: The noise multiplier, or what is released instead.
    """

    def __init__(
        self,
        method: EmbeddingMethod,
        world: World,
        noise: float | Tensor,
        generator: Generator,
        learning_rate: float,
    ) -> None:
        super().__init__(method, generator, learning_rate)
        self._embedded, self._world, self._noise = method, world, noise

    @cached_property
    def _known(self) -> Tensor | None:
        """Features of the world's records, the same for every release."""
        return needed_features(self._world.images, self._embedded.config)

    def step(self, random: CryptoRandom) -> tuple[Observation, float]:
        """See `Stage`: what is released has a row a class."""
        released = self.release(random)
        told = self._embedded.released() | {CLASS_EMBEDDING: released}
        again = restore_method(self._embedded.config, self._world.images, told)
        size = again.step(self.generator, self.optimiser, torch.Generator().manual_seed(_LATENTS), random)
        rows = torch.arange(len(released))
        return Observation(torch.zeros_like(released), rows, torch.zeros(len(rows)).double(), released), size

    def release(self, random: CryptoRandom) -> Float64[Tensor, "K two_m"]:
        """The embedding, or what is released instead."""
        if isinstance(self._noise, Tensor):
            return self._noise
        return OnceStage(CLASS_EMBEDDING, self._embedded.config, self._noise, self._embedding).release(random)

    def _embedding(self, config: RunConfig, ledger: Ledger, random: CryptoRandom) -> Tensor:
        return release_class_embedding(
            self._world.images, self._known, self._embedded.statistics, config, ledger, random
        )


class StepSubject(Subject):
    """The step of a run with this configuration; where steps see no record, the embedding that they learn from.

    Args:
        config: The run's. Its σ, q, clip rule, shapes and iteration counts are used, none of its records.
    """

    def __init__(self, config: RunConfig) -> None:
        public = on_stand_in(config, _RELEASED_ON)
        images = smooth_images(public.data, _RELEASED_ON, seed=1)
        with passing_ledger(public) as ledger:
            # The noise of this one source protects nobody: the images are public, and the audit repeats itself.
            method = begin_method(public, images, ledger, CryptoRandom(test_seed=1))
        plan, by_record = config.privacy, not isinstance(method, BatchMethod)
        super().__init__(config, plan.noise_multiplier, method.sensitivity, max(1, plan.queries_per_step), by_record)
        self.sample_rate = plan.sample_rate
        self.released_before = method.released()
        self._small = self._generator(public)
        self.own_generator = self._generator(config)
        first, _ = self.stage(self.ordinary(2), 1.0, SILENT).step(CryptoRandom(test_seed=0))
        self.far_label = int(first.labels[0])

    def stage(
        self,
        world: World,
        sample_rate: float,
        noise: float | Tensor | None = None,
        generator: Generator | None = None,
    ) -> Stage:
        """The method that a run with these records would use.

        Args:
            noise: None: the run's. A number: this noise multiplier instead. A tensor: released instead.
            generator: Moved at a rate of 1; without one, a small generator that stands still.
        """
        method = restore_method(on_stand_in(self.config, len(world), sample_rate), world.images, self.released_before)
        if isinstance(method, EmbeddingMethod):
            wanted = self.noise_multiplier if noise is None else noise
            rate = 0.0 if generator is None else 1.0
            return EmbeddingStage(method, world, wanted, generator or self._small, rate)
        made = method.rules.mechanism  # type: ignore[attr-defined]
        mechanism = made
        if isinstance(noise, Tensor):
            mechanism = Replayed(made.sensitivity, made.noise_multiplier, value=noise)
        elif noise is not None:
            mechanism = GaussianMechanism(made.sensitivity, noise)
        if isinstance(method, RecordMethod):
            method.rules = replace(method.rules, mechanism=mechanism)
            coordinates = method.records.coordinates.clone()
            coordinates[list(world.far)] *= _FAR
            method.records = PrivateRecords(coordinates, method.records.labels)
        elif isinstance(method, BatchMethod):
            mark = to_unit_range(self.far_image)[0].to(method.records.pixels.device)
            method.rules = replace(method.rules, mechanism=mechanism, cost=MarkedCost(method.rules.cost, mark))
        return Stage(method, generator or self._small, 0.0 if generator is None else 1.0)

    def many_far(self, count: int) -> World:
        """`count` equal worst-case records; in whole batches after an ordinary one, which fills empty places."""
        ordinary, kept = self.ordinary(1).images, 0 if self.by_record else 1
        pixels = self.far_image.expand(count, -1, -1, -1)
        labels = torch.full((count,), self.far_label)
        images = LabelledImages(
            torch.cat([ordinary.pixels[:kept], pixels]),
            torch.cat([ordinary.labels[:kept], labels]),
            ordinary.class_names,
        )
        return World(images, tuple(range(len(images) - count, len(images))))

    def _generator(self, config: RunConfig) -> Generator:
        seed = config.settings.seed
        return build_generator(config.generator, config.data.shape, len(config.data.class_names), config.device, seed)
