"""How much each class counts, and which ones noise hides: of released counts, whatever the steps learn from."""

from jaxtyping import Bool, Float64
from torch import Tensor

# What is a small class, in units of the largest. Chosen on a long-tailed MNIST: decision 12.
_SMALL = 0.1


def class_weights(counts: Float64[Tensor, " K"]) -> Float64[Tensor, " K"]:
    """How much each class's pull counts: √(its records), the largest class 1.

    Its noise is as 1/(its records): equal weights let the noise of rare classes drown all others, weights as the
    records leave rare classes out.
    """
    return (counts / counts.max()).sqrt()


def hidden_classes(unseen: Bool[Tensor, " K"], counts: Float64[Tensor, " K"]) -> Bool[Tensor, " K"]:
    """Of the classes that noise leaves unseen those that are small beside the largest, if the others are most of all.

    None if they are not: there is nothing then that a hidden class could be led to.
    """
    hidden = unseen & (counts < _SMALL * counts.max())
    seen = float(counts[~hidden].sum() / counts.sum())
    return hidden & (seen > 0.5)
