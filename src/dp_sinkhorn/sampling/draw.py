"""Draw labelled images from a release, some at a time."""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from dp_sinkhorn.data.files import MAX_BYTES
from dp_sinkhorn.data.images import LabelledImages, to_pixels
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.release.card import PrivacyCard

MAX_SEED = 2**63
_CHUNK = 1000  # a multiple of what the generator passes at a time: its matrix products keep their shapes


@dataclass(frozen=True, eq=False)
class Draws:
    """`num` synthetic images that are made while one walks over them, in chunks; every walk gives the same.

    What is held beyond one chunk is the random order of the labels: four bytes an image.

    Args:
        counts: Images a class; they sum to `num`. seed: Equal seeds give equal images.
    """

    card: PrivacyCard
    generator: Generator
    counts: Int64[Tensor, " classes"]
    seed: int

    @property
    def num(self) -> int:
        """How many images."""
        return int(self.counts.sum())

    def labels(self) -> Iterator[Int64[Tensor, " chunk"]]:
        """The labels alone, in the order of the images."""
        return self._labels(torch.Generator().manual_seed(self.seed))

    @torch.no_grad()
    def __iter__(self) -> Iterator[LabelledImages]:
        random = torch.Generator().manual_seed(self.seed)
        for labels in self._labels(random):
            pixels = to_pixels(self.generator.sample(labels, random))
            yield LabelledImages(pixels.unflatten(1, self.card.image_shape), labels, self.card.class_names)

    def _labels(self, random: torch.Generator) -> Iterator[Int64[Tensor, " chunk"]]:
        order = torch.randperm(self.num, generator=random, dtype=torch.int32)
        # Place i of the sorted labels belongs to the class before whose end it lies.
        ends = self.counts.cumsum(0)
        for places in order.split(_CHUNK):
            yield torch.searchsorted(ends, places.to(torch.int64), right=True)


def draw(
    card: PrivacyCard,
    generator: Generator,
    num: int,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    balanced: bool = False,
) -> Draws:
    """`num` synthetic images to come, the classes in the shares of the card's class prior, in random order.

    Args:
        num: At least 1. labels: Only these classes (indices), in their relative shares. seed: Equal seeds
            give equal images. balanced: All of these classes equally often instead.

    Raises:
        InputError: `num`, a label or the seed is no integer or out of range, or there is no label.
    """
    num, seed = _integer("num", num), _integer("seed", seed)
    if num < 1:
        raise InputError(f"num={num} is below 1; give the number of images to draw")
    if (most := MAX_BYTES // math.prod(card.image_shape)) < num:
        raise InputError(
            f"num={num} is above {most} images of {card.image_shape}; draw them in parts, with other seeds"
        )
    if not 0 <= seed < MAX_SEED:
        raise InputError(f"seed={seed} is not in 0..{MAX_SEED - 1}; give one in that range")
    return Draws(card, generator, _share_out(num, _shares(card, labels, balanced)), seed)


def sample(
    card: PrivacyCard,
    generator: Generator,
    num: int,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    balanced: bool = False,
) -> LabelledImages:
    """The images of `draw`, all in memory."""
    chunks = list(draw(card, generator, num, labels, seed, balanced))
    pixels, chosen = (torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("pixels", "labels"))
    return LabelledImages(pixels, chosen, card.class_names)


def _shares(card: PrivacyCard, labels: Sequence[int] | None, balanced: bool) -> Tensor:
    prior = torch.tensor(card.class_prior.shares, dtype=torch.float64)
    if balanced:
        prior = torch.ones_like(prior)
    if labels is None:
        return prior / prior.sum()
    wanted = torch.zeros_like(prior)
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise InputError(f"labels={labels!r} is not a list of classes; give for example [0, 1]")
    chosen = [_integer("label", label) for label in labels]
    if not chosen:
        raise InputError("labels name no class; give at least one, or None for all")
    for label in chosen:
        if not 0 <= label < len(prior):
            raise InputError(f"label {label} is not in 0..{len(prior) - 1}; give labels of this release's classes")
        wanted[label] = prior[label]
    return wanted / wanted.sum()


def _integer(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]  # of NumPy too, never of a float
    except TypeError:
        raise InputError(f"{name}={value!r} is no integer; give one") from None


def _share_out(num: int, shares: Tensor) -> Int64[Tensor, " classes"]:
    """How many of `num` images each class gets, off its share by less than one (largest remainders)."""
    exact = num * shares
    counts = exact.floor().to(torch.int64)
    missing = num - int(counts.sum())
    counts[(exact - counts).topk(missing).indices] += 1
    return counts
