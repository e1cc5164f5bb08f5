"""`verify` accepts sound releases and reports every way to overstate a claim."""

import copy
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import norm

from dp_sinkhorn import DPSinkhorn, verify
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.accounting import FINE, Charge, check_analysable, epsilon_pld
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.release import verify as check
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.release.explain import explain, show, verdict
from dp_sinkhorn.release.verify import Verification
from support.small_release import BATCH, EMBEDDING, RECORD, TUNED, make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run folder of each mode, one with all stages, and one with a test seed."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "record": make_run(folder / "record", **RECORD),
        "batch": make_run(folder / "batch", **BATCH),
        "embedding": make_run(folder / "embedding", **EMBEDDING),
        "tuned": make_run(folder / "tuned", **TUNED),
        "test seed": make_run(folder / "seed", **RECORD, test_seed=1),
    }


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A copy of the record run, to tamper with."""
    return shutil.copytree(runs["record"], tmp_path / "run")


def edit(run: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the card; returns the release folder, which has no ledger."""
    path = run / "release" / "card.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))
    return run / "release"


def setter(*keys: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    """Set a fact; in a list, a key is the name of an entry."""

    def change(card: dict[str, Any]) -> None:
        for key in keys[:-1]:
            card = named(card, key) if isinstance(card, list) and isinstance(key, str) else card[key]
        card[keys[-1]] = value

    return change


def without(place: str, name: str) -> Callable[[dict[str, Any]], None]:
    """Remove the entry of this name from a list."""
    return lambda card: card[place].remove(named(card[place], name))


def named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def only_problem(result: Verification) -> str:
    assert not result.ok
    assert len(result.problems) == 1, result.problems
    return result.problems[0]


@pytest.mark.parametrize("method", ["record", "batch", "embedding", "tuned"])
def test_a_sound_run_and_its_release_verify(runs, method):
    result = verify(runs[method])
    assert result.ok
    assert (result.problems, result.notes) == ((), ())
    assert (result.ledger, result.signature, result.weights_match) == ("equal", "none", True)
    assert result.epsilon_pld == result.card.epsilon <= result.card.epsilon_rdp == result.epsilon_rdp
    alone = verify(runs[method] / "release")
    assert alone.ok
    assert alone.ledger == "none"
    assert verify(runs[method] / "release", ledger=runs[method] / "ledger.jsonl").ledger == "equal"


def test_the_json_has_the_bounds_and_the_curve(runs):
    facts = verify(runs["record"]).to_json_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["epsilon_card"] == facts["epsilon_pld"]
    # Nearly one Gaussian release with the same (ε, δ).
    mu = gaussian_mu(facts["epsilon_card"], facts["delta"])
    assert facts["tpr_at_fpr_1_percent"] == pytest.approx(norm.cdf(norm.ppf(0.01) + mu), rel=0.1)
    assert facts["tpr_at_fpr_0_1_percent"] == pytest.approx(norm.cdf(norm.ppf(0.001) + mu), rel=0.1)
    assert list(facts["epsilon_of_several_images"]) == ["2", "3", "5"]
    assert 2.0 * facts["epsilon_card"] < facts["epsilon_of_several_images"]["2"]
    assert facts["tradeoff_curve"][0][0] == 0.0
    assert facts["tradeoff_curve"][-1] == [1.0, 1.0]


def gaussian_mu(epsilon: float, delta: float) -> float:
    """μ of the Gaussian release that is exactly (ε, δ)-DP (Balle and Wang 2018, theorem 8), by bisection."""
    low, high = 1e-3, 50.0
    for _ in range(80):
        mu = (low + high) / 2
        spent = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        low, high = (mu, high) if spent < delta else (low, mu)
    return mu


def numeric_fields(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all numbers in a card."""
    if isinstance(value, dict):
        return [field for key, part in value.items() for field in numeric_fields(part, (*path, key))]
    if isinstance(value, list):
        return [field for index, part in enumerate(value) for field in numeric_fields(part, (*path, index))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_changed_number_of_the_card_is_reported(runs, tmp_path, monkeypatch):
    """Each number in turn, slightly up and down. Changes that are not reported are listed here and do not matter."""
    # These bounds take most of the time and report nothing.
    monkeypatch.setattr("dp_sinkhorn.release.verify.attack_bounds", lambda charges: None)
    monkeypatch.setattr("dp_sinkhorn.release.verify.SEVERAL", ())
    # An MLP ignores its channels. More ε than counting costs is a weaker promise. A network without layers has the same
    # facts on a card of version 2.
    immaterial = {("generator", "channels"), ("class_prior", "epsilon_alone"), ("card_version",)}
    for method in ("tuned", "batch", "embedding"):
        card = json.loads((runs[method] / "release" / "card.json").read_text())
        run = shutil.copytree(runs[method], tmp_path / method)
        silent = set()
        for field in numeric_fields(card):
            for factor in (0.99, 1.01):
                changed = copy.deepcopy(card)
                part = changed
                for key in field[:-1]:
                    part = part[key]
                old = part[field[-1]]
                part[field[-1]] = old * factor if isinstance(old, float) else old + (1 if factor > 1.0 else -1)
                if part[field[-1]] == old:
                    part[field[-1]] = factor - 1.0
                (run / "release" / "card.json").write_text(json.dumps(changed))
                try:
                    result = verify(run / "release")
                except InputError:
                    continue  # refused as a card: version, ranges
                if result.ok and not result.notes:
                    silent.add(field)
        assert silent <= immaterial


def test_too_small_an_epsilon_is_a_problem_a_larger_one_a_note(run):
    card = PrivacyCard.from_file(run / "release" / "card.json")
    epsilon, least = card.epsilon, epsilon_pld(card.charges, card.delta, FINE)
    result = verify(edit(run, setter("epsilon", value=0.1)))
    assert result.problems[0] == f"the card claims epsilon 0.1; its charges give {least:.6g}"
    claimed_before = verify(edit(run, setter("epsilon", value=least)))  # by a version with the finest grid only
    assert all("README" in text for text in claimed_before.problems)
    # The README's rows have four digits: they stay the same.
    less = verify(edit(run, setter("epsilon", value=epsilon * (1 - 1e-5))))
    assert less.problems[0].startswith("the card claims epsilon 0.29")
    more = verify(edit(run, setter("epsilon", value=epsilon * 1.1)))
    # The README still states what was spent; the card alone would be true.
    assert all("README" in text for text in more.problems)
    assert any("more than its charges" in text for text in more.notes)
    (run / "release" / "README.md").unlink()
    assert verify(run / "release").ok


def test_a_card_with_epsilon_nan_is_refused(run):
    with pytest.raises(InputError, match="not a valid card: NaN"):
        verify(edit(run, setter("epsilon", value=math.nan)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setter("epsilon_rdp", value=0.1), "epsilon rdp 0.1"),
        (setter("delta", value=1e-6), "the card claims epsilon"),
        (setter("num_steps", value=13), "claims 13 noisy queries, but charges 12"),
        (setter("queries_per_step", value=2), "makes one query a step"),
        (setter("noise_multiplier", value=99.0), "differ from those of its charged steps"),
        (setter("sample_rate", value=0.5), "differ from those of its charged steps"),
        (setter("num_records", value=30000), "is not the card's expected batch size"),
        (setter("expected_batch_size", value=2.0), "is not the card's expected batch size 2"),
        (setter("sensitivity", value=0.25), "the card claims sensitivity 0.25"),
        (setter("clip_norm", value=0.25), "with clip norm 0.25 has 0.25"),
        (setter("mode", value="batch"), "lists no stage that trains in mode 'batch'"),
        (setter("mode", value="batch"), "mode 'batch' makes no transport_steps"),
        (setter("mode", value="embedding"), "lists no stage that trains in mode 'embedding'"),
        (setter("class_prior", "how", value="declared"), "'declared', but class counts are charged"),
        (setter("class_prior", "shares", value=[0.25, 0.7501]), "add up to 1.0001"),
        (setter("class_prior", "epsilon_alone", value=0.0), "class prior epsilon alone 0"),
        (setter("image_shape", value=[3, 8, 9]), "does not fit its card"),
        (setter("generator", "width", value=60_000), "does not fit its card"),
        (setter("weights_sha256", value="0" * 64), "SHA-256 differs"),
        (setter("warnings", value=["NOT PRIVATE"]), None),
        (setter("randomness", value="fixed test seed"), "its noise came from a test seed"),
        (setter("accountant", value="by hand"), "'by hand' as its accountant"),
        (setter("charges", 0, "name", value="nothing"), "'nothing', but lists no stage that makes"),
        (setter("charges", 0, "first", value=1), "numbered"),
        (setter("charges", 0, "sample_rate", value=0.5), "it is made on all records"),
        (setter("charges", 0, "count", value=2), "2 times; it is made once"),
        (setter("charges", "label_classifier", "sample_rate", value=1e-9), "'label_classifier' at sample rate 1e-09"),
        (setter("charges", "label_classifier", "count", value=1), "charges 1 releases 'label_classifier'"),
        (lambda card: card["charges"].append(card["charges"][0]), "lists a charge twice"),
        (without("charges", "transport_steps"), "charges no step"),
        (without("charges", "class_counts"), "'noisy histogram', but class counts are not charged"),
        (setter("generator", "latent_choice", value=False), "does not fit its card"),
        (setter("generator", "affine_dimensions", value=4), "does not fit its card"),
        (setter("generator", "affine_dimensions", value=0), "does not fit its card"),
        (setter("generator", "texture_channels", value=8), "does not fit its card"),
        (setter("stages", "transport_steps", "potential_iterations", value=None), "does not say how many"),
        (lambda card: card.update(private=False), "NOT PRIVATE"),
    ],
)
def test_each_contradiction_in_the_card_is_named(run, change, words):
    result = verify(edit(run, change))
    if words is None:
        assert result.problems == ()  # an unnecessary warning only weakens the claim
    else:
        assert not result.ok
        assert any(words in text for text in result.problems), result.problems


@pytest.mark.parametrize(
    "name",
    [
        "principal_subspace.first_moments",
        "principal_subspace.second_moment",
        "class_moments",
        "class_features",
        "label_classifier",
        "class_embedding",
    ],
)
def test_a_stage_is_listed_exactly_if_it_is_charged(runs, tmp_path, cheap, name):
    stage = name.partition(".")[0]
    run = shutil.copytree(runs["tuned"], tmp_path / "run")
    result = verify(edit(run, without("charges", name)))
    assert any(f"lists the stage {stage!r}, but does not charge {name!r}" in text for text in result.problems)
    shutil.copy(runs["tuned"] / "release" / "card.json", run / "release" / "card.json")
    result = verify(edit(run, without("stages", stage)))
    assert any(f"the card charges {name!r}, but lists no stage that makes" in text for text in result.problems)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["principal_subspace"], "'class_moments', which needs the subspace"),
        (["principal_subspace"], "'fine_tuning', which needs the subspace"),
        (["transport_steps"], "no stage that trains in mode 'record', so its weights cannot come from training"),
        (["class_embedding", "transport_steps"], "no stage that trains in mode 'record'"),
    ],
)
def test_a_stage_removed_with_its_charges_is_noticed(runs, tmp_path, cheap, names, words):
    def change(card):
        for place in ("stages", "charges"):
            card[place] = [entry for entry in card[place] if entry["name"].partition(".")[0] not in names]

    run = shutil.copytree(runs["tuned"], tmp_path / "run")
    assert any(words in text for text in verify(edit(run, change)).problems)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setter("queries_per_step", value=1), "'embedding' makes no query a step, but the card claims 1"),
        (setter("noise_multiplier", value=99.0), "differs from that of its charged embedding"),
        (setter("clip_norm", value=0.5), "features of the embedding have norm 1, but the card claims clip norm 0.5"),
        (
            setter("sensitivity", value=0.5),
            "features of the embedding have norm 1, but the card claims sensitivity 0.5",
        ),
        (setter("mode", value="record"), "lists no stage that trains in mode 'record'"),
        (setter("mode", value="batch"), "lists no stage that trains in mode 'batch'"),
        (without("charges", "class_embedding"), "does not charge 'class_embedding'"),
        (without("stages", "class_embedding"), "'class_embedding', but lists no stage that makes"),
        (without("stages", "embedding_steps"), "lists no stage that trains in mode 'embedding'"),
        (setter("charges", "class_embedding", "count", value=2), "'class_embedding' 2 times; it is made once"),
        (setter("charges", "class_embedding", "sample_rate", value=0.5), "'class_embedding' at sample rate 0.5"),
    ],
)
def test_each_contradiction_in_an_embedding_card_is_named(runs, tmp_path, cheap, change, words):
    run = shutil.copytree(runs["embedding"], tmp_path / "run")
    result = verify(edit(run, change))
    assert not result.ok
    assert any(words in text for text in result.problems), result.problems


def test_a_record_card_may_not_charge_an_embedding(run, cheap):
    def add(card):
        card["charges"].append({**card["charges"][0], "name": "class_embedding"})

    assert any("'class_embedding', but lists no stage that makes" in text for text in verify(edit(run, add)).problems)


def test_a_batch_card_needs_twice_the_clip_norm(runs, tmp_path):
    run = shutil.copytree(runs["batch"], tmp_path / "run")
    assert "has 1" in only_problem(verify(edit(run, setter("sensitivity", value=0.5))))
    edit(run, setter("sensitivity", value=1.0))
    result = verify(edit(run, setter("mode", value="record")))
    assert any("mode 'record' makes no batch_steps" in text for text in result.problems)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: card["stages"].append({"name": "class_counts"}), "stages list a stage twice"),
        (
            lambda card: card["stages"].append({"name": "mind_reading"}),
            "'mind_reading', which this version does not know",
        ),
        (lambda card: card["stages"].append({"name": "\x1b[2J"}), "stages.8.name"),
        (setter("stages", "fine_tuning", "steps", value="5"), "fine_tuning.steps"),
        (setter("stages", "fine_tuning", "steps", value=5.0), "fine_tuning.steps"),
        (setter("stages", "fine_tuning", "steps", value=True), "fine_tuning.steps"),
        (setter("stages", "fine_tuning", "steps", value=-1), "fine_tuning.steps"),
        (setter("stages", "fine_tuning", "steps", value=10**12), "fine_tuning.steps"),
        (setter("stages", "fine_tuning", "steps", value=[5]), "stages.7.facts.steps"),
        (setter("stages", "transport_steps", "potential_iterations", value=-1), "transport_steps.potential_iterations"),
        (setter("stages", "transport_steps", "more", value=1), "transport_steps.more: extra inputs"),
        (setter("stages", "class_counts", "more", value=1), "class_counts.more: extra inputs"),
        # Facts of version 2.
        (setter("stages", "class_moments", "corrected_dimensions", value=5), "class_moments.corrected_dimensions: ext"),
        (lambda card: card["stages"].append({"name": "variance_penalty"}), "'variance_penalty', which this version"),
        (lambda card: named(card["stages"], "fine_tuning").pop("steps"), "fine_tuning.steps: field required"),
    ],
)
def test_unknown_or_damaged_stages_are_refused(runs, tmp_path, command_line, change, words):
    release = edit(shutil.copytree(runs["tuned"], tmp_path / "run"), change)
    for call in (verify, DPSinkhorn.load):
        with pytest.raises(InputError) as caught:
            call(release)
        assert words in str(caught.value)
    code, out, err = command_line("verify", release)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_a_test_seed_never_verifies_even_if_one_field_hides_it(runs, tmp_path):
    result = verify(runs["test seed"])
    assert "NOT PRIVATE" in only_problem(result)
    assert result.attack is None
    assert result.to_json_dict()["tpr_at_fpr_1_percent"] is None
    run = shutil.copytree(runs["test seed"], tmp_path / "run")
    assert any("test seed" in text for text in verify(edit(run, setter("private", value=True))).problems)


def test_a_delta_above_one_over_n_needs_a_warning(tmp_path):
    run = make_run(tmp_path / "run", **{**RECORD, "target_delta": 1e-3, "allow_large_delta": True})
    assert verify(run).ok
    promise = dict(explain(verify(run)))["What is promised"]
    words = "Warning: delta=0.001 is not below 1/3000"
    assert any(line.startswith(words) for line in promise)
    assert words in verify(run).card.statement()
    assert words in (run / "release" / "README.md").read_text()
    assert "does not warn of it" in only_problem(verify(edit(run, setter("warnings", value=[]))))


def test_unfamiliar_texts_on_the_card_are_noted(run):
    for field, text in (("tuning", "charged"), ("mechanism", "magic"), ("treated_as_public", ["nothing"])):
        result = verify(edit(run, setter(field, value=text)))
        assert any(f"the card's {field} differs from this version's wording" in note for note in result.notes)


@pytest.mark.parametrize(
    ("charge", "words"),
    [
        ({"noise_multiplier": 1e-300}, "noise_multiplier=1e-300"),
        ({"noise_multiplier": 1e-300, "name": "class_counts"}, "noise_multiplier=1e-300"),
        ({"noise_multiplier": 1e-160, "sample_rate": 0.1}, "noise_multiplier=1e-160"),
        ({"noise_multiplier": 1e300}, "noise_multiplier=1e+300"),
        ({"noise_multiplier": 1.0, "sample_rate": 1e-300}, "sample_rate=1e-300"),
        ({"noise_multiplier": 1e6, "sample_rate": 0.5, "count": 10**9}, "1000000000 releases"),
        ({"noise_multiplier": 1.0, "sample_rate": 0.5, "count": 10**9}, "1000000000 releases"),
        ({"noise_multiplier": 1.0, "sample_rate": 0.1, "count": 10**5}, "which hides nothing"),
        ({"noise_multiplier": 0.05}, "so little noise"),
    ],
)
def test_charges_that_cannot_be_analysed_are_one_problem(run, charge, words):
    charges = [{"name": "transport_steps", "first": 0, "sample_rate": 1.0, "count": 1, **charge}]
    result = verify(edit(run, setter("charges", value=charges)))
    assert not result.ok
    assert words in result.problems[0]
    assert result.epsilon_pld is result.epsilon_rdp is result.attack is None
    json.dumps(result.to_json_dict(), allow_nan=False)
    assert "impossible (PLD)" in str(explain(result))


def test_a_delta_too_small_to_account_for_is_a_problem(run):
    result = verify(edit(run, setter("delta", value=1e-40)))
    assert any("delta=1e-40 cannot be accounted for" in text for text in result.problems)


def test_too_many_kinds_of_charges_are_refused_but_real_runs_pass():
    with pytest.raises(InputError, match="33 kinds"):
        check_analysable(
            [Charge(name="transport_steps", noise_multiplier=30.0 + k, sample_rate=0.5) for k in range(33)], 1e-5
        )
    for noise, rate, count in ((1.1, 50 / 60_000, 4_500_000), (0.8, 200 / 160_000, 1_000_000), (2.4, 0.1, 2_000)):
        charge = Charge(name="transport_steps", noise_multiplier=noise, sample_rate=rate, count=count)
        check_analysable([charge], 1e-6)


def test_altered_missing_and_foreign_weights(run, runs):
    path = run / "release" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = verify(run)
    assert "SHA-256 differs" in only_problem(result)
    assert not result.weights_match
    path.unlink()
    assert "cannot read" in only_problem(verify(run))


def test_weights_that_are_no_tensors_are_reported_even_with_their_hash(run):
    import hashlib

    (run / "release" / "weights.safetensors").write_bytes(b"no tensors")
    digest = hashlib.sha256(b"no tensors").hexdigest()
    assert "give an undamaged release" in only_problem(verify(edit(run, setter("weights_sha256", value=digest))))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| δ | 0.0001 |", "| δ | 1e-06 |"),
        ("distributions) | ", "distributions) | 0."),
        ("\nepsilon: ", "\nepsilon: 0."),
        ("\nepsilon_rdp: ", "\nepsilon_rdp: 0."),
        ("\ndelta: 0.0001", "\ndelta: 1.0e-06"),
        ("\nprivate: true", "\nprivate: false"),
        ("| δ | 0.0001 |\n", ""),
        ("The release is (", "The release is (0."),
        ("# Synthetic image generator", "This is (0.1, 1e-9)-differentially private."),
    ],
)
def test_a_readme_with_another_claim_is_a_problem(run, old, new):
    path = run / "release" / "README.md"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert "states another claim than the card" in only_problem(verify(run))


def test_a_readme_with_other_words_or_none_is_noted(run):
    path = run / "release" / "README.md"
    path.write_text(path.read_text().replace("# Synthetic image generator", "# Faces"))
    result = verify(run)
    assert result.ok
    assert "differs from the text that this version writes" in result.notes[0]
    path.unlink()
    assert "no README.md" in verify(run).notes[0]


def test_a_ledger_with_other_charge_counts_is_a_problem(run):
    ledger = Ledger(run / "ledger.jsonl")
    step = next(charge for charge in ledger.charges if charge.name == "transport_steps")
    ledger.charge(step.model_copy(update={"first": 12}))
    result = verify(run)
    assert "the ledger holds 13 releases 'transport_steps'" in only_problem(result)
    assert result.ledger == "different"
    # The release alone, without that ledger, has nothing to contradict it; with it, it has.
    assert verify(run / "release").ok
    assert "the card 12" in only_problem(verify(run / "release", ledger=run / "ledger.jsonl"))
    (run / "ledger.jsonl").write_bytes(b"")
    assert len(verify(run).problems) == 7


def test_a_ledger_with_less_noise_is_a_problem(run, tmp_path):
    own, ledger = Ledger(run / "ledger.jsonl"), Ledger(tmp_path / "other.jsonl")
    ledger.begin(own.header)
    for charge in own.charges:
        ledger.charge(charge.model_copy(update={"noise_multiplier": 0.9 * charge.noise_multiplier}))
    assert len(verify(run, ledger=tmp_path / "other.jsonl").problems) == 14


def test_a_damaged_ledger_is_a_problem_a_missing_one_an_error(run, tmp_path):
    path = run / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"damaged\n", *lines[1:]]))
    problem = only_problem(verify(run))
    assert str(path) in problem
    assert "damaged" in problem
    with pytest.raises(InputError, match="not a file"):
        verify(run, ledger=tmp_path / "nowhere.jsonl")


def test_verifying_changes_nothing_not_even_a_torn_end(run):
    with (run / "ledger.jsonl").open("ab") as file:
        file.write(b'{"charge":{"name"')
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}
    assert verify(run).ok
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_epsilon_of_several_images_may_be_zero(runs, monkeypatch):
    monkeypatch.setattr(check, "epsilon_of_several", lambda *_: 0.0)
    assert "epsilon is 0 for 2, 0 for 3, 0 for 5 images" in str(explain(verify(runs["record"])))


def test_the_explanation_states_the_bounds_or_promises_nothing(runs, run):
    text = str(explain(verify(runs["record"])))
    # e^0.2997 = 1.3494…: rounded up, as every number that bounds an attacker.
    assert "anything an observer could conclude by at most a factor e^0.2997 = 1.35, plus 0.0001." in text
    assert "one has exactly one record more than the other. Public facts, among them the number of records N" in text
    assert text.count("break AES-256") == 2
    assert "odds" not in text
    mu = gaussian_mu(0.3, 1e-4)
    percent = float(re.search(r"accuses 1 % of all others, finds at most ([0-9.]+) %", text)[1])
    assert percent == pytest.approx(100.0 * norm.cdf(norm.ppf(0.01) + mu), rel=0.1)
    several = verify(runs["record"]).epsilon_of_several
    assert 0.3 < several[2] < several[3] < several[5]
    said = re.search(r"epsilon is ([0-9.]+) for 2, ([0-9.]+) for 3, ([0-9.]+) for 5 images", text)
    for word, exact in zip(said.groups(), several.values(), strict=True):
        assert exact <= float(word) <= 1.001 * exact
    assert "Several runs or releases on the same records" in text
    assert verdict(verify(runs["record"])).startswith("The card holds")
    (run / "release" / "weights.safetensors").write_bytes(b"")
    bad = verify(run)
    text = str(explain(bad))
    assert "Nothing. Do not hand the release out." in text
    assert "finds at most" not in text
    assert verdict(bad) == "The card DOES NOT HOLD: 1 problem"


def test_a_terminal_gets_a_frame_and_a_pipe_plain_lines(runs, tmp_path):
    result = verify(runs["record"])
    for terminal in (True, False):
        with (tmp_path / "out").open("w", encoding="utf-8") as file:
            show(result, Console(file=file, force_terminal=terminal, width=90, color_system="standard"))
        text = (tmp_path / "out").read_text(encoding="utf-8")
        assert ("╭" in text) == ("\x1b[" in text) == terminal
        assert "What is promised" in text
        assert terminal or "problem" not in text
