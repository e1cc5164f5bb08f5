"""DP-MERF: a noisy mean of random Fourier features for each class, and a generator trained to match these means.

    PYTHONPATH=benchmarks python -m peers.dp_merf DATA --out FILE.npz [--epsilon 10] [--delta 1e-5] [--seed 0]
                                                  [--num 20000] [--set steps=100]

Harder, Adamczewski and Park, "DP-MERF: Differentially Private Mean Embeddings with Random Features for Practical
Privacy-preserving Data Generation", AISTATS 2021 (arXiv 2002.11603), with labels and with counts for imbalanced
classes (section 4).

Features, generator and optimiser are those of the paper's experiments on MNIST. There are three times as many steps:
on MNIST at ε = 10 logistic regression gains 5 points from them. The paper's squared length scale is the median of
‖x−y‖² over pairs of records (105 for MNIST, pixels in [0, 1]), which depends on the records. Here it is the mean,
2V, from a released variance V (MNIST: 105.5).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot

from dp_sinkhorn.data.images import LabelledImages, to_pixels
from dp_sinkhorn.features.random_fourier import FourierMap, fourier_features
from dp_sinkhorn.privacy.clipping import added
from dp_sinkhorn.privacy.curator import Draw, HeldRecords
from dp_sinkhorn.stages.class_embedding import EmbeddingSum
from dp_sinkhorn.stages.principal_subspace import first_moments, read_first_moments
from peers.peer import Budget, class_counts, draw_labels, run

_CHUNK = 1000


@dataclass(frozen=True)
class Settings:
    """Public constants. `features` is the paper's D: half as many frequencies, each with a cosine and a sine."""

    features: int = 10_000
    count_share: float = 0.01
    variance_share: float = 0.01
    steps: int = 1800
    num_generated: int = 500
    max_numbers: int = 500 * 2 * 784  # in the images of a step: larger images are fewer, so that the cost is bounded
    learning_rate: float = 0.01
    decay: float = 0.9
    decay_every: int = 360
    latent_dim: int = 5
    width: int = 200
    channels: tuple[int, int] = (16, 8)


class SmallConvGenerator(nn.Module):
    """The paper's generator: latents and label, two dense layers, then twice "bilinear ×2, 5×5 convolution"."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, settings: Settings) -> None:
        super().__init__()
        colours, height, width = shape
        wide, narrow = settings.channels
        self.num_classes = num_classes
        self.sizes = [(math.ceil(height / k), math.ceil(width / k)) for k in (4, 2, 1)]
        self.coarse_shape = (wide, *self.sizes[0])
        size = math.prod(self.coarse_shape)
        self.dense = nn.Sequential(
            nn.Linear(settings.latent_dim + num_classes, settings.width),
            nn.BatchNorm1d(settings.width),
            nn.ReLU(),
            nn.Linear(settings.width, size),
            nn.BatchNorm1d(size),
            nn.ReLU(),
        )
        self.first = nn.Conv2d(wide, narrow, 5, padding=2)
        self.last = nn.Conv2d(narrow, colours, 5, padding=2)

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Images in [-1, 1], one flat row each."""
        onehot = one_hot(labels, self.num_classes).to(latents.dtype)
        maps = self.dense(torch.cat([latents, onehot], dim=1)).view(-1, *self.coarse_shape)
        maps = interpolate(maps, size=self.sizes[1], mode="bilinear", align_corners=True)
        maps = interpolate(self.first(maps).relu(), size=self.sizes[2], mode="bilinear", align_corners=True)
        return torch.tanh(self.last(maps) / 2.0).flatten(1)  # a logistic function, from [0, 1] to [-1, 1]


def train(
    generator: SmallConvGenerator,
    target: Float[Tensor, "K two_m"],
    frequencies: Float[Tensor, "d m"],
    settings: Settings,
    random: torch.Generator,
) -> None:
    """Fit the mean features of the generated images of each class to `target`: the MMD in the feature space."""
    num_classes = target.shape[0]
    images = min(settings.num_generated, settings.max_numbers // frequencies.shape[0])
    each = max(2, images // num_classes)
    labels = torch.arange(num_classes).repeat_interleave(each)
    optimiser = torch.optim.Adam(generator.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.decay_every, settings.decay)
    for _ in range(settings.steps):
        latents = torch.randn(len(labels), settings.latent_dim, generator=random)
        features = fourier_features(generator(latents, labels), frequencies)
        loss = (features.view(num_classes, each, -1).mean(1) - target).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def synthesise(data: LabelledImages, budget: Budget, seed: int, num: int, settings: Settings) -> LabelledImages:
    """Make three releases (counts, variance, embedding); everything after them is public."""
    num_classes, size = data.num_classes, math.prod(data.shape)
    counts = torch.full((1,), float(len(data)), dtype=torch.float64)  # the number of records is public
    if num_classes > 1:
        noisy, stddev = budget.release("class_counts", class_counts(data), settings.count_share)
        counts = noisy.clamp(min=max(1.0, stddev))
    moments, stddev = budget.release(
        "first_moments", added(map(first_moments, data.float_chunks())), settings.variance_share
    )
    variance = min(
        max(read_first_moments(moments, max(1, round(float(counts.sum()))), stddev)[1], 0.01 * size), float(size)
    )
    random = torch.Generator().manual_seed(seed)
    frequencies = torch.randn(size, settings.features // 2, generator=random) / math.sqrt(2.0 * variance)
    share = 1.0 - settings.variance_share - (settings.count_share if num_classes > 1 else 0.0)
    embedding = EmbeddingSum(FourierMap(frequencies.double()), num_classes)(Draw(HeldRecords(data)))
    noisy, _ = budget.release("embedding", embedding, share)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = SmallConvGenerator(data.shape, num_classes, settings)
    train(generator, (noisy / counts.unsqueeze(1)).float(), frequencies, settings, random)
    labels = draw_labels(counts, num, random)
    generator.eval()
    with torch.inference_mode():
        images = [
            to_pixels(generator(torch.randn(len(part), settings.latent_dim, generator=random), part))
            for part in labels.split(_CHUNK)
        ]
    return LabelledImages(torch.cat(images).view(-1, *data.shape), labels, data.class_names)


if __name__ == "__main__":
    run(synthesise, Settings(), __doc__)
