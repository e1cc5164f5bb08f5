"""Standard errors of scores: how far another draw of the compared images would move them. And how to print them.

No error covers what happens before the comparison: the training of the classifiers, of the generator, and its noise.
"""

import math

import numpy as np


def share_error(count: float, total: int) -> float:
    """The standard error of a share, count of `total` >= 1 independent images; never 0.

    That is √(p(1 − p)/total) at p = (count + 2)/(total + 4), the adjusted share of Agresti and Coull (1998). At the
    share itself, 5 of 5 images would have no error.
    """
    share = (count + 2.0) / (total + 4.0)
    return math.sqrt(share * (1.0 - share) / total)


def mean_error(values: np.ndarray) -> float:
    """The standard error of the mean of independent values, (n,), n >= 1, about 0 to 1; never 0.

    Two values 0 and two values 1 are added before the variance is taken. For shares this is `share_error`.
    """
    return float(np.sqrt(np.append(values, (0.0, 0.0, 1.0, 1.0)).var() / len(values)))


def confusion_errors(confusion: np.ndarray) -> tuple[float, float, float]:
    """The standard errors of accuracy, balanced accuracy and macro-F1 over independent test images; never 0.

    By the delta method: the error of a score is that of the mean of its derivatives by the counts (for macro-F1 as in
    Takahashi et al. 2022). Four images are added before, two of them right, spread evenly over the classes among
    the test images. So the accuracy gets its `share_error`, and the balanced accuracy that of Price and Bonett (2004).

    Args:
        confusion: Counts, (k, k), k >= 2; rows: true class, columns: predicted class; one image at least.
    """
    present = np.flatnonzero(confusion.sum(axis=1))
    counts, total, classes = confusion[present], confusion.sum(), len(present)
    right = np.zeros(counts.shape)
    right[np.arange(classes), present] = 1.0
    added = 2.0 / classes * (right + (1.0 - right) / (len(confusion) - 1))
    shares = (counts + added) / (total + 4.0)
    hits, true, predicted = (shares * right).sum(axis=1), shares.sum(axis=1), shares.sum(axis=0)[present]
    f1 = 2.0 * hits / (true + predicted)
    by_row, by_column = (2.0 * right - f1[:, None]) / (true + predicted)[:, None], np.zeros(len(confusion))
    by_column[present] = f1 / (true + predicted)
    derivatives = (
        right - hits.sum(),
        (right - (hits / true)[:, None]) / (classes * true)[:, None],
        (by_row - by_column) / classes,
    )
    accuracy, balanced, macro_f1 = (math.sqrt((shares * d**2).sum() / total) for d in derivatives)
    return accuracy, balanced, macro_f1


def images_needed(error: float, count: int, largest: float) -> int:
    """How many images in place of `count` bring a standard error down to `largest`, rounded up to two digits."""
    needed = max(1.0, count * (error / largest) ** 2)
    unit = int(10 ** max(0, math.floor(math.log10(needed)) - 1))
    return unit * math.ceil(needed / unit)


def plus_minus(value: float, error: float) -> str:
    """A value and its standard error, such as "86.1 ± 0.4", with the same number of decimals.

    The error has one significant digit, or two up to 3.5, 0.35, ... (the rule of the Particle Data Group).
    """
    if error == 0.0:
        return f"{value:z,.4g} ± 0"
    leading, exponent = f"{error:.1e}".split("e")
    decimals = max(0, (float(leading) <= 3.5) - int(exponent))
    return f"{value:z,.{decimals}f} ± {error:.{decimals}f}"
