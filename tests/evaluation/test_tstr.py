"""Scores against values computed by hand, and the whole evaluation on toy images with known results."""

import dataclasses
import json
from collections.abc import Iterator
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn import metrics
from threadpoolctl import threadpool_limits
from torch import nn

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.evaluation import (
    CLASSIFIERS,
    Bound,
    Classifier,
    ModuleExtractor,
    Scores,
    classifiers,
    evaluate,
    score_classifiers,
    tstr,
)
from dp_sinkhorn.evaluation.confidence import calibration_error
from dp_sinkhorn.evaluation.extractors import NOT_ASKED
from dp_sinkhorn.evaluation.gain import gain
from dp_sinkhorn.evaluation.score_tables import PRIVATE_TITLE, tables
from dp_sinkhorn.evaluation.tstr import ScoreErrors
from dp_sinkhorn.evaluation.uncertainty import mean_error, share_error
from dp_sinkhorn.io.errors import InputError

NAMES = ("a", "b", "c", "d")
PERFECT = (1.0, 1.0, 1.0)
BOUND = Bound(epsilon=1.0, delta=1e-5, auc=0.75, tpr_at_fpr={"0.01": 0.03, "0.001": 0.003})


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On arrays as small as these, threads only wait for one another: minutes on a busy machine."""
    with threadpool_limits(limits=1):
        yield


def three(scores: Scores) -> tuple[float, float, float]:
    return scores.accuracy, scores.balanced_accuracy, scores.macro_f1


def threes(scores: dict[str, Scores]) -> dict[str, tuple[float, float, float]]:
    return {name: three(values) for name, values in scores.items()}


def sure(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> Scores:
    return Scores.of(labels, predictions, np.ones(len(labels)), num_classes)


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
    """The label of the nearest training image: a quick classifier for tests of other parts."""

    def _fit(self, images, targets) -> None:
        self._images, self._targets = images.flatten(1), targets

    def _probabilities(self, images):
        targets = self._targets[torch.cdist(images.flatten(1), self._images).argmin(dim=1)]
        return torch.nn.functional.one_hot(targets, int(self._targets.max()) + 1).float()


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(tstr, "CLASSIFIERS", dict.fromkeys(CLASSIFIERS, Nearest))


def test_scores_of_a_known_confusion() -> None:
    """Class 0: 88 of 90 right; class 1: 1 of 6; class 2: 1 of 4. Accuracy alone looks excellent."""
    confusion = np.array([[88, 2, 0], [5, 1, 0], [2, 1, 1]])
    labels, predictions = (np.repeat(side.ravel(), confusion.ravel()) for side in np.indices((3, 3)))
    scores = sure(labels, predictions, 3)
    assert scores.accuracy == pytest.approx(90 / 100)
    assert scores.balanced_accuracy == pytest.approx((88 / 90 + 1 / 6 + 1 / 4) / 3)
    # F1 = 2·right / (images of the class + predictions of it)
    assert scores.macro_f1 == pytest.approx((176 / (90 + 95) + 2 / (6 + 4) + 2 / (4 + 1)) / 3)
    assert scores.confusion == tuple(map(tuple, confusion.tolist()))
    assert scores.recall == pytest.approx((88 / 90, 1 / 6, 1 / 4))
    # Always certain, right in 90 of 100 cases.
    assert scores.calibration_error == pytest.approx(0.1)


def test_scores_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 5, 300), random.integers(0, 5, 300)
    scores = sure(labels, predictions, 5)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predictions))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(labels, predictions, average="macro"))
    assert np.array_equal(scores.confusion, metrics.confusion_matrix(labels, predictions))


def test_the_calibration_error_is_that_computed_by_hand() -> None:
    """Bin (0.6, 0.667]: two images, sure 0.65 and 0.66, one right; bin (0.933, 1]: one, sure 1, right."""
    confidences, correct = np.array([0.65, 0.66, 1.0]), np.array([True, False, True])
    assert calibration_error(confidences, correct)[0] == pytest.approx(abs(1.31 - 1) / 3)
    # Errors of opposite sign in different bins do not cancel; 0.2 belongs to the bin below it.
    assert calibration_error(np.array([0.2, 0.9]), np.array([True, False]))[0] == pytest.approx((0.8 + 0.9) / 2)
    assert calibration_error(np.array([0.2, 0.19]), np.array([True, False]))[0] == pytest.approx(abs(0.39 - 1) / 2)
    assert calibration_error(np.full(10, 0.7), np.arange(10) < 7)[0] == pytest.approx(0.0, abs=1e-12)


def test_the_calibration_s_error_knows_too_sure_from_too_unsure() -> None:
    sure, right = np.tile([0.95, 0.3], 50), np.tile([False, True], 50)
    value, error = calibration_error(sure, right)
    assert value == pytest.approx((0.95 + 0.7) / 2)
    assert error == pytest.approx(mean_error(np.tile([0.95, 0.7], 50)))


def test_calibrated_confidences_have_almost_no_error() -> None:
    random = np.random.default_rng(1)
    confidences = random.uniform(0.1, 1.0, 100_000)
    assert calibration_error(confidences, random.random(100_000) < confidences)[0] < 0.01


def test_scores_average_over_the_classes_of_the_test_images() -> None:
    """Class 2 is predicted but never true: it lowers the others' scores and does not count in the means."""
    scores = sure(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), 3)
    assert three(scores) == (0.75, 0.75, pytest.approx((2 / 3 + 1) / 2))
    assert scores.recall == (0.5, 1.0, None)
    assert scores.confusion == ((1, 0, 1), (0, 2, 0), (0, 0, 0))


def test_a_class_absent_from_the_synthetic_images_has_recall_zero(quick) -> None:
    synthetic = blocks(200, seed=0)
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
    assert threes(scores) == dict.fromkeys(CLASSIFIERS, (0.25, 0.25, pytest.approx(0.4 / 4)))


def test_test_images_do_not_influence_training(monkeypatch) -> None:
    """Other test images at the end do not change the predictions for the first ones."""
    monkeypatch.setattr(classifiers, "CNN_MAX_ROUNDS", 2)
    monkeypatch.setattr(classifiers, "BOOSTING_ROUNDS", 4)
    predictions = []
    original = Classifier.predict_with_confidence

    def recorded(self, images):
        labels, confidences = original(self, images)
        predictions.append(labels)
        return labels, confidences

    monkeypatch.setattr(Classifier, "predict_with_confidence", recorded)
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
    for first, second in zip(predictions[: len(CLASSIFIERS)], predictions[len(CLASSIFIERS) :], strict=True):
        assert torch.equal(first[:60], second[:60])


def test_an_evaluation_compares_synthetic_with_real_images(monkeypatch) -> None:
    """Synthetic images with two labels swapped score half; real ones score perfectly. Seeded."""
    monkeypatch.setattr(classifiers, "CNN_MAX_ROUNDS", 2)
    synthetic = blocks(400, seed=0)
    swapped = LabelledImages(synthetic.pixels, torch.tensor([1, 0, 2, 3])[synthetic.labels], NAMES)
    lines: list[str] = []
    real_train, real_test = blocks(600, seed=1), blocks(100, seed=2)
    result = evaluate(swapped, real_train, real_test, seed=3, progress=lines.append)
    assert threes(result.tstr) == dict.fromkeys(CLASSIFIERS, (0.5, 0.5, 0.5))
    assert threes(result.trtr) == dict.fromkeys(CLASSIFIERS, PERFECT)
    assert result.tstr["cnn"].confusion == ((0, 25, 0, 0), (25, 0, 0, 0), (0, 0, 25, 0), (0, 0, 0, 25))
    assert (result.num_synthetic, result.num_real_train, result.num_test, result.seed) == (400, 400, 100, 3)
    assert result.seconds > 0
    assert lines[0] == "training logreg on 400 synthetic images"
    assert lines[7] == "training boosting on 400 real images"
    assert lines[8:] == ["training cnn on 500 real images", "training cnn on 500 real and 400 synthetic images"]


def test_the_seed_reaches_each_classifier_and_repeats_scores(monkeypatch) -> None:
    seeds: list[int] = []

    class Told(Nearest):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            seeds.append(seed)

    monkeypatch.setattr(tstr, "CLASSIFIERS", dict.fromkeys(CLASSIFIERS, Told))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (180, 1, 8, 8), generator=generator, dtype=torch.uint8)
    noise = LabelledImages(pixels, torch.arange(180) % 4, NAMES)
    synthetic, train, test = (noise.subset(torch.arange(i, i + 60)) for i in (0, 60, 120))
    first, second = (dataclasses.replace(evaluate(synthetic, train, test, seed=4), seconds=0) for _ in range(2))
    assert first == second
    assert seeds == [4] * 20  # four on synthetic and four on real images, two for the gain; all of it twice


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
    same, again, other = trained_on[1::2]  # after the synthetic images
    assert len(same) == 40
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    assert not torch.equal(same, real_train.pixels[:40])
    real_rows = {image.numpy().tobytes() for image in real_train.pixels}
    assert len({image.numpy().tobytes() for image in same} & real_rows) == 40  # no image twice


def test_a_smaller_real_set_is_used_whole(quick) -> None:
    assert evaluate(blocks(40, seed=0), blocks(24, seed=1), blocks(20, seed=2)).num_real_train == 24


def test_good_synthetic_images_add_accuracy_and_bad_ones_cost_it(quick) -> None:
    """The real training images have two classes of four; the synthetic ones have all, with right or wrong labels."""
    real = blocks(400, seed=1)
    half = real.subset((real.labels < 2).nonzero().flatten())
    found = gain(blocks(60, seed=0), half, blocks(100, seed=2), seed=0, report=str)
    assert (found.num_real, found.num_synthetic) == (200, 60)
    assert found.real["cnn"].accuracy == 0.5
    assert found.real_and_synthetic["cnn"].accuracy == 1.0
    synthetic = blocks(60, seed=0)
    wrong = LabelledImages(synthetic.pixels, 3 - synthetic.labels, NAMES)
    assert gain(wrong, half, blocks(100, seed=2), seed=0, report=str).real_and_synthetic["cnn"].accuracy < 0.5
    assert gain(synthetic, blocks(2000, seed=3), blocks(20, seed=2), seed=0, report=str).num_real == 500


ERRORS = {"accuracy", "balanced_accuracy", "macro_f1", "recall", "calibration_error"}
SCORES = {*ERRORS, "confusion", "standard_errors"}


def test_the_json_of_an_evaluation_has_exactly_these_keys(quick) -> None:
    synthetic, train, test = blocks(40, seed=0), blocks(40, seed=1), blocks(40, seed=2)
    extractor = ModuleExtractor(nn.Flatten(), "pixels", 64)
    result = evaluate(synthetic, train, test, extractor=extractor, memorised=True, bound=BOUND)
    plain = json.loads(json.dumps(result.to_json_dict(), allow_nan=False))
    assert set(plain) == {
        *(
            "version",
            "tstr",
            "trtr",
            "gain",
            "frechet",
            "kernel",
            "prdc",
            "class_shares",
            "class_names",
            "memorisation",
        ),
        *("computed_from", "num_synthetic", "num_real_train", "num_test", "seed", "seconds", "warnings"),
    }
    for side in ("tstr", "trtr"):
        assert list(plain[side]) == ["logreg", "mlp", "cnn", "boosting"]
        for scores in plain[side].values():
            assert set(scores) == SCORES
            assert set(scores["standard_errors"]) == ERRORS
            assert len(scores["standard_errors"]["recall"]) == 4
            assert scores["recall"] == [1.0] * 4
            assert scores["confusion"][2] == [0, 0, 10, 0]
    assert plain["version"] == 2
    assert set(plain["gain"]) == {
        *("num_real", "num_synthetic", "real", "real_and_synthetic", "added", "standard_errors")
    }
    sizes = {"num_synthetic": 20, "num_real": 20}
    assert plain["frechet"].items() >= {"extractor": "pixels", "is_fid": False, **sizes}.items()
    assert set(plain["frechet"]) == {"extractor", "is_fid", "value", "floor", *sizes}
    assert set(plain["kernel"]) == {
        *("extractor", "estimator", "value", "floor", "standard_error", "floor_standard_error", *sizes)
    }
    four = {"precision", "recall", "density", "coverage"}
    nested = ("floor", "standard_errors", "floor_standard_errors")
    assert set(plain["prdc"]) == {*four, *nested, "neighbours", "extractor", *sizes}
    assert all(set(plain["prdc"][name]) == four for name in nested)
    errors = [share_error(10, 40)] * 4
    sides = {"synthetic": errors, "real": errors}
    assert plain["class_shares"] == {"synthetic": [0.25] * 4, "real": [0.25] * 4, "standard_errors": sides}
    assert plain["class_names"] == list(NAMES)
    assert plain["memorisation"]["private"] is True
    assert set(plain["memorisation"]["attack"]["tpr_at_fpr"]) == {"0.01", "0.001"}
    assert set(plain["memorisation"]["bound"]["tpr_at_fpr"]) == {"0.01", "0.001"}
    assert plain["computed_from"]["tstr"] == ["test"]
    assert plain["computed_from"]["memorisation"] == ["train", "test"]
    few = ("accuracies", "recalls", "class shares", "precision, recall and coverage", "20 images a sample")
    assert [line.startswith(start) for line, start in zip(plain["warnings"], few, strict=True)] == [True] * 5


def test_parts_computed_from_test_images_do_not_use_others(quick) -> None:
    """Another training set does not change them, to the last bit."""
    synthetic, test = blocks(40, seed=0), blocks(40, seed=2)
    extractor = ModuleExtractor(nn.Flatten(), "pixels", 64)
    one, other = (
        evaluate(synthetic, train, test, extractor=extractor)
        for train in (blocks(60, seed=1), blocks(60, seed=3).subset(torch.arange(2)))
    )
    public = [part for part, splits in one.computed_from.items() if splits == ("test",)]
    assert public == ["tstr", "frechet", "kernel", "prdc", "class_shares"]
    for part in public:
        assert getattr(one, part) == getattr(other, part), part
    assert one.trtr != other.trtr


def test_without_an_extractor_there_is_a_warning(quick) -> None:
    result = evaluate(blocks(40, seed=0), blocks(40, seed=1), blocks(20, seed=2))
    assert (result.frechet, result.kernel, result.prdc, result.memorisation) == (None, None, None, None)
    assert result.warnings[-1] == NOT_ASKED


def test_absent_classes_are_named(quick) -> None:
    synthetic, test = blocks(40, seed=0), blocks(20, seed=2)
    result = evaluate(synthetic.subset(torch.arange(2)), blocks(40, seed=1), test.subset(torch.arange(3)))
    assert result.warnings[:2] == (
        "class c, d is not among the synthetic images: classifiers trained on these never predict it",
        "class d is not among the real test images: it has no recall and no part in class means",
    )
    assert result.tstr["cnn"].recall == (1.0, 1.0, 0.0, None)


def test_test_images_of_one_class_are_refused(quick) -> None:
    test = blocks(20, seed=2)
    with pytest.raises(InputError, match="all 5 test images are of class 'b'"):
        evaluate(blocks(40, seed=0), blocks(40, seed=1), test.subset((test.labels == 1).nonzero().flatten()))
    with pytest.raises(InputError, match="features=1 is too few"):
        evaluate(blocks(40, seed=0), blocks(40, seed=1), test, num_features=1)


def test_tables_show_every_part_within_80_columns(quick) -> None:
    extractor = ModuleExtractor(nn.Flatten(), "efficientnet-lite0-1280", 64)
    result = evaluate(*(blocks(40, seed=seed) for seed in range(3)), extractor=extractor, memorised=True, bound=BOUND)
    scores = dict(result.tstr)
    scores["logreg"] = dataclasses.replace(
        scores["logreg"],
        accuracy=0.9049,
        balanced_accuracy=0.5,
        macro_f1=0.25,
        calibration_error=0.031,
        standard_errors=ScoreErrors(0.0041, 0.0123, 0.05, (None,) * 4, 0.001),
    )
    result = dataclasses.replace(result, tstr=scores, num_synthetic=20_000)
    text = StringIO()
    console = Console(file=text, width=80)
    for table in tables(result):
        console.print(table)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "logreg, synth." in line)
    cells = ["logreg, synth.", "90.5 ± 0.4", "50.0 ± 1.2", "25 ± 5", "3.10 ± 0.10"]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == cells
    assert "boosting, real" in text.getvalue()
    said = " ".join(text.getvalue().split())
    assert "20,000 synthetic images" in said
    assert "40 real training images drawn at random" in said
    assert "Not FID" in said
    assert "Fréchet distance" in said
    assert PRIVATE_TITLE in said
    assert "…" not in said  # nothing cut off


def test_class_names_are_shown_unchanged(quick) -> None:
    names = ("[/]", "[red]", "[b]c", "\\[d]")
    result = evaluate(*(dataclasses.replace(blocks(40, seed=seed), class_names=names) for seed in range(3)))
    text = StringIO()
    for table in tables(result):
        Console(file=text, width=80).print(table)
    first_cells = [line.split("│")[1].strip() for line in text.getvalue().splitlines() if line.startswith("│")]
    assert first_cells[-4:] == list(names)


@pytest.mark.parametrize("names", [("0", "1", "2", "3"), NAMES])
def test_numbered_classes_match_any_names(quick, names) -> None:
    real_train, real_test = blocks(40, seed=1), blocks(20, seed=2)
    assert three(evaluate(blocks(40, seed=0, names=names), real_train, real_test).tstr["cnn"]) == PERFECT


@pytest.mark.parametrize(
    ("synthetic", "message"),
    [
        (
            blocks(8, seed=0, side=10),
            "synthetic images are 1x10x10, real test images 1x8x8; give images of one",
        ),
        (
            blocks(8, seed=0, names=("A", "B", "C", "D", "E")),
            "the synthetic images are of class A, B, C, D, E, the real training images of class a, b, c, d; give both",
        ),
        (
            LabelledImages(blocks(8, seed=0).pixels, torch.zeros(8, dtype=torch.int64), ("0",)),
            "the synthetic images have one class, 0, the real training images 4 classes; label all or none",
        ),
    ],
)
def test_images_of_another_kind_are_refused(quick, synthetic: LabelledImages, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluate(synthetic, blocks(8, seed=1), blocks(8, seed=2))
    assert "\n" not in str(caught.value)


def test_classes_are_matched_by_name_whatever_their_order(quick) -> None:
    synthetic = blocks(40, seed=0)
    turned = LabelledImages(synthetic.pixels, 3 - synthetic.labels, NAMES[::-1])
    result = evaluate(turned, blocks(40, seed=1), blocks(20, seed=2))
    assert three(result.tstr["cnn"]) == PERFECT
    assert result.class_names == NAMES


def test_numbers_among_other_names_are_names(quick) -> None:
    """Of three numbers and a word, sorted, the numbers do not count the classes: "1" is not the first one."""
    digits = ("0", "1", "2", "3")
    real, test = (blocks(count, seed=count, names=digits) for count in (40, 20))
    synthetic = blocks(40, seed=0)
    named = LabelledImages(synthetic.pixels, (synthetic.labels - 1) % 4, ("1", "2", "3", "zero"))
    result = evaluate(named, real, test)
    assert result.tstr["cnn"].recall == (0.0, 1.0, 1.0, 1.0, None)
    assert result.warnings[0].startswith("class zero is only among the synthetic images, class 0 only among the real")


def test_a_name_on_one_side_only_is_a_class_of_its_own(quick) -> None:
    """The synthetic images call class d "dd": all of its test images are taken for another class."""
    result = evaluate(blocks(40, seed=0, names=("a", "b", "c", "dd")), blocks(40, seed=1), blocks(20, seed=2))
    assert result.class_names == (*NAMES, "dd")
    assert result.tstr["cnn"].recall == (1.0, 1.0, 1.0, 0.0, None)
    assert result.tstr["cnn"].confusion[3] == (0, 0, 0, 0, 5)
    assert result.tstr["cnn"].balanced_accuracy == 0.75
    assert result.class_shares.real == (0.25, 0.25, 0.25, 0.25, 0.0)
    assert result.warnings[:3] == (
        "class dd is only among the synthetic images, class d only among the real training images; where both mean the "
        "same class, rename one",
        "class d is not among the synthetic images: classifiers trained on these never predict it",
        "class dd is not among the real test images: it has no recall and no part in class means",
    )
    assert any("dd is not among the 40 real training images of the ceiling" in line for line in result.warnings)


@pytest.mark.parametrize("seed", range(6))
def test_missing_classes_are_named_and_give_no_nan(quick, seed: int) -> None:
    """On each side some classes remain, two or more among the test images."""
    random = np.random.default_rng(seed)
    kinds = ("synthetic images", "real training images of the ceiling", "real test images")
    sets, absent = [], {}
    for index, kind in enumerate(kinds):
        classes = sorted(random.choice(4, random.integers(2 if "test" in kind else 1, 5), replace=False).tolist())
        images = blocks(80, seed=index)
        sets.append(images.subset(torch.isin(images.labels, torch.tensor(classes)).nonzero().flatten()))
        absent[kind] = [name for number, name in enumerate(NAMES) if number not in classes]
    extractor = ModuleExtractor(nn.Flatten(), "pixels", 64)
    result = evaluate(*sets, extractor=extractor, memorised=True)
    json.dumps(result.to_json_dict(), allow_nan=False)
    for kind, names in absent.items():
        lines = [line for line in result.warnings if f"{kind}: " in line and line.startswith("class ")]
        assert [line.split(" is not")[0] for line in lines] == ([f"class {', '.join(names)}"] if names else [])
    for number, name in enumerate(NAMES):
        recall = result.tstr["cnn"].recall[number]
        assert (recall is None) == (name in absent[kinds[2]])
        assert recall in ((None, 0.0) if name in absent[kinds[0]] else (None, 1.0))
    means = [recall for recall in result.tstr["cnn"].recall if recall is not None]
    assert result.tstr["cnn"].balanced_accuracy == pytest.approx(sum(means) / len(means))
    for table in tables(result):
        Console(file=StringIO(), width=80).print(table)


def test_real_training_images_of_another_kind_are_refused(quick) -> None:
    with pytest.raises(InputError, match="real training images are 1x10x10, real test images 1x8x8"):
        evaluate(blocks(8, seed=0), blocks(8, seed=1, side=10), blocks(8, seed=2))


def test_one_class_has_no_classifiers_but_all_other_measures(quick) -> None:
    def of_one_class(seed: int) -> LabelledImages:
        return LabelledImages(blocks(40, seed).pixels, torch.zeros(40, dtype=torch.int64), ("a",))

    synthetic, train, test = map(of_one_class, range(3))
    extractor = ModuleExtractor(nn.Flatten(), "efficientnet-lite0-1280", 64)
    result = evaluate(synthetic, train, test, extractor=extractor, memorised=True, num_features=20)
    assert (result.tstr, result.trtr, result.gain) == ({}, {}, None)
    assert result.frechet is not None
    assert result.memorisation is not None
    assert result.class_shares.synthetic == result.class_shares.real == (1.0,)
    assert json.loads(json.dumps(result.to_json_dict(), allow_nan=False))["gain"] is None
    assert [str(table.title) for table in tables(result)] == ["Features of efficientnet-lite0-1280", PRIVATE_TITLE]
    with pytest.raises(InputError, match=r"have one class, so no classifier can be tested; choose a feature extractor"):
        evaluate(synthetic, train, test)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match=f"seed={seed} is not in 0..4294967295; give"):
        evaluate(blocks(8, seed=0), blocks(8, seed=1), blocks(8, seed=2), seed=seed)
