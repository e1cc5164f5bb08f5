"""The Python interface: fit, sample, save, load and evaluate; plan a run and verify a release."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dp_sinkhorn.data.given import Given
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.sources import dataset_of, from_arrays
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
from dp_sinkhorn.settings import Settings
from dp_sinkhorn.training.run_folder import check_new, facts_of, resume_hint, start, stored_config
from dp_sinkhorn.training.run_folder import resume as resume_run


class DPSinkhorn:
    """A generator of labelled images, trained with differential privacy.

        model = DPSinkhorn(epsilon=10).fit(images, labels)
        images, labels = model.sample(1000)
        model.privacy_.epsilon

    Args:
        epsilon: Target ε. A run never spends more, and at most 1 % less unless noise and steps are both given.
        delta: Target δ; choose it well below 1/len(images).
        settings: Settings of a run by name, those of a stage as a mapping: {"class_moments": {"budget_share": 0.3}}.
        more: Settings as keywords.

    Attributes:
        ledgers_: The ledger of each `fit` of this object, in order; their budgets add up.

    Raises:
        InputError: A setting is unknown or out of range.
    """

    def __init__(
        self, epsilon: float = 10.0, delta: float = 1e-5, settings: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        chosen = {**(settings or {}), **more}
        for name, value in (("epsilon", epsilon), ("delta", delta)):
            if value is None or f"target_{name}" in chosen:
                raise InputError(f"target_{name} and {name}=None are not accepted here; give {name}=VALUE")
        self.settings = settings_of(None, {**chosen, "target_epsilon": epsilon, "target_delta": delta})
        self.ledgers_: tuple[bytes, ...] = ()
        self._fitted: tuple[PrivacyCard, Generator] | None = None
        self._files: dict[str, bytes] = {}

    def fit(
        self,
        images: Given | PathLike[str],
        labels: Given | None = None,
        run_folder: str | Path | None = None,
        *,
        classes: Sequence[int | str] | None = None,
        resume: bool = False,
    ) -> "DPSinkhorn":
        """Train on private images. Each call is a new run and spends the whole ε again, unless it resumes a run.

        Problems that are known before anything is spent are Python warnings.

        Args:
            images: An array or a tensor: (N, H, W), (N, H, W, C) or (N, C, H, W); uint8, or floats in [0, 1]; 8 to 128
                pixels a side, C 1 or 3. Or a list of such images, of Pillow images or of paths, or a column of pandas
                or `datasets`. Or a path or name of a data set with its labels, as on the command line. The setting
                `reading` says how others are read, for example settings={"reading": {"side": 32, "fit": "crop"}}.
            labels: (N,) classes, as a list, an array or a column; or None: unconditional, or those of the data set.
            run_folder: Folder of the ledger and the checkpoints; default: a temporary folder, which is kept if the run
                is interrupted (a note on the exception names it).
            classes: All classes, in order; they are public. Default: those that the type of the labels declares
                (categories of pandas, `ClassLabel` of `datasets`), or else the labels that occur.
            resume: Continue the interrupted run in `run_folder` with its settings and the same data.

        Raises:
            InputError: Images, labels or settings do not fit, class names look private, or there is no run to resume.
        """
        settings = self.settings
        if classes is not None:
            declared = {"classes": tuple(str(name) for name in classes)}
            settings = settings_of(None, _given(settings, declared))
        if resume and run_folder is None:
            raise InputError("resume continues a run; give its run_folder")
        how = stored_config(Path(run_folder), STAGES).settings.reading if resume and run_folder else settings.reading
        found = dataset_of(images, labels, how=how)
        found.check_names()
        data = found.load("train")
        for text in (*found.summary(all_splits=False).attention, *self._warnings_before(len(data), resume=resume)):
            warnings.warn(text, stacklevel=2)
        folder = Path(run_folder or tempfile.mkdtemp(prefix="dp-sinkhorn-"))
        another = (folder / LEDGER).exists() and not resume
        try:
            if not resume:
                check_new(folder)
                start(data, resolve(settings, facts_of("arrays", data)), folder, STAGES)
            else:
                resume_run(data, folder, _given(settings), STAGES)
            self._load(folder)
        except BaseException as error:
            if (folder / LEDGER).exists() and not another:
                self._keep_ledger(folder)
                hint = resume_hint(folder)
                here = "" if hint.startswith("start") else "; in Python: give run_folder and resume=True"
                error.add_note(f"The run in {folder} has spent the budget in its {LEDGER}: {hint}{here}")
            elif run_folder is None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self._keep_ledger(folder)
        if run_folder is None:
            shutil.rmtree(folder, ignore_errors=True)
        return self

    def _warnings_before(self, num_records: int, *, resume: bool) -> list[str]:
        """Warnings that are known before anything is spent, from public facts."""
        found = list(budget_warnings(self.settings.target_epsilon, self.settings.target_delta, num_records))
        if self.settings.test_seed is not None:
            found.append(NOT_PRIVATE)
        if self.ledgers_ and not resume:
            found.append(
                f"this object has spent a budget in {len(self.ledgers_)} earlier run(s) (ledgers_); this fit is a new "
                "run, and their budgets add up"
            )
        return found

    def _keep_ledger(self, folder: Path) -> None:
        """Keep the ledger of a run; that of a resumed run replaces its shorter former version."""
        ledger = (folder / LEDGER).read_bytes()
        self.ledgers_ = (*(kept for kept in self.ledgers_ if not ledger.startswith(kept)), ledger)

    @classmethod
    def load(cls, path: str | Path) -> "DPSinkhorn":
        """Load a model from a release folder or a finished run.

        Raises:
            InputError: There is no release, or it is damaged or unknown to this version.
        """
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
        labels: Sequence[int | str] | None = None,
        seed: int = 0,
        balanced: bool = False,
        relabel: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw synthetic (images, labels): uint8 NHW or NHWC, and int64. See `dp_sinkhorn.sampling.draw.draw`."""
        return sample(*self._model(), num, labels, seed, balanced, relabel).arrays()

    def save(self, path: str | Path) -> None:
        """Write the release (weights, card, README) to a new folder atomically.

        Raises:
            InputError: The folder exists or cannot be written, or the model is not fitted.
        """
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

        With an extractor (`dp_sinkhorn.evaluation.EfficientNetLite0()`, or a `ModuleExtractor` of your own), also
        measure distances of features. The result is computed from private records, and ε does not cover it.
        """
        names, (_, height, width) = self.privacy_.class_names, self.privacy_.image_shape
        # Read as in training; images of other sizes are resized to a square.
        how = self.privacy_.reading
        how = how.model_copy(update={"side": height if height == width else how.side, "classes": None})
        real_train, real_test = (from_arrays(*part, class_names=names, how=how) for part in (train, test))
        synthetic: LabelledImages = sample(*self._model(), len(real_train) if num is None else num, seed=seed)
        return evaluate(synthetic, real_train, real_test, seed=seed, extractor=extractor)

    def _load(self, path: Path) -> "DPSinkhorn":
        release = find_release(path)
        self._fitted = load_release(release, STAGES)
        # In memory, so that `save` still works when a temporary run folder is gone. Only the files of a release, with
        # a new README: other files in the folder are not copied.
        self._files = release_files(release, self._fitted[0], STAGES)
        return self

    def _model(self) -> tuple[PrivacyCard, Generator]:
        if self._fitted is None:
            raise InputError("the model is not fitted; call fit(images, labels) or DPSinkhorn.load(path) first")
        return self._fitted


def _given(settings: Settings, reading: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings that a user gave, and some of `reading` in their place."""
    given = settings.model_dump(exclude_unset=True)
    return {**given, "reading": {**given.get("reading", {}), **(reading or {})}}


def make_plan(
    num_records: int,
    epsilon: float = 10.0,
    delta: float = 1e-5,
    num_classes: int = 2,
    settings: Mapping[str, Any] | None = None,
) -> PrivacyPlan:
    """Plan a run: what it would release, and with how much noise. Reads no data.

    Args:
        num_records: N, treated as public. settings: As for `DPSinkhorn`.

    Raises:
        InputError: A value is out of range, or the target cannot be met.
    """
    chosen = {**(settings or {}), "target_epsilon": epsilon, "target_delta": delta}
    return plan_of(settings_of(None, chosen), num_records, num_classes)


def verify(path: Path, ledger: Path | None = None, public_key: Path | None = None) -> Verification:
    """Check a release (or a finished run, with its ledger); see `release.verify.verify`. Reads only.

    Args:
        path: A release folder, or a run folder that holds one. ledger: The run's ledger; default: that of the run
            folder.
        public_key: PEM file with the Ed25519 key that must have signed the card.

    Raises:
        InputError: There is no readable card, it lists an unknown stage, or `ledger` or `public_key` cannot be read.
    """
    return verify_release(path, STAGES, ledger, public_key)
