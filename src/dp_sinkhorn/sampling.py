"""Draw labelled images from a release and write them to disk."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from dp_sinkhorn.card import PrivacyCard
from dp_sinkhorn.data.files import MAX_BYTES
from dp_sinkhorn.data.images import LabelledImages, to_pixels
from dp_sinkhorn.errors import InputError
from dp_sinkhorn.generators.base import Generator

MAX_SEED = 2**63
_CHUNK = 1000
_GRID_COLUMNS = 20


def sample(
    card: PrivacyCard, generator: Generator, num: int, labels: Sequence[int] | None = None, seed: int = 0
) -> LabelledImages:
    """`num` synthetic images, the classes in the shares of the card's class prior, in random order.

    Args:
        num: At least 1. labels: Only these classes (indices), in their relative shares. seed: Equal seeds
            give equal images.

    Raises:
        InputError: `num`, a label or the seed is out of range.
    """
    if num < 1:
        raise InputError(f"num={num} is below 1; give the number of images to draw")
    if (most := MAX_BYTES // math.prod(card.image_shape)) < num:
        raise InputError(
            f"num={num} is above {most} images of {card.image_shape}; draw them in parts, with other seeds"
        )
    if not 0 <= seed < MAX_SEED:
        raise InputError(f"seed={seed} is not in 0..{MAX_SEED - 1}; give a smaller one")
    random = torch.Generator().manual_seed(seed)
    chosen = _share_out(num, _shares(card, labels))[torch.randperm(num, generator=random)]
    with torch.no_grad():
        chunks = [to_pixels(generator.sample(chunk, random)) for chunk in chosen.split(_CHUNK)]
    pixels = torch.cat(chunks).unflatten(1, card.image_shape)
    return LabelledImages(pixels, chosen, card.class_names)


def check_output(path: Path) -> Callable[[LabelledImages], None]:
    """The writer for an output path, chosen by its ending.

    `.npz` holds `images` (uint8, NHW or NHWC), `labels` (int64) and `class_names`; `.png` is a grid with a row
    (or rows) a class; a path without an ending is a folder with one sub-folder of PNG files a class.

    Raises:
        InputError: The ending is not known, the path exists, or its folder does not.
    """
    writers = {".npz": _write_npz, ".png": _write_grid, "": _write_folder}
    if path.suffix not in writers:
        raise InputError(f"{path} ends in {path.suffix!r}; give an .npz file, a .png grid, or a folder")
    try:
        taken = (path.exists() or path.is_symlink()) and not (
            path.is_dir() and not path.is_symlink() and not any(path.iterdir())
        )
        has_folder = path.parent.is_dir()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another path") from None
    if taken:
        raise InputError(f"{path} exists already; remove it or give another path")
    if not has_folder:
        raise InputError(f"folder {path.parent} does not exist; create it first")
    return lambda images: _whole(path, images, writers[path.suffix])


def _shares(card: PrivacyCard, labels: Sequence[int] | None) -> Tensor:
    prior = torch.tensor(card.class_prior.shares, dtype=torch.float64)
    if labels is None:
        return prior
    wanted = torch.zeros_like(prior)
    for label in labels:
        if not 0 <= label < len(prior):
            raise InputError(f"label {label} is not in 0..{len(prior) - 1}; give labels of this release's classes")
        wanted[label] = prior[label]
    return wanted / wanted.sum()


def _share_out(num: int, shares: Tensor) -> Int64[Tensor, " num"]:
    """`num` labels in the given shares, off by less than one each (largest remainders)."""
    exact = num * shares
    counts = exact.floor().to(torch.int64)
    missing = num - int(counts.sum())
    counts[(exact - counts).topk(missing).indices] += 1
    return torch.arange(len(shares)).repeat_interleave(counts)


def _whole(path: Path, images: LabelledImages, write: Callable[[Path, LabelledImages], None]) -> None:
    """Write beside the path, then rename: a full disk leaves nothing behind."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(partial, images)
        partial.replace(path)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        raise


def _write_npz(path: Path, images: LabelledImages) -> None:
    pixels, labels = images.arrays()
    np.savez_compressed(path, images=pixels, labels=labels, class_names=np.array(images.class_names))


def _write_folder(path: Path, images: LabelledImages) -> None:
    pixels, labels = images.arrays()
    folders = [path / _folder_name(index, name) for index, name in enumerate(images.class_names)]
    for folder in folders:
        folder.mkdir(parents=True)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(folders[label] / f"{number:06d}.png")


def _folder_name(index: int, name: str) -> str:
    """The class name where it is a harmless file name, else its number."""
    harmless = name and not name.startswith(".") and all(c.isalnum() or c in " ._-" for c in name)
    return name if harmless else str(index)


def _write_grid(path: Path, images: LabelledImages) -> None:
    """A row of images a class (several rows where there are few classes), a pixel of grey between."""
    rows_per_class = max(1, 6 // images.num_classes)
    tiles = []
    for label in range(images.num_classes):
        own = images.pixels[images.labels == label][: rows_per_class * _GRID_COLUMNS]
        blank = own.new_zeros((rows_per_class * _GRID_COLUMNS, *images.shape))
        blank[: len(own)] = own
        tiles.append(blank)
    framed = torch.nn.functional.pad(torch.cat(tiles), (0, 1, 0, 1), value=96)
    channels, height, width = framed.shape[1:]
    grid = framed.view(-1, _GRID_COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
    picture = Image.fromarray(grid.reshape(-1, _GRID_COLUMNS * width, channels).squeeze(2).numpy())
    scale = max(1, round(56 / height))
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)
