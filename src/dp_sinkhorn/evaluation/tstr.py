"""Train on one set of images, test on another: how useful the first is in place of the second."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.errors import InputError
from dp_sinkhorn.evaluation.classifiers import CLASSIFIERS

MAX_SEED = 2**32 - 1  # NumPy's, and so scikit-learn's


@dataclass(frozen=True)
class Scores:
    """How well a classifier does on test images; fractions in [0, 1].

    Args:
        accuracy: Share of the images classified correctly.
        balanced_accuracy: Mean over the classes of the share classified correctly (recall).
        macro_f1: Mean over the classes of the harmonic mean of precision and recall.

    The classes are those present among the test images; one that is never predicted counts 0.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float

    @classmethod
    def of(cls, labels: np.ndarray, predictions: np.ndarray) -> "Scores":
        """The scores of predicted labels, both int64 of shape (n,), n >= 1."""
        # Named classes: scikit-learn would otherwise average over classes that are only predicted, or warn.
        over_classes = {"labels": np.unique(labels), "average": "macro", "zero_division": 0.0}
        return cls(
            accuracy=float(accuracy_score(labels, predictions)),
            balanced_accuracy=float(recall_score(labels, predictions, **over_classes)),
            macro_f1=float(f1_score(labels, predictions, **over_classes)),
        )


def score_classifiers(
    train: LabelledImages,
    test: LabelledImages,
    seed: int,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Scores]:
    """Train each classifier on all of `train`, and score it on all of `test`.

    Args:
        train: Images to learn from; early stopping holds out some of these, never any of `test`.
        test: Images of the same shape, with the same meaning of each label.
        seed: 0 to 2³² - 1. The same seed gives the same scores on one machine.
        progress: Called with the name of each classifier before it is trained.

    Returns:
        The scores by name: logreg, mlp, cnn.

    Raises:
        InputError: The seed is out of range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed={seed} is not in 0..{MAX_SEED}; give one that is")
    train_images, test_images = _images(train), _images(test)
    scores = {}
    for name, new_classifier in CLASSIFIERS.items():
        if progress is not None:
            progress(name)
        classifier = new_classifier(seed)
        classifier.fit(train_images, train.labels)
        scores[name] = Scores.of(test.labels.numpy(), classifier.predict(test_images).numpy())
    return scores


def _images(images: LabelledImages) -> Tensor:
    return images.floats().reshape(-1, *images.shape)
