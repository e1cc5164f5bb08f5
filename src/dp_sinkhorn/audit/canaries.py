"""One-run audit: canaries, each in the training data by its own coin, and guesses from what the run lets out.

Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", arXiv 2305.08846.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.audit.one_run import epsilon_of_scores
from dp_sinkhorn.audit.stand_in import noise_images, on_stand_in
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.features.random_fourier import fourier_map
from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld
from dp_sinkhorn.privacy.clipping import clip_factors
from dp_sinkhorn.privacy.plan import CLASS_EMBEDDING
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.settings import RecordRules, RunConfig
from dp_sinkhorn.stages.class_embedding import class_embedding
from dp_sinkhorn.stages.transport_steps import PrivateRecords
from dp_sinkhorn.training.loop import Run
from dp_sinkhorn.training.methods import BatchMethod, EmbeddingMethod, RecordMethod
from dp_sinkhorn.training.observation import Observation
from dp_sinkhorn.training.surroundings import needed_features
from dp_sinkhorn.transport.semidual import SemiDualContributions

# In record mode a canary's coordinates are so many times further away than its image: any record may be there, the
# clip norm is the same, and each canary then counts in full at every step in which it is drawn.
_FAR = 1e3
# Chance that the stated bound exceeds the true ε; and, far smaller, that a sound run is called broken. For that
# the claim at a smaller δ is tested: at the stated one, the theorem's δ term alone is larger than such a chance.
STATED_LEVEL, FAILING_LEVEL, FAILING_DELTA = 0.049, 1e-5, 1e-9


@dataclass(frozen=True)
class CanaryAudit:
    """Bounds of the audited run.

    Args:
        epsilon_claimed: What the audited run's own ledger adds up to. epsilon: Lower bound, level `STATED_LEVEL`.
        claimed_for_sure, epsilon_for_sure: The same two at δ = `FAILING_DELTA` and level `FAILING_LEVEL`.
        num_steps, num_canaries: Of the audited run; 0 steps where none of them sees a record.
    """

    epsilon_claimed: float
    epsilon: float
    claimed_for_sure: float
    epsilon_for_sure: float
    num_steps: int
    num_canaries: int


def audit_canaries(
    config: RunConfig,
    stand_in: LabelledImages,
    num_canaries: int,
    num_steps: int,
    random: CryptoRandom,
    progress: Callable[[int], None] = lambda step: None,
) -> CanaryAudit:
    """Train a whole run of `num_steps` steps on `stand_in` and about half of the canaries, and guess which.

    Of a run whose steps see no record nothing but the embedding is needed: `num_steps` is 0.

    The adversary knows everything but the coins and the run's own randomness, and sees every released tensor of
    every step (and with them, every state of the generator). σ, q, δ and all rules are the run's.

    Args:
        stand_in: Public images that are all in. random: Of the coins.
    """
    always = len(stand_in)
    short = on_stand_in(config, always + num_canaries // 2)
    plan = short.privacy.model_copy(update={"num_steps": max(1, num_steps)})
    short = short.model_copy(update={"privacy": plan})
    canaries = noise_images(short.data, num_canaries, seed=4)
    included = (random.bits(num_canaries) >> np.uint64(63)).astype(bool)
    present = canaries.subset(torch.from_numpy(np.flatnonzero(included)))
    data = LabelledImages(
        torch.cat([stand_in.pixels, present.pixels]),
        torch.cat([stand_in.labels, present.labels]),
        stand_in.class_names,
    )
    with tempfile.TemporaryDirectory(prefix="dp-sinkhorn-") as folder:
        (Path(folder) / "private").mkdir()
        adversary: list[_Adversary] = []

        def watch(seen: Observation) -> None:
            adversary[0].look(seen)
            progress(adversary[0].steps)

        run = Run(short, data, Path(folder), watch)
        if isinstance(run.method, EmbeddingMethod):
            return _audit(_embedding_scores(run.method, stand_in, canaries), included, run.ledger.charges, short, 0)
        # What the plan calls the number of records stays the same whatever the coins; the records that exist differ.
        assert isinstance(run.method, RecordMethod | BatchMethod)  # noqa: S101 - there are no others
        sampler = PoissonSubsampler(len(data), plan.sample_rate)
        run.method.rules = replace(run.method.rules, subsampler=sampler)
        if isinstance(run.method, RecordMethod):
            coordinates = run.method.records.coordinates.clone()
            coordinates[always:] *= _FAR
            run.method.records = PrivateRecords(coordinates, run.method.records.labels)
        adversary.append(_Adversary(run.method, short, stand_in, canaries))
        run.train(lambda done, total, epsilon: None)
        charges = run.ledger.charges
    return _audit(adversary[0].scores, included, charges, short, num_steps)


def _audit(
    scores: Float64[Tensor, " B"], included: np.ndarray, charges: list[Charge], config: RunConfig, num_steps: int
) -> CanaryAudit:
    """What the scores of the canaries show."""
    found, delta = scores.cpu().numpy(), config.privacy.target_delta
    small = min(delta, FAILING_DELTA)
    return CanaryAudit(
        epsilon_claimed=epsilon_pld(charges, delta),
        epsilon=epsilon_of_scores(found, included, delta, STATED_LEVEL),
        claimed_for_sure=epsilon_pld(charges, small),
        epsilon_for_sure=epsilon_of_scores(found, included, small, FAILING_LEVEL),
        num_steps=num_steps,
        num_canaries=len(included),
    )


def _embedding_scores(
    method: EmbeddingMethod, stand_in: LabelledImages, canaries: LabelledImages
) -> Float64[Tensor, " B"]:
    """⟨R − E, φ(c)⟩ of each canary c, in the row of its class; E: all stand-ins, and each canary by half.

    What a canary itself adds to E is the same for all: it shifts every score.
    """
    device, features = method.config.device, fourier_map(method.config, method.statistics.variance)
    known, own = needed_features(stand_in, method.config), needed_features(canaries, method.config)
    expected = class_embedding(stand_in, features, known).value + 0.5 * class_embedding(canaries, features, own).value
    news = method.extras[CLASS_EMBEDDING].to(device) - expected
    return (news[canaries.labels.to(device)] * features.of_records(canaries, own)).sum(1)


class _Adversary:
    """Adds up, step by step, how much each canary's own contribution is in what was released.

    A canary's score is Σ_t ⟨R_t − E_t, d_t⟩: R_t the released tensor, d_t the clipped contribution that this canary
    would make at the images of step t, E_t what is to be expected without knowing the coins. All of it public.
    """

    def __init__(
        self, method: RecordMethod | BatchMethod, config: RunConfig, stand_in: LabelledImages, canaries: LabelledImages
    ) -> None:
        known = torch.cat([stand_in.floats(), canaries.floats()]).to(config.device, torch.float64)
        self.labels = torch.cat([stand_in.labels, canaries.labels]).to(config.device)
        # Chance that a record is in a subsample, the coin of a canary included.
        self.chances = torch.full((len(self.labels),), config.privacy.sample_rate, dtype=torch.float64)
        self.chances[len(stand_in) :] /= 2.0
        self.chances = self.chances.to(config.device)
        if isinstance(method, RecordMethod) and isinstance(config.rules, RecordRules):
            subspace = method.rules.subspace
            self.rows = (known - subspace.centre.double()) @ subspace.basis.double()
            self.rows[len(stand_in) :] *= _FAR
            self.reg = method.rules.reg
        else:
            # A whole batch's gradient has no part of one record alone: the direction in which it pulls by itself.
            self.rows, self.reg = known, 0.01 * known.shape[1]
        self.clip_norm = method.clip_norm
        self.canary = torch.arange(len(self.labels)) >= len(stand_in)
        self.scores = torch.zeros(len(canaries), dtype=torch.float64, device=config.device)
        self.steps = 0

    def look(self, seen: Observation) -> None:
        """Add one step to the scores."""
        gained = torch.zeros_like(self.chances)
        for label in seen.labels.unique().tolist():
            images, records = seen.labels == label, self.labels == label
            gained[records] = self._scores(seen, images, records)
        self.scores += gained[self.canary.to(gained.device)]
        self.steps += 1

    def _scores(self, seen: Observation, images: Tensor, records: Tensor) -> Float64[Tensor, " B"]:
        """⟨R − E, d⟩ for the records of one class; d_i = 2·w·p_i·(x_i − y), so no (B, n, d) tensor is needed."""
        x, rows = seen.images[images].double(), self.rows[records]
        each = SemiDualContributions.of(x, rows, seen.potential[images], self.reg)
        factors = clip_factors(each.norms(), self.clip_norm)
        news = seen.released[images] - each.weighted_sum(factors * self.chances[records])
        inner = (news * x).sum(1) - rows @ news.T
        return 2.0 * factors * (each.plan * inner).sum(1)
