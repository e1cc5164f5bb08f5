import numpy as np
import pytest
import torch

from dp_sinkhorn.data.grid import draw_grid
from dp_sinkhorn.data.images import LabelledImages

SIDE, SHOWN = 27, 28 * 2  # a side with its line, enlarged twice


def picture(counts: list[int]) -> np.ndarray:
    """Draw a grid in which every pixel of class k has the grey level 100 + k."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pixels = (100 + labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE).clone()
    return np.asarray(draw_grid(LabelledImages(pixels, labels, tuple("abc"[: len(counts)]))))


@pytest.mark.parametrize(
    ("counts", "columns", "rows"),
    [
        ([3, 30], 20, 2),  # two rows per class fill; three are allowed
        ([200, 1], 20, 3),
        ([2, 5], 5, 1),
        ([0, 1, 0], 1, 1),
    ],
)
def test_every_class_gets_the_rows_that_the_largest_class_fills(counts: list[int], columns: int, rows: int) -> None:
    grid = picture(counts)
    assert grid.shape == (rows * len(counts) * SHOWN, columns * SHOWN)
    shown = grid[::SHOWN, ::SHOWN].reshape(len(counts), rows * columns)
    for label, count in enumerate(counts):
        kept = min(count, rows * columns)
        assert shown[label].tolist() == [100 + label] * kept + [0] * (rows * columns - kept)
