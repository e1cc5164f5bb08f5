"""Optimisers of the generator's weights with a state to save, the learning-rate schedule, and weight averaging."""

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.muon import Muon

# Adam's averages of the gradient and of its square.
_BETAS = (0.9, 0.99)


@runtime_checkable
class Updater(Protocol):
    """The part of an optimiser that a step uses."""

    def zero_grad(self) -> None:
        """Clear the gradients."""
        ...

    def step(self) -> object:
        """Update the weights by their gradients."""
        ...


class Optimiser:
    """Several optimisers, each for some of the weights, as one `Updater`."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next steps."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for part in self._parts:
            part.zero_grad()

    def step(self) -> None:
        """Update the weights by their gradients."""
        for part in self._parts:
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors; empty before the first step."""
        return {
            f"{place}.{index}.{key}": value
            for place, part in enumerate(self._parts)
            for index, slots in part.state_dict()["state"].items()
            for key, value in slots.items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned.

        Raises:
            KeyError, ValueError: The tensors belong to other optimisers or weights.
        """
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._parts]
        for name, value in tensors.items():
            place, index, key = name.split(".")
            if int(place) not in range(len(states)):
                raise KeyError(name)
            states[int(place)].setdefault(int(index), {})[key] = value
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def make_optimiser(rate: float, *networks: nn.Module) -> Optimiser:
    """Muon for the weights between layers of each network, Adam for all others."""
    split = [split_weights(network) for network in networks]
    hidden, others = ([weight for parts in split for weight in parts[place]] for place in range(2))
    return Optimiser(Muon(hidden, rate), _adam(others, rate))


def adam(generator: Generator, rate: float) -> Optimiser:
    """Adam for all weights, as in the paper."""
    return Optimiser(_adam(list(generator.parameters()), rate))


def learning_rate_share(step: int, num_steps: int, warmup: float, schedule: Literal["cosine", "constant"]) -> float:
    """Factor of the learning rate: linear warm-up over the share `warmup` of the steps; "cosine" then falls to 0."""
    rise = min(1.0, (step + 1) / max(1.0, warmup * num_steps))
    return rise if schedule == "constant" else rise * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))


@torch.no_grad()
def update_average(average: nn.Module, generator: nn.Module, decay: float, step: int) -> None:
    """Update the moving average of weights and running statistics; it is shorter in the first steps."""
    weight = 1.0 - min(decay, (step + 1) / (step + 10))
    state, current = average.state_dict(), generator.state_dict()
    floating = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([state[name] for name in floating], [current[name] for name in floating], weight)
    for name in state.keys() - set(floating):
        state[name].copy_(current[name])


def split_weights(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split into (matrices and convolutions except the last, which makes the pixels; all other weights)."""
    embeddings = {layer.weight for layer in network.modules() if isinstance(layer, nn.Embedding)}
    matrices = [weight for weight in network.parameters() if weight.ndim > 1 and weight not in embeddings]
    hidden = set(matrices[:-1])
    return matrices[:-1], [weight for weight in network.parameters() if weight not in hidden]


def _adam(weights: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr=rate, betas=_BETAS)
