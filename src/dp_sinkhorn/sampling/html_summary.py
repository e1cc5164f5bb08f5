"""A fitted model in a notebook: the headline facts of its card and some of its images. Nothing here is private."""

import base64
from html import escape
from io import BytesIO

from dp_sinkhorn.data.grid import draw_grid, rows_a_class
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.io.safe_read import listed
from dp_sinkhorn.release.card import PrivacyCard
from dp_sinkhorn.sampling.draw import sample
from dp_sinkhorn.sampling.privacy_facts import png_mark

_COLUMNS, _MOST_CLASSES = 8, 10
_SIDE = 640  # pixels: larger pictures are made smaller
_SEED = 0


def summary_html(card: PrivacyCard, generator: Generator) -> str:
    """An HTML fragment: the claim, the facts that it rests on, and a few images of each of the first classes.

    Guarantees: Equal releases give equal fragments. Texts of the card are escaped.
    """
    channels, height, width = card.image_shape
    facts = {
        "epsilon": f"{card.epsilon:.6g}",
        "delta": f"{card.delta:g}",
        "records": f"{card.num_records:,}",
        "images": f"{height}×{width} pixels, {'grey' if channels == 1 else 'RGB'}",
        "classes": listed(card.class_names, _MOST_CLASSES),
        "warnings": " ".join(card.warnings) or "none",
    }
    rows = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return (
        f"<p>{escape(card.statement())}</p><table>{rows}</table>"
        f'<img alt="synthetic images" src="data:image/png;base64,{_grid(card, generator)}">'
    )


def _grid(card: PrivacyCard, generator: Generator) -> str:
    """A PNG file in base64."""
    names = card.class_names[:_MOST_CLASSES]
    num = _COLUMNS * rows_a_class(len(names)) * len(names)
    drawn = sample(card, generator, num, names, _SEED, balanced=True)
    picture = draw_grid(LabelledImages(drawn.pixels, drawn.labels, names), _COLUMNS)
    picture.thumbnail((_SIDE, _SIDE))
    file = BytesIO()
    picture.save(file, "PNG", pnginfo=png_mark(card))
    return base64.b64encode(file.getvalue()).decode()
