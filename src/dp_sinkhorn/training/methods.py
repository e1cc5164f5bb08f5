"""How a run turns records into updates: record by record, a whole batch at a time, or from features released once."""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.io.safe_read import listed
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.plan import CLASS_COUNTS, CLASS_EMBEDDING, CLASS_FEATURES, CLASS_MOMENTS, CLASSIFIER
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import UNIT_SENSITIVITY
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.settings import BatchRules, EmbeddingRules, RecordRules, RunConfig
from dp_sinkhorn.stages.batch_steps import BatchStepRules, PixelRecords, batch_step
from dp_sinkhorn.stages.class_embedding import embedding_rules, embedding_step, release_class_embedding
from dp_sinkhorn.stages.embedding_steps import matched
from dp_sinkhorn.stages.principal_subspace import (
    ReleasedStatistics,
    exact_coordinates,
    release_class_counts,
    release_statistics,
)
from dp_sinkhorn.stages.transport_steps import PrivateRecords, StepRules, training_step
from dp_sinkhorn.training.observation import Observer, unobserved
from dp_sinkhorn.training.optimiser import Updater
from dp_sinkhorn.training.private_figures import Figures, batch_figures, record_figures
from dp_sinkhorn.training.surroundings import needed_features, release_surroundings, surroundings
from dp_sinkhorn.transport.costs import MixedCost
from dp_sinkhorn.transport.sinkhorn import Sinkhorn

_SHOWN = 5  # class names in a warning
_DOUBTFUL = 3.0  # standard deviations of its noise: by chance a count of no records is above once in 700 times


@runtime_checkable
class Method(Protocol):
    """A way to sanitise. Everything but the records it holds is a function of released tensors and public facts."""

    clip_norm: float
    sensitivity: float
    class_shares: tuple[float, ...]
    # What whoever gets the release should mind: public facts, a line each.
    warnings: tuple[str, ...]

    def finished(self, generator: Generator, progress: Callable[[int], None]) -> Generator:
        """The generator that is handed out, made of the trained one and of what was released: post-processing.

        Args:
            progress: Called with the steps that were taken for it.

        Raises:
            FloatingPointError: Its images are not finite.
        """
        ...

    def around(self, generator: Generator) -> dict[str, Tensor]:
        """What a release holds beside the finished generator's weights: post-processing of what was released."""
        ...

    def released(self) -> dict[str, Tensor]:
        """What was released before the first step: it goes into the checkpoint, and `restore_method` takes it."""
        ...

    def step(
        self,
        generator: Generator,
        optimiser: Updater,
        latents: torch.Generator,
        random: CryptoRandom,
        observe: Observer = unobserved,
    ) -> float:
        """One update, already charged; `observe` is shown its public side. Returns the size of the released field."""
        ...

    def private_figures(self, generator: Generator, random: CryptoRandom) -> Figures:
        """What a step does to the records, not noised: for files in `private/` only; nothing if it sees none."""
        ...


def begin_method(config: RunConfig, data: LabelledImages, ledger: Ledger, random: CryptoRandom) -> Method:
    """Charge and release what the method needs first, and hold the records ready."""
    if isinstance(config.rules, BatchRules):
        return BatchMethod(config, config.rules, data, release_class_counts(data, config, ledger, random))
    statistics = release_statistics(data, config, ledger, random)
    features = needed_features(data, config)
    extras = release_surroundings(data, features, statistics, config, ledger, random)
    if CLASS_EMBEDDING in config.privacy.once:
        extras[CLASS_EMBEDDING] = release_class_embedding(data, features, statistics, config, ledger, random)
    if isinstance(config.rules, EmbeddingRules):
        return EmbeddingMethod(config, statistics, extras)
    return RecordMethod(config, config.rules, data, statistics, extras)


def restore_method(config: RunConfig, data: LabelledImages, released: dict[str, Tensor]) -> Method:
    """The method as a checkpoint left it: nothing is released again.

    Raises:
        KeyError, ValueError: The tensors are not those of such a run.
    """
    if isinstance(config.rules, BatchRules):
        return BatchMethod(config, config.rules, data, released["class_counts"])
    statistics = ReleasedStatistics.from_tensors(released)
    charged = {*config.privacy.once, *(() if config.privacy.classifier is None else (CLASSIFIER,))}
    names = (CLASS_MOMENTS, CLASS_FEATURES, CLASSIFIER, CLASS_EMBEDDING)
    extras = {name: released[name] for name in names if name in charged}
    if isinstance(config.rules, EmbeddingRules):
        return EmbeddingMethod(config, statistics, extras)
    return RecordMethod(config, config.rules, data, statistics, extras)


class SurroundedMethod:
    """What methods share that release statistics, and more than the steps need, before the first step."""

    def __init__(self, config: RunConfig, statistics: ReleasedStatistics, extras: dict[str, Tensor]) -> None:
        self.config, self.statistics, self.extras = config, statistics, extras
        self.class_shares = _shares(statistics.class_counts)

    def released(self) -> dict[str, Tensor]:
        """See `Method`."""
        return self.statistics.tensors() | self.extras

    def finished(self, generator: Generator, progress: Callable[[int], None]) -> Generator:
        """See `Method`: where an embedding was released beside the steps, further steps on it."""
        return matched(generator, self.extras, self.statistics, self.config, progress)

    def around(self, generator: Generator) -> dict[str, Tensor]:
        """See `Method`."""
        return surroundings(generator, self.extras, self.statistics, self.config)


class RecordMethod(SurroundedMethod):
    """Each record's contribution is clipped by itself, in the released subspace (method "record")."""

    def __init__(
        self,
        config: RunConfig,
        rules: RecordRules,
        data: LabelledImages,
        statistics: ReleasedStatistics,
        extras: dict[str, Tensor],
    ) -> None:
        super().__init__(config, statistics, extras)
        plan, classes = config.privacy, data.num_classes
        self.clip_norm = rules.relative_clip_norm * math.sqrt(statistics.variance)

        def labels(images: int) -> Tensor:
            return torch.arange(classes, device=config.device).repeat_interleave(images // classes)

        subspace = statistics.subspace
        self.rules = StepRules(
            subspace=subspace.to(config.device),
            labels=labels(config.num_generated),
            reference_labels=labels(rules.num_reference),
            expected_counts=(plan.sample_rate * statistics.class_counts).to(config.device),
            subsampler=PoissonSubsampler(plan.num_records, plan.sample_rate),
            mechanism=GaussianMechanism(self.clip_norm, plan.noise_multiplier),
            reg=rules.relative_reg * statistics.variance,
            potential_iterations=rules.potential_iterations,
            rest_weight=rules.rest_weight,
            variance=statistics.variance,
        )
        self.sensitivity = self.rules.mechanism.sensitivity
        self.warnings = _warnings(config, statistics, self.rules.hidden())
        coordinates = torch.cat(list(exact_coordinates(data, subspace, config.device)))
        self.records = PrivateRecords(coordinates, data.labels.to(config.device))

    def step(
        self,
        generator: Generator,
        optimiser: Updater,
        latents: torch.Generator,
        random: CryptoRandom,
        observe: Observer = unobserved,
    ) -> float:
        """See `Method`."""
        return training_step(generator, optimiser, self.records, self.rules, latents, random, observe)

    def private_figures(self, generator: Generator, random: CryptoRandom) -> Figures:
        """See `Method`."""
        return record_figures(generator, self.records, self.rules, random)


class EmbeddingMethod(SurroundedMethod):
    """Each record's features are added up once; the steps learn from the noisy sums (method "embedding").

    It holds no record.
    """

    def __init__(self, config: RunConfig, statistics: ReleasedStatistics, extras: dict[str, Tensor]) -> None:
        super().__init__(config, statistics, extras)
        self.clip_norm = self.sensitivity = UNIT_SENSITIVITY
        self.rules = embedding_rules(extras[CLASS_EMBEDDING], statistics, config, config.num_generated)
        self.warnings = _warnings(config, statistics, self.rules.hidden)

    def step(
        self,
        generator: Generator,
        optimiser: Updater,
        latents: torch.Generator,
        random: CryptoRandom,
        observe: Observer = unobserved,
    ) -> float:
        """See `Method`: nothing is released, so there is nothing to observe."""
        return embedding_step(generator, optimiser, self.rules, latents)

    def private_figures(self, generator: Generator, random: CryptoRandom) -> Figures:
        """See `Method`: none, as no step sees a record."""
        return {}


class BatchMethod:
    """The gradient of a whole batch is clipped (method "batch": Cao et al. 2021)."""

    def __init__(self, config: RunConfig, rules: BatchRules, data: LabelledImages, class_counts: Tensor) -> None:
        plan = config.privacy
        self.warnings: tuple[str, ...] = ()
        self.class_counts = class_counts
        self.clip_norm = rules.clip_norm
        self.class_shares = _shares(class_counts)
        self.rules = BatchStepRules(
            num_generated=config.num_generated,
            num_fresh=rules.num_fresh,
            debias_fraction=rules.debias_fraction,
            class_shares=torch.tensor(self.class_shares),
            queries=rules.queries_per_step,
            capacity=rules.capacity,
            subsampler=PoissonSubsampler(plan.num_records, plan.sample_rate),
            clip_norm=rules.clip_norm,
            mechanism=GaussianMechanism(2.0 * rules.clip_norm, plan.noise_multiplier),
            cost=MixedCost(rules.l1_weight),
            solver=Sinkhorn(reg=rules.reg, start_reg=rules.start_reg, iterations=rules.sinkhorn_iterations),
            label_weight=rules.label_weight,
        )
        self.sensitivity = self.rules.mechanism.sensitivity
        self.records = PixelRecords(data.pixels.flatten(1).to(config.device), data.labels.to(config.device))

    def released(self) -> dict[str, Tensor]:
        """See `Method`."""
        return {"class_counts": self.class_counts}

    def finished(self, generator: Generator, progress: Callable[[int], None]) -> Generator:
        """See `Method`: it is finished."""
        return generator

    def around(self, generator: Generator) -> dict[str, Tensor]:
        """See `Method`: nothing."""
        return {}

    def step(
        self,
        generator: Generator,
        optimiser: Updater,
        latents: torch.Generator,
        random: CryptoRandom,
        observe: Observer = unobserved,
    ) -> float:
        """See `Method`."""
        return batch_step(generator, optimiser, self.records, self.rules, latents, random, observe)

    def private_figures(self, generator: Generator, random: CryptoRandom) -> Figures:
        """See `Method`."""
        return batch_figures(generator, self.records, self.rules, random)


def _warnings(config: RunConfig, statistics: ReleasedStatistics, hidden: Tensor) -> tuple[str, ...]:
    """Of released facts alone: classes hidden in noise, and those counted no more than noise may have made."""
    once = config.privacy.once
    # Released counts are never below one, nor below their noise.
    least = max(1.0, _DOUBTFUL * once[CLASS_COUNTS]) if CLASS_COUNTS in once else 0.0
    few = statistics.class_counts <= least
    told = (
        (hidden, "too few records for this budget in class {}: images there look much like those of all other classes"),
        (few, "class {} may have no records at all: no more were counted than noise alone may show"),
    )
    warnings = []
    for flags, sentence in told:
        names = [name for name, flag in zip(config.data.class_names, flags.tolist(), strict=True) if flag]
        if names:
            warnings.append(sentence.format(listed(names, _SHOWN)))
    return tuple(warnings)


def _shares(counts: Tensor) -> tuple[float, ...]:
    return tuple((counts / counts.sum()).tolist())
