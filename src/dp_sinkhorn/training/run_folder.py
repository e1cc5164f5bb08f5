"""Run folders: start a run in a new one, resume the run in an existing one."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.generators.device import find_device
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.ledger import LEDGER, counts, read_charges
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.weights import CARD
from dp_sinkhorn.settings import HARMLESS, DataFacts, RunConfig, make_settings, read_config, read_toml
from dp_sinkhorn.stages.base import Stages
from dp_sinkhorn.training.checkpoint import CHECKPOINT, CheckpointInfo, load_checkpoint
from dp_sinkhorn.training.loop import TrainingResult, peak_memory_bytes, train
from dp_sinkhorn.training.progress import Callback, TrainingProgress

CONFIG = "config.toml"


def facts_of(source: str, data: LabelledImages) -> DataFacts:
    """The public facts about the data."""
    return DataFacts(source=source, num_records=len(data), shape=data.shape, class_names=data.class_names)


def check_new(folder: Path) -> None:
    """Refuse a folder that is not empty.

    Raises:
        InputError: The folder holds something, or is a file.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise _exists(folder)


def start(
    data: LabelledImages,
    config: RunConfig,
    folder: Path,
    stages: Stages,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Make a run folder and train in it.

    Raises:
        InputError: The folder is not empty or cannot be written.
    """
    check_new(folder)
    _make(folder, config)
    try:
        return _train(config, data, folder, stages, callbacks)
    except BaseException:
        # Without a ledger nothing was spent, so nothing is kept. From then on the ledger must stay.
        if not (folder / LEDGER).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(
    data: LabelledImages,
    folder: Path,
    given: Mapping[str, Any],
    stages: Stages,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Continue a run after an interruption; a finished run is left as it is.

    Args:
        given: Settings that the user gave again; they must agree with the run's.

    Raises:
        InputError: There is no run, the data or the settings differ from the run's, or its files are damaged.
    """
    config = _with_given(stored_config(folder, stages), folder, given, stages)
    found = facts_of(config.data.source, data)
    if found != config.data:
        raise InputError(
            f"the data differ from those of {folder}: {found.num_records} records of shape {found.shape}, "
            f"not {config.data.num_records} of {config.data.shape}, or other classes; give the same data"
        )
    card = PrivacyCard.from_file(path) if (path := folder / "release" / CARD).is_file() else None
    if card is not None and not stages.unfinished(card, config):
        if (info := checkpoint_info(folder)) is not None:
            info.check_records(data.sha256(), folder)
        return TrainingResult(card, 0.0, peak_memory_bytes())
    return _train(config, data, folder, stages, callbacks)


def stored_config(folder: Path, stages: Stages) -> RunConfig:
    """The configuration of the run in a folder."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} holds no run to resume; leave --resume out to start one")
    return read_config(folder / CONFIG, stages)


def resume_hint(folder: Path) -> str:
    """What to do about an interrupted run: start it again, resume it, or give it up."""
    ledger = folder / LEDGER
    if not ledger.exists():
        return "start it again (nothing was spent)"
    charges = read_charges(ledger)
    info = checkpoint_info(folder)
    if charges and info is None:
        return "start a new run: this one spent budget before its first checkpoint and cannot continue"
    if lost := [] if info is None else _lost_answers(folder, charges, info):
        return f"start a new run: this one spent budget on {', '.join(lost)}, whose answers are lost"
    if (folder / "release" / CARD).is_file():
        return "continue with train --resume; the release so far is valid, but not fine-tuned"
    return "continue with train --resume"


def _with_given(config: RunConfig, folder: Path, given: Mapping[str, Any], stages: Stages) -> RunConfig:
    """The run's configuration, with those given settings that may differ in a resumed run."""
    given = {name: value for name, value in given.items() if value is not None}
    # Checked together with the run's own settings, because some depend on each other.
    again = make_settings(stages, folder / CONFIG, given)
    stored, repeated = (_flat(settings.model_dump()) for settings in (config.settings, again))
    for name, value in repeated.items():
        if (before := stored.get(name)) != value and name not in HARMLESS:
            raise InputError(f"{name}={value} was given, but the run in {folder} has {before}; leave it out")
    changed = {name: getattr(again, name) for name in HARMLESS if name in given}
    return config.model_copy(
        update={
            "settings": config.settings.model_copy(update=changed),
            "device": find_device(again.device if "device" in given else config.device),
        }
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _lost_answers(folder: Path, charges: list[Charge], info: CheckpointInfo) -> list[str]:
    """Charges whose answers the checkpoint lacks, without those of training steps: a run can lose some of these."""
    plan = read_toml(folder / CONFIG).get("plan", {})
    return [
        name
        for name, count in counts(charges).items()
        if count > info.taken.get(name, 0) and name != plan.get("learns")
    ]


def checkpoint_info(folder: Path) -> CheckpointInfo | None:
    """The checkpoint's facts; None if it is missing or damaged. A finished run does not need it."""
    try:
        return load_checkpoint(folder / "private" / CHECKPOINT)[1]
    except InputError:
        return None


def _exists(folder: Path) -> InputError:
    return InputError(
        f"{folder} exists already; give another folder, or continue its run with --resume (in Python resume=True)"
    )


def _make(folder: Path, config: RunConfig) -> None:
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of two processes that start a run at once, only one can make this file; it owns the folder.
        with (folder / CONFIG).open("x", encoding="utf-8") as file:
            file.write(config.to_toml())
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise _exists(folder) from None
    except OSError as error:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise InputError(f"cannot write {folder}: {error.strerror}; give an --out that can be written") from None


def _train(
    config: RunConfig, data: LabelledImages, folder: Path, stages: Stages, callbacks: Sequence[Callback]
) -> TrainingResult:
    of_callbacks: list[Exception] = []  # callbacks get public facts only, so their errors are passed on as they are

    def call_all(progress: TrainingProgress) -> None:
        try:
            for callback in callbacks:
                callback(progress)
        except torch.OutOfMemoryError:
            raise  # its message also tells how much the run holds
        except Exception as error:
            of_callbacks.append(error)
            raise

    try:
        return train(config, data, folder, stages, call_all)
    except OSError as error:
        if error in of_callbacks:
            raise
        raise InputError(f"cannot write {folder}: {error.strerror}; make room, then {resume_hint(folder)}") from None
    except (RuntimeError, MemoryError) as error:
        if error in of_callbacks or not (folder / LEDGER).exists():
            raise
        # The message of a failed allocation has a size that reveals how many records were drawn.
        raise InputError(
            f"training in {folder} stopped: {type(error).__name__} (its message is withheld, as it may depend on the "
            f"records); make sure that there is enough memory, then {resume_hint(folder)}"
        ) from None
