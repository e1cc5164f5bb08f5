"""Images of two classes, some of which look like the other class, and a classifier of them."""

import torch

from dp_sinkhorn.features.scattering import Scattering
from dp_sinkhorn.generators.base import Generator

SHAPE, SIZE = (1, 8, 8), 64


class Halves(Generator):
    """A given share of each class is bright above, the others below. Class 0 should be bright above."""

    def __init__(self, share: float) -> None:
        super().__init__(SHAPE, 2, SIZE + 1)
        self.share = torch.nn.Parameter(torch.tensor(share))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        own = latents[:, -1:] < self.share
        above = torch.where(own == (labels == 0).unsqueeze(1), 1.0, -1.0)
        side = torch.cat([torch.ones(32), -torch.ones(32)])
        return 0.5 * above * side + 0.2 * (latents[:, :-1] - 0.5)


def telling(preferring: float = 0.0) -> torch.Tensor:
    """A classifier that recognises `Halves` and has a bias towards class 0."""
    scattering, halves = Scattering(SHAPE), Halves(1.0)
    first, second = (scattering(rows).mean(0) for rows in halves.samples_by_class(200, 1))
    weight = 200.0 * torch.stack([first - second, second - first])
    weight[:, -1] = torch.tensor([preferring, -preferring])
    return weight.double()
