"""The base class of generators, which map latents and labels to images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.io.errors import InputError

# Images per pass: their feature maps stay in the processor's cache, which saves a quarter of the time.
_CHUNK = 100
# Range of an image's side and side of the coarsest maps, as in the convolutional GANs of the literature.
_MIN_SIDE, _MAX_SIDE, _COARSEST_SIDE = 8, 64, 4


class Generator(nn.Module, ABC):
    """Maps latents z uniform on [0, 1]^latent_dim and class labels to images in [-1, 1].

    Args:
        shape: (channels, height, width) of an image.
        num_classes: 1 is unconditional.
        latent_dim: Numbers of one latent.
    """

    # Whether training mode normalises by the statistics of the batch.
    normalises_by_batch: bool = False
    # Precision of the passes of `sample`; weights and images stay float32.
    precision: torch.dtype = torch.float32

    def __init__(self, shape: tuple[int, int, int], num_classes: int, latent_dim: int) -> None:
        super().__init__()
        self.shape = shape
        self.num_classes = num_classes
        self.latent_dim = latent_dim

    @abstractmethod
    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row per image."""

    def sample(self, labels: Int64[Tensor, " n"], random: torch.Generator) -> Float[Tensor, "n d"]:
        """One image per label, from fresh latents. `random` needs no secret seed: generated images are public."""
        device = next(self.parameters()).device
        latents = torch.rand(labels.numel(), self.latent_dim, generator=random).to(device)
        # Batch statistics must be those of the whole batch, so it is not split.
        chunk = max(1, labels.numel()) if self.training and self.normalises_by_batch else _CHUNK
        pieces = zip(latents.split(chunk), labels.to(device).split(chunk), strict=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return torch.cat([self(z, label).to(torch.float32) for z, label in pieces])

    def samples_by_class(self, per_class: int, seed: int) -> Iterator[Float[Tensor, "m d"]]:
        """Yield `per_class` images of each class, class after class, on the CPU."""
        random = torch.Generator().manual_seed(seed)
        for label in range(self.num_classes):
            yield self.sample(torch.full((per_class,), label), random).cpu()


@contextmanager
def as_released(generator: Generator) -> Iterator[None]:
    """Put the generator in evaluation mode, as in a release; its running statistics do not change."""
    training = generator.training
    generator.eval()
    try:
        yield
    finally:
        generator.train(training)


def doubling_sizes(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(height, width) of each layer, from at most 4 pixels a side to the image; each is half the next, rounded up.

    Raises:
        InputError: A side is not in 8..64.
    """
    _, height, width = shape
    if not all(_MIN_SIDE <= side <= _MAX_SIDE for side in (height, width)):
        raise InputError(
            f"images of {height}×{width} pixels have a side that is not in {_MIN_SIDE}..{_MAX_SIDE}; "
            "give --side 64 or less, or generator=conv or mlp"
        )
    sizes = [(height, width)]
    while max(sizes[0]) > _COARSEST_SIDE:
        sizes.insert(0, ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2))
    return sizes
