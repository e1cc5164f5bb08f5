"""Differentially private image generators by entropic optimal transport.

Public names are imported on first use, so that planning a run does not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp_sinkhorn.api import DPSinkhorn, make_plan, total_budget, verify
    from dp_sinkhorn.data.images import LabelledImages
    from dp_sinkhorn.data.sources import load_images
    from dp_sinkhorn.generators.base import Generator
    from dp_sinkhorn.generators.build import register_generator
    from dp_sinkhorn.io.errors import InputError
    from dp_sinkhorn.privacy.plan import PrivacyPlan
    from dp_sinkhorn.release.card import PrivacyCard
    from dp_sinkhorn.training.progress import TrainingProgress
    from dp_sinkhorn.transport.costs import L1, AutogradCost, Cost, MixedCost, SquaredEuclidean
    from dp_sinkhorn.transport.divergence import (
        ConvergenceWarning,
        entropic_ot,
        semi_debiased_loss,
        sinkhorn_divergence,
    )
    from dp_sinkhorn.transport.sinkhorn import Sinkhorn, Transport

_HOMES = {
    "AutogradCost": "transport.costs",
    "ConvergenceWarning": "transport.divergence",
    "Cost": "transport.costs",
    "DPSinkhorn": "api",
    "Generator": "generators.base",
    "InputError": "io.errors",
    "L1": "transport.costs",
    "LabelledImages": "data.images",
    "MixedCost": "transport.costs",
    "PrivacyCard": "release.card",
    "PrivacyPlan": "privacy.plan",
    "Sinkhorn": "transport.sinkhorn",
    "SquaredEuclidean": "transport.costs",
    "TrainingProgress": "training.progress",
    "Transport": "transport.sinkhorn",
    "entropic_ot": "transport.divergence",
    "load_images": "data.sources",
    "make_plan": "api",
    "register_generator": "generators.build",
    "semi_debiased_loss": "transport.divergence",
    "sinkhorn_divergence": "transport.divergence",
    "total_budget": "api",
    "verify": "api",
}

__all__ = [
    "L1",
    "AutogradCost",
    "ConvergenceWarning",
    "Cost",
    "DPSinkhorn",
    "Generator",
    "InputError",
    "LabelledImages",
    "MixedCost",
    "PrivacyCard",
    "PrivacyPlan",
    "Sinkhorn",
    "SquaredEuclidean",
    "TrainingProgress",
    "Transport",
    "entropic_ot",
    "load_images",
    "make_plan",
    "register_generator",
    "semi_debiased_loss",
    "sinkhorn_divergence",
    "total_budget",
    "verify",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
