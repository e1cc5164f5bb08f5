"""Weights of the classes, and the classes that noise hides, from released counts."""

from jaxtyping import Bool, Float64
from torch import Tensor

# Below this part of the largest class a class is small. Chosen on a long-tailed MNIST: decision 12.
_SMALL = 0.1


def class_weights(counts: Float64[Tensor, " K"]) -> Float64[Tensor, " K"]:
    """Weight of each class in a step: √(its records), scaled so that the largest class has 1.

    The noise on a class is proportional to 1/(its records). With equal weights the noise of rare classes would
    dominate; with weights proportional to the records rare classes would be ignored.
    """
    return (counts / counts.max()).sqrt()


def hidden_classes(unseen: Bool[Tensor, " K"], counts: Float64[Tensor, " K"]) -> Bool[Tensor, " K"]:
    """The hidden classes: those of `unseen` that are small, if all other classes together hold most of the records.

    Else no class is hidden, because there is nothing else for it to follow.

    Args:
        unseen: True for classes whose signal is below the noise. counts: Estimated number of records of each class.
    """
    hidden = unseen & (counts < _SMALL * counts.max())
    seen = float(counts[~hidden].sum() / counts.sum())
    return hidden & (seen > 0.5)
