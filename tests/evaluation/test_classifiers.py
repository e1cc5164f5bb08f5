"""The classifiers learn what can be learnt, nothing else, and are deterministic."""

from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from dp_sinkhorn.evaluation import CLASSIFIERS, classifiers

NUM_CLASSES = 4


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On arrays as small as these, threads only wait for one another: minutes on a busy machine."""
    with threadpool_limits(limits=1):
        yield


def blocks(count: int, seed: int, side: int = 8, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Noisy dark images with one bright quadrant, whose position is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    images = -0.8 + 0.2 * torch.rand(count, channels, side, side, generator=generator)
    half = side // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 1.0
    return images, labels


@pytest.fixture(params=CLASSIFIERS)
def new_classifier(request: pytest.FixtureRequest):
    return CLASSIFIERS[request.param]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few updates, for tests that do not need trained classifiers."""
    monkeypatch.setattr(classifiers, "CNN_MAX_ROUNDS", 2)
    monkeypatch.setattr(classifiers, "CNN_MIN_UPDATES_PER_ROUND", 4)
    monkeypatch.setattr(classifiers, "BOOSTING_ROUNDS", 4)


def test_separable_classes_are_learnt_perfectly(new_classifier) -> None:
    images, labels = blocks(300, seed=0)
    present = labels != 1
    values = torch.tensor([2, -1, 5, 9])
    classifier = new_classifier(seed=0)
    classifier.fit(images[present], values[labels[present]])
    test_images, test_labels = blocks(200, seed=1)
    kept = test_labels != 1
    predictions = classifier.predict(test_images[kept])
    assert predictions.dtype == torch.int64
    assert torch.equal(predictions, values[test_labels[kept]])


def test_shuffled_labels_teach_nothing(new_classifier) -> None:
    images, labels = blocks(300, seed=0)
    classifier = new_classifier(seed=0)
    classifier.fit(images, labels[torch.randperm(300, generator=torch.Generator().manual_seed(2))])
    test_images, test_labels = blocks(400, seed=1)
    accuracy = (classifier.predict(test_images) == test_labels).double().mean()
    # Chance is 1/4. All images of a class may get the majority of its shuffled labels, so the accuracy is about a
    # multiple of 1/4: one class may be right by luck, hardly two.
    assert accuracy <= 0.4


def test_the_same_seed_repeats_and_another_does_not(new_classifier, short) -> None:
    """The global random state has no effect and does not change."""
    images, labels = blocks(60, seed=0)
    noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def predictions(seed: int) -> Tensor:
        torch.rand(seed + 1)
        before = torch.get_rng_state()
        classifier = new_classifier(seed)
        classifier.fit(images, labels)
        assert torch.equal(torch.get_rng_state(), before)
        return classifier.predict(noise)

    first = predictions(5)
    assert torch.equal(predictions(5), first)
    if new_classifier in (CLASSIFIERS["mlp"], CLASSIFIERS["cnn"]):  # the others find one optimum, whatever the seed
        assert not torch.equal(predictions(6), first)


def test_a_single_class_is_always_predicted(new_classifier) -> None:
    images, _ = blocks(20, seed=0)
    classifier = new_classifier(seed=0)
    classifier.fit(images, torch.full((20,), 7))
    assert classifier.predict(images[:3]).tolist() == [7, 7, 7]


@pytest.mark.parametrize("labels", [[0, 1], [0] * 39 + [1], list(range(12))])
def test_tiny_sets_and_rare_classes_are_accepted(new_classifier, short, labels: list[int]) -> None:
    """Too few images to hold out one of every class, or to fill a batch: no crash, no warning."""
    images, _ = blocks(len(labels), seed=0)
    classifier = new_classifier(seed=0)
    classifier.fit(images, torch.tensor(labels))
    assert set(classifier.predict(images).tolist()) <= set(labels)


@pytest.mark.parametrize("shape", [(1, 9, 11), (3, 64, 64)])
def test_every_image_shape_is_accepted(new_classifier, shape: tuple[int, int, int], short) -> None:
    images = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    classifier = new_classifier(seed=0)
    classifier.fit(images, torch.arange(20) % 2)
    assert classifier.predict(images[:3]).shape == (3,)


def test_the_cnn_keeps_the_weights_of_its_best_round(monkeypatch) -> None:
    """Validation labels that contradict the training labels: every further round is worse than the first."""
    images, labels = blocks(200, seed=0)
    losses, weights = [], []
    train_round = classifiers._train_round

    def record_round(network, *arguments) -> None:
        train_round(network, *arguments)
        loss = torch.nn.functional.cross_entropy(classifiers._logits(network, images), 3 - labels)
        losses.append(loss.item())
        weights.append(network[0].weight.detach().clone())

    monkeypatch.setattr(classifiers, "_train_round", record_round)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = classifiers._convolutional_network(images.shape[1:], NUM_CLASSES)
        classifiers._train_until_stalled(network, training=(images, labels), validation=(images, 3 - labels))
    assert len(losses) == 1 + classifiers.CNN_PATIENCE
    assert losses[0] == min(losses)
    assert torch.equal(network[0].weight, weights[0])
