"""Do synthetic images repeat training images? Computed from training records: for the curator's eyes only."""

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
    """How much closer synthetic images are to training images than chance, and what an attacker makes of it.

    Distances are root mean square differences of pixels, in [0, 1].

    Args:
        private: Always true: not covered by ε, not to be handed out.
        nearest_synthetic: Quantiles of the distance from synthetic images to their nearest training image.
        nearest_held_out: The same from held-out real images: no generator need come closer.
        exact_copies: Synthetic images that equal a training image, of `num_queries`.
        share_closer: Share of the synthetic images whose nearest real image is a training image, when equally many
            training and held-out images are offered: 0.5 without memorisation.
        attack: The membership attack that scores a record by its distance to the nearest synthetic image.
        bound: What ε allows any attack, or None where no release was given.
        num_queries: Synthetic images looked at.
        num_pool: Training images offered for `share_closer`, and held-out ones.
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
        seed: Of the samples.
        bound: What ε allows, to stand beside the attack.
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

    Without memorisation each real image is a training image by the toss of a coin. Synthetic images that share a
    nearest real image share its toss: the interval takes the c_j images of each as one, with the largest variance that
    a toss can have, Σ c_j²/(4n²), so it is conservative.

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
