"""The same in Python: fit, sample, save, load, evaluate."""

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.sources import from_arrays
from dp_sinkhorn.evaluation.features import FeatureExtractor
from dp_sinkhorn.evaluation.record import Evaluation
from dp_sinkhorn.evaluation.suite import evaluate
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.io.atomic import whole_folder
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.ledger import LEDGER
from dp_sinkhorn.privacy.plan import budget_warnings
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import CARD, find_release, load_release, release_files
from dp_sinkhorn.sampling.draw import sample
from dp_sinkhorn.settings import make_settings
from dp_sinkhorn.training.run_folder import resume as resume_run
from dp_sinkhorn.training.run_folder import start, way_on


class DPSinkhorn:
    """A generator of labelled images, trained with differential privacy.

        model = DPSinkhorn(epsilon=10).fit(images, labels)
        images, labels = model.sample(1000)
        model.privacy_.epsilon

    Args:
        epsilon: Wanted ε: never more is spent, and within 1 % of it unless noise and steps are both given.
        delta: Wanted δ; well below 1/len(images).
        settings: Any setting of a run by name, as `--set` on the command line.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    def __init__(self, epsilon: float = 10.0, delta: float = 1e-5, **settings: Any) -> None:
        for name, value in (("epsilon", epsilon), ("delta", delta)):
            if value is None or f"target_{name}" in settings:
                raise InputError(f"target_{name} is given as {name}=VALUE here, and always has one")
        self.settings = make_settings(None, {**settings, "target_epsilon": epsilon, "target_delta": delta})
        self._fitted: tuple[PrivacyCard, Generator] | None = None
        self._files: dict[str, bytes] = {}

    def fit(
        self,
        images: ArrayLike,
        labels: ArrayLike | None = None,
        run_folder: str | Path | None = None,
        *,
        resume: bool = False,
    ) -> "DPSinkhorn":
        """Train on private images. Each call spends the whole ε again, unless it goes on with a run.

        What the card will warn of that is known before anything is spent is a Python warning.

        Args:
            images: (N, H, W) or (N, H, W, C); uint8, or floats in [0, 1]; 8 to 64 pixels a side, C 1 or 3.
            labels: (N,) classes, or None: unconditional.
            run_folder: Where the ledger and checkpoints are kept; default: a temporary folder, which is kept if the
                training is cut short (a note on the exception names it).
            resume: Go on with the run in `run_folder`, which was cut short: with its settings, and the same data.

        Raises:
            InputError: The arrays or the settings do not fit, or there is no run to go on with.
        """
        data = from_arrays(images, labels, image_side=self.settings.image_side)
        for text in budget_warnings(self.settings.target_epsilon, self.settings.target_delta, len(data)):
            warnings.warn(text, stacklevel=2)
        folder = Path(run_folder or tempfile.mkdtemp(prefix="dp-sinkhorn-"))
        another = (folder / LEDGER).exists() and not resume
        try:
            if not resume:
                start(data, "arrays", self.settings, folder)
            elif run_folder is None:
                raise InputError("resume goes on with a run; give its run_folder")
            else:
                chosen = self.settings.model_dump(include=self.settings.model_fields_set)
                resume_run(data, folder, chosen)
            self._load(folder)
        except BaseException as error:
            if (folder / LEDGER).exists() and not another:
                here = "" if (way := way_on(folder)).startswith("start") else "; here: give run_folder and resume=True"
                error.add_note(f"The run in {folder} has spent what its {LEDGER} says: {way}{here}")
            elif run_folder is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if run_folder is None:
            shutil.rmtree(folder, ignore_errors=True)
        return self

    @classmethod
    def load(cls, path: str | Path) -> "DPSinkhorn":
        """A model from a release folder or a finished run."""
        release = find_release(Path(path))
        card = PrivacyCard.from_file(release / CARD)
        return cls(card.epsilon, card.delta)._load(release)

    @property
    def privacy_(self) -> PrivacyCard:
        """The privacy card of the fitted model."""
        return self._model()[0]

    def sample(
        self, num: int, labels: Sequence[int] | None = None, seed: int = 0, balanced: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Synthetic (images, labels): uint8 NHW or NHWC, and int64. See `dp_sinkhorn.sampling.draw.draw`."""
        return sample(*self._model(), num, labels, seed, balanced).arrays()

    def save(self, path: str | Path) -> None:
        """Write the release (weights, card, README) to a new folder, which appears whole or not at all."""
        self._model()
        folder = Path(path)
        if folder.exists():
            raise InputError(f"{path} exists already; give a new folder")
        try:
            with whole_folder(folder) as partial:
                for name, content in self._files.items():
                    (partial / name).write_bytes(content)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; give a folder that can be written") from None

    def evaluate(
        self,
        train: tuple[ArrayLike, ArrayLike],
        test: tuple[ArrayLike, ArrayLike],
        num: int | None = None,
        seed: int = 0,
        extractor: FeatureExtractor | None = None,
    ) -> Evaluation:
        """Train classifiers on `num` synthetic images (default: as many as real ones) and test them on real ones.

        With an extractor (`dp_sinkhorn.evaluation.EfficientNetLite0()`, or a `ModuleExtractor` of your own),
        distances of features too. The result is computed from private records and is not covered by ε.
        """
        names, (_, height, width) = self.privacy_.class_names, self.privacy_.image_shape
        # As when it was trained: images of other sizes are resized where that can be.
        side = height if height == width else None
        real_train, real_test = (from_arrays(*part, class_names=names, image_side=side) for part in (train, test))
        synthetic: LabelledImages = sample(*self._model(), len(real_train) if num is None else num, seed=seed)
        return evaluate(synthetic, real_train, real_test, seed=seed, extractor=extractor)

    def _load(self, path: Path) -> "DPSinkhorn":
        release = find_release(path)
        self._fitted = load_release(release)
        # In memory, so that `save` still works when a temporary run folder is gone.
        # Only what a release consists of, and the README written anew: whatever else lies there is not ours to copy.
        self._files = release_files(release, self._fitted[0])
        return self

    def _model(self) -> tuple[PrivacyCard, Generator]:
        if self._fitted is None:
            raise InputError("the model is not fitted; call fit(images, labels) or DPSinkhorn.load(path) first")
        return self._fitted
