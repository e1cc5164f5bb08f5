"""From a configuration to objects: the only place where a name selects a class and a default is derived."""

import torch

from dp_sinkhorn.config import DataFacts, RunConfig, Settings
from dp_sinkhorn.errors import InputError
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.conv import ConvGenerator
from dp_sinkhorn.generators.mlp import MLPGenerator
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.privacy.plan import PrivacyPlan, make_plan

# Images a step, shared by the classes; a class has at least so many.
_GENERATED, _REFERENCE, _MIN_PER_CLASS = 200, 500, 8
_WIDTHS = {"conv": 256, "mlp": 1024}
# Chosen on MNIST at ε = 10 (noise 0.08) and on digits (noise 2): docs/results.md.
_CLIP_LITTLE, _CLIP_MUCH, _LITTLE_NOISE = 1.1, 0.55, 0.2
_CHANNELS, _CHANNELS_SMALL, _SMALL_SIDE = 64, 32, 16


def resolve(settings: Settings, data: DataFacts) -> RunConfig:
    """Derive everything that the user left open, by public rules, and calibrate the noise.

    Raises:
        InputError: The settings do not fit the data.
    """
    classes = len(data.class_names)
    prior = settings.class_prior
    if isinstance(prior, tuple) and (len(prior) != classes or abs(sum(prior) - 1.0) > 1e-6):
        raise InputError(
            f"class_prior={','.join(f'{p:g}' for p in prior)} does not fit {classes} classes; "
            f"give {classes} shares that sum to 1, or uniform, or histogram"
        )
    plan = make_plan(
        num_records=data.num_records,
        target_epsilon=settings.target_epsilon,
        target_delta=settings.target_delta,
        num_steps=settings.num_steps,
        expected_batch_size=settings.expected_batch_size,
        count_classes=prior == "histogram" and classes > 1,
    )
    num_generated = _multiple(settings.num_generated or _GENERATED, classes)
    return RunConfig(
        data=data,
        settings=settings,
        privacy=plan,
        generator=GeneratorSpec(
            name=settings.generator,
            latent_dim=settings.latent_dim,
            width=settings.width or _WIDTHS[settings.generator],
            channels=settings.channels or (_CHANNELS if max(data.shape[1:]) > _SMALL_SIDE else _CHANNELS_SMALL),
        ),
        num_generated=num_generated,
        num_reference=_multiple(settings.num_reference or _REFERENCE, classes),
        relative_clip_norm=settings.relative_clip_norm or _clip_norm(plan, num_generated),
        device=_device(settings.device),
    )


def build_generator(
    spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int, device: str = "cpu", seed: int = 0
) -> Generator:
    """The generator, its weights drawn from the public seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator: Generator
        if spec.name == "conv":
            generator = ConvGenerator(shape, num_classes, spec.latent_dim, spec.width, spec.channels)
        else:
            generator = MLPGenerator(shape, num_classes, spec.latent_dim, spec.width)
    # A third off the time of the convolutions on a CPU; the linear layers do not mind.
    return generator.to(memory_format=torch.channels_last).to(device)  # type: ignore[call-overload,no-any-return]


def _multiple(images: int, classes: int) -> int:
    return classes * max(_MIN_PER_CLASS, round(images / classes))


def _clip_norm(plan: PrivacyPlan, num_generated: int) -> float:
    """Clip norm in units of √V: where the noise is small beside a step's signal, clip less."""
    noise = plan.noise_multiplier * num_generated / plan.expected_batch_size
    return _CLIP_LITTLE if noise < _LITTLE_NOISE else _CLIP_MUCH


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, dtype=torch.float64, device=name)
    except (RuntimeError, AssertionError, TypeError):
        raise InputError(f"device={name!r} cannot be used here (float64 is needed); give cpu or auto") from None
    return name
