"""A new stage is one new file: charge, card, `verify`, `audit` and the command line follow, nothing else has to change.

The stage is `support.mean_brightness`: it releases the mean brightness of all images and moves the generator to it.
"""

import json
import shutil

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.audit.audit import Effort, audit_run
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.ledger import read_charges
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import CARD, README, load_release
from dp_sinkhorn.stages.base import Stages
from dp_sinkhorn.training.run_folder import resume, start
from support import mean_brightness
from support.mean_brightness import MeanBrightness
from support.stage_runs import FACTS, SETTINGS, quick_noise, toy

STAGES = Stages.of(*method.STAGES.values(), MeanBrightness(share=0.02))
NAME = MeanBrightness.name


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run with it, of bright images."""
    given = {**SETTINGS["embedding"], NAME: {"budget_share": 0.2}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "step_noise_multiplier", quick_noise)
        config = method.resolve(method.settings_of(None, given, STAGES), FACTS, STAGES)
    folder = tmp_path_factory.mktemp("one_more") / "run"
    data = toy()
    data.pixels[:] = 200
    return folder, data, start(data, config, folder, STAGES).card


def changed(folder, tmp_path, **facts):
    """A copy of the release whose card says something else of the stage."""
    release = shutil.copytree(folder / "release", tmp_path / "release")
    card = json.loads((release / CARD).read_text())
    for entry in card["stages"]:
        entry |= facts if entry["name"] == NAME else {}
    (release / CARD).write_text(json.dumps(card))
    return release


def test_a_new_stage_is_planned_charged_and_on_the_card(made):
    folder, _, card = made
    (charge,) = (charge for charge in card.charges if charge.name == NAME)
    assert [found for found in read_charges(folder / "ledger.jsonl") if found.name == NAME] == [charge]
    (entry,) = (entry for entry in card.stages if entry.name == NAME)
    # 200 of 255 is 0.57 in [-1, 1]; the noise on the mean is its multiplier over 200 records.
    assert entry.facts["brightness"] == pytest.approx(0.5686, abs=6.0 * charge.noise_multiplier / 200)
    assert charge.noise_multiplier / 200 < 0.06
    assert "| mean brightness | 0." in (folder / "release" / README).read_text()


def test_samples_come_from_the_generator_that_it_changed(made):
    folder, _, card = made
    _, generator = load_release(folder, STAGES)
    with torch.no_grad():
        brightness = generator.sample(torch.arange(400) % 2, torch.Generator().manual_seed(0)).mean()
    (entry,) = (entry for entry in card.stages if entry.name == NAME)
    assert float(brightness) == pytest.approx(entry.facts["brightness"], abs=0.1)


def test_verify_checks_the_facts_of_a_new_stage(made, tmp_path):
    folder, _, _ = made
    found = verify(folder, STAGES)
    assert (found.ok, found.problems, found.ledger) == (True, (), "equal")
    wrong = verify(changed(folder, tmp_path, brightness=3.0), STAGES)
    assert "the card claims a mean brightness of 3; pixels lie in [-1, 1]" in wrong.problems


def test_a_run_with_a_new_stage_is_resumed(made):
    folder, data, card = made
    assert resume(data, folder, {}, STAGES).card.model_dump() == card.model_dump()


def test_the_setting_of_a_new_stage_is_read_from_the_command_line():
    given = {"mode": "embedding", NAME: {"budget_share": "0"}}
    assert method.settings_of(None, given, STAGES).given(NAME) == ["budget_share"]
    with pytest.raises(InputError, match="unknown setting 'mean_brightness'"):
        method.settings_of(None, given)


def audited(folder):
    """Name and verdict of each check of its queries."""
    found = audit_run(folder, Effort(draws=100, steps=2, canaries=40), 20, lambda text: None, STAGES)
    return {check.name: check.ok for check in found.checks if check.name.startswith("mean brightness")}


def test_the_query_of_a_new_stage_is_audited(made, monkeypatch):
    folder, _, _ = made
    assert audited(folder) == {"mean brightness: sensitivity": True, "mean brightness: noise": True}

    sound = mean_brightness.summed_brightness
    monkeypatch.setattr(mean_brightness, "summed_brightness", lambda draw: BoundedSum(2.0 * sound(draw).value, 1.0))
    assert audited(folder) == {"mean brightness: sensitivity": False, "mean brightness: noise": True}


def test_a_version_without_it_refuses_its_card_by_name(made):
    folder, _, _ = made
    for read in (verify, load_release):
        with pytest.raises(InputError, match="the card lists the stage 'mean_brightness', which this version does not"):
            read(folder, method.STAGES)


@pytest.mark.parametrize("command", [["verify"], ["sample", "--num", "2", "--out", "images.npz"]])
def test_the_command_line_refuses_an_unknown_stage_with_exit_code_2(made, monkeypatch, tmp_path, command_line, command):
    folder, _, _ = made
    monkeypatch.chdir(tmp_path)
    code, _, told = command_line(command[0], folder, *command[1:])
    assert code == 2
    assert told.startswith("error: the card lists the stage 'mean_brightness'")
    assert told.count("\n") == 1
