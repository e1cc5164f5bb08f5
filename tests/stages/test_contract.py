"""The contract of all stages, in a small run of each mode, with one stage more than the method has."""

import copy
import json
import math
from collections.abc import Iterable
from itertools import product

import pytest
import torch
from pydantic import ValidationError

from dp_sinkhorn import method
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.tuned import TunedGenerator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import Charge, merged
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.verify_facts import contradictions
from dp_sinkhorn.release.weights import CARD, load_release
from dp_sinkhorn.settings import RunConfig
from support.stage_runs import FACTS, MODES, SETTINGS, STAGES, World, config_of, quick_noise, toy

PLACES = [(mode, name) for mode in MODES for name in STAGES if name not in method.MODES[mode].leaves_out]
# The stages that ask.
ASKING = [
    (mode, name)
    for mode, name in PLACES
    if name not in ("embedding_steps", "fine_tuning") and (mode, name) != ("batch", "class_counts")
]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_has_every_stage_of_its_mode(runs, mode):
    made, _ = runs(mode)
    assert [stage.name for stage in made.run.stages] == [name for place, name in PLACES if place == mode]
    assert [entry.name for entry in made.card.stages] == [stage.name for stage in made.run.stages]


@pytest.mark.parametrize("mode", MODES)
def test_queries_are_those_that_are_planned_and_charged(runs, mode):
    made, _ = runs(mode)
    asked = _by_name(heard.query.charge for heard in made.heard)
    assert asked == _by_name(made.run.config.plan.charges)
    assert asked == _by_name(made.run.ledger.charges) == _by_name(made.card.charges)
    assert {charge.name.partition(".")[0] for charge in asked} == {name for place, name in ASKING if place == mode}


@pytest.mark.parametrize(("mode", "stage"), ASKING)
def test_every_number_of_an_answer_has_the_charged_noise(runs, mode, stage):
    found = []
    for heard in runs(mode)[0].queries(stage):
        query = heard.query
        noise = query.charge.noise_multiplier * query.sensitivity * math.sqrt(query.charge.count)
        found.append(((heard.answer - query.contribute(heard.draw).value) / noise).flatten())
    numbers = torch.cat(found)
    assert float(numbers.abs().min()) > 0.0
    assert float(numbers.abs().max()) < 7.0
    assert abs(float(numbers.square().mean()) - 1.0) < 6.0 * math.sqrt(2.0 / len(numbers))


@pytest.mark.parametrize(("mode", "stage"), ASKING)
def test_the_worst_record_moves_a_sum_by_at_most_its_sensitivity(runs, mode, stage):
    """At every index, in every class, with all records drawn. It also reaches the bound, so the check is sharp."""
    made, _ = runs(mode)
    worst = STAGES[stage].worst(made.state)
    few = toy(9)
    without = World(few, worst.factors)
    beside = [World.beside(few, worst, place, label) for place, label in product((0, 4, 9), range(2))]
    for heard in made.queries(stage):
        query = worst.query(heard.query)
        bound = query.sensitivity * query.charge.count
        base = query.contribute(without.drawn(query)).value
        changes = [float((query.contribute(world.drawn(query)).value - base).norm()) for world in beside]
        if query.charge.sample_rate < 1.0:
            for world in beside:
                nobody, alone = (world.drawn(query, index) for index in (torch.zeros(0).long(), torch.tensor([0])))
                changes.append(float((query.contribute(alone).value - query.contribute(nobody).value).norm()))
        assert max(changes) <= bound
        assert max(changes) > 0.9 * bound, (query.charge.name, changes)


@pytest.mark.parametrize(("mode", "stage"), ASKING)
def test_the_shape_of_a_sum_does_not_depend_on_the_draw(runs, mode, stage):
    for heard in runs(mode)[0].queries(stage):
        query, total = heard.query, heard.query.contribute(heard.draw)
        worlds = [World(toy(count), {}) for count in (1, 30)]
        draws = [world.drawn(query) for world in worlds]
        if query.charge.sample_rate < 1.0:
            draws.append(worlds[1].drawn(query, torch.zeros(0).long()))
        for draw in draws:
            other = query.contribute(draw)
            assert (other.value.shape, other.value.dtype) == (total.value.shape, torch.float64)
            assert (other.sensitivity, other.queries) == (query.sensitivity, query.charge.count)
            assert bool(torch.isfinite(other.value).all())
        assert heard.answer.shape == total.value.shape


@pytest.mark.parametrize("mode", MODES)
def test_the_release_is_a_function_of_the_answers(runs, mode):
    """The same answers on two different data sets give the same bytes, except in the private folder and the ledger."""
    one, other = runs(mode)
    assert one.state.learnt.keys() == other.state.learnt.keys()
    for name, tensor in one.state.learnt.items():
        assert torch.equal(tensor, other.state.learnt[name]), name
    files = sorted(path.relative_to(one.folder) for path in one.folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other.folder) for path in other.folder.rglob("*") if path.is_file())
    public = [path for path in files if path.parts[0] not in ("private", "ledger.jsonl")]
    assert {"metrics.jsonl", "samples", "release"} <= {path.parts[0] for path in public}
    for path in public:
        assert (one.folder / path).read_bytes() == (other.folder / path).read_bytes(), path
    # The two runs saw different records.
    first = [[made.heard[0].query.contribute(made.heard[0].draw).value for made in (one, other)]]
    assert all(not torch.equal(*pair) for pair in first)


@pytest.mark.parametrize("mode", MODES)
def test_a_release_is_read_back_as_what_the_run_made(runs, mode):
    made, _ = runs(mode)
    state = made.state
    card, loaded = load_release(made.folder, STAGES)
    assert card.model_dump() == made.card.model_dump()
    assert [facts for _, facts in STAGES.facts_of(card)] == [stage.facts(state) for stage in made.run.stages]
    images = _drawn(state.finished)
    assert torch.equal(_drawn(loaded), images)
    # Every released tensor changes the images or the choice of latents, except the classifier.
    for name, tensor in state.finished.state_dict().items():
        changed = copy.deepcopy(state.finished)
        changed.load_state_dict({name: -tensor - 1.0}, strict=False)
        if name.startswith("choice."):
            assert not torch.equal(_goodness(changed), _goodness(loaded)), name
        elif name != "classifier":
            assert not torch.equal(_drawn(changed), images), name
    assert list(contradictions(card, STAGES)) == []


@pytest.mark.parametrize("mode", MODES)
def test_stages_make_the_network_that_they_declare(runs, mode):
    """So a run knows before its first charge whether the network fits into a release."""
    made, _ = runs(mode)
    spec, dimensions = made.run.config.generator, 0 if mode == "batch" else made.state.subspace.num_dimensions
    for stage in made.run.stages:
        spec = stage.network(spec, made.run.config, dimensions)
    assert made.card.generator == made.state.spec == spec


@pytest.mark.parametrize("mode", MODES)
def test_finishing_again_gives_the_same_network(runs, mode):
    """So an interrupted run can be resumed: finishing does not change what the steps have made."""
    made, _ = runs(mode)
    first, learnt = made.state.finished.state_dict(), copy.deepcopy(made.state.average.state_dict())
    released = []
    again = copy.copy(made.run)
    again.state = copy.copy(made.state)
    state = again.finish(lambda progress: None, lambda state: released.append(state.finished.state_dict()))
    assert all(torch.equal(state.finished.state_dict()[name], tensor) for name, tensor in first.items())
    # A release before a slow stage holds what the earlier stages have made.
    long = [stage for stage in made.run.stages if stage.finishing_steps(made.run.config)]
    assert len(released) == len(long)
    for tensors in (made.state.average.state_dict(), *released[:1]):
        assert all(torch.equal(tensors[name], tensor) for name, tensor in learnt.items())


@pytest.mark.parametrize("mode", MODES)
def test_a_stage_that_is_run_again_asks_nothing(runs, mode, monkeypatch):
    made, _ = runs(mode)
    monkeypatch.setattr(type(made.run.curator), "ask", None)
    assert [list(stage.run(made.run.curator, made.state)) for stage in made.run.stages] == [[]] * len(made.run.stages)


@pytest.mark.parametrize(
    ("mode", "stage"), [(mode, name) for mode, name in ASKING if STAGES[name].facts_type.model_fields]
)
def test_facts_that_do_not_fit_the_stage_are_refused(runs, mode, stage):
    made, _ = runs(mode)
    facts = json.loads((made.folder / "release" / CARD).read_text())
    for change in ({"more": 1}, dict.fromkeys(STAGES[stage].facts_type.model_fields, "a word")):
        stages = [{**entry, **change} if entry["name"] == stage else entry for entry in facts["stages"]]
        with pytest.raises(InputError, match=f"the card's stages are damaged: {stage}"):
            STAGES.facts_of(PrivacyCard.model_validate({**facts, "stages": stages}))


@pytest.mark.parametrize(("mode", "stage"), ASKING)
def test_a_card_without_the_charges_of_a_stage_is_a_problem(runs, mode, stage):
    made, _ = runs(mode)
    charges = tuple(charge for charge in made.card.charges if _owner(charge.name) != stage)
    card = made.card.model_copy(update={"charges": charges})
    assert any(stage in text or "charges no step" in text or "noisy" in text for text in contradictions(card, STAGES))


@pytest.mark.parametrize(("mode", "stage"), ASKING)
def test_a_charge_of_a_stage_that_is_not_listed_is_found(runs, mode, stage):
    made, _ = runs(mode)
    stages = tuple(entry for entry in made.card.stages if entry.name != stage)
    found = list(contradictions(made.card.model_copy(update={"stages": stages}), STAGES))
    assert any(f"the card charges '{stage}" in text and "lists no stage that makes" in text for text in found)


@pytest.fixture
def resolved(monkeypatch):
    """A run of a mode with other settings of one stage; its noise is approximate."""
    monkeypatch.setattr(method, "step_noise_multiplier", quick_noise)

    def of(mode: str, stage: str, changes: dict[str, object]) -> RunConfig:
        given = {**SETTINGS[mode], stage: {**SETTINGS[mode].get(stage, {}), **changes}}
        return method.resolve(method.settings_of(None, given, STAGES), FACTS, STAGES)

    return of


SET = [(name, key) for name, stage in STAGES.items() for key in stage.settings_type.model_fields]


@pytest.mark.parametrize(("stage", "key"), SET)
def test_a_setting_has_an_effect_or_is_refused(resolved, stage, key):
    """In every mode; the refusal names the setting."""
    refusals = []
    for mode in MODES:
        for value in (0.037, 70, (0.25, 0.75)):
            try:
                STAGES[stage].settings_type.model_validate({key: value})
                break
            except ValidationError:
                continue
        try:
            changed = resolved(mode, stage, {key: value})
        except InputError as error:
            refusals.append(str(error))
            continue
        usual = resolved(mode, stage, {})
        assert (changed.plan, changed.rules) != (usual.plan, usual.rules), (mode, value)
    assert len(refusals) < len(MODES)
    assert all(f"{stage}.{key} would have no effect" in refusal for refusal in refusals)


@pytest.mark.parametrize(("mode", "stage"), [(mode, name) for mode in MODES for name in STAGES])
def test_settings_of_a_stage_that_the_mode_leaves_out_are_refused(resolved, mode, stage):
    for key in STAGES[stage].settings_type.model_fields if (mode, stage) not in PLACES else ():
        with pytest.raises(InputError, match=f"{stage}.{key} would have no effect: mode='{mode}' does not use it"):
            resolved(mode, stage, {key: 0.5 if key in ("budget_share", "wavelet_weight", "debias_fraction") else 7})


@pytest.mark.parametrize("stage", [name for name, key in SET if key == "budget_share" and name != "class_counts"])
def test_a_stage_without_a_share_of_the_budget_does_not_run(monkeypatch, stage):
    """Stages that need what it gives do not run either."""
    monkeypatch.setattr(method, "step_noise_multiplier", quick_noise)
    plain = {"mode": "record", "target_epsilon": 60.0}
    whole, less = (
        method.resolve(method.settings_of(None, {**plain, **given}, STAGES), FACTS, STAGES)
        for given in ({}, {stage: {"budget_share": 0}})
    )
    gifts = set(STAGES[stage].gives)
    assert whole.rules.keys() - less.rules.keys() == {
        name for name in whole.rules if name == stage or gifts & set(STAGES[name].needs)
    }
    assert stage in whole.rules
    assert not [charge for charge in less.plan.charges if _owner(charge.name) == stage]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_reads_every_constant_of_its_stages(runs, read, mode):
    """No constant is unused."""
    runs(mode)
    assert {(name, key) for name, own in config_of(mode).rules.items() for key in type(own).model_fields} <= read


def _drawn(generator: Generator) -> torch.Tensor:
    with torch.no_grad():
        return generator.eval().sample(torch.arange(40) % 2, torch.Generator().manual_seed(4))


def _goodness(generator: TunedGenerator) -> torch.Tensor:
    latents = torch.rand(40, generator.generator.latent_dim, generator=torch.Generator().manual_seed(4))
    return generator.choice.goodness(latents, torch.arange(40) % 2)


def _by_name(charges: Iterable[Charge]) -> list[Charge]:
    return sorted(merged(charges), key=lambda charge: charge.name)


def _owner(name: str) -> str:
    return name.partition(".")[0]
