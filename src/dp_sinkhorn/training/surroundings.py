"""What stands around the trained generator: class moments, class features and a classifier, released before the steps.

And the correction, the refinement and the rejection that are made of them when the steps are done: post-processing.
"""

from jaxtyping import Float16
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.linear_classifier import Classifier
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CorrectedGenerator
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.plan import CLASS_FEATURES, CLASS_MOMENTS, CLASSIFIER
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release.weights import CLASSIFIER_WEIGHT, CORRECTION, REFINEMENT_FIELDS
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages.class_features import refinement_fields, release_class_features
from dp_sinkhorn.stages.class_moments import correction_tensors, release_class_moments
from dp_sinkhorn.stages.label_classifier import balanced_classifier, record_features, release_classifier
from dp_sinkhorn.stages.principal_subspace import ReleasedStatistics
from dp_sinkhorn.stages.variance_penalty import held_under_rejection


def needed_features(data: LabelledImages, config: RunConfig) -> Float16[Tensor, "N D"] | None:
    """The records' wavelet features, if the run makes anything of them."""
    rules, plan = config.embedded, config.privacy
    needed = (
        (rules is not None and rules.wavelet_weight > 0.0) or CLASS_FEATURES in plan.once or plan.classifier is not None
    )
    return record_features(data) if needed else None


def release_surroundings(
    data: LabelledImages,
    features: Float16[Tensor, "N D"] | None,
    statistics: ReleasedStatistics,
    config: RunConfig,
    ledger: Ledger,
    random: CryptoRandom,
) -> dict[str, Tensor]:
    """Charge and release what the plan has of class moments, class features and the classifier, by name.

    Args:
        features: Of the records, by `needed_features`.
    """
    found: dict[str, Tensor] = {}
    if CLASS_MOMENTS in config.privacy.once:
        found[CLASS_MOMENTS] = release_class_moments(data, statistics, config, ledger, random)
    trained = config.privacy.classifier
    if features is not None and CLASS_FEATURES in config.privacy.once:
        found[CLASS_FEATURES] = release_class_features(features, data.labels, config, ledger, random)
    if features is not None and trained is not None:
        found[CLASSIFIER] = release_classifier(features, data.labels, config, trained, ledger, random)
    return found


def surroundings(
    generator: Generator, released: dict[str, Tensor], statistics: ReleasedStatistics, config: RunConfig
) -> dict[str, Tensor]:
    """What a release holds beside the generator's weights, made of what `release_surroundings` gave."""
    tensors: dict[str, Tensor] = {}
    correction: dict[str, Tensor] = {}
    corrected = generator
    if CLASS_MOMENTS in released:
        correction = correction_tensors(generator, released[CLASS_MOMENTS], statistics, config)
        corrected = CorrectedGenerator(generator, **correction).to(config.device)
    if CLASS_FEATURES in released:
        features = released[CLASS_FEATURES]
        tensors[REFINEMENT_FIELDS] = refinement_fields(corrected, features, statistics.class_counts, config)
    if CLASSIFIER in released:
        seed = config.settings.seed
        weight = balanced_classifier(released[CLASSIFIER], corrected, seed).float()
        tensors[CLASSIFIER_WEIGHT] = weight
        if correction and config.privacy.tiny_budget:
            classifier = Classifier(generator.shape, weight.to(config.device))
            moments = released[CLASS_MOMENTS]
            correction = held_under_rejection(generator, correction, classifier, moments, statistics, seed)
    return tensors | {f"{CORRECTION}.{name}": tensor for name, tensor in correction.items()}
