"""Scikit-learn's bundled 8x8 digits: 1797 public images for a first run without a download."""

from sklearn.datasets import load_digits

from dp_sinkhorn.data.found import Arrays, Found, Part, Split

NUM_TRAIN = 1437  # the first 80 %, in the bundled order; the last 360 are the test split


def digits() -> Found:
    """Both splits; grey levels are 0..16."""
    bundle = load_digits()
    images, labels = bundle.images, bundle.target
    parts: dict[Split, Part] = {
        "train": Part(Arrays(images[:NUM_TRAIN], "digits", (0.0, 16.0)), labels[:NUM_TRAIN]),
        "test": Part(Arrays(images[NUM_TRAIN:], "digits", (0.0, 16.0)), labels[NUM_TRAIN:]),
    }
    return Found("scikit-learn's digits", parts, "the bundle", tuple("0123456789"), places=True)
