"""The DCGAN generator: transposed convolutions and batch normalisation."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dp_sinkhorn.generators.base import Generator, doubling_sizes

_STDDEV = 0.02


class DCGANGenerator(Generator):
    """Latents and one-hot label → 4×4 maps, then transposed convolutions that double the side and halve the maps;
    batch normalisation and ReLU after each but the last, which gives tanh (Radford, Metz, Chintala 2016).

    There are four layers at 28×28 and 32×32. In training mode images are coupled through the statistics of their
    batch; in evaluation mode each depends on its own latents and label only.

    Args:
        shape: Sides of 8 to 64.
        channels: Maps before the last layer; each coarser layer has twice as many.

    Raises:
        InputError: A side is not in 8..64.

    Guarantees: the running statistics are functions of the weights, latents and labels, all public.
    """

    normalises_by_batch = True

    def __init__(self, shape: tuple[int, int, int], num_classes: int, latent_dim: int, channels: int) -> None:
        super().__init__(shape, num_classes, latent_dim)
        sizes = doubling_sizes(shape)
        widths = [channels << k for k in reversed(range(len(sizes) - 1))]
        self.coarse_shape = (*sizes[0], widths[0])
        # A transposed convolution of a 1×1 map is a linear layer. The normalisation after it has the bias.
        self.coarse = nn.Linear(latent_dim + num_classes, sizes[0][0] * sizes[0][1] * widths[0], bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        for (wide, narrow), size in zip(pairwise(widths), sizes[1:-1], strict=True):
            layers += [_doubling(wide, narrow, size, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, _doubling(widths[-1], shape[0], sizes[-1], bias=True), nn.Tanh())
        self.apply(_initialise)

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row per image."""
        onehot = nn.functional.one_hot(labels, self.num_classes).to(latents.dtype)
        maps = self.coarse(torch.cat([latents, onehot], dim=1))
        # Channels last in memory from the start avoids conversions of the layout.
        images: Tensor = self.layers(maps.view(-1, *self.coarse_shape).permute(0, 3, 1, 2))
        return images.flatten(1)


def _doubling(wide: int, narrow: int, size: tuple[int, int], *, bias: bool) -> nn.ConvTranspose2d:
    """From maps of half the `size`, rounded up, without cropping: kernel 4 gives 2h, kernel 3 gives 2h − 1."""
    kernel = (4 - size[0] % 2, 4 - size[1] % 2)
    return nn.ConvTranspose2d(wide, narrow, kernel, stride=2, padding=1, bias=bias)


def _initialise(module: nn.Module) -> None:
    """Weights from the paper's N(0, 0.02²), gains from N(1, 0.02²)."""
    if isinstance(module, nn.Linear | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, _STDDEV)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, _STDDEV)
