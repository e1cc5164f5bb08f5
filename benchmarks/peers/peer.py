"""Common parts of the peers: a budget split into Gaussian releases, and the command line of a peer's process."""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.sources import load_images
from dp_sinkhorn.privacy.accounting import Charge, epsilon_pld
from dp_sinkhorn.privacy.calibration import gaussian_noise_multiplier
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom

# Extra noise: the PLD bound lies a little above the exact ε to which the noise is calibrated.
_EXTRA_NOISE = 1.002


class Budget:
    """(epsilon, delta) split into shares of μ², which add up over Gaussian releases.

    **Guarantees**: all releases together are (epsilon, delta)-DP under add/remove, if one record changes each total by
    at most its `sensitivity`. `spent` is the PLD bound of all charges.
    """

    def __init__(self, epsilon: float, delta: float, random: CryptoRandom) -> None:
        self.epsilon, self.delta = epsilon, delta
        self.charges: list[Charge] = []
        self._whole = _EXTRA_NOISE * gaussian_noise_multiplier(epsilon, delta)
        self._left = 1.0
        self._random = random

    def release(self, name: str, total: BoundedSum, share: float) -> tuple[Tensor, float]:
        """Return `total` with noise, and the standard deviation of the noise.

        Raises:
            ValueError: `share` is more than is left.
        """
        if share > self._left + 1e-9:
            raise ValueError(f"{name} needs {share:g} of the budget, but {self._left:g} is left; lower its share")
        self._left -= share
        mechanism = GaussianMechanism(total.sensitivity, self._whole / math.sqrt(share))
        self.charges.append(Charge(name=name, noise_multiplier=mechanism.noise_multiplier))
        return mechanism(total, self._random), mechanism.noise_stddev

    def spent(self) -> float:
        """Return ε of all releases, by privacy-loss distributions.

        Raises:
            ValueError: It exceeds the budget.
        """
        spent = epsilon_pld(self.charges, self.delta)
        if spent > self.epsilon:
            raise ValueError(f"epsilon={spent:g} was spent, more than the budget of {self.epsilon:g}; report this bug")
        return spent


def class_counts(data: LabelledImages) -> BoundedSum:
    """Number of records of each class. A record changes one count by 1."""
    return BoundedSum(torch.bincount(data.labels, minlength=data.num_classes).to(torch.float64), 1.0)


def draw_labels(counts: Tensor, num: int, random: torch.Generator) -> Tensor:
    """Draw `num` labels in the shares of released counts."""
    return torch.multinomial(counts / counts.sum(), num, replacement=True, generator=random)


def run(
    synthesise: Callable[[LabelledImages, Budget, int, int, Any], LabelledImages], settings: Any, about: str | None
) -> None:
    """Run a peer: read DATA, write an `.npz` of images and labels, and print the facts as JSON."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--epsilon", type=float, default=10.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0, help="seed of the public randomness")
    parser.add_argument("--num", type=int, default=20000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=NUMBER", help="replace a constant of the peer"
    )
    arguments = parser.parse_args()
    settings = replace(settings, **dict(_constant(settings, pair, parser) for pair in arguments.set))
    budget = Budget(arguments.epsilon, arguments.delta, CryptoRandom())
    made = synthesise(load_images(arguments.data), budget, arguments.seed, arguments.num, settings)
    images, labels = made.arrays()
    np.savez_compressed(arguments.out, images=images, labels=labels, class_names=np.array(made.class_names))
    charges = [charge.model_dump(mode="json") for charge in budget.charges]
    facts = {"epsilon": budget.spent(), "delta": budget.delta, "charges": charges, "settings": asdict(settings)}
    print(json.dumps(facts))


def _constant(settings: Any, pair: str, parser: argparse.ArgumentParser) -> tuple[str, int | float]:
    """Read KEY=NUMBER as the type of that constant."""
    name, _, number = pair.partition("=")
    kind = type(asdict(settings).get(name))
    if kind not in (int, float):
        known = ", ".join(key for key, value in asdict(settings).items() if isinstance(value, int | float))
        parser.error(f"--set {pair!r} names no number; choose from {known}")
    return name, kind(number)
