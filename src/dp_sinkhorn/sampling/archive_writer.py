"""Writers of `.npz` archives, chunk by chunk: `numpy.savez_compressed` would hold all images in memory."""

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

# The earliest date of a zip archive. With the present time, equal draws would give different files.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def write_npz(path: Path, draws: Draws) -> None:
    """Write `images` (uint8, NHW or NHWC), `labels` (int64), `class_names` and `privacy` for `numpy.load`.

    Labels are as the records had them: integers that name the classes, or else places in `class_names`.
    `probabilities` (float32, NK) is added if the draws give them. `privacy` is the JSON text of `privacy_facts`, which
    also says if the run is not private.
    """
    channels, height, width = draws.card.image_shape
    shape = (draws.num, height, width) + ((channels,) if channels > 1 else ())
    with zipfile.ZipFile(path, "w") as archive:
        chunks = _Chunks(draws, values=True)
        _write_parts(archive, "images", shape, "|u1", (chunk.arrays()[0] for chunk in chunks))
        _write_array(archive, "labels", np.concatenate(chunks.labels))
        if draws.gives_probabilities:
            _write_array(archive, "probabilities", np.concatenate(chunks.probabilities))
        _write_array(archive, "class_names", np.array(draws.card.class_names))
        _write_privacy(archive, draws)


def write_dpimagebench(path: Path, draws: Draws) -> None:
    """Write `path/gen/gen.npz` for DPImageBench's `eval.py --exp_path path`.

    It holds `x` (float32, NCHW in [0, 1]), `y` (int64), and `privacy` as in `write_npz`.

    Raises:
        InputError: A class gets no image: the benchmark counts the distinct labels to get the number of classes.
    """
    _refuse_missing(draws, draws.counts)
    folder = path / "gen"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "gen.npz", "w") as archive:
        # Byte k is stored as k / 255; the benchmark multiplies by 255, truncates and gets k again.
        chunks = _Chunks(draws, values=False)
        images = (chunk.pixels.numpy().astype(np.float32) / np.float32(255) for chunk in chunks)
        _write_parts(archive, "x", (draws.num, *draws.card.image_shape), "<f4", images)
        labels = np.concatenate(chunks.labels)
        _refuse_missing(draws, torch.from_numpy(np.bincount(labels, minlength=len(draws.counts))))
        _write_array(archive, "y", labels)
        _write_privacy(archive, draws)


class _Chunks:
    """Iterates over the drawn images and collects their labels and probabilities.

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
            f"num={draws.num} gives no image of class {missing[0]}, and DPImageBench needs images of every class; "
            "give a larger num, and no labels"
        )


def _write_privacy(archive: zipfile.ZipFile, draws: Draws) -> None:
    _write_array(archive, "privacy", np.array(json.dumps(privacy_facts(draws.card))))


def _write_parts(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str, parts: Iterable[NDArray[Any]]
) -> None:
    """Write an array of this shape from its parts along the first axis."""
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
