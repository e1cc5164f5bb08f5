"""Poisson subsampling: each record is drawn independently with the same probability."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.random import CryptoRandom


@dataclass(frozen=True)
class PoissonSubsampler:
    """Draws each of `num_records` records independently with probability `sample_rate`.

    The number of drawn records is private. Only the sum that is noised may depend on it. A draw may be empty.
    """

    num_records: int
    sample_rate: float

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_rate <= 1.0:
            raise InputError(f"sample_rate={self.sample_rate} is not in (0, 1]; give expected_batch_size / num_records")

    def draw(self, random: CryptoRandom) -> Int64[Tensor, " drawn"]:
        """Indices of the drawn records, ascending. Costs O(sample_rate · num_records)."""
        return self._heads(self.num_records, random)

    def draw_padded(
        self, queries: int, capacity: int, random: CryptoRandom
    ) -> tuple[Int64[Tensor, "K capacity"], Bool[Tensor, "K capacity"]]:
        """`queries` independent subsamples in tensors of public shape: indices, and whether a record was drawn there.

        Other places are padding (index 0, False). A subsample larger than `capacity` keeps its first records. This is
        safe because a whole-batch query may use its subsample in any way: its result is bounded as a whole.
        """
        coins = self._heads(queries * self.num_records, random)
        query, record = coins // self.num_records, coins % self.num_records
        counts = torch.bincount(query, minlength=queries)
        place = torch.arange(coins.numel()) - (counts.cumsum(0) - counts)[query]
        fits = place < capacity
        index = torch.zeros(queries, capacity, dtype=torch.int64)
        index[query[fits], place[fits]] = record[fits]
        return index, torch.arange(capacity) < counts.unsqueeze(1)

    def _heads(self, coins: int, random: CryptoRandom) -> Int64[Tensor, " heads"]:
        """Indices, ascending, of the heads among `coins` independent coins of probability `sample_rate`.

        The gap before the next head is geometric, P(gap ≥ k) = (1 − q)ᵏ. So it is drawn as ⌊log U / log(1 − q)⌋ for a
        uniform U, without one random number per coin.
        """
        if self.sample_rate == 1.0:
            return torch.arange(coins)
        expected = coins * self.sample_rate
        block = math.ceil(expected + 6.0 * math.sqrt(expected) + 8.0)
        chunks: list[Tensor] = []
        last = -1
        while last < coins:
            gaps = (random.uniform(block).log() / math.log1p(-self.sample_rate)).floor()
            # A gap beyond the end ends the draw. The cap changes no result and prevents an overflow of int64.
            index = last + (gaps.clamp(max=coins).to(torch.int64) + 1).cumsum(0)
            chunks.append(index)
            last = int(index[-1])
        heads = torch.cat(chunks)
        return heads[heads < coins]
