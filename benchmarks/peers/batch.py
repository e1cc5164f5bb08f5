"""The paper's own DP-Sinkhorn (whole batches sanitised) at the cost of ours: settings for `dp-sinkhorn train`."""

from collections.abc import Mapping
from types import MappingProxyType

RECIPE = "mnist_paper"
_MNIST_SIZE = 784
_STEPS, _QUERIES, _LEAST_QUERIES = 1000, 256, 16

# Found on MNIST (docs/results.md): 2,000 steps in 312 s, within a point of the run of 4.5 million queries.
_CONSTANTS = MappingProxyType(
    {
        "noise_multiplier": "none",
        "learning_rate": "1e-3",
        "schedule": "cosine",
        "warmup": "0.05",
        "average_decay": "0.99",
        "class_counts.prior": "histogram",
    }
)


def settings(size: int) -> Mapping[str, str]:
    """What to set on top of `RECIPE` for images of `size` numbers each.

    Steps are as many as the default method makes of 200 images. A step costs about queries · size, so larger images
    get fewer queries a step: about the same time. The noise is calibrated to the number of queries, so that a step's
    ratio of signal to noise hardly depends on it.
    """
    queries = max(_LEAST_QUERIES, min(_QUERIES, _QUERIES * _MNIST_SIZE // size))
    return {**_CONSTANTS, "num_steps": str(_STEPS), "batch_steps.queries_per_step": str(queries)}
