"""Mean features of the classes: distances of a model's images from targets, and targets from noisy sums."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.shrinkage import shrunk, shrunk_groups
from dp_sinkhorn.features.cosine import maps_from_frequencies, maps_to_frequencies


def squared_gaps(features: Float[Tensor, "K n D"], wanted: Float[Tensor, "K D"]) -> Float[Tensor, " K"]:
    """Unbiased estimate of ‖E φ − w_k‖² of each class: the mean of ⟨φ_i − w, φ_j − w⟩ over pairs i ≠ j of n images.

    (Gretton et al. 2012, lemma 6.)

    Args:
        features: φ of n ≥ 2 images of each class. wanted: (K, D), w.
    """
    apart = features - wanted.unsqueeze(1)
    number = features.shape[1]
    return (apart.sum(1).square().sum(1) - apart.square().sum((1, 2))) / (number * (number - 1))


def wanted_means(
    own: Sequence[Float[Tensor, "n D"]],
    released: Float64[Tensor, "K D"],
    counts: Float64[Tensor, " K"],
    noise: float,
    shrink: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Float64[Tensor, "K D"]:
    """Target means: those of a model's images, moved by the gap to the released means, shrunk by its noise.

    Args:
        own: Features of the model's images, class by class. released: Noisy sums of the records' features.
        counts: Estimated number of records of each class. noise: Standard deviation of the noise on each number.
        shrink: Shrinks gaps, given the counts and the noise on each number.
    """
    means, variances = (torch.stack([of(rows.double(), 0) for rows in own]) for of in (torch.mean, torch.var))
    of_release = noise / counts.unsqueeze(1)
    level = (of_release.square() + variances / len(own[0])).sqrt()
    return means + shrink(released / counts.unsqueeze(1) - means, counts, level)


def shrunk_embedding_gap(
    gap: Float64[Tensor, "K D"], counts: Float64[Tensor, " K"], noise: Float64[Tensor, "K D"], parts: int
) -> Float64[Tensor, "K D"]:
    """Noisy gaps between mean embeddings, shrunk by their noise.

    Args:
        parts: Number of kernels; the part of each kernel is shrunk as one group.
    """
    groups = torch.arange(gap.shape[1]) // (gap.shape[1] // parts)
    return shrunk(gap, counts, noise, partial(shrunk_groups, groups=groups))


def shrunk_feature_gap(
    gap: Float64[Tensor, "K D"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, "K D"],
    shape: tuple[int, int, int],
) -> Float64[Tensor, "K D"]:
    """Noisy gaps between mean scattering features, shrunk by their noise in octaves of cosine frequencies of each map.

    Args:
        noise: (K, D) standard deviation of each number. shape: Of the maps. The last feature, the bias, has no gap.
    """
    groups = frequency_groups(shape)
    # The cosine transform is orthogonal, so it preserves the variance of white noise. The noise of a map may differ
    # from place to place; its mean variance is used.
    maps, area = shape[0], shape[1] * shape[2]
    level = noise[:, :-1].square().unflatten(1, (maps, area)).mean(2).sqrt().repeat_interleave(area, dim=1)
    strengths = maps_to_frequencies(gap[:, :-1], shape)
    kept = shrunk(strengths, counts, level, partial(shrunk_groups, groups=groups))
    return torch.cat([maps_from_frequencies(kept, shape), torch.zeros_like(gap[:, -1:])], dim=1)


def frequency_groups(shape: tuple[int, int, int]) -> Int64[Tensor, " d"]:
    """The group of each cosine frequency of maps of this shape: its map, and the octave of the higher of its two."""
    maps, height, width = shape
    fastest = torch.maximum(torch.arange(height).unsqueeze(1), torch.arange(width)).flatten()
    octaves = torch.tensor([number.bit_length() for number in fastest.tolist()])
    return (torch.arange(maps).unsqueeze(1) * (int(octaves.max()) + 1) + octaves).flatten()
