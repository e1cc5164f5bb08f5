"""What a run releases before its steps, made ready to be watched: each by the run's own function, on public records."""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.auditing.stand_in import noise_images
from dp_sinkhorn.auditing.subject import BREAKDOWNS, Finding, Subject, World, passing_ledger
from dp_sinkhorn.config import RunConfig
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.plan import (
    CLASS_COUNTS,
    CLASS_EMBEDDING,
    CLASS_FEATURES,
    CLASS_MOMENTS,
    CLASSIFIER,
    FIRST_MOMENTS,
    SECOND_MOMENT,
)
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import UNIT_SENSITIVITY
from dp_sinkhorn.training.classifier import classifier_mechanism, record_features, released_gradient
from dp_sinkhorn.training.correction import release_class_moments
from dp_sinkhorn.training.refinement import release_class_features
from dp_sinkhorn.training.statistics import (
    ReleasedStatistics,
    release_class_histogram,
    release_first_moments,
    release_second_moment,
    second_moment_frame,
)

_Release = Callable[[LabelledImages, RunConfig, Ledger, CryptoRandom], Tensor]


class OnceStage:
    """One release on one world; it is charged to a ledger that counts for nothing."""

    def __init__(self, release: _Release, world: World, config: RunConfig) -> None:
        self._release, self._world, self._config = release, world, config

    def release(self, random: CryptoRandom) -> Float64[Tensor, "..."]:
        """See `Releases`."""
        try:
            with passing_ledger(self._config) as ledger:
                return self._release(self._world.images, self._config, ledger, random)
        except BREAKDOWNS as error:
            raise Finding(f"the release on ordinary records broke down: {error}") from error


class OnceSubject(Subject):
    """A release on all records before the first step; of the classifier's, the first, all records drawn.

    Args:
        config: The run's. name: As the plan has it, one of `released_once`. before: What was released before it, on
            public records (`Method.released`).
    """

    def __init__(self, config: RunConfig, name: str, before: dict[str, Tensor]) -> None:
        plan = config.privacy
        if name == CLASSIFIER:
            assert plan.classifier is not None  # noqa: S101 - `released_once` names it only then
            mechanism = classifier_mechanism(plan.classifier)
            super().__init__(config, mechanism.noise_multiplier, mechanism.sensitivity)
            self._release: _Release = _first_gradient
        else:
            super().__init__(config, plan.once[name], UNIT_SENSITIVITY)
            self._release = _release_of(name, config, before)
        self.name = name
        if name in (CLASS_FEATURES, CLASSIFIER):
            # A white image has no wavelet features but the bias.
            self.far_image = noise_images(config.data, 1, seed=12).pixels

    def stage(self, world: World, sample_rate: float, noise: float | None = None) -> OnceStage:
        """See `Subject`; every record is drawn, whatever the rate."""
        plan = self.config.privacy
        wanted = self.noise_multiplier if noise is None else noise
        if plan.classifier is not None and self.name == CLASSIFIER:
            changed: dict[str, object] = {"classifier": plan.classifier.model_copy(update={"noise_multiplier": wanted})}
        else:
            changed = {"once": {**plan.once, self.name: wanted}}
        return OnceStage(
            self._release, world, self.config.model_copy(update={"privacy": plan.model_copy(update=changed)})
        )


def released_once(config: RunConfig) -> list[str]:
    """Names of what a run releases before its steps, but for the class embedding."""
    names = [name for name in config.privacy.once if name != CLASS_EMBEDDING]
    return [*names, CLASSIFIER] if config.privacy.classifier is not None else names


def _release_of(name: str, config: RunConfig, before: dict[str, Tensor]) -> _Release:
    if name == CLASS_COUNTS:
        return release_class_histogram
    if name == FIRST_MOMENTS:
        return release_first_moments
    if name == CLASS_FEATURES:
        return lambda data, *rest: release_class_features(record_features(data), data.labels, *rest)
    statistics = ReleasedStatistics.from_tensors(before)
    if name == SECOND_MOMENT:
        frame = second_moment_frame(config)
        return lambda data, *rest: release_second_moment(data, statistics.subspace.centre, frame, *rest)
    assert name == CLASS_MOMENTS  # noqa: S101 - there are no others
    return lambda data, *rest: release_class_moments(data, statistics, *rest)


def _first_gradient(data: LabelledImages, config: RunConfig, ledger: Ledger, random: CryptoRandom) -> Tensor:
    """At a weight of zero: by all records at least as long as the clip norm."""
    assert config.privacy.classifier is not None  # noqa: S101 - see `OnceSubject`
    features = record_features(data)
    weight = torch.zeros(data.num_classes, features.shape[1], dtype=torch.float64)
    return released_gradient(features, data.labels, weight, classifier_mechanism(config.privacy.classifier), random)
