"""From a configuration to objects: the only place where a name selects a class and a default is derived."""

import math
from fractions import Fraction
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from dp_sinkhorn.features.scattering import num_features
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.conv import ConvGenerator
from dp_sinkhorn.generators.dcgan import DCGANGenerator
from dp_sinkhorn.generators.mlp import MLPGenerator
from dp_sinkhorn.generators.resnet import ResNetGenerator
from dp_sinkhorn.generators.spec import GeneratorSpec
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.plan import CLASS_EMBEDDING, PrivacyPlan
from dp_sinkhorn.settings import (
    BatchRules,
    DataFacts,
    EmbeddingRules,
    MatchingRules,
    RecordRules,
    RunConfig,
    Settings,
    given,
)

# Record by record, images a step, shared by the classes, and the same for reference; a class has at least so many. By a
# small budget both are halved, and there are more steps. Chosen on MNIST: docs/tried.md.
_GENERATED, _REFERENCE, _MIN_PER_CLASS = 200, 500, 8
# However much noise there is: images in all, and the part of all that a class of many has. Chosen on PneumoniaMNIST:
# docs/tried.md.
_LEAST_GENERATED, _LEAST_OF_A_CLASS = 40, 0.1
_MIN_DIMENSIONS = 96
# Chosen on MNIST at ε = 10 (noise 0.08) and on digits (noise 2): docs/tried.md.
_CLIP_LITTLE, _CLIP_MUCH, _LITTLE_NOISE = 1.1, 0.55, 0.2
# Full rate up to this noise; length of a walk of mere noise in updates at full rate. Chosen on MNIST and a long-tailed
# MNIST: docs/tried.md.
_RECORD_LEARNING_RATE, _NOISE_OF_FULL_RATE, _WALK = 4e-3, 0.5, 8.0

# On the embedding, images a step, shared by the classes, frequencies, width of the kernel of pixels, and weight and
# width of that of wavelet features: chosen on MNIST, docs/tried.md.
_MATCHED, _FREQUENCIES, _WIDTH, _WAVELET_WEIGHT, _WAVELET_WIDTH = 400, 2000, 0.25, 0.3, 0.25
# After steps record by record, steps on an embedding, images of each, learning rate and weight of the wavelets; and the
# share of a release's images that come from before them, by a small budget. Chosen on MNIST and PneumoniaMNIST:
# docs/tried.md.
_MATCHING_STEPS, _MATCHING_IMAGES, _MATCHING_RATE, _MATCHING_WAVELETS = 300, 200, 2e-3, 0.5
_KEPT_SHARE = 0.5

# Whole batches: as the paper where it says something for every data set. The gradient of a batch is far longer
# than the clip norm, so the clip norm only sets a scale, which Adam takes out again.
_BATCH_GENERATED, _CLIP_NORM, _DEBIAS = 50, 0.5, 0.4
# In units of the number of pixels d: two images are about d/2 apart, and never further than 4·d.
_REG_A_PIXEL, _START_REG_A_PIXEL = 0.005, 0.5
_SINKHORN_ITERATIONS, _LABEL_WEIGHT = 40, 15.0
_BATCH_LEARNING_RATE = 1e-3

# 800 MB of weights, which fit into a release (`release.MAX_WEIGHTS_BYTES`); the networks of the literature for
# images of this size have at most a tenth. Training holds about six times as much.
MAX_PARAMETERS = 200_000_000
# Numbers in the images of one step, generated and reference together: 1 GiB as float32.
MAX_STEP_NUMBERS = 2**28

_WIDTHS = {"conv": 256, "mlp": 1024, "dcgan": 256, "resnet": 256}
_CHANNELS = {"conv": 32, "mlp": 32, "dcgan": 64, "resnet": 64}


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
    plan = settings.plan(data.num_records, classes)
    rules: RecordRules | EmbeddingRules | BatchRules
    match settings.chosen_sanitize(data.num_records):
        case "batch":
            num_generated, rate = settings.num_generated or _BATCH_GENERATED, _BATCH_LEARNING_RATE
            rules = _batch_rules(settings, plan, num_generated, math.prod(data.shape))
            images = num_generated + rules.num_fresh
        case "record":
            num_generated = _multiple(settings.num_generated or _num_generated(plan, classes), classes)
            rate = _learning_rate(plan, num_generated)
            rules = _record_rules(settings, plan, num_generated, data)
            images = num_generated + rules.num_reference
        case "embedding":
            num_generated, rate = _multiple(settings.num_generated or _MATCHED, classes), _RECORD_LEARNING_RATE
            rules = _embedding_rules(settings, data)
            images = num_generated
    if images * math.prod(data.shape) > MAX_STEP_NUMBERS:
        smaller = "num_generated or num_reference" if isinstance(rules, RecordRules) else "num_generated"
        raise InputError(
            f"{images} images a step of shape {data.shape} hold more than {MAX_STEP_NUMBERS} numbers; "
            f"give a smaller {smaller}"
        )
    device = find_device(settings.device)
    config = RunConfig(
        data=data,
        settings=settings,
        privacy=plan,
        generator=GeneratorSpec(
            name=settings.generator,
            latent_dim=settings.latent_dim,
            width=settings.width or _WIDTHS[settings.generator],
            channels=settings.channels or _CHANNELS[settings.generator],
        ),
        rules=rules,
        num_generated=num_generated,
        learning_rate=settings.learning_rate or rate,
        device=device,
        precision=find_precision(device) if settings.precision == "auto" else settings.precision,
    )
    if config.kept_share > 0.0:
        check_size(config.generator, data.shape, classes, copies=2)  # what a release of it holds
    return config


def _record_rules(settings: Settings, plan: PrivacyPlan, num_generated: int, data: DataFacts) -> RecordRules:
    classes = len(data.class_names)
    return RecordRules(
        num_reference=_multiple(settings.num_reference or _of_budget(plan, _REFERENCE), classes),
        relative_clip_norm=settings.relative_clip_norm or _clip_norm(plan, num_generated),
        relative_reg=given(settings.relative_reg, 0.01),
        potential_iterations=settings.potential_iterations or 0,
        min_dimensions=settings.min_dimensions or _MIN_DIMENSIONS,
        rest_weight=given(settings.rest_weight, 0.1),
        matching=_matching_rules(settings, plan, data),
    )


def _matching_rules(settings: Settings, plan: PrivacyPlan, data: DataFacts) -> MatchingRules | None:
    if CLASS_EMBEDDING not in plan.once:
        return None
    return MatchingRules(
        **_embedded(settings, data, _MATCHING_WAVELETS),
        num_steps=settings.matching_steps or _MATCHING_STEPS,
        num_generated=_multiple(_MATCHING_IMAGES, len(data.class_names)),
        learning_rate=_MATCHING_RATE,
        kept_share=_KEPT_SHARE if plan.small_budget else 0.0,
    )


def _embedding_rules(settings: Settings, data: DataFacts) -> EmbeddingRules:
    features = _embedded(settings, data, _WAVELET_WEIGHT)
    return EmbeddingRules(**features, min_dimensions=settings.min_dimensions or _MIN_DIMENSIONS)


def _embedded(settings: Settings, data: DataFacts, wavelet_weight: float) -> dict[str, Any]:
    """The fields of `EmbeddingFeatures`."""
    frequencies = settings.num_frequencies or _FREQUENCIES
    weight = given(settings.wavelet_weight, wavelet_weight)
    # The frequencies, and what is released.
    inputs = max(math.prod(data.shape), num_features(data.shape, layers=1) if weight else 0)
    largest = frequencies * max(inputs, (4 if weight else 2) * len(data.class_names))
    if largest > MAX_STEP_NUMBERS:
        raise InputError(
            f"{frequencies} frequencies of images of shape {data.shape} in {len(data.class_names)} classes make more "
            f"than {MAX_STEP_NUMBERS} numbers; give fewer num_frequencies"
        )
    return {
        "num_frequencies": frequencies,
        "relative_width": settings.relative_width or _WIDTH,
        "wavelet_weight": weight,
        "wavelet_width": settings.wavelet_width or _WAVELET_WIDTH,
    }


def _batch_rules(settings: Settings, plan: PrivacyPlan, num_generated: int, size: int) -> BatchRules:
    debias = given(settings.debias_fraction, _DEBIAS)
    reg = given(settings.reg, _REG_A_PIXEL * size)
    batch = plan.expected_batch_size
    return BatchRules(
        queries_per_step=plan.queries_per_step,
        num_fresh=math.floor(num_generated * Fraction(debias).limit_denominator(10**6)),
        capacity=min(plan.num_records, math.ceil(batch + 4.0 * math.sqrt(batch))),
        clip_norm=given(settings.clip_norm, _CLIP_NORM),
        reg=reg,
        start_reg=max(reg, given(settings.start_reg, _START_REG_A_PIXEL * size)),
        sinkhorn_iterations=settings.sinkhorn_iterations or _SINKHORN_ITERATIONS,
        l1_weight=given(settings.l1_weight, 0.0),
        label_weight=given(settings.label_weight, _LABEL_WEIGHT),
        debias_fraction=debias,
    )


def build_generator(
    spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int, device: str = "cpu", seed: int = 0
) -> Generator:
    """The generator, its weights drawn from the public seed.

    Raises:
        InputError: It would have more than `MAX_PARAMETERS`; nothing was allocated for it.
    """
    check_size(spec, shape, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = _generator(spec, shape, num_classes)
    # A third off the time of the convolutions on a CPU; the linear layers do not mind.
    return generator.to(memory_format=torch.channels_last).to(device)  # type: ignore[call-overload,no-any-return]


def check_size(spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int, copies: int = 1) -> None:
    """Refuse a generator that with its copies would have more than `MAX_PARAMETERS`; nothing is allocated for it.

    Raises:
        InputError: It would.
    """
    numbers = copies * sum(tensor.numel() for tensor in empty_generator(spec, shape, num_classes).state_dict().values())
    if numbers > MAX_PARAMETERS:
        one, less = ("a", "") if copies == 1 else (f"a release with {copies} times a", ", or embedding_share=0")
        raise InputError(
            f"{one} {spec.name} generator of latent_dim={spec.latent_dim}, width={spec.width}, "
            f"channels={spec.channels} has {numbers} parameters, more than {MAX_PARAMETERS}; give smaller ones{less}"
        )


def empty_generator(spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int) -> Generator:
    """The generator's shapes without memory for its weights (on PyTorch's "meta" device)."""
    with torch.device("meta"), _Undrawn():
        return _generator(spec, shape, num_classes)


class _Undrawn(TorchFunctionMode):
    """Leaves random numbers out: the "meta" device would spend seconds on getting ready to draw none."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]  # nn.init passes it by name
        return function(*args, **(kwargs or {}))


def _generator(spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int) -> Generator:
    match spec.name:
        case "conv":
            return ConvGenerator(shape, num_classes, spec.latent_dim, spec.width, spec.channels)
        case "mlp":
            return MLPGenerator(shape, num_classes, spec.latent_dim, spec.width)
        case "dcgan":
            return DCGANGenerator(shape, num_classes, spec.latent_dim, spec.channels)
        case "resnet":
            return ResNetGenerator(shape, num_classes, spec.latent_dim, spec.channels)


def _multiple(images: int, classes: int) -> int:
    return classes * max(_MIN_PER_CLASS, round(images / classes))


def _of_budget(plan: PrivacyPlan, images: int) -> int:
    return images // 2 if plan.small_budget else images


def _num_generated(plan: PrivacyPlan, classes: int) -> int:
    """As many as leave the noise on each little: the more images share the records, the more noise on an image."""
    most = _of_budget(plan, _GENERATED)
    quiet = int(_LITTLE_NOISE / _relative_noise(plan, 1))
    least = max(_LEAST_GENERATED, round(_LEAST_OF_A_CLASS * most) * classes)
    return min(most, max(least, quiet // classes * classes))


def _relative_noise(plan: PrivacyPlan, num_generated: int) -> float:
    """Noise on one image's own pull, in units of the clip norm."""
    return plan.noise_multiplier * num_generated / plan.expected_batch_size


def _clip_norm(plan: PrivacyPlan, num_generated: int) -> float:
    """Clip norm in units of √V: where the noise is small beside a step's signal, clip less."""
    return _CLIP_LITTLE if _relative_noise(plan, num_generated) < _LITTLE_NOISE else _CLIP_MUCH


def _learning_rate(plan: PrivacyPlan, num_generated: int) -> float:
    """Less, the more of a step is noise, but not less than keeps T updates of mere noise, a walk at random, short."""
    share = max(_NOISE_OF_FULL_RATE / _relative_noise(plan, num_generated), _WALK / math.sqrt(plan.num_steps))
    return _RECORD_LEARNING_RATE * min(1.0, share)


def find_device(name: str) -> str:
    """The device of that name, checked by use; "auto" is a GPU where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, dtype=torch.float64, device=name).item()  # a "meta" device holds no numbers
    except (RuntimeError, AssertionError, TypeError):
        raise InputError(f"device={name!r} cannot be used here (float64 is needed); give cpu or auto") from None
    return name


def find_precision(device: str) -> Literal["float32", "bfloat16"]:
    """What the generator's passes are fastest in: bfloat16 where the processor computes in it, half the time."""
    if torch.device(device).type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bfloat16" if has else "float32"
