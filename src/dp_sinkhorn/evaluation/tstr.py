"""Train classifiers on one set of images and test them on another: TSTR (synthetic, real) and TRTR (real, real)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.evaluation.classifiers import CLASSIFIERS
from dp_sinkhorn.evaluation.confidence import calibration_error
from dp_sinkhorn.evaluation.uncertainty import confusion_errors, share_error
from dp_sinkhorn.io.errors import InputError

MAX_SEED = 2**32 - 1  # NumPy's, and so scikit-learn's


@dataclass(frozen=True)
class ScoreErrors:
    """Standard errors of `Scores`, over the draw of the test images; None where there is no score."""

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    recall: tuple[float | None, ...]
    calibration_error: float


@dataclass(frozen=True)
class Scores:
    """Scores of a classifier on test images; shares in [0, 1].

    Args:
        accuracy: Share of the images classified correctly.
        balanced_accuracy: Mean over the classes of the share classified correctly (recall).
        macro_f1: Mean over the classes of the harmonic mean of precision and recall.
        recall: Share classified correctly, by class; None for a class without test images.
        confusion: Numbers of images; rows: true class, columns: predicted class.
        calibration_error: Expected calibration error of the predicted class.
        standard_errors: How far another draw of test images would move each score.

    The means are over the classes among the test images; a class that is never predicted counts 0.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    recall: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration_error: float
    standard_errors: ScoreErrors

    @classmethod
    def of(cls, labels: np.ndarray, predictions: np.ndarray, confidences: np.ndarray, num_classes: int) -> "Scores":
        """The scores of predicted labels, int64 of shape (n,), n >= 1, and their probabilities."""
        confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(confusion, (labels, predictions), 1)
        right, true, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
        present = true > 0
        f1 = 2.0 * right[present] / (true + predicted)[present]
        by_class = list(zip(right.tolist(), true.tolist(), strict=True))
        calibration, calibration_spread = calibration_error(confidences, labels == predictions)
        accuracy_spread, balanced_spread, f1_spread = confusion_errors(confusion)
        return cls(
            accuracy=float(right.sum() / true.sum()),
            balanced_accuracy=float((right[present] / true[present]).mean()),
            macro_f1=float(f1.mean()),
            recall=tuple(hits / count if count else None for hits, count in by_class),
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            calibration_error=calibration,
            standard_errors=ScoreErrors(
                accuracy=accuracy_spread,
                balanced_accuracy=balanced_spread,
                macro_f1=f1_spread,
                recall=tuple(share_error(hits, count) if count else None for hits, count in by_class),
                calibration_error=calibration_spread,
            ),
        )


def score_classifiers(
    train: LabelledImages,
    test: LabelledImages,
    seed: int,
    progress: Callable[[str], None] | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, Scores]:
    """Train classifiers on all of `train` and score them on all of `test`.

    Args:
        train: Training images; early stopping holds out some of these, never any of `test`.
        test: Images of the same shape, with the same meaning of each label.
        seed: 0 to 2³² - 1. The same seed gives the same scores on one machine.
        progress: Called with the name of each classifier before it is trained.
        names: Which classifiers; None: all.

    Returns:
        The scores by name: logreg, mlp, cnn, boosting.

    Raises:
        InputError: The seed is out of range.
    """
    check_seed(seed)
    train_images, test_images = _images(train), _images(test)
    num_classes = max(train.num_classes, test.num_classes)
    scores = {}
    for name in CLASSIFIERS if names is None else names:
        if progress is not None:
            progress(name)
        classifier = CLASSIFIERS[name](seed)
        classifier.fit(train_images, train.labels)
        labels, confidences = classifier.predict_with_confidence(test_images)
        scores[name] = Scores.of(test.labels.numpy(), labels.numpy(), confidences.double().numpy(), num_classes)
    return scores


def check_seed(seed: int) -> None:
    """Refuse a seed that scikit-learn does not accept.

    Raises:
        InputError: The seed is out of range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed={seed} is not in 0..{MAX_SEED}; give one that is")


def _images(images: LabelledImages) -> Tensor:
    return images.floats().reshape(-1, *images.shape)
