"""Which generator, and how large: plain data."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class GeneratorSpec(BaseModel):
    """Everything beside the image shape and the classes that is needed to build a generator again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["conv", "mlp", "dcgan", "resnet"]
    latent_dim: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=65536)]
    channels: Annotated[int, Field(ge=1, le=4096)]
