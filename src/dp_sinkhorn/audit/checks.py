"""Checks of noise: present on every number, normal, independent, and of the claimed size."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.audit.intervals import chi_square_fits, normal_fits, stddev_interval
from dp_sinkhorn.audit.neighbouring import Violation

# Chance that one comparison fails although nothing is wrong. An audit makes at most five for each of twelve queries,
# and some 20 more for the first step. These are fewer than 100, so they fail fewer than one sound audit in 5,000.
LEVEL = 2e-6
_PAIRS = 48
# Cosine between two noises that are the same.
_SAME = 0.999
_SHARED = "the noise {} is not independent between numbers: some numbers have the same noise"


@dataclass(frozen=True)
class Check:
    """The result of one check. `finding` says what was measured, or what is wrong."""

    name: str
    ok: bool
    finding: str


class NoiseSample:
    """Statistics of the noise of repeated releases of one sum, in units of the claimed standard deviation.

    Args:
        clean: The sum without noise. stddev: Claimed standard deviation. what: Words for the findings: which releases.
    """

    def __init__(self, clean: Float64[Tensor, "n d"], stddev: float, what: str) -> None:
        self.clean, self.stddev, self.what = clean, stddev, what
        self.squares = torch.zeros_like(clean)
        self.count = 0
        self.first: list[Tensor] = []

    def add(self, released: Float64[Tensor, "n d"]) -> None:
        """Add one release.

        Raises:
            Violation: Its shape differs.
        """
        if released.shape != self.clean.shape:
            raise Violation(
                f"releases have shapes {tuple(released.shape)} and {tuple(self.clean.shape)}: "
                "the shape depends on records or on the draw"
            )
        noise = (released - self.clean) / self.stddev
        self.squares += noise.square()
        self.count += 1
        if len(self.first) < _PAIRS:
            self.first.append(noise.flatten())

    def check_size(self) -> str:
        """Check the standard deviation of the noise, of all numbers together and of each individually.

        Raises:
            Violation: It is not the claimed one.
        """
        numbers = self.squares.numel()
        total, freedom = float(self.squares.sum()), self.count * numbers
        low, high = stddev_interval(total, freedom, LEVEL)
        if not chi_square_fits(total, freedom, LEVEL):
            raise Violation(
                f"the noise {self.what} is {low:.4g} to {high:.4g} times the claimed standard deviation "
                f"({self._silent()} of {numbers} numbers have almost none)"
            )
        for extreme, word in ((self.squares.min(), "smallest"), (self.squares.max(), "largest")):
            if not chi_square_fits(float(extreme), self.count, LEVEL / numbers):
                raise Violation(
                    f"the {word} noise of a number {self.what} is {(float(extreme) / self.count) ** 0.5:.3g} times the "
                    f"claimed standard deviation ({self._silent()} of {numbers} numbers have almost none)"
                )
        return f"noise {self.what}: {low:.4f} to {high:.4f} times the claimed standard deviation, on all {numbers}"

    def check_independence(self) -> str:
        """Check that noise is independent between releases and between numbers.

        For independent standard normals z, z′ the number ⟨z, z′⟩/‖z′‖ is exactly standard normal. Reused noise makes
        it enormous; noise that numbers share makes its variance larger than 1.

        Raises:
            Violation: It is not independent.
        """
        noise = torch.stack(self.first)
        products = (noise @ noise.T) / noise.norm(dim=1).clamp(min=1e-300)
        pairs = torch.triu_indices(len(noise), len(noise), offset=1)
        every = products[pairs[0], pairs[1]].cpu().numpy()
        if not normal_tail_fits(float(np.abs(every).max()), len(every)):
            cosines = products / noise.norm(dim=1).clamp(min=1e-300).unsqueeze(1)
            if float(cosines[pairs[0], pairs[1]].abs().max()) > _SAME:
                raise Violation(f"noise {self.what} is reused: two releases have the same, so a difference cancels it")
            raise Violation(_SHARED.format(self.what))
        apart = products[torch.arange(0, len(noise) - 1, 2), torch.arange(1, len(noise), 2)]
        if not chi_square_fits(float(apart.square().sum()), len(apart), LEVEL):
            raise Violation(_SHARED.format(self.what))
        return "independent between releases and between numbers"

    def _silent(self) -> int:
        return int((self.squares < 1e-3 * self.count).sum())


def normal_tail_fits(largest: float, count: int) -> bool:
    """Whether the largest of `count` standard normals, independent or not, can be so large."""
    return count * 2.0 * float(torch.special.ndtr(torch.tensor(-largest, dtype=torch.float64))) >= LEVEL


def check_normal(values: np.ndarray) -> None:
    """Check that projected noise is standard normal.

    Raises:
        Violation: It is not.
    """
    if not normal_fits(values, LEVEL):
        raise Violation("the noise along the worst-case direction is not normal with the claimed standard deviation")
