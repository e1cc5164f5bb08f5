"""Regression tests: files restored from a backup, bad numbers, missing marks and permissions, former names."""

import json
import os
import shutil
import signal
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dp_sinkhorn import DPSinkhorn
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.sampling.draw import draw
from dp_sinkhorn.sampling.outputs import check_output
from dp_sinkhorn.settings import DataFacts, RunConfig
from dp_sinkhorn.training.checkpoint import CHECKPOINT
from support.asking import Asking, KilledError, charged, die, in_blocks, signalled
from support.toy import LEAN, SMALL, changed, resume, settings, start, toy

STEPS = 30  # in blocks of two


@pytest.fixture(scope="module", autouse=True)
def _blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        in_blocks(patch, STEPS // 2)
        yield


def interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> Counter[str]:
    """Start or resume a run that gets Ctrl-C in its step `at`; returns what this process released."""
    with monkeypatch.context() as patch:
        asking = Asking(patch, at=at, what=signalled(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            resume(folder) if folder.exists() else start(folder, num_steps=STEPS)
        return asking.made


@pytest.mark.parametrize("between", ["interrupted again", "killed", "finished"])
def test_a_checkpoint_from_a_backup_repeats_no_charged_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    """Only the mark of the resumption in the present ledger prevents it."""
    folder, backup = tmp_path / "run", tmp_path / "backup"
    checkpoint = folder / "private" / CHECKPOINT
    made = interrupt(folder, monkeypatch, at=20)
    assert (made["transport_steps"], charged(folder)["transport_steps"]) == (21, 22)
    shutil.copy(checkpoint, backup)
    if between == "interrupted again":
        made += interrupt(folder, monkeypatch, at=0)
        assert (made["transport_steps"], charged(folder)["transport_steps"]) == (22, 22)
    elif between == "killed":
        with monkeypatch.context() as patch:
            asking = Asking(patch, at=1, what=die)
            with pytest.raises(KilledError):
                resume(folder)
            made += asking.made
    else:
        with monkeypatch.context() as patch:
            asking = Asking(patch)
            resume(folder)
            made += asking.made
        shutil.rmtree(folder / "release")
    shutil.copy(backup, checkpoint)
    asking = Asking(monkeypatch)
    resume(folder)
    made += asking.made
    assert not made - charged(folder)
    assert charged(folder)["transport_steps"] == STEPS
    assert verify(folder, STAGES).ok


def test_a_run_resumed_from_a_backup_of_everything_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can detect the copy. But each ledger marks its own resumption, so the files of both do not mix."""
    folder, other = tmp_path / "run", tmp_path / "other"
    interrupt(folder, monkeypatch, at=20)
    shutil.copytree(folder, other)
    interrupt(folder, monkeypatch, at=1)
    interrupt(other, monkeypatch, at=3)
    shutil.copy(other / "private" / CHECKPOINT, folder / "private" / CHECKPOINT)
    with pytest.raises(InputError, match=r"belongs to another run, or ledger\.jsonl has lost lines"):
        resume(folder)


def test_ledgers_without_marks_of_resumption_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run that was not resumed within a block has such a ledger."""
    folder = tmp_path / "run"
    interrupt(folder, monkeypatch, at=21)  # at a block's end there is nothing to mark
    before = (folder / "ledger.jsonl").read_bytes()
    assert b"resumption" not in before
    resume(folder)
    after = (folder / "ledger.jsonl").read_bytes()
    assert after.startswith(before)
    assert b"resumption" not in after
    assert len(Ledger(folder / "ledger.jsonl").charges) == 3 + STEPS // 2


@pytest.mark.parametrize("name", [stage for stage in STAGES if STAGES[stage].charged or stage == "label_classifier"])
def test_a_run_killed_between_stages_is_refused_or_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Kill before each stage's first query, and before its answer is saved."""
    # The embedding is the last stage before the steps.
    settings = changed(
        SMALL, generator="mlp", num_steps=2, class_embedding={"budget_share": 0.1, "num_frequencies": 20},
    )  # fmt: skip
    first = (*STAGES[name].charged, name)[0]
    for saved in (False, True):
        folder = tmp_path / f"saved-{saved}"
        with monkeypatch.context() as patch:
            patch.setattr("dp_sinkhorn.training.loop.write_release", lambda *rest: die())
            patch.setattr("dp_sinkhorn.training.loop.Run.finish", lambda *rest: None)
            asking = Asking(patch, first, 0, die) if saved else Asking(patch, released=dies_after(first))
            with pytest.raises(KilledError):
                start(folder, base=settings)
            made = asking.made
            asking = Asking(patch)
            if saved and name != "class_counts":  # the stages before it are in a checkpoint
                with pytest.raises(KilledError):  # only the release is missing
                    resume(folder)
                assert set(asking.made).isdisjoint(made)
            elif saved:  # nothing was charged, so nothing is left
                assert not folder.exists()
                continue
            else:
                with pytest.raises(InputError, match=r"lost; the budget|this run cannot continue") as told:
                    resume(folder)
                assert "\n" not in str(told.value)
            made = made + asking.made
        assert not made - charged(folder)


def dies_after(name: str) -> object:
    """Kill when a release of this name is charged and about to be made."""

    def released(released_name: str, queries: int) -> None:
        if released_name == name:
            die()

    return released


def test_too_many_classes_are_refused_before_anything_is_spent() -> None:
    with pytest.raises(InputError, match=r"the release of 7000 classes .* would be larger than .*; give fewer classes"):
        with_classes(7000, principal_subspace={"min_dimensions": 150})


def test_a_subspace_too_large_for_a_release_is_cut() -> None:
    for classes, cut in ((10, False), (1500, True)):
        most = with_classes(classes).rules["principal_subspace"].max_dimensions
        assert (most is not None) is cut
        assert most is None or 96 <= most < 784


def with_classes(count: int, **more: Any) -> RunConfig:
    names = tuple(f"class {k}" for k in range(count))
    facts = DataFacts(source="none", num_records=10**6, shape=(1, 28, 28), class_names=names)
    base = {"mode": "record", "target_delta": 1e-7, "noise_multiplier": 20.0, "num_steps": 1}
    return resolve(settings_of(None, base | more), facts)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a test seed, through Python."""
    folder = tmp_path_factory.mktemp("seeded") / "run"
    images, labels = toy().arrays()
    with pytest.warns(UserWarning, match="NOT PRIVATE"):
        DPSinkhorn(settings=LEAN["record"] | {"test_seed": 3}).fit(images, labels, run_folder=folder)
    return folder


def test_loading_a_release_that_is_not_private_warns(seeded: Path) -> None:
    for path in (seeded, seeded / "release"):
        with pytest.warns(UserWarning, match="NOT PRIVATE"):
            assert not DPSinkhorn.load(path).privacy_.private


def test_every_file_of_a_run_that_is_not_private_says_so(seeded: Path, tmp_path: Path) -> None:
    card, generator = load_release(seeded, STAGES)
    for name in ("s.npz", "s.parquet", "grid.png", "folder"):
        check_output(tmp_path / name)(draw(card, generator, 6))
    with np.load(tmp_path / "s.npz") as arrays:
        facts = json.loads(str(arrays["privacy"]))
    assert facts["private"] is False
    assert "NOT PRIVATE" in facts["note"]
    parquet = pytest.importorskip("pyarrow.parquet", reason="the datasets extra is not installed")
    facts = json.loads(parquet.read_schema(tmp_path / "s.parquet").metadata[b"dp_sinkhorn"])
    assert facts["private"] is False
    pictures = [tmp_path / "grid.png", *(tmp_path / "folder").rglob("*.png"), *(seeded / "samples").iterdir()]
    assert len(pictures) == 1 + 6 + len(list((seeded / "samples").iterdir())) > 10
    for path in pictures:
        with Image.open(path) as picture:
            assert "NOT PRIVATE" in picture.text["Warning"], path
    assert "NOT PRIVATE" in " ".join(json.loads((seeded / "release" / "card.json").read_text())["warnings"])
    assert "NOT PRIVATE" in (seeded / "release" / "README.md").read_text()


@pytest.fixture
def generous() -> Iterator[None]:
    """An umask that removes no permission."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("generous")
def test_only_the_owner_can_read_private_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def modes(folder: Path) -> set[tuple[str, int]]:
        return {
            (path.name, stat.S_IMODE(path.stat().st_mode)) for path in (folder / "private", *folder.glob("private/*"))
        }

    wanted = {("private", 0o700), (CHECKPOINT, 0o600), ("metrics.jsonl", 0o600), ("lock", 0o600)}
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        Asking(patch, at=2, what=signalled(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            start(folder, private_metrics=True)
    # As an older version may have left it.
    (folder / "private").chmod(0o755)
    (folder / "private" / "metrics.jsonl").touch(mode=0o644)
    resume(folder)
    assert modes(folder) == wanted


def test_only_the_owner_can_read_the_curators_report(finished, tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="the report extra is not installed")
    from dp_sinkhorn.report import write_report

    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    path = write_report(folder, stages=STAGES, curator=True)
    assert path == folder / "private" / "report.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# Every former name of a setting, a value, and the mode that reads it.
FORMER = {
    "sanitize": ("mode", "record", "record"),
    "class_prior": ("class_counts.prior", "uniform", "record"),
    "min_dimensions": ("principal_subspace.min_dimensions", 5, "record"),
    "moments_share": ("class_moments.budget_share", 0.2, "record"),
    "features_share": ("class_features.budget_share", 0.2, "record"),
    "classifier_share": ("label_classifier.budget_share", 0.2, "record"),
    "embedding_share": ("class_embedding.budget_share", 0.2, "record"),
    "num_frequencies": ("class_embedding.num_frequencies", 70, "embedding"),
    "relative_width": ("class_embedding.relative_width", 0.3, "embedding"),
    "wavelet_weight": ("class_embedding.wavelet_weight", 0.2, "embedding"),
    "wavelet_width": ("class_embedding.wavelet_width", 0.2, "embedding"),
    "matching_steps": ("fine_tuning.embedding_steps", 7, "record"),
    "num_reference": ("transport_steps.num_reference", 18, "record"),
    "relative_clip_norm": ("transport_steps.relative_clip_norm", 0.4, "record"),
    "relative_reg": ("transport_steps.relative_reg", 0.02, "record"),
    "potential_iterations": ("transport_steps.potential_iterations", 2, "record"),
    "rest_weight": ("transport_steps.rest_weight", 0.3, "record"),
    "queries_per_step": ("batch_steps.queries_per_step", 3, "batch"),
    "clip_norm": ("batch_steps.clip_norm", 0.3, "batch"),
    "reg": ("batch_steps.reg", 0.3, "batch"),
    "start_reg": ("batch_steps.start_reg", 40.0, "batch"),
    "sinkhorn_iterations": ("batch_steps.sinkhorn_iterations", 7, "batch"),
    "l1_weight": ("batch_steps.l1_weight", 0.5, "batch"),
    "label_weight": ("batch_steps.label_weight", 3.0, "batch"),
    "debias_fraction": ("batch_steps.debias_fraction", 0.5, "batch"),
}


@pytest.mark.parametrize("former", FORMER)
def test_a_former_flat_name_works_and_names_the_present_one(former: str) -> None:
    present, value, _ = FORMER[former]
    with pytest.warns(FutureWarning, match=f"the setting {former} is now {present}; the next version accepts only"):
        flat = settings_of(None, {former: value})
    stage, _, key = present.partition(".")
    assert flat == settings_of(None, {stage: {key: value} if key else value})


def test_every_older_setting_of_a_stage_has_a_former_name() -> None:
    known = {f"{name}.{key}" for name, stage in STAGES.items() for key in stage.settings_type.model_fields}
    new = {"class_counts.budget_share", "fine_tuning.num_steps"}
    assert {present for present, _, _ in FORMER.values()} == known - new | {"mode"}


def test_a_resume_accepts_flat_and_nested_names_of_equal_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        Asking(patch, at=2, what=signalled(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            start(folder)
    with pytest.raises(InputError, match=r"transport_steps.num_reference=24 was given, but the run in .* has 16;"):
        resume(folder, transport_steps={"num_reference": 24})
    with (
        pytest.warns(FutureWarning, match="num_reference is now transport_steps.num_reference"),
        pytest.raises(InputError, match=r"transport_steps.num_reference=24 was given, but the run in .* has 16;"),
    ):
        resume(folder, num_reference=24)
    with pytest.raises(InputError, match=r"target_epsilon=5.0 was given, but the run in .* has 10.0; leave it out"):
        resume(folder, target_epsilon=5)
    with pytest.raises(InputError, match="299 records"):
        resume(folder, toy(299))
    with pytest.raises(InputError, match="no run to resume"):
        resume(tmp_path / "nowhere")
    with pytest.warns(FutureWarning, match="num_reference is now transport_steps.num_reference"):
        card = resume(folder, num_reference=16, num_steps="20").card
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = resume(folder, transport_steps={"num_reference": "16"}, mode="record").card
        assert again.sha256() == card.sha256()
    assert settings(LEAN["record"]).of("transport_steps", STAGES["transport_steps"].settings_type).num_reference == 16
