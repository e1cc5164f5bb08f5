"""What a generator is: latents and labels in, images out."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

# Images that pass at a time: their feature maps stay in a processor's cache, which saves a quarter of the time.
_CHUNK = 100


class Generator(nn.Module, ABC):
    """Maps latents z uniform on [0, 1]^latent_dim and class labels to images in [-1, 1].

    Args:
        shape: (channels, height, width) of an image. num_classes: 1 is unconditional.
    """

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
        pieces = zip(latents.split(_CHUNK), labels.to(device).split(_CHUNK), strict=True)
        return torch.cat([self(z, label) for z, label in pieces])
