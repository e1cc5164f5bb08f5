"""Steps on the released embedding: where they lead, what they leave as it is, and that they cost time only."""

import copy
import json
import shutil

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.mean_embedding import EmbeddingGoal, ReleasedEmbedding
from dp_sinkhorn.features.random_fourier import FourierMap, fourier_map
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.mixture import MixtureGenerator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.curator import Draw, HeldRecords
from dp_sinkhorn.privacy.ledger import read_charges
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import CARD, README
from dp_sinkhorn.stages import embedding_steps
from dp_sinkhorn.stages.base import State
from dp_sinkhorn.stages.class_embedding import EmbeddingSum
from dp_sinkhorn.stages.embedding_steps import EmbeddingSteps
from dp_sinkhorn.training.loop import train
from dp_sinkhorn.training.run_folder import resume, start
from support.stage_runs import FACTS, SETTINGS, SHAPE, STAGES, config_of, curator_of, plain_descent, toy

STAGE = EmbeddingSteps()


def features() -> FourierMap:
    return fourier_map(SHAPE, 200, 15.0, 0.5, 0.25, 0, "cpu")


def state_of(data: LabelledImages, mode: str, noise: float = 0.0, **tuning: object) -> State:
    """A generator that knows nothing, and the embedding of these records."""
    config = config_of(mode)
    classes = data.num_classes
    config = config.model_copy(update={"data": config.data.model_copy(update={"class_names": data.class_names})})
    if mode == "record":
        own = config.rules[STAGE.name].fine_tuning
        config = config.with_rules(STAGE.name, fine_tuning=own.model_copy(update=tuning))
    spec = config.generator.model_copy(update={"width": 32})
    generator = build_generator(spec, SHAPE, classes)
    counts = torch.bincount(data.labels, minlength=classes).double()
    state = plain_descent(config, generator, counts=counts)
    settings = config.settings  # with its own schedule, unlike plain descent
    state.config = state.config.model_copy(update={"settings": settings, "learning_rate": 1e-2})
    state.optimiser = STAGE.optimiser(generator, 1e-2)
    total = EmbeddingSum(features(), classes)(Draw(HeldRecords(data))).value
    total = total + noise * torch.randn(total.shape, generator=torch.Generator().manual_seed(0)).double()
    state.embedding = ReleasedEmbedding(features(), total, noise)
    state.finished = state.average.eval()
    return state


def means(generator: Generator) -> torch.Tensor:
    """Mean features of each class of images."""
    with torch.no_grad():
        images = torch.stack(list(generator.samples_by_class(200, 5)))
        return torch.cat([part.mean(1) for part in features().single().of_images(images, 200)], dim=1).double()


def few_of_the_third(count: int, few: int) -> LabelledImages:
    """Three classes, and only so many records of the last."""
    data = toy(count, classes=3)
    return data.subset(torch.cat([torch.where(data.labels < 2)[0], torch.where(data.labels == 2)[0][:few]]))


def test_in_place_of_others_steps_lead_each_class_to_its_own_embedding() -> None:
    state = state_of(toy(), "embedding")
    plan = state.plan.model_copy(update={"num_steps": 150})
    state.config = state.config.model_copy(update={"plan": plan, "num_generated": 40})
    wanted = state.embedding.sums / state.class_counts.unsqueeze(1)
    before = torch.cdist(means(state.generator), wanted)
    assert len(list(STAGE.run(curator_of(state.config, toy()), state))) == state.step == 150
    after = torch.cdist(means(state.generator), wanted)
    assert (after.diagonal() < 0.5 * before.diagonal()).all()
    assert (after.diagonal() < 0.5 * after.flip(0).diagonal()).all()


def test_after_others_steps_move_one_generator_and_keep_the_other() -> None:
    state = state_of(toy(), "record", num_steps=150, num_generated=40, learning_rate=1e-2)
    wanted = state.embedding.sums / state.class_counts.unsqueeze(1)
    trained = copy.deepcopy(state.average.state_dict())
    reported: list[int] = []
    state.report = reported.append
    before = torch.cdist(means(state.average), wanted)
    STAGE.finish(state)
    both = state.finished
    assert isinstance(both, MixtureGenerator)
    assert both.second is state.average
    assert both.second_share == 0.5
    after = torch.cdist(means(both.first), wanted)
    assert (after.diagonal() < 0.5 * before.diagonal()).all()
    assert (after.diagonal() < 0.5 * after.flip(0).diagonal()).all()
    assert reported == list(range(1, 151))
    for name, weight in trained.items():
        assert torch.equal(state.average.state_dict()[name], weight)
        assert torch.equal(state.tensors[f"embedding_steps.{name}"], weight)
        assert torch.equal(state.weights[name], both.first.state_dict()[name])


def test_by_an_ample_budget_the_moved_generator_is_handed_out_alone() -> None:
    state = state_of(toy(60), "record", num_steps=2, num_generated=16, mixture_weight=0.0)
    STAGE.finish(state)
    assert not isinstance(state.finished, MixtureGenerator)
    assert (state.tensors, state.weights.keys()) == ({}, state.average.state_dict().keys())


def test_a_class_that_noise_hides_stays_as_it_is(monkeypatch) -> None:
    """What noise leaves of its embedding would lead it anywhere, and the steps before may have found it."""
    data = few_of_the_third(600, 8)
    tuning = {"num_steps": 200, "num_generated": 45, "learning_rate": 4e-3}
    first = state_of(data, "record", **tuning)
    STAGE.finish(first)
    found = first.finished.first

    def moves() -> list[float]:
        # Noise of 2 on a number of a sum: 0.25 on the mean of eight records, 0.01 on that of two hundred.
        state = state_of(data, "record", noise=2.0, **tuning)
        state.average.load_state_dict(found.state_dict())
        STAGE.finish(state)
        return (means(state.finished.first) - means(found)).norm(dim=1).tolist()

    *seen, hidden = moves()
    assert hidden < 0.12
    # The classes that are seen move; and without its own means the hidden one would go to them.
    assert min(seen) > 2.0 * hidden
    monkeypatch.setattr(embedding_steps, "_own_means", lambda generator, goal, latents: goal.target)
    assert moves()[2] > 0.5


def test_after_others_less_noise_hides_a_class_than_in_their_place(monkeypatch) -> None:
    """On the mean of 33 records here 0.03: more than 0.025, less than 0.05."""
    state = state_of(few_of_the_third(1200, 33), "record", noise=1.0)
    alone = EmbeddingGoal.of(state.embedding, state.class_counts, 9)
    assert alone.hidden.tolist() == [False, False, False]
    followed: list[EmbeddingGoal] = []

    def follow(generator: Generator, goal: EmbeddingGoal, latents: torch.Generator):
        followed.append(goal)
        images = generator.sample(goal.labels, latents)
        return images, torch.zeros_like(images)

    monkeypatch.setattr(embedding_steps, "_step", follow)
    monkeypatch.setattr(embedding_steps, "_own_means", lambda generator, goal, latents: goal.target * 0.0 + 0.25)
    STAGE.finish(state)
    assert (followed[0].target == 0.25).all(dim=1).tolist() == [False, False, True]


def test_images_that_are_not_finite_are_refused() -> None:
    state = state_of(toy(60), "embedding")
    with torch.no_grad():
        next(state.generator.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        next(STAGE.run(curator_of(state.config, toy()), state))


@pytest.mark.parametrize(("mode", "when"), [("embedding", "at step 0"), ("record", "after the last step")])
def test_a_step_that_diverges_stops_the_run(tmp_path, monkeypatch, mode, when) -> None:
    def diverging(*given: object):
        raise FloatingPointError

    monkeypatch.setattr(embedding_steps, "_step", diverging)
    with pytest.raises(InputError, match=f"training diverged {when}, and the budget in .* is spent"):
        train(config_of(mode), toy(), tmp_path, STAGES)
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize("mode", ["embedding", "record"])
def test_steps_are_taken_again_after_a_crash_and_cost_nothing(tmp_path, monkeypatch, mode) -> None:
    """Those since the last checkpoint are not lost: two runs alike end alike."""
    config = config_of(mode).only(method.STAGES)
    config = config.model_copy(update={"settings": config.settings.model_copy(update={"test_seed": 3})})
    whole = start(toy(), config, tmp_path / "whole", method.STAGES).card
    real, count = embedding_steps._step, 0

    def dying(*given: object):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(embedding_steps, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        start(toy(), config, tmp_path / "cut", method.STAGES)
    assert not (tmp_path / "cut" / "release").exists()
    charged = read_charges(tmp_path / "cut" / "ledger.jsonl")
    resumed = resume(toy(), tmp_path / "cut", {}, method.STAGES).card
    assert read_charges(tmp_path / "cut" / "ledger.jsonl") == charged
    assert (resumed.weights_sha256, resumed.charges) == (whole.weights_sha256, whole.charges)


def test_a_release_says_what_came_after_the_private_steps(runs) -> None:
    told = (runs("record")[0].folder / "release" / README).read_text()
    assert "| steps after them | 4, none of which sees a record |\n| images from before those | 50 % |" in told
    assert "and then to have the mean embedding of each class" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fine_tuning_steps": 0}, "claims 0 fine-tuning steps on an embedding after steps of 1 queries"),
        (
            {"fine_tuning_steps": 0},
            "draws 50 % of the images from before the steps on an embedding, but claims no such",
        ),
        ({"mixture_weight": 0.0}, "does not fit its card: other tensors"),
    ],
)
def test_a_card_that_contradicts_its_steps_is_found_out(runs, tmp_path, change, words) -> None:
    release = shutil.copytree(runs("record")[0].folder / "release", tmp_path / "release")
    card = json.loads((release / CARD).read_text())
    for entry in card["stages"]:
        entry |= change if entry["name"] == STAGE.name else {}
    (release / CARD).write_text(json.dumps(card))
    assert any(words in problem for problem in verify(release, STAGES).problems)


def test_two_generators_are_to_fit_into_a_release() -> None:
    """Before the budget is spent. One alone would: 156 million parameters, where 200 are allowed."""
    wide = {**SETTINGS["record"], "width": 12_500, "noise_multiplier": 50.0}
    with pytest.raises(InputError, match=r"the release of 2 classes .* would be larger than .*budget_share=0\)"):
        method.resolve(method.settings_of(None, wide), FACTS)
    alone = {**wide, "class_embedding": {"budget_share": 0}, "embedding_steps": {}}
    assert STAGE.name not in method.resolve(method.settings_of(None, alone), FACTS).rules
