"""The card's facts against each other: whatever one of them says about another must be so."""

import math
from collections.abc import Iterator

from dp_sinkhorn.privacy.accounting import ACCOUNTANT, Epsilons, epsilon_pld, merged
from dp_sinkhorn.privacy.plan import (
    CLASS_COUNTS,
    CLASS_EMBEDDING,
    CLASS_FEATURES,
    CLASS_MOMENTS,
    CLASSIFIER,
    CLASSIFIER_STEPS,
    FIRST_MOMENTS,
    SECOND_MOMENT,
    STEP,
    delta_warning,
)
from dp_sinkhorn.privacy.random import SAMPLER
from dp_sinkhorn.privacy.statistics import UNIT_SENSITIVITY
from dp_sinkhorn.release.card import NOT_PRIVATE, PrivacyCard
from dp_sinkhorn.release.weights import TREATED_AS_PUBLIC, TUNING, mechanism

_ONCE = (CLASS_COUNTS, FIRST_MOMENTS, SECOND_MOMENT, CLASS_MOMENTS, CLASS_FEATURES, CLASS_EMBEDDING)
# Room for the rounding of another machine's Fourier transforms and for products of decimal numbers.
_SLACK, _ROUNDING = 1e-6, 1e-9


def contradictions(card: PrivacyCard) -> Iterator[str]:
    """Each way in which the card contradicts itself, as a sentence. ε itself is left to `claims`."""
    yield from _charges(card)
    yield from _step(card)
    yield from _prior(card)
    yield from _words(card)


def claims(card: PrivacyCard, bounds: Epsilons) -> tuple[list[str], list[str]]:
    """(problems, notes): each ε of the card beside its recomputed bound.

    Less than the bound is a problem. More is a weaker promise than could be made, hence true: a note.
    """
    counted = [charge for charge in card.charges if charge.name == CLASS_COUNTS]
    pairs = (
        ("epsilon", card.epsilon, bounds.pld),
        ("epsilon_rdp", card.epsilon_rdp, bounds.rdp),
        (
            "class_prior.epsilon_alone",
            card.class_prior.epsilon_alone,
            epsilon_pld(counted, card.delta) if counted else 0.0,
        ),
    )
    problems, notes = [], []
    for name, claimed, bound in pairs:
        # Written so that a claim of NaN is a problem.
        if not claimed >= bound * (1.0 - _SLACK):
            problems.append(f"the card claims {name.replace('_', ' ')} {claimed:.6g}; its charges give {bound:.6g}")
        elif claimed > bound * (1.0 + _SLACK):
            notes.append(f"the card claims {name.replace('_', ' ')} {claimed:.6g}, more than its charges: {bound:.6g}")
    return problems, notes


def unfamiliar_words(card: PrivacyCard) -> list[str]:
    """Notes on texts that are not this version's: nothing but a reader can judge them."""
    expected = {
        "accountant": ACCOUNTANT,
        "mechanism": mechanism(card.sanitize, card.charges),
        "tuning": TUNING,
        "treated_as_public": TREATED_AS_PUBLIC,
        **({"randomness": SAMPLER} if card.private else {}),
    }
    return [
        f"the card's {name} is not worded as by this version; read it yourself: {getattr(card, name)}"
        for name, words in expected.items()
        if getattr(card, name) != words
    ]


def _charges(card: PrivacyCard) -> Iterator[str]:
    if tuple(merged(card.charges)) != card.charges:
        yield "the card lists a charge twice, empty or numbered; it must hold each kind of release once"
    names = {charge.name for charge in card.charges}
    for name in sorted(names - {*_ONCE, CLASSIFIER, STEP}):
        yield f"the card charges {name!r}, a release that this version does not know"
    for charge in card.charges:
        if charge.name in _ONCE and charge.sample_rate != 1.0:
            yield f"the card charges {charge.name!r} at sample rate {charge.sample_rate:g}; it is made on all records"
        if charge.name in _ONCE and charge.count != 1:
            yield f"the card charges {charge.name!r} {charge.count} times; it is made once"
        if charge.name == CLASSIFIER and (charge.sample_rate, charge.count) != (card.sample_rate, CLASSIFIER_STEPS):
            yield (
                f"the card charges {charge.count} releases {CLASSIFIER!r} at sample rate {charge.sample_rate:.6g}; a "
                f"run makes {CLASSIFIER_STEPS} at that of its steps, {card.sample_rate:.6g}"
            )
    corrected, refined = card.corrected_dimensions, card.refinement_steps
    for name, there, claim in (
        (CLASS_MOMENTS, corrected > 0, f"the card corrects {corrected} dimensions, but the moments for that are"),
        (CLASS_FEATURES, refined > 0, f"the card refines images {refined} times, but the features for that are"),
        (CLASSIFIER, card.classifier is not None, f"the card's classifier is {card.classifier!r}, but its training is"),
    ):
        if (name in names) != there:
            yield f"{claim} {'' if name in names else 'not '}charged"
    needed = set() if card.sanitize == "batch" else {FIRST_MOMENTS, SECOND_MOMENT}
    if names & {FIRST_MOMENTS, SECOND_MOMENT} != needed:
        yield f"sanitize {card.sanitize!r} does not fit the charged moments ({', '.join(sorted(names)) or 'none'})"


def _step(card: PrivacyCard) -> Iterator[str]:
    steps = [charge for charge in card.charges if charge.name == STEP]
    charged, queries = sum(charge.count for charge in steps), card.num_steps * card.queries_per_step
    embedded = [charge.noise_multiplier for charge in card.charges if charge.name == CLASS_EMBEDDING]
    if charged == 0 and not embedded:
        yield "the card charges no step, so its weights cannot come from training"
    if card.matching_steps and card.sanitize != "record":
        yield f"sanitize {card.sanitize!r} makes no steps after its own, but the card claims {card.matching_steps}"
    if card.kept_share and not card.matching_steps:
        yield (
            f"the card draws {100 * card.kept_share:.3g} % of the images from before the steps on an embedding, but "
            "claims no such steps"
        )
    if bool(embedded) != (card.sanitize == "embedding" or card.matching_steps > 0):
        steps_after = f" with {card.matching_steps} steps on one" if card.matching_steps else ""
        yield (
            f"sanitize {card.sanitize!r}{steps_after}, but an embedding of the classes is "
            f"{'' if embedded else 'not '}charged"
        )
    if card.sanitize == "embedding" and any(noise != card.noise_multiplier for noise in embedded):
        yield "the card's noise multiplier differs from that of its charged embedding"
    if any((c.noise_multiplier, c.sample_rate) != (card.noise_multiplier, card.sample_rate) for c in steps):
        yield "the card's noise multiplier or sample rate differ from those of its charged steps"
    if charged != queries:
        yield f"the card claims {queries} noisy queries, but charges {charged}"
    made = {"record": 1, "embedding": 0}.get(card.sanitize)
    if made is not None and card.queries_per_step != made:
        word = "one query" if made else "no query"
        yield f"sanitize {card.sanitize!r} makes {word} a step, but the card claims {card.queries_per_step}"
    if card.sanitize == "embedding" and not _equal(card.clip_norm, UNIT_SENSITIVITY):
        yield f"features of the embedding have norm {UNIT_SENSITIVITY:g}, but the card claims {card.clip_norm:.6g}"
    if not _equal(card.sample_rate * card.num_records, card.expected_batch_size):
        yield (
            f"sample rate {card.sample_rate:.6g} of {card.num_records} records is not the card's expected batch size "
            f"{card.expected_batch_size:.6g}"
        )
    sensitivity = card.clip_norm * (2.0 if card.sanitize == "batch" else 1.0)
    if not _equal(card.sensitivity, sensitivity):
        yield (
            f"the card claims sensitivity {card.sensitivity:.6g}; sanitize {card.sanitize!r} with clip norm "
            f"{card.clip_norm:.6g} has {sensitivity:.6g}"
        )


def _prior(card: PrivacyCard) -> Iterator[str]:
    prior = card.class_prior
    counted = any(charge.name == CLASS_COUNTS for charge in card.charges)
    if counted != (prior.how == "noisy histogram"):
        yield f"the class prior is a {prior.how!r}, but class counts are {'' if counted else 'not '}charged"
    if not abs(sum(prior.shares) - 1.0) <= _SLACK:
        yield f"the shares of the class prior add up to {sum(prior.shares):.6g}, not to 1"


def _words(card: PrivacyCard) -> Iterator[str]:
    """What the card must admit, and the accountant that it names."""
    admits = NOT_PRIVATE in card.warnings or "test seed" in card.randomness
    if card.private and admits:
        yield "the card says that it is private, and that its noise came from a test seed"
    if not card.private:
        yield NOT_PRIVATE
    if delta_warning(card.delta, card.num_records) and not any("delta" in text for text in card.warnings):
        yield f"delta {card.delta:g} is not below 1/{card.num_records}, and the card does not warn of it"
    if not (card.accountant.startswith("dp-accounting ") and card.accountant.endswith(", PLD")):
        yield f"the card names {card.accountant!r} as its accountant; known is {ACCOUNTANT!r}"


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_ROUNDING)
