"""The model card: the hub's own loader reads it back, whatever the class names are."""

import pytest
from huggingface_hub import ModelCard

from dp_sinkhorn.method import STAGES
from dp_sinkhorn.release.card import ClassPriorFacts
from dp_sinkhorn.release.model_card import model_card

HOSTILE = (
    "---",
    "name: x epsilon: 0.1",
    '" ]\\',
    "- a: [b, {c",
    "# no comment",
    "yes",
    "null",
    "1e5",
    "'",
    "ε 😀",
    "%TAG ! &x *x",
    "| `a` <script>alert(1)</script> [x](y) ![z](w) |",
    " lead and trail ",
)


def uniform(classes: int) -> dict[str, object]:
    return {"class_prior": ClassPriorFacts(how="declared", shares=(1 / classes,) * classes, epsilon_alone=0.0)}


def read(card) -> ModelCard:
    return ModelCard(model_card(card, STAGES))


def test_the_hub_s_loader_reads_the_facts(make_card):
    facts = read(make_card()).data.to_dict()
    assert facts["library_name"] == "dp-sinkhorn"
    assert facts["pipeline_tag"] == "unconditional-image-generation"
    assert {"differential-privacy", "synthetic-data", "dp-sinkhorn", "class-conditional"} <= set(facts["tags"])
    assert facts["private"] is True
    # Numbers, not strings: in YAML 1.1 a plain 1e-05 would be a string.
    assert (facts["epsilon"], facts["delta"]) == (9.987654321, 1e-5)
    assert isinstance(facts["delta"], float)
    assert facts["num_records"] == 1234
    assert facts["noise_multiplier"] == 2.5
    assert facts["neighboring_relation"] == "add_or_remove_one"
    assert facts["accountant"] == "an accountant"
    assert facts["tuning"] == "not charged: none"
    assert facts["randomness"] == "the operating system"
    assert facts["class_names"] == ["cat", "dog", "emu"]
    assert "model-index" not in facts
    assert "license" not in facts


def test_the_model_card_says_what_the_steps_follow(make_card):
    by_steps = model_card(make_card(), STAGES)
    assert "along semi-relaxed entropic transport to the records" in by_steps
    assert "(after [Cao et al. (2021)]" in by_steps
    assert "not a Sinkhorn divergence with two fixed marginals)" in by_steps
    assert "| steps × queries × sample rate | 20 × 1 × 0.5 |" in by_steps
    assert "DP-MERF" not in by_steps
    once = model_card(make_card(mode="embedding", queries_per_step=0, stages=[{"name": "embedding_steps"}]), STAGES)
    assert "mean embedding of each class, released once with noise (DP-MERF" in once
    assert "| steps | 20, none of which sees a record |" in once
    assert "Sinkhorn transport" not in once


@pytest.mark.parametrize(
    ("stage", "row"),
    [
        ({"name": "fine_tuning", "steps": 700}, "| fine-tuning | 700 steps, none of which sees a record |"),
        (
            {"name": "transport_steps", "potential_iterations": 0},
            "| transport | semi-relaxed entropic transport, debiased by the model's own images |",
        ),
        (
            {"name": "transport_steps", "potential_iterations": 9},
            "| transport | 9 iterations for the potential, debiased by the model's own images |",
        ),
    ],
)
def test_each_stage_adds_its_rows(make_card, stage, row):
    assert row in model_card(make_card(stages=[stage]), STAGES)


@pytest.mark.parametrize("steps", [0, 700])
def test_the_model_card_claims_only_steps_that_were_made(make_card, steps):
    stages = [{"name": "transport_steps", "potential_iterations": 0}, {"name": "fine_tuning", "steps": steps}]
    page = model_card(make_card(stages=stages), STAGES)
    assert ("and then to agree with all that was released about each class" in page) is (steps > 0)


@pytest.mark.parametrize("number", [1e-5, 1.5e-7, 1e-300, 0.1, 3.0, 12345678.9, 1e16, 1e22])
def test_epsilon_and_delta_are_read_back_exactly(make_card, number):
    facts = read(make_card(epsilon=number, delta=min(number, 0.5))).data.to_dict()
    assert facts["epsilon"] == number
    assert facts["delta"] == min(number, 0.5)


def test_hostile_class_names_are_only_text(make_card):
    card = make_card(class_names=HOSTILE, **uniform(len(HOSTILE)))
    read_back = read(card)
    facts = read_back.data.to_dict()
    assert facts["class_names"] == list(HOSTILE)
    assert facts["epsilon"] == 9.987654321
    front, body = model_card(card, STAGES).split("---\n", 2)[1:]
    assert front.count("\nepsilon:") == 1
    assert read_back.text.strip() == body.strip()
    for markup in ("<script", "[x](y)", " `a`", "\x1b", "\x00"):
        assert markup not in body
    assert r"\| \`a\` &lt;script&gt;alert(1)&lt;/script&gt; \[x\](y) \!\[z\](w) \|" in body
    assert "\nepsilon: 0.1" not in body


def test_many_classes_are_left_to_the_card(make_card):
    names = tuple(f"name{index}" for index in range(1000))
    card = make_card(class_names=names, **uniform(1000))
    content = model_card(card, STAGES)
    assert "class_names" not in read(card).data.to_dict()
    assert "(1000 in all)" in content
    assert "name999" not in content


def test_one_class_is_unconditional(make_card):
    assert "unconditional" in read(make_card(class_names=("0",), **uniform(1))).data.to_dict()["tags"]


def test_a_run_with_a_test_seed_claims_nothing(make_card):
    card = read(make_card(private=False, warnings=("NOT PRIVATE: a seed",)))
    facts = card.data.to_dict()
    assert facts["private"] is False
    assert "differential-privacy" not in facts["tags"]
    assert "not-private" in facts["tags"]
    assert card.text.strip().splitlines()[2].startswith("NOT PRIVATE")
    assert "**None.**" in card.text
    assert "ε bounds what anyone can learn" not in card.text
    assert "Training can be repeated bit for bit" in card.text


def test_the_page_has_the_sections_of_a_model_card(make_card):
    page = model_card(make_card(), STAGES)
    assert "| neighbours | Two data sets are neighbours if one has exactly one record more than the other." in page
    assert "everyone who cannot break AES-256" in page
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert headings == ["Privacy", "Intended use", "Limits", "Use", "Files", "Reproducibility"]
