"""The Python interface: fit, sample, save, load and evaluate; plan a run and verify a release."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_html_repr

from dp_sinkhorn.data.class_names import are_integers
from dp_sinkhorn.data.given import Given
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.sources import dataset_of, from_arrays
from dp_sinkhorn.evaluation.features import FeatureExtractor
from dp_sinkhorn.evaluation.record import Evaluation
from dp_sinkhorn.evaluation.suite import evaluate
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.io.atomic import whole_folder
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.io.paths import AnyPath
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.method import make_plan as plan_of
from dp_sinkhorn.privacy.ledger import LEDGER
from dp_sinkhorn.privacy.plan import PrivacyPlan, budget_warnings
from dp_sinkhorn.release.card import NOT_PRIVATE, PrivacyCard
from dp_sinkhorn.release.verify import Verification
from dp_sinkhorn.release.verify import verify as verify_release
from dp_sinkhorn.release.weights import CARD, find_release, load_release, release_files
from dp_sinkhorn.sampling.draw import sample
from dp_sinkhorn.sampling.html_summary import summary_html
from dp_sinkhorn.settings import RunConfig, Settings
from dp_sinkhorn.training.progress import Callback, LiveView
from dp_sinkhorn.training.run_folder import check_new, facts_of, resume_hint, start, stored_config
from dp_sinkhorn.training.run_folder import resume as resume_run
from dp_sinkhorn.training.speed import check_memory
from dp_sinkhorn.training.total_budget import TotalBudget
from dp_sinkhorn.training.total_budget import total_budget as total_budget_of


class UnfittedError(InputError, NotFittedError):  # type: ignore[misc]
    """The model is not fitted."""


class DPSinkhorn(BaseEstimator):  # type: ignore[misc]
    """A generator of labelled images, trained with differential privacy: an estimator of scikit-learn.

        model = DPSinkhorn(epsilon=10).fit(images, labels)
        images, labels = model.sample(1000)
        model.privacy_.epsilon

    As scikit-learn wants it, parameters are only stored here. `fit` checks them before it spends anything.

    Args:
        epsilon: Target ε. A run never spends more, and at most 1 % less unless noise and steps are both given.
        delta: Target δ; choose it well below 1/len(images).
        settings: Settings of a run by name, those of a stage as a mapping: {"class_moments": {"budget_share": 0.3}}.
        verbose: 1: `fit`, which takes minutes, shows its progress on stderr as the command line does. 0: it is silent.

    Attributes:
        privacy_: The card of the release: every fact that the privacy claim rests on.
        classes_: (K,) the classes, in the order of the card: integers, if all are, or else names. `sample` returns
            these integers, or the places of these names.
        ledgers_: The ledger of each `fit` of this object, in order; their budgets add up. A clone does not know them.
    """

    ledgers_: tuple[bytes, ...] = ()
    # Folder of the run in which the last `fit` was interrupted, and whether it is temporary.
    _interrupted: tuple[Path, bool] | None = None

    def __init__(
        self, epsilon: float = 10.0, delta: float = 1e-5, settings: Mapping[str, Any] | None = None, verbose: int = 1
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.settings = settings
        self.verbose = verbose

    def fit(
        self,
        images: Given | AnyPath,
        labels: Given | None = None,
        run_folder: AnyPath | None = None,
        *,
        classes: Sequence[int | str] | None = None,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> "DPSinkhorn":
        """Train on private images. Each call is a new run and spends the whole ε again, unless it resumes a run.

        Problems that are known before anything is spent are Python warnings. The logger "dp_sinkhorn" says where the
        run lies, and names each stage (level INFO).

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
            resume: Continue an interrupted run with its settings and the same data: that in `run_folder`; default: the
                one in which the last `fit` of this object was interrupted.
            callbacks: Each is called with a `TrainingProgress` after each saved block of steps (about a hundred in a
                run), and after each step of fine-tuning. If one raises, the run stops and can be resumed.

        Raises:
            InputError: Parameters, images, labels or settings do not fit, class names look private, or there is no run
                to resume.
        """
        settings = self._checked(classes, callbacks)
        folder, temporary = None if run_folder is None else Path(run_folder), run_folder is None
        how = settings.reading
        if resume:
            if folder is None:
                if self._interrupted is None:
                    raise InputError("resume=True continues a run, and this object has none; give its run_folder")
                folder, temporary = self._interrupted
            how = stored_config(folder, STAGES).settings.reading
        found = dataset_of(images, labels, how=how)
        found.check_names()
        data = found.load("train")
        config = None if resume else resolve(settings, facts_of("arrays", data))
        known = self._warnings_before(settings, len(data), resume=resume)
        for text in (*found.summary(all_splits=False).attention, *known):
            warnings.warn(text, stacklevel=2)
        folder = folder or Path(tempfile.mkdtemp(prefix="dp-sinkhorn-"))
        another = (folder / LEDGER).exists() and not resume
        try:
            self._train(data, settings, config, folder, callbacks)
            self._load(folder)
        except BaseException as error:
            if (folder / LEDGER).exists() and not another:
                self._keep_ledger(folder)
                hint = resume_hint(folder)
                if hint.startswith("continue"):
                    self._interrupted = folder, temporary
                    way = "fit(images, labels, resume=True), in another object with this run_folder"
                    hint = hint.replace("train --resume", way)
                error.add_note(f"The run in {folder} has spent the budget in its {LEDGER}: {hint}")
            elif temporary and not resume:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self._keep_ledger(folder)
        self._interrupted = None
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)
        return self

    def _train(
        self,
        data: LabelledImages,
        settings: Settings,
        config: RunConfig | None,
        folder: Path,
        callbacks: Sequence[Callback],
    ) -> None:
        """Train a new run of this configuration, or without one the run in the folder."""
        if config is not None:
            check_new(folder)
            check_memory(config, STAGES)
        with LiveView(Console(stderr=True)) if self.verbose else nullcontext() as view:
            told: list[Callback] = [*callbacks] if view is None else [view, *callbacks]
            if config is None:
                resume_run(data, folder, _given(settings), STAGES, told)
            else:
                start(data, config, folder, STAGES, told)

    def _checked(self, classes: Sequence[int | str] | None, callbacks: Sequence[Callback]) -> Settings:
        """The settings of a run with these parameters; `callbacks` are checked only."""
        if not (self.settings is None or isinstance(self.settings, Mapping)):
            raise InputError(f"settings={self.settings!r} is no mapping; give for example {{'num_steps': 500}}")
        if not (isinstance(callbacks, list | tuple) and all(map(callable, callbacks))):
            raise InputError(f"callbacks={callbacks!r} is no list of functions; give for example [print]")
        chosen = dict(self.settings or {})
        numbers: dict[str, Any] = {"epsilon": self.epsilon, "delta": self.delta}
        for name, value in numbers.items():
            if f"target_{name}" in chosen:
                raise InputError(f"target_{name} is no setting in Python; give {name}=NUMBER")
            if not isinstance(value, Real):
                raise InputError(f"{name}={value!r} is no number; give {name}=NUMBER")
        settings = settings_of(None, {**chosen, "target_epsilon": self.epsilon, "target_delta": self.delta})
        if classes is None:
            return settings
        return settings_of(None, _given(settings, {"classes": tuple(str(name) for name in classes)}))

    def _warnings_before(self, settings: Settings, num_records: int, *, resume: bool) -> list[str]:
        """Warnings that are known before anything is spent, from public facts."""
        found = list(budget_warnings(settings.target_epsilon, settings.target_delta, num_records))
        if settings.test_seed is not None:
            found.append(NOT_PRIVATE)
        if self.ledgers_ and not resume:
            found.append(
                f"this object has spent a budget in {len(self.ledgers_)} earlier run(s) (ledgers_); this fit is a new "
                "run, and their budgets add up"
                + ("; resume=True continues the interrupted one instead" if self._interrupted else "")
            )
        return found

    def _keep_ledger(self, folder: Path) -> None:
        """Keep the ledger of a run; that of a resumed run replaces its shorter former version."""
        ledger = (folder / LEDGER).read_bytes()
        self.ledgers_ = (*(kept for kept in self.ledgers_ if not ledger.startswith(kept)), ledger)

    @classmethod
    def load(cls, path: AnyPath) -> "DPSinkhorn":
        """Load a model from a release folder or a finished run.

        Raises:
            InputError: There is no release, or it is damaged or unknown to this version.
        """
        release = find_release(Path(path))
        card = PrivacyCard.from_file(release / CARD)
        if not card.private:
            warnings.warn(NOT_PRIVATE, stacklevel=2)
        return cls(card.epsilon, card.delta)._load(release)

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

    def save(self, path: AnyPath) -> None:
        """Write the release (weights, card, README) to a new folder atomically.

        Raises:
            InputError: The folder exists or cannot be written, or the model is not fitted.
        """
        self._model()
        folder = Path(path)
        if folder.exists():
            raise InputError(f"{folder} exists already; give a new folder")
        try:
            with whole_folder(folder) as partial:
                for name, content in self._files.items():
                    (partial / name).write_bytes(content)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror}; give a folder that can be written") from None

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
        card = self._model()[0]
        for name, part in (("train", train), ("test", test)):
            if not (isinstance(part, tuple | list) and len(part) == 2):
                raise InputError(f"{name} is no pair; give (images, labels)")
        names, (_, height, width) = card.class_names, card.image_shape
        # Read as in training; images of other sizes are resized to a square.
        how = card.reading
        how = how.model_copy(update={"side": height if height == width else how.side, "classes": None})
        real_train, real_test = (from_arrays(*part, class_names=names, how=how) for part in (train, test))
        synthetic: LabelledImages = sample(*self._model(), len(real_train) if num is None else num, seed=seed)
        return evaluate(synthetic, real_train, real_test, seed=seed, extractor=extractor)

    def _load(self, path: Path) -> "DPSinkhorn":
        release = find_release(path)
        self.privacy_, self._generator = load_release(release, STAGES)
        names = self.privacy_.class_names
        self.classes_ = np.array([int(name) for name in names] if are_integers(names) else names)
        # In memory, so that `save` still works when a temporary run folder is gone. Only the files of a release, with
        # a new README: other files in the folder are not copied.
        self._files = release_files(release, self.privacy_, STAGES)
        return self

    def _model(self) -> tuple[PrivacyCard, Generator]:
        if not self.__sklearn_is_fitted__():
            raise UnfittedError("the model is not fitted; call fit(images, labels) or DPSinkhorn.load(path) first")
        return self.privacy_, self._generator

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "privacy_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.non_deterministic = True
        return tags

    def _repr_html_(self) -> str:
        """The parameters; of a fitted model also its card's headline facts and some of its images."""
        parameters = str(estimator_html_repr(self))
        return parameters + summary_html(*self._model()) if self.__sklearn_is_fitted__() else parameters

    def _repr_mimebundle_(self, **how: Any) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


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


def total_budget(runs: Sequence[AnyPath] | AnyPath, delta: float | None = None) -> TotalBudget:
    """ε of several runs on the same records together; see `training.total_budget.total_budget`. Reads only.

    Args:
        runs: Run folders, finished or not. delta: δ of the total; default: the largest that a run was made for.

    Raises:
        InputError: A folder holds no run or a damaged one, a run is given twice or used a test seed.
    """
    return total_budget_of(runs, STAGES, delta)


def verify(path: AnyPath, ledger: AnyPath | None = None, public_key: AnyPath | None = None) -> Verification:
    """Check a release (or a finished run, with its ledger); see `release.verify.verify`. Reads only.

    Args:
        path: A release folder, or a run folder that holds one. ledger: The run's ledger; default: that of the run
            folder.
        public_key: PEM file with the Ed25519 key that must have signed the card.

    Raises:
        InputError: There is no readable card, it lists an unknown stage, or `ledger` or `public_key` cannot be read.
    """
    return verify_release(path, STAGES, ledger, public_key)
