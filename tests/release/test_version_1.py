"""Releases of version 1 (tests/files/version_1) still verify, load and draw the same images; tampering is caught."""

import hashlib
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
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.sampling.draw import sample
from support.old_releases import edit

FILES = Path(__file__).parents[1] / "files" / "version_1"
MODES = ("record", "batch", "embedding")

pytestmark = pytest.mark.usefixtures("rough_groups")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the run of mode record, with every stage of that version, to tamper with."""
    return shutil.copytree(FILES / "record", tmp_path / "run")


@pytest.mark.parametrize("mode", MODES)
def test_an_old_release_verifies_with_and_without_its_run(mode):
    run = verify(FILES / mode)
    assert (run.ok, run.problems, run.notes, run.ledger) == (True, (), (), "equal")
    release = verify(FILES / mode / "release")
    assert (release.ok, release.problems, release.notes, release.ledger) == (True, (), (), "none")
    claimed = json.loads((FILES / mode / "release" / "card.json").read_text())["epsilon"]
    assert run.card.epsilon == claimed
    assert run.epsilon_pld == pytest.approx(claimed, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_an_old_release_still_draws_the_same_images(mode):
    card, generator = load_release(FILES / mode, STAGES)
    images, labels = sample(card, generator, 8, seed=3).arrays()
    with np.load(FILES / mode / "samples.npz", allow_pickle=False) as then:
        assert np.array_equal(images, then["images"])
        assert np.array_equal(labels, then["labels"])


def test_facts_of_version_1_get_their_present_names():
    card, _ = load_release(FILES / "record", STAGES)
    assert [entry.model_dump() for entry in card.stages] == [
        {"name": "class_counts"},
        {"name": "principal_subspace"},
        {"name": "class_moments"},
        {"name": "class_features"},
        {"name": "label_classifier"},
        {"name": "class_embedding"},
        {"name": "transport_steps", "potential_iterations": None},
    ]
    assert card.layers.model_dump() == {
        "corrected_dimensions": 4,
        "refinement_steps": 4,
        "classifier": "linear, on scattering features",
        "fine_tuning_steps": 5,
        "mixture_weight": 0.5,
    }
    counts = {charge.name: charge.count for charge in card.charges}
    assert (counts["label_classifier"], counts["transport_steps"]) == (200, 6)
    assert counts["principal_subspace.first_moments"] == counts["principal_subspace.second_moment"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_every_verb_for_a_release_still_works(command_line, tmp_path, mode):
    run = shutil.copytree(FILES / mode, tmp_path / "run")
    code, out, _ = command_line("verify", run)
    assert (code, out.splitlines()[0]) == (0, "holds: nothing contradicts the card")
    code, _, _ = command_line("sample", run, "--num", 8, "--seed", 3, "--out", tmp_path / "s.npz")
    assert code == 0
    with np.load(tmp_path / "s.npz", allow_pickle=False) as now, np.load(run / "samples.npz") as then:
        assert all(np.array_equal(now[name], then[name]) for name in ("images", "labels", "class_names"))
        facts = json.loads(str(now["privacy"]))
    assert facts["card_sha256"] == hashlib.sha256((run / "release" / "card.json").read_bytes()).hexdigest()
    for edition, path in (("--public", run / "report.html"), ("--curator", run / "private" / "report.html")):
        (run / "private").mkdir(exist_ok=True)
        assert command_line("report", run, edition)[0] == 0
        assert 'id="epsilon">' in path.read_text()


def test_saving_an_old_release_keeps_its_card(tmp_path):
    DPSinkhorn.load(FILES / "record").save(tmp_path / "saved")
    assert verify(tmp_path / "saved", public_key=FILES / "public.pem").signature == "valid"
    assert verify(tmp_path / "saved").ok
    for name in ("card.json", "weights.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (FILES / "record" / "release" / name).read_bytes()


def test_a_signature_of_an_old_card_stays_valid(copy):
    result = verify(copy, public_key=FILES / "public.pem")
    assert (result.ok, result.signature) == (True, "valid")
    edit(copy, lambda card: None)  # the same facts in other bytes
    result = verify(copy, public_key=FILES / "public.pem")
    assert (result.ok, result.signature) == (False, "invalid")


def drop(name: str) -> Callable[[dict[str, Any]], None]:
    """Remove the charge of this name."""

    def change(card: dict[str, Any]) -> None:
        card["charges"] = [charge for charge in card["charges"] if charge["name"] != name]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card.update(num_steps=5), "claims 5 noisy queries, but charges 6"),
        (lambda card: card.update(num_records=600), "is not the card's expected batch size"),
        (lambda card: card.update(sample_rate=0.1), "differ from those of its charged steps"),
        (lambda card: card.update(noise_multiplier=99.0), "differ from those of its charged steps"),
        (lambda card: card.update(sensitivity=99.0), "the card claims sensitivity 99"),
        (lambda card: card.update(weights_sha256="0" * 64), "SHA-256 differs"),
        (lambda card: card.update(private=False), "NOT PRIVATE"),
        (lambda card: card.update(sanitize="batch"), "but lists no stage that makes"),
        (lambda card: card.update(sanitize="embedding"), "makes no query a step"),
        (lambda card: card.update(corrected_dimensions=0), "'class_moments', but lists no stage that makes"),
        (lambda card: card.update(corrected_dimensions=3), "does not fit its card"),
        (lambda card: card.update(refinement_steps=0), "'class_features', but lists no stage that makes"),
        (lambda card: card.update(classifier=None), "'label_classifier', but lists no stage that makes"),
        (lambda card: card.update(matching_steps=0), "claims no such steps"),
        (lambda card: card.update(kept_share=0.0), "does not fit its card"),
        (drop("step"), "charges no step"),
        (drop("first_moments"), "does not charge 'principal_subspace.first_moments'"),
        (drop("second_moment"), "does not charge 'principal_subspace.second_moment'"),
        (drop("class_moments"), "does not charge 'class_moments'"),
        (drop("class_features"), "does not charge 'class_features'"),
        (drop("classifier"), "does not charge 'label_classifier'"),
        (drop("class_embedding"), "does not charge 'class_embedding'"),
        (drop("class_counts"), "class counts are not charged"),
    ],
)
def test_an_old_card_that_contradicts_itself_is_still_caught(copy, cheap, change, words):
    result = verify(edit(copy, change))
    assert not result.ok
    assert any(words in text for text in result.problems), result.problems


def test_less_epsilon_than_an_old_release_spent_is_still_caught(copy):
    edit(copy, lambda card: card.update(epsilon=1.0))
    assert any("the card claims epsilon 1; its charges give 7.9" in text for text in verify(copy).problems)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"mode": "record"}, "not facts of version 1"),
        ({"stages": []}, "not facts of version 1"),
        ({"card_version": 2}, "not a valid card"),
        ({"more": 1}, "not a valid card"),
        ({"sanitize": None}, "not a valid card"),
        ({"sanitize": ["record"]}, "not a valid card"),
        ({"charges": None}, "not a valid card"),
        ({"charges": [["step"]]}, "not a valid card"),
        ({"corrected_dimensions": "4"}, "not a valid card: corrected_dimensions"),
        ({"refinement_steps": -1}, "not a valid card: refinement_steps"),
        ({"classifier": "deep"}, "not a valid card: classifier"),
        ({"matching_steps": 0.5}, "not a valid card: fine_tuning_steps"),
        ({"kept_share": 1.0}, "not a valid card: mixture_weight"),
    ],
)
def test_a_damaged_card_of_version_1_is_refused(copy, facts, words):
    edit(copy, lambda card: card.update(facts))
    for call in (verify, DPSinkhorn.load):
        with pytest.raises(InputError) as caught:
            call(copy)
        assert words in str(caught.value)


def test_altered_files_beside_an_old_card_are_still_caught(copy):
    weights, readme = copy / "release" / "weights.safetensors", copy / "release" / "README.md"
    ledger = copy / "ledger.jsonl"
    for path, change, words in (
        (weights, lambda content: content[:-1] + bytes([content[-1] ^ 1]), "SHA-256 differs"),
        (readme, lambda content: content.replace(b"\nepsilon: ", b"\nepsilon: 0."), "another claim than the card"),
        (readme, lambda content: content.replace(b"| 0.0001 |", b"| 1e-09 |"), "another claim than the card"),
        (ledger, lambda content: content[: content.rindex(b"\n", 0, -1) + 1], "the ledger holds 5 releases"),
        (ledger, lambda content: content.replace(b'"count":1', b'"count":2'), "is damaged"),
    ):
        content = path.read_bytes()
        assert change(content) != content
        path.write_bytes(change(content))
        result = verify(copy)
        assert len(result.problems) == 1
        assert words in result.problems[0]
        path.write_bytes(content)
    assert verify(copy).ok


def test_an_old_run_is_not_resumed_or_audited(copy, command_line):
    for arguments in (("train", "digits", "--out", copy, "--resume"), ("audit", copy)):
        code, out, err = command_line(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "config.toml was written by version 0.1; use that version, or start a new run" in err
    with pytest.raises(InputError, match=r"was written by version 0\.1"):
        DPSinkhorn().fit(np.zeros((300, 8, 8), np.uint8), np.arange(300) % 2, copy, resume=True)
