"""Mean features of classes: how far those of a model's images are from noisy ones of the records."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dp_sinkhorn.estimators.shrinkage import believed, groups_without_noise
from dp_sinkhorn.features.cosine import maps_from_frequencies, maps_to_frequencies


def squared_gaps(features: Float[Tensor, "K n D"], wanted: Float[Tensor, "K D"]) -> Float[Tensor, " K"]:
    """‖m_k − w_k‖² of each class, m_k the mean features of all images that the model can make: an unbiased estimate.

    ⟨φ_i − w, φ_j − w⟩ on average over pairs i ≠ j of n images (Gretton et al. 2012, lemma 6).

    Args:
        features: φ, of n ≥ 2 images a class.
    """
    apart = features - wanted.unsqueeze(1)
    number = features.shape[1]
    return (apart.sum(1).square().sum(1) - apart.square().sum((1, 2))) / (number * (number - 1))


def wanted_means(
    own: Sequence[Float[Tensor, "n D"]],
    released: Float64[Tensor, "K D"],
    counts: Float64[Tensor, " K"],
    noise: float,
    believed: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Float64[Tensor, "K D"]:
    """The mean features of a model's images, moved by as much of the gap to the released ones as is not noise.

    Args:
        own: Features of the model's images, class by class. released: Noisy sums. noise: Standard deviation of each of
            their numbers. counts: Estimated records a class.
        believed: Of gaps, counts and the noise on each number, what is not noise.
    """
    means, variances = (torch.stack([of(rows.double(), 0) for rows in own]) for of in (torch.mean, torch.var))
    of_release = noise / counts.unsqueeze(1)
    level = (of_release.square() + variances / len(own[0])).sqrt()
    return means + believed(released / counts.unsqueeze(1) - means, counts, level)


def believed_embedding_gap(
    gap: Float64[Tensor, "K D"], counts: Float64[Tensor, " K"], noise: Float64[Tensor, "K D"], parts: int
) -> Float64[Tensor, "K D"]:
    """What of noisy gaps between mean embeddings is not noise, each of so many kernels as a whole."""
    groups = torch.arange(gap.shape[1]) // (gap.shape[1] // parts)
    return believed(gap, counts, noise, partial(groups_without_noise, groups=groups))


def believed_gap(
    gap: Float64[Tensor, "K D"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, "K D"],
    shape: tuple[int, int, int],
) -> Float64[Tensor, "K D"]:
    """What of noisy gaps between mean scattering features is not noise, by octaves of each map's cosine frequencies.

    Args:
        noise: Standard deviation of each number. shape: Of the maps; a last feature, the bias, has no gap.
    """
    groups = frequency_groups(shape)
    # A rotation keeps the variance of a map's noise: where that differs from place to place, its mean is taken.
    maps, area = shape[0], shape[1] * shape[2]
    level = noise[:, :-1].square().unflatten(1, (maps, area)).mean(2).sqrt().repeat_interleave(area, dim=1)
    strengths = maps_to_frequencies(gap[:, :-1], shape)
    kept = believed(strengths, counts, level, partial(groups_without_noise, groups=groups))
    return torch.cat([maps_from_frequencies(kept, shape), torch.zeros_like(gap[:, -1:])], dim=1)


def frequency_groups(shape: tuple[int, int, int]) -> Int64[Tensor, " d"]:
    """The group of each cosine frequency of maps of this shape: by map, and by octave of the faster of its two."""
    maps, height, width = shape
    fastest = torch.maximum(torch.arange(height).unsqueeze(1), torch.arange(width)).flatten()
    octaves = torch.tensor([number.bit_length() for number in fastest.tolist()])
    return (torch.arange(maps).unsqueeze(1) * (int(octaves.max()) + 1) + octaves).flatten()
