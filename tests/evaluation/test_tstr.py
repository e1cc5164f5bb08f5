"""Scores against hand-computed values; the evaluation as a whole on toy images whose answer is known."""

import dataclasses
import json
from collections.abc import Iterator
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.errors import InputError
from dp_sinkhorn.evaluation import CLASSIFIERS, Classifier, Scores, evaluate, score_classifiers, tstr

NAMES = ("a", "b", "c", "d")
PERFECT = Scores(accuracy=1.0, balanced_accuracy=1.0, macro_f1=1.0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On arrays as small as these, threads only wait for one another: minutes on a busy machine."""
    with threadpool_limits(limits=1):
        yield


def blocks(count: int, seed: int, names: tuple[str, ...] = NAMES, side: int = 8) -> LabelledImages:
    """Noisy dark images with a bright quadrant, whose position is the class; classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 40, (count, 1, side, side), generator=generator, dtype=torch.uint8)
    half = side // 2
    for image, label in zip(pixels, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 150
    return LabelledImages(pixels, labels, names)


class Nearest(Classifier):
    """The label of the nearest training image: quick, for tests of what surrounds the classifiers."""

    def _fit(self, images, targets) -> None:
        self._images, self._targets = images.flatten(1), targets

    def _predict(self, images):
        return self._targets[torch.cdist(images.flatten(1), self._images).argmin(dim=1)]


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(tstr, "CLASSIFIERS", dict.fromkeys(CLASSIFIERS, Nearest))


def test_scores_of_a_known_confusion() -> None:
    """Class 0: 88 of 90 right; class 1: 1 of 6; class 2: 1 of 4. Accuracy alone looks excellent."""
    confusion = np.array([[88, 2, 0], [5, 1, 0], [2, 1, 1]])
    labels, predictions = (np.repeat(side.ravel(), confusion.ravel()) for side in np.indices((3, 3)))
    scores = Scores.of(labels, predictions)
    assert scores.accuracy == pytest.approx(90 / 100)
    assert scores.balanced_accuracy == pytest.approx((88 / 90 + 1 / 6 + 1 / 4) / 3)
    # F1 = 2·right / (images of the class + predictions of it)
    assert scores.macro_f1 == pytest.approx((176 / (90 + 95) + 2 / (6 + 4) + 2 / (4 + 1)) / 3)


def test_scores_average_over_the_classes_of_the_test_images() -> None:
    """Class 2 is predicted but never true: it lowers the others, and is no class of its own."""
    scores = Scores.of(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]))
    assert scores == Scores(accuracy=0.75, balanced_accuracy=0.75, macro_f1=pytest.approx((2 / 3 + 1) / 2))


def test_separable_images_score_perfectly() -> None:
    assert score_classifiers(blocks(400, seed=0), blocks(100, seed=1), seed=0) == {
        "logreg": PERFECT,
        "mlp": PERFECT,
        "cnn": PERFECT,
    }


def test_a_class_absent_from_the_synthetic_images_has_recall_zero() -> None:
    synthetic = blocks(400, seed=0)
    without_last = synthetic.subset((synthetic.labels != 3).nonzero().flatten())
    scores = score_classifiers(without_last, blocks(100, seed=1), seed=0)
    for name in CLASSIFIERS:
        assert scores[name].accuracy == pytest.approx(0.75), name
        assert scores[name].balanced_accuracy == pytest.approx(0.75), name
        assert 0.6 < scores[name].macro_f1 < 0.75, name


def test_synthetic_images_of_one_class_score_like_a_constant() -> None:
    synthetic = blocks(40, seed=0)
    constant = LabelledImages(synthetic.pixels, torch.zeros_like(synthetic.labels), NAMES)
    scores = score_classifiers(constant, blocks(100, seed=1), seed=0)
    # F1 of the predicted class: 2·25 / (25 + 100); of the three others: 0.
    expected = Scores(accuracy=0.25, balanced_accuracy=0.25, macro_f1=pytest.approx(0.4 / 4))
    assert scores == dict.fromkeys(CLASSIFIERS, expected)


def test_test_images_do_not_influence_training(monkeypatch) -> None:
    """Other test images at the end leave the predictions for the first ones as they are."""
    predictions = []
    original = Classifier.predict

    def recorded(self, images):
        predictions.append(original(self, images))
        return predictions[-1]

    monkeypatch.setattr(Classifier, "predict", recorded)
    noise = torch.randint(0, 256, (120, 1, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    test = LabelledImages(noise, torch.arange(120) % 4, NAMES)
    inverted = LabelledImages(
        torch.cat([noise[:60], 255 - noise[60:]]),
        torch.cat([test.labels[:60], 3 - test.labels[60:]]),
        NAMES,
    )
    train = blocks(60, seed=0)
    score_classifiers(train, test, seed=0)
    score_classifiers(train, inverted, seed=0)
    assert len(predictions) == 2 * len(CLASSIFIERS)
    for first, second in zip(predictions[:3], predictions[3:], strict=True):
        assert torch.equal(first[:60], second[:60])


def test_evaluation_puts_synthetic_next_to_real() -> None:
    """Synthetic images with two labels swapped are worth half; the real ceiling is perfect. Seeded."""
    synthetic = blocks(400, seed=0)
    swapped = LabelledImages(synthetic.pixels, torch.tensor([1, 0, 2, 3])[synthetic.labels], NAMES)
    lines: list[str] = []
    real_train, real_test = blocks(600, seed=1), blocks(100, seed=2)
    result = evaluate(swapped, real_train, real_test, seed=3, progress=lines.append)
    half = Scores(accuracy=0.5, balanced_accuracy=0.5, macro_f1=0.5)
    assert result.tstr == dict.fromkeys(CLASSIFIERS, half)
    assert result.trtr == dict.fromkeys(CLASSIFIERS, PERFECT)
    assert (result.num_synthetic, result.num_real_train, result.num_test, result.seed) == (400, 400, 100, 3)
    assert result.seconds > 0
    assert lines[0] == "training logreg on 400 synthetic images"
    assert lines[-1] == "training cnn on 400 real images"
    assert len(lines) == 6


def test_the_same_seed_gives_identical_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (180, 1, 8, 8), generator=generator, dtype=torch.uint8)
    noise = LabelledImages(pixels, torch.arange(180) % 4, NAMES)
    synthetic, train, test = (noise.subset(torch.arange(i, i + 60)) for i in (0, 60, 120))
    first, second = (dataclasses.replace(evaluate(synthetic, train, test, seed=4), seconds=0) for _ in range(2))
    assert first == second


def test_the_ceiling_is_a_seeded_random_subset(monkeypatch, quick) -> None:
    trained_on = []
    score = tstr.score_classifiers

    def recorded(train, *arguments):
        trained_on.append(train.pixels)
        return score(train, *arguments)

    monkeypatch.setattr("dp_sinkhorn.evaluation.suite.score_classifiers", recorded)
    synthetic, real_train, real_test = blocks(40, seed=0), blocks(200, seed=1), blocks(20, seed=2)
    for seed in (0, 0, 1):
        evaluate(synthetic, real_train, real_test, seed)
    same, again, other = trained_on[1::2]
    assert len(same) == 40
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert not torch.equal(same, real_train.pixels[:40])
    real_rows = {image.numpy().tobytes() for image in real_train.pixels}
    assert len({image.numpy().tobytes() for image in same} & real_rows) == 40  # no image twice


def test_a_smaller_real_set_is_used_whole(quick) -> None:
    assert evaluate(blocks(40, seed=0), blocks(24, seed=1), blocks(20, seed=2)).num_real_train == 24


def test_json_has_exactly_these_keys(quick) -> None:
    result = evaluate(blocks(40, seed=0), blocks(40, seed=1), blocks(20, seed=2))
    plain = json.loads(json.dumps(result.to_json_dict()))
    assert set(plain) == {"tstr", "trtr", "num_synthetic", "num_real_train", "num_test", "seed", "seconds"}
    for side in ("tstr", "trtr"):
        assert list(plain[side]) == ["logreg", "mlp", "cnn"]
        for scores in plain[side].values():
            assert scores == {"accuracy": 1.0, "balanced_accuracy": 1.0, "macro_f1": 1.0}


def test_table_shows_percentages_and_says_what_the_ceiling_is(quick) -> None:
    result = evaluate(blocks(40, seed=0), blocks(24, seed=1), blocks(20, seed=2))
    scores = {"logreg": Scores(0.9049, 0.5, 0.25), "mlp": PERFECT, "cnn": PERFECT}
    text = StringIO()
    Console(file=text, width=80).print(dataclasses.replace(result, tstr=scores, num_synthetic=20_000).table())
    row = next(line for line in text.getvalue().splitlines() if "logreg" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "logreg", "90.5", "100.0", "50.0", "100.0", "25.0", "100.0"
    ]  # fmt: skip
    caption = " ".join(text.getvalue().split())
    assert "20,000 synthetic images" in caption
    assert "24 real training images drawn at random" in caption
    assert "20 real test images" in caption


@pytest.mark.parametrize("names", [("0", "1", "2", "3"), NAMES])
def test_numbered_classes_match_any_names(quick, names) -> None:
    real_train, real_test = blocks(40, seed=1), blocks(20, seed=2)
    assert evaluate(blocks(40, seed=0, names=names), real_train, real_test).tstr["cnn"] == PERFECT


@pytest.mark.parametrize(
    ("synthetic", "message"),
    [
        (
            blocks(8, seed=0, side=10),
            "synthetic images are 1x10x10, real test images 1x8x8; give images of one",
        ),
        (blocks(8, seed=0, names=(*NAMES, "e")), "synthetic images have 5 classes, real test images 4; give"),
        (
            blocks(8, seed=0, names=("a", "c", "b", "d")),
            "class 1 is 'c' in the synthetic images, 'b' in the real test images; give both the same",
        ),
    ],
)
def test_images_of_another_kind_are_refused(quick, synthetic: LabelledImages, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluate(synthetic, blocks(8, seed=1), blocks(8, seed=2))
    assert "\n" not in str(caught.value)


def test_real_training_images_of_another_kind_are_refused(quick) -> None:
    with pytest.raises(InputError, match="real training images are 1x10x10, real test images 1x8x8"):
        evaluate(blocks(8, seed=0), blocks(8, seed=1, side=10), blocks(8, seed=2))


def test_one_class_is_nothing_to_classify(quick) -> None:
    images = LabelledImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("a",))
    with pytest.raises(InputError, match=r"has one class; there is nothing to classify; give images of two"):
        evaluate(images, images, images)


def test_one_class_among_the_test_images_is_legal(quick) -> None:
    test = blocks(20, seed=2)
    only_first = test.subset((test.labels == 0).nonzero().flatten())
    assert evaluate(blocks(40, seed=0), blocks(40, seed=1), only_first).tstr["mlp"] == PERFECT


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=f"seed={seed} is not in 0..4294967295; give"):
        evaluate(blocks(8, seed=0), blocks(8, seed=1), blocks(8, seed=2), seed=seed)
