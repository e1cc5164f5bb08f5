"""Labels and probabilities by the released classifier."""

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.data.sources import load_synthetic
from dp_sinkhorn.features.scattering import Scattering
from dp_sinkhorn.generators.tuned import TunedGenerator
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.sampling.draw import Draws, draw, sample
from dp_sinkhorn.sampling.outputs import check_output
from support.halves import SHAPE, Halves, telling

NAMES = ("above", "below")


@pytest.fixture
def release(make_card):
    """A release in which half of the images of a class look like the other, and whose classifier sees it."""
    prior = {"how": "declared", "shares": (0.25, 0.75), "epsilon_alone": 0.0}
    card = make_card(class_names=NAMES, image_shape=SHAPE, class_prior=prior)
    generator = TunedGenerator(Halves(0.5), 0, 0, choice=False, classifier=True)
    generator.classifier.copy_(telling())
    return card, generator


def looks_like(images: LabelledImages) -> torch.Tensor:
    """The class of each image: class 0 is bright above, class 1 below."""
    floats = images.floats()
    return (floats[:, 32:].mean(1) > floats[:, :32].mean(1)).long()


def test_relabelling_changes_labels_only(release):
    drawn, found = sample(*release, 200, seed=3), sample(*release, 200, seed=3, relabel=True)
    assert torch.equal(found.pixels, drawn.pixels)
    assert torch.equal(found.labels, looks_like(found))
    assert 0.3 < float((found.labels == drawn.labels).double().mean()) < 0.7


@pytest.mark.parametrize(("balanced", "shares"), [(False, (0.25, 0.75)), (True, (0.5, 0.5))])
def test_probabilities_follow_bayes_rule_with_the_drawn_shares(release, balanced, shares):
    """A classifier without information gives the shares."""
    card, generator = release
    generator.classifier.mul_(1e-3)  # so that it is never sure
    draws = draw(card, generator, 400, balanced=balanced, probabilities=True)
    images = LabelledImages(torch.cat([chunk.pixels for chunk in draws]), torch.zeros(400).long(), NAMES)
    scores = Scattering(SHAPE)(images.floats()) @ generator.classifier.T
    weighed = scores.exp() * torch.tensor(shares)
    torch.testing.assert_close(draws.probabilities(images), weighed / weighed.sum(1, keepdim=True))
    generator.classifier.zero_()
    torch.testing.assert_close(draws.probabilities(images)[0], torch.tensor(shares))


def test_a_class_that_is_not_drawn_has_probability_0(release):
    draws = draw(*release, 50, labels=[1], relabel=True)
    (chunk,) = draws
    assert draws.probabilities(chunk).tolist() == [[0.0, 1.0]] * 50
    assert chunk.labels.tolist() == [1] * 50


@pytest.mark.parametrize("relabel", [False, True])
def test_npz_and_parquet_files_hold_the_probabilities(release, tmp_path, relabel, monkeypatch):
    monkeypatch.setattr("dp_sinkhorn.sampling.draw._CHUNK", 100)
    draws = draw(*release, 250, seed=1, relabel=relabel, probabilities=True)
    expected = torch.cat([draws.probabilities(chunk) for chunk in draws]).numpy()
    labels = torch.cat([chunk.labels for chunk in draws]).numpy()
    for name in ("a.npz", "a.parquet"):
        check_output(tmp_path / name, probabilities=True)(draws)
        read = load_synthetic(tmp_path / name)  # the reader ignores them
        assert read.labels.tolist() == labels.tolist()
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["probabilities"].dtype == np.float32
        np.testing.assert_array_equal(archive["probabilities"], expected)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    np.testing.assert_array_equal(np.array(loaded["probabilities"][:], dtype=np.float32), expected)
    if relabel:
        assert (labels == expected.argmax(1)).all()


def test_without_the_option_no_probabilities_are_written(release, tmp_path):
    check_output(tmp_path / "a.npz")(draw(*release, 10))
    with np.load(tmp_path / "a.npz") as archive:
        assert "probabilities" not in archive


@pytest.mark.parametrize("options", [{"relabel": True}, {"probabilities": True}])
def test_a_release_without_a_classifier_is_refused(release, options):
    card, _ = release
    without = TunedGenerator(Halves(0.5), 0, 0, choice=True)
    for generator in (without, Halves(0.5)):
        with pytest.raises(InputError, match="this release holds no classifier"):
            draw(card, generator, 10, **options)


@pytest.mark.parametrize(("name", "layout"), [("grid.png", None), ("folder", None), ("bench", "dpimagebench")])
def test_probabilities_are_refused_for_pictures_and_folders(tmp_path, name, layout):
    with pytest.raises(InputError, match=r"cannot hold probabilities; give an .npz or .parquet file"):
        check_output(tmp_path / name, layout, probabilities=True)


def test_the_benchmark_layout_refuses_an_empty_class(release, tmp_path):
    card, generator = release
    generator.classifier.zero_()  # the larger class, whatever the image
    draws: Draws = draw(card, generator, 40, relabel=True)
    with pytest.raises(InputError, match="no image of class 0"):
        check_output(tmp_path / "bench", "dpimagebench")(draws)
    assert list(Path(tmp_path).iterdir()) == []
    check_output(tmp_path / "bench", "dpimagebench")(replace(draws, relabel=False))
