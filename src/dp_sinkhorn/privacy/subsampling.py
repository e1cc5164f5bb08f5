"""Poisson subsampling: every record enters by its own coin."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from dp_sinkhorn.errors import InputError
from dp_sinkhorn.privacy.random import CryptoRandom


@dataclass(frozen=True)
class PoissonSubsampler:
    """Draws each of `num_records` records independently with probability `sample_rate`.

    The drawn size is itself private: it may be used in the sum that is noised and nowhere else. An empty
    draw is an ordinary draw.
    """

    num_records: int
    sample_rate: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_rate <= 1.0:
            raise InputError(f"sample_rate={self.sample_rate} is not in (0, 1]; give expected_batch_size / num_records")

    def draw(self, random: CryptoRandom) -> Int64[Tensor, " drawn"]:
        """Indices of the drawn records, ascending. Costs O(sample_rate · num_records).

        The gap before the next drawn record is geometric: P(gap ≥ k) = (1 − q)ᵏ, so ⌊log U / log(1 − q)⌋
        for a uniform U has the law of the coins without throwing each of them.
        """
        if self.sample_rate == 1.0:
            return torch.arange(self.num_records)
        expected = self.num_records * self.sample_rate
        block = math.ceil(expected + 6.0 * math.sqrt(expected) + 8.0)
        chunks: list[Tensor] = []
        last = -1
        while last < self.num_records:
            gaps = (random.uniform(block).log() / math.log1p(-self.sample_rate)).floor()
            # A gap beyond the end ends the draw, whatever its length: capped, it cannot overflow int64.
            index = last + (gaps.clamp(max=self.num_records).to(torch.int64) + 1).cumsum(0)
            chunks.append(index)
            last = int(index[-1])
        drawn = torch.cat(chunks)
        return drawn[drawn < self.num_records]
