"""A run: what it charges, writes and claims."""

import json
import pickletools
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES, config_of, settings_of
from dp_sinkhorn.privacy.accounting import epsilon_pld
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.sampling.draw import sample
from dp_sinkhorn.training import loop
from dp_sinkhorn.training import run_folder as runs
from dp_sinkhorn.training.checkpoint import CHECKPOINT, load_checkpoint
from support.asking import Asking, charged
from support.toy import BEFORE_THE_STEPS, LEAN, SMALL, config, resume, settings, start, toy


def test_a_run_spends_its_epsilon_and_states_it(finished):
    card = finished.card
    assert 9.9 <= card.epsilon <= 10.0 <= card.epsilon_rdp
    assert card.private
    assert card.mode == "record"
    assert card.num_steps == 20
    assert {charge.name: charge.count for charge in card.charges} == {**BEFORE_THE_STEPS, "transport_steps": 20}
    assert [entry.name for entry in card.stages] == [
        *("class_counts", "principal_subspace", "class_moments", "class_features", "label_classifier"),
        *("transport_steps", "fine_tuning"),
    ]
    assert card.class_prior.how == "noisy histogram"
    assert card.class_prior.shares == pytest.approx([0.5, 0.5], abs=0.15)
    assert 0 < card.class_prior.epsilon_alone < card.epsilon
    assert verify(finished.folder, STAGES).ok


def test_the_run_folder_has_the_documented_files_and_no_pickle(finished):
    names = {str(path.relative_to(finished.folder)) for path in finished.folder.rglob("*") if path.is_file()}
    assert names == {
        "config.toml",
        "ledger.jsonl",
        "metrics.jsonl",
        "private/checkpoint.safetensors",
        "private/lock",
        "release/README.md",
        "release/card.json",
        "release/weights.safetensors",
        *(f"samples/step-{step:05d}.png" for step in (1, 2, 4, 7, 10, 13, 16, 20)),
    }
    warnings.simplefilter("ignore")  # Python warns of escapes in random bytes before it refuses them
    for name in names:
        with pytest.raises((ValueError, AttributeError)):
            list(pickletools.genops((finished.folder / name).read_bytes()))


def test_public_metrics_contain_public_facts_only(finished):
    lines = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines
    assert all(set(line) == {"step", "epsilon", "field_rms"} for line in lines)
    assert lines[-1]["step"] == 20


def test_progress_never_understates_the_spent_epsilon(finished):
    assert [(told.step, told.num_steps) for told in finished.told] == [(step, 24) for step in range(1, 25)]
    *once, steps = finished.card.charges
    assert steps.name == "transport_steps"
    for told in (finished.told[0], finished.told[9], finished.told[19]):
        spent = epsilon_pld([*once, steps.model_copy(update={"count": told.step})], 1e-5)
        assert spent <= told.epsilon <= 10.0


def test_callbacks_get_the_pictures_and_metrics_that_are_written(finished):
    samples = finished.folder / "samples"
    pictures = {told.step: np.asarray(told.picture) for told in finished.told if told.picture is not None}
    assert {f"step-{step:05d}.png" for step in pictures} == {path.name for path in samples.iterdir()}
    assert all(np.array_equal(np.asarray(Image.open(samples / f"step-{step:05d}.png")), pictures[step])
               for step in pictures)  # fmt: skip
    lines = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    told = {told.step: (told.epsilon, told.field_rms) for told in finished.told}
    assert all(told[line["step"]] == (line["epsilon"], line["field_rms"]) for line in lines)
    assert [told.field_rms is None for told in finished.told] == [False] * 20 + [True] * 4


@pytest.mark.parametrize(
    ("error", "at"), [(RuntimeError, 1), (OSError, 7), (FloatingPointError, 7), (KeyboardInterrupt, 7), (KeyError, 20)]
)
def test_a_callback_that_raises_loses_no_step_and_no_budget(tmp_path, monkeypatch, error, at):
    asking, raised = Asking(monkeypatch), error("mine")

    def fail(progress):
        if progress.step == at:
            raise raised

    data, made = toy(), config()
    with pytest.raises(error) as stop:
        runs.start(data, made, tmp_path / "run", STAGES, [fail])
    assert stop.value is raised
    assert asking.steps == charged(tmp_path / "run")["transport_steps"] == at
    assert load_checkpoint(tmp_path / "run" / "private" / CHECKPOINT)[1].step == at
    resume(tmp_path / "run")
    assert asking.steps == charged(tmp_path / "run")["transport_steps"] == made.plan.num_steps == 20
    assert asking.made == charged(tmp_path / "run")
    assert verify(tmp_path / "run", STAGES).ok


def test_a_callback_that_runs_out_of_memory_does_not_tell_how_much_is_held(tmp_path):
    def fail(progress):
        raise torch.OutOfMemoryError("17 GiB are in use")

    with pytest.raises(InputError, match=r"its message is withheld.*continue with train --resume") as stop:
        runs.start(toy(), config(), tmp_path / "run", STAGES, [fail])
    assert "17" not in str(stop.value).replace(str(tmp_path), "")
    assert stop.value.__suppress_context__


def test_the_log_says_where_the_run_lies_and_its_stages(tmp_path, caplog):
    caplog.set_level("INFO", "dp_sinkhorn")
    start(tmp_path / "run")
    lines = [record.getMessage() for record in caplog.records]
    goal = "20: 300 records, target epsilon 10, delta 1e-05"
    assert lines[0] == f"run in {tmp_path / 'run'} from step 0 of {goal}"
    assert lines[1:-1] == [
        f"stage {name}" for name in ("class_counts", "principal_subspace", "transport_steps", "fine_tuning")
    ]
    assert lines[-1].startswith(f"release in {tmp_path / 'run' / 'release'}: epsilon 9.9")


def test_the_config_reads_back_equal(tmp_path):
    made = config(class_counts={"prior": "0.25,0.75"})
    path = tmp_path / "config.toml"
    path.write_text(made.to_toml())
    again = config_of(path)
    assert again.settings == settings(LEAN["record"], class_counts={"prior": (0.25, 0.75)}) == settings_of(path)
    assert again.sha256() == made.sha256()
    assert (again.plan, again.data) == (made.plan, made.data)


@pytest.mark.parametrize("base", [SMALL, LEAN["embedding"], LEAN["batch"]], ids=["record", "embedding", "batch"])
def test_every_release_is_charged_on_disk_before_it_is_made(tmp_path, monkeypatch, base):
    made, folder = Counter(), tmp_path / "run"

    def released(name, queries):
        made[name] += queries
        assert made[name] <= charged(folder)[name]

    Asking(monkeypatch, released=released)
    card = start(folder, base=base).card
    assert made == charged(folder) == Counter({charge.name: charge.count for charge in card.charges})
    assert card.num_steps == 20
    assert verify(folder, STAGES).ok


def test_the_released_variance_is_about_the_denoised_centre(tmp_path):
    """E‖y‖² has noise 64·√2·σ/300. The square of the noisy mean image would have far more."""
    data, stage = toy(), STAGES["principal_subspace"]
    run = config(data, target_epsilon=0.3)
    noise = 64 * 2**0.5 * stage.charge(run.plan, "first_moments").noise_multiplier / 300
    images = torch.cat(list(data.float_chunks())).double()
    for seed in range(8):
        (folder := tmp_path / str(seed)).mkdir()
        seeded = run.model_copy(update={"settings": run.settings.model_copy(update={"test_seed": seed})})
        made = loop.Run(seeded, data, folder, STAGES)
        list(stage.run(made.curator, state := made.state))
        exact = float((images - state.subspace.centre).square().sum(1).mean())
        assert noise <= state.variance <= exact + 4.0 * noise


@pytest.mark.parametrize("declared", [True, False])
def test_a_class_without_records_gets_a_warning_unless_declared(tmp_path, declared):
    two = toy()
    data = LabelledImages(two.pixels, two.labels, ("0", "1", "{2}"))
    prior = {"class_counts": {"prior": (0.4, 0.4, 0.2)}} if declared else {}
    card = start(tmp_path / "run", data, test_seed=1, **prior).card
    told = "class {2} may have no records at all: noise alone can explain its count"
    assert (told in card.warnings) is not declared
    assert not any("class 0" in line for line in card.warnings)
    if declared:
        assert card.class_prior.how == "declared"
        assert card.class_prior.shares == pytest.approx([0.4, 0.4, 0.2])
        assert card.class_prior.epsilon_alone == 0.0
        assert "class_counts" not in charged(tmp_path / "run")


def test_a_declared_prior_must_fit_the_classes():
    with pytest.raises(InputError, match=r"class_counts.prior=0.2,0.3,0.5 does not fit 2 classes"):
        config(class_counts={"prior": "0.2,0.3,0.5"})


def test_a_single_class_needs_no_histogram(tmp_path):
    card = start(tmp_path / "run", toy(classes=1)).card
    assert card.class_prior.how == "declared"
    assert card.class_prior.shares == (1.0,)
    assert "class_counts" not in {charge.name for charge in card.charges}


@pytest.mark.parametrize(("few", "told"), [(9, True), (150, False)])
def test_the_card_warns_of_a_class_hidden_by_noise(tmp_path, few, told):
    both = toy(600)
    data = both.subset(torch.cat([(both.labels == 0).nonzero()[:, 0], (both.labels == 1).nonzero()[:few, 0]]))
    share = few / (300 + few)
    prior = {"prior": (1.0 - share, share)}
    card = start(tmp_path / "run", data, target_epsilon=0.3, class_counts=prior).card
    assert [line for line in card.warnings if "too few records" in line] == (
        ["too few records for this budget in class 1: its images look much like those of all other classes"]
        if told
        else []
    )
    assert verify(tmp_path / "run", STAGES).ok


def test_stages_finish_a_generator_in_the_state_of_a_release(tmp_path, monkeypatch):
    """Batch statistics of one class's images differ from those of a release. Finishing does not change the average."""
    made = config(base=SMALL, generator="dcgan", num_steps=2, noise_multiplier=20, private_metrics=True)
    (tmp_path / "private").mkdir()
    run = loop.Run(made, toy(), tmp_path, STAGES)
    steps, kept, modes = STAGES["transport_steps"], [], []

    def watched(curator, state):
        before = {name: value.clone() for name, value in state.generator.state_dict().items()}
        type(steps).figures(steps, curator, state)
        kept.append(all(torch.equal(value, before[name]) for name, value in state.generator.state_dict().items()))

    def any_training(network):
        return any(module.training for module in network.modules())

    monkeypatch.setattr(steps, "figures", watched)
    run.train()
    assert kept
    assert all(kept)
    assert run.state.generator.training
    for stage in run.stages:
        real = stage.finish
        monkeypatch.setattr(
            stage, "finish", lambda state, real=real: modes.append(any_training(state.average)) or real(state)
        )
    before = {name: value.clone() for name, value in run.state.average.state_dict().items()}
    state = run.finish(lambda progress: None, lambda state: None)
    assert len(modes) == len(run.stages) == 7
    assert not any(modes)
    assert all(torch.equal(state.average.state_dict()[name], value) for name, value in before.items())
    assert not any_training(state.finished)


def test_a_failed_allocation_hides_how_many_were_drawn(tmp_path, monkeypatch):
    def full(*args):
        raise RuntimeError("you tried to allocate 9600032000 bytes")

    with monkeypatch.context() as patch:
        Asking(patch, at=3, what=full)
        with pytest.raises(InputError, match=r"stopped: RuntimeError .* continue with train --resume") as stop:
            start(tmp_path / "run")
    assert "9600032000" not in str(stop.value)
    assert stop.value.__suppress_context__
    assert (tmp_path / "run" / "ledger.jsonl").is_file()
    # Before a run uses records, an error is shown unchanged.
    monkeypatch.setattr(loop, "build_generator", full)
    with pytest.raises(RuntimeError, match="9600032000"):
        start(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_that_fails_before_its_first_charge_leaves_nothing(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "build_generator", broken)
    with pytest.raises(InputError, match=r"No space left on device; make room, then start it again \(nothing was"):
        start(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_with_a_test_seed_are_equal_and_not_private(tmp_path):
    cards = [start(tmp_path / name, test_seed=7).card for name in "ab"]
    assert cards[0].weights_sha256 == cards[1].weights_sha256
    assert not cards[0].private
    assert "NOT PRIVATE" in cards[0].statement()
    assert "NOT PRIVATE" in cards[0].randomness
    assert "NOT PRIVATE" in (tmp_path / "a" / "release" / "README.md").read_text()
    result = verify(tmp_path / "a", STAGES)
    assert not result.ok
    assert not result.card.private


def test_without_a_test_seed_no_two_runs_are_equal(tmp_path):
    cards = [start(tmp_path / name).card for name in "ab"]
    assert cards[0].weights_sha256 != cards[1].weights_sha256


def test_transport_steps_alone_learn_the_classes(tmp_path):
    """No other stage corrects the generator after them."""
    data = toy(count=1500, classes=3)
    changes = {
        "test_seed": 1,  # the same noise every time, so that the test does not depend on luck
        "num_steps": 250,
        "num_generated": 30,
        "transport_steps": {"num_reference": 60},
        "learning_rate": 5e-3,
        "average_decay": 0.9,
    }
    start(tmp_path / "run", data, **changes)
    images = sample(*load_release(tmp_path / "run", STAGES), 300)
    means = torch.stack([images.floats()[images.labels == k].mean(0) for k in range(3)])
    truth = torch.stack([data.floats()[data.labels == k].mean(0) for k in range(3)])
    assert torch.cdist(means, truth).argmin(1).tolist() == [0, 1, 2]
    assert float((means - truth).norm(dim=1).max()) < 0.3 * float(torch.pdist(truth).min())


def test_a_missing_device_is_refused():
    with pytest.raises(InputError, match="device='warp'"):
        config(device="warp")
