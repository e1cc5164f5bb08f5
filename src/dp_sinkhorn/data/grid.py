"""A picture of many small images, for people to look at."""

import math

import torch
from PIL import Image

from dp_sinkhorn.data.images import LabelledImages

COLUMNS = 20
_FEW_ROWS, _FRAME_GREY, _SHOWN_PIXELS = 6, 96, 56


def rows_a_class(num_classes: int) -> int:
    """Rows of the picture that a class gets: several where there are few classes."""
    return max(1, _FEW_ROWS // num_classes)


def draw_grid(images: LabelledImages, columns: int = COLUMNS) -> Image.Image:
    """The first images of each class in its own row (or rows), a pixel of grey between; what is missing is black.

    Every class gets as much room as the largest one fills.
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
    framed = torch.nn.functional.pad(torch.cat(tiles), (0, 1, 0, 1), value=_FRAME_GREY)
    channels, height, width = framed.shape[1:]
    grid = framed.view(-1, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    picture = Image.fromarray(grid.reshape(-1, columns * width, channels).squeeze(2).numpy())
    scale = max(1, round(_SHOWN_PIXELS / height))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
