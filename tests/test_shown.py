"""What objects show of themselves in a terminal and in a notebook: nothing of a record, and no markup of strangers."""

import base64
import io
import re
from html import escape

import numpy as np
import pytest
import torch
from PIL import Image

from dp_sinkhorn import DPSinkhorn
from dp_sinkhorn.data.arrays import Values
from dp_sinkhorn.data.found import Files
from dp_sinkhorn.data.grid import draw_grid
from dp_sinkhorn.data.sources import dataset_of, load_images
from dp_sinkhorn.data.tree import tree_of
from dp_sinkhorn.estimators.linear_classifier import LogisticContributions
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.privacy.accounting import Charge
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.curator import Curator, Draw, HeldRecords
from dp_sinkhorn.privacy.ledger import Ledger
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.release.weights import load_release
from dp_sinkhorn.sampling.draw import sample
from dp_sinkhorn.sampling.html_summary import summary_html
from support.small_release import RECORD, make_run
from support.toy import LEAN, toy

PIXEL, LABEL, NAME = 217, 97, "file of patient seven"
MARKS = re.compile(rf"\b({PIXEL}|{LABEL})\b|{PIXEL}\.|0\.85|tensor|array\(|{NAME}")


def texts(shown: object) -> str:
    """All that a terminal or a notebook may show of an object."""
    bundle = shown._repr_mimebundle_() if hasattr(shown, "_repr_mimebundle_") else {}
    html = shown._repr_html_() if hasattr(shown, "_repr_html_") else ""
    return "\n".join((repr(shown), str(shown), f"{shown}", html, *bundle.values()))


def test_objects_that_hold_records_show_none_of_them(tmp_path):
    pixels, labels = np.full((120, 8, 8), PIXEL, np.uint8), np.arange(120) % (LABEL + 1)
    (tmp_path / "data" / "a").mkdir(parents=True)
    for number in range(12):
        Image.fromarray(pixels[0]).save(tmp_path / "data" / "a" / f"{NAME} {number}.png")
    found = dataset_of(pixels, labels)
    records = found.load("train")
    held, charge = HeldRecords(records), Charge(name="a", noise_multiplier=1.0, count=1)
    held.views["a view"] = records.floats()
    numbers = torch.full((3, 2), float(PIXEL), dtype=torch.float64)
    tree = tree_of(tmp_path / "data")
    holders = [
        *(records, found, found.found, found.found.parts["train"], found.found.parts["train"].images),
        *(load_images(tmp_path / "data"), tree, Files(tree.entries)),
        Values(pixels[0], (0.0, 255.0), "its type"),
        *(held, Draw(held, torch.tensor([LABEL])), Draw(held)),
        Curator(records, [charge], Ledger(tmp_path / "ledger.jsonl"), CryptoRandom(None)),
        *(BoundedSum(numbers, 1.0), LogisticContributions(numbers, numbers)),
    ]
    assert [(type(holder), MARKS.search(texts(holder))) for holder in holders if MARKS.search(texts(holder))] == []
    assert repr(records) == "LabelledImages(120 images of shape (1, 8, 8), 98 classes)"


def test_a_model_shows_its_parameters_and_images_of_its_own():
    model = DPSinkhorn(settings=LEAN["record"], verbose=0)
    before = texts(model)
    model.fit(*toy().arrays())
    assert repr(model) == repr(DPSinkhorn(settings=LEAN["record"], verbose=0))
    html = model._repr_html_()
    assert model.privacy_.statement() in html
    assert model.privacy_.statement() not in before
    assert "<th>records</th><td>300</td>" in html
    shown = model._repr_mimebundle_()
    assert shown["text/plain"] == repr(model)
    assert html.endswith(summary_html(*model._model()))
    assert shown["text/html"].endswith(summary_html(*model._model()))
    [png] = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    with Image.open(io.BytesIO(base64.b64decode(png))) as shown:
        drawn = sample(*model._model(), 48, balanced=True, seed=0)
        assert np.array_equal(np.asarray(shown), np.asarray(draw_grid(drawn, 8)))
    # It keeps nothing of the records, which scikit-learn's table of fitted attributes would show.
    assert vars(model).keys() == {
        *("epsilon", "delta", "settings", "verbose", "privacy_", "classes_", "ledgers_"),
        *("_generator", "_files", "_interrupted"),
    }


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A release whose texts are markup, of more classes than are shown."""
    names = ("<script>alert(1)</script>", '"><img src=x>', *map(str, range(20)))
    run = make_run(tmp_path_factory.mktemp("hostile") / "run", names, **RECORD | {"test_seed": 1})
    return load_release(run, STAGES)


def test_texts_of_parameters_and_cards_are_escaped(hostile):
    card, generator = hostile
    marked = card.model_copy(update={"warnings": ("<b>bold</b>", *card.warnings)})
    html = summary_html(marked, generator) + DPSinkhorn(settings={"mode": "<i>slanted</i>"})._repr_html_()
    for markup in ("<script>alert", "<img src=x", "<b>bold", "<i>slanted"):
        assert markup not in html
        assert escape(markup) in html


def test_a_model_that_is_not_private_says_so_in_words_and_picture(hostile):
    html = summary_html(*hostile)
    assert "NOT PRIVATE" in html
    [png] = re.findall(r"base64,([^\"]+)", html)
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        assert "NOT PRIVATE" in picture.text["Warning"]
        assert picture.size[1] == 10 * 9 * 6  # the first ten classes
