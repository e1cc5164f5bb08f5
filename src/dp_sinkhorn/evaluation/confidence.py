"""Calibration: whether a classifier that is 90 % confident is right in 90 % of cases."""

import numpy as np

from dp_sinkhorn.evaluation.uncertainty import mean_error

NUM_BINS = 15


def calibration_error(confidences: np.ndarray, correct: np.ndarray, num_bins: int = NUM_BINS) -> tuple[float, float]:
    """Expected calibration error of the predicted class (Guo et al. 2017, eq. 3), in [0, 1], and its standard error.

    The standard error takes it as known in which bins the classifier is too sure. It does not cover the bias.

    Args:
        confidences: Probability that the classifier gives its prediction, (n,), in [0, 1].
        correct: Whether the prediction is right, (n,), bool.
        num_bins: Bins of equal width, each open below: (0, 1/15], ...
    """
    bins = np.clip(np.ceil(confidences * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=confidences - correct, minlength=num_bins)
    value = float(np.abs(gaps).sum() / len(confidences))
    return value, mean_error(np.sign(gaps)[bins] * (confidences - correct))
