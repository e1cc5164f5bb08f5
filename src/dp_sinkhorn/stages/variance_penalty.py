"""Stage: the correction moved until class means hold after rejection. By a tiny budget only; it asks nothing."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dp_sinkhorn.estimators.image_moments import MomentFrame
from dp_sinkhorn.estimators.linear_classifier import LinearClassifier
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CORRECTION_TENSORS, CorrectedGenerator
from dp_sinkhorn.generators.rejecting import RejectingGenerator
from dp_sinkhorn.privacy.plan import Budget
from dp_sinkhorn.settings import Settings
from dp_sinkhorn.stages.base import Stage, State

# The model's own images: they cost time only. A class has at least so many.
_IMAGES, _MIN_PER_CLASS = 2_000, 200
_ROUNDS = 2


class VariancePenalty(Stage):
    """Images that a classifier is sure of lie further apart than all images of their classes.

    They do along what tells the classes apart and, where a tiny budget trained the classifier, along its noise. How
    far to go along that one direction the released means know well, however noisy each of their numbers is.
    """

    name = "variance_penalty"
    needs = ("counts", "subspace", "moments", "classifier")
    layer = 4

    def runs(self, settings: Settings, budget: Budget) -> bool:
        """See `Stage`."""
        return budget.regime == "tiny"

    def finish(self, state: State) -> None:
        """See `Stage`."""
        corrected = state.finished
        assert isinstance(corrected, CorrectedGenerator)  # noqa: S101 - this stage needs the moments
        weight = state.tensors["label_classifier.weight"].to(state.config.device)
        frame = MomentFrame.of(state.subspace, state.variance, state.config.data.shape)
        state.tensors["class_moments.shifts"] = shifts_under_rejection(
            corrected,
            LinearClassifier(corrected.shape, weight),
            state.learnt["class_moments"],
            state.class_counts,
            frame,
            state.config.settings.seed,
        )


@torch.no_grad()
def shifts_under_rejection(
    corrected: CorrectedGenerator,
    classifier: LinearClassifier,
    released: Float64[Tensor, "K numbers"],
    counts: Float64[Tensor, " K"],
    frame: MomentFrame,
    seed: int,
) -> Float[Tensor, "K d"]:
    """The correction's shifts, moved until rejection moves class means no further than released ones say they lie.

    All of this is post-processing.

    Args:
        classifier: On the generator's device. released: Noisy sums of the class moments.
        counts: Estimated records a class. seed: Public, of the generator's images.
    """
    per_class = max(_MIN_PER_CLASS, _IMAGES // corrected.num_classes)
    device = next(corrected.parameters()).device
    inner = corrected.generator
    tensors: dict[str, Tensor] = {name: getattr(corrected, name).detach().cpu() for name in CORRECTION_TENSORS}

    def moved() -> CorrectedGenerator:
        return CorrectedGenerator(inner, **tensors).to(device)

    def drawn(images: Generator) -> list[Tensor]:
        # The same seed for every class: the first tries are those that the means before rejection are of.
        return [
            images.sample(torch.full((per_class,), label), torch.Generator().manual_seed(seed)).cpu()
            for label in range(inner.num_classes)
        ]

    def means_of(sums: Tensor, of: Tensor) -> Float64[Tensor, "K numbers_of_means"]:
        in_subspace, rest = frame.read(sums, of)
        return torch.cat([in_subspace.means, rest.means], dim=1)

    def cut_means(images: list[Tensor]) -> Float64[Tensor, "K numbers_of_means"]:
        sums = torch.stack([frame.bounded(own).value for own in images])
        return means_of(sums, torch.full_like(counts, per_class))

    before, after = drawn(moved()), drawn(RejectingGenerator(moved(), classifier))
    start = cut_means(before)
    pull, wanted = cut_means(after) - start, means_of(released, counts) - start
    along, length = (wanted * pull).sum(1, keepdim=True), pull.square().sum(1, keepdim=True)
    share = (along / length.clamp(min=1e-300)).clamp(0.0, 1.0)
    goal = torch.lerp(_means(before), _means(after), share)
    for turn in range(_ROUNDS):
        if turn > 0:
            after = drawn(RejectingGenerator(moved(), classifier))
        tensors["shifts"] = tensors["shifts"] + (goal - _means(after)).float()
    return tensors["shifts"]


def _means(images: list[Tensor]) -> Float64[Tensor, "K d"]:
    return torch.stack([own.double().mean(0) for own in images])
