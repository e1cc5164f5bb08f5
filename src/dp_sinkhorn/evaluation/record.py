"""The result of an evaluation: one record, written as `evaluation.json`."""

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from dp_sinkhorn.evaluation.frechet import Frechet
from dp_sinkhorn.evaluation.gain import Gain
from dp_sinkhorn.evaluation.kernel import Kernel
from dp_sinkhorn.evaluation.memorisation import Memorisation
from dp_sinkhorn.evaluation.prdc import Prdc
from dp_sinkhorn.evaluation.tstr import Scores

VERSION: Final = 2
"""Of the format of `evaluation.json`. Files of version 1 name none."""

COMPUTED_FROM = {
    "tstr": ("test",),
    "trtr": ("train", "test"),
    "gain": ("train", "test"),
    "frechet": ("test",),
    "kernel": ("test",),
    "prdc": ("test",),
    "class_shares": ("test",),
    "memorisation": ("train", "test"),
}
"""The splits of real records that each part is computed from. ε covers no part; those from "train" are private."""


@dataclass(frozen=True)
class ByClass:
    """A number for each class: of the synthetic and of the real test images."""

    synthetic: tuple[float, ...]
    real: tuple[float, ...]


@dataclass(frozen=True)
class Shares(ByClass):
    """Share of each class among the images, in [0, 1].

    Args:
        standard_errors: How far another draw of the images would move them.
    """

    standard_errors: ByClass


@dataclass(frozen=True)
class Evaluation:
    """The comparison of synthetic images with real ones.

    Args:
        version: Of the format.
        tstr: Trained on synthetic, tested on real; by classifier: logreg, mlp, cnn, boosting. Empty with one class.
        trtr: Trained on real, tested on real: the ceiling; same keys.
        gain: What synthetic images add to a small real set; None with one class.
        frechet: Fréchet distance of features, or None without an extractor or with too few images.
        kernel: Kernel distance of features, or None.
        prdc: Precision, recall, density and coverage of features, or None.
        class_shares: Shares of the classes among the synthetic and the real test images.
        class_names: One name a class: the classes of all three kinds of images.
        memorisation: Comparison with the training records, if requested. Private.
        computed_from: For each part, the real splits that it is computed from.
        num_synthetic: Number of synthetic training images.
        num_real_train: Number of real training images of the ceiling, at most `num_synthetic`.
        num_test: Number of real test images.
        seed: Seed of the classifiers and of all random subsets.
        seconds: Wall-clock time of the evaluation.
        warnings: Warnings, a line each.
    """

    version: Literal[2]
    tstr: dict[str, Scores]
    trtr: dict[str, Scores]
    gain: Gain | None
    frechet: Frechet | None
    kernel: Kernel | None
    prdc: Prdc | None
    class_shares: Shares
    class_names: tuple[str, ...]
    memorisation: Memorisation | None
    computed_from: dict[str, tuple[str, ...]]
    num_synthetic: int
    num_real_train: int
    num_test: int
    seed: int
    seconds: float
    warnings: tuple[str, ...]

    def to_json_dict(self) -> dict[str, Any]:
        """Every field by its name, as plain dictionaries, strings and numbers; shares in [0, 1]."""
        return asdict(self)
