"""A data set as it was found: its splits become labelled images, and a summary says what was read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dp_sinkhorn.data.arrays import Values, as_nhwc, byte_blocks, check_numbers, range_of, to_bytes
from dp_sinkhorn.data.class_names import checked_names, class_index, label_column, names_of, private_looking
from dp_sinkhorn.data.files import MAX_BYTES
from dp_sinkhorn.data.fit import fitted, fitted_size
from dp_sinkhorn.data.found import SPLITS, Arrays, Found, Pictures, Split, persons_warning
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.pictures import Facts, facts_of, values_of
from dp_sinkhorn.data.reading import MIN_SIDE, SIDE_REMEDY, Reading, range_remedy
from dp_sinkhorn.io.errors import InputError, one_line

_FEW = 10  # images of a class
_MOST_VALUES = 2**35  # of an array in memory, before images are made smaller
_LITTLE = 1 / 16  # of the range of 16 bits: 12 bits
_SHOWN = 3
_TESTED: tuple[Split, ...] = ("test", "validation")


@dataclass(frozen=True)
class Skipped:
    """Files that were not read, for one reason."""

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What was read. It comes from private data: for the data's owner only.

    Args:
        splits: Number of images. image_shape: (channels, height, width) after preprocessing.
        images_per_class: Of the training split. value_range: Smallest and largest stored value.
        converted: What was done to the values. attention: Those of `warnings` that somebody should confirm.
    """

    layout: str
    splits: dict[str, int]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    images_per_class: dict[str, int]
    labels_from: str
    value_range: tuple[float, float]
    converted: str
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    attention: tuple[str, ...]
    unit: str = "record"

    def lines(self) -> list[str]:
        """Five lines for the data's owner, the last of which says what becomes public."""
        channels, height, width = self.image_shape
        colour = "grey" if channels == 1 else "RGB"
        splits = ", ".join(f"{count:,} {split}" for split, count in self.splits.items())
        counts = sorted(self.images_per_class.values())
        spread = f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
        unread = ", ".join(f"{one.count} ({one.reason})" for one in self.skipped) or "none"
        names = f"class names {', '.join(self.class_names)}; "
        classes = f"{len(self.class_names)} class{'es' if len(self.class_names) > 1 else ''}"
        low, high = self.value_range
        lines = [
            f"images: {splits}; {height}x{width} pixels, {colour}; {self.layout}",
            f"labels: {self.labels_from}; {classes} of {spread} training images",
            f"values: stored {low:g}..{high:g}; {self.converted}",
            f"files not read: {unread}",
            f"public: {names}{self.splits['train']:,} records of {height}x{width} pixels, {colour}",
        ]
        return [one_line(line) for line in lines]

    def as_json(self) -> dict[str, Any]:
        """The facts by name."""
        return {name: value for name, value in asdict(self).items() if name in self.keys()}

    @classmethod
    def keys(cls) -> list[str]:
        """The names of `as_json`."""
        return [field.name for field in fields(cls) if field.name != "attention"]


class DataSet:
    """The splits that a layout found, read as declared.

    Raises:
        InputError: There is no training split, or the class names look private.
    """

    def __init__(self, name: str, found: Found, how: Reading) -> None:
        self.name, self.found, self.how = name, found, how
        if "train" not in found.parts:
            held = ", ".join(found.parts) or "nothing"
            raise InputError(f"{name} holds no training images, only {held}; put them into a folder train")
        if found.parts["train"].labels is not None:
            for split in [split for split, part in found.parts.items() if part.labels is None]:
                del found.parts[split]
                found.unused.append(("images without labels", f"the {split} split"))
        self.values: dict[Split, tuple[float, float]] = {}
        self.converted: dict[Split, str] = {}
        self._shape = (0, 0, 0)  # of the training images, once they are loaded
        self.clipped = False
        self.transparent = 0

    @cached_property
    def _columns(self) -> dict[Split, NDArray[Any] | None]:
        return {
            split: None if part.labels is None else label_column(part.labels)
            for split, part in self.found.parts.items()
        }

    @cached_property
    def _label_names(self) -> tuple[str, ...]:
        """The names that labels refer to: declared by the source, by the user, or the labels of the training split."""
        if self.how.classes is not None and self.found.class_names is None:
            return checked_names(self.how.classes)
        if self.found.class_names is not None:
            return checked_names(self.found.class_names)
        return names_of(self._columns["train"])

    @cached_property
    def _indices(self) -> dict[Split, NDArray[np.int64]]:
        found: dict[Split, NDArray[np.int64]] = {}
        for split, part in self.found.parts.items():
            _check_memory(len(part.images), (1, MIN_SIDE, MIN_SIDE), self.name)
            try:
                index = class_index(self._columns[split], self._label_names, len(part.images), self.found.places)
            except InputError as error:
                raise InputError(f"{self.name}, {split} split: {error}") from None
            found[split] = index
        if self.how.classes is None or self.found.class_names is None:
            return found
        chosen = checked_names(self.how.classes)
        place = {name: number for number, name in enumerate(chosen)}
        for number, name in enumerate(self._label_names):
            if name not in place and any((index == number).any() for index in found.values()):
                raise InputError(
                    f"{self.name} holds images of class '{name}'; name all classes in --classes (in Python classes=…)"
                )
        order = np.array([place.get(name, -1) for name in self._label_names], np.int64)
        return {split: order[index] for split, index in found.items()}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classes, in their order: those that the user declares, or all that labels refer to."""
        return self._label_names if self.how.classes is None else checked_names(self.how.classes)

    @property
    def evaluation_split(self) -> Split | None:
        """The split that `evaluate` tests on: test images, or else validation images."""
        return next((split for split in _TESTED if split in self.found.parts), None)

    def check_names(self) -> None:
        """Refuse class names that look private, since they become public.

        Raises:
            InputError: They do, and nobody has said that they may be published.
        """
        if self.how.classes_are_public or self.how.classes is not None:
            return
        counts = np.bincount(self._indices["train"], minlength=len(self.class_names)).tolist()
        if (reason := private_looking(self.class_names, counts)) is not None:
            raise InputError(
                f"{reason}, and class names become public; give --label-column, --class-level or --classes a,b,c, "
                "or --classes-are-public (setting reading.classes_are_public) if they may be published"
            )

    def load(self, split: Split = "train") -> LabelledImages:
        """The images and labels of one split.

        Raises:
            InputError: The split is not there, or a file or value does not fit.
        """
        if split not in self.found.parts:
            raise InputError(f"{self.name} has no {split} split; it has {', '.join(self.found.parts)}")
        part = self.found.parts[split]
        index = self._indices[split]
        if isinstance(part.images, Arrays):
            pixels = self._from_arrays(part.images, split)
        else:
            pixels = self._decoded(part.images, split)
        images = LabelledImages(torch.from_numpy(pixels), torch.from_numpy(index), self.class_names)
        if split == "train":
            self._shape = images.shape
        return images

    def summary(self, *, all_splits: bool = True) -> Summary:
        """What was read. Splits that were not read yet are read first: all of them, or the training split only."""
        for split in SPLITS if all_splits else SPLITS[:1]:
            if split in self.found.parts and split not in self.values:
                self.load(split)
        counts = np.bincount(self._indices["train"], minlength=len(self.class_names)).tolist()
        per_class = dict(zip(self.class_names, counts, strict=True))
        lows, highs = zip(*self.values.values(), strict=True)
        skipped = _gathered(self.found.unused)
        attention = [f"{one.count} file(s) were not read: {one.reason}" for one in skipped]
        if few := {name: count for name, count in per_class.items() if count < _FEW}:
            shown = ", ".join(f"{name} ({count})" for name, count in list(few.items())[:5])
            attention.append(f"{len(few)} class(es) have fewer than {_FEW} training images: {shown}")
        notes = list(self.found.notes)
        if self.clipped:
            notes.append(f"values outside {self.how.range} became black or white")
        if self.transparent:
            notes.append(f"{self.transparent} image(s) may have transparent pixels, which became white")
        if self.evaluation_split == "validation":
            notes.append("there is no test split: evaluate uses the validation split")
        elif self.evaluation_split is None:
            notes.append("there is no test split: evaluate needs one")
        if self.found.persons is not None:
            most, folders = self.found.persons
            notes.append(persons_warning("sub-folders", folders, most))
        return Summary(
            layout=self.found.layout,
            splits={split: len(self.found.parts[split].images) for split in SPLITS if split in self.found.parts},
            image_shape=self._shape,
            class_names=self.class_names,
            images_per_class=per_class,
            labels_from=self.found.labels_from,
            value_range=(min(lows), max(highs)),
            converted="; ".join(dict.fromkeys(self.converted.values())),
            skipped=tuple(skipped),
            warnings=(*attention, *notes),
            attention=tuple(attention),
        )

    def _from_arrays(self, images: Arrays, split: Split) -> NDArray[np.uint8]:
        values, name = as_nhwc(images.values), images.name
        check_numbers(values, name)
        count, height, width, channels = values.shape
        if values.size > _MOST_VALUES:  # a view of few numbers may claim any shape
            raise InputError(
                f"{name} holds {values.size} pixels, more than {_MOST_VALUES}; give fewer or smaller images"
            )
        height, width = self._one_shape(values, name, split)
        _check_memory(count, (channels, height, width), name)
        limits = self.how.range or images.range or self._range_of(values, name, split)
        self._remember(split, float(values.min()), float(values.max()), limits, "")
        pixels = np.empty((count, channels, height, width), np.uint8)  # a copy in any case
        for place, block in byte_blocks(values, limits, self.how.range is not None, name):
            if block.shape[1:3] == (height, width):
                pixels[place] = block.transpose(0, 3, 1, 2)
                continue
            for row, image in zip(pixels[place], block, strict=True):
                resized = fitted(image[..., 0] if channels == 1 else image, height, width, self.how.fit)
                row[...] = resized if channels == 1 else resized.transpose(2, 0, 1)
        return pixels

    def _one_shape(self, values: NDArray[Any], name: str, split: Split) -> tuple[int, int]:
        """The (height, width) of the split's images, the same as of the training images."""
        _, height, width, channels = values.shape
        size = fitted_size((width, height), self.how, name)
        first = self.found.parts["train"].images
        if split == "train" or not isinstance(first, Arrays):
            return size
        _, height, width, own = as_nhwc(first.values).shape
        if (expected := fitted_size((width, height), self.how, first.name)) != size:
            raise InputError(
                f"{name} has {size[1]}x{size[0]} pixels, {first.name} {expected[1]}x{expected[0]}; "
                f"give one size for all, for example {SIDE_REMEDY}"
            )
        if own != channels:
            raise InputError(f"{name} has {channels} channel(s), {first.name} {own}; convert the images of one of them")
        return size

    def _range_of(self, values: NDArray[Any], name: str, split: Split) -> tuple[float, float]:
        """As the type declares it; of integers the training images must look like bytes."""
        first = self.found.parts["train"].images
        if (
            split != "train"
            and isinstance(first, Arrays)
            and {values.dtype.kind, first.values.dtype.kind} <= {"i", "u"}
        ):
            return range_of(first.values, first.name)
        return range_of(values, name)

    def _decoded(self, pictures: Pictures, split: Split) -> NDArray[np.uint8]:
        """Encoded images of one split; the training split's files say whether images are grey, and their size."""
        declared, size = self._declared
        own = declared if split == "train" else self._survey(pictures)
        if len({fitted_size(facts.size, self.how, where) for facts, where in own} | {size}) > 1:
            raise InputError(_different_sizes([*declared, *own], self.how))
        channels = 1 if all(facts.grey for facts, _ in declared) else 3
        height, width = size
        _check_memory(len(pictures), (channels, height, width), self.name)
        pixels = np.empty((len(pictures), channels, height, width), np.uint8)
        low, high, declared_by = np.inf, -np.inf, Counter[str]()
        largest, used = 0.0, 0.0  # of images of 16 bits: the largest value, and its share of the range
        for row, (where, open_file) in zip(pixels, pictures, strict=True):
            values = values_of(open_file, where)
            low, high = min(low, float(values.array.min())), max(high, float(values.array.max()))
            if values.wide and values.range is not None:
                most = float(np.abs(values.array).max())
                largest, used = max(largest, most), max(used, most / max(map(abs, values.range)))
            declared_by[values.declared_by] += 1
            self.transparent += values.transparent
            row[...] = self._to_shape(values, channels, height, width, where)
        if 0.0 < used < _LITTLE and self.how.range is None:
            raise InputError(
                f"{self.name} holds 16-bit images with values up to {largest:g}, which would be nearly black; "
                f"give the smallest and the largest possible value, for example {range_remedy(4095)}"
            )
        self._remember(split, float(low), float(high), self.how.range, " and ".join(declared_by))
        return pixels

    def _to_shape(self, values: Values, channels: int, height: int, width: int, where: str) -> NDArray[np.uint8]:
        limits = self.how.range or values.range
        if limits is None:
            raise InputError(
                f"{where} does not declare the range of its values; give the smallest and the largest possible value, "
                f"for example {range_remedy(65535)}"
            )
        image = to_bytes(values.array[np.newaxis], limits, True, where)[0]
        if values.inverted:
            image = 255 - image
        if channels == 3 and image.ndim == 2:
            image = np.repeat(image[..., np.newaxis], 3, axis=2)
        if channels == 1 and image.ndim == 3:
            image = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
        image = fitted(image, height, width, self.how.fit)
        return image[np.newaxis] if channels == 1 else image.transpose(2, 0, 1)

    @cached_property
    def _declared(self) -> tuple[list[tuple[Facts, str]], tuple[int, int]]:
        """Distinct header facts of the training split, and the (height, width) of every image."""
        pictures = self.found.parts["train"].images
        if isinstance(pictures, Arrays):
            raise InputError(f"{self.name} has training images in arrays and others in files; keep one kind")
        facts = self._survey(pictures)
        sizes = {fitted_size(one.size, self.how, where) for one, where in facts}
        if len(sizes) > 1:
            raise InputError(_different_sizes(facts, self.how))
        return facts, sizes.pop()

    def _survey(self, pictures: Pictures) -> list[tuple[Facts, str]]:
        """Distinct header facts of images, each with one file that has them."""
        found: dict[Facts, str] = {}
        for where, open_file in pictures:
            found.setdefault(facts_of(open_file, where), where)
        if not found:
            raise InputError(f"{self.name} holds no images; give at least one")
        return list(found.items())

    def _remember(
        self, split: Split, low: float, high: float, limits: tuple[float, float] | None, declared_by: str
    ) -> None:
        self.values[split] = (low, high)
        if limits is None:
            self.converted[split] = "kept" if declared_by == "8 bits" else f"range: {declared_by}"
            return
        bytes_already = limits == (0.0, 255.0)
        self.converted[split] = "kept" if bytes_already else f"{limits[0]:g}..{limits[1]:g} became 0..255"
        self.clipped |= self.how.range is not None and (low < limits[0] or high > limits[1])


def _gathered(unused: Sequence[tuple[str, str]]) -> list[Skipped]:
    by_reason: dict[str, list[str]] = {}
    for reason, name in unused:
        by_reason.setdefault(reason, []).append(name)
    return [Skipped(reason, len(names), tuple(names[:_SHOWN])) for reason, names in by_reason.items()]


def _different_sizes(facts: Sequence[tuple[Facts, str]], how: Reading) -> str:
    (first, path), *others = facts
    second, other = next(
        (
            (one, where)
            for one, where in others
            if fitted_size(one.size, how, where) != fitted_size(first.size, how, path)
        ),
        (first, path),
    )
    return (
        f"{path} has {first.size[0]}x{first.size[1]} pixels, {other} {second.size[0]}x{second.size[1]}; "
        f"give one size for all, for example {SIDE_REMEDY}"
    )


def _check_memory(count: int, shape: tuple[int, int, int], name: str) -> None:
    """Refuse too much before memory is allocated for it."""
    channels, height, width = shape
    if (held := count * channels * height * width) > MAX_BYTES:
        raise InputError(f"the images of {name} would take {held} bytes, more than {MAX_BYTES}; give fewer or smaller")
