"""Figures about the steps that only the records' curator may see: they are not noised, and ε does not cover them.

Each is worked out on a subsample of its own, which is thrown away: the steps themselves do not change.
"""

import math

import torch

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.privacy.clipping import clip_factors
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.stages.batch_steps import BatchStepRules, PixelRecords, debiasing_gradient, query_gradients
from dp_sinkhorn.stages.transport_steps import PrivateRecords, StepRules, record_contributions

Figures = dict[str, int | float]


@torch.no_grad()
def record_figures(generator: Generator, records: PrivateRecords, rules: StepRules, random: CryptoRandom) -> Figures:
    """Drawn records, share of them clipped, and the length of their clipped sum beside that of the noise.

    At f = 0, whatever potential the steps fit.
    """
    x = rules.coordinates(generator.sample(rules.labels, torch.Generator().manual_seed(0)))
    potentials = [torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)] * x.shape[0]
    clip_norm, drawn, clipped, square = rules.mechanism.sensitivity, 0, 0, 0.0
    for part in record_contributions(x, potentials, records, rules, random):
        norms = part.norms()
        drawn, clipped = drawn + norms.numel(), clipped + int((norms > clip_norm).sum())
        square += float(part.weighted_sum(clip_factors(norms, clip_norm)).square().sum())
    noise = rules.mechanism.noise_stddev * math.sqrt(x.numel())
    return {
        "drawn": drawn,
        "share_clipped": clipped / max(drawn, 1),
        "signal_norm": math.sqrt(square),
        "noise_norm": noise,
    }


def batch_figures(generator: Generator, records: PixelRecords, rules: BatchStepRules, random: CryptoRandom) -> Figures:
    """The same of one query: drawn records, whether its gradient was clipped, its clipped length and the noise's."""
    latents = torch.Generator().manual_seed(0)
    labels = torch.multinomial(rules.class_shares, rules.num_generated + rules.num_fresh, True, generator=latents)
    with torch.no_grad():
        images = generator.sample(labels, latents)
    labels, n = labels.to(images.device), rules.num_generated
    own = -debiasing_gradient(images, labels, rules)[:n]
    index, drawn = rules.subsampler.draw_padded(1, rules.capacity, random)
    gradient = query_gradients(images[:n], labels[:n], own, records, rules, index.to(own.device), drawn.to(own.device))
    norm = float(gradient.norm())
    return {
        "drawn": int(drawn.sum()),
        "share_clipped": float(norm > rules.clip_norm),
        "signal_norm": min(norm, rules.clip_norm),
        "noise_norm": rules.mechanism.noise_stddev * math.sqrt(gradient[0].numel()),
    }
