"""A picture of many small images, one class per row."""

import math

import torch
from PIL import Image, ImageDraw

from dp_sinkhorn.data.images import LabelledImages

COLUMNS = 20
# Rows that few classes share; grey level of the lines between images; height of a shown image in pixels.
_SHARED_ROWS, _LINE_GREY, _SHOWN_HEIGHT = 6, 96, 56


def rows_a_class(num_classes: int) -> int:
    """Rows of the picture per class: more than one if there are few classes."""
    return max(1, _SHARED_ROWS // num_classes)


def draw_grid(images: LabelledImages, columns: int = COLUMNS) -> Image.Image:
    """Draw the first images of each class in rows of their own, separated by lines of one grey pixel.

    Every class gets as many places as the largest class fills; empty places are black.
    """
    most = int(torch.bincount(images.labels).max())
    columns = min(columns, most)
    places = min(rows_a_class(images.num_classes), math.ceil(most / columns)) * columns
    tiles = []
    for label in range(images.num_classes):
        own = images.pixels[images.labels == label][:places]
        blank = own.new_zeros((places, *images.shape))
        blank[: len(own)] = own
        tiles.append(blank)
    framed = torch.nn.functional.pad(torch.cat(tiles), (0, 1, 0, 1), value=_LINE_GREY)
    channels, height, width = framed.shape[1:]
    grid = framed.view(-1, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    picture = Image.fromarray(grid.reshape(-1, columns * width, channels).squeeze(2).numpy())
    scale = max(1, round(_SHOWN_HEIGHT / height))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def draw_first(images: LabelledImages, count: int = 40, columns: int = 10) -> Image.Image:
    """Draw the first images, each above its class name."""
    channels, height, width = images.shape
    scale = max(1, round(_SHOWN_HEIGHT / height))
    cell, text_height = max(width * scale, _SHOWN_HEIGHT) + 8, 14
    shown = min(count, len(images))
    rows = math.ceil(shown / columns)
    picture = Image.new("RGB", (columns * cell, rows * (height * scale + text_height + 6)), "white")
    pen = ImageDraw.Draw(picture)
    for place in range(shown):
        left, top = (place % columns) * cell + 4, (place // columns) * (height * scale + text_height + 6) + 2
        pixels = images.pixels[place].permute(1, 2, 0).numpy()
        one = Image.fromarray(pixels[..., 0] if channels == 1 else pixels).convert("RGB")
        picture.paste(one.resize((width * scale, height * scale), Image.Resampling.NEAREST), (left, top))
        name = images.class_names[int(images.labels[place])]
        pen.text((left, top + height * scale), name[: max(4, cell // 7)], fill="black")
    return picture
