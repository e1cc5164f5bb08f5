"""One-run audit: each canary is in the training data by its own coin, and an adversary guesses which are.

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

# STATED_LEVEL: chance that the stated bound exceeds the true ε. FAILING_LEVEL, far smaller: chance that a sound run
# fails. That test uses the claim at FAILING_DELTA: at the run's δ, the theorem's δ term alone exceeds FAILING_LEVEL.
STATED_LEVEL, FAILING_LEVEL, FAILING_DELTA = 0.049, 1e-5, 1e-9


@dataclass(frozen=True)
class CanaryAudit:
    """Bounds on ε of the audited run.

    Args:
        epsilon_claimed: ε of the audited run's ledger. epsilon: Lower bound, level `STATED_LEVEL`.
        claimed_for_sure, epsilon_for_sure: The same two at δ = `FAILING_DELTA` and level `FAILING_LEVEL`.
        num_steps, num_canaries: Of the audited run; 0 steps if none of them sees a record.
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
    """Train a run of `num_steps` steps on `stand_in` and about half of the canaries, and guess which half.

    If the run's steps see no record, `num_steps` is 0: only the release that they learn from is audited.

    The adversary knows everything except the coins and the run's randomness, and sees every answer, which determines
    every state of the generator. σ, q, δ and all rules are the run's.

    Args:
        stand_in: Public images, all in the training data. random: Source of the coins.
    """
    num_stand_ins = len(stand_in)
    stage = stages[config.plan.learns.partition(".")[0]]
    needed = config.only(stages.needed(config, stage.name) | {config.trains})
    short = on_stand_in(needed, num_stand_ins + num_canaries // 2, stages, steps=max(1, num_steps))
    canaries = noise_images(short.data, num_canaries, seed=4)
    included = (random.bits(num_canaries) >> np.uint64(63)).astype(bool)
    data = joined(stand_in, canaries.subset(torch.from_numpy(np.flatnonzero(included))))
    with tempfile.TemporaryDirectory(prefix="dp-sinkhorn-") as folder:
        (Path(folder) / "private").mkdir()
        factors: dict[str, float] = {}
        adversary = Adversary(stage, factors, stand_in, canaries, progress)
        run = Run(short, data, Path(folder), stages, partial(WatchedCurator, adversary, factors, num_stand_ins))
        factors.update(stage.worst(run.state).factors)
        run.train()
        charges = run.ledger.charges
    return _audit(adversary.scores, included, charges, short, num_steps)


def joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """The records of both, in order."""
    return LabelledImages(
        torch.cat([first.pixels, second.pixels]), torch.cat([first.labels, second.labels]), first.class_names
    )


def _audit(
    scores: Float64[Tensor, " B"], included: np.ndarray, charges: list[Charge], config: RunConfig, num_steps: int
) -> CanaryAudit:
    """Turn the scores of the canaries into bounds."""
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
    """A run's curator whose last records are canaries and whose answers an adversary sees."""

    def __init__(
        self,
        adversary: "Adversary",
        factors: Mapping[str, float],
        num_stand_ins: int,
        records: LabelledImages,
        *arguments: Any,
        **more: Any,
    ) -> None:
        super().__init__(records, *arguments, **more)
        self._adversary = adversary
        # The plan's number of records does not depend on the coins; the number of records held does.
        self.held = FarRecords(records, far=tuple(range(num_stand_ins, len(records))), factors=factors)

    def ask(self, query: Query) -> Tensor:
        """See `Curator`."""
        answer = super().ask(query)
        self._adversary.look(query, answer)
        return answer


class Adversary:
    """Scores each canary by how much of its contribution the answers contain.

    A canary's score is Σ_t ⟨R_t − E_t, d_t⟩: R_t the answer to query t, d_t the clipped contribution that this canary
    would make, E_t the expected answer without knowledge of the coins. All of them are public.
    """

    def __init__(
        self,
        stage: Stage,
        factors: Mapping[str, float],
        stand_in: LabelledImages,
        canaries: LabelledImages,
        progress: Callable[[int], None],
    ) -> None:
        self._stage, self._progress, self._num_stand_ins = stage, progress, len(stand_in)
        everyone = joined(stand_in, canaries)
        far = tuple(range(self._num_stand_ins, len(everyone)))
        self._known = Draw(FarRecords(everyone, far=far, factors=factors))
        self.scores = torch.zeros(len(canaries), dtype=torch.float64)
        self.steps = 0

    def look(self, query: Query, answer: Float64[Tensor, "..."]) -> None:
        """Add one query to the scores."""
        if query.charge.name.partition(".")[0] != self._stage.name:
            return
        # Chance that a record is in a subsample, including the coin of a canary.
        chances = torch.full((len(self._known.labels),), query.charge.sample_rate, dtype=torch.float64)
        chances[self._num_stand_ins :] /= 2.0
        scores = self._stage.scores(query, answer, self._known, chances)
        if scores is not None:
            self.scores += scores[self._num_stand_ins :].cpu()
        self.steps += 1
        self._progress(self.steps)
