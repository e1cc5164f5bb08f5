"""Arrays of images: their axes, and from their values to bytes by a declared range."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.reading import range_remedy
from dp_sinkhorn.io.errors import InputError

MAX_STORED_SIDE = 8192  # pixels a side of an image that is to be resized
_BLOCK_VALUES = 2**22  # converted at a time, so that no float copy of the whole array exists
# Integers of at most so much, or above 255, are no bytes 0..255: which range they have is not guessed.
_SMALL = 16


@dataclass(frozen=True, repr=False)
class Values:
    """The values of an image, before any range is applied.

    Args:
        array: (height, width) grey, or (height, width, 3) RGB.
        range: The values that mean black and white, as the file declares them; None: it declares none.
        declared_by: Where the range comes from, for people.
        inverted: Low values are white.
        wide: The range is that of 16 bits, of which images often use the smallest part only.
        transparent: It has transparent pixels, or may have; they are on white.
    """

    array: NDArray[Any]
    range: tuple[float, float] | None
    declared_by: str
    inverted: bool = False
    wide: bool = False
    transparent: bool = False


def as_array(values: Any, subject: str, remedy: str) -> NDArray[Any]:
    """A list, a tensor on any device, or an object that offers itself to NumPy as an array, such as a column of pandas.

    Args:
        subject: For messages, with its verb: "labels are".

    Raises:
        InputError: It is anything else, such as a generator or a set; or it is ragged.
    """
    if not (isinstance(values, Sequence) or hasattr(values, "__array__")) or isinstance(values, str | bytes):
        raise InputError(f"{subject} of type {type(values).__name__}; {remedy}")
    try:
        return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    # Lists of several lengths, and types that NumPy lacks; other libraries raise nearly anything.
    except Exception as error:
        raise InputError(f"{subject} not an array ({error}); {remedy}") from error


def as_nhwc(array: NDArray[Any]) -> NDArray[Any]:
    """Images as (N, height, width, channels); of (N, channels, height, width) the channels move last.

    Raises:
        InputError: The shape fits neither.
    """
    if array.ndim not in (3, 4):
        raise InputError(f"images have shape {array.shape}; give (N, height, width) or (N, height, width, channels)")
    if 0 in array.shape:
        raise InputError(f"images of shape {array.shape} hold no pixels; give at least one image")
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.shape[3] not in (1, 3):
        raise InputError(f"images of shape {array.shape} have {array.shape[3]} channels; give 1 (grey) or 3 (RGB)")
    if max(array.shape[1:3]) > MAX_STORED_SIDE:
        raise InputError(f"images are {array.shape[1]}x{array.shape[2]} pixels; give at most {MAX_STORED_SIDE} a side")
    return array


def check_numbers(values: NDArray[Any], name: str) -> None:
    """Refuse texts, objects, dates and complex numbers."""
    if values.dtype.kind not in "biuf":
        raise InputError(f"{name} is an array of {values.dtype}; give integers, floats or booleans")


def range_of(values: NDArray[Any], name: str) -> tuple[float, float]:
    """The range that the type of the values declares: floats [0, 1], booleans 0 and 1, integers 0..255.

    Raises:
        InputError: Integers cannot be bytes 0..255, or look as if they were not; the range must then be given.
    """
    if values.dtype.kind in "bf":
        return 0.0, 1.0
    if (high := int(values.max())) <= _SMALL or high > 255:
        raise InputError(
            f"{name} holds integers up to {high}, so their range is unclear; "
            f"give the smallest and the largest possible value, for example {range_remedy(_guess(high))}"
        )
    return 0.0, 255.0


def byte_blocks(
    values: NDArray[Any], limits: tuple[float, float], clips: bool, name: str
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Images as bytes, some at a time: the lower limit becomes 0, the upper 255.

    Args:
        clips: Values outside the limits become black or white; else they are refused.

    Yields:
        Which images, and their bytes.

    Raises:
        InputError: A value lies outside the limits, or is not a number.
    """
    low, high = limits
    step = max(1, _BLOCK_VALUES // values[0].size)
    for first in range(0, len(values), step):
        place = slice(first, first + step)
        if values.dtype == np.uint8 and limits == (0.0, 255.0):
            yield place, values[place]
            continue
        block = values[place].astype(np.float64)
        good = np.isfinite(block) if clips else (block >= low) & (block <= high)  # False for NaN
        if not good.all():
            where = tuple(int(number) for number in np.argwhere(~good)[0])
            raise InputError(
                f"{name}[{first + where[0]}] has the value {block[where]:g}, outside {low:g}..{high:g}; correct it, or "
                f"give the smallest and the largest possible value, for example {range_remedy(_guess(block[where]))}"
            )
        yield place, np.rint((np.clip(block, low, high) - low) * (255.0 / (high - low))).astype(np.uint8)


def to_bytes(values: NDArray[Any], limits: tuple[float, float], clips: bool, name: str) -> NDArray[np.uint8]:
    """All of `byte_blocks`, in a new array."""
    pixels = np.empty(values.shape, np.uint8)
    for place, block in byte_blocks(values, limits, clips, name):
        pixels[place] = block
    return pixels


def _guess(high: float) -> int:
    """The full range that a largest value suggests, for an example."""
    usual = (1, 16, 255, 4095, 65535)
    return next((full for full in usual if np.isfinite(high) and 0 <= high <= full), 65535)
