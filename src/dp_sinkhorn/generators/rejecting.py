"""A generator whose images the released classifier is sure of."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dp_sinkhorn.estimators.linear_classifier import LinearClassifier
from dp_sinkhorn.generators.base import Generator

# It is sure of a class whose score lies so far above every other one: that is e² times as likely. Chosen on MNIST:
# docs/tried.md.
_TRIES, _SURE = 5, 2.0


class RejectingGenerator(Generator):
    """Draws again, up to five times in all, an image that the classifier is not sure to be of its class.

    If it is sure of no try, the one likeliest to be of the class is handed out: every label gets its image, so the
    shares of the classes stay what they were. Generator and classifier are both released, so this is post-processing.
    """

    def __init__(self, generator: Generator, classifier: LinearClassifier) -> None:
        super().__init__(generator.shape, generator.num_classes, generator.latent_dim)
        self.generator = generator
        self.classifier = classifier

    def forward(self, latents: Float[Tensor, "n z"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The generator's images, none rejected."""
        images: Tensor = self.generator(latents, labels)
        return images

    @torch.no_grad()
    def sample(self, labels: Int64[Tensor, " n"], random: torch.Generator) -> Float[Tensor, "n d"]:
        """One image a label."""
        images = self.generator.sample(labels, random)
        labels = labels.to(images.device)
        margins = self.classifier.margins(images, labels)
        for _ in range(_TRIES - 1):
            (rejected,) = torch.nonzero(margins < _SURE, as_tuple=True)
            if not len(rejected):
                break
            again = self.generator.sample(labels[rejected], random)
            new = self.classifier.margins(again, labels[rejected])
            better = new > margins[rejected]
            images[rejected[better]], margins[rejected[better]] = again[better], new[better]
        return images
