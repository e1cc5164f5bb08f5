"""A residual generator with class-conditional batch normalisation, as in SNGAN and BigGAN."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from dp_sinkhorn.generators.base import Generator, doubling_sizes

# Maps of a block in units of `channels`: as in SNGAN and BigGAN up to a side of 32, half as many above.
_MAPS, _MAPS_LARGE, _LARGE = 4, 2, 32
_STDDEV = 0.02

Maps = Float[Tensor, "n c h w"]


class ResNetGenerator(Generator):
    """Latents → 4×4 maps, then residual blocks that double the side, batch normalisation, ReLU, a last 3×3
    convolution and tanh; the label chooses the gains and biases of every block's normalisation (Miyato et al. 2018;
    Brock, Donahue, Simonyan 2019, without spectral normalisation and attention).

    In training mode images are coupled through the statistics of their batch; in evaluation mode each depends on
    its own latents and label only.

    Args:
        shape: Sides of 8 to 64.
        channels: A block has 4·channels maps, or 2·channels above a side of 32.

    Raises:
        InputError: A side is not in 8..64.

    Guarantees: the running statistics are functions of the weights, latents and labels, all public.
    """

    normalises_by_batch = True

    def __init__(self, shape: tuple[int, int, int], num_classes: int, latent_dim: int, channels: int) -> None:
        super().__init__(shape, num_classes, latent_dim)
        coarsest, *sizes = doubling_sizes(shape)
        maps = _MAPS * channels
        self.coarse_shape = (*coarsest, maps)
        self.coarse = nn.Linear(latent_dim, coarsest[0] * coarsest[1] * maps)
        self.blocks = nn.ModuleList()
        for size in sizes:
            finer = channels * (_MAPS if max(size) <= _LARGE else _MAPS_LARGE)
            self.blocks.append(_Block(maps, finer, size, num_classes))
            maps = finer
        self.norm = nn.BatchNorm2d(maps)
        self.last = nn.Conv2d(maps, shape[0], 3, padding=1)
        self.apply(_initialise)

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row per image."""
        # Channels last in memory from the start avoids conversions of the layout.
        maps = self.coarse(latents).view(-1, *self.coarse_shape).permute(0, 3, 1, 2)
        for block in self.blocks:
            maps = block(maps, labels)
        return torch.tanh(self.last(relu(self.norm(maps), inplace=True))).flatten(1)


class _Block(nn.Module):
    """Normalise, ReLU, up-sample, convolve, normalise, ReLU, convolve; plus a shortcut with a 1×1 convolution.

    There are no biases: a later normalisation would remove them.
    """

    def __init__(self, wide: int, narrow: int, size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.size = size
        self.first_norm = _ConditionalBatchNorm(wide, num_classes)
        self.first = nn.Conv2d(wide, narrow, 3, padding=1, bias=False)
        self.second_norm = _ConditionalBatchNorm(narrow, num_classes)
        self.second = nn.Conv2d(narrow, narrow, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(wide, narrow, 1, bias=False)

    def forward(self, maps: Maps, labels: Int64[Tensor, " n"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Maps of twice the side."""
        hidden: Tensor = self.first(self._up(relu(self.first_norm(maps, labels), inplace=True)))
        hidden = self.second(relu(self.second_norm(hidden, labels), inplace=True))
        # A 1×1 convolution commutes with copying pixels; this order takes a quarter of the work.
        return hidden + self._up(self.shortcut(maps))

    def _up(self, maps: Maps) -> Float[Tensor, "n c h2 w2"]:
        finer: Tensor = interpolate(maps, size=self.size, mode="nearest")
        return finer


class _ConditionalBatchNorm(nn.Module):
    """Batch normalisation, then a gain and a bias per map that depend on the image's class."""

    def __init__(self, maps: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(maps, affine=False)
        self.gain = nn.Embedding(num_classes, maps)
        self.bias = nn.Embedding(num_classes, maps)

    def forward(self, maps: Maps, labels: Int64[Tensor, " n"]) -> Maps:
        gain, bias = (table(labels)[:, :, None, None] for table in (self.gain, self.bias))
        return torch.addcmul(bias, self.norm(maps), gain)


def _initialise(module: nn.Module) -> None:
    """Orthogonal weights as in BigGAN; random gains near 1 and biases near 0, so that classes differ from the start."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, _ConditionalBatchNorm):
        nn.init.normal_(module.gain.weight, 1.0, _STDDEV)
        nn.init.normal_(module.bias.weight, 0.0, _STDDEV)
