"""Scikit-learn's bundled 8x8 digits: 1797 public images for a first run without a download."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

NUM_TRAIN = 1437  # the first 80 %, in the bundled order; the last 360 are the test split


def read_digits(split: Literal["train", "test"]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return one split as uint8 images (N, 8, 8), grey level v in 0..16 stored as round(255·v/16), and labels (N,)."""
    bundle = load_digits()
    rows = slice(None, NUM_TRAIN) if split == "train" else slice(NUM_TRAIN, None)
    images = np.rint(bundle.images[rows] * (255 / 16)).astype(np.uint8)
    return images, bundle.target[rows].astype(np.int64)
