"""The classifiers that measure how useful images are: linear, one hidden layer, convolutional, boosted trees.

They are fixed: scores of runs can be compared only if the classifiers are the same.
"""

import copy
import math
import warnings
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn

# This share of the images a classifier trains on decides when it stops (scikit-learn's default for an MLP).
HELD_OUT_FRACTION = 0.1

# 20,000 MNIST images: the test accuracy no longer moves below this tolerance, the time grows fourfold.
LOGREG_TOLERANCE = 1e-3
# Reached only if the training images are separable or noisy, so that more iterations keep fitting them closer.
LOGREG_MAX_ITERATIONS = 200

# Smaller than scikit-learn's 200: a few hundred images still give several updates an epoch.
MLP_BATCH_SIZE = 64

CNN_BATCH_SIZE = 64  # as fast as 128 on a CPU, and 0.1 to 0.3 points more accurate on 20,000 MNIST images
CNN_LEARNING_RATE = 2e-3
# The CNN is validated once a round: an epoch, or more epochs until there are so many updates. Otherwise training on a
# small set would stop after a few updates.
CNN_MIN_UPDATES_PER_ROUND = 50
# The learning rate falls linearly over these rounds. On 20,000 MNIST images they give 98.7 to 98.9 %, as ten
# rounds at a constant rate do. Training stops sooner after CNN_PATIENCE rounds without a new least loss.
CNN_MAX_ROUNDS = 6
CNN_PATIENCE = 2
CNN_PREDICT_BATCH_SIZE = 1000

# 20,000 MNIST images: 96.3 % in 10 s on two cores; scikit-learn's defaults on 28x28 pixels take minutes.
BOOSTING_MAX_SIDE = 14
BOOSTING_ROUNDS = 30
BOOSTING_LEARNING_RATE = 0.2
BOOSTING_BINS = 64


class Classifier(ABC):
    """A classifier of images: `fit` once, then `predict`. Deterministic for a seed on one machine.

    Labels are any int64 values. Only labels seen in `fit` are predicted.

    Args:
        seed: Seed of the initial weights, the order of the images and the held-out images; 0 to 2³² - 1.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def fit(self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> None:
        """Train on float32 images in [-1, 1], at least 8x8 pixels; early stopping holds out some of these."""
        self._classes: Tensor
        self._classes, targets = torch.unique(labels, return_inverse=True)
        if len(self._classes) > 1:
            self._fit(images, targets)

    def predict(self, images: Float[Tensor, "m c h w"]) -> Int64[Tensor, " m"]:
        """The label of each image; images as in `fit`, of the same shape."""
        return self.predict_with_confidence(images)[0]

    def predict_with_confidence(
        self, images: Float[Tensor, "m c h w"]
    ) -> tuple[Int64[Tensor, " m"], Float[Tensor, " m"]]:
        """The label of each image and the probability, in (0, 1], that the classifier gives it."""
        if len(self._classes) == 1:
            return self._classes.repeat(len(images)), torch.ones(len(images))
        confidences, targets = self._probabilities(images).max(dim=1)
        return self._classes[targets], confidences

    @abstractmethod
    def _fit(self, images: Tensor, targets: Tensor) -> None:
        """Train; `targets` number the classes present 0, 1, ... without a gap, at least two of them."""

    @abstractmethod
    def _probabilities(self, images: Tensor) -> Float[Tensor, "m k"]:
        """The probability of each of the k targets, for each image."""


class _PixelClassifier(Classifier):
    """A scikit-learn estimator on the pixels as rows in [0, 1], where it converges faster than in [-1, 1]."""

    @abstractmethod
    def _estimator(self, targets: Tensor) -> ClassifierMixin:
        """The untrained estimator, with options that suit the targets."""

    def _rows(self, images: Tensor) -> np.ndarray:
        return ((images.flatten(1) + 1.0) / 2.0).numpy()

    def _fit(self, images: Tensor, targets: Tensor) -> None:
        self._fitted = self._estimator(targets)
        with warnings.catch_warnings():
            # The iteration limits belong to the classifier's definition, so the user needs no warning.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._fitted.fit(self._rows(images), targets.numpy())

    def _probabilities(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._fitted.predict_proba(self._rows(images)))


class LogReg(_PixelClassifier):
    """Multinomial logistic regression on the pixels, L2-regularised (C = 1), by L-BFGS."""

    def _estimator(self, targets: Tensor) -> LogisticRegression:
        return LogisticRegression(tol=LOGREG_TOLERANCE, max_iter=LOGREG_MAX_ITERATIONS)


class MLP(_PixelClassifier):
    """One hidden layer of 100 ReLU units on the pixels, Adam.

    Stops when the accuracy on a stratified tenth of the training images stalls for ten epochs. Where a set is
    too small to hold out an image of every class, it stops when the training loss stalls.
    """

    def _estimator(self, targets: Tensor) -> MLPClassifier:
        counts = targets.bincount()
        held_out = _num_held_out(len(targets))
        can_stratify = int(counts.min()) >= 2 and held_out >= len(counts)
        num_trained = len(targets) - held_out if can_stratify else len(targets)
        return MLPClassifier(
            hidden_layer_sizes=(100,),
            batch_size=min(MLP_BATCH_SIZE, num_trained),
            early_stopping=can_stratify,
            validation_fraction=HELD_OUT_FRACTION,
            random_state=self._seed,
        )


class CNN(Classifier):
    """Two 3x3 convolutions (32, 64) with max-pooling, then 128 hidden units; dropout 0.25 and 0.5; Adam.

    The weights kept are those with the least cross-entropy on a held-out tenth of the training images.
    """

    def _fit(self, images: Tensor, targets: Tensor) -> None:
        # Initial weights and dropout draw from the global generator: forked, the caller's stays untouched.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            self._network = _convolutional_network(images.shape[1:], num_classes=int(targets.max()) + 1)
            order = torch.randperm(len(images))
            held_out, trained = order.tensor_split([_num_held_out(len(images))])
            _train_until_stalled(
                self._network,
                training=(images[trained], targets[trained]),
                validation=(images[held_out], targets[held_out]),
            )

    def _probabilities(self, images: Tensor) -> Tensor:
        return _logits(self._network, images).softmax(dim=1)


class Boosting(_PixelClassifier):
    """Gradient-boosted trees by histograms, on images averaged down to at most 14 pixels a side."""

    def _estimator(self, targets: Tensor) -> HistGradientBoostingClassifier:
        return HistGradientBoostingClassifier(
            max_iter=BOOSTING_ROUNDS,
            learning_rate=BOOSTING_LEARNING_RATE,
            max_bins=BOOSTING_BINS,
            early_stopping=False,
            random_state=self._seed,
        )

    def _rows(self, images: Tensor) -> np.ndarray:
        _, _, height, width = images.shape
        size = (min(height, BOOSTING_MAX_SIDE), min(width, BOOSTING_MAX_SIDE))
        return super()._rows(F.adaptive_avg_pool2d(images, size))


CLASSIFIERS: dict[str, type[Classifier]] = {"logreg": LogReg, "mlp": MLP, "cnn": CNN, "boosting": Boosting}
"""The classifiers by their names in an evaluation."""


def _num_held_out(count: int) -> int:
    return math.ceil(HELD_OUT_FRACTION * count)


def _convolutional_network(shape: torch.Size, num_classes: int) -> nn.Sequential:
    channels, height, width = shape
    network = nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )
    # Channels last: about a tenth faster on a CPU.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _train_until_stalled(
    network: nn.Module, training: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]
) -> None:
    """Train in rounds until the validation loss stalls; leave the best round's weights in the network."""
    optimiser = torch.optim.Adam(network.parameters(), lr=CNN_LEARNING_RATE)
    best_loss, best_weights, stalled = math.inf, network.state_dict(), 0
    decay = torch.optim.lr_scheduler.LinearLR(
        optimiser, start_factor=1.0, end_factor=1.0 / CNN_MAX_ROUNDS, total_iters=CNN_MAX_ROUNDS - 1
    )
    for _ in range(CNN_MAX_ROUNDS):
        _train_round(network, optimiser, *training)
        decay.step()
        loss = F.cross_entropy(_logits(network, validation[0]), validation[1]).item()
        if loss < best_loss:
            best_loss, best_weights, stalled = loss, copy.deepcopy(network.state_dict()), 0
        else:
            stalled += 1
            if stalled == CNN_PATIENCE:
                break
    network.load_state_dict(best_weights)


def _train_round(network: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, targets: Tensor) -> None:
    network.train()
    updates_per_epoch = math.ceil(len(images) / CNN_BATCH_SIZE)
    for _ in range(math.ceil(CNN_MIN_UPDATES_PER_ROUND / updates_per_epoch)):
        for batch in torch.split(torch.randperm(len(images)), CNN_BATCH_SIZE):
            optimiser.zero_grad()
            F.cross_entropy(network(images[batch]), targets[batch]).backward()
            optimiser.step()


@torch.no_grad()
def _logits(network: nn.Module, images: Tensor) -> Float[Tensor, "m classes"]:
    network.eval()
    return torch.cat([network(batch) for batch in torch.split(images, CNN_PREDICT_BATCH_SIZE)])
