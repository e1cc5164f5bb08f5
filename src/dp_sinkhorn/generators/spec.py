"""Which generator, and how large: plain data."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_LATENT_DIM, MAX_WIDTH, MAX_CHANNELS = 4096, 65_536, 4096  # single layers; `build.MAX_PARAMETERS` bounds the whole

_Side = Annotated[int, Field(ge=8, le=64)]
ImageShape = tuple[Literal[1, 3], _Side, _Side]
"""(channels, height, width) of images that can be generated."""


class GeneratorSpec(BaseModel):
    """Everything beside the image shape and the classes that is needed to build a generator again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["conv", "mlp", "dcgan", "resnet"]
    latent_dim: Annotated[int, Field(ge=1, le=MAX_LATENT_DIM)]
    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
