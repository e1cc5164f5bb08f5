"""The specification of a generator: its name and sizes, as plain data."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dp_sinkhorn.io.errors import InputError, did_you_mean
from dp_sinkhorn.io.safe_read import shown

MAX_LATENT_DIM, MAX_WIDTH, MAX_CHANNELS = 4096, 65_536, 4096  # single layers; `build.MAX_PARAMETERS` bounds the whole
MAX_DIMENSIONS = 3 * 128 * 128  # values of the largest image


def _grey_or_rgb(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels, neither 1 nor 3")
    return channels


_Side = Annotated[int, Field(ge=8, le=128)]
ImageShape = tuple[Annotated[int, AfterValidator(_grey_or_rgb)], _Side, _Side]
"""(channels, height, width) of images that can be generated."""


DEFAULT_SIZES = {"conv": (256, 32), "mlp": (1024, 32), "dcgan": (256, 64), "resnet": (256, 64)}
"""(width, channels) of each generator that can be built; `build.register_generator` adds to it."""


def _registered(name: str) -> str:
    if name not in DEFAULT_SIZES:
        known = ", ".join(DEFAULT_SIZES)
        raise InputError(
            f"generator {shown(name)} is none of {known}; register your own first (register_generator)"
            + did_you_mean(name, DEFAULT_SIZES)
        )
    return name


GeneratorName = Annotated[str, AfterValidator(_registered)]


class GeneratorSpec(BaseModel):
    """What rebuilds a generator, together with the image shape and the number of classes.

    Args:
        latent_choice, affine_dimensions, texture_channels: Layers of a `TunedGenerator`; False or 0: none.
        classifier: Whether the generator's weights include the released classifier.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: GeneratorName
    latent_dim: Annotated[int, Field(ge=1, le=MAX_LATENT_DIM)]
    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    latent_choice: bool = False
    affine_dimensions: Annotated[int, Field(ge=0, le=MAX_DIMENSIONS)] = 0
    texture_channels: Annotated[int, Field(ge=0, le=MAX_CHANNELS)] = 0
    classifier: bool = False
