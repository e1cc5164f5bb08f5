"""Features of images: the protocol of an extractor, an extractor from a user's module, and extraction in batches."""

import hashlib
from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dp_sinkhorn.io.errors import InputError

# Small batches fit into the caches: on two cores, batches of 25 images are twice as fast as batches of 100.
BATCH_SIZE = 25
_REPORT_EVERY = 1000


class FeatureExtractor(Protocol):
    """A fixed map from images to vectors, in which distances mean something.

    Attributes:
        name: Name that is given with every number computed with the extractor.
        size: Number of features, d.
        is_fid: Whether a Fréchet distance of these features is what the literature calls FID.
        fingerprint: Identifies weights and preprocessing: equal fingerprints, equal features.
    """

    name: str
    size: int
    is_fid: bool
    fingerprint: str

    def __call__(self, pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The features of a batch of grey or RGB images, float32."""


class ModuleExtractor:
    """A user's own network as an extractor.

    Args:
        module: Maps float32 images (n, c, h, w) in [-1, 1] to (n, size, ...), which are flattened. It runs in
            evaluation mode on the device of its parameters.
        name: Name in reports. Change it when the module's code changes: the cache only notices other weights.
        size: Number of features of an image.
    """

    is_fid = False

    def __init__(self, module: nn.Module, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.fingerprint = f"{name} {digest(module)}"
        self._module = module.eval()

    def __call__(self, pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The features of a batch."""
        parameter = next(self._module.parameters(), None)
        images = pixels.to(parameter.device if parameter is not None else pixels.device)
        features: Tensor = self._module(images.to(torch.float32) / 127.5 - 1.0)
        return features.flatten(1)


@torch.inference_mode()
def extract(
    extractor: FeatureExtractor,
    pixels: UInt8[Tensor, "n c h w"],
    report: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "n d"]:
    """The features of all images, float32 on the CPU, computed in batches to save memory.

    Args:
        extractor: Computes the features.
        pixels: Grey or RGB images.
        report: Called regularly with the number of images done.

    Raises:
        InputError: The extractor does not return finite vectors of its declared size.
    """
    features = torch.empty(len(pixels), extractor.size)
    for start in range(0, len(pixels), BATCH_SIZE):
        batch = pixels[start : start + BATCH_SIZE]
        found = extractor(batch)
        if found.shape != (len(batch), extractor.size):
            raise InputError(
                f"extractor {extractor.name} gave features of shape {tuple(found.shape)} for {len(batch)} images; "
                f"it must give ({len(batch)}, {extractor.size})"
            )
        features[start : start + len(batch)] = found
        if start % _REPORT_EVERY == 0:
            report(start)
    if not bool(features.isfinite().all()):
        raise InputError(f"extractor {extractor.name} gave features that are not finite; repair its weights")
    return features


def as_rgb(pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Float32 RGB images, 0 to 255; grey images get three equal channels."""
    return pixels.to(torch.float32).expand(-1, 3, -1, -1)


def digest(module: nn.Module) -> str:
    """SHA-256 of a module's tensors with their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
