"""Data sets by name, from the local cache of Hugging Face's `datasets`. Nothing is downloaded, no code is run."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.table_columns import load_table
from dp_sinkhorn.io.errors import InputError, one_line
from dp_sinkhorn.io.extras import require

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_ROWS = 64


class HubTable:
    """One split of a cached data set, as a `Table`."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset.with_format("arrow")
        self.name = name
        self.schema = dataset.features.arrow_schema

    def batches(self, columns: Sequence[str]) -> Iterator[Any]:
        """See `Table`."""
        for table in self.dataset.iter(_ROWS):
            yield from table.to_batches()


def is_hub_name(source: object) -> bool:
    """Whether a source has the form `name` or `owner/name`."""
    return isinstance(source, str) and _NAME.fullmatch(source) is not None


def hub_has_test_split(name: str) -> bool:
    """Whether the data set has a split named test.

    Raises:
        InputError: See `load_hub`.
    """
    return "test" in _splits(name)


def load_hub(name: str, split: Literal["train", "test"], image_side: int | None) -> LabelledImages:
    """Load one split of a data set that is in the cache of `datasets`.

    Raises:
        InputError: `datasets` is not installed, or the data set is not in its cache; see also `load_table`.
    """
    splits = _splits(name)
    for part in ("train", split):
        if part not in splits:
            raise InputError(f"{name} has no {part} split, only {one_line(', '.join(splits))}; give another data set")
    tables = {part: HubTable(splits[part], f"{name} ({part})") for part in dict.fromkeys(("train", split))}
    return load_table(tables[split], tables["train"], image_side)


def _splits(name: str) -> dict[str, Any]:
    datasets = require("datasets", "datasets", f"{name!r} does not exist here; a data set of that name")
    with _offline(datasets):
        try:
            return dict(datasets.load_dataset(name))
        # The library raises errors of many kinds, its own and those of its dependencies.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{name!r} does not exist and is not a data set in the cache of datasets ({one_line(reason)}); give a "
                f'file or folder, or fetch it first: python -c "import datasets; datasets.load_dataset({name!r})"'
            ) from None


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Keep the library from sending requests and printing; restore its settings afterwards."""
    constants: Any = require("huggingface_hub.constants", "datasets", "a data set name")
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    bars, logger = datasets.is_progress_bar_enabled(), logging.getLogger("datasets")
    level = logger.level
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
