"""What a run releases before its steps, made ready to be watched: each by the run's own function, on public records."""

from collections.abc import Callable
from functools import cache, partial

import torch
from jaxtyping import Float16, Float64, Int64
from torch import Tensor

from dp_sinkhorn.audit.neighbouring import BREAKDOWNS, Finding, Subject, World, passing_ledger
from dp_sinkhorn.audit.stand_in import noise_images
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
    SubsampledReleases,
)
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.statistics import UNIT_SENSITIVITY
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.class_features import release_class_features
from dp_sinkhorn.stages.class_moments import release_class_moments
from dp_sinkhorn.stages.label_classifier import classifier_mechanism, record_features, released_gradient
from dp_sinkhorn.stages.principal_subspace import (
    ReleasedStatistics,
    release_class_histogram,
    release_first_moments,
    release_second_moment,
    second_moment_frame,
)

_Release = Callable[[RunConfig, Ledger, CryptoRandom], Tensor]


class OnceStage:
    """One release on the records of one world; it is charged to a ledger that counts for nothing.

    Args:
        name: In the plan. noise: The noise multiplier. release: By the run's own function.
    """

    def __init__(self, name: str, config: RunConfig, noise: float, release: _Release) -> None:
        self._name, self._config, self._release = name, _with_noise(config, name, noise), release

    def release(self, random: CryptoRandom) -> Float64[Tensor, "..."]:
        """See `Releases`."""
        try:
            with passing_ledger(self._config) as ledger:
                return self._release(self._config, ledger, random)
        except BREAKDOWNS as error:
            what = self._name.replace("_", " ")
            raise Finding(f"the {what} of ordinary records broke down: {error}") from error


class OnceSubject(Subject):
    """A release on all records before the first step; of the classifier's, the first, all records drawn.

    Args:
        config: The run's. name: As the plan has it, one of `released_once`. before: What was released before it, on
            public records (`Method.released`).
    """

    def __init__(self, config: RunConfig, name: str, before: dict[str, Tensor]) -> None:
        if name == CLASSIFIER:
            mechanism = classifier_mechanism(_classifier(config))
            super().__init__(config, mechanism.noise_multiplier, mechanism.sensitivity)
        else:
            super().__init__(config, config.privacy.once[name], UNIT_SENSITIVITY)
        self.name, self._before = name, before
        if name in (CLASS_FEATURES, CLASSIFIER):
            # A white image has no wavelet features but the bias.
            self.far_image = noise_images(config.data, 1, seed=12).pixels

    def stage(self, world: World, sample_rate: float, noise: float | None = None) -> OnceStage:
        """See `Subject`; every record is drawn, whatever the rate."""
        wanted = self.noise_multiplier if noise is None else noise
        return OnceStage(self.name, self.config, wanted, self._release(world.images))

    def _release(self, data: LabelledImages) -> _Release:
        if self.name == CLASS_COUNTS:
            return partial(release_class_histogram, data)
        if self.name == FIRST_MOMENTS:
            return partial(release_first_moments, data)
        if self.name in (CLASS_FEATURES, CLASSIFIER):
            features = cache(partial(record_features, data))
            made = release_class_features if self.name == CLASS_FEATURES else _first_gradient
            return lambda *rest: made(features(), data.labels, *rest)
        statistics = ReleasedStatistics.from_tensors(self._before)
        if self.name == SECOND_MOMENT:
            frame = second_moment_frame(self.config)
            return partial(release_second_moment, data, statistics.subspace.centre, frame)
        assert self.name == CLASS_MOMENTS  # noqa: S101 - there are no others
        return partial(release_class_moments, data, statistics)


def released_once(config: RunConfig) -> list[str]:
    """Names of what a run releases before its steps, but for the class embedding."""
    names = [name for name in config.privacy.once if name != CLASS_EMBEDDING]
    return [*names, CLASSIFIER] if config.privacy.classifier is not None else names


def _first_gradient(
    features: Float16[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    config: RunConfig,
    ledger: Ledger,
    random: CryptoRandom,
) -> Tensor:
    """At a weight of zero: by all records at least as long as the clip norm."""
    weight = torch.zeros(len(config.data.class_names), features.shape[1], dtype=torch.float64)
    return released_gradient(features, labels, weight, classifier_mechanism(_classifier(config)), random)


def _classifier(config: RunConfig) -> SubsampledReleases:
    assert config.privacy.classifier is not None  # noqa: S101 - `released_once` names it only then
    return config.privacy.classifier


def _with_noise(config: RunConfig, name: str, noise: float) -> RunConfig:
    """With this noise multiplier for one of the releases."""
    plan = config.privacy
    if name == CLASSIFIER:
        changed: dict[str, object] = {"classifier": _classifier(config).model_copy(update={"noise_multiplier": noise})}
    else:
        changed = {"once": {**plan.once, name: noise}}
    return config.model_copy(update={"privacy": plan.model_copy(update=changed)})
