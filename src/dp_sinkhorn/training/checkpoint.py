"""What a run needs to go on: one safetensors file, replaced atomically."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dp_sinkhorn.errors import InputError


def save_checkpoint(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write all tensors; at any moment `path` is either the old file or the new one, whole."""
    partial = path.with_suffix(".partial")
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors back.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        raise InputError(f"{path} is missing or damaged, so this run cannot go on; start a new run") from None


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors (Adam: two moments and a step count a parameter)."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{key}": value for index, slots in state.items() for key, value in slots.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
