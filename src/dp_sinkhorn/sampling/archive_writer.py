"""An `.npz` archive that is written image by image: `numpy.savez_compressed` would hold them all."""

import json
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from dp_sinkhorn.sampling.draw import Draws
from dp_sinkhorn.sampling.privacy_facts import privacy_facts

# The earliest that a zip archive knows. With the time of day in it, equal draws would be different files.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def write_npz(path: Path, draws: Draws) -> None:
    """`images` (uint8, NHW or NHWC), `labels` (int64), `class_names` and `privacy`, as `numpy.load` reads them.

    `privacy` is the JSON text of `privacy_facts`: a file of a run that is not private says so.
    """
    channels, height, width = draws.card.image_shape
    shape = (draws.num, height, width) + ((channels,) if channels > 1 else ())
    with zipfile.ZipFile(path, "w") as archive:
        with _member(archive, "images") as stream:
            _header(stream, shape, np.dtype(np.uint8))
            for chunk in draws:
                stream.write(chunk.arrays()[0].tobytes())
        with _member(archive, "labels") as stream:
            _header(stream, (draws.num,), np.dtype("<i8"))
            for labels in draws.labels():
                stream.write(labels.numpy().astype("<i8").tobytes())
        with _member(archive, "class_names") as stream:
            np.lib.format.write_array(stream, np.array(draws.card.class_names), allow_pickle=False)
        with _member(archive, "privacy") as stream:
            facts = json.dumps(privacy_facts(draws.card))
            np.lib.format.write_array(stream, np.array(facts), allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    member = zipfile.ZipInfo(f"{name}.npy", _NO_TIME)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = 0o600 << 16
    return archive.open(member, "w", force_zip64=True)


def _header(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
