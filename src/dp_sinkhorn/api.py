"""The same in Python: fit, sample, save, load, evaluate."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
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
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.method import make_plan as plan_of
from dp_sinkhorn.privacy.ledger import LEDGER
from dp_sinkhorn.privacy.plan import PrivacyPlan, budget_warnings
from dp_sinkhorn.release.card import NOT_PRIVATE, PrivacyCard
from dp_sinkhorn.release.verify import Verification
from dp_sinkhorn.release.verify import verify as verify_release
from dp_sinkhorn.release.weights import CARD, find_release, load_release, release_files
from dp_sinkhorn.sampling.draw import sample
from dp_sinkhorn.training.run_folder import check_new, facts_of, resume_hint, start
from dp_sinkhorn.training.run_folder import resume as resume_run


class DPSinkhorn:
    """A generator of labelled images, trained with differential privacy.

        model = DPSinkhorn(epsilon=10).fit(images, labels)
        images, labels = model.sample(1000)
        model.privacy_.epsilon

    Args:
        epsilon: Target ε: never more is spent, and within 1 % of it unless noise and steps are both given.
        delta: Target δ; well below 1/len(images).
        settings: Settings of a run by name, those of a stage as a mapping: {"class_moments": {"budget_share": 0.3}}.
        more: The same as keywords.

    Attributes:
        ledgers_: The ledger of each `fit` of this object, in order: what all of them spent counts together.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    def __init__(
        self, epsilon: float = 10.0, delta: float = 1e-5, settings: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        chosen = {**(settings or {}), **more}
        for name, value in (("epsilon", epsilon), ("delta", delta)):
            if value is None or f"target_{name}" in chosen:
                raise InputError(f"target_{name} is given as {name}=VALUE here, and always has one")
        self.settings = settings_of(None, {**chosen, "target_epsilon": epsilon, "target_delta": delta})
        self.ledgers_: tuple[bytes, ...] = ()
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
        """Train on private images. Each call is a run of its own and spends the whole ε again, unless it resumes one.

        What the card will warn of that is known before anything is spent is a Python warning.

        Args:
            images: (N, H, W) or (N, H, W, C); uint8, or floats in [0, 1]; 8 to 64 pixels a side, C 1 or 3.
            labels: (N,) classes, or None: unconditional.
            run_folder: Where the ledger and checkpoints are kept; default: a temporary folder, which is kept if the
                training is cut short (a note on the exception names it).
            resume: Continue the run in `run_folder`, which was cut short: with its settings, and the same data.

        Raises:
            InputError: The arrays or the settings do not fit, or there is no run to resume.
        """
        data = from_arrays(images, labels, image_side=self.settings.image_side)
        for text in self._told_before(len(data), resume=resume):
            warnings.warn(text, stacklevel=2)
        folder = Path(run_folder or tempfile.mkdtemp(prefix="dp-sinkhorn-"))
        another = (folder / LEDGER).exists() and not resume
        try:
            if not resume:
                check_new(folder)
                start(data, resolve(self.settings, facts_of("arrays", data)), folder, STAGES)
            elif run_folder is None:
                raise InputError("resume continues a run; give its run_folder")
            else:
                chosen = self.settings.model_dump(include=self.settings.model_fields_set)
                resume_run(data, folder, chosen, STAGES)
            self._load(folder)
        except BaseException as error:
            if (folder / LEDGER).exists() and not another:
                self._keep_ledger(folder)
                hint = resume_hint(folder)
                here = "" if hint.startswith("start") else "; here: give run_folder and resume=True"
                error.add_note(f"The run in {folder} has spent what its {LEDGER} says: {hint}{here}")
            elif run_folder is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self._keep_ledger(folder)
        if run_folder is None:
            shutil.rmtree(folder, ignore_errors=True)
        return self

    def _told_before(self, num_records: int, *, resume: bool) -> list[str]:
        """What is to be said before anything is spent: public facts."""
        told = list(budget_warnings(self.settings.target_epsilon, self.settings.target_delta, num_records))
        if self.settings.test_seed is not None:
            told.append(NOT_PRIVATE)
        if self.ledgers_ and not resume:
            told.append(
                f"this object has spent a budget in {len(self.ledgers_)} earlier run(s) (ledgers_); a new run begins, "
                "and all of them count together"
            )
        return told

    def _keep_ledger(self, folder: Path) -> None:
        """Remember what a run has spent; a resumed run's ledger takes the place of its shorter self."""
        ledger = (folder / LEDGER).read_bytes()
        self.ledgers_ = (*(kept for kept in self.ledgers_ if not ledger.startswith(kept)), ledger)

    @classmethod
    def load(cls, path: str | Path) -> "DPSinkhorn":
        """A model from a release folder or a finished run."""
        release = find_release(Path(path))
        card = PrivacyCard.from_file(release / CARD)
        if not card.private:
            warnings.warn(NOT_PRIVATE, stacklevel=2)
        return cls(card.epsilon, card.delta)._load(release)

    @property
    def privacy_(self) -> PrivacyCard:
        """The privacy card of the fitted model."""
        return self._model()[0]

    def sample(
        self,
        num: int,
        labels: Sequence[int] | None = None,
        seed: int = 0,
        balanced: bool = False,
        relabel: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Synthetic (images, labels): uint8 NHW or NHWC, and int64. See `dp_sinkhorn.sampling.draw.draw`."""
        return sample(*self._model(), num, labels, seed, balanced, relabel).arrays()

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
        self._fitted = load_release(release, STAGES)
        # In memory, so that `save` still works when a temporary run folder is gone.
        # Only what a release consists of, and the README written anew: whatever else lies there is not ours to copy.
        self._files = release_files(release, self._fitted[0], STAGES)
        return self

    def _model(self) -> tuple[PrivacyCard, Generator]:
        if self._fitted is None:
            raise InputError("the model is not fitted; call fit(images, labels) or DPSinkhorn.load(path) first")
        return self._fitted


def make_plan(
    num_records: int,
    epsilon: float = 10.0,
    delta: float = 1e-5,
    num_classes: int = 2,
    settings: Mapping[str, Any] | None = None,
) -> PrivacyPlan:
    """What a run would release, and with how much noise; reads no data.

    Args:
        num_records: N, treated as public. settings: As of `DPSinkhorn`.

    Raises:
        InputError: A value is out of range, or the target cannot be met.
    """
    chosen = {**(settings or {}), "target_epsilon": epsilon, "target_delta": delta}
    return plan_of(settings_of(None, chosen), num_records, num_classes)


def verify(path: Path, ledger: Path | None = None, public_key: Path | None = None) -> Verification:
    """Check a release (or a finished run, with its ledger); see `release.verify.verify`. Reads only.

    Args:
        path: A release folder, or a run folder that holds one. ledger: The run's; default: the one beside the release.
        public_key: PEM file with the Ed25519 key that must have signed the card.

    Raises:
        InputError: There is no readable card, it lists an unknown stage, or `ledger` or `public_key` cannot be read.
    """
    return verify_release(path, STAGES, ledger, public_key)
