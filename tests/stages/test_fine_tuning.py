"""Fine-tuning: where its two parts lead, what they leave as it is, and how a run goes on that was stopped in it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.mean_embedding import EmbeddingGoal, ReleasedEmbedding
from dp_sinkhorn.features.scattering import Scattering
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.tuned import LatentChoice, TunedGenerator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.curator import Draw, HeldRecords
from dp_sinkhorn.privacy.ledger import read_charges
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import CARD, README
from dp_sinkhorn.settings import RunConfig
from dp_sinkhorn.stages import fine_tuning
from dp_sinkhorn.stages.base import State
from dp_sinkhorn.stages.class_embedding import EmbeddingSum
from dp_sinkhorn.stages.class_features import sum_class_features
from dp_sinkhorn.stages.class_moments import affine_tensors
from dp_sinkhorn.stages.fine_tuning import (
    FineTuning,
    FineTuningRules,
    Goal,
    towards_embedding,
    tuned_on_all,
    with_last_layers,
)
from dp_sinkhorn.stages.label_classifier import choice_tensors
from dp_sinkhorn.training.run_folder import resume, resume_hint, start
from support.halves import Halves, telling
from support.led_by_embedding import features, led_by, means
from support.stage_runs import FACTS, SETTINGS, STAGES, config_of, plain_descent, toy, with_noise

NAME = FineTuning.name
SHAPE, SIZE = (1, 8, 8), 64


def rules(num_steps: int = 0, embedding_steps: int = 0, num_generated: int = 40) -> FineTuningRules:
    return FineTuningRules(num_steps=num_steps, embedding_steps=embedding_steps, num_generated=num_generated)


# Towards the embedding.


def few_of_the_third(count: int, few: int) -> LabelledImages:
    """Three classes, and only so many records of the last."""
    data = toy(count, classes=3)
    return data.subset(torch.cat([torch.where(data.labels < 2)[0], torch.where(data.labels == 2)[0][:few]]))


def test_the_first_steps_move_each_class_to_its_own_embedding(monkeypatch) -> None:
    monkeypatch.setattr(fine_tuning, "_EMBEDDING_RATE", 1e-2)
    monkeypatch.setattr(fine_tuning, "_IMAGES", 40)
    state, reported = led_by(toy(), "record"), []
    state.report = reported.append
    trained = copy.deepcopy(state.average.state_dict())
    wanted = state.embedding.sums / state.class_counts.unsqueeze(1)
    before = torch.cdist(means(state.average), wanted)
    after = torch.cdist(means(towards_embedding(state.average, state, rules(embedding_steps=100))), wanted)
    assert (after.diagonal() < 0.5 * before.diagonal()).all()
    assert (after.diagonal() < 0.5 * after.flip(0).diagonal()).all()
    assert reported == list(range(1, 101))
    assert all(torch.equal(state.average.state_dict()[name], weight) for name, weight in trained.items())


def test_a_class_that_noise_hides_stays_as_it_is(monkeypatch) -> None:
    """What noise leaves of its embedding would lead it anywhere, and the steps before may have found it."""
    monkeypatch.setattr(fine_tuning, "_EMBEDDING_RATE", 8e-3)
    monkeypatch.setattr(fine_tuning, "_IMAGES", 30)
    data, some = few_of_the_third(600, 8), rules(embedding_steps=120)
    first = led_by(data, "record")
    found = towards_embedding(first.average, first, some)

    def moves() -> list[float]:
        # Noise of 2 on a number of a sum: 0.25 on the mean of eight records, 0.01 on that of two hundred.
        moved = towards_embedding(found, led_by(data, "record", noise=2.0), some)
        return (means(moved) - means(found)).norm(dim=1).tolist()

    *seen, hidden = moves()
    assert hidden < 0.12
    # The classes that are seen move; and without its own means the hidden one would go to them.
    assert min(seen) > 2.0 * hidden
    monkeypatch.setattr(fine_tuning, "_own_means", lambda generator, goal, latents: goal.target)
    assert moves()[2] > 0.5


def test_less_noise_hides_a_class_here_than_in_embedding_steps(monkeypatch) -> None:
    """On the mean of 33 records here 0.03: more than 0.025, less than 0.05."""
    state = led_by(few_of_the_third(1200, 33), "record", noise=1.0)
    hidden = []
    monkeypatch.setattr(
        fine_tuning, "_own_means", lambda _, goal, latents: hidden.append(goal.hidden.tolist()) or goal.target
    )
    towards_embedding(state.average, state, rules(embedding_steps=1))
    assert hidden == [[False, False, True]]
    assert not EmbeddingGoal.of(state.embedding, state.class_counts, 9).hidden.any()


# On the whole loss.


class Smooth(Generator):
    """A bright bump in the middle of noise that is weak."""

    def __init__(self) -> None:
        super().__init__(SHAPE, 2, SIZE)
        self.scale = torch.nn.Parameter(torch.tensor(0.2))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        line = torch.linspace(-1.5, 1.5, 8)
        bump = torch.exp(-line.square().unsqueeze(1) - line.square()).flatten()
        return self.scale * (latents - 0.5) + bump - 0.6


def tuned(dimensions: int = 0, *, choice: bool = False) -> TunedGenerator:
    """Its images through new layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TunedGenerator(Smooth(), dimensions, 16, choice=choice).requires_grad_(requires_grad=False).eval()


def striped(count: int = 300) -> LabelledImages:
    """The same bump; class 0 with stripes across it, class 1 with stripes along it."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(count)
    stripes = torch.tensor([0.25, -0.25]).repeat(4).expand(8, 8)
    texture = torch.stack([stripes, stripes.T]).flatten(1)[labels]
    with torch.no_grad():
        images = Smooth()(torch.rand(2 * count, SIZE, generator=random), labels) + texture
    pixels = ((images + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return LabelledImages(pixels.view(-1, *SHAPE), labels, ("across", "along"))


def knowing(data: LabelledImages, noise: float, *, embedding: bool = False) -> State:
    """What is released of these records with so much noise: mean features, or an embedding."""
    config = with_noise(config_of("record"), "class_features", noise)
    counts, draw = torch.bincount(data.labels).double(), Draw(HeldRecords(data))
    total = (EmbeddingSum(features(), 2) if embedding else lambda some: sum_class_features(2, some))(draw).value
    released = total + noise * CryptoRandom(test_seed=0).normal(*total.shape)
    state = plain_descent(config, Smooth(), counts=counts)
    if embedding:
        state.embedding = ReleasedEmbedding(features(), released, noise)
    else:
        state.learnt["class_features"] = released
    return state


def nothing(**known: object) -> Goal:
    """A goal of which only this is known."""
    return replace(Goal(Scattering(SHAPE), None, None, None, None, None), **known)


def gaps(generator: Generator, data: LabelledImages) -> list[float]:
    """Squared distance of the mean features, class by class."""
    scattering, found = Scattering(SHAPE), []
    for label, made in enumerate(generator.samples_by_class(400, 9)):
        real = scattering(data.floats()[data.labels == label]).mean(0)
        found.append(float((scattering(made).mean(0) - real).square().sum()))
    return found


def images_of(generator: Generator) -> torch.Tensor:
    with torch.no_grad():
        return generator.sample(torch.arange(100) % 2, torch.Generator().manual_seed(0))


def test_images_get_the_records_mean_features() -> None:
    data = striped()
    state, before = knowing(data, 1e-3), tuned()
    goal = Goal.of(before, state)
    after = tuned_on_all(before, goal, state, rules(num_steps=150))
    assert all(now < 0.3 * then for now, then in zip(gaps(after, data), gaps(before, data), strict=True))
    # And each class its own.
    swapped = tuned_on_all(before, replace(goal, features=goal.features.flip(0)), state, rules(num_steps=150))
    assert all(now > 1.5 * then for now, then in zip(gaps(swapped, data), gaps(before, data), strict=True))


def test_images_get_the_records_embedding() -> None:
    data = striped()
    state, before = knowing(data, 1e-3, embedding=True), tuned()
    wanted = state.embedding.sums / state.class_counts.unsqueeze(1)
    after = tuned_on_all(before, Goal.of(before, state), state, rules(num_steps=150))
    then, now = (torch.cdist(means(generator), wanted).diagonal() for generator in (before, after))
    assert bool((now < 0.6 * then).all()), (then, now)


@pytest.mark.parametrize("embedding", [False, True])
def test_where_noise_hides_the_records_the_targets_are_the_own_means(monkeypatch, embedding: bool) -> None:
    monkeypatch.setattr(fine_tuning, "_OWN_IMAGES", 600)
    state, before = knowing(striped(100), 1e5, embedding=embedding), tuned()
    own = [Scattering(SHAPE)(rows) for rows in before.samples_by_class(300, state.config.settings.seed)]
    goal = Goal.of(before, state)
    if embedding:
        images = before.samples_by_class(300, state.config.settings.seed)
        rows = [features().single().of(some, of, SHAPE) for some, of in zip(images, own, strict=True)]
        torch.testing.assert_close(goal.embedding, torch.stack([some.mean(0) for some in rows]))
    else:
        torch.testing.assert_close(goal.features, torch.stack([some.mean(0) for some in own]))


def test_images_stay_where_they_are_if_nothing_is_known() -> None:
    state, before = knowing(striped(50), 1.0), tuned()
    after = tuned_on_all(before, nothing(), state, rules(num_steps=50))
    assert float((images_of(after) - images_of(before)).abs().max()) < 0.02
    # c·(x − x⁰)²: a pixel that is 0.1 off is pulled back by 2·10·0.1/(n·d).
    images = images_of(before)
    moved = (images + 0.1).requires_grad_()
    nothing().loss(moved, torch.arange(2).repeat_interleave(50), images).backward()
    torch.testing.assert_close(moved.grad, torch.full_like(images, 2.0 / images.numel()), rtol=1e-4, atol=0.0)


def test_a_network_that_the_steps_make_worse_is_not_released(monkeypatch) -> None:
    monkeypatch.setattr(fine_tuning, "_RATE", 0.5)
    state, before = knowing(striped(50), 1.0), tuned()
    after = tuned_on_all(before, nothing(), state, rules(num_steps=5))
    assert torch.equal(images_of(after), images_of(before))


def test_the_best_network_on_the_way_is_released(monkeypatch) -> None:
    """Its loss falls, then rises: the one of the step between is kept."""
    monkeypatch.setattr(fine_tuning, "_JUDGED_STEPS", 1)
    losses, weights = iter([5.0, 4.0, 2.0, 3.0, 6.0]), []

    def loss(moved: Generator) -> float:
        weights.append(moved.generator.scale.item())
        return next(losses)

    def push(moved: Generator, step: int) -> None:
        moved.generator.scale.grad = torch.tensor(-1.0)

    state = knowing(striped(50), 1.0)
    found = fine_tuning._descended(tuned(), push, state, 4, 1e-2, loss)
    assert len(set(weights)) == 5
    assert found.generator.scale.item() == weights[2]


def test_only_affine_map_and_choice_stay_fixed() -> None:
    state, before = knowing(striped(), 1e-3), tuned(4, choice=True)
    random = torch.Generator().manual_seed(1)
    for weight in before.affine.parameters():
        weight.copy_(0.05 * torch.randn(weight.shape, generator=random))
    after = tuned_on_all(before, Goal.of(before, state), state, rules(num_steps=3))
    same = {name: torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items()}
    assert {name.partition(".")[0] for name, equal in same.items() if equal} == {"affine", "choice"}
    assert not any(equal for name, equal in same.items() if name.partition(".")[0] not in ("affine", "choice"))


def test_last_layers_are_the_affine_map_and_the_choice_and_no_texture_yet(runs) -> None:
    state = copy.copy(runs("record")[0].state)
    tuned = with_last_layers(state.average, state)
    only = TunedGenerator(state.average, state.subspace.num_dimensions, 0, choice=True)
    only.affine.load_state_dict(affine_tensors(state.average, state))
    only.choice.load_state_dict(tuned.choice.state_dict())
    latents, labels = torch.rand(20, tuned.latent_dim, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    torch.testing.assert_close(tuned(latents, labels), only(latents[:, : only.latent_dim], labels))
    assert not torch.allclose(tuned(latents, labels), state.average(latents[:, : state.average.latent_dim], labels))
    # The choice is what the images tell that nothing has chosen.
    tuned.choice.load_state_dict(LatentChoice(state.average.latent_dim, 2).state_dict())
    wanted = choice_tensors(tuned, state)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in only.choice.state_dict().items())


# The classifier's part.


def classified(share: float, weight: torch.Tensor) -> Goal:
    state = plain_descent(config_of("record"), Halves(share), counts=torch.full((2,), 100.0).double())
    state.learnt["label_classifier"] = weight
    return Goal.of(Halves(share), state)


@pytest.mark.parametrize(("share", "trust"), [(1.0, 1.0), (0.75, 0.5), (0.5, 0.0), (0.1, 0.0)])
def test_the_trust_in_a_class_is_its_recall_beyond_chance(share: float, trust: float) -> None:
    """(K·found − 1)/(K − 1), and no less than none."""
    assert classified(share, telling()).trust.tolist() == pytest.approx([trust, trust], abs=0.1)


def test_no_class_is_preferred_among_the_images_before() -> None:
    goal = classified(1.0, telling(preferring=3_000.0))
    assert goal.trust.tolist() == [1.0, 1.0]


def test_only_recognised_classes_are_pulled_and_only_up_to_the_margin() -> None:
    weight, labels = telling().float(), torch.arange(2).repeat_interleave(20)
    with torch.no_grad():
        images = Halves(0.0).sample(labels, torch.Generator().manual_seed(0))  # all of the other class

    def pull(goal: Goal, at: torch.Tensor) -> torch.Tensor:
        moved = at.clone().requires_grad_()
        goal.loss(moved, labels, at).backward()
        return moved.grad

    goal = nothing(weight=weight, trust=torch.tensor([1.0, 0.0]))
    found = pull(goal, images)
    assert bool(found[:20].any(dim=1).all())
    assert not bool(found[20:].any())
    # Downhill the margin of the own class grows.
    scattering = Scattering(SHAPE)
    better, scores = (scattering(rows) @ weight.T for rows in (images - 1e-2 * found / found.abs().max(), images))
    assert bool(((better[:, 0] - better[:, 1]) > (scores[:, 0] - scores[:, 1]))[:20].all())
    # By half of a trust, half of a pull; and where it is sure, none.
    half = pull(nothing(weight=weight, trust=torch.tensor([0.5, 0.0])), images)
    torch.testing.assert_close(half, 0.5 * found)
    with torch.no_grad():
        right = Halves(1.0).sample(labels, torch.Generator().manual_seed(0))
    assert not bool(pull(nothing(weight=weight, trust=torch.ones(2)), right).any())


# In a run.


@pytest.fixture
def few_images(monkeypatch) -> None:
    fewer = {"class_moments._IMAGES": 400, "class_moments._MIN_PER_CLASS": 100, "label_classifier._EPOCHS": 1}
    for name, number in fewer.items():
        monkeypatch.setattr(f"dp_sinkhorn.stages.{name}", number)
    monkeypatch.setattr(fine_tuning, "_OWN_IMAGES", 200)


def seeded(config: RunConfig, seed: int | None) -> RunConfig:
    """Only the method's own stages."""
    only = config.only(method.STAGES)
    return only.model_copy(update={"settings": only.settings.model_copy(update={"test_seed": seed})})


def stopping_at(step: int) -> Callable[[State], None]:
    """In place of `State.finish_step`."""
    real = State.finish_step

    def tell(state: State) -> None:
        real(state)
        if state.steps_after == step:
            raise KeyboardInterrupt

    return tell


def card_of(folder: Path) -> PrivacyCard:
    return PrivacyCard.from_file(folder / "release" / CARD)


def steps_of(card: PrivacyCard) -> int:
    (entry,) = (entry for entry in card.stages if entry.name == NAME)
    return entry.facts["steps"]


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize(("mode", "step", "steps"), [("record", 2, 8), ("record", 7, 8), ("embedding", 3, 4)])
def test_a_run_stopped_in_fine_tuning_is_valid_and_can_be_resumed(tmp_path, monkeypatch, mode, step, steps) -> None:
    """In the first part, and in the second: it ends as an unbroken one does, and asks nothing more."""
    whole = start(toy(), seeded(config_of(mode), 3), tmp_path / "whole", method.STAGES).card
    for seed, name in ((3, "seeded"), (None, "private")):
        folder = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(State, "finish_step", stopping_at(step))
            with pytest.raises(KeyboardInterrupt):
                start(toy(), seeded(config_of(mode), seed), folder, method.STAGES)
        cut, charged = card_of(folder), read_charges(folder / "ledger.jsonl")
        assert steps_of(cut) == 0
        assert "not fine-tuned, because the run was interrupted: images are worse than they could be" in cut.warnings
        assert "and then to agree with all that was released" not in (folder / "release" / README).read_text()
        assert cut.generator.affine_dimensions == cut.generator.texture_channels == 0
        assert resume_hint(folder) == "continue with train --resume; the release so far is valid, but not fine-tuned"
        if seed is None:
            found = verify(folder, method.STAGES)
            assert (found.ok, found.problems, found.ledger) == (True, (), "equal")
        # Stopped once more, it is still there.
        with monkeypatch.context() as patch:
            patch.setattr(State, "finish_step", stopping_at(1))
            with pytest.raises(KeyboardInterrupt):
                resume(toy(), folder, {}, method.STAGES)
        assert card_of(folder).weights_sha256 == cut.weights_sha256
        card = resume(toy(), folder, {}, method.STAGES).card
        assert steps_of(card) == steps
        assert not any("fine-tuning" in line for line in card.warnings)
        assert read_charges(folder / "ledger.jsonl") == charged
        assert card.charges == cut.charges
        if seed is not None:
            assert card.weights_sha256 == whole.weights_sha256
        else:
            assert verify(folder, method.STAGES).ok
            assert resume(toy(), folder, {}, method.STAGES).seconds == 0.0  # left as it is


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("part", ["_RATE", "_EMBEDDING_RATE"])
def test_diverging_images_end_the_run_and_keep_the_earlier_release(tmp_path, monkeypatch, part) -> None:
    monkeypatch.setattr(fine_tuning, part, float("inf"))
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=r"training diverged after the last step, and the budget in .* is spent"):
        start(toy(), seeded(config_of("record"), None), folder, method.STAGES)
    assert steps_of(card_of(folder)) == 0
    assert verify(folder, method.STAGES).ok


def test_a_release_holds_the_classifier_of_its_images(runs) -> None:
    """Without a preference among those from before the steps, after whom it has been balanced."""
    for mode in ("record", "embedding"):
        state = runs(mode)[0].state
        found, released = state.finished.classifier, state.learnt["label_classifier"]
        torch.testing.assert_close(found[:, :-1], released[:, :-1].float())
        moved = (found - released)[:, -1]
        assert bool(moved.any())
        assert float(moved.sum()) == pytest.approx(0.0, abs=1e-3)


def test_a_model_card_states_the_fine_tuning(runs) -> None:
    for mode, steps in (("record", 8), ("embedding", 4)):
        made, _ = runs(mode)
        told = (made.folder / "release" / README).read_text()
        assert f"| fine-tuning | {steps} steps, none of which sees a record |" in told
        assert "and then to agree with all that was released about each class" in told
        assert steps_of(made.card) == steps


@pytest.mark.usefixtures("few_images")
def test_without_a_goal_there_are_no_steps(tmp_path) -> None:
    """Nor is texture put on top, which nothing would train."""
    settings = {
        **{key: SETTINGS["record"][key] for key in ("mode", "generator", "width", "num_generated")},
        **{name: {"budget_share": 0} for name in ("class_features", "label_classifier", "class_embedding")},
        "num_steps": 5,
        "noise_multiplier": 30.0,
        "principal_subspace": {"min_dimensions": 4},
    }
    config = method.resolve(method.settings_of(None, settings), FACTS)
    card = start(toy(), config, tmp_path / "run", STAGES).card
    assert card.generator.affine_dimensions > 0
    assert card.generator.texture_channels == steps_of(card) == 0
    assert not any("fine-tuning" in line for line in card.warnings)
