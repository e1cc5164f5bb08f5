"""What a generator is: latents and labels in, images out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.io.errors import InputError

# Images that pass at a time: their feature maps stay in a processor's cache, which saves a quarter of the time.
_CHUNK = 100
# Sides of an image, and of the coarsest maps, where the convolutional GANs of the literature are made for.
_SHORTEST, _LONGEST, _COARSEST = 8, 64, 4


class Generator(nn.Module, ABC):
    """Maps latents z uniform on [0, 1]^latent_dim and class labels to images in [-1, 1].

    Args:
        shape: (channels, height, width) of an image. num_classes: 1 is unconditional.
    """

    # True where training mode normalises by the statistics of the images that pass together.
    normalises_by_batch: bool = False
    # What `sample` computes in; weights and images stay float32.
    precision: torch.dtype = torch.float32

    def __init__(self, shape: tuple[int, int, int], num_classes: int, latent_dim: int) -> None:
        super().__init__()
        self.shape = shape
        self.num_classes = num_classes
        self.latent_dim = latent_dim

    @abstractmethod
    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row each."""

    def sample(self, labels: Int64[Tensor, " n"], random: torch.Generator) -> Float[Tensor, "n d"]:
        """One image a label, from fresh latents. `random` is public: it protects nothing."""
        device = next(self.parameters()).device
        latents = torch.rand(labels.numel(), self.latent_dim, generator=random).to(device)
        # Batch statistics are those of the whole batch, never of a chunk of it.
        chunk = max(1, labels.numel()) if self.training and self.normalises_by_batch else _CHUNK
        pieces = zip(latents.split(chunk), labels.to(device).split(chunk), strict=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return torch.cat([self(z, label).to(torch.float32) for z, label in pieces])

    def samples_by_class(self, per_class: int, seed: int) -> Iterator[Float[Tensor, "m d"]]:
        """So many images of each class, one class after the other, on the CPU."""
        random = torch.Generator().manual_seed(seed)
        for label in range(self.num_classes):
            yield self.sample(torch.full((per_class,), label), random).cpu()


@contextmanager
def as_released(generator: Generator) -> Iterator[None]:
    """Let it draw what a release will draw: by its running statistics, which stay as they are."""
    training = generator.training
    generator.eval()
    try:
        yield
    finally:
        generator.train(training)


def doubling_sizes(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """(height, width) layer by layer: from at most 4 pixels a side to the image, each half of the next, rounded up.

    Raises:
        InputError: A side is not in 8..64.
    """
    _, height, width = shape
    if not all(_SHORTEST <= side <= _LONGEST for side in (height, width)):
        raise InputError(
            f"images of {height}×{width} pixels have a side that is not in {_SHORTEST}..{_LONGEST}; "
            "resize them, or give generator=conv or mlp"
        )
    sizes = [(height, width)]
    while max(sizes[0]) > _COARSEST:
        sizes.insert(0, ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2))
    return sizes
