"""`.npz` archives that are written image by image: `numpy.savez_compressed` would hold them all."""

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.sampling.draw import Draws
from dp_sinkhorn.sampling.privacy_facts import privacy_facts

# The earliest that a zip archive knows. With the time of day in it, equal draws would be different files.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def write_npz(path: Path, draws: Draws) -> None:
    """`images` (uint8, NHW or NHWC), `labels` (int64), `class_names` and `privacy`, as `numpy.load` reads them.

    Labels are as the records had them: integers that name the classes, or else places in `class_names`. If the draws
    give them, `probabilities` (float32, NK) too. `privacy` is the JSON text of `privacy_facts`: a file of a run that is
    not private says so.
    """
    channels, height, width = draws.card.image_shape
    shape = (draws.num, height, width) + ((channels,) if channels > 1 else ())
    with zipfile.ZipFile(path, "w") as archive:
        kept = _Kept(draws, values=True)
        _write_parts(archive, "images", shape, "|u1", (chunk.arrays()[0] for chunk in kept))
        _write_array(archive, "labels", np.concatenate(kept.labels))
        if draws.gives_probabilities:
            _write_array(archive, "probabilities", np.concatenate(kept.probabilities))
        _write_array(archive, "class_names", np.array(draws.card.class_names))
        _write_privacy(archive, draws)


def write_dpimagebench(path: Path, draws: Draws) -> None:
    """`path/gen/gen.npz`, as DPImageBench's `eval.py --exp_path path` reads it: `x` (float32, NCHW in [0, 1]) and
    `y` (int64). Beside them stands `privacy`, as in `write_npz`.

    Raises:
        InputError: A class gets no image: the benchmark takes the number of distinct labels for that of the classes.
    """
    _refuse_missing(draws, draws.counts)
    folder = path / "gen"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "gen.npz", "w") as archive:
        # A byte k is k / 255: the benchmark cuts 255 times that off to k again.
        kept = _Kept(draws, values=False)
        images = (chunk.pixels.numpy().astype(np.float32) / np.float32(255) for chunk in kept)
        _write_parts(archive, "x", (draws.num, *draws.card.image_shape), "<f4", images)
        labels = np.concatenate(kept.labels)
        _refuse_missing(draws, torch.from_numpy(np.bincount(labels, minlength=len(draws.counts))))
        _write_array(archive, "y", labels)
        _write_privacy(archive, draws)


class _Kept:
    """The drawn images one after the other; what else is known of them is kept.

    Args:
        values: Labels are class names that are integers, where there are such; else places of classes.
    """

    def __init__(self, draws: Draws, values: bool) -> None:
        self.draws, self.values = draws, values
        self.labels: list[NDArray[np.int64]] = []
        self.probabilities: list[NDArray[np.float32]] = []

    def __iter__(self) -> Iterator[LabelledImages]:
        for chunk in self.draws:
            self.labels.append(chunk.arrays()[1] if self.values else chunk.labels.numpy())
            if self.draws.gives_probabilities:
                self.probabilities.append(self.draws.probabilities(chunk).numpy())
            yield chunk


def _refuse_missing(draws: Draws, counts: Tensor) -> None:
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise InputError(
            f"num={draws.num} has no image of class {missing[0]}, and DPImageBench takes 0 to K - 1 for the labels of "
            "K classes; give a larger num, and no labels"
        )


def _write_privacy(archive: zipfile.ZipFile, draws: Draws) -> None:
    _write_array(archive, "privacy", np.array(json.dumps(privacy_facts(draws.card))))


def _write_parts(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str, parts: Iterable[NDArray[Any]]
) -> None:
    """An array of this shape, from its parts along the first axis."""
    with _member(archive, name) as stream:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(part.astype(dtype, copy=False).tobytes())


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with _member(archive, name) as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    member = zipfile.ZipInfo(f"{name}.npy", _NO_TIME)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o600 << 16
    return archive.open(member, "w", force_zip64=True)
