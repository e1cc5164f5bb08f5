"""Differentially private image generators by Sinkhorn divergences.

Public names are loaded on first use, so that planning a run does not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp_sinkhorn.card import PrivacyCard
    from dp_sinkhorn.data.images import LabelledImages
    from dp_sinkhorn.data.sources import load_images
    from dp_sinkhorn.errors import InputError
    from dp_sinkhorn.privacy.plan import PrivacyPlan, make_plan
    from dp_sinkhorn.synthesizer import DPSinkhorn
    from dp_sinkhorn.verification import verify

_HOMES = {
    "DPSinkhorn": "synthesizer",
    "InputError": "errors",
    "LabelledImages": "data.images",
    "PrivacyCard": "card",
    "PrivacyPlan": "privacy.plan",
    "load_images": "data.sources",
    "make_plan": "privacy.plan",
    "verify": "verification",
}

__all__ = [
    "DPSinkhorn",
    "InputError",
    "LabelledImages",
    "PrivacyCard",
    "PrivacyPlan",
    "load_images",
    "make_plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
