"""The release's README: a model card in the format of the Hugging Face hub, with the privacy facts as metadata."""

import html
import re
from typing import TYPE_CHECKING

from dp_sinkhorn.io.safe_read import listed
from dp_sinkhorn.release.card import PrivacyCard

if TYPE_CHECKING:
    from dp_sinkhorn.stages.base import Stages

NEIGHBOURS = (
    "Two data sets are neighbours if one has exactly one record more than the other. Public facts, among them the "
    "number of records N, count as the same for both."
)
_MANY_CLASSES = 100  # more names than this are left to card.json
_SHOWN_CLASSES = 20
_FILES = """| file | content |
|---|---|
| `weights.safetensors` | the weights of the generator, in a format without pickle |
| `card.json` | the privacy card: every fact that the claim rests on |
| `README.md` | this page, written from the card |"""


def model_card(card: PrivacyCard, stages: "Stages") -> str:
    """The text of the README: YAML front matter, then sections for people.

    Guarantees: `epsilon` and `delta` are YAML numbers, exactly those of the card. No class name, whatever its
    characters, can end a value, open a key or put markup into the page.
    """
    return f"---\n{_front_matter(card)}---\n\n{_body(card, stages)}"


def _front_matter(card: PrivacyCard) -> str:
    kind = "class-conditional" if len(card.class_names) > 1 else "unconditional"
    privacy = "differential-privacy" if card.private else "not-private"
    lines = [
        "library_name: dp-sinkhorn",
        "pipeline_tag: unconditional-image-generation",
        "tags:",
        *(f"- {tag}" for tag in (privacy, "synthetic-data", "dp-sinkhorn", "image-generation", kind)),
        f"private: {'true' if card.private else 'false'}",
        f"epsilon: {_number(card.epsilon)}",
        f"epsilon_rdp: {_number(card.epsilon_rdp)}",
        f"delta: {_number(card.delta)}",
        f"neighboring_relation: {card.neighboring_relation}",
        f"accountant: {_text(card.accountant)}",
        f"mode: {card.mode}",
        f"num_records: {card.num_records}",
        f"num_steps: {card.num_steps}",
        f"queries_per_step: {card.queries_per_step}",
        f"sample_rate: {_number(card.sample_rate)}",
        f"noise_multiplier: {_number(card.noise_multiplier)}",
        f"tuning: {_text(card.tuning)}",
        f"randomness: {_text(card.randomness)}",
        f"image_shape: [{', '.join(map(str, card.image_shape))}]",
        f"num_classes: {len(card.class_names)}",
    ]
    if len(card.class_names) <= _MANY_CLASSES:
        lines += ["class_names:", *(f"- {_text(name)}" for name in card.class_names)]
    lines.append(f"weights_sha256: {_text(card.weights_sha256)}")
    return "\n".join(lines) + "\n"


def _body(card: PrivacyCard, stages: "Stages") -> str:
    channels, height, width = card.image_shape
    shown = listed([_plain(name) for name in card.class_names], _SHOWN_CLASSES)
    warnings = "".join(f"\n> {_plain(warning)}\n" for warning in card.warnings)
    return f"""# Synthetic image generator

{_plain(card.statement())}
{warnings}
This generator draws {height}×{width} {"grey" if channels == 1 else "RGB"} images {_classes(card, shown)}.
It was trained by {_plain(card.software)} {objective(card, stages)}.

## Privacy

{_privacy(card)}

| fact | value |
|---|---|
| ε (claim, by privacy-loss distributions) | {card.epsilon:.4f} |
| ε (looser Rényi bound) | {card.epsilon_rdp:.4f} |
| δ | {card.delta:g} |
| neighbours | {NEIGHBOURS} |
| records | {card.num_records} |
| mechanism | {_plain(card.mechanism)} |
| mode | {card.mode} |
{_steps(card, stages)}
| noise multiplier | {card.noise_multiplier:g} |
| shares of the classes | {_plain(card.class_prior.how)} |
| choice of settings | {_plain(card.tuning)} |
| randomness | {_plain(card.randomness)} |

## Intended use

Use the images in place of the private ones: to develop and test software, to teach, or to train a classifier that you
then test on real images.

## Limits

- **Not covered by ε**, because treated as public: {_plain(", ".join(card.treated_as_public))}.
- ε holds for one record, an image with its label. All images of one person together are less protected.
- Several releases from the same records add up: each spends its own ε.
- The images are not measurements. Rare kinds of images are blurred or missing, and biases of the records remain.
- Test samples against real data before you rely on them. ε does not cover the figures that you get: they come from
  real records.

## Use

With the Python package `dp-sinkhorn`, in this folder:

```
dp-sinkhorn sample . --num 1000 --out samples.npz
dp-sinkhorn verify .
```

`sample` also writes a folder of PNG files, or a Parquet file for `datasets`. Any number of images costs no more
privacy. `verify` recomputes ε from the charges in `card.json`, and checks the weights against their hash.

## Files

{_FILES}

## Reproducibility

Equal seeds (`--seed`) draw equal images. {_repeat(card)}
All settings that the claim depends on are in `card.json`. The SHA-256 of the weights is
`{_plain(card.weights_sha256)}`.
"""


def objective(card: PrivacyCard, stages: "Stages") -> str:
    """What the generator was trained for, stage by stage: Markdown that follows "it was trained"."""
    found = [*(stage.objective(facts) for stage, facts in stages.facts_of(card)), card.layers.objective]
    return ", and then ".join(words for words in found if words)


def _steps(card: PrivacyCard, stages: "Stages") -> str:
    if card.queries_per_step == 0:
        rows = [f"| steps | {card.num_steps}, none of which sees a record |"]
    else:
        made = f"{card.num_steps} × {card.queries_per_step} × {card.sample_rate:.6g}"
        rows = [f"| steps × queries × sample rate | {made} |"]
    for stage, facts in stages.facts_of(card):
        rows += [f"| {fact} | {_plain(value)} |" for fact, value in stage.describe(facts).items()]
    rows += [f"| {fact} | {_plain(value)} |" for fact, value in card.layers.describe().items()]
    return "\n".join(rows)


def _classes(card: PrivacyCard, shown: str) -> str:
    count = len(card.class_names)
    return "without class labels" if count == 1 else f"of {count} classes: {shown}"


def _privacy(card: PrivacyCard) -> str:
    if not card.private:
        return "**None.** The figures below are what the run would have cost with secret noise."
    return (
        "ε bounds what anyone can learn about a single record from this release, or from any number of images drawn "
        "from it, whatever else they know. A smaller ε is more private. The bound holds against everyone who cannot "
        "break AES-256, which generates the noise. Every use of the records is charged, and `card.json` lists all "
        "charges. `dp-sinkhorn verify` says how many records the best attack could find at most."
    )


def _repeat(card: PrivacyCard) -> str:
    if card.private:
        return "Training cannot be repeated bit for bit: whoever could draw the same noise again could subtract it."
    return "Training can be repeated bit for bit, because the noise comes from a known seed: anyone can subtract it."


def _number(value: float) -> str:
    """A float in a form that YAML 1.1 and 1.2 both read as a number: 1e-05 would be a string in 1.1."""
    text = repr(float(value))
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _text(value: str) -> str:
    """A double-quoted YAML scalar on one line, whatever the characters."""
    return '"' + "".join(map(_yaml_character, value)) + '"'


def _yaml_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    code = ord(character)
    if character.isprintable():
        return character
    if 0xD800 <= code <= 0xDFFF:  # half a character, which no text file can hold
        return "\\uFFFD"
    return f"\\x{code:02X}" if code < 0x100 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _plain(text: str) -> str:
    """Text on one line, with all special characters of Markdown and HTML escaped."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\`*_{}\[\]#|~$!])", r"\\\1", html.escape(printable, quote=False))
