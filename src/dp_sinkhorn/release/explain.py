"""A verification in words, for the person who decides whether to hand the release out."""

import math

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from dp_sinkhorn.privacy.plan import delta_warning
from dp_sinkhorn.privacy.tradeoff import tpr_bound
from dp_sinkhorn.release.model_card import NEIGHBOURS
from dp_sinkhorn.release.verify import Verification

_COVERED = (
    f"Each single record (one image with its label), whatever else the attacker knows. {NEIGHBOURS}",
    "The weights, the card, and any number of images drawn from the release.",
    "In the run folder: configuration, ledger, metrics and pictures, but not the folder private/.",
)
_NOT_COVERED = (
    "Several runs or releases on the same records: each spends its own epsilon, and they add up.",
    "The choice of settings, if you made it by looking at the private data (see the card's line on tuning).",
    "Figures that are computed from the records, for example an evaluation of the images.",
    "What someone could observe on the training machine: time, memory or power.",
    "Facts about the records as a whole: to convey these is the purpose of synthetic images.",
    "Attackers who can break AES-256, which generates the noise.",
)
_WIDTH = 100
_LEDGER = {
    "equal": "the run's ledger holds exactly the card's charges",
    "different": "DIFFERS from the card",
    "none": "not compared: give the run folder, or --ledger FILE",
}
_SIGNATURE = {
    "none": "not signed",
    "not checked": "signed, not checked: give --public-key",
    "valid": "valid: the owner of the key vouches for this card and its weights",
    "invalid": "INVALID",
}

Section = tuple[str, tuple[str, ...]]


def explain(result: Verification) -> list[Section]:
    """Headings with their lines. A release that does not hold promises nothing."""
    sections = [("Checked", _checked(result))]
    if result.problems:
        sections.append(("What is wrong", tuple(f"problem: {text}" for text in result.problems)))
    if result.notes:
        sections.append(("Worth knowing", tuple(f"note: {text}" for text in result.notes)))
    if not result.ok:
        return [*sections, ("What is promised", ("Nothing. Do not hand the release out.",))]
    public = (f"Facts that are treated as public: {', '.join(result.card.treated_as_public)}.",)
    return [
        *sections,
        ("What is promised", _promise(result)),
        ("Covered", _COVERED),
        ("Not covered", (_several(result), *_NOT_COVERED, *public)),
        ("What this check cannot see", _unseen(result)),
    ]


def verdict(result: Verification) -> str:
    """The result in one line."""
    if result.ok:
        return "The card holds: nothing contradicts it"
    count = len(result.problems)
    return f"The card DOES NOT HOLD: {count} problem{'s' if count > 1 else ''}"


def show(result: Verification, console: Console) -> None:
    """Print a verification: framed and wrapped in a terminal, plain lines otherwise."""
    if not console.is_terminal:
        print(verdict(result), *_plain(result), sep="\n", file=console.file)
        return
    parts: list[RenderableType] = []
    for heading, lines in explain(result):
        parts.append(Text(f"\n{heading}", style="bold"))
        parts += [Padding(Text(line, style=_style(line)), (0, 0, 0, 2)) for line in lines]
    colour = "green" if result.ok else "red"
    panel = Panel(Group(*parts), title=Text(verdict(result), style=f"bold {colour}"), border_style=colour)
    console.print(panel, width=min(_WIDTH, console.width))


def _plain(result: Verification) -> list[str]:
    return [text for heading, lines in explain(result) for text in ("", f"{heading}:", *lines)]


def _style(line: str) -> str:
    return {"problem": "red", "note": "yellow"}.get(line.partition(":")[0], "")


def _checked(result: Verification) -> tuple[str, ...]:
    card = result.card
    facts = {
        "epsilon": f"{card.epsilon:.6g} on the card; recomputed {_number(result.epsilon_pld)} (PLD), "
        f"{_number(result.epsilon_rdp)} (RDP)",
        "delta": f"{card.delta:g}, {card.delta * card.num_records:.3g} / number of records",
        "noise": "secret" if card.private else "from a test seed: NOT PRIVATE",
        "weights": "the file that the card describes" if result.weights_match else "NOT those of the card",
        "ledger": _LEDGER[result.ledger],
        "signature": _SIGNATURE[result.signature],
    }
    return tuple(f"{name:<11}{text}" for name, text in facts.items())


def _promise(result: Verification) -> tuple[str, ...]:
    card, attack = result.card, result.attack
    lines = [
        f"Adding or removing one record changes the probability of anything an observer could conclude by at most a "
        f"factor e^{card.epsilon:.4g} = {factor(card.epsilon)}, plus {card.delta:g}."
    ]
    if warning := delta_warning(card.delta, card.num_records):
        lines.append(f"Warning: {warning}.")
    if attack is not None:
        for share, fpr, tpr in (("1 %", 0.01, attack.tpr_at_1_percent), ("0.1 %", 0.001, attack.tpr_at_01_percent)):
            alone = tpr_bound(fpr, card.epsilon, card.delta)
            lines.append(
                f"An attack that guesses which images were trained on, and wrongly accuses {share} of all others, "
                f"finds at most {percent_above(tpr)} of those trained on (blind guessing: {share}; bound from "
                f"epsilon and delta alone: {percent_above(alone)})."
            )
        lines.append(
            "These rates are averages over the randomness of training. They hold for every attacker who cannot "
            "break AES-256, even one who knows everything except the record in question and the noise."
        )
    return tuple(lines)


def _several(result: Verification) -> str:
    """ε for a person with several images."""
    bounds = ", ".join(
        f"{_rounded_up(epsilon, 4):.4g} for {images}" if math.isfinite(epsilon) else f"unbounded for {images}"
        for images, epsilon in result.epsilon_of_several.items()
    )
    return f"Several images of one person together: epsilon is {bounds} images, at the same delta."


def _unseen(result: Verification) -> tuple[str, ...]:
    lines = ["Whether the training ran as the card says: the check compares the card with itself and with the files."]
    if result.ledger == "none":
        lines.append("Whether more was spent than the card charges: no ledger was compared.")
    if result.signature != "valid":
        lines.append("Who made the card: anyone who can replace both card and weights can make them agree.")
    return tuple(lines)


def _number(value: float | None) -> str:
    return "impossible" if value is None else f"{value:.6g}"


def factor(epsilon: float) -> str:
    """e^ε, rounded up to three digits."""
    if epsilon > 30.0:
        return "more than 10^13"
    value = math.exp(epsilon)
    return f"{_rounded_up(value, 3):,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def percent_above(share: float) -> str:
    """A share in per cent, rounded up to three digits: never less than the share."""
    value = 100.0 * share
    if value >= 99.95:
        return "100 %"
    return f"{_rounded_up(value, 3):.3g} %"


def _rounded_up(value: float, digits: int) -> float:
    """A value of at least 0, rounded up to so many significant digits."""
    if value == 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit) * unit
