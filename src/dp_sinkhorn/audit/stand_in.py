"""Public images that stand in for the private records."""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from dp_sinkhorn.data.images import LabelledImages, to_pixels
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.privacy.plan import CLASS_EMBEDDING, CLASS_FEATURES, CLASSIFIER
from dp_sinkhorn.settings import DataFacts, EmbeddingFeatures, EmbeddingRules, RecordRules, RunConfig

_COARSE = 4
_FREQUENCIES = 256


def smooth_images(facts: DataFacts, count: int, seed: int) -> LabelledImages:
    """Random smooth images of the run's shape, with its classes in turn."""
    return LabelledImages(
        _pixels(facts.shape, count, seed), torch.arange(count) % len(facts.class_names), facts.class_names
    )


def noise_images(facts: DataFacts, count: int, seed: int) -> LabelledImages:
    """Random black and white pixels, the classes in turn: hardly alike in any subspace, so one hides no other."""
    pixels = 255 * torch.randint(2, (count, *facts.shape), generator=torch.Generator().manual_seed(seed))
    return LabelledImages(pixels.to(torch.uint8), torch.arange(count) % len(facts.class_names), facts.class_names)


def on_stand_in(config: RunConfig, count: int, sample_rate: float | None = None) -> RunConfig:
    """The run's configuration for `count` public records and a small generator; σ, q, δ and all rules stay.

    The generator is post-processing: it computes with released tensors only, and a small one saves time. Classifier and
    class features are left out, and an embedding beside the steps (which is audited by itself, by `embedding_alone`):
    what is audited are the steps (or the embedding in their place), which know nothing of them. Of an embedding's
    frequencies a part is left: a record's features have the same norm however many there are.
    """
    config = config.without(CLASS_FEATURES, CLASSIFIER, CLASS_EMBEDDING)
    plan, rules = config.privacy, config.rules
    if isinstance(rules, EmbeddingRules):
        rules = rules.model_copy(update={"num_frequencies": min(rules.num_frequencies, _FREQUENCIES)})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"num_records": count, "source": "public stand-in"}),
            "privacy": plan.model_copy(
                update={
                    "num_records": count,
                    "sample_rate": plan.sample_rate if sample_rate is None else sample_rate,
                }
            ),
            "rules": rules,
            "generator": GeneratorSpec(name="mlp", latent_dim=8, width=32, channels=8),
        }
    )


def embedding_alone(config: RunConfig) -> RunConfig:
    """Of a run that releases an embedding beside its steps, the one that releases it in place of them.

    Features, noise and sensitivity are the same, so what an audit finds of this run's embedding holds of that one's.
    """
    matching, noise = config.matching, config.privacy.once[CLASS_EMBEDDING]
    assert isinstance(config.rules, RecordRules) and matching is not None  # noqa: S101, PT018 - no other run has both
    features = matching.model_dump(include=set(EmbeddingFeatures.model_fields))
    only_it = {"queries_per_step": 0, "noise_multiplier": noise}
    return config.model_copy(
        update={
            "rules": EmbeddingRules(**features, min_dimensions=config.rules.min_dimensions),
            "privacy": config.privacy.model_copy(update=only_it),
            "num_generated": matching.num_generated,
            "learning_rate": matching.learning_rate,
        }
    )


def _pixels(shape: tuple[int, int, int], count: int, seed: int) -> UInt8[Tensor, "n c h w"]:
    channels, height, width = shape
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, _COARSE, _COARSE, generator=random)
    return to_pixels(torch.tanh(2.0 * interpolate(coarse, size=(height, width), mode="bilinear")))
