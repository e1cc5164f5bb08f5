"""Scikit-learn's bundled 8x8 digits: 1797 public images for a first run without a download."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dp_sinkhorn.data.found import Arrays, Found, Part, Split

NUM_TRAIN = 1437  # the first 80 %, in the bundled order; the last 360 are the test split


def digits() -> Found:
    """Both splits; grey levels are 0..16."""
    images, labels = bundle()
    parts: dict[Split, Part] = {
        "train": Part(Arrays(images[:NUM_TRAIN], "digits", (0.0, 16.0)), labels[:NUM_TRAIN]),
        "test": Part(Arrays(images[NUM_TRAIN:], "digits", (0.0, 16.0)), labels[NUM_TRAIN:]),
    }
    return Found("scikit-learn's digits", parts, "the bundle", tuple("0123456789"), places=True)


def bundle() -> tuple[NDArray[Any], NDArray[Any]]:
    """Images (N, 8, 8) and labels (N,), as `sklearn.datasets.load_digits` returns them.

    They come from scikit-learn's file where it lies, since importing scikit-learn takes as long as importing PyTorch.
    """
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            rows = np.loadtxt(path, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target
