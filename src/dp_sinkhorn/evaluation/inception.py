"""The extractor behind FID: the Inception network of 2015 in its TensorFlow form, with weights from a local file.

It differs from the later "Inception v3" in three places: average pools leave the padding out, the last block
pools by the maximum, and images are resized as TensorFlow 1 did (Heusel et al. 2017; Szegedy et al. 2016, fig. 5-7).
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from dp_sinkhorn.evaluation.features import as_rgb, digest
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath

SIDE = 299
PUBLISHED = "6726825d"
"""Start of the SHA-256 of the published file (…inception-2015-12-05-6726825d.pth): only these weights give FID."""

_MAX_BYTES = 1 << 30
Kernel = int | tuple[int, int]
Stage = tuple[str, int, Kernel, int]  # name, channels out, kernel, stride
Branch = list[Stage | list[Stage]]  # a list inside is a fork whose ends are concatenated


class Inception2048:
    """2,048 features: the last block's channels, averaged over the image (resized to 299x299).

    Args:
        path: The published `.pth` file (a plain state dictionary), or its tensors as `.safetensors`.
        device: Device of the network.

    Raises:
        InputError: The file is missing or holds other tensors.
    """

    size = 2048

    def __init__(self, path: AnyPath, device: str | torch.device = "cpu") -> None:
        content = _read(Path(path))
        with torch.device("meta"):  # without memory or random weights: the file's tensors replace them
            network = InceptionNetwork()
        try:
            network.load_state_dict(_tensors(Path(path), content), assign=True)
        except RuntimeError:
            raise InputError(f"{path} does not hold the weights of FID's Inception network; {_REMEDY}") from None
        self.is_fid = hashlib.sha256(content).hexdigest().startswith(PUBLISHED)
        weights = digest(network)
        self.name = "inception-2048" if self.is_fid else f"inception-2048 (weights {weights[:8]})"
        self.fingerprint = f"{self.name} {SIDE} {weights}"
        self._device = torch.device(device)
        self._network = network.float().eval().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n 2048"]:
        """The features of a batch."""
        resized = resize_as_tensorflow(as_rgb(pixels.to(self._device)), SIDE)
        features: Tensor = self._network((resized - 128.0) / 128.0)
        return features


_REMEDY = "give the file pt_inception-2015-12-05-6726825d.pth, or its tensors as .safetensors"


def resize_as_tensorflow(images: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c side side"]:
    """Resize bilinearly: pixel i of the result is at i·(old/new) of the source, without a half-pixel shift."""
    for axis in (2, 3):
        length = images.shape[axis]
        at = torch.arange(side, device=images.device, dtype=torch.float32) * (length / side)
        low = at.floor().long()
        share = (at - low).view(-1, 1) if axis == 2 else at - low
        below, above = (images.index_select(axis, index.clamp(max=length - 1)) for index in (low, low + 1))
        images = below + (above - below) * share
    return images


class InceptionNetwork(nn.Module):
    """The network; parameter names are those of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = _fives(192, pooled=32)
        self.Mixed_5c = _fives(256, pooled=64)
        self.Mixed_5d = _fives(288, pooled=64)
        self.Mixed_6a = Mixed(
            288, "halve", [("branch3x3", 384, 3, 2)], [*_double(64, 96), ("branch3x3dbl_3", 96, 3, 2)]
        )
        self.Mixed_6b = _sevens(128)
        self.Mixed_6c = _sevens(160)
        self.Mixed_6d = _sevens(160)
        self.Mixed_6e = _sevens(192)
        self.Mixed_7a = _reduced_sevens()
        self.Mixed_7b = _forks(1280, "mean")
        self.Mixed_7c = _forks(2048, "max")
        self.fc = nn.Linear(2048, 1008)  # in the file; not used

    def forward(self, images: Float[Tensor, "n 3 299 299"]) -> Float[Tensor, "n 2048"]:
        """Features of images in [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features: Tensor = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        return features


class Convolution(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, ins: int, outs: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Apply them."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel branches whose channels are concatenated; the last branch pools.

    Args:
        ins: Input channels.
        pool: "mean" or "max" over 3x3 at the same size, then `branch_pool`; or "halve": maximum at half the size.
        branches: Each a sequence of stages. Stride 1 keeps the size, stride 2 has no padding.
        pooled: Channels of `branch_pool`; 0 with "halve".
    """

    def __init__(self, ins: int, pool: str, *branches: Branch, pooled: int = 0) -> None:
        super().__init__()
        self._pool, self._branches = pool, branches
        for branch in branches:
            channels = ins
            for step in branch:
                stages = step if isinstance(step, list) else [step]
                for name, outs, kernel, stride in stages:
                    self.add_module(name, Convolution(channels, outs, kernel, stride, _padding(kernel, stride)))
                channels = sum(outs for _, outs, _, _ in stages)
        if pool != "halve":
            self.branch_pool = Convolution(ins, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all branches."""
        return torch.cat([*(self._along(branch, x) for branch in self._branches), self._pooled(x)], dim=1)

    def _along(self, branch: Branch, x: Tensor) -> Tensor:
        for step in branch:
            stages = step if isinstance(step, list) else [step]
            x = torch.cat([self.get_submodule(name)(x) for name, _, _, _ in stages], dim=1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self._pool == "halve":
            return F.max_pool2d(x, 3, stride=2)
        if self._pool == "max":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return self.branch_pool(pooled)  # type: ignore[no-any-return]


def _padding(kernel: Kernel, stride: int) -> Kernel:
    if stride == 2:
        return 0
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def _double(first: int, second: int) -> list[Stage]:
    return [("branch3x3dbl_1", first, 1, 1), ("branch3x3dbl_2", second, 3, 1)]


def _fives(ins: int, pooled: int) -> Mixed:
    five: Branch = [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)]
    double: Branch = [*_double(64, 96), ("branch3x3dbl_3", 96, 3, 1)]
    return Mixed(ins, "mean", [("branch1x1", 64, 1, 1)], five, double, pooled=pooled)


def _sevens(inner: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    seven: Branch = [("branch7x7_1", inner, 1, 1), ("branch7x7_2", inner, row, 1), ("branch7x7_3", 192, column, 1)]
    kernels: list[tuple[int, Kernel]] = [(inner, 1), (inner, column), (inner, row), (inner, column), (192, row)]
    double: Branch = [(f"branch7x7dbl_{i}", outs, kernel, 1) for i, (outs, kernel) in enumerate(kernels, start=1)]
    return Mixed(768, "mean", [("branch1x1", 192, 1, 1)], seven, double, pooled=192)


def _reduced_sevens() -> Mixed:
    kernels: list[tuple[Kernel, int]] = [(1, 1), ((1, 7), 1), ((7, 1), 1), (3, 2)]
    seven: Branch = [(f"branch7x7x3_{i}", 192, kernel, stride) for i, (kernel, stride) in enumerate(kernels, start=1)]
    return Mixed(768, "halve", [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)], seven)


def _forks(ins: int, pool: str) -> Mixed:
    fork: Branch = [("branch3x3_1", 384, 1, 1), [("branch3x3_2a", 384, (1, 3), 1), ("branch3x3_2b", 384, (3, 1), 1)]]
    ends: list[Stage] = [("branch3x3dbl_3a", 384, (1, 3), 1), ("branch3x3dbl_3b", 384, (3, 1), 1)]
    return Mixed(ins, pool, [("branch1x1", 320, 1, 1)], fork, [*_double(448, 384), ends], pooled=192)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} is larger than {_MAX_BYTES} bytes; {_REMEDY}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the Inception weights {path}: {error.strerror}; {_REMEDY}") from None


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load(content)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged or hostile file can make the readers raise any exception.
    except (SafetensorError, Exception) as error:
        raise InputError(f"{path} cannot be read as weights ({type(error).__name__}); {_REMEDY}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{path} does not hold a dictionary of tensors; {_REMEDY}")
    return dict(loaded)
