"""Give sets of images the same classes, matched by name."""

from dataclasses import replace
from itertools import chain

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.safe_read import listed

_SHOWN = 10
_UNLABELLED = ("0",)


def with_common_classes(sets: dict[str, LabelledImages]) -> tuple[dict[str, LabelledImages], tuple[str, ...]]:
    """The same images with the classes of all sets: those of the first set in its order, then further ones.

    Names that only number the classes ("0", "1", ...) match as many other names, in their order.

    Args:
        sets: By a word for their images, such as "real test".

    Returns:
        The sets, and a sentence for each set that lacks a name of the first set and has one of its own.

    Raises:
        InputError: A set has no class name in common with the first one, or no labels, unlike it.
    """
    named = next((images.class_names for images in sets.values() if not _are_numbers(images.class_names)), ())
    counted = [kind for kind, images in sets.items() if _number(images.class_names, named)]
    sets = {kind: replace(images, class_names=named) if kind in counted else images for kind, images in sets.items()}
    (first_kind, first), *others = sets.items()
    sentences = tuple(chain.from_iterable(_differences(kind, images, first_kind, first) for kind, images in others))
    sentences += tuple(f"the {kind} images number their classes: 0 counts as {named[0]}, and so on" for kind in counted)
    names = tuple(dict.fromkeys(chain.from_iterable(images.class_names for images in sets.values())))
    return {kind: _renamed(images, names) for kind, images in sets.items()}, sentences


def _differences(kind: str, images: LabelledImages, other_kind: str, other: LabelledImages) -> list[str]:
    mine, theirs = images.class_names, other.class_names
    if mine != theirs and _UNLABELLED in (mine, theirs):
        raise InputError(
            f"the {kind} images have {_counted(mine)}, the {other_kind} images {_counted(theirs)}; label all or none"
        )
    if not set(mine) & set(theirs):
        raise InputError(
            f"the {kind} images are of class {listed(mine, _SHOWN)}, the {other_kind} images of class "
            f"{listed(theirs, _SHOWN)}; give both the same class names"
        )
    only_mine, only_theirs = ([name for name in a if name not in set(b)] for a, b in ((mine, theirs), (theirs, mine)))
    if not only_mine or not only_theirs:
        return []
    return [
        f"class {listed(only_mine, _SHOWN)} is only among the {kind} images, class {listed(only_theirs, _SHOWN)} only "
        f"among the {other_kind} images; where both mean the same class, rename one"
    ]


def _counted(names: tuple[str, ...]) -> str:
    return "one class, 0" if len(names) == 1 else f"{len(names)} classes"


def _renamed(images: LabelledImages, names: tuple[str, ...]) -> LabelledImages:
    """The images with all these names, among which their own are."""
    place = {name: index for index, name in enumerate(names)}
    places = torch.tensor([place[name] for name in images.class_names])
    return LabelledImages(images.pixels, places[images.labels], names)


def _number(numbers: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Whether the first only number the second, of which none is one of these numbers."""
    return _are_numbers(numbers) and len(numbers) == len(names) and not set(numbers) & set(names)


def _are_numbers(names: tuple[str, ...]) -> bool:
    return names == tuple(map(str, range(len(names))))
