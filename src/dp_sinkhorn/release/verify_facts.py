"""Checks of the card's facts against each other."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dp_sinkhorn.privacy.accounting import ACCOUNTANT, Epsilons, merged
from dp_sinkhorn.privacy.plan import delta_warning
from dp_sinkhorn.privacy.random import SAMPLER
from dp_sinkhorn.release.card import NOT_PRIVATE, PrivacyCard
from dp_sinkhorn.release.weights import TREATED_AS_PUBLIC, TUNING, mechanism

if TYPE_CHECKING:
    from dp_sinkhorn.stages.base import Stage, Stages

# Tolerances for rounding: in Fourier transforms on another machine, and in products of decimal numbers.
_SLACK, _ROUNDING = 1e-6, 1e-9


def contradictions(card: PrivacyCard, stages: "Stages") -> Iterator[str]:
    """Each way in which the card contradicts itself, as a sentence; `claims` checks ε.

    Raises:
        InputError: The card lists a stage that is not among `stages`, or facts that are not of that stage.
    """
    found = stages.facts_of(card)
    yield from _charges(card, {stage.name for stage, _ in found})
    yield from _stages(card, [stage for stage, _ in found], stages)
    for stage, facts in found:
        yield from stage.problems(facts, card)
    yield from card.layers.problems(card.queries_per_step)
    yield from _numbers(card)
    yield from _words(card)


def claims(card: PrivacyCard, bounds: Epsilons) -> tuple[list[str], list[str]]:
    """(problems, notes) on each ε of the card, compared with its recomputed bound.

    A smaller ε is a problem. A larger ε is a weaker promise, but true: a note.
    """
    problems, notes = [], []
    for name, claimed, bound in (
        ("epsilon", card.epsilon, bounds.pld),
        ("epsilon_rdp", card.epsilon_rdp, bounds.rdp),
    ):
        # Written so that a claim of NaN is a problem.
        if not claimed >= bound * (1.0 - _SLACK):
            problems.append(f"the card claims {name.replace('_', ' ')} {claimed:.6g}; its charges give {bound:.6g}")
        elif claimed > bound * (1.0 + _SLACK):
            words = name.replace("_", " ")
            notes.append(f"the card claims {words} {claimed:.6g}, more than its charges give: {bound:.6g}")
    return problems, notes


def unfamiliar_words(card: PrivacyCard, stages: "Stages") -> list[str]:
    """Notes on texts of the card that differ from this version's: only a reader can judge them."""
    listed = {entry.name for entry in card.stages}
    expected = {
        "accountant": ACCOUNTANT,
        "mechanism": mechanism([stage for name, stage in stages.items() if name in listed], card.charges),
        "tuning": TUNING,
        "treated_as_public": TREATED_AS_PUBLIC,
        **({"randomness": SAMPLER} if card.private else {}),
    }
    if card.card_version == 1:
        del expected["mechanism"], expected["treated_as_public"]  # that version worded them differently
    return [
        f"the card's {name} differs from this version's wording; read it yourself: {getattr(card, name)}"
        for name, words in expected.items()
        if getattr(card, name) != words
    ]


def _charges(card: PrivacyCard, listed: set[str]) -> Iterator[str]:
    if tuple(merged(card.charges)) != card.charges:
        yield "the card lists a charge twice, empty or numbered; it must list each kind of release once"
    for name in sorted({charge.name for charge in card.charges}):
        if name.partition(".")[0] not in listed:
            yield f"the card charges {name!r}, but lists no stage that makes this release"


def _stages(card: PrivacyCard, found: "list[Stage]", stages: "Stages") -> Iterator[str]:
    """Each listed stage needs the stages that it builds on, and weights come from training."""
    known = {gift for stage in stages.values() for gift in stage.gives}
    given = {gift for stage in found for gift in stage.gives}
    for stage in found:
        for need in sorted(known & set(stage.needs) - given):
            yield f"the card lists the stage {stage.name!r}, which needs the {need}, but no stage that makes them"
    if not any(stage.trains == card.mode for stage in found):
        yield f"the card lists no stage that trains in mode {card.mode!r}, so its weights cannot come from training"


def _numbers(card: PrivacyCard) -> Iterator[str]:
    if not _equal(card.sample_rate * card.num_records, card.expected_batch_size):
        yield (
            f"sample rate {card.sample_rate:.6g} times {card.num_records} records is not the card's expected batch "
            f"size {card.expected_batch_size:.6g}"
        )
    if not abs(sum(card.class_prior.shares) - 1.0) <= _SLACK:
        yield f"the shares of the class prior add up to {sum(card.class_prior.shares):.6g}, not to 1"


def _words(card: PrivacyCard) -> Iterator[str]:
    """Warnings that the card must contain, and the accountant that it names."""
    admits = NOT_PRIVATE in card.warnings or "test seed" in card.randomness
    if card.private and admits:
        yield "the card says that it is private, but also that its noise came from a test seed"
    if not card.private:
        yield NOT_PRIVATE
    if delta_warning(card.delta, card.num_records) and not any("delta" in text for text in card.warnings):
        yield f"delta {card.delta:g} is not below 1/{card.num_records}, and the card does not warn of it"
    if not (card.accountant.startswith("dp-accounting ") and card.accountant.endswith(", PLD")):
        yield f"the card names {card.accountant!r} as its accountant; this version knows {ACCOUNTANT!r}"


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_ROUNDING)
