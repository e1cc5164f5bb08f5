"""Images get their declared side, each by itself: cut, padded or stretched; nothing is guessed."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dp_sinkhorn.data import Reading, from_arrays, load_images
from dp_sinkhorn.data.fit import fitted, fitted_size
from support.array_files import noise, refused
from support.picture_files import image_bytes, inspected, picture, write_files

pytestmark = pytest.mark.quick

FAST = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SIDES = st.integers(1, 300)


@FAST
@given(SIDES, SIDES, st.none() | st.integers(8, 128), st.sampled_from([None, "crop", "pad", "stretch"]))
def test_a_size_is_what_was_declared_or_refused_with_a_remedy(width, height, side, fit):
    how = Reading(side=side, fit=fit)
    allowed = range(8, 129)
    if side is not None:
        expected = (side, side) if fit or width == height else None
    elif fit == "stretch":
        expected = None
    else:
        chosen = {"crop": min(width, height), "pad": max(width, height)}.get(fit or "")
        size = (height, width) if chosen is None else (chosen, chosen)
        expected = size if size[0] in allowed and size[1] in allowed else None
    if expected is None:
        refused(lambda: fitted_size((width, height), how, "a.png"), "give")
    else:
        assert fitted_size((width, height), how, "a.png") == expected


@FAST
@given(st.integers(4, 20), st.integers(4, 20), st.sampled_from([None, 3]), st.sampled_from(["crop", "pad", "stretch"]))
def test_images_of_one_colour_keep_it_within_their_border(height, width, channels, fit):
    pixels = np.full((height, width) + ((channels,) if channels else ()), 200, np.uint8)
    found = fitted(pixels, 32, 32, fit)
    assert found.shape[:2] == (32, 32)
    if fit != "pad" or height == width:
        assert (found == 200).all()
    else:
        assert found.mean() == pytest.approx(200 * min(width, height) / max(width, height), abs=8)


def test_a_crop_is_the_centred_square(tmp_path):
    pixels = noise(1, 20, 31)[0]
    write_files(tmp_path, {"a.png": image_bytes(pixels)})
    found = load_images(tmp_path, how=Reading(fit="crop")).pixels[0, 0].numpy()
    assert np.array_equal(found, pixels[:, 5:25])


def test_a_pad_keeps_all_pixels_in_the_middle(tmp_path):
    pixels = noise(1, 20, 30)[0]
    write_files(tmp_path, {"a.png": image_bytes(pixels)})
    found = load_images(tmp_path, how=Reading(fit="pad")).pixels[0, 0].numpy()
    assert np.array_equal(found[5:25], pixels)
    assert found[:5].max() == found[25:].max() == 0


def test_a_stretch_uses_all_of_the_image(tmp_path):
    halves = np.zeros((100, 40, 3), np.uint8)
    halves[:, 20:] = [255, 128, 3]
    write_files(tmp_path, {"a.png": image_bytes(halves)})
    found = load_images(tmp_path, how=Reading(side=16, fit="stretch")).arrays()[0][0]
    assert (found[:, :5] == 0).all()
    assert (found[:, 11:] == [255, 128, 3]).all()


@FAST
@given(st.integers(0, 99), st.sampled_from(["crop", "pad", "stretch"]), st.integers(8, 24))
def test_files_and_arrays_are_fitted_alike_each_by_itself(tmp_path, seed, fit, side):
    pixels = noise(3, 20, 31, 3, seed)
    write_files(tmp_path, {f"{n}.png": image_bytes(image) for n, image in enumerate(pixels)})
    how = Reading(side=side, fit=fit)
    together = load_images(tmp_path, how=how).pixels
    assert (together == from_arrays(pixels, None, how=how).pixels).all()
    for image, found in zip(pixels, together, strict=True):
        assert (from_arrays(image[None], None, how=how).pixels[0] == found).all()


def test_images_of_different_sizes_need_a_side(tmp_path):
    picture(tmp_path / "a" / "1.png", "L", 20, (8, 8))
    picture(tmp_path / "b" / "2.png", "L", 30, (300, 300))
    refused(lambda: load_images(tmp_path), "8 to 128", "--side 32")
    images = load_images(tmp_path, how=Reading(side=32))
    assert images.shape == (1, 32, 32)
    assert [images.pixels[i].unique().tolist() for i in (0, 1)] == [[20], [30]]
    picture(tmp_path / "b" / "2.png", "L", 30, (30, 20))
    refused(lambda: load_images(tmp_path), "8x8", "30x20", "--side 32")
    how = Reading(side=32)
    refused(lambda: load_images(tmp_path, how=how), "2.png", "30x20", "--crop center, --pad or --stretch")


@pytest.mark.parametrize("size", [(129, 128), (7, 8), (300, 200)])
@pytest.mark.parametrize("fit", [None, "pad"])
def test_an_image_of_an_unsupported_size_is_named_as_it_is(tmp_path, size, fit):
    picture(tmp_path / "a.png", "L", 20, size)
    if fit == "pad" and size == (7, 8):
        assert load_images(tmp_path, how=Reading(fit=fit)).shape == (1, 8, 8)
        return
    refused(lambda: load_images(tmp_path, how=Reading(fit=fit)), f"{size[0]}x{size[1]}", "--side 32")


@pytest.mark.parametrize("side", [0, 7, 129, 10**9, -8])
def test_a_side_out_of_range_is_refused(side):
    with pytest.raises(ValueError, match="side"):  # settings turn it into one line
        Reading(side=side)


@pytest.mark.parametrize("side", [8, 65, 128])
def test_all_sides_from_8_to_128_are_possible(tmp_path, side):
    picture(tmp_path / "a.png", "RGB", (1, 2, 3), (200, 200))
    assert inspected(tmp_path, side=side).image_shape == (3, side, side)


def test_images_up_to_128_pixels_are_kept_as_they_are(tmp_path):
    pixels = noise(1, 128, 100, 3)[0]
    write_files(tmp_path, {"a.png": image_bytes(pixels)})
    assert np.array_equal(load_images(tmp_path).arrays()[0][0], pixels)


def test_memory_is_checked_before_images_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("dp_sinkhorn.data.dataset.MAX_BYTES", 1000)
    write_files(tmp_path, {f"{n}.png": image_bytes(noise(1, 20, 20)[0]) for n in range(3)})
    refused(lambda: load_images(tmp_path), "1200 bytes", "more than 1000")
    assert load_images(tmp_path, how=Reading(side=16)).shape == (1, 16, 16)
