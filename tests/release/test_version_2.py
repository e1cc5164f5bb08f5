"""Releases of version 2 (tests/files/version_2) still verify, load and draw the same images; tampering is caught."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp_sinkhorn import DPSinkhorn, verify
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.release.version_2 import as_version_3
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.sampling.draw import sample
from support.old_releases import edit

FILES = Path(__file__).parents[1] / "files" / "version_2"
MODES = ("record", "embedding")
AROUND = {"corrected_dimensions": 4, "refinement_steps": 4, "classifier": "linear, on scattering features"}

pytestmark = pytest.mark.usefixtures("rough_groups")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the run of mode record, with every stage of that version, to tamper with."""
    return shutil.copytree(FILES / "record", tmp_path / "run")


def of_stage(name: str, **facts: object) -> Callable[[dict[str, Any]], None]:
    """Change facts of a stage."""

    def change(card: dict[str, Any]) -> None:
        next(entry for entry in card["stages"] if entry["name"] == name).update(facts)

    return change


@pytest.mark.parametrize("mode", MODES)
def test_an_old_release_verifies_with_and_without_its_run(mode):
    run, release = verify(FILES / mode), verify(FILES / mode / "release")
    assert (run.ok, run.problems, run.notes, run.ledger) == (True, (), (), "equal")
    assert (release.ok, release.problems, release.notes, release.ledger) == (True, (), (), "none")
    claimed = json.loads((FILES / mode / "release" / "card.json").read_text())["epsilon"]
    assert run.card.epsilon == claimed
    assert run.epsilon_pld == pytest.approx(claimed, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_an_old_release_still_draws_the_same_images(mode):
    """Up to the last digit: other processors add numbers in another order."""
    images, labels = sample(*load_release(FILES / mode, STAGES), 8, seed=3).arrays()
    with np.load(FILES / mode / "samples.npz", allow_pickle=False) as then:
        assert np.array_equal(labels, then["labels"])
        assert float(np.abs(images.astype(int) - then["images"]).max()) <= 1.0


def test_stages_and_layers_of_an_old_card_are_separated():
    card, _ = load_release(FILES / "record", STAGES)
    assert [entry.model_dump() for entry in card.stages] == [
        {"name": "class_counts"},
        {"name": "principal_subspace"},
        {"name": "class_moments"},
        {"name": "class_features"},
        {"name": "label_classifier"},
        {"name": "class_embedding"},
        {"name": "transport_steps", "potential_iterations": 0},
    ]
    assert card.layers.model_dump() == {**AROUND, "fine_tuning_steps": 5, "mixture_weight": 0.5}
    card, _ = load_release(FILES / "embedding", STAGES)
    assert [entry.name for entry in card.stages][-2:] == ["class_embedding", "embedding_steps"]
    assert card.layers.model_dump() == {**AROUND, "fine_tuning_steps": 0, "mixture_weight": 0.0}


@pytest.mark.parametrize("mode", MODES)
def test_every_verb_for_a_release_still_works(command_line, tmp_path, mode):
    run = shutil.copytree(FILES / mode, tmp_path / "run")
    code, out, _ = command_line("verify", run)
    assert (code, out.splitlines()[0]) == (0, "holds: nothing contradicts the card")
    assert command_line("sample", run, "--num", 8, "--seed", 3, "--out", tmp_path / "s.npz")[0] == 0
    assert command_line("report", run, "--public")[0] == 0
    assert 'id="epsilon">' in (run / "report.html").read_text()


def test_a_saved_old_release_keeps_its_card_and_lists_its_layers(tmp_path):
    DPSinkhorn.load(FILES / "record").save(tmp_path / "saved")
    assert verify(tmp_path / "saved").ok
    for name in ("card.json", "weights.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (FILES / "record" / "release" / name).read_bytes()
    page = (tmp_path / "saved" / "README.md").read_text()
    assert "| correction | affine, by the released moments of each class, in 4 dimensions |" in page
    assert "| images from before fine-tuning | 50 % |" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_stage("class_moments", corrected_dimensions=3), "does not fit its card"),
        (of_stage("class_moments", corrected_dimensions=0), "does not fit its card"),
        (of_stage("class_features", refinement_steps=2), "does not fit its card"),
        (of_stage("label_classifier", classifier=None), "does not fit its card"),
        (of_stage("embedding_steps", fine_tuning_steps=0), "claims no such steps"),
        (of_stage("embedding_steps", mixture_weight=0.0), "does not fit its card"),
        (lambda card: card.update(card_version=3), "extra inputs"),
        (lambda card: card.update(num_steps=5), "claims 5 noisy queries, but charges 6"),
        (lambda card: card.update(queries_per_step=0), "5 fine-tuning steps on an embedding after steps of 0 queries"),
        (lambda card: card["charges"].pop(3), "does not charge 'class_moments'"),
        (lambda card: card["stages"].pop(2), "'class_moments', but lists no stage that makes"),
    ],
)
def test_an_old_card_that_contradicts_itself_is_still_caught(copy, cheap, change, words):
    edit(copy, change)
    try:
        found = verify(copy)
        problems = "; ".join(found.problems)
        assert not found.ok
    except InputError as error:
        problems = str(error)
    assert words in problems


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_stage("class_moments", corrected_dimensions="4"), "corrected_dimensions"),
        (of_stage("class_moments", corrected_dimensions=10**6), "corrected_dimensions"),
        (of_stage("class_features", refinement_steps=-1), "refinement_steps"),
        (of_stage("class_features", refinement_steps=10**6), "refinement_steps"),
        (of_stage("class_features", more=1), "class_features.more"),
        (of_stage("variance_penalty", more=1), "variance_penalty"),
        (of_stage("label_classifier", classifier="deep"), "classifier"),
        (of_stage("embedding_steps", fine_tuning_steps=0.5), "fine_tuning_steps"),
        (of_stage("embedding_steps", mixture_weight=1.0), "mixture_weight"),
        (lambda card: card.update(stages=None), "stages"),
        (lambda card: card["stages"].append("a word"), "stages"),
        (lambda card: card["stages"].append({"name": "mind_reading"}), "'mind_reading', which this version does not"),
    ],
)
def test_a_damaged_card_of_version_2_is_refused(copy, change, words):
    edit(copy, change)
    for call in (verify, DPSinkhorn.load):
        with pytest.raises(InputError) as caught:
            call(copy)
        assert words in str(caught.value)


def test_converting_a_card_leaves_damaged_stages_to_its_check():
    for stages in (None, 5, "class_moments", [None], [[]], [{"name": []}], [{"name": 3}]):
        facts, layers = as_version_3({"stages": stages, "mode": "record"})
        assert (facts["stages"], layers) == (stages, {})
    assert as_version_3({}) == ({}, {})


def test_an_old_run_is_not_resumed_or_audited(copy, command_line):
    for arguments in (("train", "digits", "--out", copy, "--resume"), ("audit", copy)):
        code, out, err = command_line(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
