"""Chooses the writer for an output path; outputs appear complete or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

from dp_sinkhorn.io.errors import InputError, did_you_mean
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.sampling.archive_writer import write_dpimagebench, write_npz
from dp_sinkhorn.sampling.draw import Draws
from dp_sinkhorn.sampling.folder_writer import write_folder
from dp_sinkhorn.sampling.grid_writer import write_grid
from dp_sinkhorn.sampling.parquet_writer import require_parquet, write_parquet

_WRITERS = {".npz": write_npz, ".parquet": write_parquet, ".png": write_grid, "": write_folder}
# Folders in the layout of other programs.
_LAYOUTS = {"dpimagebench": write_dpimagebench}


def check_output(path: AnyPath, layout: str | None = None, *, probabilities: bool = False) -> Callable[[Draws], None]:
    """Check an output path and return its writer, chosen by the ending. Writers take images as they are drawn.

    `.npz` is an archive (`write_npz`), `.parquet` a table (`write_parquet`), `.png` a picture (`write_grid`), and a
    path without an ending a folder (`write_folder`).

    Args:
        path: The output path; it must not exist yet, except as an empty folder.
        layout: None, or "dpimagebench" for the folder of `write_dpimagebench`.
        probabilities: Whether to write class probabilities; only `.npz` and `.parquet` can hold them.

    Raises:
        InputError: The ending or the layout is unknown, the two do not match, the path exists, its folder does not, a
            library is not installed, or the format cannot hold probabilities.
    """
    path = Path(path)
    if layout is None:
        if path.suffix not in _WRITERS:
            raise InputError(f"{path} ends in {path.suffix!r}; give an .npz or .parquet file, a .png grid, or a folder")
        write, is_folder = _WRITERS[path.suffix], path.suffix == ""
    else:
        if layout not in _LAYOUTS:
            meant = did_you_mean(layout, _LAYOUTS)
            raise InputError(f"layout {layout!r} is not known; give {' or '.join(_LAYOUTS)}{meant}")
        # A folder's name may hold a dot, as in mnist_eps0.2.
        if path.suffix and path.suffix in _WRITERS:
            raise InputError(f"layout {layout} is a folder, and {path} ends in {path.suffix!r}; give a folder")
        write, is_folder = _LAYOUTS[layout], True
    if probabilities and write not in (write_npz, write_parquet):
        raise InputError(f"{path} cannot hold probabilities; give an .npz or .parquet file")
    check_free(path, is_folder=is_folder)
    if write is write_parquet:
        require_parquet()
    return lambda draws: _write_atomically(path, draws, write)


def check_free(path: Path, *, is_folder: bool = False) -> None:
    """Check that the path is free and its parent folder exists. An empty folder counts as free for a folder.

    Raises:
        InputError: The path is taken, or its parent folder does not exist.
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


def _write_atomically(path: Path, draws: Draws, write: Callable[[Path, Draws], None]) -> None:
    """Write beside the path, then rename, so that a full disk or an interruption leaves nothing behind."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    _remove(partial)  # left by a killed process
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
