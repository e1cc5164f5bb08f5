"""All measures over features: synthetic against real images, and real against real at the same sample size."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.evaluation.cache import Statistics, cached_statistics, statistics_of
from dp_sinkhorn.evaluation.features import FeatureExtractor
from dp_sinkhorn.evaluation.frechet import Frechet, frechet_distance
from dp_sinkhorn.evaluation.kernel import ESTIMATOR, Kernel, kernel_distance
from dp_sinkhorn.evaluation.prdc import NEIGHBOURS, Prdc, coverage

DEFAULT_COUNT = 5000
"""Images compared: a minute of EfficientNet-Lite0 on two cores, for three samples of this size."""

# The halves of the real test images are the same whatever the seed: every evaluation has the same reference.
_HALVES_SEED = 0


@dataclass(frozen=True)
class Distances:
    """The measures over features; None if there are too few images."""

    frechet: Frechet | None
    kernel: Kernel | None
    prdc: Prdc | None
    warnings: tuple[str, ...]


def measure(
    extractor: FeatureExtractor,
    synthetic: LabelledImages,
    real_test: LabelledImages,
    count: int,
    seed: int,
    cache: Path | None,
    report: Callable[[str], None],
) -> Distances:
    """Compare random samples of one size: synthetic, real test images, and other real test images.

    Args:
        extractor: Turns images into features.
        synthetic: Images to compare.
        real_test: Halved at random: one half is the reference, the other gives the floor.
        count: Maximum number of images per sample.
        seed: Seed of the choice of synthetic images.
        cache: Folder for statistics of the real images, or None.
        report: Called with lines of progress.

    Raises:
        InputError: The extractor does not work, or the cache cannot be used.
    """
    count = min(count, len(synthetic), len(real_test) // 2)
    if count < (least := NEIGHBOURS + 2):  # the jackknife leaves one out
        line = (
            f"no distances: {count} images a sample are too few; give at least {least} synthetic and {2 * least} real "
            f"test images, and features={least} or more"
        )
        return Distances(None, None, None, (line,))

    def progress(what: str) -> Callable[[int], None]:
        return lambda done: report(f"{extractor.name} features of {what} images: {done:,} of {count:,}")

    def real(half: Tensor, what: str) -> Statistics:
        pixels = real_test.pixels[half]
        if cache is None:
            return statistics_of(extractor, pixels, progress(what))
        return cached_statistics(extractor, pixels, "test", cache, progress(what))

    order = torch.randperm(len(real_test), generator=torch.Generator().manual_seed(_HALVES_SEED))
    reference, others = real(order[:count], "real test"), real(order[count : 2 * count], "other real test")
    chosen = torch.randperm(len(synthetic), generator=torch.Generator().manual_seed(seed))[:count]
    judged = statistics_of(extractor, synthetic.pixels[chosen], progress("synthetic"))
    sizes = {"num_synthetic": count, "num_real": count}
    report("Fréchet distance")
    frechet = Frechet(
        extractor.name,
        extractor.is_fid,
        value=frechet_distance(judged.moments, reference.moments),
        floor=frechet_distance(others.moments, reference.moments),
        **sizes,
    )
    report("kernel distance")
    value, error = kernel_distance(judged.features, reference.features)
    floor, floor_error = kernel_distance(others.features, reference.features)
    kernel = Kernel(
        extractor.name,
        ESTIMATOR,
        value=value,
        floor=floor,
        standard_error=error,
        floor_standard_error=floor_error,
        **sizes,
    )
    report("precision, recall, density, coverage")
    four, errors = coverage(reference.features, judged.features, NEIGHBOURS)
    best, best_errors = coverage(reference.features, others.features, NEIGHBOURS)
    prdc = Prdc(
        **asdict(four),
        floor=best,
        standard_errors=errors,
        floor_standard_errors=best_errors,
        neighbours=NEIGHBOURS,
        extractor=extractor.name,
        **sizes,
    )
    return Distances(frechet, kernel, prdc, _warnings(count, extractor))


def _warnings(count: int, extractor: FeatureExtractor) -> tuple[str, ...]:
    if count > extractor.size:
        return ()
    return (
        f"{count} images a sample are fewer than needed for {extractor.size} features: the Fréchet distance is biased "
        "upwards; read it beside its floor, or give more images",
    )
