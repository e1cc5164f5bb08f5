"""Writer of one picture of the first images of each class."""

from pathlib import Path

import torch

from dp_sinkhorn.data.grid import COLUMNS, draw_grid, rows_a_class
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.sampling.draw import Draws
from dp_sinkhorn.sampling.privacy_facts import png_mark


def write_grid(path: Path, draws: Draws) -> None:
    """Write the picture of `draw_grid`; drawing stops when it is full."""
    left = torch.full_like(draws.counts, COLUMNS * rows_a_class(len(draws.counts))).minimum(draws.counts)
    kept = []
    for chunk in draws:
        for label in left.nonzero().flatten().tolist():
            own = (chunk.labels == label).nonzero().flatten()[: int(left[label])]
            kept.append((chunk.pixels[own], chunk.labels[own]))
            left[label] -= len(own)
        if not left.any():
            break
    pixels, labels = (torch.cat(part) for part in zip(*kept, strict=True))
    grid = draw_grid(LabelledImages(pixels, labels, draws.card.class_names))
    grid.save(path, pnginfo=png_mark(draws.card))
