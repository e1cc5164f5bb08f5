"""All comparisons of synthetic images with real ones, in one call."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.evaluation.attack import Bound
from dp_sinkhorn.evaluation.cautions import absent_classes, cautions
from dp_sinkhorn.evaluation.common_classes import with_common_classes
from dp_sinkhorn.evaluation.distances import DEFAULT_COUNT, Distances, measure
from dp_sinkhorn.evaluation.extractors import NOT_ASKED
from dp_sinkhorn.evaluation.features import FeatureExtractor
from dp_sinkhorn.evaluation.gain import gain
from dp_sinkhorn.evaluation.memorisation import memorisation
from dp_sinkhorn.evaluation.record import COMPUTED_FROM, VERSION, ByClass, Evaluation, Shares
from dp_sinkhorn.evaluation.tstr import check_seed, score_classifiers
from dp_sinkhorn.evaluation.uncertainty import share_error
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

    Classes are matched by name. A score counts the classes among the test images; a class that is not among the images
    a classifier was trained on has recall 0. `warnings` names classes without images.

    With one class (unlabelled images) there are no classifiers, only the other comparisons.

    The ceiling trains on as many real images as there are synthetic ones: a random subset of `real_train`, chosen by
    the seed, or all of it if it is smaller.

    Args:
        synthetic: Images to compare.
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
        InputError: The three sets differ in image shape or have no class name in common, there is one class and nothing
            else to measure, or a number is out of range. Names that only number the classes ("0", "1", ...) match as
            many other names.
    """
    start = time.perf_counter()
    check_seed(seed)
    sets = {"real training": real_train, "real test": real_test, "synthetic": synthetic}
    _check_shapes(sets)
    sets, different = with_common_classes(sets)
    real_train, real_test, synthetic = sets.values()
    _check_test_images(real_test)
    if num_features < 2:
        raise InputError(f"features={num_features} is too few images to compare; give 2 or more")
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
    shares, names = _shares(synthetic, real_test), real_test.class_names
    return Evaluation(
        version=VERSION,
        tstr=tstr,
        trtr=trtr,
        gain=gained,
        frechet=distances.frechet,
        kernel=distances.kernel,
        prdc=distances.prdc,
        class_shares=shares,
        class_names=names,
        memorisation=memorisation(synthetic, real_train, real_test, seed, bound, report) if memorised else None,
        computed_from=dict(COMPUTED_FROM),
        num_synthetic=len(synthetic),
        num_real_train=len(ceiling),
        num_test=len(real_test),
        seed=seed,
        seconds=time.perf_counter() - start,
        warnings=(
            *different,
            *cautions(tstr, distances.prdc, shares, names, len(synthetic)),
            *absent_classes(
                f"{len(ceiling):,} real training images of the ceiling",
                _by_class(ceiling)[0],
                names,
                "classifiers trained on these never predict it",
            ),
            *distances.warnings,
        ),
    )


def _check_test_images(real_test: LabelledImages) -> None:
    present = real_test.labels.unique()
    if real_test.num_classes > 1 and len(present) == 1:
        name = real_test.class_names[int(present)]
        raise InputError(
            f"all {len(real_test)} test images are of class {name!r}; give test images of two classes or more"
        )


def _check_shapes(sets: dict[str, LabelledImages]) -> None:
    for kind, images in sets.items():
        if images.shape != sets["real test"].shape:
            raise InputError(
                f"{kind} images are {_shape_text(images)}, real test images {_shape_text(sets['real test'])}; "
                "give images of one shape (channels x height x width)"
            )


def _shape_text(images: LabelledImages) -> str:
    return "x".join(str(size) for size in images.shape)


def _shares(synthetic: LabelledImages, real_test: LabelledImages) -> Shares:
    (of_synthetic, its_errors), (of_real, errors) = map(_by_class, (synthetic, real_test))
    return Shares(of_synthetic, of_real, standard_errors=ByClass(its_errors, errors))


def _by_class(images: LabelledImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shares of the classes, and their standard errors."""
    total, counts = len(images), images.labels.bincount(minlength=images.num_classes).tolist()
    return tuple(count / total for count in counts), tuple(share_error(count, total) for count in counts)


def _random_subset(images: LabelledImages, count: int, seed: int) -> LabelledImages:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.subset(order[:count])
