"""Conversion of cards, weights and ledgers of version 1 to the present names."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_CHARGES = {
    "first_moments": "principal_subspace.first_moments",
    "second_moment": "principal_subspace.second_moment",
    "classifier": "label_classifier",
}
_STEPS = {"record": "transport_steps", "batch": "batch_steps", "embedding": "embedding_steps"}
_PREFIXES = {"correction.": "class_moments.", "refinement.": "class_features.", "classifier.": "label_classifier."}


def as_version_2(facts: dict[str, Any]) -> dict[str, Any]:
    """Convert the facts of a card of version 1 to version 2; the card's own check finds what is damaged.

    Raises:
        ValueError: They are facts of version 2.
    """
    kept = dict(facts)
    if kept.keys() & {"mode", "stages"}:
        raise ValueError("mode and stages are not facts of version 1")
    mode = kept.pop("sanitize", None)
    steps = _STEPS.get(mode) if isinstance(mode, str) else None
    charges = kept.get("charges")
    names: set[object] = set()
    if isinstance(charges, list):
        renamed = [_charge(charge, steps) if isinstance(charge, dict) else charge for charge in charges]
        names = {charge.get("name") for charge in renamed if isinstance(charge, dict)}
        kept["charges"] = renamed
    dimensions, refined = kept.pop("corrected_dimensions", 0), kept.pop("refinement_steps", 0)
    tuned, weight = kept.pop("matching_steps", 0), kept.pop("kept_share", 0.0)
    classifier = kept.pop("classifier", None)
    stages: list[dict[str, Any]] = [{"name": "class_counts"}]
    if mode != "batch":
        stages.append({"name": "principal_subspace"})
    if dimensions:
        stages.append({"name": "class_moments", "corrected_dimensions": dimensions})
    if refined:
        stages.append({"name": "class_features", "refinement_steps": refined})
    if classifier is not None:
        stages.append({"name": "label_classifier", "classifier": classifier})
    if mode == "embedding" or tuned or "class_embedding" in names:
        stages.append({"name": "class_embedding"})
    if mode == "record":
        stages.append({"name": "transport_steps", "potential_iterations": None})
    if mode == "batch":
        stages.append({"name": "batch_steps"})
    if mode == "embedding" or tuned or weight:
        stages.append({"name": "embedding_steps", "fine_tuning_steps": tuned, "mixture_weight": weight})
    return {**kept, "mode": mode, "stages": stages}


def present_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of version 1 under their present names."""
    mixture = any(name.startswith("second.") for name in tensors)
    return {_tensor(name, mixture=mixture): tensor for name, tensor in tensors.items()}


def _charge(charge: dict[str, Any], steps: str | None) -> dict[str, Any]:
    name = charge.get("name")
    present = steps if name == "step" else _CHARGES.get(name, name) if isinstance(name, str) else name
    return {**charge, "name": present}


def present_charge_names(mode: str) -> dict[str, str]:
    """Names of the charges in a ledger of version 1: former → present."""
    return {**_CHARGES, "step": _STEPS[mode]}


def _tensor(name: str, *, mixture: bool) -> str:
    for former, present in _PREFIXES.items():
        if name.startswith(former):
            return present + name[len(former) :]
    if mixture:
        first, _, rest = name.partition(".")
        return {"first": rest, "second": f"embedding_steps.{rest}"}.get(first, name)
    return name
