"""A run's public facts for TensorBoard."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.extras import require
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.training.progress import TrainingProgress

_MAKE_ROOM = "make room, then train --resume"


class TensorBoard:
    """A `Callback` that writes scalars (epsilon, field_rms, steps_per_second) and the snapshots.

    Everything except the times is post-processing of released tensors. An event file holds the time of each entry,
    which ε does not cover.

    Args:
        folder: Folder of the event files, outside of the run's folder. run: The run's folder.

    Raises:
        InputError: TensorBoard is missing, or the folder cannot be written.
    """

    def __init__(self, folder: AnyPath, run: AnyPath) -> None:
        folder, run = Path(folder), Path(run)
        self._module = require("torch.utils.tensorboard", "tensorboard", "--tensorboard")
        self._folder = folder
        self._writer: Any = None
        self._last: tuple[int, float] | None = None
        if folder.resolve().is_relative_to(run.resolve()):
            raise InputError(f"--tensorboard {folder} lies in the run's folder {run}; give a folder elsewhere")
        # Try to write before the run begins, and leave nothing: a refused run must make no folder.
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with _writing(folder, "give a folder that can be written"), tempfile.TemporaryFile(dir=existing):
            pass

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, progress: TrainingProgress) -> None:
        """Write the scalars, and the snapshot if one was taken; nothing in fine-tuning."""
        if progress.field_rms is None:
            return
        step, grid, now = progress.step, progress.picture, time.monotonic()
        scalars = {"epsilon": progress.epsilon, "field_rms": progress.field_rms}
        if self._last is not None:
            before, then = self._last
            scalars["steps_per_second"] = (step - before) / max(now - then, 1e-9)
        self._last = step, now
        with _writing(self._folder, _MAKE_ROOM):
            for name, value in scalars.items():
                self._open().add_scalar(name, value, step)
            if grid is not None:
                layout = "HW" if grid.mode == "L" else "HWC"
                self._open().add_image("samples", np.asarray(grid), step, dataformats=layout)

    def _open(self) -> Any:
        self._writer = self._writer or self._module.SummaryWriter(str(self._folder))
        return self._writer


@contextmanager
def _writing(folder: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write --tensorboard {folder}: {error.strerror or error}; {remedy}") from None
