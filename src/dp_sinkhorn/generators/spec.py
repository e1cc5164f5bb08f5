"""Which generator, and how large: plain data."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_LATENT_DIM, MAX_WIDTH, MAX_CHANNELS = 4096, 65_536, 4096  # single layers; `build.MAX_PARAMETERS` bounds the whole
MAX_DIMENSIONS = 3 * 64 * 64  # values of the largest image


def _grey_or_rgb(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels, neither 1 nor 3")
    return channels


_Side = Annotated[int, Field(ge=8, le=64)]
ImageShape = tuple[Annotated[int, AfterValidator(_grey_or_rgb)], _Side, _Side]
"""(channels, height, width) of images that can be generated."""


class GeneratorSpec(BaseModel):
    """Everything beside the image shape and the classes that is needed to build a generator again.

    Args:
        latent_choice, affine_dimensions, texture_channels: Of the layers of a `TunedGenerator`; False or 0: there is
            none. classifier: Whether the classifier of its images is beside them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["conv", "mlp", "dcgan", "resnet"]
    latent_dim: Annotated[int, Field(ge=1, le=MAX_LATENT_DIM)]
    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    latent_choice: bool = False
    affine_dimensions: Annotated[int, Field(ge=0, le=MAX_DIMENSIONS)] = 0
    texture_channels: Annotated[int, Field(ge=0, le=MAX_CHANNELS)] = 0
    classifier: bool = False
