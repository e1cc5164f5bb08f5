"""What the peers share: a budget split into Gaussian releases, and the command line of a peer's process."""

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

# The PLD bound lies a little above the exact ε that the noise is calibrated to.
_ROOM = 1.002


class Budget:
    """(epsilon, delta) split by shares of μ², in which Gaussian releases add up.

    Guarantees: everything released through it is (epsilon, delta)-DP under add/remove, where each total changes by at
    most its `sensitivity` with one record; `spent` is the PLD bound of all that was charged.
    """

    def __init__(self, epsilon: float, delta: float, random: CryptoRandom) -> None:
        self.epsilon, self.delta = epsilon, delta
        self.charges: list[Charge] = []
        self._whole = _ROOM * gaussian_noise_multiplier(epsilon, delta)
        self._left = 1.0
        self._random = random

    def release(self, name: str, total: BoundedSum, share: float) -> tuple[Tensor, float]:
        """`total` with noise, and the standard deviation of that noise."""
        if share > self._left + 1e-9:
            raise ValueError(f"{name} asks for {share:g} of a budget of which {self._left:g} is left")
        self._left -= share
        mechanism = GaussianMechanism(total.sensitivity, self._whole / math.sqrt(share))
        self.charges.append(Charge(name=name, noise_multiplier=mechanism.noise_multiplier))
        return mechanism(total, self._random), mechanism.noise_stddev

    def spent(self) -> float:
        """ε of everything released, by privacy-loss distributions.

        Raises:
            ValueError: It is above the budget.
        """
        spent = epsilon_pld(self.charges, self.delta)
        if spent > self.epsilon:
            raise ValueError(f"epsilon={spent:g} was spent of {self.epsilon:g}")
        return spent


def class_counts(data: LabelledImages) -> BoundedSum:
    """Number of records a class. A record changes one count by 1."""
    return BoundedSum(torch.bincount(data.labels, minlength=data.num_classes).to(torch.float64), 1.0)


def draw_labels(counts: Tensor, num: int, random: torch.Generator) -> Tensor:
    """`num` labels in the shares of released counts."""
    return torch.multinomial(counts / counts.sum(), num, replacement=True, generator=random)


def run(
    synthesise: Callable[[LabelledImages, Budget, int, int, Any], LabelledImages], settings: Any, about: str | None
) -> None:
    """A peer's process: DATA → an `.npz` of images and labels, and its facts as JSON on stdout."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--epsilon", type=float, default=10.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0, help="of public randomness")
    parser.add_argument("--num", type=int, default=20000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=NUMBER", help="another constant")
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
    """A KEY=NUMBER, of a type that the constant has."""
    name, _, number = pair.partition("=")
    kind = type(asdict(settings).get(name))
    if kind not in (int, float):
        known = ", ".join(key for key, value in asdict(settings).items() if isinstance(value, int | float))
        parser.error(f"--set {pair!r} names no number; known are {known}")
    return name, kind(number)
