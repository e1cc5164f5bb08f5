"""Folders of small image files, and what `train` prints about them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SUMMARY = ("images: ", "labels: ", "values: ", "files not read: ", "public: ")
"""Beginnings of the lines in which `train` says what it read."""


def write_images(folder: Path, counts: Mapping[str, int], side: int = 8, seed: int = 0) -> Path:
    """Write so many grey PNG files into each sub-folder ("." is the folder itself); equal seeds write equal files."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 256, (side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def without_summary(text: str) -> str:
    """What was printed, without the five lines on what was read."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(SUMMARY))
