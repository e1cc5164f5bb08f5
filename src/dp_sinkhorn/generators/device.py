"""The device and the precision of a run."""

from typing import Literal

import torch

from dp_sinkhorn.io.errors import InputError


def find_device(name: str) -> str:
    """The named device, after a test computation; "auto" is a GPU if there is one.

    Raises:
        InputError: The device is unknown or cannot compute in float64.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, dtype=torch.float64, device=name).item()  # a "meta" device holds no numbers
    except (RuntimeError, AssertionError, TypeError):
        raise InputError(f"device={name!r} cannot be used here (float64 is needed); give cpu or auto") from None
    return name


def find_precision(device: str) -> Literal["float32", "bfloat16"]:
    """The fastest precision of the generator's passes: bfloat16 on processors that compute in it, else float32."""
    if torch.device(device).type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bfloat16" if has else "float32"
