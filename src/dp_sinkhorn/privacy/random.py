"""Cryptographic randomness for noise and subsampling."""

import hashlib
import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from jaxtyping import Float64, Int64
from torch import Tensor

NORMALS_PER_DRAW = 4
SAMPLER = (
    f"AES-256-CTR keyed by the operating system; each normal is a sum of {NORMALS_PER_DRAW} in float64; noise and what "
    "it is added to are rounded to one grid of about sensitivity × 2⁻³⁴, and uniform low bits added"
)


class CryptoRandom:
    """AES-256 in counter mode: the only source of noise and of subsamples.

    Guarantees: the key comes from the operating system and is never stored. So neither the user nor a resumed run nor
    a forked process, which draws a new key, can replay the stream.

    Args:
        test_seed: Replaces the operating system's key by a fixed one. For tests only: anyone who knows the seed can
            subtract the noise, so the output is not private.
    """

    def __init__(self, test_seed: int | None = None) -> None:
        self.is_private = test_seed is None
        key = os.urandom(32) if test_seed is None else hashlib.sha256(f"test {test_seed}".encode()).digest()
        self._stream = _key_stream(key)
        self._process = os.getpid()

    def bits(self, count: int) -> np.ndarray:
        """`count` independent uniform uint64."""
        if self.is_private and os.getpid() != self._process:
            self._stream, self._process = _key_stream(os.urandom(32)), os.getpid()
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype=np.uint64)

    def uniform(self, count: int) -> Float64[Tensor, " count"]:
        """Uniform on (0, 1), at the midpoints of a grid of 2⁻⁵²: never 0, never 1, each exact in float64."""
        grid = torch.from_numpy((self.bits(count) >> np.uint64(12)).astype(np.float64))
        return (grid + 0.5) * 2.0**-52

    def integers(self, width: int, *shape: int) -> Int64[Tensor, "..."]:
        """Uniform on the integers in [−2^(width−1), 2^(width−1)); `width` in 1..63."""
        high = self.bits(math.prod(shape)) >> np.uint64(64 - width)
        return torch.from_numpy(high.astype(np.int64) - (1 << (width - 1))).view(shape)

    def normal(self, *shape: int) -> Float64[Tensor, "..."]:
        """Standard normals of the given shape.

        Each is the scaled sum of four Box-Muller normals. A single one takes so few float values that its low bits may
        reveal the number to which it is added (Mironov 2012). With a sum of four this attack is computationally
        infeasible (Holohan and Braghin 2021, arXiv 2107.10138).
        """
        count = math.prod(shape)
        pairs = NORMALS_PER_DRAW // 2 * count
        radius = self.uniform(pairs).log_().mul_(-2.0).sqrt_()
        angle = self.uniform(pairs).mul_(2.0 * math.pi)
        parts = torch.cat([radius * angle.cos(), radius * angle.sin()]).view(NORMALS_PER_DRAW, count)
        return parts.sum(0).div_(math.sqrt(NORMALS_PER_DRAW)).view(shape)


def _key_stream(key: bytes) -> CipherContext:
    return Cipher(AES(key), CTR(bytes(16))).encryptor()
