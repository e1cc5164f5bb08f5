"""Parquet files of encoded images, read in small batches of rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from dp_sinkhorn.data.files import reading
from dp_sinkhorn.data.folder import check_inside
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.table_columns import load_table
from dp_sinkhorn.io.errors import InputError, one_line
from dp_sinkhorn.io.extras import require

# Encoded images hardly compress further: a column chunk or file beyond this ratio is no set of images.
MAX_EXPANSION, FREE_BYTES = 200, 2**26
_MAX_ROWS, _BATCH_BYTES, _BUFFER_BYTES = 64, 2**28, 2**20
_REMEDY, _BOMB = "write it again with datasets or pyarrow", " (a decompression bomb?)"


class ParquetTable:
    """The rows of Parquet files with one schema, in the order of `paths`.

    Raises:
        InputError: pyarrow is not installed, or a file is not Parquet, has another schema than the first, or promises
            to expand too much.
    """

    def __init__(self, paths: Sequence[Path], name: Path) -> None:
        self.paths = paths
        self.name = str(name)
        self.schema: Any = self._check()

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """See `Table`."""
        for path in self.paths:
            unpacked, most = 0, max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size)
            with reading(path, _REMEDY), _open(path) as file:
                for index in range(file.metadata.num_row_groups):
                    rows = _rows_at_a_time(file.metadata.row_group(index), columns)
                    # With one thread and no read-ahead, a whole row group is never in memory.
                    for batch in file.iter_batches(rows, [index], list(columns), use_threads=False):
                        unpacked += batch.nbytes
                        if unpacked > most:
                            raise InputError(f"{one_line(path)} unpacks to more than {most} bytes{_BOMB}; {_REMEDY}")
                        yield batch

    def _check(self) -> Any:
        schema = None
        for path in self.paths:
            if not path.is_file():  # a pipe would block
                raise InputError(f"{one_line(path)} is not a file that can be read; remove it")
            with reading(path, _REMEDY), _open(path) as file:
                _check_expansion(file.metadata, path)
                if schema is not None and not schema.equals(file.schema_arrow):
                    raise InputError(f"{one_line(path)} differs in columns from {one_line(self.paths[0])}; {_REMEDY}")
                schema = schema or file.schema_arrow
        return schema


def parquet_files(folder: Path, split: Literal["train", "test"]) -> list[Path]:
    """List the files of one split: `train*.parquet` or `test*.parquet` in the folder, or in its sub-folder `data`.

    Raises:
        InputError: A file is a link that leads out of the folder.
    """
    with reading(folder, "check its permissions"):
        for place in (folder, folder / "data"):
            found = sorted(path for path in place.glob(f"{split}*.parquet") if path.stem[len(split) :][:1] in _ENDS)
            if found:
                for path in (place, *found):
                    check_inside(path, folder)
                return found
    return []


def is_parquet_folder(folder: Path) -> bool:
    """Whether the folder holds the training split as Parquet files."""
    return bool(parquet_files(folder, "train"))


def load_parquet(path: Path, split: Literal["train", "test"], image_side: int | None) -> LabelledImages:
    """Load one split of a folder (see `parquet_files`), or a single file, which is the training split.

    Raises:
        InputError: See `load_table`.
    """
    require("pyarrow.parquet", "datasets", "Parquet")
    if path.is_file():
        table = ParquetTable([path], path)
        return load_table(table, table, image_side)
    train = ParquetTable(parquet_files(path, "train"), path / "train")
    table = train if split == "train" else ParquetTable(parquet_files(path, "test"), path / "test")
    return load_table(table, train, image_side)


_ENDS = ("", "-", "_", ".")  # train.parquet, train-00000-of-00001.parquet; not trained.parquet


def _open(path: Path) -> Any:
    parquet = require("pyarrow.parquet", "datasets", "Parquet")
    return parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _rows_at_a_time(group: Any, columns: Sequence[str]) -> int:
    """Rows per batch, few enough to bound memory even if every row holds the largest value of its row group."""
    chunks = map(group.column, range(group.num_columns))
    largest = max((chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns), default=0)
    return max(1, min(_MAX_ROWS, _BATCH_BYTES // max(1, largest)))


def _check_expansion(metadata: Any, path: Path) -> None:
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        for column in map(group.column, range(group.num_columns)):
            if column.total_uncompressed_size > max(FREE_BYTES, MAX_EXPANSION * column.total_compressed_size):
                raise InputError(
                    f"{one_line(path)} promises {column.total_uncompressed_size} bytes in "
                    f"{column.total_compressed_size}{_BOMB}; {_REMEDY}"
                )
