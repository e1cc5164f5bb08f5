"""Builds generators from specifications; the only place where a name selects a class."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.conv import ConvGenerator
from dp_sinkhorn.generators.dcgan import DCGANGenerator
from dp_sinkhorn.generators.mlp import MLPGenerator
from dp_sinkhorn.generators.resnet import ResNetGenerator
from dp_sinkhorn.generators.spec import DEFAULT_SIZES, GeneratorSpec
from dp_sinkhorn.generators.tuned import TunedGenerator
from dp_sinkhorn.io.errors import InputError

# 800 MB of weights, which fit into a release (`release.weights.MAX_WEIGHTS_BYTES`). Training takes about six times as
# much memory. Networks of the literature for images of this size have at most a tenth of it.
MAX_PARAMETERS = 200_000_000

Builder = Callable[[tuple[int, int, int], int, GeneratorSpec], Generator]
"""From (channels, height, width), number of classes and sizes to a generator."""

_BUILDERS: dict[str, Builder] = {
    "conv": lambda shape, classes, spec: ConvGenerator(shape, classes, spec.latent_dim, spec.width, spec.channels),
    "mlp": lambda shape, classes, spec: MLPGenerator(shape, classes, spec.latent_dim, spec.width),
    "dcgan": lambda shape, classes, spec: DCGANGenerator(shape, classes, spec.latent_dim, spec.channels),
    "resnet": lambda shape, classes, spec: ResNetGenerator(shape, classes, spec.latent_dim, spec.channels),
}


def register_generator(name: str, build: Builder, width: int, channels: int) -> None:
    """Let the setting `generator = name` build a generator of your own, also where its releases are loaded.

    Args:
        build: Makes the generator from public facts alone.
        width, channels: Default sizes, at least 1, which `build` finds in the specification.

    Raises:
        InputError: The name is taken.
    """
    if name in _BUILDERS:
        raise InputError(f"a generator {name!r} is registered; give another name")
    _BUILDERS[name], DEFAULT_SIZES[name] = build, (width, channels)


def build_generator(
    spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int, device: str = "cpu", seed: int = 0
) -> Generator:
    """Build the generator and draw its weights from the public seed.

    Raises:
        InputError: It has more than `MAX_PARAMETERS`; nothing is allocated then.
    """
    check_size(spec, shape, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = _generator(spec, shape, num_classes)
    # Channels last saves a third of the time of convolutions on a CPU.
    return generator.to(memory_format=torch.channels_last).to(device)  # type: ignore[call-overload,no-any-return]


def check_size(spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int) -> int:
    """Number of a generator's parameters and running statistics; nothing is allocated for it.

    Raises:
        InputError: It is above `MAX_PARAMETERS`.
    """
    numbers = size_of(spec, shape, num_classes)
    if numbers > MAX_PARAMETERS:
        raise InputError(
            f"a {spec.name} generator of latent_dim={spec.latent_dim}, width={spec.width}, channels={spec.channels} "
            f"has {numbers} parameters, more than {MAX_PARAMETERS}; give smaller ones"
        )
    return numbers


def size_of(spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int) -> int:
    """Number of a generator's parameters and running statistics; nothing is allocated for it."""
    return sum(tensor.numel() for tensor in empty_generator(spec, shape, num_classes).state_dict().values())


def empty_generator(spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int) -> Generator:
    """The generator on PyTorch's "meta" device: all shapes, no memory for weights."""
    with torch.device("meta"), _WithoutDraws():
        return _generator(spec, shape, num_classes)


class _WithoutDraws(TorchFunctionMode):
    """Skips random initialisation, on whose preparation the "meta" device would spend seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]  # nn.init passes it by name
        return function(*args, **(kwargs or {}))


def _generator(spec: GeneratorSpec, shape: tuple[int, int, int], num_classes: int) -> Generator:
    bare = _BUILDERS[spec.name](shape, num_classes, spec)
    if not (spec.latent_choice or spec.affine_dimensions or spec.texture_channels or spec.classifier):
        return bare
    sizes = spec.affine_dimensions, spec.texture_channels
    return TunedGenerator(bare, *sizes, choice=spec.latent_choice, classifier=spec.classifier)
