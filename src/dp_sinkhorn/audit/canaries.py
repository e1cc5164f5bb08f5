"""One-run audit: canaries, each in the training data by its own coin, and guesses from what the run lets out.

Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", arXiv 2305.08846.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.audit.neighbouring import FarRecords
from dp_sinkhorn.audit.one_run import epsilon_of_scores
from dp_sinkhorn.audit.stand_in import noise_images, on_stand_in
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld
from dp_sinkhorn.privacy.curator import Curator, Draw, Query
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.base import Stage, Stages
from dp_sinkhorn.training.loop import Run

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
    stages: Stages,
    progress: Callable[[int], None] = lambda step: None,
) -> CanaryAudit:
    """Train a whole run of `num_steps` steps on `stand_in` and about half of the canaries, and guess which.

    Of a run whose steps see no record nothing but what they learn from is needed: `num_steps` is 0.

    The adversary knows everything but the coins and the run's own randomness, and sees every answer (and with them,
    every state of the generator). σ, q, δ and all rules are the run's.

    Args:
        stand_in: Public images that are all in. random: Of the coins.
    """
    always = len(stand_in)
    stage = stages[config.plan.learns.partition(".")[0]]
    needed = config.only(stages.needed(config, stage.name) | {config.trains})
    short = on_stand_in(needed, always + num_canaries // 2, stages, steps=max(1, num_steps))
    canaries = noise_images(short.data, num_canaries, seed=4)
    included = (random.bits(num_canaries) >> np.uint64(63)).astype(bool)
    data = joined(stand_in, canaries.subset(torch.from_numpy(np.flatnonzero(included))))
    with tempfile.TemporaryDirectory(prefix="dp-sinkhorn-") as folder:
        (Path(folder) / "private").mkdir()
        factors: dict[str, float] = {}
        adversary = Adversary(stage, factors, stand_in, canaries, progress)
        run = Run(short, data, Path(folder), stages, partial(WatchedCurator, adversary, factors, always))
        factors.update(stage.worst(run.state).factors)
        run.train(lambda done, total, epsilon: None)
        charges = run.ledger.charges
    return _audit(adversary.scores, included, charges, short, num_steps)


def joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """The records of both."""
    return LabelledImages(
        torch.cat([first.pixels, second.pixels]), torch.cat([first.labels, second.labels]), first.class_names
    )


def _audit(
    scores: Float64[Tensor, " B"], included: np.ndarray, charges: list[Charge], config: RunConfig, num_steps: int
) -> CanaryAudit:
    """What the scores of the canaries show."""
    found, delta = scores.cpu().numpy(), config.plan.target_delta
    small = min(delta, FAILING_DELTA)
    return CanaryAudit(
        epsilon_claimed=epsilon_pld(charges, delta),
        epsilon=epsilon_of_scores(found, included, delta, STATED_LEVEL),
        claimed_for_sure=epsilon_pld(charges, small),
        epsilon_for_sure=epsilon_of_scores(found, included, small, FAILING_LEVEL),
        num_steps=num_steps,
        num_canaries=len(included),
    )


class WatchedCurator(Curator):
    """A run's curator whose last records are canaries, and whose answers an adversary sees."""

    def __init__(
        self,
        adversary: "Adversary",
        factors: Mapping[str, float],
        always: int,
        records: LabelledImages,
        *arguments: Any,
        **more: Any,
    ) -> None:
        super().__init__(records, *arguments, **more)
        self._adversary = adversary
        # What the plan calls the number of records stays the same whatever the coins; the records that exist differ.
        self.held = FarRecords(records, far=tuple(range(always, len(records))), factors=factors)

    def ask(self, query: Query) -> Tensor:
        """See `Curator`."""
        answer = super().ask(query)
        self._adversary.look(query, answer)
        return answer


class Adversary:
    """Adds up, query by query, how much each canary's own contribution is in what was released.

    A canary's score is Σ_t ⟨R_t − E_t, d_t⟩: R_t the answer, d_t the clipped contribution that this canary would make
    to query t, E_t what is to be expected without knowing the coins. All of it public.
    """

    def __init__(
        self,
        stage: Stage,
        factors: Mapping[str, float],
        stand_in: LabelledImages,
        canaries: LabelledImages,
        progress: Callable[[int], None],
    ) -> None:
        self._stage, self._progress, self._always = stage, progress, len(stand_in)
        everyone = joined(stand_in, canaries)
        far = tuple(range(self._always, len(everyone)))
        self._known = Draw(FarRecords(everyone, far=far, factors=factors))
        self.scores = torch.zeros(len(canaries), dtype=torch.float64)
        self.steps = 0

    def look(self, query: Query, answer: Float64[Tensor, "..."]) -> None:
        """Add one query to the scores."""
        if query.charge.name.partition(".")[0] != self._stage.name:
            return
        # Chance that a record is in a subsample, the coin of a canary included.
        chances = torch.full((len(self._known.labels),), query.charge.sample_rate, dtype=torch.float64)
        chances[self._always :] /= 2.0
        scores = self._stage.scores(query, answer, self._known, chances)
        if scores is not None:
            self.scores += scores[self._always :].cpu()
        self.steps += 1
        self._progress(self.steps)
