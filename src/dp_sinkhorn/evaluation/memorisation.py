"""Memorisation: whether synthetic images repeat training images. Computed from training records, so private."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.evaluation.attack import Attack, Bound, Estimate, membership_attack, normal_interval
from dp_sinkhorn.evaluation.nearest import nearest

MAX_QUERIES = 5000
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Memorisation:
    """Whether synthetic images are closer to training images than chance, and whether an attack can use it.

    Distances are root mean square differences of pixels, in [0, 1].

    Args:
        private: Always true: ε does not cover these figures, so do not hand them out.
        nearest_synthetic: Quantiles of the distance from synthetic images to their nearest training image.
        nearest_held_out: The same for held-out real images, for comparison.
        exact_copies: Number of the `num_queries` synthetic images that equal a training image.
        share_closer: Share of the synthetic images whose nearest real image is a training image, among equally many
            training and held-out images; 0.5 without memorisation.
        attack: The membership attack that scores a record by its distance to the nearest synthetic image.
        bound: What ε allows any attack; None without a release.
        num_queries: Number of synthetic images compared.
        num_pool: Number of training images for `share_closer`, and of held-out images.
    """

    private: bool
    nearest_synthetic: dict[str, float]
    nearest_held_out: dict[str, float]
    exact_copies: int
    share_closer: Estimate
    attack: Attack
    bound: Bound | None
    num_queries: int
    num_pool: int


def memorisation(
    synthetic: LabelledImages,
    real_train: LabelledImages,
    real_test: LabelledImages,
    seed: int,
    bound: Bound | None,
    report: Callable[[str], None],
) -> Memorisation:
    """Compare synthetic images with the records that the generator was trained on.

    Args:
        synthetic: Drawn from the released generator.
        real_train: Its training records, all of them.
        real_test: Records of the same kind that it was not trained on.
        seed: Seed of the random subsets.
        bound: What ε allows any attack, or None.
        report: Called with a line before each part.

    Raises:
        InputError: There are too few images.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(images: LabelledImages, count: int) -> Tensor:
        return images.pixels[torch.randperm(len(images), generator=generator)[:count]]

    queries = drawn(synthetic, MAX_QUERIES)
    report("nearest training images of synthetic images")
    from_synthetic = nearest(queries, real_train.pixels).distance
    report("nearest training images of held-out images")
    from_held_out = nearest(drawn(real_test, MAX_QUERIES), real_train.pixels).distance
    num_pool = min(len(real_train), len(real_test))
    report("share of synthetic images that are closer to training images")
    closer = share_closer(queries, drawn(real_train, num_pool), drawn(real_test, num_pool))
    report("membership attack")
    members, others = (
        -nearest(drawn(images, MAX_QUERIES), synthetic.pixels).distance.numpy() for images in (real_train, real_test)
    )
    return Memorisation(
        private=True,
        nearest_synthetic=_quantiles(from_synthetic),
        nearest_held_out=_quantiles(from_held_out),
        exact_copies=int((from_synthetic == 0.0).sum()),
        share_closer=closer,
        attack=membership_attack(members, others),
        bound=bound,
        num_queries=len(queries),
        num_pool=num_pool,
    )


def share_closer(synthetic: Tensor, train: Tensor, held_out: Tensor) -> Estimate:
    """The share of synthetic images whose nearest image of both sets is a training image; equal distances count half.

    Without memorisation, a fair coin decides whether a real image is a training image. Synthetic images with the same
    nearest real image share its coin. So the interval counts the c_j images of each real image as one, with the largest
    variance of a coin, Σ c_j²/(4n²): it is conservative.

    Args:
        synthetic: uint8, (n, c, h, w). train, held_out: uint8, equally many real images.
    """
    to_train, to_held_out = nearest(synthetic, train), nearest(synthetic, held_out)
    difference = (to_train.distance - to_held_out.distance).numpy()
    wins = np.where(difference < 0.0, 1.0, np.where(difference > 0.0, 0.0, 0.5))
    cluster = np.where(difference <= 0.0, to_train.index.numpy(), len(train) + to_held_out.index.numpy())
    value, shared = float(wins.mean()), np.bincount(cluster)
    deviation = float(np.sqrt(np.square(shared).sum())) / (2.0 * len(wins))
    return Estimate(value=value, interval=normal_interval(value, deviation))


def _quantiles(distances: Tensor) -> dict[str, float]:
    return {
        f"{share:g}": float(value) for share, value in zip(QUANTILES, np.quantile(distances, QUANTILES), strict=True)
    }
