"""An untrained generator and the embedding of some records, for tests of steps towards the embedding."""

import torch

from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.mean_embedding import ReleasedEmbedding
from dp_sinkhorn.features.random_fourier import FourierMap, fourier_map
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.build import build_generator
from dp_sinkhorn.generators.optimiser import make_optimiser
from dp_sinkhorn.privacy.curator import Draw, HeldRecords
from dp_sinkhorn.stages.base import State
from dp_sinkhorn.stages.class_embedding import EmbeddingSum
from support.stage_runs import SHAPE, config_of, plain_descent


def features() -> FourierMap:
    return fourier_map(SHAPE, 200, 15.0, 0.5, 0.25, 0, "cpu")


def led_by(data: LabelledImages, mode: str, noise: float = 0.0) -> State:
    """A state of this mode with the embedding of the data, with this noise on each number."""
    config = config_of(mode)
    classes = data.num_classes
    config = config.model_copy(update={"data": config.data.model_copy(update={"class_names": data.class_names})})
    generator = build_generator(config.generator.model_copy(update={"width": 32}), SHAPE, classes)
    counts = torch.bincount(data.labels, minlength=classes).double()
    state = plain_descent(config, generator, counts=counts)
    # These steps have their own learning rates, unlike plain descent.
    state.config = state.config.model_copy(update={"settings": config.settings, "learning_rate": 1e-2})
    state.optimiser = make_optimiser(1e-2, generator)
    total = EmbeddingSum(features(), classes)(Draw(HeldRecords(data))).value
    total = total + noise * torch.randn(total.shape, generator=torch.Generator().manual_seed(0)).double()
    state.embedding = ReleasedEmbedding(features(), total, noise)
    state.finished = state.average.eval()
    return state


def means(generator: Generator) -> torch.Tensor:
    """Mean features of the images of each class."""
    with torch.no_grad():
        images = torch.stack(list(generator.samples_by_class(200, 5)))
        return torch.cat([part.mean(1) for part in features().single().of_images(images, 200)], dim=1).double()
