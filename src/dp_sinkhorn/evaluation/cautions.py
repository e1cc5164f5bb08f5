"""Sentences on figures that are too uncertain to compare, and on classes without images."""

from collections.abc import Mapping, Sequence

from dp_sinkhorn.evaluation.prdc import Prdc
from dp_sinkhorn.evaluation.record import Shares
from dp_sinkhorn.evaluation.tstr import Scores
from dp_sinkhorn.evaluation.uncertainty import images_needed
from dp_sinkhorn.io.safe_read import listed

LARGEST_ERROR = 0.02
"""The largest standard error of accuracies and class shares that still allows comparisons."""
LARGEST_FEATURE_ERROR = 0.05
"""The same for precision, recall and coverage."""
LARGEST_RECALL_ERROR = 0.1
"""The same for the recall of a single class."""
FEWEST_OF_A_CLASS = 25
"""Test images that keep the standard error of any recall below `LARGEST_RECALL_ERROR`: ¼ / 0.1²."""
_SHOWN = 5


def cautions(
    tstr: Mapping[str, Scores], prdc: Prdc | None, shares: Shares, class_names: Sequence[str], num_synthetic: int
) -> tuple[str, ...]:
    """What to know before figures are compared, a sentence each.

    Guarantees: Depends on synthetic and test images and the names of the classes alone, on no training record.
    """
    return (
        *absent_classes(
            "synthetic images", shares.synthetic, class_names, "classifiers trained on these never predict it"
        ),
        *absent_classes("real test images", shares.real, class_names, "it has no recall and no part in class means"),
        *(_test_images(tstr, class_names) if tstr else ()),
        *(_synthetic_images(shares, num_synthetic) if len(class_names) > 1 else ()),
        *(() if prdc is None else _samples(prdc)),
    )


def absent_classes(images: str, shares: Sequence[float], class_names: Sequence[str], then: str) -> tuple[str, ...]:
    """A sentence on the classes that none of the images has, or nothing.

    Args:
        images: Which they are. shares: Shares of the classes among them. then: What follows for a class.
    """
    absent = [name for name, share in zip(class_names, shares, strict=True) if share == 0.0]
    return (f"class {listed(absent, _SHOWN)} is not among the {images}: {then}",) if absent else ()


def _test_images(tstr: Mapping[str, Scores], class_names: Sequence[str]) -> tuple[str, ...]:
    counts = [sum(row) for row in next(iter(tstr.values())).confusion]
    error, lines = max(scores.standard_errors.accuracy for scores in tstr.values()), []
    if error > LARGEST_ERROR:
        lines.append(
            f"accuracies on {sum(counts):,} test images are too uncertain to compare: {_up_to(error)}; "
            f"{images_needed(error, sum(counts), LARGEST_ERROR):,} test images would do"
        )
    rare = [
        f"{name} ({count})" for name, count in zip(class_names, counts, strict=True) if 0 < count < FEWEST_OF_A_CLASS
    ]
    if rare:
        lines.append(
            f"recalls of classes with few test images are too uncertain to compare: {listed(rare, _SHOWN)}; "
            f"{FEWEST_OF_A_CLASS} of a class would keep the standard error below {100 * LARGEST_RECALL_ERROR:g} points"
        )
    return tuple(lines)


def _synthetic_images(shares: Shares, count: int) -> tuple[str, ...]:
    error = max(shares.standard_errors.synthetic)
    if error <= LARGEST_ERROR:
        return ()
    return (
        f"class shares of {count:,} synthetic images, and classifiers trained on so few, are too uncertain to compare: "
        f"{_up_to(error)} of a share; {images_needed(error, count, LARGEST_ERROR):,} synthetic images would do",
    )


def _samples(prdc: Prdc) -> tuple[str, ...]:
    errors, count = prdc.standard_errors, prdc.num_synthetic
    error = max(errors.precision, errors.recall, errors.coverage)
    if error <= LARGEST_FEATURE_ERROR:
        return ()
    needed = images_needed(error, count, LARGEST_FEATURE_ERROR)
    return (
        f"precision, recall and coverage of {count:,} images a sample are too uncertain to compare: {_up_to(error)}; "
        f"{needed:,} synthetic and {2 * needed:,} real test images would do",
    )


def _up_to(error: float) -> str:
    return f"standard errors of up to {100 * error:.2g} points"
