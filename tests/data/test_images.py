"""LabelledImages accepts valid data only; bytes map to [-1, 1] and back."""

import numpy as np
import pytest
import torch

from dp_sinkhorn.data import LabelledImages, to_pixels, to_unit_range
from dp_sinkhorn.io.errors import InputError

pytestmark = pytest.mark.quick


def black(count: int = 3, channels: int = 1, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.zeros(count, channels, height, width, dtype=torch.uint8)


def test_to_unit_range_maps_0_to_minus_1_and_255_to_1() -> None:
    pixels = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    torch.testing.assert_close(to_unit_range(pixels), torch.tensor([[-1.0, 1.0, -0.6]]))


def test_every_byte_survives_the_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    assert torch.equal(to_pixels(to_unit_range(every)), every.flatten(1))


def test_to_pixels_rounds_and_clamps() -> None:
    floats = torch.tensor([[-3.0, 3.0, 0.01, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5]])
    assert to_pixels(floats).tolist() == [[0, 255, 129, 0, 1]]


def test_shape_length_classes_and_float_view() -> None:
    images = LabelledImages(black(3, 3, 8, 16), torch.tensor([0, 1, 0]), ("cat", "dog"))
    assert len(images) == 3
    assert images.shape == (3, 8, 16)
    assert images.num_classes == 2
    assert images.floats().shape == (3, 3 * 8 * 16)
    assert images.floats().dtype == torch.float32


def test_subset_keeps_order_and_classes() -> None:
    pixels = black(3)
    pixels[:, 0, 0, 0] = torch.tensor([10, 20, 30], dtype=torch.uint8)
    chosen = LabelledImages(pixels, torch.tensor([0, 1, 2]), ("a", "b", "c")).subset(torch.tensor([2, 0]))
    assert chosen.pixels[:, 0, 0, 0].tolist() == [30, 10]
    assert chosen.labels.tolist() == [2, 0]
    assert chosen.class_names == ("a", "b", "c")


def test_arrays_are_nhw_for_grey_and_nhwc_for_rgb() -> None:
    grey, labels = LabelledImages(black(2, 1, 8, 9), torch.tensor([0, 0]), ("0",)).arrays()
    assert grey.shape == (2, 8, 9)
    assert (grey.dtype, labels.dtype) == (np.uint8, np.int64)
    pixels = black(2, 3, 8, 9)
    pixels[0, 2, 4, 5] = 7  # blue, row 4, column 5
    rgb, _ = LabelledImages(pixels, torch.tensor([0, 0]), ("0",)).arrays()
    assert rgb.shape == (2, 8, 9, 3)
    assert rgb[0, 4, 5].tolist() == [0, 0, 7]


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (black().float(), [0, 0, 0], "float32"),
        (black()[0], [0], r"\(1, 8, 8\)"),
        (black(0), [], "no images"),
        (black(3, 2), [0, 0, 0], "2 channels"),
        (black(3, 1, 7, 8), [0, 0, 0], "7x8"),
        (black(3, 1, 8, 129), [0, 0, 0], "8x129"),
        (black(), [0, 0], "2 labels do not match 3 images"),
        (black(), [0, 1, 2], "0 to 2"),
        (black(), [0, -1, 1], "-1 to 1"),
    ],
)
def test_unusable_images_are_refused(pixels: torch.Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        LabelledImages(pixels, torch.tensor(labels, dtype=torch.int64), ("a", "b"))
    assert "\n" not in str(caught.value)


def test_labels_must_be_int64() -> None:
    with pytest.raises(InputError, match="int32"):
        LabelledImages(black(), torch.zeros(3, dtype=torch.int32), ("a",))
