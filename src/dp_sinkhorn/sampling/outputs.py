"""Where drawn images go: the writer for a path, and files that appear whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.sampling.archive_writer import write_dpimagebench, write_npz
from dp_sinkhorn.sampling.draw import Draws
from dp_sinkhorn.sampling.folder_writer import write_folder
from dp_sinkhorn.sampling.grid_writer import write_grid
from dp_sinkhorn.sampling.parquet_writer import require_parquet, write_parquet

_WRITERS = {".npz": write_npz, ".parquet": write_parquet, ".png": write_grid, "": write_folder}
# Folders in the shape that another program expects.
_LAYOUTS = {"dpimagebench": write_dpimagebench}


def check_output(path: Path, layout: str | None = None, *, probabilities: bool = False) -> Callable[[Draws], None]:
    """The writer for an output path, chosen by its ending. It takes images as they are drawn.

    `.npz` holds `images` (uint8, NHW or NHWC), `labels` (int64), `class_names` and `privacy`; `.parquet` encoded images
    and labels, see `write_parquet`; `.png` is a grid with a row (or rows) a class; a path without an ending is a folder
    with one sub-folder of PNG files a class.

    Args:
        layout: "dpimagebench": the path is a folder instead, see `write_dpimagebench`. probabilities: Whether they are
            to be written.

    Raises:
        InputError: The ending or the layout is not known, the two do not fit, the path exists, its folder does not, or
            a library is missing, or there is no place for probabilities.
    """
    if layout is None:
        if path.suffix not in _WRITERS:
            raise InputError(f"{path} ends in {path.suffix!r}; give an .npz or .parquet file, a .png grid, or a folder")
        write, is_folder = _WRITERS[path.suffix], path.suffix == ""
    else:
        if layout not in _LAYOUTS:
            raise InputError(f"layout {layout!r} is not known; give {' or '.join(_LAYOUTS)}")
        # A folder's name may hold a point: mnist_eps0.2
        if path.suffix and path.suffix in _WRITERS:
            raise InputError(f"layout {layout} is a folder, and {path} ends in {path.suffix!r}; give a folder")
        write, is_folder = _LAYOUTS[layout], True
    if probabilities and write not in (write_npz, write_parquet):
        raise InputError(f"probabilities are written into an .npz or .parquet file; {path} is none, give one")
    check_free(path, is_folder=is_folder)
    if write is write_parquet:
        require_parquet()
    return lambda draws: _whole(path, draws, write)


def check_free(path: Path, *, is_folder: bool = False) -> None:
    """Nothing lies at this path, and the folder around it is there. For a folder, an empty one may be there too.

    Raises:
        InputError: It is not so.
    """
    try:
        free = is_folder and not path.is_symlink() and path.is_dir() and not any(path.iterdir())
        taken = (path.exists() or path.is_symlink()) and not free
        has_folder = path.parent.is_dir()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another path") from None
    if taken:
        raise InputError(f"{path} exists already; remove it or give another path")
    if not has_folder:
        raise InputError(f"folder {path.parent} does not exist; create it first")


def _whole(path: Path, draws: Draws, write: Callable[[Path, Draws], None]) -> None:
    """Write beside the path, then rename: a full disk or an interruption leaves nothing behind."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    _remove(partial)  # left behind by a process that was killed
    try:
        write(partial, draws)
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def _remove(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)
