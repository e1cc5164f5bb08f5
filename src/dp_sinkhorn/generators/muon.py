"""Muon: each update is the matrix with orthonormal rows or columns nearest to the momentum (Jordan et al. 2024).

All directions of a weight matrix move equally far, also those that few images determine, so fewer steps are needed than
with Adam (decision 13). `torch.optim.Muon` takes no convolutions, and multiplies in bfloat16, which processors without
it emulate at a twentieth of the speed.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The quintic whose iteration takes singular values from (0, 1] to about 1 in the fewest steps (Jordan et al. 2024).
_COEFFICIENTS, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_MOMENTUM = 0.95
# Root mean square of an update in units of the learning rate, about twice that of Adam (Liu et al. 2025, "Muon is
# scalable for LLM training", section 2.2). Chosen on MNIST: decision 13.
_UPDATE_RMS = 0.4


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more axes, as matrices of the first axis by all others."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: the loss has no value
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum: Tensor = state["momentum"]
                momentum.lerp_(weight.grad, 1.0 - _MOMENTUM)
                ahead = weight.grad.lerp(momentum, _MOMENTUM).flatten(1)  # Nesterov momentum
                size = _UPDATE_RMS * max(ahead.shape) ** 0.5
                weight.sub_(orthogonal(ahead).view(weight.shape), alpha=group["lr"] * size)


def orthogonal(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Approximate U Vᵀ of the singular value decomposition U S Vᵀ: singular values of 0.7 to 1.2, tiny ones smaller.

    The iterates X ← (a + b X Xᵀ + c (X Xᵀ)²) X share their singular vectors, so all but two of their products are of
    the Gram matrix of the short side. A matrix of zeros stays zero.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = wide @ wide.T
    scale = gram.trace().clamp(min=1e-30)  # makes the largest singular value at most 1
    gram = gram / scale
    a, b, c = _COEFFICIENTS
    product = identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    for _ in range(_ITERATIONS):
        factor = a * identity + (b * identity + c * gram) @ gram
        product, gram = factor @ product, factor @ gram @ factor
    found: Tensor = (product * scale.rsqrt()) @ wide
    return found if wide is matrix else found.T
