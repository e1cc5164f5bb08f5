"""What an audit looks at: a release of a run, made anew on worlds of public records that differ in one of them."""

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float64
from torch import Tensor

from dp_sinkhorn.audit.stand_in import smooth_images
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.privacy.ledger import LEDGER, Header, Ledger
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import RunConfig

# Noise that is next to nothing, to see the sums themselves.
SILENT = 1e-12
# What an audited part of a run may raise where it breaks down on ordinary records.
BREAKDOWNS = (RuntimeError, ValueError, IndexError, ArithmeticError)


class Finding(Exception):  # noqa: N818 - not an error of the audit, but what it is there to find
    """A sentence about what the code does wrong."""


@dataclass(frozen=True, eq=False)
class World:
    """Public records, of which those at the positions `far` are the worst that a record can be."""

    images: LabelledImages
    far: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


class Releases(Protocol):
    """A release on one world, made as often as is wanted."""

    def release(self, random: CryptoRandom) -> Float64[Tensor, "..."]:
        """One of them.

        Raises:
            Finding: It broke down.
        """
        ...


class Subject(ABC):
    """A release, on worlds of public records.

    Args:
        config: The run's; none of its records is used.
        noise_multiplier, sensitivity: Claimed, of each charge.
        charges: That one release stands for. by_record: Whether any record counts by itself.
    """

    def __init__(
        self,
        config: RunConfig,
        noise_multiplier: float,
        sensitivity: float,
        charges: int = 1,
        by_record: bool = True,
    ) -> None:
        self.config = config
        self.noise_multiplier, self.sensitivity = noise_multiplier, sensitivity
        self.charges, self.by_record = charges, by_record
        self.far_label, self.far_image = 0, white_image(config)

    @cached_property
    def shape(self) -> torch.Size:
        """Of a release."""
        return self.stage(self.ordinary(2), 1.0, SILENT).release(CryptoRandom(test_seed=0)).shape

    @property
    def stddev(self) -> float:
        """Claimed noise of what is given out: that of all its charges together."""
        return math.sqrt(self.charges) * self.noise_multiplier * self.sensitivity

    @abstractmethod
    def stage(self, world: World, sample_rate: float, noise: float | None = None) -> Releases:
        """The release that a run with these records would make.

        Args:
            noise: None: the run's. A number: this noise multiplier instead.
        """

    def ordinary(self, count: int, seed: int = 2) -> World:
        """A world of `count` smooth random images."""
        return World(smooth_images(self.config.data, count, seed))

    def with_far(self, world: World, position: int, label: int | None = None) -> World:
        """The same records and a worst-case one at `position`."""
        images, added = world.images, self.far_image
        label_row = torch.tensor([self.far_label if label is None else label])
        return World(
            LabelledImages(
                torch.cat([images.pixels[:position], added, images.pixels[position:]]),
                torch.cat([images.labels[:position], label_row, images.labels[position:]]),
                images.class_names,
            ),
            (*(far + (far >= position) for far in world.far), position),
        )


@contextmanager
def passing_ledger(config: RunConfig) -> Iterator[Ledger]:
    """One that counts for nothing, as the records are public, and is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="dp-sinkhorn-") as folder:
        ledger = Ledger(Path(folder) / LEDGER)
        ledger.begin(Header(run="0" * 32, config_sha256=config.sha256()))
        yield ledger


def white_image(config: RunConfig) -> Tensor:
    """White: no smooth random image is that, and it is far from the centre of any."""
    return torch.full((1, *config.data.shape), 255, dtype=torch.uint8)
