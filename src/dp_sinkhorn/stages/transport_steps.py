"""One private training step, read top to bottom."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.class_weights import class_weights, hidden_classes
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import BoundedSum, clipped_sum, disjoint
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.training.observation import Observation, Observer, unobserved
from dp_sinkhorn.training.optimiser import Updater
from dp_sinkhorn.transport.semidual import SemiDualContributions, balanced_potential

Coordinates = Float64[Tensor, "K n_k r"]

# Noise on one image's own pull, in clip norms, that hides a class. Chosen on a long-tailed MNIST: docs/tried.md.
_HIDING_NOISE = 10.0


@dataclass(frozen=True, eq=False)
class PrivateRecords:
    """The records as the step needs them: coordinates in the subspace, and labels. Never stored, never logged."""

    coordinates: Float64[Tensor, "N r"]
    labels: Int64[Tensor, " N"]


@dataclass(frozen=True, eq=False)
class StepRules:
    """Public constants of every step: no record and no draw changes any of them.

    Args:
        subspace: Where costs and noise live. labels: (n,) of the generated images, sorted, n/K a class.
        reference_labels: The same for the model's own images that stand against the records.
        expected_counts: (K,) q·N·π_k, what a class's sum is divided by; never the drawn number.
        reg: Entropic strength λ. rest_weight: pull of what the subspace does not see towards its centre.
        variance: V, the released E‖y − centre‖² of the records; images whose own is larger are held back.
    """

    subspace: Subspace
    labels: Int64[Tensor, " n"]
    reference_labels: Int64[Tensor, " m"]
    expected_counts: Float64[Tensor, " K"]
    subsampler: PoissonSubsampler
    mechanism: GaussianMechanism
    reg: float
    potential_iterations: int
    rest_weight: float
    variance: float

    def hidden(self) -> Bool[Tensor, " K"]:
        """The classes that the noise hides."""
        images = self.labels.numel() // self.expected_counts.numel()
        noise = self.mechanism.noise_multiplier * images / self.expected_counts
        return hidden_classes(noise > _HIDING_NOISE, self.expected_counts)

    def coordinates(self, images: Float[Tensor, "n d"]) -> Coordinates:
        """Coordinates of generated images, class by class."""
        projected = self.subspace.project(images.detach()).to(torch.float64)
        return projected.view(self.expected_counts.numel(), -1, projected.shape[1])


def training_step(
    generator: Generator,
    optimiser: Updater,
    records: PrivateRecords,
    rules: StepRules,
    latents: torch.Generator,
    random: CryptoRandom,
    observe: Observer = unobserved,
) -> float:
    """Move the generator once along the noisy field. The caller has charged this step.

    Returns:
        Root mean square of the released field a generated image, in units of the coordinates (public).

    Raises:
        FloatingPointError: The generator's images are not finite (a public fact).
    """
    images = generator.sample(rules.labels, latents)
    x = rules.coordinates(images)
    with torch.no_grad():
        model = rules.coordinates(generator.sample(rules.reference_labels, latents))
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("the generator's images are not finite")
    to_fit, to_compare = _split(model, rules.potential_iterations)
    potentials = [
        balanced_potential(x_k, fit_k, rules.reg, rules.potential_iterations)
        for x_k, fit_k in zip(x, to_fit, strict=True)
    ]

    # The private side: what leaves it is `released`, noise and all.
    total = record_sum(x, potentials, records, rules, random)
    released = rules.mechanism(total, random)
    observe(Observation(x.flatten(0, 1), rules.labels, torch.cat(potentials), released.flatten(0, 1)))

    # The same functional of the model's own images, and their difference: zero when model = data.
    own = class_sums(x, list(to_compare), potentials, rules).value / to_compare.shape[1]
    wanted = released / rules.expected_counts.view(-1, 1, 1)
    hidden = rules.hidden()
    if bool(hidden.any()):
        others = class_sums(x, _of_others(to_compare, hidden, rules, latents), potentials, rules).value
        wanted = torch.where(hidden.view(-1, 1, 1), others / to_compare.shape[1], wanted)
    field = wanted - own

    # A record's mass is shared by the n/K images of its class: times n/K, the field is one image's own pull.
    pull = (field * class_weights(rules.expected_counts).view(-1, 1, 1) * x.shape[1]).flatten(0, 1)
    detached = images.detach()
    gradient = rules.subspace.lift(pull.to(images.dtype)) + rules.rest_weight * rules.subspace.rest(detached)
    gradient += hold(detached - rules.subspace.centre, rules.variance, float(pull.norm()))
    optimiser.zero_grad()
    images.backward(gradient)
    optimiser.step()
    return float(pull.norm()) / math.sqrt(pull.shape[0])


def hold(centred: Float[Tensor, "n d"], variance: float, strength: float) -> Float[Tensor, "n d"]:
    """A pull back to the centre of norm strength · excess, by how much more the images vary than the records, relative.

    Where noise is all that a field of this strength holds, it drives images ever further out, until every pixel is
    quite black or white. Zero where the images vary less than the records.
    """
    total = float(centred.square().sum())
    excess = total / (centred.shape[0] * variance) - 1.0
    return centred * (strength * excess / math.sqrt(total)) if excess > 0.0 else torch.zeros_like(centred)


def record_sum(
    x: Coordinates,
    potentials: list[Float64[Tensor, " n_k"]],
    records: PrivateRecords,
    rules: StepRules,
    random: CryptoRandom,
) -> BoundedSum:
    """Clipped contributions of a fresh Poisson subsample, summed, class by class.

    Guarantees: adding or removing one record changes the value by at most the mechanism's sensitivity. An
    empty draw gives zeros of the same shape.
    """
    return _sum(record_contributions(x, potentials, records, rules, random), rules)


def record_contributions(
    x: Coordinates,
    potentials: list[Float64[Tensor, " n_k"]],
    records: PrivateRecords,
    rules: StepRules,
    random: CryptoRandom,
) -> list[SemiDualContributions]:
    """What a fresh Poisson subsample would add, class by class, not clipped yet: as private as the records."""
    drawn = rules.subsampler.draw(random).to(records.labels.device)
    coordinates, labels = records.coordinates[drawn], records.labels[drawn]
    return _contributions(x, [coordinates[labels == k] for k in range(x.shape[0])], potentials, rules)


def class_sums(
    x: Coordinates,
    samples: list[Float[Tensor, "_ r"]],
    potentials: list[Float64[Tensor, " n_k"]],
    rules: StepRules,
) -> BoundedSum:
    """Sum of the clipped contributions of the samples of each class to the images of that class."""
    return _sum(_contributions(x, samples, potentials, rules), rules)


def _contributions(
    x: Coordinates,
    samples: list[Float[Tensor, "_ r"]],
    potentials: list[Float64[Tensor, " n_k"]],
    rules: StepRules,
) -> list[SemiDualContributions]:
    return [
        SemiDualContributions.of(x_k, y_k, f_k, rules.reg) for x_k, y_k, f_k in zip(x, samples, potentials, strict=True)
    ]


def _sum(contributions: list[SemiDualContributions], rules: StepRules) -> BoundedSum:
    return disjoint([clipped_sum(part, rules.mechanism.sensitivity) for part in contributions])


def _of_others(
    model: Float64[Tensor, "K m r"], hidden: Bool[Tensor, " K"], rules: StepRules, latents: torch.Generator
) -> list[Float64[Tensor, "_ r"]]:
    """What a hidden class is led to: m of the model's images of all other classes, in their shares; nothing else."""
    shares = torch.where(hidden, 0.0, rules.expected_counts).cpu()
    classes, each = model.shape[:2]
    labels = shares.expand(classes, -1).multinomial(each, replacement=True, generator=latents).to(model.device)
    places = torch.arange(each, device=model.device)
    return [model[labels[k], places] if hidden[k] else model[k, :0] for k in range(classes)]


def _split(model: Float64[Tensor, "K m r"], iterations: int) -> tuple[Tensor, Tensor]:
    """Images to fit the potential on, and others to compare with (all of them where nothing is fitted)."""
    if iterations == 0:
        return model[:, :0], model
    half = model.shape[1] // 2
    return model[:, :half], model[:, half:]
