"""Public images that stand in for the private records."""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from dp_sinkhorn.data.images import LabelledImages, to_pixels
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.settings import DataFacts, RunConfig
from dp_sinkhorn.stages.base import Stages

_COARSE = 4


def smooth_images(facts: DataFacts, count: int, seed: int) -> LabelledImages:
    """Random smooth images of the run's shape, with its classes in turn."""
    return LabelledImages(
        _pixels(facts.shape, count, seed), torch.arange(count) % len(facts.class_names), facts.class_names
    )


def noise_images(facts: DataFacts, count: int, seed: int) -> LabelledImages:
    """Random black and white pixels, the classes in turn: dissimilar in any subspace, so that none hides another."""
    pixels = 255 * torch.randint(2, (count, *facts.shape), generator=torch.Generator().manual_seed(seed))
    return LabelledImages(pixels.to(torch.uint8), torch.arange(count) % len(facts.class_names), facts.class_names)


def on_stand_in(
    config: RunConfig, count: int, stages: Stages, steps: int | None = None, *, own_generator: bool = False
) -> RunConfig:
    """The run's configuration for `count` public records and a small generator; σ, q, δ and all rules stay.

    The generator is post-processing of released tensors, so a small one saves time. Stages do less work where this
    changes nothing that the audit measures.

    Args:
        steps: Maximum number of steps; None: all of the run. own_generator: Keep the run's generator.
    """
    for stage in stages.running(config):
        config = stage.lighter(config)
    plan = config.plan
    num_steps = plan.num_steps if steps is None else min(steps, plan.num_steps)
    charges = tuple(
        charge.model_copy(update={"count": num_steps * plan.queries_per_step})
        if charge.name == plan.learns and plan.queries_per_step
        else charge
        for charge in plan.charges
    )
    small = config.generator if own_generator else GeneratorSpec(name="mlp", latent_dim=8, width=32, channels=8)
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"num_records": count, "source": "public stand-in"}),
            "plan": plan.model_copy(update={"num_records": count, "num_steps": num_steps, "charges": charges}),
            "generator": small,
        }
    )


def _pixels(shape: tuple[int, int, int], count: int, seed: int) -> UInt8[Tensor, "n c h w"]:
    channels, height, width = shape
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, _COARSE, _COARSE, generator=random)
    return to_pixels(torch.tanh(2.0 * interpolate(coarse, size=(height, width), mode="bilinear")))
