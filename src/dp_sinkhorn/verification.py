"""Check a release: recompute ε from the card's own facts, and the weights' hash."""

from dataclasses import asdict, dataclass
from pathlib import Path

from dp_sinkhorn.card import NOT_PRIVATE, PrivacyCard
from dp_sinkhorn.errors import InputError
from dp_sinkhorn.privacy.accounting import epsilons
from dp_sinkhorn.privacy.plan import STEP
from dp_sinkhorn.release import CARD, find_release, read_tensors

_SLACK = 1e-6


@dataclass(frozen=True)
class Verification:
    """`ok`: nothing contradicts the card. `private`: the noise was secret. `problems`: one sentence each."""

    ok: bool
    private: bool
    epsilon_card: float
    epsilon_pld: float
    epsilon_rdp: float
    problems: tuple[str, ...]

    def to_json_dict(self) -> dict[str, object]:
        """Plain data with the same keys."""
        return asdict(self)


def verify(path: Path) -> Verification:
    """Recompute the claim of a release (or of a finished run).

    Raises:
        InputError: There is no readable card.
    """
    folder = find_release(path)
    card = PrivacyCard.from_file(folder / CARD)
    bounds = epsilons(card.charges, card.delta)
    problems = []
    if card.epsilon < bounds.pld * (1.0 - _SLACK):
        problems.append(f"the card claims epsilon {card.epsilon:.6g}; its charges give {bounds.pld:.6g}")
    steps = [charge for charge in card.charges if charge.name == STEP]
    if any((c.noise_multiplier, c.sample_rate) != (card.noise_multiplier, card.sample_rate) for c in steps):
        problems.append("the card's noise multiplier or sample rate differ from those of its charged steps")
    queries = card.num_steps * card.queries_per_step
    if sum(charge.count for charge in steps) != queries:
        problems.append(f"the card claims {queries} noisy queries, but charges {sum(c.count for c in steps)}")
    if not card.private:
        problems.append(NOT_PRIVATE)
    try:
        read_tensors(folder, card)
    except InputError as error:
        problems.append(str(error))
    return Verification(not problems, card.private, card.epsilon, bounds.pld, bounds.rdp, tuple(problems))
