"""Stage: steps along the noisy transport gradient, in which each record's contribution is clipped individually."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import Field
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.class_weights import class_weights, hidden_classes
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.generators.base import as_released
from dp_sinkhorn.privacy.clipping import BoundedSum, clip_factors, clipped_sum, disjoint
from dp_sinkhorn.privacy.curator import Curator, Draw, Query
from dp_sinkhorn.privacy.plan import PrivacyPlan, more_steps
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.settings import (
    MAX_NUMBER,
    DataFacts,
    Images,
    Iterations,
    NotNegative,
    Settings,
    StageRules,
    StageSettings,
    given,
)
from dp_sinkhorn.stages.base import (
    Stage,
    StageFacts,
    State,
    Worst,
    finite_images,
    hidden_warning,
    multiple,
    root_mean_square,
    steps_problems,
)
from dp_sinkhorn.transport.semidual import SemiDualContributions, balanced_potential

# Generated and reference images per step, all classes together, and the least of each class. With more noise per record
# there are fewer of both and more steps. Chosen on MNIST: decision 11.
_GENERATED, _REFERENCE, _MIN_PER_CLASS = 200, 500, 8
# Least number of generated images under any noise, and least number of each class as a part of `_GENERATED`. Chosen on
# PneumoniaMNIST: decision 11.
_LEAST_GENERATED, _LEAST_OF_A_CLASS = 40, 0.1
# Clip norm below and above a noise on an image, in units of √V. Chosen on MNIST at ε = 10 (noise 0.08) and on digits
# (noise 2): decision 11.
_CLIP_LITTLE, _CLIP_MUCH, _LITTLE_NOISE = 1.1, 0.55, 0.2
# Full learning rate; noise on an image up to which it applies; least length of a random walk of noise alone, in updates
# at the full rate. Chosen on MNIST and a long-tailed MNIST: decision 13.
_LEARNING_RATE, _NOISE_OF_FULL_RATE, _WALK = 4e-3, 0.5, 8.0
_RELATIVE_REG, _REST_WEIGHT = 0.01, 0.1
# Noise on the pull of one image, in clip norms, above which a class may be hidden. Chosen on a long-tailed MNIST:
# decision 12.
_HIDING_NOISE = 10.0
# An audit's worst record is farther away than any image by this factor.
_FAR = 1e3

# In units of √V and V. Below the lower bounds the rounding of distances is not small beside a clip norm.
_RelativeNorm = Annotated[float, Field(ge=0.01, le=MAX_NUMBER, allow_inf_nan=False)]
_RelativeReg = Annotated[float, Field(ge=1e-4, le=MAX_NUMBER, allow_inf_nan=False)]

Coordinates = Float64[Tensor, "K n_k r"]


class TransportStepsSettings(StageSettings):
    """What a user may choose.

    Args:
        num_reference: m, further images of the model per step, for debiasing.
        relative_clip_norm: Clip norm in units of √V, the released standard deviation of the records.
        relative_reg: Entropic strength in units of V.
        potential_iterations: Sinkhorn half-iterations for the potential; 0: semi-relaxed transport.
        rest_weight: Strength of the pull towards the centre outside the subspace.
    """

    num_reference: Images | None = None
    relative_clip_norm: _RelativeNorm | None = None
    relative_reg: _RelativeReg | None = None
    potential_iterations: Iterations | None = None
    rest_weight: NotNegative | None = None


class TransportStepsRules(StageRules):
    """Constants: the settings, filled in."""

    num_reference: Images
    relative_clip_norm: _RelativeNorm
    relative_reg: _RelativeReg
    potential_iterations: Iterations
    rest_weight: NotNegative


class TransportStepsFacts(StageFacts):
    """Facts for the card.

    Args:
        potential_iterations: 0: semi-relaxed transport. None: a card of version 1, which does not state it.
    """

    potential_iterations: Iterations | None


class TransportSteps(Stage):
    """Clips each record's contribution individually, in the released subspace: the sensitivity is the clip norm."""

    name = "transport_steps"
    settings_type = TransportStepsSettings
    rules_type = TransportStepsRules
    facts_type = TransportStepsFacts
    needs = ("counts", "subspace", "coordinates")
    trains = "record"
    mechanism = (
        "Poisson-subsampled Gaussian: the sum of per-record transport gradients, each clipped to L2 norm clip_norm "
        "(sensitivity clip_norm), plus normal noise of standard deviation noise_multiplier × sensitivity on every "
        "coordinate"
    )

    def rules(self, settings: Settings, plan: PrivacyPlan, data: DataFacts) -> TransportStepsRules:
        """See `Stage`."""
        chosen = settings.of(self.name, TransportStepsSettings)
        reference = chosen.num_reference or _fewer(plan, _REFERENCE)
        num_generated = self.num_generated(settings, plan, data.num_classes)
        return TransportStepsRules(
            num_reference=multiple(reference, data.num_classes, _MIN_PER_CLASS),
            relative_clip_norm=chosen.relative_clip_norm or _clip_norm(plan, num_generated),
            relative_reg=given(chosen.relative_reg, _RELATIVE_REG),
            potential_iterations=chosen.potential_iterations or 0,
            rest_weight=given(chosen.rest_weight, _REST_WEIGHT),
        )

    def num_generated(self, settings: Settings, plan: PrivacyPlan, num_classes: int) -> int:
        """See `Stage`: by default as many as keep the noise on each small.

        The noise on an image grows with the number of images that share the records.
        """
        most = _fewer(plan, _GENERATED)
        quiet = int(_LITTLE_NOISE / _relative_noise(plan, 1))
        least = max(_LEAST_GENERATED, round(_LEAST_OF_A_CLASS * most) * num_classes)
        default = min(most, max(least, quiet // num_classes * num_classes))
        return multiple(settings.num_generated or default, num_classes, _MIN_PER_CLASS)

    def images_a_step(self, rules: StageRules, num_generated: int) -> int:
        """See `Stage`."""
        assert isinstance(rules, TransportStepsRules)  # noqa: S101
        return num_generated + rules.num_reference

    def default_learning_rate(self, plan: PrivacyPlan, num_generated: int) -> float:
        """See `Stage`: it falls with the noise on an image.

        The lower bound, proportional to 1/√T, lets T updates of noise alone walk as far as `_WALK` updates.
        """
        share = max(_NOISE_OF_FULL_RATE / _relative_noise(plan, num_generated), _WALK / math.sqrt(plan.num_steps))
        return _LEARNING_RATE * min(1.0, share)

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`."""
        setup = TransportSetup.of(self, state)
        state.clip_norm = state.sensitivity = setup.clip_norm
        state.hidden = setup.hidden()
        while (step := curator.taken(self.name)) < state.plan.num_steps:
            state.step = step
            latents = state.begin_step()
            images = state.generator.sample(setup.labels, latents)
            x = setup.coordinates(images)
            with torch.no_grad():
                model = setup.coordinates(state.generator.sample(setup.reference_labels, latents))
            finite_images(x)
            to_fit, to_compare = _split(model, setup.potential_iterations)
            potentials = [
                balanced_potential(x_k, fit_k, setup.reg, setup.potential_iterations)
                for x_k, fit_k in zip(x, to_fit, strict=True)
            ]

            released = curator.ask(self.query(state, setup, x, potentials))

            # Debias by the same functional of the model's own images: the difference is zero when model = data.
            own = setup.class_sums(x, list(to_compare), potentials).value / to_compare.shape[1]
            wanted = released / setup.expected_counts.view(-1, 1, 1)
            if bool(state.hidden.any()):
                others = setup.class_sums(x, _of_others(to_compare, setup, state.hidden, latents), potentials).value
                wanted = torch.where(state.hidden.view(-1, 1, 1), others / to_compare.shape[1], wanted)
            field = wanted - own

            # The n/K images of a class share a record's mass: n/K times the field is the pull of one image.
            pull = (field * class_weights(setup.expected_counts).view(-1, 1, 1) * x.shape[1]).flatten(0, 1)
            detached = images.detach()
            gradient = setup.subspace.lift(pull.to(images.dtype))
            gradient = gradient + setup.rest_weight * setup.subspace.rest(detached)
            gradient += variance_penalty(detached - setup.subspace.centre, setup.variance, float(pull.norm()))
            state.update(images, gradient, root_mean_square(pull))
            yield

    def query(
        self, state: State, setup: "TransportSetup", x: Coordinates, potentials: list[Float64[Tensor, " n_k"]]
    ) -> Query:
        """The query for the sum of clipped contributions of a subsample to the images at `x`, class by class."""
        public = {"images": x.flatten(0, 1), "labels": setup.labels, "potential": torch.cat(potentials)}
        contribute = ClippedTransport(setup, x, potentials)
        return Query(self.charge(state.plan, count=1), setup.clip_norm, contribute, public)

    @torch.no_grad()
    def figures(self, curator: Curator, state: State) -> None:
        """See `Stage`: number of drawn records, share of them clipped, norm of their clipped sum and of the noise.

        They are measured at f = 0, also where the steps fit a potential.
        """
        setup = TransportSetup.of(self, state)
        with as_released(state.generator):
            x = setup.coordinates(state.generator.sample(setup.labels, torch.Generator().manual_seed(0)))
        potentials = [torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)] * x.shape[0]
        query = self.query(state, setup, x, potentials)
        noise = query.charge.noise_multiplier * query.sensitivity * math.sqrt(x.numel())

        def measure(draw: Draw) -> Mapping[str, int | float]:
            drawn, clipped, square = 0, 0, 0.0
            for part in ClippedTransport(setup, x, potentials).contributions(draw):
                norms = part.norms()
                drawn, clipped = drawn + norms.numel(), clipped + int((norms > setup.clip_norm).sum())
                square += float(part.weighted_sum(clip_factors(norms, setup.clip_norm)).square().sum())
            share = clipped / max(drawn, 1)
            return {"drawn": drawn, "share_clipped": share, "signal_norm": math.sqrt(square), "noise_norm": noise}

        curator.figures(query, state.step, measure)

    def facts(self, state: State) -> TransportStepsFacts:
        """See `Stage`."""
        rules = state.config.rules_of(self.name, TransportStepsRules)
        return TransportStepsFacts(potential_iterations=rules.potential_iterations)

    def warnings(self, state: State) -> tuple[str, ...]:
        """See `Stage`."""
        return hidden_warning(state)

    def problems(self, facts: StageFacts, card: PrivacyCard) -> Iterator[str]:
        """See `Stage`."""
        yield from steps_problems(self, card, sensitivity=card.clip_norm)
        if card.queries_per_step != 1:
            yield f"mode {card.mode!r} makes one query a step, but the card claims {card.queries_per_step}"
        if card.card_version > 1 and self.facts_of(facts, TransportStepsFacts).potential_iterations is None:
            yield f"the card does not say how many potential_iterations the stage {self.name!r} made"

    def describe(self, facts: StageFacts) -> dict[str, str]:
        """See `Stage`."""
        iterations = self.facts_of(facts, TransportStepsFacts).potential_iterations
        if iterations is None:
            return {}
        free = "semi-relaxed entropic transport" if iterations == 0 else f"{iterations} iterations for the potential"
        return {"transport": f"{free}, debiased by the model's own images"}

    def objective(self, facts: StageFacts) -> str:
        """See `Stage`."""
        iterations = self.facts_of(facts, TransportStepsFacts).potential_iterations
        kind = "semi-relaxed entropic transport" if iterations == 0 else "entropic transport"
        paper = "[Cao et al. (2021)](https://arxiv.org/abs/2111.01177)"
        limit = "; not a Sinkhorn divergence with two fixed marginals" if iterations == 0 else ""
        return f"along {kind} to the records, debiased by its own images (after {paper}{limit})"

    def worst(self, state: State) -> Worst:
        """See `Stage`."""
        return Worst(super().worst(state).pixels, factors={"coordinates": _FAR})

    def scores(
        self, query: Query, answer: Tensor, known: Draw, chances: Float64[Tensor, " B"]
    ) -> Float64[Tensor, " B"] | None:
        """See `Stage`: ⟨R − E, d⟩, d the clipped contribution of a record, E the expected sum of the known records."""
        assert isinstance(query.contribute, ClippedTransport)  # noqa: S101
        rows, setup = known.view(query.contribute.setup.view), query.contribute.setup
        return semi_dual_scores(query, answer, rows, known.labels, chances, setup.reg, setup.clip_norm)


@dataclass(frozen=True, eq=False)
class CoordinatesView:
    """Coordinates of records in the released subspace, in float64.

    They are computed in float64, because a row of a float32 matrix product may depend on the other rows of its chunk.
    """

    subspace: Subspace
    device: str
    name: str = "coordinates"

    def __call__(self, images: LabelledImages) -> Float64[Tensor, "N r"]:
        """Compute the row of each image, a few thousand images at a time."""
        exact = self.subspace.to(self.device, torch.float64)
        chunks = images.float_chunks()
        return torch.cat([exact.project(chunk.to(self.device).double()) for chunk in chunks])


@dataclass(frozen=True, eq=False)
class TransportSetup:
    """Public constants of all steps; they depend on no record and no draw.

    Args:
        view: The view of the records. subspace: The subspace of costs and noise.
        labels: (n,) sorted labels of the generated images, n/K per class.
        reference_labels: (m,) the same for the reference images.
        expected_counts: (K,) q·N·π_k, by which the sum of a class is divided; never the drawn number.
        reg: Entropic strength λ. rest_weight: Strength of the pull towards the centre outside the subspace.
        variance: V, the released E‖y − centre‖² of the records.
    """

    view: CoordinatesView
    subspace: Subspace
    labels: Int64[Tensor, " n"]
    reference_labels: Int64[Tensor, " m"]
    expected_counts: Float64[Tensor, " K"]
    clip_norm: float
    noise_multiplier: float
    reg: float
    potential_iterations: int
    rest_weight: float
    variance: float

    @classmethod
    def of(cls, stage: TransportSteps, state: State) -> "TransportSetup":
        """The constants of a run."""
        rules, config = state.config.rules_of(stage.name, TransportStepsRules), state.config
        classes, charge = config.data.num_classes, stage.charge(state.plan)

        def labels(images: int) -> Tensor:
            return torch.arange(classes, device=config.device).repeat_interleave(images // classes)

        return cls(
            view=CoordinatesView(state.subspace, config.device),
            subspace=state.subspace.to(config.device),
            labels=labels(config.num_generated),
            reference_labels=labels(rules.num_reference),
            expected_counts=(charge.sample_rate * state.class_counts).to(config.device),
            clip_norm=rules.relative_clip_norm * math.sqrt(state.variance),
            noise_multiplier=charge.noise_multiplier,
            reg=rules.relative_reg * state.variance,
            potential_iterations=rules.potential_iterations,
            rest_weight=rules.rest_weight,
            variance=state.variance,
        )

    def hidden(self) -> Bool[Tensor, " K"]:
        """(K,) True for classes that noise hides."""
        images = self.labels.numel() // self.expected_counts.numel()
        noise = self.noise_multiplier * images / self.expected_counts
        return hidden_classes(noise > _HIDING_NOISE, self.expected_counts)

    def coordinates(self, images: Float[Tensor, "n d"]) -> Coordinates:
        """Coordinates of generated images, class by class."""
        projected = self.subspace.project(images.detach()).to(torch.float64)
        return projected.view(self.expected_counts.numel(), -1, projected.shape[1])

    def class_sums(
        self, x: Coordinates, samples: list[Float[Tensor, "_ r"]], potentials: list[Float64[Tensor, " n_k"]]
    ) -> BoundedSum:
        """Sum of the clipped contributions of the samples of each class to the images of that class."""
        parts = contributions(x, samples, potentials, self.reg)
        return disjoint([clipped_sum(part, self.clip_norm) for part in parts])


@dataclass(frozen=True, eq=False)
class ClippedTransport:
    """The sum of the clipped contributions of the drawn records, class by class.

    Guarantees: adding or removing one record changes the value by at most the clip norm. An empty draw gives zeros of
    the same shape.
    """

    setup: TransportSetup
    x: Coordinates
    potentials: list[Float64[Tensor, " n_k"]]

    def __call__(self, draw: Draw) -> BoundedSum:
        """The sum."""
        return disjoint([clipped_sum(part, self.setup.clip_norm) for part in self.contributions(draw)])

    def contributions(self, draw: Draw) -> list[SemiDualContributions]:
        """The contributions of the drawn records, not clipped: as private as the records."""
        rows = draw.view(self.setup.view)
        labels = draw.labels.to(rows.device)
        return contributions(
            self.x, [rows[labels == k] for k in range(self.x.shape[0])], self.potentials, self.setup.reg
        )


def contributions(
    x: Coordinates,
    samples: list[Float[Tensor, "_ r"]],
    potentials: list[Float64[Tensor, " n_k"]],
    reg: float,
) -> list[SemiDualContributions]:
    """Contributions of the samples of each class to the images of that class."""
    return [SemiDualContributions.of(x_k, y_k, f_k, reg) for x_k, y_k, f_k in zip(x, samples, potentials, strict=True)]


def variance_penalty(centred: Float[Tensor, "n d"], variance: float, strength: float) -> Float[Tensor, "n d"]:
    """Gradient, of norm strength · excess, whose descent moves images to the centre if they vary more than the records.

    The excess is (variance of the images)/(variance of the records) − 1; if it is negative, the gradient is 0. Without
    this penalty a field of noise alone drives the images outwards until every pixel is black or white.

    Args:
        centred: The images minus the centre. variance: V of the records. strength: Norm of the field.
    """
    total = float(centred.square().sum())
    excess = total / (centred.shape[0] * variance) - 1.0
    return centred * (strength * excess / math.sqrt(total)) if excess > 0.0 else torch.zeros_like(centred)


def semi_dual_scores(
    query: Query,
    answer: Tensor,
    rows: Float64[Tensor, "B r"],
    labels: Int64[Tensor, " B"],
    chances: Float64[Tensor, " B"],
    reg: float,
    clip_norm: float,
) -> Float64[Tensor, " B"]:
    """⟨R − E, d⟩ of each record, d_i = 2·w·p_i·(x_i − y), without a (B, n, d) tensor.

    R is the answer and E the expected sum of the known records.

    Args:
        query: Its public tensors are the images, their labels and their potential.
        answer: (…, d), one row per image. rows: The records. chances: Probability of each to be drawn.
    """
    images, classes, potential = (query.public[name] for name in ("images", "labels", "potential"))
    released, labels = answer.flatten(0, -2), labels.to(rows.device)
    scores = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for label in classes.unique().tolist():
        of_class, own = classes == label, labels == label
        x, y = images[of_class].double(), rows[own]
        each = SemiDualContributions.of(x, y, potential[of_class], reg)
        factors = clip_factors(each.norms(), clip_norm)
        news = released[of_class] - each.weighted_sum(factors * chances.to(factors)[own])
        inner = (news * x).sum(1) - y @ news.T
        scores[own] = 2.0 * factors * (each.plan * inner).sum(1)
    return scores


def _of_others(
    model: Float64[Tensor, "K m r"], setup: TransportSetup, hidden: Bool[Tensor, " K"], latents: torch.Generator
) -> list[Float64[Tensor, "_ r"]]:
    """Targets of a hidden class: m images of the model from the other classes, in their shares. Else no images."""
    shares = torch.where(hidden, 0.0, setup.expected_counts).cpu()
    classes, each = model.shape[:2]
    labels = shares.expand(classes, -1).multinomial(each, replacement=True, generator=latents).to(model.device)
    places = torch.arange(each, device=model.device)
    return [model[labels[k], places] if hidden[k] else model[k, :0] for k in range(classes)]


def _split(model: Float64[Tensor, "K m r"], iterations: int) -> tuple[Tensor, Tensor]:
    """Images for the fit of the potential, and other images for debiasing: all of them if no potential is fitted."""
    if iterations == 0:
        return model[:, :0], model
    half = model.shape[1] // 2
    return model[:, :half], model[:, half:]


def _fewer(plan: PrivacyPlan, images: int) -> int:
    return round(images / more_steps(plan.noise_per_record))


def _relative_noise(plan: PrivacyPlan, num_generated: int) -> float:
    """Noise on the pull of one image, in units of the clip norm."""
    return plan.noise_multiplier * num_generated / plan.expected_batch_size


def _clip_norm(plan: PrivacyPlan, num_generated: int) -> float:
    """Clip norm in units of √V: larger where the noise on an image is small."""
    return _CLIP_LITTLE if _relative_noise(plan, num_generated) < _LITTLE_NOISE else _CLIP_MUCH
