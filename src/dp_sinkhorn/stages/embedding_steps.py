"""Stage: steps towards the released mean embeddings train the generator. They see no record."""

from collections.abc import Iterator

from dp_sinkhorn.estimators.mean_embedding import EmbeddingGoal
from dp_sinkhorn.privacy.curator import Curator
from dp_sinkhorn.privacy.plan import PrivacyPlan
from dp_sinkhorn.settings import Settings
from dp_sinkhorn.stages.base import (
    Stage,
    StageFacts,
    State,
    finite_images,
    hidden_warning,
    multiple,
    root_mean_square,
)

# Images per step and learning rate: chosen on MNIST, decision 10.
_IMAGES, _LEARNING_RATE = 400, 4e-3
_MIN_PER_CLASS = 8


class EmbeddingSteps(Stage):
    """Descends the squared distance between the mean features of the model's images and the released ones."""

    name = "embedding_steps"
    needs = ("counts", "embedding")
    trains = "embedding"

    def num_generated(self, settings: Settings, plan: PrivacyPlan, num_classes: int) -> int:
        """See `Stage`."""
        return multiple(settings.num_generated or _IMAGES, num_classes, _MIN_PER_CLASS)

    def default_learning_rate(self, plan: PrivacyPlan, num_generated: int) -> float:
        """See `Stage`."""
        return _LEARNING_RATE

    def run(self, curator: Curator, state: State) -> Iterator[None]:
        """See `Stage`. It asks nothing."""
        assert state.embedding is not None  # noqa: S101 - this stage needs it
        counts = state.class_counts.to(state.config.device)
        goal = EmbeddingGoal.of(state.embedding, counts, state.config.num_generated)
        state.hidden = goal.hidden
        while state.step < state.plan.num_steps:
            latents = state.begin_step()
            images = state.generator.sample(goal.labels, latents)
            finite_images(images)
            gradient = goal.gradient(images)
            state.update(images, gradient, root_mean_square(gradient))
            yield

    def warnings(self, state: State) -> tuple[str, ...]:
        """See `Stage`."""
        return hidden_warning(state)

    def objective(self, facts: StageFacts) -> str:
        """See `Stage`."""
        return (
            "to have the mean embedding of each class, released once with noise (DP-MERF, "
            "[Harder et al. 2021](https://arxiv.org/abs/2002.11603))"
        )
