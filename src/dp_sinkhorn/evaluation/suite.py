"""All comparisons of synthetic images with real ones, in one call."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.evaluation.attack import Bound
from dp_sinkhorn.evaluation.distances import DEFAULT_COUNT, Distances, measure
from dp_sinkhorn.evaluation.extractors import NOT_ASKED
from dp_sinkhorn.evaluation.features import FeatureExtractor
from dp_sinkhorn.evaluation.gain import gain
from dp_sinkhorn.evaluation.memorisation import memorisation
from dp_sinkhorn.evaluation.record import COMPUTED_FROM, Evaluation, Shares
from dp_sinkhorn.evaluation.tstr import check_seed, score_classifiers
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath


def evaluate(
    synthetic: LabelledImages,
    real_train: LabelledImages,
    real_test: LabelledImages,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    *,
    extractor: FeatureExtractor | None = None,
    num_features: int = DEFAULT_COUNT,
    cache: AnyPath | None = None,
    memorised: bool = False,
    bound: Bound | None = None,
    no_extractor: str = NOT_ASKED,
) -> Evaluation:
    """Train classifiers on synthetic and on real images and test both on real images; compare features.

    With one class (unlabelled images) there are no classifiers, only the other comparisons.

    The ceiling trains on as many real images as there are synthetic ones: a random subset of `real_train`, chosen by
    the seed, or all of it if it is smaller.

    Args:
        synthetic: Images to compare. A class may be absent: its recall is then 0.
        real_train: Real images for the ceiling, the gain and memorisation.
        real_test: Real images for all tests; nothing is trained or tuned on them.
        seed: 0 to 2³² - 1. The same seed gives the same scores on one machine.
        progress: Called with one line before each part.
        extractor: Features for the distances; None: no distances.
        num_features: Maximum number of images per sample for the distances.
        cache: Folder for statistics of the real images, or None.
        memorised: Whether to compare with the training records; the result is private.
        bound: What ε allows a membership attack.
        no_extractor: Warning if there is no extractor.

    Raises:
        InputError: The three sets differ in image shape, number of classes or class names, there is one class and
            nothing else to measure, or a number is out of range. Names that only number the classes ("0", "1", ...)
            match any names.
    """
    start = time.perf_counter()
    _check(synthetic, real_train, real_test, num_features, seed)
    if real_test.num_classes == 1 and extractor is None and not memorised:
        raise InputError(
            "the images have one class, so no classifier can be tested; choose a feature extractor or add "
            "--memorisation"
        )
    report = progress or (lambda line: None)
    ceiling = _random_subset(real_train, len(synthetic), seed)
    tstr, trtr, gained = {}, {}, None
    if real_test.num_classes > 1:
        tstr = score_classifiers(
            synthetic, real_test, seed, lambda name: report(f"training {name} on {len(synthetic):,} synthetic images")
        )
        trtr = score_classifiers(
            ceiling, real_test, seed, lambda name: report(f"training {name} on {len(ceiling):,} real images")
        )
        gained = gain(synthetic, real_train, real_test, seed, report)
    distances = (
        Distances(None, None, None, (no_extractor,))
        if extractor is None
        else measure(
            extractor, synthetic, real_test, num_features, seed, None if cache is None else Path(cache), report
        )
    )
    return Evaluation(
        tstr=tstr,
        trtr=trtr,
        gain=gained,
        frechet=distances.frechet,
        kernel=distances.kernel,
        prdc=distances.prdc,
        class_shares=Shares(*(_shares(images, real_test.num_classes) for images in (synthetic, real_test))),
        class_names=real_test.class_names,
        memorisation=memorisation(synthetic, real_train, real_test, seed, bound, report) if memorised else None,
        computed_from=dict(COMPUTED_FROM),
        num_synthetic=len(synthetic),
        num_real_train=len(ceiling),
        num_test=len(real_test),
        seed=seed,
        seconds=time.perf_counter() - start,
        warnings=(*_absent_classes(synthetic, real_test), *distances.warnings),
    )


def _check(
    synthetic: LabelledImages, real_train: LabelledImages, real_test: LabelledImages, num_features: int, seed: int
) -> None:
    check_seed(seed)
    _check_same_kind("synthetic", synthetic, "real test", real_test)
    _check_same_kind("real training", real_train, "real test", real_test)
    present = real_test.labels.unique()
    if real_test.num_classes > 1 and len(present) == 1:
        name = real_test.class_names[int(present)]
        raise InputError(
            f"all {len(real_test)} test images are of class {name!r}; give test images of two classes or more"
        )
    if num_features < 2:
        raise InputError(f"features={num_features} is too few images to compare; give 2 or more")


def _absent_classes(synthetic: LabelledImages, real_test: LabelledImages) -> list[str]:
    warnings = []
    for split, images in (("synthetic", synthetic), ("real test", real_test)):
        counts = images.labels.bincount(minlength=real_test.num_classes)
        absent = [name for name, count in zip(real_test.class_names, counts.tolist(), strict=True) if count == 0]
        if absent:
            then = "classifiers trained on them cannot learn it" if split == "synthetic" else "it has no recall"
            warnings.append(f"no {split} image of class {', '.join(absent)}: {then}")
    return warnings


def _shares(images: LabelledImages, num_classes: int) -> tuple[float, ...]:
    counts = images.labels.bincount(minlength=num_classes).double()
    return tuple((counts / len(images)).tolist())


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
