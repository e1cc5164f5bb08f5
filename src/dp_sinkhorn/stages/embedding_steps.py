"""Steps on the class embedding after those record by record: they see no record, and cost time only."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from dp_sinkhorn.generators.base import Generator, as_released
from dp_sinkhorn.generators.mixture import MixtureGenerator
from dp_sinkhorn.privacy.plan import CLASS_EMBEDDING
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.class_embedding import EmbeddingStepRules, embedding_rules, embedding_step
from dp_sinkhorn.stages.principal_subspace import ReleasedStatistics
from dp_sinkhorn.training.optimiser import learning_rate_share, make_optimiser, update_average

# Of the latents, apart from those of the steps before.
_SEED = 0x3A7C_4ED5
# As `HIDING_NOISE`, and less: what the steps before have made of such a class is better than what its embedding tells.
_HIDING_NOISE = 0.025
# Steps whose images say what a class that noise hides is.
_OWN = 10


def matched(
    generator: Generator,
    released: dict[str, Tensor],
    statistics: ReleasedStatistics,
    config: RunConfig,
    progress: Callable[[int], None] = lambda done: None,
) -> Generator:
    """The generator moved towards the released embedding, as long as the run's rules say, and itself beside it.

    Noise has led the one astray otherwise than the other, so by a small budget a release draws from both. It is all
    post-processing. The generator is handed back if the rules say nothing; a class that the embedding's noise hides
    stays as it is.

    Args:
        generator: As the steps left it; it stays so. progress: Called with the steps done.

    Raises:
        FloatingPointError: Images are not finite.
    """
    if (rules := config.matching) is None:
        return generator
    latents = torch.Generator().manual_seed(config.settings.seed + _SEED)
    steps = embedding_rules(released[CLASS_EMBEDDING], statistics, config, rules.num_generated, _HIDING_NOISE)
    if bool(steps.hidden.any()):
        own = _own_means(generator, steps, latents)
        steps = replace(steps, target=torch.where(steps.hidden.unsqueeze(1), own, steps.target))
    moved = copy.deepcopy(generator).requires_grad_()
    moved.precision = getattr(torch, config.precision)
    average = copy.deepcopy(generator)
    optimiser = make_optimiser(moved, config)
    settings = config.settings
    for step in range(rules.num_steps):
        share = learning_rate_share(step, rules.num_steps, settings.warmup, settings.schedule)
        optimiser.set_rate(rules.learning_rate * share)
        embedding_step(moved, optimiser, steps, latents)
        update_average(average, moved, settings.average_decay, step)
        progress(step + 1)
    return MixtureGenerator(average, generator, rules.kept_share) if rules.kept_share > 0.0 else average


@torch.no_grad()
def _own_means(generator: Generator, rules: EmbeddingStepRules, latents: torch.Generator) -> Float[Tensor, "K numbers"]:
    """Mean features of the generator's own images of each class."""
    classes = len(rules.weights)
    means = []
    with as_released(generator):
        for _ in range(_OWN):
            images = generator.sample(rules.labels, latents).unflatten(0, (classes, -1))
            means.append(torch.cat([part.mean(1) for part in rules.features.of_images(images, rules.seen)], dim=1))
    return torch.stack(means).mean(0)
