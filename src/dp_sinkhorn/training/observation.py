"""What a step shows to an observer: released tensors and functions of them, nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Float64, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Observation:
    """The public side of one step, as an adversary who watches the whole run would see it.

    Args:
        images: The generated images that the records met, one row each, in the coordinates in which the step works.
        labels: Their classes. potential: f of each image (0 where the step has none).
        released: What the mechanism gave out, one row an image: noise included, not yet divided by anything.
    """

    images: Float[Tensor, "n d"]
    labels: Int64[Tensor, " n"]
    potential: Float64[Tensor, " n"]
    released: Float64[Tensor, "n d"]


Observer = Callable[[Observation], None]


def unobserved(observation: Observation) -> None:
    """Nobody watches."""
