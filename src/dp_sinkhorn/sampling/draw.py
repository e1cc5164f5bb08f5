"""Drawing labelled images from a release, in chunks."""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dp_sinkhorn.data.class_names import are_integers
from dp_sinkhorn.data.files import MAX_BYTES
from dp_sinkhorn.data.images import LabelledImages, to_pixels
from dp_sinkhorn.estimators.linear_classifier import LinearClassifier
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.tuned import TunedGenerator
from dp_sinkhorn.io.errors import InputError, did_you_mean
from dp_sinkhorn.io.safe_read import listed, shown
from dp_sinkhorn.release.card import PrivacyCard

MAX_SEED = 2**63
_CHUNK = (
    1000  # images; a multiple of the generator's own chunks, so that the shapes of its matrix products do not change
)
_SCORED = 100  # images whose features are in memory at a time


@dataclass(frozen=True, eq=False)
class Draws:
    """`num` synthetic images that are made during iteration, in chunks; every iteration gives the same images.

    Beyond one chunk, memory holds only the random order of the labels: four bytes per image.

    Args:
        card: Of the release.
        generator: Of the release.
        counts: (K,) images of each class; they sum to `num`.
        seed: Equal seeds give equal images.
        classifier: The released classifier, if labels or probabilities need it.
        relabel: Whether an image's label is the class that the classifier finds, not the class it was drawn for.
        gives_probabilities: Whether writers also write `probabilities`.
    """

    card: PrivacyCard
    generator: Generator
    counts: Int64[Tensor, " classes"]
    seed: int
    classifier: LinearClassifier | None = None
    relabel: bool = False
    gives_probabilities: bool = False

    @property
    def num(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    @torch.no_grad()
    def __iter__(self) -> Iterator[LabelledImages]:
        random = torch.Generator().manual_seed(self.seed)
        for labels in self._labels(random):
            pixels = to_pixels(self.generator.sample(labels, random)).unflatten(1, self.card.image_shape)
            images = LabelledImages(pixels, labels, self.card.class_names)
            yield replace(images, labels=self.probabilities(images).argmax(1)) if self.relabel else images

    def probabilities(self, images: LabelledImages) -> Float[Tensor, "chunk classes"]:
        """Class probabilities of drawn images, by the released classifier and the shares of `counts` (Bayes' rule)."""
        assert self.classifier is not None  # noqa: S101 - `draw` sets it if it is needed
        shares: Tensor = self.counts / self.num
        parts = [self.classifier.scores(part) for part in images.floats().to(self.classifier.weight).split(_SCORED)]
        return (torch.cat(parts).cpu() + shares.log()).softmax(dim=1)

    def _labels(self, random: torch.Generator) -> Iterator[Int64[Tensor, " chunk"]]:
        order = torch.randperm(self.num, generator=random, dtype=torch.int32)
        # Place i of the sorted labels belongs to the first class that ends after it.
        ends = self.counts.cumsum(0)
        for places in order.split(_CHUNK):
            yield torch.searchsorted(ends, places.to(torch.int64), right=True)


def draw(
    card: PrivacyCard,
    generator: Generator,
    num: int,
    labels: Sequence[int | str] | None = None,
    seed: int = 0,
    balanced: bool = False,
    relabel: bool = False,
    probabilities: bool = False,
) -> Draws:
    """Prepare `num` synthetic images in random order, with the class shares of the card's class prior.

    Args:
        card: Of the release.
        generator: Of the release.
        num: At least 1.
        labels: Names of the classes to draw, in their relative shares; places, if the names are not integers. None:
            all.
        seed: Equal seeds give equal images.
        balanced: Draw these classes equally often instead.
        relabel: Label each image with the class that the released classifier finds.
        probabilities: Have writers write `Draws.probabilities`.

    Raises:
        InputError: `num`, a label or the seed is not an integer or is out of range, `labels` is empty, or the release
            lacks the classifier that an option needs.
    """
    num, seed = _integer("num", num), _integer("seed", seed)
    if num < 1:
        raise InputError(f"num={num} is below 1; give the number of images to draw")
    if (most := MAX_BYTES // math.prod(card.image_shape)) < num:
        raise InputError(
            f"num={num} is above {most} images of {card.image_shape}; draw them in parts, with different seeds"
        )
    if not 0 <= seed < MAX_SEED:
        raise InputError(f"seed={seed} is not in 0..{MAX_SEED - 1}; give a seed in that range")
    classifier = _classifier(generator) if relabel or probabilities else None
    counts = _share_out(num, _shares(card, labels, balanced))
    return Draws(card, generator, counts, seed, classifier, relabel, probabilities)


def _classifier(generator: Generator) -> LinearClassifier:
    if not isinstance(generator, TunedGenerator) or generator.classifier is None:
        raise InputError(
            "this release holds no classifier for labels or probabilities (mode batch, another version, no stage "
            "label_classifier, or interrupted before fine-tuning); train with that stage"
        )
    return LinearClassifier(generator.shape, generator.classifier)


def sample(
    card: PrivacyCard,
    generator: Generator,
    num: int,
    labels: Sequence[int | str] | None = None,
    seed: int = 0,
    balanced: bool = False,
    relabel: bool = False,
) -> LabelledImages:
    """The images of `draw`, all in memory. Arguments and errors as in `draw`."""
    chunks = list(draw(card, generator, num, labels, seed, balanced, relabel))
    pixels, chosen = (torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("pixels", "labels"))
    return LabelledImages(pixels, chosen, card.class_names)


def _shares(card: PrivacyCard, labels: Sequence[int | str] | None, balanced: bool) -> Tensor:
    prior = torch.tensor(card.class_prior.shares, dtype=torch.float64)
    if balanced:
        prior = torch.ones_like(prior)
    if labels is None:
        return prior / prior.sum()
    wanted = torch.zeros_like(prior)
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise InputError(f"labels={labels!r} is not a list of classes; give for example [0, 1]")
    chosen = [_place(label, card.class_names) for label in labels]
    if not chosen:
        raise InputError("labels name no class; give at least one, or None for all")
    for place in chosen:
        wanted[place] = prior[place]
    return wanted / wanted.sum()


def _place(label: object, names: tuple[str, ...]) -> int:
    """Which class a label means: one of the names, or a place where the names are no integers."""
    text = label if isinstance(label, str) else shown(_integer("label", label))
    if text in names:
        return names.index(text)
    if not are_integers(names) and text.isdecimal() and len(text) < 10 and int(text) < len(names):
        return int(text)
    alike = () if are_integers(names) else names  # another number is not what was meant
    classes = f"{listed(names, 20)}{did_you_mean(text, alike)}"
    raise InputError(f"label {shown(label)} is no class of this release; its classes are {classes}")


def _integer(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]  # accepts integers of NumPy, never floats
    except TypeError:
        raise InputError(f"{name}={value!r} is not an integer; give one") from None


def _share_out(num: int, shares: Tensor) -> Int64[Tensor, " classes"]:
    """Images of each class, within 1 of its share of `num` (largest remainders)."""
    exact = num * shares
    counts = exact.floor().to(torch.int64)
    missing = num - int(counts.sum())
    counts[(exact - counts).topk(missing).indices] += 1
    return counts
