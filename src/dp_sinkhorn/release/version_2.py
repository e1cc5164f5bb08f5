"""Releases of version 2, whose generator has layers around it: the facts on their cards, and the layers."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from dp_sinkhorn.estimators.linear_classifier import LinearClassifier
from dp_sinkhorn.features.cosine import num_bands
from dp_sinkhorn.features.scattering import num_features
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import empty_generator
from dp_sinkhorn.generators.earlier import CorrectedGenerator, MixtureGenerator, RefinedGenerator, RejectingGenerator
from dp_sinkhorn.generators.spec import MAX_DIMENSIONS, GeneratorSpec
from dp_sinkhorn.generators.tuned import AFFINE_TENSORS, AffineLayer
from dp_sinkhorn.privacy.accounting import MAX_COUNT

# Stage → its facts that describe layers.
_FACTS = {
    "class_moments": ("corrected_dimensions",),
    "class_features": ("refinement_steps",),
    "label_classifier": ("classifier",),
    "embedding_steps": ("fine_tuning_steps", "mixture_weight"),
    "variance_penalty": (),
}


_OBJECTIVE = (
    "to have the mean embedding of each class, released once with noise (DP-MERF, "
    "[Harder et al. 2021](https://arxiv.org/abs/2002.11603))"
)


class EarlierLayers(BaseModel):
    """The layers around the generator of a release of version 1 or 2; defaults mean that there is none.

    Args:
        corrected_dimensions: Dimensions of the affine map's subspace. refinement_steps: Steps that move each image.
        classifier: Kind of the classifier that rejects images.
        fine_tuning_steps: Steps towards an embedding, after the steps that see records.
        mixture_weight: Share of the images that come from the generator before those steps, in [0, 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    corrected_dimensions: Annotated[int, Field(ge=0, le=MAX_DIMENSIONS)] = 0
    refinement_steps: Annotated[int, Field(ge=0, le=20)] = 0
    classifier: Literal["linear, on scattering features"] | None = None
    fine_tuning_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    mixture_weight: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    def shapes(
        self, spec: GeneratorSpec, image_shape: tuple[int, int, int], classes: int
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of the layers' tensors, by name."""
        pixels, size, found = math.prod(image_shape), self.corrected_dimensions, {}
        if size:
            sizes = (pixels, size), (classes, size, size), (classes, num_bands(image_shape[0])), (classes, pixels)
            found = dict(zip(AFFINE_TENSORS, (*sizes, sizes[1]), strict=True))
            found = {f"class_moments.{name}": shape for name, shape in found.items()}
        if self.refinement_steps:
            found["class_features.fields"] = (self.refinement_steps, classes, num_features(image_shape))
        if self.classifier:
            found["label_classifier.weight"] = (classes, num_features(image_shape))
        if self.mixture_weight:
            kept = empty_generator(spec, image_shape, classes).state_dict()
            found |= {f"embedding_steps.{name}": tuple(tensor.shape) for name, tensor in kept.items()}
        return found

    def wrap(self, generator: Generator, tensors: Mapping[str, Tensor]) -> Generator:
        """The generator with its layers."""
        if self.mixture_weight:
            kept = copy.deepcopy(generator)
            kept.load_state_dict({name: tensors[f"embedding_steps.{name}"] for name in kept.state_dict()})
            generator = MixtureGenerator(generator, kept, self.mixture_weight)
        if self.corrected_dimensions:
            parts = (tensors[f"class_moments.{name}"] for name in AFFINE_TENSORS)
            generator = CorrectedGenerator(generator, AffineLayer(generator.shape, *parts))
        if self.classifier:
            classifier = LinearClassifier(generator.shape, tensors["label_classifier.weight"])
            generator = RejectingGenerator(generator, classifier)
        if self.refinement_steps:
            generator = RefinedGenerator(generator, tensors["class_features.fields"])
        return generator

    def problems(self, queries_per_step: int) -> Iterator[str]:
        """Each way in which the facts contradict each other, as a sentence."""
        if self.fine_tuning_steps and not queries_per_step:
            yield (
                f"the card claims {self.fine_tuning_steps} fine-tuning steps on an embedding after steps of "
                f"{queries_per_step} queries"
            )
        if self.mixture_weight and not self.fine_tuning_steps:
            yield (
                f"the card says that {100 * self.mixture_weight:.3g} % of the images come from before the steps on an "
                "embedding, but claims no such steps"
            )

    @property
    def objective(self) -> str:
        """See `Stage.objective`."""
        return _OBJECTIVE if self.fine_tuning_steps else ""

    def describe(self) -> dict[str, str]:
        """Rows of the model card: fact → value."""
        rows = {}
        if self.fine_tuning_steps:
            rows["fine-tuning steps"] = f"{self.fine_tuning_steps}, none of which sees a record"
        if self.mixture_weight:
            rows["images from before fine-tuning"] = f"{100 * self.mixture_weight:.3g} %"
        if self.corrected_dimensions:
            rows["correction"] = (
                f"affine, by the released moments of each class, in {self.corrected_dimensions} dimensions"
            )
        if self.classifier:
            rows["classifier"] = f"{self.classifier}: rejects images that it assigns to another class"
        if self.refinement_steps:
            rows["refinement"] = f"{self.refinement_steps} steps towards the released mean features of each class"
        return rows


def as_version_3(facts: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert the facts of a card of version 2 to (facts of version 3, facts of the layers).

    The card's own check finds what is damaged.
    """
    layers: dict[str, Any] = {}
    stages = facts.get("stages")
    if not isinstance(stages, list):
        return facts, {}
    kept = []
    for entry in stages:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in _FACTS:
            kept.append(entry)
            continue
        layers |= {key: entry[key] for key in _FACTS[name] if key in entry}
        entry = {key: value for key, value in entry.items() if key not in _FACTS[name]}
        # These stages saw no record; in version 3 the stage "fine_tuning" does their work.
        succeeded = name == "variance_penalty" or (name == "embedding_steps" and facts.get("mode") != "embedding")
        if not succeeded or len(entry) > 1:
            kept.append(entry)
    return {**facts, "stages": kept}, layers
