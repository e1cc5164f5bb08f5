"""Arrays become images by their axes, a declared range and a size; no image decides how another is read."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dp_sinkhorn.data import Reading, from_arrays
from dp_sinkhorn.data.arrays import byte_blocks, to_bytes
from dp_sinkhorn.data.fit import fitted
from support.array_files import noise, ramp, refused

pytestmark = pytest.mark.quick

FAST = settings(deadline=None, max_examples=60, derandomize=True, database=None)


@FAST
@given(st.integers(1, 5), st.integers(8, 12), st.integers(8, 12), st.sampled_from([1, 3]), st.data())
def test_every_order_of_axes_gives_the_same_images(count, height, width, channels, data):
    seed = data.draw(st.integers(0, 99))
    images = np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    images.flat[0] = 255  # bytes for sure
    nchw = images.transpose(0, 3, 1, 2)
    forms = [images, nchw, np.ascontiguousarray(nchw), np.asfortranarray(images), list(images), tuple(nchw)]
    if channels == 1:
        forms += [images[..., 0], list(images[..., 0]), images[..., 0].tolist(), torch.from_numpy(images[..., 0])]
    for form in forms:
        read = from_arrays(form, None)
        assert read.shape == (channels, height, width)
        assert np.array_equal(read.pixels.numpy(), nchw)


def test_arrays_round_trip_in_grey_and_rgb():
    for images in (ramp(), np.stack([ramp(), 255 - ramp(), ramp() // 2], axis=-1)):
        back, labels = from_arrays(images, [2, 0, 1, 0]).arrays()
        assert np.array_equal(back, images)
        assert labels.tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize("form", [ramp(), ramp()[..., None], ramp()[:, None], np.repeat(ramp()[..., None], 3, -1)])
def test_arrays_are_copied(form):
    images, labels = form.copy(), np.zeros(4, np.int64)
    loaded = from_arrays(images, labels)
    before = loaded.pixels.clone()
    images[:], labels[:] = 9, 9
    assert torch.equal(loaded.pixels, before)
    assert loaded.labels.tolist() == [0] * 4


def test_read_only_arrays_are_accepted():
    images = ramp()
    images.setflags(write=False)
    assert np.array_equal(from_arrays(images, [0, 0, 0, 0]).arrays()[0], ramp())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_floats_in_0_1_are_rounded_to_bytes(dtype):
    images = np.zeros((1, 8, 8), dtype)
    images[0, 0, :5] = [1.0, 0.5, 0.2, 0.001, 0.003]
    # 127.5 rounds to even. In half precision, too, 0.2 and the small values round to the same byte.
    assert from_arrays(images, None).pixels[0, 0, 0, :6].tolist() == [255, 128, 51, 0, 1, 0]


def test_a_float_image_is_never_rescaled_to_its_own_range():
    dim = np.full((1, 8, 8), 0.1, np.float32)
    assert from_arrays(dim, None).pixels.unique().tolist() == [26]  # 25.5 in float32 lies above 25.5


def test_booleans_become_black_and_white():
    images = ramp() > 99
    assert np.array_equal(from_arrays(images, None).pixels[:, 0].numpy(), np.where(images, 255, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.01, 1.01, 255.0])
def test_a_float_outside_0_1_is_refused_with_its_position(bad):
    images = np.zeros((3, 8, 9, 3), np.float32)
    images[2, 7, 8, 1] = bad
    refused(lambda: from_arrays(images, None), f"images[2] has the value {np.float32(bad):g}", "0..1", "--range 0,")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_at_any_range(bad):
    images = np.zeros((3, 8, 9, 3), np.float32)
    images[1, 7, 8, 1] = bad
    refused(lambda: from_arrays(images, None, how=Reading(range=(0, 9))), f"images[1] has the value {bad:g}")


def test_the_first_bad_value_is_named_even_after_many_images():
    images = np.full((70_000, 8, 8), 100, np.int16)  # more than one block
    images[69_998, 1, 2] = -3
    images[69_999, 0, 0] = -5
    refused(lambda: from_arrays(images, None), "images[69998] has the value -3", "0..255")


def test_a_list_of_images_of_different_types_is_refused():
    """NumPy would convert all to floats, so one record would turn the 100 of all others from grey to white."""
    one, others = np.ones((8, 8), np.float32), [np.full((8, 8), 100, np.uint8)] * 3
    assert from_arrays(others, None).pixels.unique().tolist() == [100]
    refused(lambda: from_arrays([*others, one], None), "images are of types float32 and uint8", "give all of one type")
    lists = [image.tolist() for image in (*others, one)]
    refused(lambda: from_arrays(lists, None), "images are of types float64 and int64")


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.int32, np.int64, np.uint64, ">i4"])
def test_all_integer_types_in_0_255_are_accepted(dtype):
    top = min(255, np.iinfo(dtype).max)
    assert from_arrays(np.full((1, 8, 8), top, dtype), None).pixels.unique().tolist() == [top]


@pytest.mark.parametrize(
    ("lowest", "highest", "example"),
    [(0, 0, "0,1"), (0, 1, "0,1"), (0, 16, "0,16"), (-5, 3, "0,16"), (0, 256, "0,4095"), (0, 4096, "0,65535")],
)
def test_integers_of_an_unclear_range_ask_for_it(lowest, highest, example):
    """What 0..16 or 0..4095 mean is not guessed: it would depend on the records."""
    images = np.full((2, 8, 8), lowest)
    images[1, 3, 4] = highest
    refused(lambda: from_arrays(images, None), f"integers up to {highest}", f"--range {example}")
    if lowest == 0 < highest:
        read = from_arrays(images, None, how=Reading(range=(0, highest)))
        assert read.pixels.unique().tolist() == [0, 255]


def test_integers_from_17_to_255_are_bytes():
    for highest in (17, 255):
        images = np.zeros((2, 8, 8), np.uint8)
        images[1, 3, 4] = highest
        assert from_arrays(images, None).pixels.unique().tolist() == [0, highest]


@FAST
@given(
    st.sampled_from([np.uint8, np.int16, np.uint16, np.int64, np.float32, np.float64]),
    st.tuples(st.integers(-100, 200), st.integers(1, 60_000)),
    st.integers(0, 999),
)
def test_a_declared_range_is_linear_and_clips(dtype, limits, seed):
    low, high = limits[0], limits[0] + limits[1]
    least = 0 if dtype in (np.uint8, np.uint16) else -200
    most = 255 if dtype == np.uint8 else 30_000
    values = np.random.default_rng(seed).integers(least, most + 1, (3, 8, 9)).astype(dtype)
    read = from_arrays(values, None, how=Reading(range=(low, high)))
    clipped = np.clip(values.astype(np.float64), low, high)
    assert np.abs(read.pixels[:, 0].numpy() - (clipped - low) / (high - low) * 255).max() <= 0.5 + 1e-9


def test_one_image_does_not_change_how_another_is_converted():
    for how, images in (
        (Reading(range=(0, 50)), noise(3, 9, 8) // 4),
        (Reading(side=8, fit="crop"), noise(3, 30, 20, 3)),
        (Reading(), noise(3, 9, 8) / 255.0),
    ):
        together = from_arrays(images, None, how=how).pixels
        for number in range(3):
            assert torch.equal(together[number], from_arrays(images[number : number + 1], None, how=how).pixels[0])


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (np.zeros((4, 64), np.uint8), "(4, 64)"),
        (np.zeros((4, 8, 8, 4), np.uint8), "4 channels"),
        (np.zeros((4, 8, 8, 2), np.uint8), "2 channels"),
        (np.zeros((0, 8, 8), np.uint8), "(0, 8, 8)"),
        (np.zeros((4, 0, 8), np.uint8), "(4, 0, 8)"),
        (np.zeros((4, 7, 8), np.uint8), "8x7 pixels"),
        (np.zeros((4, 129, 64), np.uint8), "64x129 pixels"),
        (np.zeros((4, 8, 8), complex), "complex128"),
        (np.zeros((4, 8, 8), "M8[s]"), "datetime64"),
        (np.full((4, 8, 8), "x"), "<U1"),
        (np.full((4, 8, 8), None), "object"),
        (np.full((4, 8, 8), 10**30), "object"),
        ([[[1, 2], [3]]], "images[0] is not an array"),
        (torch.zeros(4, 8, 8, dtype=torch.bfloat16), "images are not an array (Got unsupported ScalarType BFloat16)"),
        ([np.zeros((8, 8)), np.zeros((8, 9))], "different shapes"),
        ([], "(0,)"),
        (7, "images are of type int"),
    ],
)
@pytest.mark.parametrize("how", [Reading(), Reading(range=(0, 255))])
def test_unusable_image_arrays_are_refused(images: Any, word: str, how: Reading):
    refused(lambda: from_arrays(images, None, how=how), word)


def test_resizing_keeps_flat_areas_flat_and_in_place():
    halves = np.zeros((2, 100, 80, 3), np.uint8)
    halves[0, :, 40:] = [255, 128, 3]
    halves[1] = [9, 8, 7]
    pixels = from_arrays(halves, None, how=Reading(side=16, fit="stretch")).pixels
    assert pixels.shape == (2, 3, 16, 16)
    assert (pixels[0, :, :, :5] == 0).all()
    assert (pixels[0, :, :, 11:] == torch.tensor([255, 128, 3])[:, None, None]).all()
    assert (pixels[1] == torch.tensor([9, 8, 7])[:, None, None]).all()


def test_crop_takes_the_middle_and_pad_adds_black():
    images = np.full((1, 12, 20), 50, np.uint8)
    images[:, :, 4:16] = 200
    cropped = from_arrays(images, None, how=Reading(fit="crop")).pixels
    assert cropped.shape == (1, 1, 12, 12)
    assert cropped.unique().tolist() == [200]
    padded = from_arrays(images, None, how=Reading(fit="pad")).pixels[0, 0]
    assert padded.shape == (20, 20)
    assert padded[:4].unique().tolist() == padded[16:].unique().tolist() == [0]
    assert np.array_equal(padded[4:16].numpy(), images[0])


def test_what_is_not_square_says_which_options_make_it_so():
    images = noise(2, 12, 20)
    assert from_arrays(images, None).shape == (1, 12, 20)
    refused(lambda: from_arrays(images, None, how=Reading(side=8)), "20x12", "--crop center, --pad or --stretch")
    refused(lambda: from_arrays(images, None, how=Reading(fit="stretch")), "--side 32")
    refused(lambda: from_arrays(noise(2, 300, 300), None), "300x300 pixels", "--side 32")


@pytest.mark.parametrize("side", [8, 64, 100, 128])
def test_a_side_from_8_to_128_sets_the_side(side):
    assert from_arrays(noise(2, 30, 30, 3), None, how=Reading(side=side)).shape == (3, side, side)


def test_resizing_is_that_of_a_single_image():
    images = noise(3, 40, 40, 3)
    read = from_arrays(images, None, how=Reading(side=16)).pixels
    for image, row in zip(images, read, strict=True):
        expected = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.LANCZOS))
        assert np.array_equal(row.permute(1, 2, 0).numpy(), expected)
        assert np.array_equal(fitted(image, 16, 16, None), expected)


def test_blocks_cover_all_images_once(monkeypatch):
    monkeypatch.setattr(sys.modules["dp_sinkhorn.data.arrays"], "_BLOCK_VALUES", 3 * 64)
    values = noise(10, 8, 8)[..., None] / 255.0
    places = [range(10)[place] for place, _ in byte_blocks(values, (0.0, 1.0), False, "x")]
    assert [list(place) for place in places] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert np.array_equal(to_bytes(values, (0.0, 1.0), False, "x")[..., 0], noise(10, 8, 8))


# --- Pillow images --------------------------------------------------------------------------------------


def palette(**info):
    image = Image.new("P", (8, 9), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.info |= info
    return image


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (palette(), [10, 200, 30]),
        (palette(transparency=1), [255, 255, 255]),
        (Image.new("RGBA", (8, 9), (1, 2, 3, 0)), [255, 255, 255]),
        (Image.new("RGB", (8, 9), (1, 2, 3)), [1, 2, 3]),
        (Image.new("L", (8, 9), 7), [7]),
        (Image.new("1", (8, 9), 1), [255]),
        (Image.new("I;16", (8, 9), 0xFFFF), [255]),
        (Image.new("CMYK", (8, 9), (254, 253, 252, 0)), [1, 2, 3]),
    ],
)
def test_pillow_images_are_read_as_files_are(image, colour):
    for images in ([image, image], (image,)):
        read = from_arrays(images, None)
        assert read.shape == (len(colour), 9, 8)
        assert read.pixels[0, :, 4, 4].tolist() == colour
    assert image.size == (8, 9)  # and still open


def test_pillow_images_of_different_kinds_and_sizes_are_read():
    images = [Image.new("RGB", (20, 30), (1, 2, 3)), Image.new("L", (9, 9), 9)]
    refused(lambda: from_arrays(images, [1, 2]), "images[0]", "images[1]", "--side 32")
    read = from_arrays(images, [1, 2], how=Reading(side=8, fit="crop"))
    assert read.pixels[:, :, 0, 0].tolist() == [[1, 2, 3], [9, 9, 9]]
    refused(lambda: from_arrays([*images, np.zeros((8, 8))], None), "images")


def test_a_pillow_image_on_its_side_is_turned_upright():
    image = Image.fromarray(noise(1, 8, 12)[0])
    image.getexif()[0x0112] = 6  # turned by 90 degrees
    read = from_arrays([image], None)
    assert np.array_equal(read.pixels[0, 0].numpy(), np.rot90(noise(1, 8, 12)[0], -1))
