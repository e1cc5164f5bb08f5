"""Every measure of synthetic images against real ones, in one call."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.errors import InputError
from dp_sinkhorn.evaluation.tstr import Scores, score_classifiers

METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}
"""The fields of `Scores` and how a table heads them."""


@dataclass(frozen=True)
class Evaluation:
    """How useful synthetic images are for training classifiers, next to real ones.

    Args:
        tstr: Trained on synthetic, tested on real; by classifier: logreg, mlp, cnn.
        trtr: Trained on real, tested on real: the ceiling; same keys.
        num_synthetic: Synthetic images trained on.
        num_real_train: Real images the ceiling trained on: at most `num_synthetic`.
        num_test: Real images tested on.
        seed: Of the classifiers, and of the choice of the ceiling's images.
        seconds: Wall-clock time of the whole evaluation.
    """

    tstr: dict[str, Scores]
    trtr: dict[str, Scores]
    num_synthetic: int
    num_real_train: int
    num_test: int
    seed: int
    seconds: float

    def to_json_dict(self) -> dict[str, Any]:
        """Every field by its name, as plain dictionaries, strings and numbers; scores in [0, 1]."""
        return asdict(self)

    def table(self) -> Table:
        """One row per classifier, each score in percent from synthetic images and from real ones."""
        table = Table(
            title="Tested on real images, in %",
            caption=f"Trained on {self.num_synthetic:,} synthetic images (synth.) or, as the ceiling, on "
            f"{self.num_real_train:,} real training images drawn at random (real); "
            f"tested on {self.num_test:,} real test images; seed {self.seed}.",
        )
        table.add_column("classifier")
        for heading in METRICS.values():
            table.add_column(f"{heading}\nsynth.", justify="right")
            table.add_column("\nreal", justify="right")
        for name, synthetic in self.tstr.items():
            cells = []
            for metric in METRICS:
                cells += [f"{100 * getattr(scores, metric):.1f}" for scores in (synthetic, self.trtr[name])]
            table.add_row(name, *cells)
        return table


def evaluate(
    synthetic: LabelledImages,
    real_train: LabelledImages,
    real_test: LabelledImages,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Train classifiers on synthetic and on real images, and test both on real images.

    The ceiling trains on as many real images as there are synthetic ones: a uniform random subset of
    `real_train`, chosen by the seed, or all of it where it is smaller.

    Args:
        synthetic: Images to be judged. A class may be absent: its recall is then 0.
        real_train: Real images for the ceiling.
        real_test: Real images that both are tested on; nothing is trained on or tuned with them.
        seed: 0 to 2³² - 1. The same seed gives the same scores on one machine.
        progress: Called with one line before each classifier is trained.

    Raises:
        InputError: The three differ in image shape, number of classes or class names, there is a single
            class, or the seed is out of range. Names that only number the classes ("0", "1", ...) match any.
    """
    start = time.perf_counter()
    _check_same_kind("synthetic", synthetic, "real test", real_test)
    _check_same_kind("real training", real_train, "real test", real_test)
    if real_test.num_classes == 1:
        raise InputError("the data set has one class; there is nothing to classify; give images of two or more")
    report = progress or (lambda line: None)
    tstr = score_classifiers(
        synthetic,
        real_test,
        seed,
        lambda name: report(f"training {name} on {len(synthetic):,} synthetic images"),
    )
    ceiling = _random_subset(real_train, len(synthetic), seed)
    trtr = score_classifiers(
        ceiling, real_test, seed, lambda name: report(f"training {name} on {len(ceiling):,} real images")
    )
    return Evaluation(
        tstr=tstr,
        trtr=trtr,
        num_synthetic=len(synthetic),
        num_real_train=len(ceiling),
        num_test=len(real_test),
        seed=seed,
        seconds=time.perf_counter() - start,
    )


def _check_same_kind(name: str, images: LabelledImages, other_name: str, other: LabelledImages) -> None:
    if images.shape != other.shape:
        raise InputError(
            f"{name} images are {_shape_text(images)}, {other_name} images {_shape_text(other)}; "
            "give images of one shape (channels x height x width)"
        )
    if images.num_classes != other.num_classes:
        raise InputError(
            f"{name} images have {images.num_classes} classes, {other_name} images {other.num_classes}; "
            "give images of the same classes"
        )
    if _only_numbered(images) or _only_numbered(other):
        return
    for index, (first, second) in enumerate(zip(images.class_names, other.class_names, strict=True)):
        if first != second:
            raise InputError(
                f"class {index} is {first!r} in the {name} images, {second!r} in the {other_name} images; "
                "give both the same class names in the same order"
            )


def _shape_text(images: LabelledImages) -> str:
    return "x".join(str(size) for size in images.shape)


def _only_numbered(images: LabelledImages) -> bool:
    return images.class_names == tuple(str(index) for index in range(images.num_classes))


def _random_subset(images: LabelledImages, count: int, seed: int) -> LabelledImages:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.subset(order[:count])
