"""Stage: the mean embedding of each class, released once. Later steps learn from it and see no record."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from dp_sinkhorn.estimators.mean_embedding import ReleasedEmbedding
from dp_sinkhorn.features.random_fourier import FourierMap, fourier_map
from dp_sinkhorn.features.scattering import SCATTERING, num_features
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.clipping import BoundedSum, added, clipped_rows
from dp_sinkhorn.privacy.curator import Curator, Draw, Query
from dp_sinkhorn.privacy.plan import Budget, PrivacyPlan
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.settings import (
    MAX_STEP_NUMBERS,
    DataFacts,
    RunConfig,
    Settings,
    Share,
    StageRules,
    given,
)
from dp_sinkhorn.stages.base import (
    UNIT_SENSITIVITY,
    ShareSettings,
    SharingStage,
    StageFacts,
    State,
)

# Chosen on MNIST and PneumoniaMNIST: decision 9. Number of frequencies; width of the pixel kernel; weight of the
# wavelet kernel in mode `embedding` and in the other modes; its width.
_FREQUENCIES, _WIDTH, _WAVELET_WEIGHT, _WAVELET_WEIGHT_BESIDE, _WAVELET_WIDTH = 2000, 0.25, 0.3, 0.5, 0.25
_CHUNK = 2048
_MAX_FREQUENCIES = 10**5
# Noise per record up to which the embedding has its whole share in mode `record`, and from which on it has none: chosen
# on PneumoniaMNIST, decision 2.
_USEFUL, _USELESS = 7e-4, 1e-3

# Below the lower bound the rounding of distances is not small beside the width.
_RelativeWidth = Annotated[float, Field(ge=1e-4, le=1e30, allow_inf_nan=False)]
_Frequencies = Annotated[int, Field(ge=1, le=_MAX_FREQUENCIES)]


class ClassEmbeddingSettings(ShareSettings):
    """What a user may choose.

    Args:
        budget_share: Share of the budget in mode `record`; 0: the stage does not run. None: by the noise per record.
        num_frequencies: M frequencies per kernel, each with a cosine and a sine.
        relative_width: Width of the pixel kernel exp(−‖x − y‖²/(4·relative_width·V)), V the variance of the records.
        wavelet_weight: Weight of the kernel of wavelet features ψ in the sum of both, in [0, 1); 0: there is none.
        wavelet_width: Width of the wavelet kernel exp(−‖ψ(x) − ψ(y)‖²/(4·wavelet_width)).
    """

    former: ClassVar[dict[str, str]] = {"embedding_share": "budget_share"}

    num_frequencies: _Frequencies | None = None
    relative_width: _RelativeWidth | None = None
    wavelet_weight: Share | None = None
    wavelet_width: _RelativeWidth | None = None


class ClassEmbeddingRules(StageRules):
    """Constants: the settings, filled in."""

    num_frequencies: _Frequencies
    relative_width: _RelativeWidth
    wavelet_weight: Share
    wavelet_width: _RelativeWidth


class ClassEmbedding(SharingStage):
    """Releases the sum of random Fourier features of each class (DP-MERF, Harder et al. 2021).

    A record adds a vector of norm at most 1 to one class: sensitivity 1.
    """

    name = "class_embedding"
    settings_type = ClassEmbeddingSettings
    rules_type = ClassEmbeddingRules
    needs = ("counts", "subspace", SCATTERING.name)
    gives = ("embedding",)
    charged = (name,)
    mechanism = (
        "Gaussian, once, on all records: the sum of per-record random Fourier features, class by class, each of L2 "
        "norm at most 1 (sensitivity 1), plus normal noise of standard deviation noise_multiplier × sensitivity on "
        "every number"
    )

    def share(self, settings: Settings, budget: Budget) -> float:
        """See `SharingStage`: the default falls to 0 as the noise per record grows."""
        chosen = settings.of(self.name, ClassEmbeddingSettings).budget_share
        return given(chosen, self.default_share * _usefulness(budget.noise_per_record))

    def runs(self, settings: Settings, budget: Budget) -> bool:
        """See `Stage`: always in mode `embedding`, where it gets the rest of the budget."""
        return budget.mode == "embedding" or super().runs(settings, budget)

    def unread(self, budget: Budget, before: Collection[str]) -> frozenset[str]:
        """See `Stage`: its share in mode `embedding`, where it gets the rest of the budget."""
        return frozenset({"budget_share"} if budget.mode == "embedding" else ())

    def rules(self, settings: Settings, plan: PrivacyPlan, data: DataFacts) -> ClassEmbeddingRules:
        """See `Stage`."""
        chosen, classes = settings.of(self.name, ClassEmbeddingSettings), data.num_classes
        frequencies = chosen.num_frequencies or _FREQUENCIES
        weight = given(chosen.wavelet_weight, _WAVELET_WEIGHT_BESIDE if plan.queries_per_step else _WAVELET_WEIGHT)
        # The larger of the matrix of frequencies and the released tensor.
        inputs = max(math.prod(data.shape), num_features(data.shape, layers=1) if weight else 0)
        largest = frequencies * max(inputs, (4 if weight else 2) * classes)
        if largest > MAX_STEP_NUMBERS:
            raise InputError(
                f"{frequencies} frequencies of images of shape {data.shape} in {classes} classes make more than "
                f"{MAX_STEP_NUMBERS} numbers; give fewer {self.name}.num_frequencies"
            )
        return ClassEmbeddingRules(
            num_frequencies=frequencies,
            relative_width=chosen.relative_width or _WIDTH,
            wavelet_weight=weight,
            wavelet_width=chosen.wavelet_width or _WAVELET_WIDTH,
        )

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`. A resumed run puts the released embedding into the state again."""
        features = self.features(state)
        if fresh := self.name not in state.learnt:
            contribute = EmbeddingSum(features, len(state.class_counts))
            state.learnt[self.name] = self.ask(curator, state, UNIT_SENSITIVITY, contribute)
        noise = self.charge(state.plan).noise_multiplier * UNIT_SENSITIVITY
        state.embedding = ReleasedEmbedding(features, state.learnt[self.name].to(state.config.device), noise)
        if state.plan.queries_per_step == 0:
            state.clip_norm = state.sensitivity = UNIT_SENSITIVITY
        if fresh:
            yield

    def features(self, state: State) -> FourierMap:
        """The feature map of a run."""
        rules, config = state.config.rules_of(self.name, ClassEmbeddingRules), state.config
        return fourier_map(
            config.data.shape,
            rules.num_frequencies,
            rules.relative_width * state.variance,
            rules.wavelet_weight,
            rules.wavelet_width,
            config.settings.seed,
            config.device,
        )

    def lighter(self, config: RunConfig) -> RunConfig:
        """See `Stage`: fewer frequencies. They do not change the norm of a record's features."""
        few = min(config.rules_of(self.name, ClassEmbeddingRules).num_frequencies, 256)
        return config.with_rules(self.name, num_frequencies=few)

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        """See `Stage`: in mode `embedding` the card's headline facts describe this release."""
        yield from super().problems(facts, card)
        if card.mode != "embedding":
            return
        if any(c.noise_multiplier != card.noise_multiplier for c in card.charges if c.name == self.name):
            yield "the card's noise multiplier differs from that of its charged embedding"
        if card.queries_per_step != 0:
            yield f"mode {card.mode!r} makes no query a step, but the card claims {card.queries_per_step}"
        for name, claimed in (("clip norm", card.clip_norm), ("sensitivity", card.sensitivity)):
            if claimed != UNIT_SENSITIVITY:
                norm = f"{UNIT_SENSITIVITY:g}"
                yield f"features of the embedding have norm {norm}, but the card claims {name} {claimed:g}"

    def scores(
        self, query: Query, answer: Tensor, known: Draw, chances: Float64[Tensor, " B"]
    ) -> Float64[Tensor, " B"] | None:
        """See `Stage`: ⟨R − E, φ(y)⟩ in the row of the class of y, E the expected sum of the known records."""
        assert isinstance(query.contribute, EmbeddingSum)  # noqa: S101
        rows, labels = query.contribute.rows(known), known.labels.to(answer.device)
        expected = torch.zeros_like(answer).index_add_(0, labels, rows * chances.to(rows).unsqueeze(1))
        return ((answer - expected)[labels] * rows).sum(1)


@dataclass(frozen=True, eq=False)
class EmbeddingSum:
    """Σ onehot(label) ⊗ φ(y), (K, numbers).

    Guarantees: a record adds a vector of norm at most 1 to the row of one class.
    """

    features: FourierMap
    classes: int

    def __call__(self, draw: Draw) -> BoundedSum:
        """The sum, some thousands of records at a time."""
        device = self.features.frequencies.device
        return added(
            embedding_sum(self._features(draw, rows), draw.labels[rows].to(device), self.classes)
            for rows in torch.arange(len(draw.labels)).split(_CHUNK)
        )

    def rows(self, draw: Draw) -> Float64[Tensor, "N numbers"]:
        """φ(y) of each record, of norm at most 1."""
        return clipped_rows(self._features(draw, torch.arange(len(draw.labels))), UNIT_SENSITIVITY)

    def _features(self, draw: Draw, rows: Tensor) -> Float64[Tensor, "n numbers"]:
        known = None if self.features.wavelets is None else draw.view(SCATTERING)[rows]
        return self.features.of_records(draw.images.subset(rows), known)


def embedding_sum(features: Float64[Tensor, "N D"], labels: Tensor, num_classes: int) -> BoundedSum:
    """Σ onehot(label) ⊗ φ(y), (K, D).

    Args:
        features: φ(y), each a function of one record alone. Rows are clipped to norm 1; one that is not finite counts
            as zero.
        labels: (N,) classes.
    """
    rows = clipped_rows(features, UNIT_SENSITIVITY)
    total = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows)
    return BoundedSum(total, UNIT_SENSITIVITY)


def _usefulness(noise: float) -> float:
    """Factor of the default share: 1 at little noise per record, falling linearly to 0."""
    return min(1.0, max(0.0, (_USELESS - noise) / (_USELESS - _USEFUL)))
