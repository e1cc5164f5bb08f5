"""A whole run: what it leaves behind, how it goes on after an interruption, what it claims."""

import json
import pickletools
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dp_sinkhorn.build import resolve
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import epsilon_pld
from dp_sinkhorn.privacy.ledger import Header, Ledger
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.settings import make_settings
from dp_sinkhorn.stages.principal_subspace import release_statistics
from dp_sinkhorn.training import loop as trainer
from dp_sinkhorn.training import methods, surroundings
from dp_sinkhorn.training import run_folder as runs
from support.toy import BEFORE_THE_STEPS, settings, toy


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make the run die, as by Ctrl-C, before step number `steps`."""
    real = methods.training_step
    count = 0

    def step(*args):
        nonlocal count
        if count == steps:
            raise KeyboardInterrupt
        count += 1
        return real(*args)

    monkeypatch.setattr(methods, "training_step", step)


def test_a_run_spends_its_epsilon_and_says_so(tmp_path):
    result = runs.start(toy(), "toy", settings(), tmp_path / "run")
    card = result.card
    assert 9.9 <= card.epsilon <= 10.0 <= card.epsilon_rdp
    assert card.private
    assert card.num_steps == 20
    assert sum(charge.count for charge in card.charges if charge.name == "step") == 20
    assert {charge.name: charge.count for charge in card.charges} == {
        **BEFORE_THE_STEPS,
        "step": 20,
    }
    assert card.classifier == "linear, on scattering features"
    assert card.corrected_dimensions >= 4
    assert card.refinement_steps == 4
    assert card.class_prior.how == "noisy histogram"
    assert card.class_prior.shares == pytest.approx([0.5, 0.5], abs=0.15)
    assert 0 < card.class_prior.epsilon_alone < card.epsilon
    assert verify(tmp_path / "run").ok


def test_the_released_variance_is_about_the_centre_in_use(tmp_path):
    """Noise of 64·√2·σ/300 is on E‖y‖². That on the square of the mean image, were it in there, is far more."""
    data = toy()
    config = resolve(settings(target_epsilon=0.3), runs.facts_of("toy", data))
    noise = 64 * 2**0.5 * config.privacy.once["first_moments"] / 300
    images = torch.cat(list(data.float_chunks())).double()
    for seed in range(8):
        ledger = Ledger(tmp_path / f"ledger{seed}.jsonl")
        ledger.begin(Header(run="0" * 32, config_sha256=config.sha256()))
        found = release_statistics(data, config, ledger, CryptoRandom(test_seed=seed))
        exact = float((images - found.subspace.centre).square().sum(1).mean())
        assert noise <= found.variance <= exact + 4.0 * noise


@pytest.mark.parametrize("declared", [True, False])
def test_a_class_without_records_is_told_on_the_card_unless_it_was_declared(tmp_path, declared):
    two = toy()
    data = LabelledImages(two.pixels, two.labels, ("0", "1", "{2}"))
    prior = {"class_prior": (0.4, 0.4, 0.2)} if declared else {}
    warnings = runs.start(data, "toy", settings(test_seed=1, **prior), tmp_path / "run").card.warnings
    told = "class {2} may have no records at all: no more were counted than noise alone may show"
    assert (told in warnings) is not declared
    assert not any("class 0" in line for line in warnings)


def test_what_is_put_around_a_generator_fits_what_it_draws_once_released(tmp_path, monkeypatch):
    """Batch statistics of one class's images are not those of a release, and working it out changes no weight."""
    config = resolve(settings(generator="dcgan", num_steps=2, private_metrics=True), runs.facts_of("toy", toy()))
    (tmp_path / "config.toml").write_text(config.to_toml())
    (tmp_path / "private").mkdir()
    run = trainer.Run(config, toy(), tmp_path)
    drawn, figures = [], run.method.private_figures

    def watched(generator, random):
        before = {name: value.clone() for name, value in generator.state_dict().items()}
        found = figures(generator, random)
        drawn.append(all(torch.equal(value, before[name]) for name, value in generator.state_dict().items()))
        return found

    monkeypatch.setattr(run.method, "private_figures", watched)
    run.train(lambda done, total, epsilon: None)
    assert drawn
    assert all(drawn)
    assert run.generator.training
    real, modes = run.method.around, []
    monkeypatch.setattr(run.method, "around", lambda average: modes.append(average.training) or real(average))
    before = {name: value.clone() for name, value in run.average.state_dict().items()}
    released = run.released_tensors(lambda *_: None)
    assert modes == [False]
    assert all(torch.equal(released[name], value) for name, value in before.items())


def test_a_failed_allocation_does_not_tell_how_many_records_were_drawn(tmp_path, monkeypatch):
    def step(*args):
        raise RuntimeError("you tried to allocate 9600032000 bytes")

    monkeypatch.setattr(methods, "training_step", step)
    with pytest.raises(InputError, match=r"stopped: RuntimeError, .* go on with train --resume") as stop:
        runs.start(toy(), "toy", settings(), tmp_path / "run")
    assert "9600032000" not in str(stop.value)
    assert stop.value.__suppress_context__
    assert (tmp_path / "run" / "ledger.jsonl").is_file()
    # Before anything of the records is in it, a fault is shown as it is.
    monkeypatch.setattr(trainer, "build_generator", step)
    with pytest.raises(RuntimeError, match="9600032000"):
        runs.start(toy(), "toy", settings(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("few", "told"), [(9, True), (150, False)])
def test_a_class_that_the_noise_hides_is_told_on_the_card(tmp_path, few, told):
    both = toy(600)
    data = both.subset(torch.cat([(both.labels == 0).nonzero()[:, 0], (both.labels == 1).nonzero()[:few, 0]]))
    share = few / (300 + few)
    wanted = settings(target_epsilon=0.3, class_prior=(1.0 - share, share))
    warnings = runs.start(data, "toy", wanted, tmp_path / "run").card.warnings
    assert [line for line in warnings if "too few records" in line] == (
        ["too few records for this budget in class 1: images there look much like those of all other classes"]
        if told
        else []
    )
    assert verify(tmp_path / "run").ok


def test_the_released_classifier_prefers_no_class_among_the_corrected_images(tmp_path, monkeypatch):
    real = surroundings.release_classifier

    def partial_to_the_first(*args):
        weight = real(*args)
        weight[0, -1] += 1000.0
        return weight

    monkeypatch.setattr(surroundings, "release_classifier", partial_to_the_first)
    runs.start(toy(), "toy", settings(), tmp_path / "run")
    _, refined = load_release(tmp_path / "run")
    generator = refined.generator
    images = generator.generator.sample(torch.arange(2).repeat(2000), torch.Generator().manual_seed(77))
    found = (generator.classifier.features(images) @ generator.classifier.weight.T).softmax(dim=1).mean(0)
    assert found.tolist() == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize(("count", "held"), [(300, True), (1000, False)])
def test_by_a_tiny_budget_the_released_correction_is_held_under_rejection(tmp_path, monkeypatch, count, held):
    shifts = []

    def moved(generator, correction, *args):
        shifts.append(correction["shifts"] + 0.25)
        return {**correction, "shifts": shifts[-1]}

    monkeypatch.setattr(surroundings, "held_under_rejection", moved)
    runs.start(toy(count), "toy", settings(), tmp_path / "run")
    assert len(shifts) == held
    released = load_file(tmp_path / "run" / "release" / "weights.safetensors")["correction.shifts"]
    assert not held or torch.equal(released, shifts[0])


def test_the_run_folder_holds_what_the_design_says_and_no_pickle(tmp_path):
    runs.start(toy(), "toy", settings(), tmp_path / "run")
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert names == {
        "config.toml",
        "ledger.jsonl",
        "metrics.jsonl",
        "private/checkpoint.safetensors",
        "release/README.md",
        "release/card.json",
        "release/weights.safetensors",
        *(f"samples/step-{step:05d}.png" for step in (1, 2, 4, 7, 10, 13, 16, 20)),
    }
    warnings.simplefilter("ignore")  # what Python says of escapes in random bytes, before it refuses them
    for name in names:
        with pytest.raises((ValueError, AttributeError)):
            list(pickletools.genops((tmp_path / "run" / name).read_bytes()))


def test_the_config_reads_back_equal(tmp_path):
    runs.start(toy(), "toy", settings(class_prior="0.25,0.75"), tmp_path / "run")
    config = runs.stored_config(tmp_path / "run")
    assert config.settings == settings(class_prior=(0.25, 0.75))
    assert config.privacy.num_steps == 20
    assert config.data.num_records == 300
    again = make_settings(tmp_path / "run" / "config.toml", {})
    assert again == config.settings


def test_every_step_is_charged_before_it_runs(tmp_path, monkeypatch):
    real = methods.training_step
    seen = []

    def step(*args):
        seen.append(Ledger(tmp_path / "run" / "ledger.jsonl").count("step"))
        return real(*args)

    monkeypatch.setattr(methods, "training_step", step)
    runs.start(toy(), "toy", settings(), tmp_path / "run")
    assert len(seen) == 20
    assert all(charged > done for done, charged in enumerate(seen))


def test_an_interrupted_run_goes_on_and_never_spends_more(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    changes = {"num_steps": 400}
    with monkeypatch.context() as patch:
        interrupt_after(patch, 37)
        with pytest.raises(KeyboardInterrupt):
            runs.start(toy(), "toy", settings(**changes), folder)
    assert not (folder / "release").exists()
    charged = Ledger(folder / "ledger.jsonl").count("step")
    assert charged == 40  # blocks of 4: the step it died in is charged
    taken = []
    real = methods.training_step
    monkeypatch.setattr(methods, "training_step", lambda *args: taken.append(1) or real(*args))
    early = {path.name: path.read_bytes() for path in (folder / "samples").iterdir()}
    assert set(early) == {"step-00004.png", "step-00008.png", "step-00020.png"}
    result = runs.resume(toy(), folder, {})
    # After the crash its block's end, a moment for a picture, is caught up with; those before stay as they were.
    steps = (4, 8, 20, 40, 80, 140, 200, 260, 320, 400)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"step-{step:05d}.png" for step in steps]
    assert all((folder / "samples" / name).read_bytes() == content for name, content in early.items())
    assert len(taken) == 400 - charged
    assert result.card.num_steps == 400
    assert 9.9 <= result.card.epsilon <= 10.0


def test_a_resumed_run_has_the_state_of_an_unbroken_one(tmp_path, monkeypatch):
    # Interrupted between two blocks nothing is lost: only the noise after it differs. Freeze that too.
    def train_with(folder, stop):
        monkeypatch.setattr(
            trainer.CryptoRandom, "normal", lambda self, *shape: torch.zeros(shape, dtype=torch.float64)
        )
        monkeypatch.setattr(
            trainer.CryptoRandom, "integers", lambda self, width, *shape: torch.zeros(shape, dtype=torch.int64)
        )
        if stop:
            with monkeypatch.context() as patch:
                interrupt_after(patch, 12)
                with pytest.raises(KeyboardInterrupt):
                    runs.start(toy(40), "toy", settings(), folder)
            # The 13th step was charged, not taken: take the charge back for this comparison only.
            lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
            (folder / "ledger.jsonl").write_text("".join(lines[:-1]))
            runs.resume(toy(40), folder, {})
        else:
            runs.start(toy(40), "toy", settings(), folder)
        return load_file(folder / "release" / "weights.safetensors")

    whole, broken = train_with(tmp_path / "a", stop=False), train_with(tmp_path / "b", stop=True)
    assert whole.keys() == broken.keys()
    for name in whole:
        torch.testing.assert_close(broken[name], whole[name], rtol=1e-4, atol=1e-5)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = runs.start(toy(), "toy", settings(), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = runs.resume(toy(), tmp_path / "run", {"num_steps": "20"})
    assert again.card == first.card
    with pytest.raises(InputError, match="the records are not those"):
        runs.resume(toy(seed=1), tmp_path / "run", {})
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_finished_run_does_not_mind_its_checkpoint_damaged_or_gone(tmp_path):
    first = runs.start(toy(), "toy", settings(), tmp_path / "run")
    checkpoint = tmp_path / "run" / "private" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"torn")
    assert runs.resume(toy(), tmp_path / "run", {}).card == first.card
    checkpoint.unlink()
    assert runs.resume(toy(), tmp_path / "run", {}).card == first.card


def test_resume_refuses_other_settings_other_data_and_damage(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="no run to resume"):
        runs.resume(toy(), folder, {})
    with monkeypatch.context() as patch:
        interrupt_after(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            runs.start(toy(), "toy", settings(), folder)
    with pytest.raises(InputError, match=r"target_epsilon=5.0 was given, but the run .* has 10.0"):
        runs.resume(toy(), folder, {"target_epsilon": 5})
    with pytest.raises(InputError, match="299 records"):
        runs.resume(toy(299), folder, {})
    (folder / "private" / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="missing or damaged"):
        runs.resume(toy(), folder, {})


def test_a_second_process_on_the_same_run_is_refused(tmp_path, monkeypatch):
    real = methods.training_step
    refusals = []

    def step(*args):
        with pytest.raises(InputError, match="another process is training") as refusal:
            runs.resume(toy(), tmp_path / "run", {})
        refusals.append(refusal)
        return real(*args)

    monkeypatch.setattr(methods, "training_step", step)
    assert runs.start(toy(), "toy", settings(num_steps=2), tmp_path / "run").card.num_steps == 2
    assert len(refusals) == 2


def test_progress_never_understates_the_spent_epsilon(tmp_path):
    seen = []
    config = {"num_steps": 60}
    runs.start(
        toy(), "toy", settings(**config), tmp_path / "run", lambda step, total, epsilon: seen.append((step, epsilon))
    )
    charges = Ledger(tmp_path / "run" / "ledger.jsonl").charges
    once = [charge for charge in charges if charge.name != "step"]
    assert [step for step, _ in seen] == list(range(1, 61))
    for step, epsilon in (seen[0], seen[3], seen[29], seen[-1]):
        spent = [*once, charges[-1].model_copy(update={"count": step, "first": 0})]
        assert epsilon_pld(spent, 1e-5) <= epsilon <= 10.01


def test_a_run_that_fails_before_its_first_charge_leaves_nothing(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "build_generator", broken)
    with pytest.raises(InputError, match="No space left on device"):
        runs.start(toy(), "toy", settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_test_seed_makes_equal_runs_and_marks_them_not_private(tmp_path):
    cards = [runs.start(toy(), "toy", settings(test_seed=7), tmp_path / name).card for name in "ab"]
    assert cards[0].weights_sha256 == cards[1].weights_sha256
    assert not cards[0].private
    assert "NOT PRIVATE" in cards[0].statement()
    assert "NOT PRIVATE" in cards[0].randomness
    assert "NOT PRIVATE" in (tmp_path / "a" / "release" / "README.md").read_text()
    result = verify(tmp_path / "a")
    assert not result.ok
    assert not result.card.private


def test_without_a_test_seed_no_two_runs_are_equal(tmp_path):
    cards = [runs.start(toy(), "toy", settings(), tmp_path / name).card for name in "ab"]
    assert cards[0].weights_sha256 != cards[1].weights_sha256


def test_a_single_class_needs_no_histogram(tmp_path):
    card = runs.start(toy(classes=1), "toy", settings(), tmp_path / "run").card
    assert card.class_prior.how == "declared"
    assert card.class_prior.shares == (1.0,)
    assert "class_counts" not in {charge.name for charge in card.charges}


def test_a_declared_prior_is_not_charged(tmp_path):
    card = runs.start(toy(), "toy", settings(class_prior="0.25,0.75"), tmp_path / "run").card
    assert card.class_prior.shares == pytest.approx([0.25, 0.75])
    assert card.class_prior.epsilon_alone == 0.0
    with pytest.raises(InputError, match="does not fit 2 classes"):
        runs.start(toy(), "toy", settings(class_prior="0.2,0.3,0.5"), tmp_path / "other")


def test_public_metrics_hold_public_facts_only(tmp_path):
    runs.start(toy(), "toy", settings(), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines
    assert all(set(line) == {"step", "epsilon", "field_rms"} for line in lines)
    assert lines[-1]["step"] == 20


@pytest.mark.parametrize("generator", ["conv", "mlp"])
def test_training_finds_the_classes(tmp_path, generator):
    data = toy(count=2000, classes=3)
    changes = {
        "test_seed": 1,  # the same noise every time: this is about the direction of the steps, not about luck
        "num_steps": 400,
        "channels": 16,
        "num_generated": 30,
        "num_reference": 60,
        "learning_rate": 5e-3,
        "generator": generator,
    }
    runs.start(data, "toy", settings(**changes), tmp_path / "run")
    from dp_sinkhorn.release.weights import load_release
    from dp_sinkhorn.sampling.draw import sample

    images = sample(*load_release(tmp_path / "run"), 300)
    means = torch.stack([images.floats()[images.labels == k].mean(0) for k in range(3)])
    truth = torch.stack([data.floats()[data.labels == k].mean(0) for k in range(3)])
    assert torch.cdist(means, truth).argmin(1).tolist() == [0, 1, 2]
    assert float((means - truth).norm(dim=1).max()) < 0.3 * float(torch.pdist(truth).min())


def test_device_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="device='warp'"):
        runs.start(toy(), "toy", settings(device="warp"), Path(tmp_path) / "run")
    assert not (tmp_path / "run").exists()
