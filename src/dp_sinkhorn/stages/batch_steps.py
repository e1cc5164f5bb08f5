"""Stage: steps of the paper. The gradient of the semi-debiased Sinkhorn loss of a whole batch is clipped and noised."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from pydantic import Field
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages, to_unit_range
from dp_sinkhorn.generators.base import Generator, as_released
from dp_sinkhorn.generators.optimiser import Optimiser, adam
from dp_sinkhorn.privacy.clipping import BoundedSum, clipped_queries, together
from dp_sinkhorn.privacy.curator import Curator, Draw, Query
from dp_sinkhorn.privacy.plan import MAX_RECORDS, PrivacyPlan
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.settings import (
    MAX_IMAGES_A_STEP,
    DataFacts,
    NotNegative,
    Positive,
    Settings,
    StageRules,
    StageSettings,
    Steps,
    given,
)
from dp_sinkhorn.stages.base import Stage, StageFacts, State, Worst, finite_images, steps_problems
from dp_sinkhorn.stages.transport_steps import semi_dual_scores
from dp_sinkhorn.transport.costs import Cost, MixedCost
from dp_sinkhorn.transport.divergence import debiasing_term, transport_between
from dp_sinkhorn.transport.sinkhorn import Sinkhorn

# The paper's values where it has one for every data set. The gradient of a batch is far longer than the clip norm, so
# the clip norm only sets the scale, to which Adam is invariant.
_GENERATED, _CLIP_NORM, _DEBIAS, _LEARNING_RATE = 50, 0.5, 0.4, 1e-3
# In units of the number of pixels d: the squared distance of two images is about d/2, and at most 4·d.
_REG_A_PIXEL, _START_REG_A_PIXEL = 0.005, 0.5
_SINKHORN_ITERATIONS, _LABEL_WEIGHT = 40, 15.0
# Queries per step. They share the generator's passes.
_QUERIES, _MAX_QUERIES = 64, 10**5
# Queries in one tensor. Larger blocks do not fit into the cache (256 at once took 8 % longer than blocks of 64), and
# blocks bound the memory for any `queries_per_step`.
QUERIES_AT_ONCE = 64
# Size of the numbers in an audit's worst gradient: far longer than any real gradient.
_ENORMOUS = 1e6

_Queries = Annotated[int, Field(ge=1, le=_MAX_QUERIES)]
_LabelWeight = Annotated[float, Field(ge=0.0)]  # inf: transport within a class only
_Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class BatchStepsSettings(StageSettings):
    """What a user may choose. `reg` and `start_reg` are in units of the cost, of pixels in [-1, 1].

    Args:
        queries_per_step: Noisy gradients per update, each of its own batch.
        clip_norm: Clip norm of the gradient of a batch with respect to all generated images together.
        reg: Entropic strength. start_reg: The value from which ε-scaling starts.
        l1_weight: Weight m of the L1 distance in the cost ‖x−y‖² + m‖x−y‖₁.
        label_weight: Weight of the labels in the cost. debias_fraction: p of the semi-debiased Sinkhorn loss.
    """

    queries_per_step: _Queries | None = None
    clip_norm: Positive | None = None
    reg: Positive | None = None
    start_reg: Positive | None = None
    sinkhorn_iterations: Steps | None = None
    l1_weight: NotNegative | None = None
    label_weight: _LabelWeight | None = None
    debias_fraction: _Fraction | None = None


class BatchStepsRules(StageRules):
    """Constants: the settings, filled in.

    Args:
        num_fresh: n′, images in the debiasing term beyond the n images that meet records.
        capacity: Records that a query can hold. Fewer than one in 10,000 queries draws more.
    """

    queries_per_step: _Queries
    num_fresh: Annotated[int, Field(ge=0, le=MAX_IMAGES_A_STEP)]
    capacity: Annotated[int, Field(ge=1, le=MAX_RECORDS)]
    clip_norm: Positive
    reg: Positive
    start_reg: Positive
    sinkhorn_iterations: Steps
    l1_weight: NotNegative
    label_weight: _LabelWeight
    debias_fraction: _Fraction


class BatchSteps(Stage):
    """Clips the gradient of each query as a whole: sensitivity 2 × clip norm (Cao et al. 2021, algorithm 1)."""

    name = "batch_steps"
    settings_type = BatchStepsSettings
    rules_type = BatchStepsRules
    needs = ("counts", "pixels")
    trains = "batch"
    bounds_whole_batches = True
    mechanism = (
        "Poisson-subsampled Gaussian: the transport gradient of a whole subsample, clipped to L2 norm clip_norm "
        "(sensitivity 2 × clip_norm), plus normal noise of standard deviation noise_multiplier × sensitivity on every "
        "coordinate; queries_per_step such releases a step, each on a subsample of its own"
    )

    def queries_per_step(self, settings: Settings) -> int:
        """See `Stage`."""
        return settings.of(self.name, BatchStepsSettings).queries_per_step or _QUERIES

    def rules(self, settings: Settings, plan: PrivacyPlan, data: DataFacts) -> BatchStepsRules:
        """See `Stage`."""
        chosen, size = settings.of(self.name, BatchStepsSettings), math.prod(data.shape)
        debias = given(chosen.debias_fraction, _DEBIAS)
        reg = given(chosen.reg, _REG_A_PIXEL * size)
        batch = plan.expected_batch_size
        num_generated = self.num_generated(settings, plan, data.num_classes)
        return BatchStepsRules(
            queries_per_step=plan.queries_per_step,
            num_fresh=math.floor(num_generated * Fraction(debias).limit_denominator(10**6)),
            capacity=min(plan.num_records, math.ceil(batch + 4.0 * math.sqrt(batch))),
            clip_norm=given(chosen.clip_norm, _CLIP_NORM),
            reg=reg,
            start_reg=max(reg, given(chosen.start_reg, _START_REG_A_PIXEL * size)),
            sinkhorn_iterations=chosen.sinkhorn_iterations or _SINKHORN_ITERATIONS,
            l1_weight=given(chosen.l1_weight, 0.0),
            label_weight=given(chosen.label_weight, _LABEL_WEIGHT),
            debias_fraction=debias,
        )

    def num_generated(self, settings: Settings, plan: PrivacyPlan, num_classes: int) -> int:
        """See `Stage`."""
        return settings.num_generated or _GENERATED

    def images_a_step(self, rules: StageRules, num_generated: int) -> int:
        """See `Stage`."""
        assert isinstance(rules, BatchStepsRules)  # noqa: S101
        return num_generated + rules.num_fresh

    def default_learning_rate(self, plan: PrivacyPlan, num_generated: int) -> float:
        """See `Stage`."""
        return _LEARNING_RATE

    def optimiser(self, generator: Generator, learning_rate: float) -> Optimiser:
        """See `Stage`: Adam, as in the paper."""
        return adam(generator, learning_rate)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`."""
        setup = BatchSetup.of(self, state)
        state.clip_norm, state.sensitivity = setup.clip_norm, 2.0 * setup.clip_norm
        n, queries = setup.num_generated, setup.queries
        while (step := curator.taken(self.name) // queries) < state.plan.num_steps:
            state.step = step
            latents = state.begin_step()
            labels = setup.draw_labels(latents)
            images = state.generator.sample(labels, latents)
            labels = labels.to(images.device)
            finite_images(images)

            # −∂W(X, X′)/∂X needs no record and is the same for every query, so it is computed once per step.
            own = -setup.debiasing_gradient(images.detach(), labels)

            query = self.query(state, setup, images.detach()[:n], labels[:n], own[:n])
            released = curator.ask(query) / queries

            # The fresh images meet no record: clipped to the same length, as in algorithm 1, but without noise.
            fresh = own[n:] * (setup.clip_norm / own[n:].norm().clamp(min=1e-12)).clamp(max=1.0)
            gradient = torch.cat([released.to(images.dtype), fresh])
            state.update(images, gradient, float(released.norm()) / math.sqrt(n))
            yield

    def query(
        self,
        state: State,
        setup: "BatchSetup",
        x: Float[Tensor, "n d"],
        labels: Int64[Tensor, " n"],
        own: Float[Tensor, "n d"],
    ) -> Query:
        """The queries of a step: the gradient of a fresh subsample each, clipped as a whole."""
        public = {"images": x, "labels": labels, "potential": torch.zeros(len(x)).double().to(x.device), "own": own}
        return Query(
            self.charge(state.plan, count=setup.queries),
            2.0 * setup.clip_norm,
            ClippedBatches(setup, x, labels, own),
            public,
            capacity=setup.capacity,
        )

    def figures(self, curator: Curator, state: State) -> None:
        """See `Stage`: for one query: drawn records, whether its gradient is clipped, norms of gradient and noise."""
        setup, latents = BatchSetup.of(self, state), torch.Generator().manual_seed(0)
        labels = setup.draw_labels(latents)
        with torch.no_grad(), as_released(state.generator):
            images = state.generator.sample(labels, latents)
        labels, n = labels.to(images.device), setup.num_generated
        own = -setup.debiasing_gradient(images, labels)[:n]
        query = self.query(state, replace(setup, queries=1), images[:n], labels[:n], own)
        noise = query.charge.noise_multiplier * query.sensitivity * math.sqrt(own.numel())

        def measure(draw: Draw) -> Mapping[str, int | float]:
            assert draw.present is not None  # noqa: S101 - padded
            norm = float(ClippedBatches(setup, images[:n], labels[:n], own).gradients(draw).norm())
            return {
                "drawn": int(draw.present.sum()),
                "share_clipped": float(norm > setup.clip_norm),
                "signal_norm": min(norm, setup.clip_norm),
                "noise_norm": noise,
            }

        curator.figures(query, state.step, measure)

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        """See `Stage`."""
        return steps_problems(self, card, sensitivity=2.0 * card.clip_norm)

    def objective(self, facts: StageFacts) -> str:
        """See `Stage`."""
        return "with the Sinkhorn transport loss of [Cao et al. (2021)](https://arxiv.org/abs/2111.01177)"

    def worst(self, state: State) -> Worst:
        """See `Stage`: the gradient of the query is an enormous tensor with the worst record, its negative without it.

        A query may depend on its subsample in any way. This is the worst case: after clipping the two tensors are
        2·clip_norm apart.
        """
        pixels = super().worst(state).pixels

        def worst_query(query: Query) -> Query:
            sum_ = query.contribute
            assert isinstance(sum_, ClippedBatches)  # noqa: S101
            mark = to_unit_range(pixels)[0].to(sum_.x.device)
            return replace(
                query, contribute=replace(sum_, setup=replace(sum_.setup, cost=MarkedCost(sum_.setup.cost, mark)))
            )

        return Worst(pixels, query=worst_query)

    def scores(
        self, query: Query, answer: Tensor, known: Draw, chances: Float64[Tensor, " B"]
    ) -> Float64[Tensor, " B"] | None:
        """See `Stage`. A batch gradient is no sum over records, so a record's own transport gradient stands in."""
        assert isinstance(query.contribute, ClippedBatches)  # noqa: S101
        setup = query.contribute.setup
        rows = to_unit_range(known.view(setup.view)).to(torch.float64)
        return semi_dual_scores(query, answer, rows, known.labels, chances, 0.01 * rows.shape[1], setup.clip_norm)


@dataclass(frozen=True)
class PixelsView:
    """Flat images, as bytes."""

    device: str
    name: str = "pixels"

    def __call__(self, images: LabelledImages) -> UInt8[Tensor, "N d"]:
        """Compute the row of each image."""
        return images.pixels.flatten(1).to(self.device)


@dataclass(frozen=True, eq=False)
class BatchSetup:
    """Public constants of all steps; they depend on no record and no draw.

    Args:
        num_generated: n, images that meet records. num_fresh: n′ = ⌊n · debias_fraction⌋, further images.
        class_shares: (K,) shares of the generated labels. queries: Queries per step, each charged.
        capacity: Records that a query can hold.
    """

    view: PixelsView
    num_generated: int
    num_fresh: int
    debias_fraction: float
    class_shares: Float[Tensor, " K"]
    queries: int
    capacity: int
    clip_norm: float
    cost: Cost
    solver: Sinkhorn
    label_weight: float

    @classmethod
    def of(cls, stage: BatchSteps, state: State) -> "BatchSetup":
        """The constants of a run."""
        rules, config = state.config.rules_of(stage.name, BatchStepsRules), state.config
        return cls(
            view=PixelsView(config.device),
            num_generated=config.num_generated,
            num_fresh=rules.num_fresh,
            debias_fraction=rules.debias_fraction,
            class_shares=torch.tensor(state.class_shares),
            queries=rules.queries_per_step,
            capacity=rules.capacity,
            clip_norm=rules.clip_norm,
            cost=MixedCost(rules.l1_weight),
            # Records are private: nothing that is raised or said may depend on them.
            solver=Sinkhorn(rules.reg, rules.sinkhorn_iterations, start_reg=rules.start_reg, check=False),
            label_weight=rules.label_weight,
        )

    def draw_labels(self, latents: torch.Generator) -> Int64[Tensor, " total"]:
        """Draw the labels of the generated images of a step."""
        total = self.num_generated + self.num_fresh
        return torch.multinomial(self.class_shares, total, replacement=True, generator=latents)

    def debiasing_gradient(
        self, images: Float[Tensor, "total d"], labels: Int64[Tensor, " total"]
    ) -> Float[Tensor, "total d"]:
        """Gradient of W(X[:n], X[n′:n+n′]) with respect to X: a function of the model's own images only."""
        x = images.detach().requires_grad_()
        term = debiasing_term(x, self.cost, self.solver, self.debias_fraction, labels, self.label_weight)
        (gradient,) = torch.autograd.grad(term, x)
        return gradient


@dataclass(frozen=True, eq=False)
class ClippedBatches:
    """Sum over queries of ∂Ŝ/∂X[:n] = 2·∂W(X[:n], Y)/∂X + own, Y a fresh subsample, each clipped as a whole.

    Guarantees: adding or removing one record changes the term of each query by at most twice the clip norm. An empty
    subsample gives the clipped `own`. All shapes are public.
    """

    setup: BatchSetup
    x: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"]
    own: Float[Tensor, "n d"]

    def __call__(self, draw: Draw) -> BoundedSum:
        """The sum."""
        return together(
            clipped_queries(self.gradients(block), self.setup.clip_norm) for block in draw.blocks(QUERIES_AT_ONCE)
        )

    @torch.no_grad()
    def gradients(self, draw: Draw) -> Float[Tensor, "K n d"]:
        """∂Ŝ/∂X[:n] of several queries, solved as one batched problem. It is not clipped and as private as records."""
        setup, x = self.setup, self.x
        y = to_unit_range(draw.view(setup.view).flatten(0, 1)).unflatten(0, draw.labels.shape)
        assert draw.present is not None  # noqa: S101 - padded
        solved = transport_between(
            x,
            y,
            setup.cost,
            setup.solver,
            b=_uniform(draw.present.to(x.device), y),
            labels=(self.labels, draw.labels.to(x.device)),
            label_weight=setup.label_weight,
        )
        return setup.cost.gradient(solved.plan.mul_(2.0), x, y).add_(self.own)


@dataclass(frozen=True)
class MarkedCost:
    """A cost whose gradient over a subsample is an enormous tensor with the marked image, its negative without it.

    It acts on batched problems only: those are the queries that meet records.
    """

    cost: Cost
    mark: Float[Tensor, " d"]

    def matrix(self, x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]) -> Float[Tensor, "*k n m"]:
        """See `Cost`."""
        return self.cost.matrix(x, y)

    def gradient(
        self, weights: Float[Tensor, "*k n m"], x: Float[Tensor, "*#k n d"], y: Float[Tensor, "*#k m d"]
    ) -> Float[Tensor, "*k n d"]:
        """See `Cost`. All numbers of the enormous tensor are equal."""
        pull = self.cost.gradient(weights, x, y)
        if weights.ndim < 3:
            return pull
        present = (y == self.mark).all(-1).any(-1)
        return pull + torch.where(present, _ENORMOUS, -_ENORMOUS).to(pull.dtype).view(-1, 1, 1)


def _uniform(drawn: Tensor, like: Tensor) -> Float[Tensor, "K capacity"]:
    """Equal weights of sum 1 over the drawn records of each query; all 0 if none is drawn.

    Args:
        drawn: (K, capacity) bool.
    """
    weights = drawn.to(like.dtype)
    return weights / weights.sum(1, keepdim=True).clamp(min=1.0)
