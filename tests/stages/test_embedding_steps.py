"""Steps on a class embedding after those record by record: what they lead to, what they leave, what the card says."""

import copy
import json
import math
import shutil

import pytest
import torch
from pydantic import ValidationError

from dp_sinkhorn.build import build_generator, resolve
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.features.random_fourier import FourierMap, fourier_map
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.mixture import MixtureGenerator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import epsilon_pld
from dp_sinkhorn.privacy.ledger import read_charges
from dp_sinkhorn.privacy.plan import CLASS_EMBEDDING
from dp_sinkhorn.release.verify import verify
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.settings import RecordRules, RunConfig, make_settings
from dp_sinkhorn.stages import embedding_steps as matching
from dp_sinkhorn.stages.class_embedding import EmbeddingStepRules, class_embedding, embedding_rules
from dp_sinkhorn.stages.embedding_steps import matched
from dp_sinkhorn.stages.principal_subspace import ReleasedStatistics
from dp_sinkhorn.training import loop as trainer
from dp_sinkhorn.training import methods
from dp_sinkhorn.training import run_folder as runs
from dp_sinkhorn.training.run_folder import facts_of
from dp_sinkhorn.training.surroundings import needed_features
from support.toy import BEFORE_THE_STEPS, SMALL, toy

MATCHED = {**SMALL, "embedding_share": 0.2, "matching_steps": 30, "num_frequencies": 200}


def config(data: LabelledImages, **changes: object) -> RunConfig:
    return resolve(make_settings(None, {**MATCHED, **changes}), facts_of("toy", data))


def statistics_of(data: LabelledImages) -> ReleasedStatistics:
    size = math.prod(data.shape)
    counts = torch.bincount(data.labels, minlength=data.num_classes).double()
    return ReleasedStatistics(counts, 60.0, Subspace(torch.zeros(size), torch.eye(size)[:, :4].contiguous()))


def world(data: LabelledImages, made: RunConfig) -> tuple[FourierMap, dict[str, torch.Tensor], Generator]:
    """The features, the embedding without noise, and a generator that knows nothing."""
    features = fourier_map(made, 60.0)
    released = {CLASS_EMBEDDING: class_embedding(data, features, needed_features(data, made)).value}
    return features, released, build_generator(made.generator, data.shape, data.num_classes)


def with_a_small_class(data: LabelledImages, records: int) -> LabelledImages:
    """Only so many of its third class."""
    return data.subset(torch.cat([torch.where(data.labels < 2)[0], torch.where(data.labels == 2)[0][:records]]))


def moved(*given: object) -> Generator:
    """The generator after the steps, of the two that are handed out."""
    made = matched(*given)
    assert isinstance(made, MixtureGenerator)
    return made.first


def means(generator: Generator, features: FourierMap) -> torch.Tensor:
    """Mean features of each class of images."""
    with torch.no_grad():
        images = torch.stack(list(generator.samples_by_class(300, 5)))
        return torch.cat([part.mean(1) for part in features.single().of_images(images, 300)], dim=1).double()


def test_each_class_comes_nearer_to_its_own_embedding_and_the_generator_that_was_given_stays():
    data = toy(200)
    made = config(data, matching_steps=200)
    features, released, generator = world(data, made)
    weights = copy.deepcopy(generator.state_dict())
    wanted = released[CLASS_EMBEDDING] / 100.0
    before = torch.cdist(means(generator, features), wanted)
    both = matched(generator, released, statistics_of(data), made)
    assert isinstance(both, MixtureGenerator)
    assert both.second is generator
    assert both.second_share == made.rules.matching.kept_share == 0.5
    after = torch.cdist(means(both.first, features), wanted)
    assert (after.diagonal() < 0.5 * before.diagonal()).all()
    assert (after.diagonal() < 0.5 * after.flip(0).diagonal()).all()
    assert all(torch.equal(generator.state_dict()[name], weight) for name, weight in weights.items())


def test_where_none_was_released_the_generator_is_finished():
    data = toy(200)
    made = resolve(make_settings(None, {**SMALL, "embedding_share": 0}), facts_of("toy", data))
    assert made.rules.matching is None
    generator = build_generator(made.generator, data.shape, 2)
    assert matched(generator, {}, statistics_of(data), made) is generator


def test_a_class_that_noise_hides_stays_as_it_is(monkeypatch):
    """What noise leaves of its embedding would lead it anywhere, and the steps before may have found it."""
    data = with_a_small_class(toy(800, classes=3), 8)
    made, statistics = config(data, matching_steps=200), statistics_of(data)
    features, released, generator = world(data, made)
    generator = moved(generator, released, statistics, made)
    found = means(generator, features)
    noise = made.privacy.once[CLASS_EMBEDDING]
    released[CLASS_EMBEDDING] += noise * torch.randn(3, 800, generator=torch.Generator().manual_seed(0)).double()

    def moves() -> list[float]:
        return (means(moved(generator, released, statistics, made), features) - found).norm(dim=1).tolist()

    *seen, hidden = moves()
    assert hidden < 0.15
    # The classes that are seen move; and without its own means the hidden one would go to them.
    assert min(seen) > 0.2
    monkeypatch.setattr(matching, "_own_means", lambda generator, steps, latents: steps.target)
    assert moves()[2] > 0.6


def test_after_the_private_steps_less_noise_hides_a_class_than_in_their_place(monkeypatch):
    data = with_a_small_class(toy(1200, classes=3), 33)
    made, statistics = config(data), statistics_of(data)
    _, released, generator = world(data, made)
    assert 0.025 < made.privacy.once[CLASS_EMBEDDING] / 33 < 0.05
    alone = embedding_rules(released[CLASS_EMBEDDING], statistics, made, 9)
    assert alone.hidden.tolist() == [False, False, False]
    followed: list[EmbeddingStepRules] = []
    monkeypatch.setattr(matching, "embedding_step", lambda moved, optimiser, rules, latents: followed.append(rules))
    monkeypatch.setattr(matching, "_own_means", lambda generator, rules, latents: torch.full_like(rules.target, 0.25))
    matched(generator, released, statistics, made)
    assert (followed[0].target == 0.25).all(dim=1).tolist() == [False, False, True]


def test_a_run_charges_its_embedding_beside_the_steps_and_says_so(tmp_path):
    card = runs.start(toy(), "toy", make_settings(None, MATCHED), tmp_path / "run").card
    assert {charge.name: charge.count for charge in card.charges} == {
        **BEFORE_THE_STEPS,
        "class_embedding": 1,
        "step": 20,
    }
    assert (card.sanitize, card.num_steps, card.queries_per_step, card.matching_steps) == ("record", 20, 1, 30)
    assert card.kept_share == 0.5
    assert 9.9 <= card.epsilon <= 10.0
    assert card.epsilon == epsilon_pld(read_charges(tmp_path / "run" / "ledger.jsonl"), 1e-5)
    (charge,) = (charge for charge in card.charges if charge.name == "class_embedding")
    assert charge.noise_multiplier == runs.stored_config(tmp_path / "run").privacy.once[CLASS_EMBEDDING]
    assert verify(tmp_path / "run").ok
    told = (tmp_path / "run" / "release" / "README.md").read_text()
    assert "| steps after them | 30, none of which sees a record |\n| images from before those | 50 % |" in told
    assert "and then to have the mean embedding of each class" in told


def test_what_is_handed_out_are_the_matched_generator_and_the_one_before(tmp_path):
    """And all that is made after them (correction, refinement, classifier) is made for both as one."""
    data = toy()
    runs.start(data, "toy", make_settings(None, {**MATCHED, "moments_share": 0, "features_share": 0}), tmp_path / "run")
    _, released = load_release(tmp_path / "run")
    tensors, _ = trainer.load_checkpoint(tmp_path / "run" / "private" / "checkpoint.safetensors")
    trained = tensors["average.last.weight"]
    handed_out = dict(released.named_parameters())
    (last,) = (weight for name, weight in handed_out.items() if name.endswith("first.last.weight"))
    (kept,) = (weight for name, weight in handed_out.items() if name.endswith("second.last.weight"))
    assert torch.equal(kept, trained)
    assert not torch.equal(last, trained)
    made = runs.stored_config(tmp_path / "run")
    method = methods.restore_method(
        made, data, {name[9:]: value for name, value in tensors.items() if name.startswith("released.")}
    )
    generator = build_generator(made.generator, data.shape, 2)
    generator.load_state_dict({name[8:]: value for name, value in tensors.items() if name.startswith("average.")})
    again = method.finished(generator, lambda done: None)
    assert torch.equal(last, again.state_dict()["first.last.weight"])


def test_a_death_among_the_steps_on_the_embedding_costs_time_only(tmp_path, monkeypatch):
    data, alike = toy(), make_settings(None, {**MATCHED, "test_seed": 3})
    whole = runs.start(data, "toy", alike, tmp_path / "whole").card
    real, count = matching.embedding_step, 0

    def dying(*args):
        nonlocal count
        count += 1
        if count == 10:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(matching, "embedding_step", dying)
    with pytest.raises(KeyboardInterrupt):
        runs.start(data, "toy", alike, tmp_path / "cut")
    assert not (tmp_path / "cut" / "release").exists()
    charged = read_charges(tmp_path / "cut" / "ledger.jsonl")
    resumed = runs.resume(data, tmp_path / "cut", {}).card
    assert read_charges(tmp_path / "cut" / "ledger.jsonl") == charged
    assert (resumed.weights_sha256, resumed.epsilon) == (whole.weights_sha256, whole.epsilon)


def test_images_that_are_not_finite_are_not_released(tmp_path, monkeypatch):
    def diverging(*args):
        raise FloatingPointError

    monkeypatch.setattr(matching, "embedding_step", diverging)
    with pytest.raises(InputError, match=r"training diverged after the last step, and the budget in .* is spent"):
        runs.start(toy(), "toy", make_settings(None, MATCHED), tmp_path / "run")
    assert not (tmp_path / "run" / "release").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"matching_steps": 0}, "'record', but an embedding of the classes is charged"),
        ({"matching_steps": 0}, "draws 50 % of the images from before the steps on an embedding, but claims no such"),
        ({"kept_share": 0.0}, "does not fit its card: other tensors"),
        ({"sanitize": "embedding"}, "makes no steps after its own, but the card claims 30"),
        ({"charges": []}, "'record' with 30 steps on one, but an embedding of the classes is not charged"),
    ],
)
def test_a_card_that_contradicts_its_steps_is_found_out(whole_run, tmp_path, change, words):
    run = shutil.copytree(whole_run, tmp_path / "run")
    path = run / "release" / "card.json"
    card = json.loads(path.read_text())
    if "charges" in change:
        change = {"charges": [charge for charge in card["charges"] if charge["name"] != CLASS_EMBEDDING]}
    path.write_text(json.dumps({**card, **change}))
    assert any(words in problem for problem in verify(run).problems)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matching") / "run"
    runs.start(toy(), "toy", make_settings(None, MATCHED), folder)
    return folder


def test_rules_and_plan_must_agree_on_the_embedding():
    made = config(toy())
    assert isinstance(made.rules, RecordRules)
    once = {name: noise for name, noise in made.privacy.once.items() if name != CLASS_EMBEDDING}
    for name, changed in (("rules", {"matching": None}), ("privacy", {"once": once})):
        dumped = made.model_dump()
        dumped[name].update(changed)
        with pytest.raises(ValidationError, match="do not agree on whether class_embedding is released"):
            RunConfig.model_validate(dumped)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"matching_steps": 0}, "matching_steps=0 does not fit"),
        ({"embedding_share": 1}, "embedding_share=1 does not fit"),
        ({"embedding_share": 0.6}, "give a smaller moments_share, features_share, classifier_share or embedding_share"),
        ({"sanitize": "embedding"}, "embedding_share, matching_steps belong to sanitize='record', not to 'embedding'"),
        ({"sanitize": "batch"}, "embedding_share, matching_steps belong to sanitize='record', not to 'batch'"),
        ({"embedding_share": 0}, "matching_steps would not be read: this run releases no embedding"),
        ({"embedding_share": 0, "matching_steps": None, "wavelet_weight": 0}, "wavelet_weight would not be read"),
    ],
)
def test_bad_settings_are_named(given, words):
    settings = {"embedding_share": 0.2, "matching_steps": 30, "sanitize": "record", **given}
    with pytest.raises(InputError, match=words):
        resolve(make_settings(None, settings), facts_of("toy", toy()))


def test_two_generators_are_to_fit_into_a_release():
    """Before the budget is spent. One alone would: 133 million parameters, where 200 are allowed."""
    wide = {**MATCHED, "generator": "mlp", "width": 11_500}
    with pytest.raises(InputError, match=r"a release with 2 times a mlp generator .* embedding_share=0"):
        config(toy(), **wide)
    alone = {**wide, "embedding_share": 0, "matching_steps": None, "num_frequencies": None}
    assert config(toy(), **alone).matching is None


def test_progress_counts_the_steps_after_the_others_too(tmp_path):
    seen: list[tuple[int, int, float]] = []
    runs.start(toy(), "toy", make_settings(None, MATCHED), tmp_path / "run", lambda *told: seen.append(told))
    done, totals, epsilons = zip(*seen, strict=True)
    assert list(done[-31:]) == [20, *range(21, 51)]
    assert set(totals) == {50}
    assert max(epsilons) <= 10.0
    # What was charged when the first of them is taken is all there is.
    assert epsilons[-30:] == (10.0,) * 30


def test_a_run_without_its_embedding_is_a_run_still():
    made = config(toy())
    less = made.without("class_moments", "classifier", CLASS_EMBEDDING)
    assert RunConfig.model_validate(less.model_dump()) == less
    assert (less.matching, less.privacy.classifier) == (None, None)
    assert set(made.privacy.once) - set(less.privacy.once) == {"class_moments", CLASS_EMBEDDING}
    # In place of steps it stays.
    embedded = resolve(make_settings(None, {"sanitize": "embedding"}), facts_of("toy", toy()))
    assert embedded.without(CLASS_EMBEDDING) == embedded
