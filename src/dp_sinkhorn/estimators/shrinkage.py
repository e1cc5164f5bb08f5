"""How much of noisy differences to believe: James and Stein's rule (1961, positive part), and a rule by shape."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize

# The numbers c that `as_far_as_likely` tries: none, and up to the square of 64.
_SCALES = [0.0, *(2.0 ** (0.5 * step) for step in range(-40, 25))]


def believed(
    apart: Float64[Tensor, "K b"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, "K _"],
    kept: Callable[[Tensor, Tensor], Tensor],
) -> Float64[Tensor, "K b"]:
    """What of noisy differences is `kept` as not being noise: common to all classes, then each class by itself.

    Args:
        counts: Estimated records a class. noise: Standard deviation of each number, (K, b) or (K, 1).
        kept: Of one or many rows of numbers and the noise on each, what is not noise.
    """
    shares = shares_of(counts)
    common = kept(common_of(apart, shares), noise_of_common(noise, shares))
    return common + kept(apart - common, noise)


def believed_along(
    apart: Float64[Tensor, "K d"],
    means: Float64[Tensor, "K d"],
    counts: Float64[Tensor, " K"],
    noise: Float64[Tensor, "K 1"],
) -> Float64[Tensor, "K d"]:
    """What of noisy differences lies along the means that differ: what classes share of them, then each one's own part.

    Along one direction there is the noise of one number, whatever the dimension: a mean that is mostly error is taken
    back where none of its numbers by itself is seen to be one.

    Args:
        counts: Estimated records a class. noise: Standard deviation of each number.
    """
    shares = shares_of(counts)
    common, direction = common_of(apart, shares), common_of(means, shares)

    def along(rows: Tensor, directions: Tensor, of_one: Tensor) -> Tensor:
        units = normalize(directions, dim=-1)
        return without_noise((rows * units).sum(-1, keepdim=True), of_one) * units

    shared = along(common, direction, noise_of_common(noise, shares))
    return shared + along(apart - common, means - direction, noise)


def shares_of(counts: Float64[Tensor, " K"]) -> Float64[Tensor, "K 1"]:
    """Of all records, those of each class."""
    return (counts / counts.sum()).unsqueeze(1)


def common_of(rows: Float64[Tensor, "K b"], shares: Float64[Tensor, "K 1"]) -> Float64[Tensor, " b"]:
    """What classes have in common: their mean by records."""
    return (shares * rows).sum(0)


def noise_of_common(noise: Float64[Tensor, "K _"], shares: Float64[Tensor, "K 1"]) -> Float64[Tensor, " _"]:
    """The standard deviation of the noise on `common_of`."""
    return (shares * noise).square().sum(0).sqrt()


def without_noise(values: Float64[Tensor, "*K b"], noise: Float64[Tensor, "*K _"]) -> Float64[Tensor, "*K b"]:
    """Each number by as much of it as is likely not to be noise."""
    trust = (1.0 - noise.square() / values.square().clamp(min=1e-300)).clamp(min=0.0)
    return trust * values


def standing_out(values: Float64[Tensor, "*K d"], noise: Float64[Tensor, "*K _"]) -> Float64[Tensor, "*K d"]:
    """The values beyond the largest that so many numbers of noise are likely to hold, less the nearer they are to it.

    The threshold t is the noise times √(2 log n), n of all rows together, and a value v beyond it becomes v − t²/v
    (Gao 1998, "Wavelet shrinkage denoising using the non-negative garrote"): of noise that is beyond it after all, as
    happens in a fifth of all cases, little is left.
    """
    return without_noise(values, noise * math.sqrt(2.0 * math.log(values.numel())))


def as_far_as_likely(
    values: Float64[Tensor, "*K n"], noise: Float64[Tensor, "*K _"], shape: Float64[Tensor, " n"]
) -> Float64[Tensor, "*K n"]:
    """The expected values, if a row's are normal about zero with variances c·`shape`, c as its values make likeliest.

    Parametric empirical Bayes (Morris 1983, "Parametric empirical Bayes inference: theory and applications"): numbers
    that are small by their shape are believed less than the large ones, and none for a noise that made it large.

    Args:
        noise: Standard deviation of each number. shape: Positive.
    """
    squares, of_noise = values.square(), noise.square()

    def surprise(scale: float) -> Tensor:
        variances = (scale * shape + of_noise).clamp(min=1e-300)
        return (squares / variances + variances.log()).sum(-1, keepdim=True)

    likeliest = torch.stack([surprise(scale) for scale in _SCALES]).argmin(0)
    variances = values.new_tensor(_SCALES)[likeliest] * shape
    return variances / (variances + of_noise).clamp(min=1e-300) * values


def groups_without_noise(
    values: Float64[Tensor, "*K b"], noise: Float64[Tensor, "*K _"], groups: Int64[Tensor, " b"]
) -> Float64[Tensor, "*K b"]:
    """Each group of numbers by as much of it as is likely not to be noise: many small ones stand out together.

    Nothing of a group whose energy noise alone could have: n numbers of noise exceed n + 2√(n·x) + 2x of its variance
    with a probability of at most exp(−x) (Laurent and Massart 2000, lemma 1), here one over the number of groups.

    Args:
        groups: (b,) the group of each number, 0 to some last one; each has at least one.
    """
    sizes = torch.bincount(groups)
    x = math.log(len(sizes))
    reach = (sizes + 2.0 * (sizes * x).sqrt() + 2.0 * x) / sizes

    def energy(numbers: Tensor) -> Tensor:
        return numbers.new_zeros(*numbers.shape[:-1], len(sizes)).index_add(-1, groups, numbers.square())

    found, of_noise = energy(values), energy(noise.expand_as(values))
    trust = torch.where(found > reach * of_noise, 1.0 - of_noise / found.clamp(min=1e-300), 0.0)
    return trust[..., groups] * values
