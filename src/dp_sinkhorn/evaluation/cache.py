"""Cache of statistics of real images, in a folder, with a key of data, split and extractor.

The statistics are computed from real records: only its owner can read the folder, and it is never in a release.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dp_sinkhorn.evaluation.feature_moments import FeatureMoments, moments_of
from dp_sinkhorn.evaluation.features import FeatureExtractor, extract
from dp_sinkhorn.io.atomic import write_whole
from dp_sinkhorn.io.errors import InputError

_VERSION = 1


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics from which every distance is computed.

    Args:
        features: float32, (n, d).
        moments: Their mean and scatter, float64.
    """

    features: Float[Tensor, "n d"]
    moments: FeatureMoments


def statistics_of(
    extractor: FeatureExtractor, pixels: UInt8[Tensor, "n c h w"], report: Callable[[int], None]
) -> Statistics:
    """Compute features and moments."""
    features = extract(extractor, pixels, report)
    return Statistics(features, moments_of(features))


def cached_statistics(
    extractor: FeatureExtractor,
    pixels: UInt8[Tensor, "n c h w"],
    split: str,
    folder: Path,
    report: Callable[[int], None],
) -> Statistics:
    """Features and moments from the folder; if they are not there, compute and store them.

    A damaged file, or one of other sizes, is replaced.

    Raises:
        InputError: The folder is in a release, or cannot be written.
    """
    check_not_in_release(folder)
    path = folder / f"{cache_key(extractor, pixels, split)}.safetensors"
    found = _read(path, (len(pixels), extractor.size))
    if found is None:
        found = statistics_of(extractor, pixels, report)
        _write(path, found)
    return found


def cache_key(extractor: FeatureExtractor, pixels: UInt8[Tensor, "n c h w"], split: str) -> str:
    """SHA-256 over the version, split, extractor, shape and every pixel."""
    found = hashlib.sha256(f"{_VERSION} {split} {extractor.fingerprint} {tuple(pixels.shape)} ".encode())
    for chunk in pixels.split(4096):
        found.update(chunk.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def default_folder() -> Path:
    """`dp-sinkhorn/features` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dp-sinkhorn" / "features"


def check_not_in_release(folder: Path) -> None:
    """Refuse a folder inside a release, since its files would be handed out.

    Raises:
        InputError: It is a release, or in one.
    """
    whole = folder.absolute()
    for parent in (whole, *whole.parents):
        if (parent / "card.json").exists():
            raise InputError(f"{folder} is in the release {parent}, which is handed out; give a folder outside")


def _read(path: Path, shape: tuple[int, int]) -> Statistics | None:
    try:
        tensors = load(path.read_bytes())
        features, mean, scatter = (tensors[name] for name in ("features", "mean", "scatter"))
    except (OSError, SafetensorError, KeyError):
        return None
    size = shape[1]
    if features.shape != shape or mean.shape != (size,) or scatter.shape != (size, size):
        return None
    return Statistics(features, FeatureMoments(count=shape[0], mean=mean, scatter=scatter))


def _write(path: Path, statistics: Statistics) -> None:
    moments = statistics.moments
    content = save({"features": statistics.features, "mean": moments.mean, "scatter": moments.scatter})
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, content, shared=True, mode=0o600)
    except OSError as error:
        raise InputError(
            f"cannot write the cache {path.parent}: {error.strerror}; give --cache a writable folder, or none"
        ) from None
