"""One training step of the paper: whole-batch sanitising of a semi-debiased Sinkhorn loss, read top to bottom."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from dp_sinkhorn.data.images import to_unit_range
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import BoundedSum, clipped_queries, together
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.training.observation import Observation, Observer, unobserved
from dp_sinkhorn.training.optimiser import Updater
from dp_sinkhorn.transport.costs import Cost
from dp_sinkhorn.transport.divergence import debiasing_term, transport_between
from dp_sinkhorn.transport.sinkhorn import Sinkhorn

# Queries in one tensor: more would not stay in the cache (256 at once took 8 % longer than in blocks of 64), and
# memory stays bounded whatever `queries_per_step`.
QUERIES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class PixelRecords:
    """The records as the step needs them: flat images and labels. Never stored, never logged."""

    pixels: UInt8[Tensor, "N d"]
    labels: Int64[Tensor, " N"]


@dataclass(frozen=True, eq=False)
class BatchStepRules:
    """Public constants of every step: no record and no draw changes any of them.

    Args:
        num_generated: n, images that meet the records. num_fresh: n′ = ⌊n · debias_fraction⌋, images beyond them.
        class_shares: (K,) of the generated labels. queries: Subsamples that meet the same images, each charged.
        capacity: Records that a query can hold. mechanism: Of sensitivity 2·`clip_norm`.
    """

    num_generated: int
    num_fresh: int
    debias_fraction: float
    class_shares: Float[Tensor, " K"]
    queries: int
    capacity: int
    subsampler: PoissonSubsampler
    clip_norm: float
    mechanism: GaussianMechanism
    cost: Cost
    solver: Sinkhorn
    label_weight: float


def batch_step(
    generator: Generator,
    optimiser: Updater,
    records: PixelRecords,
    rules: BatchStepRules,
    latents: torch.Generator,
    random: CryptoRandom,
    observe: Observer = unobserved,
) -> float:
    """Move the generator once along the noisy gradient. The caller has charged every query of this step.

    Returns:
        Root mean square of the released gradient an image (public).

    Raises:
        FloatingPointError: The generator's images are not finite (a public fact).
    """
    n = rules.num_generated
    labels = torch.multinomial(rules.class_shares, n + rules.num_fresh, replacement=True, generator=latents)
    images = generator.sample(labels, latents)
    labels = labels.to(images.device)
    if not bool(torch.isfinite(images).all()):
        raise FloatingPointError("the generator's images are not finite")

    # −∂W(X, X′)/∂X needs no record and is the same for every query: once a step.
    own = -debiasing_gradient(images.detach(), labels, rules)

    # The private side: what leaves it is `released`, noise and all.
    total = query_sum(images.detach()[:n], labels[:n], own[:n], records, rules, random)
    noisy = rules.mechanism(total, random)
    observe(Observation(images.detach()[:n], labels[:n], torch.zeros_like(noisy[:, 0]), noisy))
    released = noisy / rules.queries

    # The fresh images never met a record: clipped to the same length, as in algorithm 1, but without noise.
    fresh = own[n:] * (rules.clip_norm / own[n:].norm().clamp(min=1e-12)).clamp(max=1.0)
    gradient = torch.cat([released.to(images.dtype), fresh])
    optimiser.zero_grad()
    images.backward(gradient)
    optimiser.step()
    return float(released.norm()) / math.sqrt(n)


def debiasing_gradient(
    images: Float[Tensor, "total d"], labels: Int64[Tensor, " total"], rules: BatchStepRules
) -> Float[Tensor, "total d"]:
    """Gradient of W(X[:n], X[n′:n+n′]) with respect to all of X: a function of the model's own images."""
    x = images.detach().requires_grad_()
    term = debiasing_term(x, rules.cost, rules.solver, rules.debias_fraction, labels, rules.label_weight)
    (gradient,) = torch.autograd.grad(term, x)
    return gradient


def query_sum(
    x: Float[Tensor, "n d"],
    x_labels: Int64[Tensor, " n"],
    own: Float[Tensor, "n d"],
    records: PixelRecords,
    rules: BatchStepRules,
    random: CryptoRandom,
) -> BoundedSum:
    """Sum over the queries of ∂Ŝ/∂X[:n] = 2·∂W(X[:n], Y)/∂X + own, Y a fresh subsample, each clipped as a whole.

    Guarantees: one record more or less changes each query's term by at most the mechanism's sensitivity. An empty
    subsample gives the clipped `own`. All shapes are public.
    """
    index, drawn = rules.subsampler.draw_padded(rules.queries, rules.capacity, random)
    blocks = zip(index.to(x.device).split(QUERIES_AT_ONCE), drawn.to(x.device).split(QUERIES_AT_ONCE), strict=True)
    return together(
        clipped_queries(query_gradients(x, x_labels, own, records, rules, *block), rules.clip_norm) for block in blocks
    )


@torch.no_grad()
def query_gradients(
    x: Float[Tensor, "n d"],
    x_labels: Int64[Tensor, " n"],
    own: Float[Tensor, "n d"],
    records: PixelRecords,
    rules: BatchStepRules,
    index: Int64[Tensor, "K capacity"],
    drawn: Bool[Tensor, "K capacity"],
) -> Float[Tensor, "K n d"]:
    """∂Ŝ/∂X[:n] of some queries, solved as one batched problem. Not clipped yet: as private as the records."""
    y = to_unit_range(records.pixels.index_select(0, index.flatten())).unflatten(0, index.shape)
    y_labels = records.labels[index]
    solved = transport_between(
        x,
        y,
        rules.cost,
        rules.solver,
        b=_uniform(drawn, y),
        labels=(x_labels, y_labels),
        label_weight=rules.label_weight,
    )
    return rules.cost.gradient(solved.plan.mul_(2.0), x, y).add_(own)


def _uniform(drawn: Bool[Tensor, "K capacity"], like: Tensor) -> Float[Tensor, "K capacity"]:
    """Weights that share 1 among the drawn records of a query; all 0 where none was drawn."""
    weights = drawn.to(like.dtype)
    return weights / weights.sum(1, keepdim=True).clamp(min=1.0)
