"""Synthetic images as PNG files inside the page, with one PNG pixel for each image pixel; the page enlarges them."""

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from dp_sinkhorn.data.images import to_pixels
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.release.card import PrivacyCard

SEED, COLUMNS, MOST_CLASSES = 0, 12, 20
_SNAPSHOTS = 6
_BYTES_A_SNAPSHOT = 200_000
_FRAME_GREY = 96
_NAME = re.compile(r"step-(\d+)\.png")


@dataclass(frozen=True)
class Picture:
    """A PNG file in the page: its data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Snapshot:
    """The generator's images after some steps."""

    step: int
    picture: Picture


@torch.no_grad()
def class_rows(card: PrivacyCard, generator: Generator) -> tuple[Picture, ...]:
    """A row of images for each of the first classes, from fixed latents."""
    count = min(len(card.class_names), MOST_CLASSES)
    labels = torch.arange(count).repeat_interleave(COLUMNS)
    pixels = to_pixels(generator.sample(labels, torch.Generator().manual_seed(SEED)))
    images = pixels.unflatten(1, card.image_shape).view(count, COLUMNS, *card.image_shape)
    images = torch.nn.functional.pad(images, (0, 1), value=_FRAME_GREY)
    rows = images.permute(0, 3, 1, 4, 2).flatten(2, 3).squeeze(3).numpy()  # (classes, height, columns x width[, 3])
    return tuple(_embedded(Image.fromarray(row)) for row in rows)


def snapshots(folder: Path, card: PrivacyCard) -> tuple[Snapshot, ...]:
    """Some of the pictures that a run took during training, evenly spaced, with the first and the last.

    Raises:
        InputError: A file is not a picture.
    """
    found = sorted((int(match[1]), path) for path in folder.glob("step-*.png") if (match := _NAME.fullmatch(path.name)))
    last = len(found) - 1
    kept = sorted({round(place * last / (_SNAPSHOTS - 1)) for place in range(_SNAPSHOTS)}) if found else []
    return tuple(Snapshot(found[index][0], _snapshot(found[index][1], card)) for index in kept)


def _snapshot(path: Path, card: PrivacyCard) -> Picture:
    """The picture at one PNG pixel for each image pixel, cut at the right if it is too large."""
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            picture = opened.convert("L" if card.image_shape[0] == 1 else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError):
        raise InputError(f"{path} is not a picture; restore it, or remove it to leave it out") from None
    # Undo the enlargement of `draw_grid`, a whole number. A tile is an image and its frame of one pixel.
    _, height, width = card.image_shape
    scale = max(1, round(56 / (height + 1)))
    picture = picture.resize((picture.width // scale, picture.height // scale), Image.Resampling.NEAREST)
    columns = picture.width // (width + 1)
    made = _embedded(picture)
    while len(made.uri) > _BYTES_A_SNAPSHOT and columns > 1:
        columns -= 1
        made = _embedded(picture.crop((0, 0, columns * (width + 1), picture.height)))
    return made


def _embedded(picture: Image.Image) -> Picture:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(uri, picture.width, picture.height)
